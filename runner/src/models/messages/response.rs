//! Reads Messages answers, streamed or whole, into one complete [`ModelAnswer`]. Pure.

use std::collections::BTreeMap;

use belay_protocol::cost::Usage;
use belay_protocol::event::Finish;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::models::codec::{self, CALLS_MAX, Progress, ResponseError, countable, malformed, parse, server_error};
use crate::models::{AnswerItem, ModelAnswer};

/// Texts and blocks between as many calls as are read, and some more.
const BLOCKS_MAX: usize = 2 * CALLS_MAX;

/// An answer as far as it has arrived.
#[derive(Debug, Default)]
pub struct Assembly {
    /// By the index that the server gave.
    blocks: BTreeMap<u64, Block>,
    stop_reason: Option<String>,
    usage: WireUsage,
    id: Option<String>,
    model: Option<String>,
}

#[derive(Debug)]
enum Block {
    Text(String),
    /// `whole` came with the block's start; where pieces follow they are all that counts.
    ToolUse {
        id: String,
        name: String,
        whole: String,
        pieces: String,
    },
    /// `start`: the block as it began, with fields that nobody here knows.
    Thinking {
        start: Map<String, Value>,
        thinking: String,
        signature: Option<String>,
    },
    /// Redacted reasoning, and whatever else goes back as it came; `pieces` make the input of a tool that the server
    /// carries out itself.
    Kept {
        start: String,
        pieces: String,
    },
    /// One of which a piece was not understood: it goes back whole or not at all.
    Lost,
}

/// Any event of a stream. A whole answer is what `message` holds here.
#[derive(Deserialize)]
struct WireEvent {
    r#type: String,
    message: Option<WireMessage>,
    index: Option<u64>,
    content_block: Option<Box<RawValue>>,
    delta: Option<Delta>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct WireMessage {
    id: Option<String>,
    model: Option<String>,
    content: Option<Vec<Box<RawValue>>>,
    stop_reason: Option<String>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct WireBlock {
    r#type: String,
    text: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Box<RawValue>>,
    thinking: Option<String>,
    signature: Option<String>,
}

/// A piece of a block, or of the message itself.
#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
    partial_json: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    stop_reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct WireUsage {
    #[serde(default, deserialize_with = "codec::count")]
    input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "codec::count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "codec::count")]
    cache_read_input_tokens: Option<u64>,
    #[serde(default, deserialize_with = "codec::count")]
    output_tokens: Option<u64>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct OutputDetails {
    #[serde(default, deserialize_with = "codec::count")]
    thinking_tokens: Option<u64>,
}

impl codec::Assembly for Assembly {
    fn take(&mut self, data: &[u8]) -> Result<Progress, ResponseError> {
        if data.trim_ascii().is_empty() {
            return Ok(Progress::More);
        }
        let event: WireEvent = parse(data)?;
        match event.r#type.as_str() {
            "message_start" => self.begin(event.message.ok_or_else(|| malformed("it has no message", data))?)?,
            "content_block_start" => {
                let (index, block) = event.index.zip(event.content_block).ok_or_else(|| malformed("no block", data))?;
                self.start(index, &block)?;
            }
            "content_block_delta" => {
                let block = event.index.and_then(|index| self.blocks.get_mut(&index));
                let (block, delta) = block.zip(event.delta).ok_or_else(|| malformed("no such block", data))?;
                block.extend(delta);
            }
            "message_delta" => {
                self.stop_reason = event.delta.and_then(|delta| delta.stop_reason).or(self.stop_reason.take());
                self.usage = self.usage.later(event.usage.unwrap_or_default());
            }
            "message_stop" => return Ok(Progress::Done),
            "error" => return Err(server_error(&event.error.unwrap_or_default())),
            // Pings, ends of blocks, and events to come.
            _ => {}
        }
        Ok(Progress::More)
    }

    fn take_whole(&mut self, body: &[u8]) -> Result<(), ResponseError> {
        let head: WireEvent = parse(body)?;
        match head.r#type.as_str() {
            "message" => self.begin(parse(body)?),
            "error" => Err(server_error(&head.error.unwrap_or_default())),
            _ => Err(malformed("its type is not message", body)),
        }
    }

    fn has_begun(&self) -> bool {
        !self.blocks.is_empty()
    }

    fn is_finished(&self) -> bool {
        self.stop_reason.is_some()
    }

    fn usage(&self) -> Usage {
        self.usage.normalized()
    }

    fn finish(self) -> Result<ModelAnswer, ResponseError> {
        let finish = finish_of(&self.stop_reason.ok_or(ResponseError::Truncated)?)?;
        let items: Vec<AnswerItem> = self.blocks.into_values().filter_map(Block::item).collect();
        if finish == Finish::ToolCalls && !items.iter().any(|item| matches!(item, AnswerItem::Call { .. })) {
            return Err(ResponseError::NoCall);
        }
        let (usage, first_chunk) = (self.usage.normalized(), None);
        Ok(ModelAnswer { items, finish, usage, response_id: self.id, model: self.model, first_chunk })
    }
}

impl Assembly {
    /// A stream's message is still empty; a whole answer's holds everything.
    fn begin(&mut self, message: WireMessage) -> Result<(), ResponseError> {
        self.id = message.id;
        self.model = message.model;
        self.stop_reason = message.stop_reason;
        self.usage = self.usage.later(message.usage.unwrap_or_default());
        for (index, block) in (0..).zip(message.content.into_iter().flatten()) {
            self.start(index, &block)?;
        }
        Ok(())
    }

