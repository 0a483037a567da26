//! Reads Chat Completions answers, streamed or whole, into one complete [`ModelAnswer`]. Pure.

use belay_protocol::cost::Usage;
use belay_protocol::event::Finish;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::thought::{Thought, ThoughtDelta};
use crate::models::codec::{self, CALLS_MAX, Progress, ResponseError, countable, parse, server_error};
use crate::models::{AnswerItem, ModelAnswer};

/// An answer as far as it has arrived.
#[derive(Debug, Default)]
pub struct Assembly {
    thought: Thought,
    text: String,
    /// The index that the server gave, and the call.
    calls: Vec<(Option<u64>, PartialCall)>,
    finish: Option<Finish>,
    usage: Usage,
    id: Option<String>,
    model: Option<String>,
}

#[derive(Debug, Default)]
struct PartialCall {
    id: String,
    name: String,
    arguments: String,
    /// Of the server, for the server, with this very call: Gemini signs there what led to it.
    extra_content: Option<Box<RawValue>>,
}

/// A chunk of a stream or a whole answer: they differ in `delta` and `message` alone. No two names are one field here: some
/// servers send both, and then neither would be read.
#[derive(Deserialize)]
struct Chunk {
    id: Option<String>,
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u64>,
    delta: Option<Delta>,
    message: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    #[serde(flatten)]
    thought: ThoughtDelta,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionDelta>,
    extra_content: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<Arguments>,
}

/// A string by the standard; some local servers send the object itself.
#[derive(Deserialize)]
#[serde(untagged)]
enum Arguments {
    Text(String),
    Object(serde_json::Map<String, Value>),
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default, deserialize_with = "codec::count")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "codec::count")]
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default, deserialize_with = "codec::count")]
    cached_tokens: Option<u64>,
    #[serde(default, deserialize_with = "codec::count")]
    cache_write_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    #[serde(default, deserialize_with = "codec::count")]
    reasoning_tokens: Option<u64>,
}

impl codec::Assembly for Assembly {
    fn take(&mut self, data: &[u8]) -> Result<Progress, ResponseError> {
        let data = data.trim_ascii();
        match data {
            b"[DONE]" => return Ok(Progress::Done),
            b"" => return Ok(Progress::More),
            _ => {}
        }
        self.merge(parse(data)?)?;
        Ok(Progress::More)
    }

    fn take_whole(&mut self, body: &[u8]) -> Result<(), ResponseError> {
        self.merge(parse(body)?)
    }

    fn has_begun(&self) -> bool {
        !(self.text.is_empty() && self.thought.is_empty() && self.calls.is_empty())
    }

    fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn finish(self) -> Result<ModelAnswer, ResponseError> {
        let finish = self.finish.ok_or(ResponseError::Truncated)?;
        if self.calls.is_empty() && finish == Finish::ToolCalls {
            return Err(ResponseError::NoCall);
        }
        let text = Some(self.text).filter(|text| !text.is_empty()).map(AnswerItem::Text);
        let calls = self.calls.into_iter().flat_map(|(_, call)| call.items());
        Ok(ModelAnswer {
            items: self.thought.items().chain(text).chain(calls).collect(),
            finish,
            usage: self.usage,
            response_id: self.id,
            model: self.model,
            first_chunk: None,
        })
    }
}

