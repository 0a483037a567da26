//! Reads Responses answers, streamed or whole, into one complete [`ModelAnswer`]. Pure. Pieces of text and
//! arguments are passed over: every item comes whole when it is done.

use std::collections::BTreeMap;

use belay_protocol::cost::Usage;
use belay_protocol::event::Finish;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::models::codec::{self, CALLS_MAX, Progress, ResponseError, countable, malformed, parse, server_error};
use crate::models::{AnswerItem, ModelAnswer};

/// Texts and reasoning between as many calls as are read, and some more.
const ITEMS_MAX: usize = 2 * CALLS_MAX;

/// An answer as far as it has arrived.
#[derive(Debug, Default)]
pub struct Assembly {
    /// Items that are done, by the index that the server gave.
    items: BTreeMap<u64, AnswerItem>,
    /// Whether anything of an item has arrived.
    begun: bool,
    end: Option<End>,
    id: Option<String>,
    model: Option<String>,
    usage: Usage,
}

/// Why the server stopped, before it is known whether it asked for calls.
#[derive(Clone, Copy, Debug)]
enum End {
    Completed,
    Incomplete(Finish),
}

#[derive(Deserialize)]
struct WireEvent {
    r#type: String,
    response: Option<WireResponse>,
    output_index: Option<u64>,
    item: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct WireResponse {
    id: Option<String>,
    model: Option<String>,
    status: Option<String>,
    output: Option<Vec<Box<RawValue>>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
    incomplete_details: Option<Incomplete>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct WireItem {
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    content: Option<Vec<Part>>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default, deserialize_with = "codec::count")]
    input_tokens: Option<u64>,
    input_tokens_details: Option<InputDetails>,
    #[serde(default, deserialize_with = "codec::count")]
    output_tokens: Option<u64>,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Deserialize)]
struct InputDetails {
    #[serde(default, deserialize_with = "codec::count")]
    cached_tokens: Option<u64>,
    #[serde(default, deserialize_with = "codec::count")]
    cache_write_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct OutputDetails {
    #[serde(default, deserialize_with = "codec::count")]
    reasoning_tokens: Option<u64>,
}

impl codec::Assembly for Assembly {
    fn take(&mut self, data: &[u8]) -> Result<Progress, ResponseError> {
        let data = data.trim_ascii();
        // Some servers close with Chat Completions' last word.
        if data.is_empty() || data == b"[DONE]" {
            return Ok(Progress::More);
        }
        let event: WireEvent = parse(data)?;
        match event.r#type.as_str() {
            "response.output_item.done" => {
                self.begun = true;
                let item = event.item.ok_or_else(|| malformed("it has no item", data))?;
                let next = self.items.last_key_value().map_or(0, |(index, _)| index.saturating_add(1));
                self.add(event.output_index.unwrap_or(next), &item)?;
                Ok(Progress::More)
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.end(event.response.ok_or_else(|| malformed("it has no response", data))?, data)?;
                Ok(Progress::Done)
            }
            "error" => Err(stream_error(&parse(data)?)),
            // What is on its way, and events to come.
            other => {
                self.begun |= other.rsplit('.').next() == Some("delta");
                Ok(Progress::More)
            }
        }
    }

    fn take_whole(&mut self, body: &[u8]) -> Result<(), ResponseError> {
        self.end(parse(body)?, body)
    }

    fn has_begun(&self) -> bool {
        self.begun
    }

    fn is_finished(&self) -> bool {
        self.end.is_some()
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn finish(self) -> Result<ModelAnswer, ResponseError> {
        let calls = self.items.values().any(|item| matches!(item, AnswerItem::Call { .. }));
        let finish = match self.end.ok_or(ResponseError::Truncated)? {
            End::Completed if calls => Finish::ToolCalls,
            End::Completed => Finish::Stop,
            End::Incomplete(finish) => finish,
        };
        Ok(ModelAnswer {
            items: self.items.into_values().collect(),
            finish,
            usage: self.usage,
            response_id: self.id,
            model: self.model,
            first_chunk: None,
        })
    }
}

impl Assembly {
    /// The response as the server leaves it. Items that came one by one are not read again.
    fn end(&mut self, response: WireResponse, data: &[u8]) -> Result<(), ResponseError> {
        // What failed may have cost all the same.
        self.usage = response.usage.map_or_else(Usage::default, |usage| usage.normalized());
        if let Some(error) = response.error {
            return Err(server_error(&error));
        }
        let reason = response.incomplete_details.and_then(|details| details.reason);
        self.end = Some(match (response.status.as_deref(), reason.as_deref()) {
            (Some("completed"), _) => End::Completed,
            (Some("incomplete"), Some("max_output_tokens")) => End::Incomplete(Finish::Length),
            (Some("incomplete"), Some("content_filter")) => End::Incomplete(Finish::ContentFilter),
            (Some("incomplete"), reason) => {
                return Err(ResponseError::unknown_finish(reason.unwrap_or("incomplete, and it does not say why")));
            }
            (Some("failed" | "cancelled"), _) => return Err(server_error(&Value::Null)),
            (Some(_) | None, _) => return Err(malformed("it has no status that ends it", data)),
        });
        if self.items.is_empty() {
            for (index, item) in (0..).zip(response.output.iter().flatten()) {
                self.add(index, item)?;
            }
        }
        self.id = response.id;
        self.model = response.model;
        Ok(())
    }

    fn add(&mut self, index: u64, raw: &RawValue) -> Result<(), ResponseError> {
        if self.items.len() >= ITEMS_MAX {
            return Err(ResponseError::TooManyCalls);
        }
        let data = raw.get().as_bytes();
        // Only the items read here have content of a known form.
        let kind: Kind = parse(data)?;
        let item = match kind.r#type.as_str() {
            "message" => {
                let text = parse::<WireItem>(data)?.text();
                if text.is_empty() {
                    return Ok(());
                }
                AnswerItem::Text(text)
            }
            "function_call" => {
                let item: WireItem = parse(data)?;
                AnswerItem::Call {
                    provider_id: item.call_id.unwrap_or_default(),
                    name: item.name.ok_or_else(|| malformed("a call without a name", data))?,
                    arguments: item.arguments.unwrap_or_default(),
                }
            }
            _ => AnswerItem::Block(raw.get().to_owned()),
        };
        match self.items.insert(index, item) {
            None => Ok(()),
            Some(_) => Err(malformed("an item came twice", data)),
        }
    }
}

#[derive(Deserialize)]
struct Kind {
    r#type: String,
}

impl WireItem {
    fn text(self) -> String {
        let parts = self.content.into_iter().flatten();
        parts.flat_map(|part| part.text.into_iter().chain(part.refusal)).collect()
    }
}

/// An error event is the error itself by the standard; some servers put it one level down.
fn stream_error(event: &Value) -> ResponseError {
    match event.get("error") {
        Some(error) if error.is_object() => server_error(error),
        Some(_) | None => server_error(event),
    }
}

impl WireUsage {
    /// `input_tokens` includes cached and written ones here, as [`Usage`] wants it.
    fn normalized(&self) -> Usage {
        let input = self.input_tokens_details.as_ref();
        countable(Usage {
            input_tokens: self.input_tokens,
            cached_input_tokens: input.and_then(|details| details.cached_tokens),
            output_tokens: self.output_tokens,
            cache_write_tokens: input.and_then(|details| details.cache_write_tokens),
            reasoning_tokens: self.output_tokens_details.as_ref().and_then(|details| details.reasoning_tokens),
        })
    }
}
