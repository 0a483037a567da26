//! Keeps credential values out of everything that is reported: each true value that occurs in a text is
//! replaced by a marker, and arguments that hold one are recognised by that marker.

use std::borrow::Cow;
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

    /// Tool arguments as they may be reported. Where only the decoded strings hold a value, all of them go.
    #[must_use]
    pub fn redact_arguments(&self, arguments: String) -> String {
        let seen = self.refreshed();
        if let Cow::Owned(redacted) = replaced(&arguments, &seen) {
            return redacted;
        }
        // Only an escape can hide a value from the search above.
        if seen.is_empty() || !arguments.contains('\\') {
            return arguments;
        }
        let parsed: Option<Value> = serde_json::from_str(&arguments).ok();
        match parsed.and_then(|value| first_redacted(&value, &seen)) {
            Some(redacted) => serde_json::json!({ "redacted": redacted }).to_string(),
            None => arguments,
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

fn replaced<'a>(text: &'a str, seen: &[Seen]) -> Cow<'a, str> {
    let mut redacted = Cow::Borrowed(text);
    for Seen { credential, values } in seen {
        for value in values.iter().filter_map(Secret::text) {
            if redacted.contains(value) {
                redacted = Cow::Owned(redacted.replace(value, &marker(&credential.name)));
            }
        }
    }
    redacted
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
            let reported = redactor.redact_arguments(arguments.to_owned());
            assert!(!reported.contains("hunter2") && !reported.contains("unter2"), "{reported}");
            assert_eq!(redactor.marked(&reported).as_deref(), Some("a"));
        }
        let harmless = r#"{"q":"hunter"}"#;
        assert_eq!(redactor.redact_arguments(harmless.to_owned()), harmless);
        assert_eq!(redactor.marked(harmless), None);
    }
}