impl Assembly {
    fn merge(&mut self, chunk: Chunk) -> Result<(), ResponseError> {
        if let Some(usage) = chunk.usage {
            self.usage = usage.normalized();
        }
        if let Some(error) = chunk.error {
            return Err(server_error(&error));
        }
        self.id = self.id.take().or(chunk.id);
        self.model = self.model.take().or(chunk.model);
        // Only one choice is ever asked for.
        for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index.is_none_or(|index| index == 0)) {
            let (delta, whole) = (choice.delta, choice.message);
            let is_whole = delta.is_none();
            if let Some(delta) = delta.or(whole) {
                if is_whole {
                    self.thought.take_whole(delta.thought);
                } else {
                    self.thought.take_piece(delta.thought)?;
                }
                self.text.extend(delta.content.into_iter().chain(delta.refusal));
                for call in delta.tool_calls.into_iter().flatten() {
                    self.merge_call(call)?;
                }
            }
            // Some servers write none as an empty word.
            if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
                self.finish = Some(finish_of(&reason)?);
            }
        }
        Ok(())
    }

    fn merge_call(&mut self, delta: CallDelta) -> Result<(), ResponseError> {
        let place = self.place_of(&delta);
        let place = match place {
            Some(place) => place,
            None if self.calls.len() >= CALLS_MAX => return Err(ResponseError::TooManyCalls),
            None => {
                self.calls.push((delta.index, PartialCall::default()));
                self.calls.len() - 1
            }
        };
        let Some((_, call)) = self.calls.get_mut(place) else { return Ok(()) };
        if let Some(id) = delta.id.filter(|_| call.id.is_empty()) {
            call.id = id;
        }
        if let Some(extra) = delta.extra_content {
            call.extra_content = Some(extra);
        }
        if let Some(function) = delta.function {
            // Some servers repeat the whole name with every piece of the arguments.
            if let Some(name) = function.name.filter(|_| call.name.is_empty()) {
                call.name = name;
            }
            match function.arguments {
                Some(Arguments::Text(text)) => call.arguments.push_str(&text),
                Some(Arguments::Object(object)) => {
                    call.arguments.push_str(&Value::Object(object).to_string());
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The call that a piece belongs to: the newest of its index, unless its id and a name say that it is another one (some
    /// servers give every call the index 0, others each piece another id); where servers send no index, by id, or the newest
    /// one.
    fn place_of(&self, delta: &CallDelta) -> Option<usize> {
        let id = delta.id.as_deref().filter(|id| !id.is_empty());
        if delta.index.is_some() {
            let name = delta.function.as_ref().and_then(|function| function.name.as_deref());
            let is_named = name.is_some_and(|name| !name.is_empty());
            let is_another = |call: &PartialCall| is_named && id.is_some_and(|id| !call.id.is_empty() && call.id != id);
            let place = self.calls.iter().rposition(|(index, _)| *index == delta.index)?;
            return self.calls.get(place).filter(|(_, call)| !is_another(call)).map(|_| place);
        }
        match id {
            Some(id) => self.calls.iter().position(|(_, call)| call.id == id),
            None if delta.function.as_ref().is_some_and(|function| function.name.is_some()) => None,
            None => self.calls.len().checked_sub(1),
        }
    }
}

impl PartialCall {
    /// What goes back with a call stands before it: a call that the run does not take leaves nothing to another.
    fn items(self) -> impl Iterator<Item = AnswerItem> {
        let kept = self.extra_content.map(|extra| AnswerItem::Block(format!(r#"{{"extra_content":{}}}"#, extra.get())));
        let call = AnswerItem::Call { provider_id: self.id, name: self.name, arguments: self.arguments };
        kept.into_iter().chain([call])
    }
}

fn finish_of(reason: &str) -> Result<Finish, ResponseError> {
    match reason {
        "tool_calls" | "function_call" => Ok(Finish::ToolCalls),
        "length" => Ok(Finish::Length),
        "content_filter" => Ok(Finish::ContentFilter),
        // The latter is DeepSeek's.
        "error" | "insufficient_system_resource" => Err(server_error(&json!({"finish_reason": reason}))),
        // Local servers have words of their own (`eos`, `end_turn`): they ended by themselves.
        _ => Ok(Finish::Stop),
    }
}

impl WireUsage {
    /// `prompt_tokens` includes cached and written ones here, as [`Usage`] wants it.
    fn normalized(&self) -> Usage {
        let prompt = self.prompt_tokens_details.as_ref();
        countable(Usage {
            input_tokens: self.prompt_tokens,
            cached_input_tokens: prompt.and_then(|details| details.cached_tokens),
            output_tokens: self.completion_tokens,
            cache_write_tokens: prompt.and_then(|details| details.cache_write_tokens),
            reasoning_tokens: self.completion_tokens_details.as_ref().and_then(|details| details.reasoning_tokens),
        })
    }
}
