//! Reads a text one character at a time as it was before it was escaped, for JSON or a URL. Pure.

use crate::credential::scope::hex_digit;

/// Escapes of escapes: each level of JSON in JSON doubles them.
const BACKSLASHES_MAX: usize = 16;

/// One step through an escaped text.
pub struct Step {
    meant: [u8; 4],
    length: usize,
    pub end: usize,
    /// What it is if the backslashes before it escape nothing but themselves.
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

    pub fn meant(&self) -> &[u8] {
        self.meant.get(..self.length).unwrap_or_default()
    }
}

/// The character at `at` as it was before it was escaped; none where the text ends within it.
pub fn unescaped(text: &[u8], at: usize) -> Option<Step> {
    match text.get(at)? {
        b'%' => {
            let [high, low] = [text.get(at + 1)?, text.get(at + 2).unwrap_or(&b'0')].map(|digit| hex_digit(*digit));
            match high.zip(low) {
                Some(_) if text.len() < at + 3 => None,
                Some((high, low)) => Some(Step::byte(high << 4 | low, at + 3)),
                None => Some(Step::byte(b'%', at + 1)),
            }
        }
        b'\\' => {
            let run = text.get(at..)?.iter().take(BACKSLASHES_MAX).take_while(|byte| **byte == b'\\').count();
            backslashed(text, at + run)
        }
        byte => Some(Step::byte(*byte, at + 1)),
    }
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
    let mut meant = [0; 4];
    let length = decoded.encode_utf8(&mut meant).len();
    Some(Step { meant, length, end, letter: None })
}
