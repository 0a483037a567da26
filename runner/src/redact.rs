//! Keeps credential values out of everything that is reported: each true value that occurs in a text is
//! replaced by a marker, and arguments that hold one are recognised by that marker.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

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
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut redacted = Cow::Borrowed(text);
        for Seen { credential, values } in seen.iter_mut() {
            remember(values, self.credentials.read(credential).ok());
            for value in values.iter().filter_map(Secret::text) {
                if redacted.contains(value) {
                    redacted = Cow::Owned(redacted.replace(value, &marker(&credential.name)));
                }
            }
        }
        redacted
    }

    /// Tool arguments as they may be reported. Where only the decoded strings hold a value, all of them go.
    #[must_use]
    pub fn redact_arguments(&self, arguments: String) -> String {
        if let Cow::Owned(redacted) = self.redact(&arguments) {
            return redacted;
        }
        let parsed: Option<Value> = serde_json::from_str(&arguments).ok();
        match parsed.and_then(|value| self.redact_any_string(&value)) {
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

    fn redact_any_string(&self, value: &Value) -> Option<String> {
        match value {
            Value::String(text) => match self.redact(text) {
                Cow::Owned(redacted) => Some(redacted),
                Cow::Borrowed(_) => None,
            },
            Value::Array(items) => items.iter().find_map(|item| self.redact_any_string(item)),
            Value::Object(fields) => fields.iter().find_map(|(name, value)| {
                self.redact_any_string(&Value::String(name.clone())).or_else(|| self.redact_any_string(value))
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => None,
        }
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