    fn start(&mut self, index: u64, raw: &RawValue) -> Result<(), ResponseError> {
        if self.blocks.len() >= BLOCKS_MAX {
            return Err(ResponseError::TooManyCalls);
        }
        let data = raw.get().as_bytes();
        let block: WireBlock = parse(data)?;
        let block = match block.r#type.as_str() {
            "text" => Block::Text(block.text.unwrap_or_default()),
            "tool_use" => Block::ToolUse {
                id: block.id.unwrap_or_default(),
                name: block.name.ok_or_else(|| malformed("a call without a name", data))?,
                whole: block.input.map_or_else(String::new, |input| input.get().to_owned()),
                pieces: String::new(),
            },
            "thinking" => Block::Thinking {
                start: parse(data)?,
                thinking: block.thinking.unwrap_or_default(),
                signature: block.signature,
            },
            _ => Block::Kept { start: raw.get().to_owned(), pieces: String::new() },
        };
        match self.blocks.insert(index, block) {
            None => Ok(()),
            Some(_) => Err(malformed("a block began twice", data)),
        }
    }
}

impl Block {
    /// Takes in a piece. Those of kinds to come say nothing to a block of today.
    fn extend(&mut self, delta: Delta) {
        match self {
            Self::Text(text) => text.extend(delta.text),
            Self::ToolUse { pieces, .. } => pieces.extend(delta.partial_json),
            Self::Thinking { thinking, signature, .. } => {
                thinking.extend(delta.thinking);
                if let Some(piece) = delta.signature {
                    signature.get_or_insert_default().push_str(&piece);
                }
            }
            Self::Kept { pieces, .. } => match delta.partial_json {
                Some(piece) => pieces.push_str(&piece),
                None => *self = Self::Lost,
            },
            Self::Lost => {}
        }
    }

    fn item(self) -> Option<AnswerItem> {
        match self {
            Self::Text(text) => (!text.is_empty()).then_some(AnswerItem::Text(text)),
            Self::ToolUse { id, name, whole, pieces } => {
                let arguments = if pieces.is_empty() { whole } else { pieces };
                Some(AnswerItem::Call { provider_id: id, name, arguments })
            }
            Self::Thinking { start: mut block, thinking, signature } => {
                block.insert("thinking".to_owned(), thinking.into());
                // Servers that don't sign their reasoning want it back all the same.
                block.insert("signature".to_owned(), signature.unwrap_or_default().into());
                Some(AnswerItem::Block(Value::Object(block).to_string()))
            }
            Self::Kept { start, pieces } if pieces.is_empty() => Some(AnswerItem::Block(start)),
            Self::Kept { start, pieces } => with_input(&start, &pieces).map(AnswerItem::Block),
            Self::Lost => None,
        }
    }
}

/// A block whose input came in pieces; nothing where they are no JSON, as where the answer was cut.
fn with_input(start: &str, pieces: &str) -> Option<String> {
    let mut block: Map<String, Value> = serde_json::from_str(start).ok()?;
    block.insert("input".to_owned(), serde_json::from_str(pieces).ok()?);
    Some(Value::Object(block).to_string())
}

/// The official API has no other words than these: one that is new may mean that the answer is not complete.
fn finish_of(reason: &str) -> Result<Finish, ResponseError> {
    match reason {
        "end_turn" | "stop_sequence" => Ok(Finish::Stop),
        "tool_use" => Ok(Finish::ToolCalls),
        "max_tokens" | "model_context_window_exceeded" => Ok(Finish::Length),
        "refusal" => Ok(Finish::ContentFilter),
        _ => Err(ResponseError::unknown_finish(reason)),
    }
}

impl WireUsage {
    /// Counts are of the whole answer so far; some servers tell only a part of them at first, some at last.
    fn later(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.max(other.input_tokens),
            cache_creation_input_tokens: self.cache_creation_input_tokens.max(other.cache_creation_input_tokens),
            cache_read_input_tokens: self.cache_read_input_tokens.max(other.cache_read_input_tokens),
            output_tokens: self.output_tokens.max(other.output_tokens),
            output_tokens_details: self.output_tokens_details.max(other.output_tokens_details),
        }
    }

    /// `input_tokens` counts neither what was read from the cache nor what was written to it.
    fn normalized(self) -> Usage {
        let cached = self.cache_read_input_tokens;
        let written = self.cache_creation_input_tokens;
        let beside = cached.unwrap_or(0).saturating_add(written.unwrap_or(0));
        countable(Usage {
            input_tokens: self.input_tokens.map(|input| input.saturating_add(beside)),
            cached_input_tokens: cached,
            output_tokens: self.output_tokens,
            cache_write_tokens: written,
            reasoning_tokens: self.output_tokens_details.and_then(|details| details.thinking_tokens),
        })
    }
}
