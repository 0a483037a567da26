//! Turns what an MCP server answered into the text that journal and model see: redacted, then cut. Pure.

use belay_protocol::RESULT_BYTES_MAX;
use belay_protocol::event::ToolResult;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use super::Outcome;
use crate::redact::Redactor;

/// Room for the sentence that says a result was cut.
const NOTE_BYTES: usize = 128;
/// Control characters grow sixfold in JSON: the result has to fit a batch in that form too.
const ESCAPED_BYTES_MAX: usize = 3 * RESULT_BYTES_MAX;

/// The result of a call that a server answered in full.
pub fn complete(result: CallToolResult, redactor: &Redactor) -> ToolResult {
    let is_error = result.is_error.unwrap_or(false);
    let mut texts: Vec<String> = result.content.into_iter().map(text_of).collect();
    if texts.is_empty() {
        texts.extend(result.structured_content.map(|value| value.to_string()));
    }
    bounded(is_error, &texts.join("\n"), redactor)
}

/// An answer that is an error by the protocol rather than by the tool.
pub fn observed_error(message: &str, redactor: &Redactor) -> Outcome {
    Outcome::Observed(bounded(true, message, redactor))
}

pub(super) fn bounded(is_error: bool, text: &str, redactor: &Redactor) -> ToolResult {
    let text = redactor.redact(text);
    let end = fitting(&text, RESULT_BYTES_MAX, ESCAPED_BYTES_MAX);
    if end == text.len() {
        return ToolResult { is_error, content: text.into_owned(), truncated_from_bytes: None };
    }
    let end = fitting(&text, RESULT_BYTES_MAX - NOTE_BYTES, ESCAPED_BYTES_MAX);
    let shown = text.get(..end).unwrap_or_default();
    let content = format!("{shown}\n[cut by belay: the first {end} of {} bytes are shown]", text.len());
    ToolResult { is_error, content, truncated_from_bytes: Some(text.len() as u64) }
}

/// How many bytes of `text` fit both bounds, whole characters only.
fn fitting(text: &str, plain_max: usize, escaped_max: usize) -> usize {
    let mut escaped = 0;
    for (at, c) in text.char_indices() {
        escaped += match c {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            c if c < ' ' => 6,
            c => c.len_utf8(),
        };
        if at + c.len_utf8() > plain_max || escaped > escaped_max {
            return at;
        }
    }
    text.len()
}

/// What is not text is named, not shown: the model cannot read it from here.
fn text_of(block: ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text,
        ContentBlock::Image(image) => binary("image", &image.mime_type, image.data.len()),
        ContentBlock::Audio(audio) => binary("audio", &audio.mime_type, audio.data.len()),
        ContentBlock::ResourceLink(link) => format!("[link to {}: {}]", link.name, link.uri),
        ContentBlock::Resource(resource) => match resource.resource {
            ResourceContents::TextResourceContents { text, .. } => text,
            ResourceContents::BlobResourceContents { mime_type, blob, .. } => {
                binary("resource", mime_type.as_deref().unwrap_or("of unknown type"), blob.len())
            }
            _ => "[a resource of a kind that is not known here]".to_owned(),
        },
        // rmcp's enum may grow with the protocol.
        _ => "[content of a kind that is not known here]".to_owned(),
    }
}

fn binary(kind: &str, mime_type: &str, base64_bytes: usize) -> String {
    format!("[{kind} {mime_type}, {} bytes, not shown]", base64_bytes / 4 * 3)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::credential::tests::{credential, mounted};
    use rstest::rstest;
    use serde_json::json;

    fn no_secrets() -> Redactor {
        Redactor::new(mounted(&[]).1, &[])
    }

    fn answer(value: serde_json::Value) -> CallToolResult {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn texts_are_joined_and_other_content_is_named() {
        let result = answer(json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "image", "mimeType": "image/png", "data": "AAAAAAAA"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "two"}},
        ], "isError": true}));
        let expected = ToolResult {
            is_error: true,
            content: "one\n[image image/png, 6 bytes, not shown]\ntwo".to_owned(),
            truncated_from_bytes: None,
        };
        assert_eq!(complete(result, &no_secrets()), expected);
    }

    #[test]
    fn a_structured_result_without_text_is_shown_as_json() {
        let result = answer(json!({"content": [], "structuredContent": {"sum": 3}}));
        assert_eq!(complete(result, &no_secrets()).content, r#"{"sum":3}"#);
    }

    #[rstest]
    #[case::ascii("x")]
    #[case::wide("😀")]
    #[case::control("\u{1}")]
    fn an_oversized_result_is_cut_between_characters_and_says_so(#[case] piece: &str) {
        let text = piece.repeat(RESULT_BYTES_MAX + 1);
        let result = bounded(false, &text, &no_secrets());
        assert!(result.content.len() <= RESULT_BYTES_MAX);
        assert!(serde_json::to_vec(&result).unwrap().len() < belay_protocol::BATCH_BYTES_MAX);
        assert_eq!(result.truncated_from_bytes, Some(text.len() as u64));
        assert!(result.content.ends_with(&format!("of {} bytes are shown]", text.len())));
    }

    #[test]
    fn a_result_of_exactly_the_bound_is_whole() {
        let text = "x".repeat(RESULT_BYTES_MAX);
        assert_eq!(bounded(false, &text, &no_secrets()).truncated_from_bytes, None);
    }

    #[test]
    fn a_value_across_the_cut_is_redacted_first() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("key", &[])]);
        let text = format!("{}hunter2hunter2{}", "x".repeat(RESULT_BYTES_MAX - NOTE_BYTES - 7), "y".repeat(500));
        assert!(!bounded(false, &text, &redactor).content.contains("hunter2"));
    }
}
