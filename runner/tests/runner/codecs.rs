//! What holds of every codec: the streams in `tests/streams`, cut anywhere, whole and not whole.

use std::path::PathBuf;

use belay_runner::models::chat_completions::Chat;
use belay_runner::models::codec::{Codec, Progress, Reader, ResponseError};
use belay_runner::models::messages::MessagesCodec;
use belay_runner::models::responses::ResponsesCodec;
use belay_runner::models::{AnswerItem, ModelAnswer};
use serde_json::{Value, json};

/// A stream as a provider would send it, and what it comes to.
pub struct Recorded {
    pub name: String,
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    pub expected: Value,
}

/// The streams of a format, from `tests/streams`.
pub fn recorded(format: &str) -> Vec<Recorded> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/streams").join(format);
    let mut all: Vec<Recorded> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sse"))
        .map(|path| Recorded {
            name: format!("{format}/{}", path.file_stem().unwrap().to_str().unwrap()),
            bytes: std::fs::read(&path).unwrap(),
            expected: serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap(),
            path,
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.len() >= 3, "{} streams in {}", all.len(), folder.display());
    all
}

/// An answer in the form of the files beside the streams.
pub fn as_json(answer: &ModelAnswer) -> Value {
    let item = |item: &AnswerItem| match item {
        AnswerItem::Text(text) => json!({"text": text}),
        AnswerItem::Reasoning { text, field } => json!({*field: text}),
        AnswerItem::Block(block) => json!({"block": serde_json::from_str::<Value>(block).unwrap()}),
        AnswerItem::Call { provider_id, name, arguments } => {
            json!({"call": {"id": provider_id, "name": name, "arguments": arguments}})
        }
    };
    json!({
        "items": answer.items.iter().map(item).collect::<Vec<_>>(),
        "finish": answer.finish,
        "usage": answer.usage,
        "responseId": answer.response_id,
        "model": answer.model,
    })
}

fn read<C: Codec>(pieces: &[&[u8]]) -> Result<ModelAnswer, ResponseError> {
    let mut reader = Reader::<C::Assembly>::new(1024 * 1024);
    for piece in pieces {
        if reader.push(piece)? == Progress::Done {
            break;
        }
    }
    reader.finish()
}

/// Every place of the short streams; of the long ones, which take long to read so often, only some.
fn step_for(bytes: &[u8]) -> usize {
    if bytes.len() < 2000 { 1 } else { 29 }
}

fn cut_everywhere<C: Codec>(format: &str) {
    for Recorded { name, bytes, expected, .. } in recorded(format) {
        for cut in (0..=bytes.len()).step_by(step_for(&bytes)) {
            let (first, second) = bytes.split_at(cut);
            let answer = read::<C>(&[first, second]).unwrap_or_else(|error| panic!("{name} cut at {cut}: {error:?}"));
            assert_eq!(as_json(&answer), expected, "{name} cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(as_json(&read::<C>(&single).unwrap()), expected, "{name} byte by byte");
    }
}

/// An answer that ends early is none, or it lacks nothing but words about itself.
fn broken_everywhere<C: Codec>(format: &str) {
    for Recorded { name, bytes, expected, .. } in recorded(format) {
        for end in (0..bytes.len()).step_by(step_for(&bytes)) {
            match read::<C>(&[&bytes[..end]]) {
                Err(error) => assert_eq!(error, ResponseError::Truncated, "{name} until {end}"),
                Ok(answer) => {
                    let answer = as_json(&answer);
                    assert_eq!((&answer["items"], &answer["finish"]), (&expected["items"], &expected["finish"]));
                }
            }
        }
    }
}

#[test]
fn a_stream_comes_to_the_same_answer_wherever_it_is_cut() {
    cut_everywhere::<Chat>("chat");
    cut_everywhere::<ResponsesCodec>("responses");
    cut_everywhere::<MessagesCodec>("messages");
}

#[test]
fn a_stream_that_ends_early_is_no_answer() {
    broken_everywhere::<Chat>("chat");
    broken_everywhere::<ResponsesCodec>("responses");
    broken_everywhere::<MessagesCodec>("messages");
}

/// Whether an answer has begun after each of these events.
fn begun<C: Codec>(events: &[&str]) -> Vec<bool> {
    let mut reader = Reader::<C::Assembly>::new(1024 * 1024);
    let begun = |event: &&str| {
        reader.push(format!("data: {event}\n\n").as_bytes()).unwrap();
        reader.has_begun()
    };
    events.iter().map(begun).collect()
}

#[test]
fn an_answer_begins_with_what_the_model_says_or_thinks_and_not_with_what_comes_before() {
    let chat = begun::<Chat>(&[
        r#"{"id":"r","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#,
    ]);
    assert_eq!(chat, [false, true]);
    let responses = begun::<ResponsesCodec>(&[
        r#"{"type":"response.created","response":{"id":"r","status":"in_progress"}}"#,
        r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"message"}}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"delta":"h"}"#,
    ]);
    assert_eq!(responses, [false, false, true]);
    let messages = begun::<MessagesCodec>(&[
        r#"{"type":"message_start","message":{"id":"r","content":[],"usage":{"input_tokens":1}}}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
    ]);
    assert_eq!(messages, [false, false, true]);
}
