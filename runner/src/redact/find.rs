//! Finds values in a text in every form that servers and encoders give them: as they are, escaped for JSON, a URL or HTML
//! in any mixture, and within base64 of either alphabet, wherever in it they begin. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::stream::{Rest, Streamed};
use super::unescape::unescaped;
use crate::credential::Secret;

/// Shorter values are not looked for within base64, where they would be found by chance.
const BASE64_VALUE_MIN: usize = 6;
/// What may stand between two lines of base64, their indentation included, or between characters of a value.
const BREAKS_MAX: usize = 68;

/// A number of so many digits stays as it is, whatever parses it.
const EXACT_DIGITS: usize = 15;

/// A value and the credential that it is of.
#[derive(Clone)]
pub struct Named {
    pub name: Arc<str>,
    pub secret: Secret,
}

/// All that is looked for at once.
#[derive(Default)]
pub struct Finder {
    patterns: Vec<Pattern>,
    /// For each byte the patterns that may begin with it.
    starts: Vec<Vec<usize>>,
}

struct Pattern {
    name: Arc<str>,
    value: Secret,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Exact,
    /// Without backslashes, since they come and go with every level of JSON.
    Escaped,
    /// That many bytes stand before the value in its first group of three.
    Base64 {
        before: usize,
    },
}

/// What is known of a place in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Nothing,
    /// A value of this credential stands here and ends there.
    Value {
        name: &'a str,
        end: usize,
    },
    /// The text ends within what may become a value.
    Begun,
}

enum Match {
    No,
    To(usize),
    Begun,
}

impl Finder {
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a Named>) -> Self {
        let patterns: Vec<Pattern> = values.into_iter().flat_map(patterns_of).collect();
        let mut starts = vec![Vec::new(); 256];
        for (index, pattern) in patterns.iter().enumerate() {
            for (byte, starting) in (0..=u8::MAX).zip(&mut starts) {
                if pattern.may_start_with(byte) {
                    starting.push(index);
                }
            }
        }
        Self { patterns, starts }
    }

    /// What stands at `at`: of values that begin together the longest.
    pub(super) fn at(&self, text: &[u8], at: usize) -> Found<'_> {
        let Some(byte) = text.get(at) else { return Found::Nothing };
        let mut found = Found::Nothing;
        for index in self.starts.get(usize::from(*byte)).into_iter().flatten() {
            let Some(pattern) = self.patterns.get(*index) else { continue };
            match (pattern.matches(text, at, Rest::WasCut), found) {
                (Match::No, _) => {}
                (Match::Begun, _) => return Found::Begun,
                (Match::To(end), Found::Value { end: longest, .. }) if end <= longest => {}
                (Match::To(end), _) => found = Found::Value { name: &pattern.name, end },
            }
        }
        found
    }

    /// The longest value at `at` that ends within `text`.
    pub(super) fn whole_at(&self, text: &[u8], at: usize) -> Found<'_> {
        let Some(byte) = text.get(at) else { return Found::Nothing };
        let indexes = self.starts.get(usize::from(*byte)).into_iter().flatten();
        let patterns = indexes.filter_map(|index| self.patterns.get(*index));
        let ends = patterns.filter_map(|pattern| match pattern.matches(text, at, Rest::IsAll) {
            Match::To(end) => Some((end, pattern)),
            Match::No | Match::Begun => None,
        });
        let longest = ends.max_by_key(|(end, _)| *end);
        longest.map_or(Found::Nothing, |(end, pattern)| Found::Value { name: &pattern.name, end })
    }

    /// The credential whose value stands first in `text`.
    #[must_use]
    pub fn first(&self, text: &str) -> Option<&str> {
        let text = text.as_bytes();
        (0..text.len()).find_map(|at| match self.whole_at(text, at) {
            Found::Value { name, .. } => Some(name),
            Found::Nothing | Found::Begun => None,
        })
    }

    /// `text` with every value replaced by a marker.
    #[must_use]
    pub fn replaced<'a>(self: &Arc<Self>, text: &'a str) -> Cow<'a, str> {
        self.replaced_with(text, Rest::IsAll)
    }

    /// The same for a text that was cut at its end: what may be the beginning of a value goes too.
    #[must_use]
    pub fn replaced_cut<'a>(self: &Arc<Self>, text: &'a str) -> Cow<'a, str> {
        self.replaced_with(text, Rest::WasCut)
    }

    fn replaced_with<'a>(self: &Arc<Self>, text: &'a str, rest: Rest) -> Cow<'a, str> {
        let bytes = text.as_bytes();
        let first = (0..bytes.len()).find(|at| match rest {
            Rest::IsAll => self.whole_at(bytes, *at) != Found::Nothing,
            Rest::WasCut => self.at(bytes, *at) != Found::Nothing,
        });
        let Some(first) = first else { return Cow::Borrowed(text) };
        // What comes before is known to hold nothing.
        let (clean, dirty) = bytes.split_at(first);
        let mut redacted = clean.to_vec();
        let mut stream = Streamed::new(Arc::clone(self));
        redacted.extend(stream.push(dirty));
        redacted.extend(stream.finish(rest));
        Cow::Owned(String::from_utf8(redacted).unwrap_or_else(|bytes| {
            // Values that are no text can be found within characters.
            String::from_utf8_lossy(bytes.as_bytes()).into_owned()
        }))
    }
}

