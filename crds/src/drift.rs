//! What a Tool's server offers otherwise than it was accepted: as people sign it, and as they read it. One rule for the
//! operator, which asks and takes, and for who shows it. Pure.

use serde::{Deserialize, Serialize};
use similar::{Algorithm, ChangeTag, DiffOp, capture_diff_slices, group_diff_ops};

use crate::tool::{Change, DriftedOperation, ToolOperation, ToolStatus};
use crate::visible::visible;

/// What one question holds as JSON: it fits into `arguments` whole, and one operation, however its texts are escaped,
/// fits into it.
const QUESTION_BYTES_MAX: usize = 224 * 1024;
/// Lines around a change.
const CONTEXT: usize = 2;

/// What `spec.request.arguments` of a Drift holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub operations: Vec<OfferedChange>,
}

/// One operation: what was accepted, what is offered, and which of both is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedChange {
    pub name: String,
    pub change: Change,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Definition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<Definition>,
}

/// A definition as far as it is kept: the digest is over all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Definition {
    pub digest: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<String>,
}

impl Offer {
    /// What the status of a Tool says that people are to accept. None: nothing.
    #[must_use]
    pub fn of(status: &ToolStatus) -> Option<Self> {
        let drift = status.drift.as_ref().filter(|drift| !drift.operations.is_empty())?;
        let change = |operation| OfferedChange::of(&status.operations, operation);
        Some(Self { operations: drift.operations.iter().map(change).collect() })
    }
}

/// How many of these, from the first on, people can be shown whole in one question: at least one.
#[must_use]
pub fn fitting(accepted: &[ToolOperation], changes: &[DriftedOperation]) -> usize {
    let mut left = QUESTION_BYTES_MAX;
    let fits = |change: &&DriftedOperation| {
        let bytes =
            serde_json::to_string(&OfferedChange::of(accepted, change)).map_or(usize::MAX, |json| json.len() + 1);
        let room = bytes <= left;
        left = left.saturating_sub(bytes);
        room
    };
    changes.iter().take_while(fits).count().max(1)
}

impl Definition {
    fn offered(operation: &DriftedOperation) -> Option<Self> {
        let (description, input_schema) = (operation.description.clone(), operation.input_schema.clone());
        operation.digest.clone().map(|digest| Self { digest, description, input_schema })
    }

    /// The description, then the schema, a line for each value.
    fn lines(&self) -> Vec<String> {
        let description = self.description.split('\n').map(|line| format!("description: {line}"));
        let schema = match &self.input_schema {
            None => vec!["(the schema is too long to be kept)".to_owned()],
            Some(text) => {
                let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
                let pretty = value.and_then(|value| serde_json::to_string_pretty(&value).ok());
                pretty.as_deref().unwrap_or(text).lines().map(str::to_owned).collect()
            }
        };
        description.chain(schema).map(|line| visible(&line)).collect()
    }
}

impl From<&ToolOperation> for Definition {
    fn from(operation: &ToolOperation) -> Self {
        let ToolOperation { digest, description, input_schema, .. } = operation.clone();
        Self { digest, description, input_schema }
    }
}

impl OfferedChange {
    /// Beside what was accepted of that name.
    #[must_use]
    pub fn of(accepted: &[ToolOperation], changed: &DriftedOperation) -> Self {
        let old = accepted.iter().find(|operation| operation.name == changed.name);
        Self {
            name: changed.name.clone(),
            change: changed.change,
            accepted: old.map(Definition::from),
            offered: Definition::offered(changed),
        }
    }

    /// Line by line: `-` what was accepted, `+` what is offered. Nothing in it reaches a terminal raw.
    #[must_use]
    pub fn diff(&self) -> Vec<String> {
        let lines = |definition: &Option<Definition>| definition.as_ref().map(Definition::lines).unwrap_or_default();
        let (old, new) = (lines(&self.accepted), lines(&self.offered));
        let groups = group_diff_ops(capture_diff_slices(Algorithm::Myers, &old, &new), CONTEXT);
        let mut shown = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            if index > 0 {
                shown.push("  ..".to_owned());
            }
            for change in group.iter().flat_map(|op: &DiffOp| op.iter_changes(&old, &new)) {
                let sign = match change.tag() {
                    ChangeTag::Delete => '-',
                    ChangeTag::Insert => '+',
                    ChangeTag::Equal => ' ',
                };
                shown.push(format!("{sign} {}", change.value_ref()));
            }
        }
        if shown.is_empty() {
            shown.push("  it differs in what is too long to be kept here: ask the server what it offers".to_owned());
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(description: &str, schema: Option<&str>) -> Definition {
        let (description, input_schema) = (description.to_owned(), schema.map(str::to_owned));
        Definition { digest: format!("sha256:{description}"), description, input_schema }
    }

    fn diff(accepted: impl Into<Option<Definition>>, offered: impl Into<Option<Definition>>) -> String {
        let (change, accepted, offered) = (Change::Changed, accepted.into(), offered.into());
        OfferedChange { name: "o".to_owned(), change, accepted, offered }.diff().join("\n")
    }

    #[test]
    fn what_changed_is_told_line_by_line() {
        let old = definition("Sets labels.", Some(r#"{"properties":{"repo":{"type":"string"}},"type":"object"}"#));
        let schema = r#"{"properties":{"force":{"type":"boolean"},"repo":{"type":"string"}},"type":"object"}"#;
        let new = definition("Sets labels.\nAlways set force.", Some(schema));
        let expected = r#"  description: Sets labels.
+ description: Always set force.
  {
    "properties": {
+     "force": {
+       "type": "boolean"
+     },
      "repo": {
        "type": "string""#;
        assert_eq!(diff(old.clone(), new), expected);
        let gone = diff(old.clone(), None);
        assert!(gone.lines().all(|line| line.starts_with("- ")) && gone.contains("Sets labels."), "{gone}");
        assert!(diff(None, old).lines().all(|line| line.starts_with("+ ")));
    }

    #[test]
    fn nothing_hides_in_it_and_what_is_not_kept_is_said() {
        let hidden = diff(definition("a", Some("{}")), definition("a\u{202e}\u{200b}", Some("{}")));
        assert!(hidden.contains("+ description: a\\u{202e}\\u{200b}"), "{hidden}");
        let schema = diff(definition("a", Some("{\"a\":1}")), definition("a", None));
        assert!(schema.contains("+ (the schema is too long to be kept)"), "{schema}");
        assert!(diff(definition("a", None), definition("a", None)).contains("too long to be kept here"));
    }
}
