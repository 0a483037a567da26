//! Keeps credential values out of everything that is reported: each true value that occurs in a text is
//! replaced by a marker, and arguments that hold one are recognised by that marker.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use belay_protocol::plan::PlanCredential;
use serde_json::Value;

use crate::credential::{Credentials, Secret};

/// Values of one credential that are remembered after their file changed: a server may echo the older one.
const VALUES_KEPT: usize = 4;

/// Cheap to clone; all clones remember the same values.
#[derive(Clone, Debug)]
pub struct Redactor {
    credentials: Credentials,
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Debug)]
struct Seen {
    credential: PlanCredential,
    values: Vec<Secret>,
}

impl Redactor {
    #[must_use]
    pub fn new(credentials: Credentials, of: &[PlanCredential]) -> Self {
        let seen = of.iter().map(|credential| Seen { credential: credential.clone(), values: Vec::new() });
        Self { credentials, seen: Arc::new(Mutex::new(seen.collect())) }
    }

    /// `text` with every credential value replaced by `[credential NAME redacted]`.
    #[must_use]
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        replaced(text, &self.refreshed())
    }

    /// Whether no credential value stands in `text`: what is a name cannot be redacted, only left out.
    #[must_use]
    pub fn is_clean(&self, text: &str) -> bool {
        matches!(self.redact(text), Cow::Borrowed(_))
    }

    /// A JSON value with every string and every key of it redacted.
    #[must_use]
    pub fn redact_json(&self, value: Value) -> Value {
        redacted_json(value, &self.refreshed())
    }

    /// Tool arguments as they may be reported. Where only the decoded strings hold a value, all of them go.
    #[must_use]
    pub fn redact_arguments(&self, arguments: &str) -> String {
        let seen = self.refreshed();
        let shown = replaced(arguments, &seen).into_owned();
        // Only an escape can hide a value from the search above, and it may stand beside one that was found.
        if seen.is_empty() || !shown.contains('\\') {
            return shown;
        }
        let parsed: Option<Value> = serde_json::from_str(&shown).ok();
        match parsed.and_then(|value| first_redacted(&value, &seen)) {
            Some(redacted) => serde_json::json!({ "redacted": redacted }).to_string(),
            None => shown,
        }
    }

    /// The credential whose value stood in these reported arguments.
    #[must_use]
    pub fn marked(&self, arguments: &str) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|seen| &seen.credential.name).find(|name| arguments.contains(&marker(name))).cloned()
    }

    /// Every value known so far, those of this moment included.
    fn refreshed(&self) -> MutexGuard<'_, Vec<Seen>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for Seen { credential, values } in seen.iter_mut() {
            remember(values, self.credentials.read(credential).ok());
        }
        seen
    }
}

/// All values are looked for in the text as it came: replacing one after the other, a short one would break
/// up a longer one that it occurs in, and the rest of that would be shown.
fn replaced<'a>(text: &'a str, seen: &[Seen]) -> Cow<'a, str> {
    let mut found = Vec::new();
    for Seen { credential, values } in seen {
        for value in values.iter().filter_map(Secret::text) {
            for spelling in spellings(value) {
                found.extend(occurrences(text, &spelling).map(|span| (span, credential.name.as_str())));
            }
        }
    }
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    // Of values that start together the longest gives its name.
    found.sort_by_key(|(span, _)| (span.start, Reverse(span.end)));
    let mut redacted = String::with_capacity(text.len());
    let mut shown = 0;
    for (span, name) in found {
        if span.start >= shown {
            redacted.push_str(text.get(shown..span.start).unwrap_or_default());
            redacted.push_str(&marker(name));
        }
        shown = shown.max(span.end);
    }
    redacted.push_str(text.get(shown..).unwrap_or_default());
    Cow::Owned(redacted)
}

/// A value as it is, and as it stands within a JSON string.
fn spellings(value: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let escaped = value.contains(|c: char| c.is_control() || c == '"' || c == '\\').then(|| {
        let quoted = Value::from(value).to_string();
        Cow::Owned(quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned())
    });
    std::iter::once(Cow::Borrowed(value)).chain(escaped)
}

/// Every place of `value`, those that overlap included.
fn occurrences(text: &str, value: &str) -> impl Iterator<Item = Range<usize>> {
    let step = value.chars().next().map_or(1, char::len_utf8);
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text.get(from..)?.find(value)?;
        from = start + step;
        Some(start..start + value.len())
    })
}

fn redacted_json(value: Value, seen: &[Seen]) -> Value {
    match value {
        Value::String(text) => Value::String(replaced(&text, seen).into_owned()),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| redacted_json(item, seen)).collect()),
        Value::Object(fields) => {
            let redacted =
                |(name, value): (String, _)| (replaced(&name, seen).into_owned(), redacted_json(value, seen));
            Value::Object(fields.into_iter().map(redacted).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// The first decoded string that holds a value, with that value replaced.
fn first_redacted(value: &Value, seen: &[Seen]) -> Option<String> {
    match value {
        Value::String(text) => owned(replaced(text, seen)),
        Value::Array(items) => items.iter().find_map(|item| first_redacted(item, seen)),
        Value::Object(fields) => {
            fields.iter().find_map(|(name, value)| owned(replaced(name, seen)).or_else(|| first_redacted(value, seen)))
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

fn remember(values: &mut Vec<Secret>, now: Option<Secret>) {
    let Some(now) = now else { return };
    if values.iter().all(|value| value.text() != now.text()) {
        if values.len() == VALUES_KEPT {
            values.remove(0);
        }
        values.push(now);
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
    fn a_value_within_another_leaves_nothing_of_it() {
        let values: [(&str, &[u8]); 3] = [("a", b"ter"), ("b", b"hunter2"), ("c", b"r2-sword")];
        let (_folder, credentials) = mounted(&values);
        let all = [credential("a", &[]), credential("b", &[]), credential("c", &[])];
        let redactor = Redactor::new(credentials, &all);
        assert_eq!(redactor.redact("my hunter2."), "my [credential b redacted].");
        assert_eq!(redactor.redact("my hunter2-sword."), "my [credential b redacted].");
        assert_eq!(redactor.redact("terter"), "[credential a redacted][credential a redacted]");
    }

    #[test]
    fn a_value_that_overlaps_itself_goes_whole() {
        let (_folder, credentials) = mounted(&[("a", b"abab")]);
        let redactor = Redactor::new(credentials, &[credential("a", &[])]);
        assert_eq!(redactor.redact("ababab!"), "[credential a redacted]!");
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
        for arguments in [r#"{"q":"hunter2"}"#, r#"{"q":["\u0068unter2"]}"#, r#"{"\u0068unter2":1}"#] {
            let reported = redactor.redact_arguments(arguments);
            assert!(!reported.contains("hunter2") && !reported.contains("unter2"), "{reported}");
            assert_eq!(redactor.marked(&reported).as_deref(), Some("a"));
        }
        let both = redactor.redact_arguments(r#"{"p":"hunter2","q":"\u0068unter2"}"#);
        assert!(!both.contains("unter2"), "{both}");
        let harmless = r#"{"q":"hunter"}"#;
        assert_eq!(redactor.redact_arguments(harmless), harmless);
        assert_eq!(redactor.marked(harmless), None);
    }
}
