//! Keeps credential values out of everything that is reported: each true value that occurs in a text, in whatever form, is
//! replaced by a marker, and arguments that hold one begin with it.

mod find;
mod stream;
mod unescape;

use std::borrow::Cow;
use std::sync::Arc;

use belay_protocol::plan::PlanCredential;
use serde_json::Value;

use crate::credential::Credentials;

pub use self::find::{Finder, Named};
pub use self::stream::{Rest, Streamed};

/// Cheap to clone; all clones, and all redactors of the same [`Credentials`], know the same values.
#[derive(Clone, Debug)]
pub struct Redactor {
    credentials: Credentials,
    of: Arc<[PlanCredential]>,
}

impl Redactor {
    #[must_use]
    pub fn new(credentials: Credentials, of: &[PlanCredential]) -> Self {
        Self { credentials, of: of.into() }
    }

    /// `text` with every credential value replaced by `[credential NAME redacted]`.
    #[must_use]
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.finder().replaced(text)
    }

    /// The same for a text of which no more than `most` bytes were kept: if it is that long, what may be the beginning of
    /// a value at its end is left out.
    #[must_use]
    pub fn redact_kept<'a>(&self, text: &'a str, most: usize) -> Cow<'a, str> {
        // Cutting between characters takes up to three more.
        if text.len() + 3 < most { self.redact(text) } else { self.finder().replaced_cut(text) }
    }

    /// The same for a text that arrives in pieces.
    #[must_use]
    pub fn stream(&self) -> Streamed {
        Streamed::new(self.finder())
    }

    /// Whether no credential value stands in `text`: what is a name cannot be redacted, only left out.
    #[must_use]
    pub fn is_clean(&self, text: &str) -> bool {
        matches!(self.redact(text), Cow::Borrowed(_))
    }

    /// The same for bytes that need not be text.
    #[must_use]
    pub fn is_clean_bytes(&self, bytes: &[u8]) -> bool {
        let mut stream = self.stream();
        let mut shown = stream.push(bytes);
        shown.extend(stream.finish(Rest::IsAll));
        shown == bytes
    }

    /// Whether a value of this credential stands in a JSON value.
    #[must_use]
    pub fn holds(&self, credential: &str, value: &Value) -> bool {
        let redacted = self.redact_json(value.clone());
        redacted != *value && redacted.to_string().contains(&marker(credential))
    }

    /// A JSON value with every string, number and key of it redacted.
    #[must_use]
    pub fn redact_json(&self, value: Value) -> Value {
        redacted_json(value, &self.finder())
    }

    /// Tool arguments as they may be reported. Those that held a value come behind its marker: that is no JSON, so whatever
    /// a model writes within its arguments, it is not taken for a value. Where only the decoded strings hold one, all of
    /// them go.
    #[must_use]
    pub fn redact_arguments(&self, arguments: &str) -> String {
        let finder = self.finder();
        let shown = finder.replaced(arguments);
        // Only an escape can hide a value from the search above, and it may stand beside one that was found.
        let parsed: Option<Value> = shown.contains('\\').then(|| serde_json::from_str(&shown).ok()).flatten();
        let hidden = parsed.as_ref().and_then(|value| string_with_value(value, &finder));
        let shown = match hidden {
            Some(text) => serde_json::json!({ "redacted": finder.replaced(text) }).to_string(),
            None => shown.into_owned(),
        };
        match finder.first(hidden.unwrap_or(arguments)) {
            Some(credential) => format!("{}{shown}", marker(credential)),
            None => shown,
        }
    }

    /// The credential whose value stood in these reported arguments.
    #[must_use]
    pub fn marked(&self, arguments: &str) -> Option<String> {
        self.of.iter().map(|credential| &credential.name).find(|name| arguments.starts_with(&marker(name))).cloned()
    }

    /// Finds every value known so far, those of this moment included.
    fn finder(&self) -> Arc<Finder> {
        for credential in self.of.iter() {
            // One that cannot be read now was not read before, or is remembered.
            let _read = self.credentials.read(credential);
        }
        self.credentials.finder()
    }
}

