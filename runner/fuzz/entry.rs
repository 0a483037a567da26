//! What may not happen whatever a server sends: a panic, or an answer that depends on where the network cut the
//! stream. Shared by the fuzz targets and by a short pass in the tests.

use belay_protocol::digest::canonical;
use belay_protocol::event::ModelResponse;
use belay_runner::models::ModelAnswer;
use belay_runner::models::chat_completions::Chat;
use belay_runner::models::codec::{Assembly, Codec, Progress, Reader, ResponseError, sendable};
use belay_runner::models::messages::MessagesCodec;
use belay_runner::models::responses::ResponsesCodec;
use belay_runner::models::sse::SseParser;

const MOST: usize = 1024 * 1024;

/// The first byte says how the rest is cut.
fn cut(data: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(*first) % 32 + 1, rest))
}

pub fn sse(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    let whole = SseParser::new(MOST).push(bytes);
    let mut parser = SseParser::new(MOST);
    let pieces: Result<Vec<_>, _> = bytes.chunks(size).map(|piece| parser.push(piece)).collect();
    assert_eq!(pieces.map(|pieces| pieces.concat()), whole);
}

pub fn chat(data: &[u8]) {
    codec::<Chat>(data);
}

pub fn responses(data: &[u8]) {
    codec::<ResponsesCodec>(data);
}

pub fn messages(data: &[u8]) {
    codec::<MessagesCodec>(data);
}

fn codec<C: Codec>(data: &[u8]) {
    let Some((size, bytes)) = cut(data) else { return };
    let whole = read::<C>(bytes, bytes.len().max(1));
    assert_eq!(read::<C>(bytes, size), whole);
    let mut assembly = C::Assembly::default();
    let unstreamed = assembly.take_whole(bytes).and_then(|()| assembly.finish());
    for answer in [whole, unstreamed].into_iter().flatten() {
        sane(&answer);
    }
}

fn read<C: Codec>(bytes: &[u8], size: usize) -> Result<ModelAnswer, ResponseError> {
    let mut reader = Reader::<C::Assembly>::new(MOST);
    for piece in bytes.chunks(size) {
        if reader.push(piece)? == Progress::Done {
            break;
        }
    }
    reader.finish()
}

/// What goes back to a provider is JSON, whatever came, and what is journaled has a canonical form.
fn sane(answer: &ModelAnswer) {
    use belay_runner::models::AnswerItem;
    use serde_json::value::RawValue;
    let response = ModelResponse::new(Vec::new(), answer.finish, answer.usage, 0);
    assert!(canonical(&response).is_ok(), "{response:?}");
    for item in &answer.items {
        match item {
            AnswerItem::Text(text) | AnswerItem::Reasoning { text, .. } => assert!(!text.is_empty()),
            AnswerItem::Block(json) => assert!(serde_json::from_str::<&RawValue>(json).is_ok(), "{json}"),
            AnswerItem::Call { arguments, .. } => {
                let sent = sendable(arguments);
                assert!(serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&sent).is_ok(), "{sent}");
            }
        }
    }
}
