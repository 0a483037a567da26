//! Reads a text one character at a time as it was before it was escaped, for JSON, a URL or HTML. Pure.

use super::stream::Rest;
use crate::percent::hex_digit;

/// Escapes of escapes: each level of JSON in JSON doubles them.
const BACKSLASHES_MAX: usize = 16;
/// So many times what was encoded for a URL or HTML may have been encoded again.
const AGAIN_MAX: usize = 4;
/// `#x0010FFFF`
const ENTITY_BYTES_MAX: usize = 10;

/// One step through an escaped text.
pub struct Step {
    meant: [u8; 4],
    length: usize,
    pub end: usize,
    /// What it is if what stands there escapes nothing: the sign alone, or the letter after its backslashes.
    pub letter: Option<Letter>,
}

#[derive(Clone, Copy)]
pub struct Letter {
    pub byte: u8,
    pub end: usize,
}

impl Step {
    fn byte(byte: u8, end: usize) -> Self {
        Self { meant: [byte, 0, 0, 0], length: 1, end, letter: None }
    }

    fn of(character: char, end: usize) -> Self {
        let mut meant = [0; 4];
        let length = character.encode_utf8(&mut meant).len();
        Self { meant, length, end, letter: None }
    }

    pub fn meant(&self) -> &[u8] {
        self.meant.get(..self.length).unwrap_or_default()
    }
}

/// The character at `at` as it was before it was escaped; none where the text ends within it, and goes on.
pub fn unescaped(text: &[u8], at: usize, rest: Rest) -> Option<Step> {
    match text.get(at)? {
        b'%' => percent(text, at, rest),
        b'&' => entity(text, at, rest),
        b'\\' => {
            let run = text.get(at..)?.iter().take(BACKSLASHES_MAX).take_while(|byte| **byte == b'\\').count();
            backslashed(text, at + run)
        }
        byte => Some(Step::byte(*byte, at + 1)),
    }
}

/// `%2F`, `%252F`, ..
fn percent(text: &[u8], at: usize, rest: Rest) -> Option<Step> {
    let digits = after_all(text, at + 1, b"25");
    let sign = Letter { byte: b'%', end: digits };
    let digit = |at: usize| text.get(at).map(|byte| hex_digit(*byte));
    match (digit(digits), digit(digits + 1)) {
        (Some(Some(high)), Some(Some(low))) => {
            Some(Step { letter: Some(sign), ..Step::byte(high << 4 | low, digits + 2) })
        }
        (None, _) | (Some(Some(_)), None) if rest == Rest::WasCut => None,
        _ => Some(Step::byte(sign.byte, sign.end)),
    }
}

/// `&lt;`, `&#47;`, `&#x2F;`, `&amp;lt;`, ..
fn entity(text: &[u8], at: usize, rest: Rest) -> Option<Step> {
    let name = after_all(text, at + 1, b"amp;");
    let sign = Letter { byte: b'&', end: name };
    let after = text.get(name..)?;
    let is_of_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'#';
    let length = after.iter().take(ENTITY_BYTES_MAX + 1).take_while(is_of_name).count();
    let character = match after.get(length) {
        None if rest == Rest::WasCut && length <= ENTITY_BYTES_MAX => return None,
        Some(b';') => after.get(..length).and_then(named),
        None | Some(_) => None,
    };
    Some(match character {
        Some(character) => Step { letter: Some(sign), ..Step::of(character, name + length + 1) },
        None => Step::byte(sign.byte, sign.end),
    })
}

/// Where `word` stands no more, having stood at `at` some times.
fn after_all(text: &[u8], at: usize, word: &[u8]) -> usize {
    let pieces = text.get(at..).unwrap_or_default().chunks(word.len()).take(AGAIN_MAX);
    at + word.len() * pieces.take_while(|piece| piece.eq_ignore_ascii_case(word)).count()
}

/// The character of an entity that HTML writes for itself, or of a number.
fn named(name: &[u8]) -> Option<char> {
    let name = str::from_utf8(name).ok()?.to_ascii_lowercase();
    let number = match name.strip_prefix('#') {
        None => {
            return match name.as_str() {
                "amp" => Some('&'),
                "lt" => Some('<'),
                "gt" => Some('>'),
                "quot" => Some('"'),
                "apos" => Some('\''),
                _ => None,
            };
        }
        Some(number) => match number.strip_prefix('x') {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        },
    };
    char::from_u32(number.ok()?)
}

/// The character at `at`, before which backslashes stand.
fn backslashed(text: &[u8], at: usize) -> Option<Step> {
    let byte = *text.get(at)?;
    let letter = Some(Letter { byte, end: at + 1 });
    let control = |byte: u8| Some(Step { letter, ..Step::byte(byte, at + 1) });
    match byte {
        b'n' => control(b'\n'),
        b'r' => control(b'\r'),
        b't' => control(b'\t'),
        b'b' => control(8),
        b'f' => control(12),
        b'x' => match (text.get(at + 1).map(|byte| hex_digit(*byte)), text.get(at + 2).map(|byte| hex_digit(*byte))) {
            (Some(Some(high)), Some(Some(low))) => Some(Step { letter, ..Step::byte(high << 4 | low, at + 3) }),
            (None, _) | (Some(Some(_)), None) => None,
            _ => control(b'x'),
        },
        b'u' => match code_unit(text, at + 1) {
            Digits::Cut => None,
            Digits::None => control(b'u'),
            Digits::Unit(unit) => Some(Step { letter, ..character(text, unit, at + 5)? }),
        },
        other => Some(Step::byte(other, at + 1)),
    }
}

enum Digits {
    Unit(u16),
    None,
    Cut,
}

/// Four hexadecimal digits.
fn code_unit(text: &[u8], at: usize) -> Digits {
    let mut unit = 0;
    for digit in at..at + 4 {
        match text.get(digit).map(|byte| hex_digit(*byte)) {
            Some(Some(value)) => unit = unit << 4 | u16::from(value),
            Some(None) => return Digits::None,
            None => return Digits::Cut,
        }
    }
    Digits::Unit(unit)
}

/// The character that begins with `unit`, whose other half, if it has one, stands at `end`; none where the text ends
/// within it.
fn character(text: &[u8], unit: u16, end: usize) -> Option<Step> {
    let mut units = vec![unit];
    let mut end = end;
    if (0xd800..0xdc00).contains(&unit) {
        let run = text.get(end..)?.iter().take(BACKSLASHES_MAX).take_while(|byte| **byte == b'\\').count();
        match (text.get(end + run)?, code_unit(text, end + run + 1)) {
            (b'u', Digits::Cut) => return None,
            (b'u', Digits::Unit(low)) => {
                units.push(low);
                end += run + 5;
            }
            _ => {}
        }
    }
    let decoded = char::decode_utf16(units).next().and_then(Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER);
    Some(Step::of(decoded, end))
}