fn patterns_of(value: &Named) -> impl Iterator<Item = Pattern> {
    let Named { name, secret } = value;
    let bytes = secret.bytes();
    let pattern = |value: Secret, form: Form| Pattern { name: Arc::clone(name), value, form };
    let mut patterns = Vec::new();
    if !bytes.is_empty() {
        patterns.push(pattern(secret.clone(), Form::Exact));
    }
    let plain: Zeroizing<Vec<u8>> = bytes.iter().copied().filter(|byte| *byte != b'\\').collect::<Vec<_>>().into();
    if !plain.is_empty() {
        patterns.push(pattern(Secret::new(&plain), Form::Escaped));
    }
    patterns.extend(roundings(bytes).map(|rounded| pattern(rounded, Form::Escaped)));
    if bytes.len() >= BASE64_VALUE_MIN {
        patterns.extend((0..3).map(|before| pattern(secret.clone(), Form::Base64 { before })));
    }
    patterns.into_iter()
}

/// How parsers write a value of digits that are more than a double keeps: what it does keep is most of a key.
fn roundings(value: &[u8]) -> impl Iterator<Item = Secret> {
    // JSON has no number that begins with 0, and of one that ends in many nothing is left that is the key's own.
    let is_long = |text: &&str| text.trim_end_matches('0').len() > EXACT_DIGITS && !text.starts_with('0');
    let digits = str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number: Option<f64> = digits.filter(is_long).and_then(|text| text.parse().ok());
    let spellings = number.filter(|number| number.is_finite()).map(|number| {
        let short = format!("{number:e}");
        [number.to_string(), short.replace('e', "e+"), short]
    });
    spellings.into_iter().flatten().map(|text| Secret::new(Zeroizing::new(text).as_bytes()))
}

impl Pattern {
    fn may_start_with(&self, byte: u8) -> bool {
        match self.form {
            Form::Exact => self.value.bytes().first() == Some(&byte),
            Form::Escaped | Form::Base64 { .. } => matches!(byte, b'%' | b'\\' | b'&') || self.accepts(0, byte),
        }
    }

    /// How many characters the pattern has.
    fn length(&self) -> usize {
        let bytes = self.value.bytes().len();
        match self.form {
            Form::Exact | Form::Escaped => bytes,
            Form::Base64 { before } => (8 * (before + bytes)).div_ceil(6) - 8 * before / 6,
        }
    }

    /// Whether `byte`, which was escaped or not, is the pattern's character at `index`.
    fn accepts(&self, index: usize, byte: u8) -> bool {
        match self.form {
            Form::Exact | Form::Escaped => match self.value.bytes().get(index) {
                Some(b' ') => matches!(byte, b' ' | b'+'),
                // Hosts, media types and names of headers come in lower case.
                expected => expected.is_some_and(|expected| expected.eq_ignore_ascii_case(&byte)),
            },
            Form::Base64 { before } => {
                let (bits, mask) = sextet(self.value.bytes(), before, index + 8 * before / 6);
                sextet_of(byte).is_some_and(|given| given & mask == bits)
            }
        }
    }

    fn matches(&self, text: &[u8], at: usize, rest: Rest) -> Match {
        let left = text.get(at..).unwrap_or_default();
        match self.form {
            Form::Exact if left.starts_with(self.value.bytes()) => Match::To(at + self.value.bytes().len()),
            Form::Exact if self.value.bytes().starts_with(left) => Match::Begun,
            Form::Exact => Match::No,
            Form::Escaped | Form::Base64 { .. } => self.matches_escaped(text, at, rest),
        }
    }