/// A server's bytes as far as they are text: in compressed or other binary ones nothing could be recognised.
#[must_use]
pub fn legible(said: &str) -> Cow<'_, str> {
    let is_strange = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{1b}');
    if said.contains(is_strange) {
        return Cow::Owned(format!("[{} bytes that are no text]", said.len()));
    }
    Cow::Borrowed(said)
}

fn redacted_json(value: Value, finder: &Arc<Finder>) -> Value {
    match value {
        Value::String(text) => Value::String(finder.replaced(&text).into_owned()),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| redacted_json(item, finder)).collect()),
        Value::Object(fields) => {
            let redacted =
                |(name, value): (String, _)| (finder.replaced(&name).into_owned(), redacted_json(value, finder));
            Value::Object(fields.into_iter().map(redacted).collect())
        }
        Value::Number(number) => {
            owned(finder.replaced(&number.to_string())).map_or(Value::Number(number), Value::String)
        }
        Value::Null | Value::Bool(_) => value,
    }
}

/// The first decoded string that holds a credential's value.
fn string_with_value<'a>(value: &'a Value, finder: &Finder) -> Option<&'a str> {
    let holding = |text: &'a str| finder.first(text).map(|_| text);
    match value {
        Value::String(text) => holding(text),
        Value::Array(items) => items.iter().find_map(|item| string_with_value(item, finder)),
        Value::Object(fields) => {
            fields.iter().find_map(|(name, value)| holding(name).or_else(|| string_with_value(value, finder)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn owned(text: Cow<'_, str>) -> Option<String> {
    match text {
        Cow::Owned(redacted) => Some(redacted),
        Cow::Borrowed(_) => None,
    }
}

fn marker(credential: &str) -> String {
    format!("[credential {credential} redacted]")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::credential::tests::{credential, mounted};

    #[test]
    fn every_value_in_a_text_becomes_a_marker() {
        let (_folder, credentials) = mounted(&[("a", b"hunter2"), ("b", b"swordfish\n")]);
        let redactor = Redactor::new(credentials, &[credential("a", &[]), credential("b", &[])]);
        assert_eq!(
            redactor.redact("hunter2, swordfish and hunter2"),
            "[credential a redacted], [credential b redacted] and [credential a redacted]"
        );
        assert!(matches!(redactor.redact("nothing"), Cow::Borrowed("nothing")));
    }

    #[test]
    fn a_value_with_quotes_is_found_within_json_too() {
        let (_folder, credentials) = mounted(&[("a", br#"hun"ter\2"#)]);
        let redactor = Redactor::new(credentials, &[credential("a", &[])]);
        let data = serde_json::json!({"echo": "x hun\"ter\\2 y"});
        assert_eq!(redactor.redact(&data.to_string()), r#"{"echo":"x [credential a redacted] y"}"#);
        let redacted = redactor.redact_json(serde_json::json!({"hun\"ter\\2": ["hun\"ter\\2", 1]}));
        assert_eq!(redacted, serde_json::json!({"[credential a redacted]": ["[credential a redacted]", 1]}));
    }

    #[test]
    fn the_beginning_of_a_value_is_left_out_where_a_text_was_cut_and_only_there() {
        let (_folder, credentials) = mounted(&[("a", b"hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("a", &[])]);
        assert_eq!(redactor.redact_kept("says hunt", 9), "says ");
        assert_eq!(redactor.redact_kept("says hunt", 13), "says hunt");
        assert_eq!(redactor.redact_kept("says hunter2", 13), "says [credential a redacted]");
    }

    #[test]
    fn bytes_that_are_no_text_are_not_shown() {
        assert_eq!(legible("one\r\n\ttwo \u{1b}[31mthree"), "one\r\n\ttwo \u{1b}[31mthree");
        assert_eq!(legible("\u{1f}\u{fffd}\u{8}hunter2"), "[12 bytes that are no text]");
    }

    #[test]
    fn a_value_of_digits_is_found_where_it_stands_as_a_number() {
        let (_folder, credentials) = mounted(&[("a", b"123456789")]);
        let redactor = Redactor::new(credentials, &[credential("a", &[])]);
        let redacted = redactor.redact_json(serde_json::json!([123_456_789, 5]));
        assert_eq!(redacted, serde_json::json!(["[credential a redacted]", 5]));
        let reported = redactor.redact_arguments(r#"{"pin":123456789}"#);
        assert_eq!(redactor.marked(&reported).as_deref(), Some("a"));
    }

    /// What it is parsed into has fewer digits than it, and still nearly all of them.
    #[test]
    fn a_value_of_more_digits_than_a_number_keeps_is_found_however_it_is_rounded() {
        for value in ["1234567890123456789", "98765432109876543210", "123456789012345678901234567890"] {
            let (_folder, credentials) = mounted(&[("a", value.as_bytes())]);
            let redactor = Redactor::new(credentials, &[credential("a", &[])]);
            let parsed: Value = serde_json::from_str(&format!(r#"{{"pin":{value}}}"#)).unwrap();
            let rounded: f64 = value.parse().unwrap();
            // As serde writes it, as JavaScript below and from 10^21 on, and as Python does.
            for text in [parsed.to_string(), rounded.to_string(), format!("{rounded:e}").replace('e', "e+")] {
                let shown = redactor.redact(&text).into_owned();
                assert!(shown.contains("[credential a redacted]") && !shown.contains(&value[1..9]), "{text}: {shown}");
            }
            assert_eq!(redactor.redact_json(parsed), serde_json::json!({"pin": "[credential a redacted]"}));
        }
    }

    #[test]
    fn a_value_of_zeros_does_not_redact_every_number() {
        for value in ["0000000000000000", "0000000000000042", "1000000000000000"] {
            let (_folder, credentials) = mounted(&[("a", value.as_bytes())]);
            let redactor = Redactor::new(credentials, &[credential("a", &[])]);
            assert_eq!(redactor.redact("0 and 42 and 1e15"), "0 and 42 and 1e15", "{value}");
            assert_eq!(redactor.redact(value), "[credential a redacted]");
        }
    }

    #[test]
    fn a_value_that_was_rotated_away_is_still_recognised() {
        let (folder, credentials) = mounted(&[("a", b"old-value")]);
        let redactor = Redactor::new(credentials, &[credential("a", &[])]);
        assert_eq!(redactor.redact("x"), "x");
        std::fs::write(folder.path().join("a/value"), "new-value").unwrap();
        assert_eq!(redactor.redact("old-value new-value"), "[credential a redacted] [credential a redacted]");
    }

    #[test]
    fn arguments_that_hold_a_value_in_any_spelling_are_marked() {
        let (_folder, credentials) = mounted(&[("a", b"hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("a", &[])]);
        let spellings = [
            r#"{"q":"hunter2"}"#,
            r#"{"q":["\u0068unter2"]}"#,
            r#"{"\u0068unter2":1}"#,
            r#"{"q":"x?k=%68unter2"}"#,
            r#"{"q":"Basic dXNlcjpodW50ZXIy"}"#,
            r#"{"q":"\u0064XNlcjpodW50ZXIy"}"#,
        ];
        for arguments in spellings {
            let reported = redactor.redact_arguments(arguments);
            assert!(!reported.contains("unter2") && !reported.contains("W50ZXIy"), "{reported}");
            assert_eq!(redactor.marked(&reported).as_deref(), Some("a"), "{arguments}: {reported}");
        }
        let both = redactor.redact_arguments(r#"{"p":"hunter2","q":"\u0068unter2"}"#);
        assert!(!both.contains("unter2"), "{both}");
        for harmless in [r#"{"q":"hunter"}"#, r#"{"q":"what does [credential a redacted] mean?\n"}"#] {
            assert_eq!(redactor.redact_arguments(harmless), harmless);
            assert_eq!(redactor.marked(harmless), None);
        }
    }
}
