//! Turns what a server answered into the text that journal and model see: redacted, then cut. Pure.

use belay_protocol::RESULT_BYTES_MAX;
use belay_protocol::event::ToolResult;
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value;

use super::Outcome;
use super::attachment::{Attachments, Binary};

/// Room for the sentence that says a result was cut, and for those that say what of it was not kept.
const NOTE_BYTES: usize = 8 * 1024;
/// Control characters grow sixfold in JSON: the result has to fit a batch in that form too.
const ESCAPED_BYTES_MAX: usize = 3 * RESULT_BYTES_MAX;

/// The result of a call that a server answered in full.
pub fn complete(result: CallToolResult, attachments: &mut Attachments<'_>) -> ToolResult {
    let is_error = result.is_error.unwrap_or(false);
    let mut texts: Vec<String> = result.content.into_iter().map(|block| text_of(block, attachments)).collect();
    if let Some(structured) = result.structured_content {
        // Servers should say it again as text, and need not.
        let says_so = |text: &String| serde_json::from_str::<Value>(text).is_ok_and(|said| said == structured);
        if !texts.iter().any(says_so) {
            texts.push(structured.to_string());
        }
    }
    bounded(is_error, &texts.join("\n"), RESULT_BYTES_MAX, attachments)
}

/// A result with words of ours before it.
pub fn noted(result: ToolResult, note: &str) -> ToolResult {
    let note = format!("[belay: {note}]");
    let end = result.content.floor_char_boundary(RESULT_BYTES_MAX.saturating_sub(note.len() + 1));
    let content = format!("{note}\n{}", result.content.get(..end).unwrap_or_default());
    ToolResult { content, ..result }
}

/// An answer that is an error by the protocol rather than by the tool.
pub fn observed_error(message: &str, attachments: &mut Attachments<'_>) -> Outcome {
    Outcome::Observed(bounded(true, message, RESULT_BYTES_MAX, attachments))
}

/// The text with at most `most` bytes of it shown. What is cut is an artifact, whole.
pub(super) fn bounded(is_error: bool, text: &str, most: usize, attachments: &mut Attachments<'_>) -> ToolResult {
    // Before it is cut: a value across the cut would not be recognised.
    let text = attachments.redacted(text);
    if fitting(&text, most, ESCAPED_BYTES_MAX) == text.len() {
        return ToolResult { is_error, content: text.into_owned(), truncated_from_bytes: None, artifacts: Vec::new() };
    }
    let end = fitting(&text, most.min(RESULT_BYTES_MAX - NOTE_BYTES), ESCAPED_BYTES_MAX);
    let (shown, whole) = (text.get(..end).unwrap_or_default(), attachments.take_text(&text));
    let content = format!("{shown}\n[cut by belay: the first {end} of {} bytes are shown; {whole}]", text.len());
    ToolResult { is_error, content, truncated_from_bytes: Some(text.len() as u64), artifacts: Vec::new() }
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
fn text_of(block: ContentBlock, attachments: &mut Attachments<'_>) -> String {
    match block {
        ContentBlock::Text(text) => text.text,
        ContentBlock::Image(image) => attachments.take(&binary("image", &image.mime_type, &image.data)),
        ContentBlock::Audio(audio) => attachments.take(&binary("audio", &audio.mime_type, &audio.data)),
        ContentBlock::ResourceLink(link) => format!("[link to {}: {}]", link.name, link.uri),
        ContentBlock::Resource(resource) => match resource.resource {
            ResourceContents::TextResourceContents { text, .. } => text,
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let media_type = mime_type.as_deref().unwrap_or("of unknown type");
                attachments.take(&Binary { name: &uri, ..binary("resource", media_type, &blob) })
            }
            _ => "[a resource of a kind that is not known here]".to_owned(),
        },
        // rmcp's enum may grow with the protocol.
        _ => "[content of a kind that is not known here]".to_owned(),
    }
}