    fn matches_escaped(&self, text: &[u8], at: usize, rest: Rest) -> Match {
        let (mut next, mut index, mut breaks) = (at, 0, 0);
        while index < self.length() {
            let Some(step) = unescaped(text, next, rest) else { return Match::Begun };
            let is_break = match self.form {
                Form::Exact => false,
                // One that was escaped as a number.
                Form::Escaped => step.meant() == b"\\",
                Form::Base64 { .. } => match step.meant() {
                    [b'\n' | b'\r'] => true,
                    // Lines may be indented.
                    [b' ' | b'\t'] => breaks > 0,
                    _ => false,
                },
            };
            if is_break && index > 0 && breaks < BREAKS_MAX {
                breaks += 1;
            } else if step.meant().iter().zip(index..).all(|(byte, index)| self.accepts(index, *byte)) {
                index += step.meant().len();
                breaks = 0;
            } else if step.letter.is_some_and(|letter| self.accepts(index, letter.byte)) {
                index += 1;
                breaks = 0;
                next = step.letter.map_or(step.end, |letter| letter.end);
                continue;
            } else {
                return Match::No;
            }
            next = step.end;
        }
        Match::To(next)
    }
}

/// Character `number` of the base64 of `value` with `before` bytes in front of it, as far as the value alone decides it:
/// bits, and which of them are known.
fn sextet(value: &[u8], before: usize, number: usize) -> (u8, u8) {
    let mut known = (0, 0);
    for bit in 6 * number..6 * number + 6 {
        let of_value = bit.checked_sub(8 * before).and_then(|bit| Some(value.get(bit / 8)? >> (7 - bit % 8) & 1));
        known = (known.0 << 1 | of_value.unwrap_or(0), known.1 << 1 | u8::from(of_value.is_some()));
    }
    known
}

