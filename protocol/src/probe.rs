//! What a probe pod is asked and what it answers. Travels as JSON inside the Probe stream.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::event::Failure;
use crate::plan::{CaBundle, HttpOperations, PlanCredential, Timeouts};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeTask {
    /// Look at the mounted file of this credential.
    Credential { name: String },
    /// List the operations of this server, or those that are described for this HTTP API.
    Tool {
        name: String,
        /// Of the Tool, whose Services may be asked.
        namespace: String,
        url: String,
        /// As in a plan.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<CaBundle>,
        credential: Option<Box<PlanCredential>>,
        timeouts: Timeouts,
        /// As in a plan.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        private_hosts: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        http: Option<Box<HttpOperations>>,
    },
    /// Find out whether the NetworkPolicy around this pod is enforced: connect to a `HOST:PORT` that it forbids.
    Network { address: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeReport {
    Credential(Presence),
    Tool(Result<Vec<OperationDefinition>, Failure>),
    Network(Passage),
}

/// What became of connections that a NetworkPolicy forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passage {
    /// They were made, long after rules have followed a pod.
    Open,
    Blocked,
    /// Somebody said no to them: a rule, or a port where nobody listens. Nobody can tell which.
    Refused,
    /// The name did not resolve: nothing was tried.
    NotFound,
}

/// What can be said of a credential without saying what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    Present,
    /// The Secret is absent or lacks the key: from inside a pod both look the same.
    Missing,
    Empty,
    /// Usually `echo` without `-n`: no provider takes such a key.
    TrailingNewline,
    TooLarge,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationDefinition {
    pub name: String,
    pub digest: Digest,
    /// Cut for status; the digest covers all of it.
    pub description: String,
    /// Canonical JSON; absent where status would not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<String>,
    /// Why it cannot be offered to anyone. Absent: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// The longest description and the longest schema that are kept, and all texts of one server together.
pub const TEXT_BYTES_MAX: usize = 4096;
pub const TEXTS_BYTES_MAX: usize = 256 * 1024;
/// Room for the words that say how much is not kept.
const MARK_BYTES: usize = 48;
const MARK_START: &str = "(.. ";
const MARK_END: &str = " more bytes are not kept)";

/// What is kept of a listing: sorted, so that a server's order changes nothing, each name once as usable and once as not,
/// and texts as far as there is room. A schema is kept whole or not at all.
#[must_use]
pub fn bounded(mut listed: Vec<OperationDefinition>) -> Vec<OperationDefinition> {
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    listed.dedup_by(|a, b| a.name == b.name && a.unusable.is_some() == b.unusable.is_some());
    let mut left = TEXTS_BYTES_MAX;
    for operation in &mut listed {
        cut(&mut operation.description, TEXT_BYTES_MAX);
        operation.input_schema = operation.input_schema.take().filter(|schema| schema.len() <= TEXT_BYTES_MAX);
        let bytes = |operation: &OperationDefinition| {
            OperationDefinition::text_bytes(&operation.description, operation.input_schema.as_deref())
        };
        if bytes(operation) > left {
            operation.input_schema = None;
        }
        if bytes(operation) > left {
            cut(&mut operation.description, 0);
        }
        left = left.saturating_sub(bytes(operation));
    }
    listed
}

impl OperationDefinition {
    /// How much of [`TEXTS_BYTES_MAX`] these texts of an operation take.
    #[must_use]
    pub fn text_bytes(description: &str, input_schema: Option<&str>) -> usize {
        escaped(description) + input_schema.map_or(0, escaped)
    }
}

/// How many bytes of a server's own text are kept in one that [`bounded`] may have cut.
#[must_use]
pub fn kept_bytes(text: &str) -> usize {
    let mark = text.rfind(MARK_START).filter(|_| text.ends_with(MARK_END));
    mark.unwrap_or(text.len())
}

/// How long a text is in JSON, which is what an object's bounds are about.
fn escaped(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX, |json| json.len())
}

/// What is not kept is said: whoever reads the rest is not to take it for all.
fn cut(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = text.floor_char_boundary(bytes.saturating_sub(MARK_BYTES));
        let mark = format!("{MARK_START}{}{MARK_END}", text.len() - end);
        text.truncate(end);
        text.push_str(&mark);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn operation(name: &str, description: &str, schema: &str) -> OperationDefinition {
        OperationDefinition {
            name: name.to_owned(),
            digest: Digest::of(name.as_bytes()),
            description: description.to_owned(),
            input_schema: Some(schema.to_owned()),
            unusable: None,
        }
    }

    #[test]
    fn a_listing_is_sorted_each_name_once_and_its_texts_are_bounded() {
        let long = "é".repeat(4000);
        let listed =
            vec![operation("b", &long, "{}"), operation("a", "", &"x".repeat(4097)), operation("b", "2", "{}")];
        let kept = bounded(listed);
        assert_eq!(kept.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((kept[0].input_schema.as_deref(), kept[1].input_schema.as_deref()), (None, Some("{}")));
        assert!(
            kept[1].description.len() <= TEXT_BYTES_MAX && kept[1].description.ends_with("more bytes are not kept)")
        );
    }

    #[test]
    fn all_texts_together_are_bounded_and_every_operation_stays() {
        let text = "x".repeat(TEXT_BYTES_MAX);
        let many: Vec<_> = (0..100).map(|number| operation(&format!("o{number:03}"), &text, &text)).collect();
        let kept = bounded(many);
        assert_eq!(kept.len(), 100);
        let whole = kept.iter().filter(|one| one.input_schema.is_some()).count();
        assert_eq!(whole, TEXTS_BYTES_MAX / (TEXT_BYTES_MAX + 2) / 2);
        assert_eq!(kept[99].description, "(.. 4096 more bytes are not kept)");
        assert_eq!((kept_bytes(&kept[99].description), kept_bytes("(.. short")), (0, 9));
        assert!(kept[99].input_schema.is_none());
        let hostile =
            bounded((0..100).map(|number| operation(&format!("o{number:03}"), &"\u{1}".repeat(4096), "{}")).collect());
        let json: usize = hostile.iter().map(|one| escaped(&one.description)).sum();
        assert!(json < TEXTS_BYTES_MAX + 100 * MARK_BYTES, "{json}");
    }
}