fn binary<'a>(kind: &'static str, media_type: &'a str, base64: &'a str) -> Binary<'a> {
    Binary { kind, media_type, name: "", base64 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use base64::Engine as _;
    use belay_protocol::event::Artifact;
    use belay_protocol::{ARTIFACT_BYTES_MAX, ARTIFACTS_PER_RESULT_MAX, Digest};

    use crate::credential::tests::{credential, mounted};
    use crate::redact::Redactor;
    use crate::tools::attachment::Attachment;
    use rstest::rstest;
    use serde_json::json;

    fn no_secrets() -> Redactor {
        Redactor::new(mounted(&[]).1, &[])
    }

    fn read(value: Value, redactor: &Redactor) -> (ToolResult, Vec<Attachment>) {
        let mut attachments = Attachments::new(redactor);
        let result = complete(serde_json::from_value(value).unwrap(), &mut attachments);
        (result, attachments.into_found())
    }

    fn cut(text: &str, redactor: &Redactor) -> (ToolResult, Vec<Attachment>) {
        let mut attachments = Attachments::new(redactor);
        let result = bounded(false, text, RESULT_BYTES_MAX, &mut attachments);
        (result, attachments.into_found())
    }

    #[test]
    fn texts_are_joined_and_other_content_is_named() {
        let result = json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "image", "mimeType": "image/png", "data": "AAAAAAAA"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "two"}},
        ], "isError": true});
        let digest = Digest::of(&[0; 6]);
        let artifact = Artifact { digest, bytes: 6, media_type: "image/png".into(), name: String::new() };
        let image = Attachment { artifact, bytes: vec![0; 6] };
        let expected = ToolResult {
            is_error: true,
            content: format!("one\n[image image/png, 6 bytes, not shown: artifact {digest}]\ntwo"),
            truncated_from_bytes: None,
            artifacts: Vec::new(),
        };
        assert_eq!(read(result, &no_secrets()), (expected, vec![image]));
    }

    #[rstest]
    #[case::alone(json!([]), r#"{"rows":[1,2]}"#)]
    #[case::beside_other_words(json!([{"type": "text", "text": "2 rows"}]), "2 rows\n{\"rows\":[1,2]}")]
    #[case::said_as_text(json!([{"type": "text", "text": "{ \"rows\": [1, 2] }"}]), "{ \"rows\": [1, 2] }")]
    fn a_structured_result_is_shown_as_json_unless_its_text_says_the_same(#[case] content: Value, #[case] shown: &str) {
        let result = json!({"content": content, "structuredContent": {"rows": [1, 2]}});
        assert_eq!(read(result, &no_secrets()).0.content, shown);
    }

    #[rstest]
    #[case::ascii("x")]
    #[case::wide("😀")]
    #[case::control("\u{1}")]
    fn an_oversized_result_is_cut_between_characters_and_says_so(#[case] piece: &str) {
        let text = piece.repeat(RESULT_BYTES_MAX + 1);
        let (result, whole) = cut(&text, &no_secrets());
        assert!(result.content.len() <= RESULT_BYTES_MAX);
        assert!(serde_json::to_vec(&result).unwrap().len() < belay_protocol::BATCH_BYTES_MAX);
        assert_eq!(result.truncated_from_bytes, Some(text.len() as u64));
        let (digest, bytes) = (Digest::of(text.as_bytes()), text.len());
        let says = format!("of {bytes} bytes are shown; all of it is artifact {digest}]");
        assert!(result.content.ends_with(&says), "{}", &result.content[result.content.len() - 200..]);
        let media_type = "text/plain; charset=utf-8".to_owned();
        let artifact = Artifact { digest, bytes: bytes as u64, media_type, name: String::new() };
        assert_eq!(whole, [Attachment { artifact, bytes: text.into_bytes() }]);
    }

    #[test]
    fn a_result_of_exactly_the_bound_is_whole() {
        let (result, attached) = cut(&"x".repeat(RESULT_BYTES_MAX), &no_secrets());
        assert_eq!((result.truncated_from_bytes, attached), (None, Vec::new()));
    }

    /// What belongs to the result is one text, wherever its pieces came from.
    #[rstest]
    #[case::texts(json!({"content": [{"type": "text", "text": "BEGIN"}, {"type": "text", "text": "LONG"}]}), "BEGIN\nLONG")]
    #[case::a_resource(json!({"content": [{"type": "resource", "resource": {"uri": "file:///a", "text": "LONG"}}]}), "LONG")]
    #[case::structured(json!({"content": [], "structuredContent": {"rows": ["LONG"]}}), r#"{"rows":["LONG"]}"#)]
    fn whatever_text_is_cut_is_kept_whole(#[case] said: Value, #[case] expected: &str) {
        let long = |text: &str| text.replace("LONG", &"x".repeat(RESULT_BYTES_MAX + 1));
        let (result, attached) = read(serde_json::from_str(&long(&said.to_string())).unwrap(), &no_secrets());
        let [whole] = attached.as_slice() else { panic!("one artifact") };
        assert!(whole.bytes == long(expected).as_bytes());
        assert_eq!(result.truncated_from_bytes, Some(whole.artifact.bytes));
    }

    #[test]
    fn a_text_that_no_artifact_holds_is_cut_and_says_that_the_rest_is_lost() {
        let (result, attached) = cut(&"x".repeat(ARTIFACT_BYTES_MAX + 1), &no_secrets());
        assert_eq!(attached, []);
        assert!(
            result
                .content
                .ends_with("the rest is not kept: a result holds at most 16 artifacts of 8388608 bytes each]")
        );
    }

    #[test]
    fn what_is_said_before_a_cut_result_leaves_word_of_its_whole() {
        let (result, attached) = cut(&"x".repeat(RESULT_BYTES_MAX + 1), &no_secrets());
        let digest = attached[0].artifact.digest;
        let result = (0..16).fold(result, |result, _| noted(result, &"y".repeat(400)));
        assert!(result.content.ends_with(&format!("artifact {digest}]")) && result.content.len() <= RESULT_BYTES_MAX);
    }

    #[test]
    fn a_value_across_the_cut_is_redacted_first_and_in_the_whole() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("key", &[])]);
        let text = format!("{}hunter2hunter2{}", "x".repeat(RESULT_BYTES_MAX - NOTE_BYTES - 7), "y".repeat(NOTE_BYTES));
        let (result, attached) = cut(&text, &redactor);
        let whole = str::from_utf8(&attached[0].bytes).unwrap();
        assert!(result.content.contains("xx[cred") && !result.content.contains("hunter2"));
        assert_eq!(whole, text.replace("hunter2hunter2", "[credential key redacted]"));
    }

    fn encoded(bytes: &[u8]) -> String {
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    #[test]
    fn what_holds_a_value_of_a_credential_is_withheld_and_names_are_redacted() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2hunter2")]);
        let redactor = Redactor::new(credentials, &[credential("key", &[])]);
        let blob =
            |bytes: &[u8], uri: &str| json!({"type": "resource", "resource": {"uri": uri, "blob": encoded(bytes)}});
        let spellings: [&[u8]; 3] = [b"\x00\xffhunter2hunter2\x00", b"aHVudGVyMmh1bnRlcjI=", b"%68unter2hunter2"];
        for bytes in spellings {
            let (result, attached) = read(json!({"content": [blob(bytes, "file:///a")]}), &redactor);
            assert!(result.content.ends_with("withheld: it holds the value of a credential]"), "{}", result.content);
            assert_eq!(attached, []);
        }
        let (_, attached) = read(json!({"content": [blob(b"fine", "x://hunter2hunter2/\u{1b}")]}), &redactor);
        let artifact = &attached.first().unwrap().artifact;
        assert_eq!(
            (artifact.name.as_str(), artifact.media_type.as_str()),
            ("x://[credential key redacted]/", "of unknown type")
        );
    }

    #[test]
    fn what_is_no_base64_twice_the_same_or_too_much_is_not_attached() {
        let image = |data: &str| json!({"type": "image", "mimeType": "image/png", "data": data});
        let (result, attached) = read(json!({"content": [image("*"), image("AAAA"), image("AAAA")]}), &no_secrets());
        assert!(result.content.starts_with("[image image/png, not shown: it is not base64]\n"), "{}", result.content);
        assert_eq!(attached.len(), 1);
        let many: Vec<_> = (0..=ARTIFACTS_PER_RESULT_MAX).map(|at| image(&encoded(&at.to_be_bytes()))).collect();
        let (result, attached) = read(json!({"content": many}), &no_secrets());
        assert_eq!(attached.len(), ARTIFACTS_PER_RESULT_MAX);
        assert_eq!(result.content.matches("not kept").count(), 1);
    }
}