/// What a character of base64 stands for, in either alphabet.
fn sextet_of(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use rstest::rstest;

    use super::*;

    /// Bytes of every sort that a key may have: letters, what base64 writes as `+` and `/`, quotes, spaces.
    const VALUES: [&str; 5] = ["hunter2-sword", r#"h"un\ter/2"#, "a b&c=d%e+f", "?>?>~~??>>", "pässwört-ß-😀"];
    const MARKER: &str = "[credential a redacted]";

    fn finder(values: &[(&str, &str)]) -> Arc<Finder> {
        let named =
            values.iter().map(|(name, value)| Named { name: (*name).into(), secret: Secret::new(value.as_bytes()) });
        Arc::new(Finder::new(&named.collect::<Vec<_>>()))
    }

    fn percent(value: &str, upper: bool, keeps: fn(u8) -> bool) -> String {
        let one = |byte: u8| match byte {
            byte if keeps(byte) => char::from(byte).to_string(),
            byte if upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        };
        value.bytes().map(one).collect()
    }

    fn json(value: &str) -> String {
        let quoted = serde_json::Value::from(value).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    }

    /// Every character as Python's json.dumps or worse writes it.
    fn unicode(value: &str) -> String {
        value.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat()
    }

    /// As HTML's own functions write it, and with every character as a number.
    fn html(value: &str) -> [String; 3] {
        let five = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&apos;")];
        let number = |c: char| if c.is_alphanumeric() { c.to_string() } else { format!("&#{};", u32::from(c)) };
        [
            five.into_iter().fold(value.to_owned(), |text, (one, entity)| text.replace(one, entity)),
            value.chars().map(number).collect(),
            value.chars().map(|c| format!("&#x{:02X};", u32::from(c))).collect::<Vec<_>>().concat(),
        ]
    }

    #[test]
    fn a_value_is_found_however_often_it_was_encoded_and_as_html_and_source_text_write_it() {
        for value in VALUES.into_iter().chain(["<a>&'b'\"%e4&lt;x41", "secret%", "secret&"]) {
            let finder = finder(&[("a", value)]);
            let twice = |value: &str| percent(value, true, |byte| byte.is_ascii_alphanumeric());
            let [five, decimal, hexadecimal] = html(value);
            let forms = [
                twice(&twice(value)),
                twice(&twice(&twice(&twice(value)))),
                percent(&percent(value, false, |_| false), true, |byte| byte != b'%'),
                html(&five)[0].clone(),
                json(&five),
                five,
                decimal,
                hexadecimal,
                value.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<Vec<_>>().concat(),
            ];
            for form in forms {
                assert_eq!(finder.replaced(&format!("<{form}>")), format!("<{MARKER}>"), "{form}");
                assert_eq!(finder.replaced(&form), MARKER, "{form}");
            }
        }
    }

    #[test]
    fn a_value_is_found_in_every_form_in_which_a_server_may_write_it() {
        for value in VALUES {
            let finder = finder(&[("a", value)]);
            let forms = [
                value.to_owned(),
                json(value),
                json(&json(value)),
                json(&json(&json(value))),
                unicode(value),
                json(&unicode(value)),
                value.replace('/', r"\/"),
                percent(value, true, |_| false),
                percent(value, false, |_| false),
                percent(value, true, |byte| byte.is_ascii_alphanumeric()),
                percent(value, false, |byte| byte.is_ascii_alphanumeric()),
                percent(value, true, |byte| byte.is_ascii_alphanumeric() || byte == b' ').replace(' ', "+"),
                json(&percent(value, true, |byte| byte != b'%' && byte.is_ascii())),
            ];
            for form in forms {
                assert_eq!(finder.replaced(&format!("<{form}>")), format!("<{MARKER}>"), "{form}");
            }
        }
    }

    #[test]
    fn a_value_is_found_within_base64_of_either_alphabet_wherever_it_begins() {
        for value in VALUES {
            let finder = finder(&[("a", value)]);
            for (before, after) in (0..4).flat_map(|before| (0..4).map(move |after| (before, after))) {
                let whole = format!("{}{value}{}", "u:x"[..before.min(3)].repeat(1 + before / 3), "z".repeat(after));
                let encoded = [
                    STANDARD.encode(&whole),
                    STANDARD_NO_PAD.encode(&whole),
                    URL_SAFE.encode(&whole),
                    URL_SAFE_NO_PAD.encode(&whole),
                ];
                for base64 in encoded {
                    let wrapped: Vec<&str> =
                        base64.as_bytes().chunks(7).map(|line| str::from_utf8(line).unwrap()).collect();
                    let texts = [
                        base64.clone(),
                        percent(&base64, true, |byte| byte.is_ascii_alphanumeric()),
                        base64.replace('/', r"\/"),
                        wrapped.join("\n"),
                        wrapped.join("\r\n"),
                        json(&wrapped.join("\n")),
                        wrapped.join("\r\n\t"),
                        wrapped.join(&format!("\n{}", " ".repeat(64))),
                        json(&wrapped.join("\n    ")),
                    ];
                    for text in texts {
                        let shown = finder.replaced(&text).into_owned();
                        assert!(shown.contains(MARKER), "{text} of {whole:?}: {shown}");
                        // Nothing of the value can be read from what is left at either side.
                        let left = shown.replace(MARKER, "").replace(['=', '\n', '\r', '\\', ' ', '\t'], "");
                        let most = (8 * before).div_ceil(6) + (8 * after).div_ceil(6) + 4 * 3;
                        assert!(left.len() <= most, "{text} of {whole:?}: {shown}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_short_value_is_not_looked_for_where_it_would_be_found_by_chance() {
        let finder = finder(&[("a", "pin")]);
        let text = STANDARD.encode("a pin in base64");
        assert_eq!(finder.replaced(&text), text);
        assert_eq!(finder.replaced("my pin"), format!("my {MARKER}"));
    }

    #[rstest]
    #[case::nothing(
        "nothing at all, 100% of it \\ \\u12 & &x; &#x; &# &amp; %25 %",
        "nothing at all, 100% of it \\ \\u12 & &x; &#x; &# &amp; %25 %"
    )]
    #[case::nearly("hunter", "hunter")]
    #[case::together("hunter2hunter2", "[credential a redacted][credential a redacted]")]
    fn a_text_is_otherwise_left_as_it_is(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(finder(&[("a", "hunter2")]).replaced(text), expected);
    }

    #[test]
    fn a_value_within_another_leaves_nothing_of_it() {
        let finder = finder(&[("a", "ter"), ("b", "hunter2"), ("c", "r2-sword")]);
        assert_eq!(finder.replaced("my hunter2."), "my [credential b redacted].");
        assert_eq!(finder.replaced("my hunter2-sword."), "my [credential b redacted].");
        assert_eq!(finder.replaced("terter"), "[credential a redacted][credential a redacted]");
    }

    #[test]
    fn a_value_that_overlaps_itself_goes_whole() {
        assert_eq!(finder(&[("a", "abab")]).replaced("ababab!"), "[credential a redacted]!");
    }

    #[rstest]
    #[case::within_a_value("says hunt", "says ")]
    #[case::within_an_escape(r"says \u006", "says ")]
    #[case::within_an_encoded_one("says %68%75", "says ")]
    #[case::within_one_encoded_twice("says %25", "says ")]
    #[case::within_an_entity("says h&#x75", "says ")]
    #[case::within_base64("says aHVudGV", "says ")]
    #[case::after_a_value("hunter2 says so.", "[credential a redacted] says so.")]
    #[case::elsewhere("says 'no.", "says 'no.")]
    fn the_beginning_of_a_value_at_a_cut_is_not_shown(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(finder(&[("a", "hunter2")]).replaced_cut(text), expected);
    }
}
