//! Reads Chat Completions answers, streamed or whole, into one complete [`ModelAnswer`]. Pure.

use belay_protocol::cost::Usage;
use belay_protocol::event::{FailureReason, Finish};
use serde::Deserialize;

use crate::egress::piece;
use crate::models::{AnswerItem, ModelAnswer};

/// Far more than the run takes: beyond that the answer is no answer.
const CALLS_MAX: usize = 512;
const SHOWN_BYTES: usize = 500;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResponseError {
    #[error("answered with something that is no Chat Completions answer ({message}): {seen}")]
    Malformed { message: String, seen: String },
    #[error("ended its answer without a finish reason: the answer was cut off")]
    Truncated,
    #[error("reported an error in its answer: {0}")]
    Server(String),
    #[error("said finish_reason tool_calls and sent no call")]
    NoCall,
    #[error("asked for more than {CALLS_MAX} calls at once")]
    TooManyCalls,
}

impl ResponseError {
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Malformed { .. } | Self::NoCall => FailureReason::Malformed,
            Self::Truncated => FailureReason::Truncated,
            Self::Server(_) => FailureReason::ServerError,
            Self::TooManyCalls => FailureReason::TooLarge,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    Done,
}

/// An answer as far as it has arrived.
#[derive(Debug, Default)]
pub struct Assembly {
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
}

/// A chunk of a stream or a whole answer: they differ in `delta` and `message` alone.
#[derive(Deserialize)]
struct Chunk {
    id: Option<String>,
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<WireUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    #[serde(alias = "message")]
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionDelta>,
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
    Object(serde_json::Map<String, serde_json::Value>),
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

impl Assembly {
    /// Takes in the data of one event.
    pub fn take(&mut self, data: &[u8]) -> Result<Progress, ResponseError> {
        let data = data.trim_ascii();
        match data {
            b"[DONE]" => return Ok(Progress::Done),
            b"" => return Ok(Progress::More),
            _ => {}
        }
        self.merge(parse(data)?)?;
        Ok(Progress::More)
    }

    /// Whether the server said why it stopped.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The complete answer; without a finish reason there is none.
    pub fn finish(self) -> Result<ModelAnswer, ResponseError> {
        let finish = self.finish.ok_or(ResponseError::Truncated)?;
        if self.calls.is_empty() && finish == Finish::ToolCalls {
            return Err(ResponseError::NoCall);
        }
        let text = Some(self.text).filter(|text| !text.is_empty()).map(AnswerItem::Text);
        let calls = self.calls.into_iter().map(|(_, call)| AnswerItem::Call {
            provider_id: call.id,
            name: call.name,
            arguments: call.arguments,
        });
        Ok(ModelAnswer {
            items: text.into_iter().chain(calls).collect(),
            finish,
            usage: self.usage,
            response_id: self.id,
            model: self.model,
        })
    }

    fn merge(&mut self, chunk: Chunk) -> Result<(), ResponseError> {
        if let Some(error) = chunk.error {
            return Err(ResponseError::Server(piece(&error.to_string(), SHOWN_BYTES)));
        }
        self.id = self.id.take().or(chunk.id);
        self.model = self.model.take().or(chunk.model);
        if let Some(usage) = chunk.usage {
            self.usage = usage.normalized();
        }
        // Only one choice is ever asked for.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(delta) = choice.delta {
                self.text.extend(delta.content.into_iter().chain(delta.refusal));
                for call in delta.tool_calls.into_iter().flatten() {
                    self.merge_call(call)?;
                }
            }
            if let Some(reason) = choice.finish_reason {
                self.finish = Some(finish_of(&reason));
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
        if let Some(function) = delta.function {
            // Some servers repeat the whole name with every piece of the arguments.
            if let Some(name) = function.name.filter(|_| call.name.is_empty()) {
                call.name = name;
            }
            match function.arguments {
                Some(Arguments::Text(text)) => call.arguments.push_str(&text),
                Some(Arguments::Object(object)) => {
                    call.arguments.push_str(&serde_json::Value::Object(object).to_string());
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The call that a piece belongs to: by index; where servers send none, by id, or the newest one.
    fn place_of(&self, delta: &CallDelta) -> Option<usize> {
        if delta.index.is_some() {
            return self.calls.iter().position(|(index, _)| *index == delta.index);
        }
        match delta.id.as_deref().filter(|id| !id.is_empty()) {
            Some(id) => self.calls.iter().position(|(_, call)| call.id == id),
            None if delta.function.as_ref().is_some_and(|function| function.name.is_some()) => None,
            None => self.calls.len().checked_sub(1),
        }
    }
}

/// Reads an answer that came in one piece.
pub fn read_whole(body: &[u8]) -> Result<ModelAnswer, ResponseError> {
    let mut assembly = Assembly::default();
    assembly.merge(parse(body)?)?;
    assembly.finish()
}

fn parse(data: &[u8]) -> Result<Chunk, ResponseError> {
    serde_json::from_slice(data).map_err(|error| ResponseError::Malformed {
        message: error.to_string(),
        seen: piece(&String::from_utf8_lossy(data), SHOWN_BYTES),
    })
}

fn finish_of(reason: &str) -> Finish {
    match reason {
        "tool_calls" | "function_call" => Finish::ToolCalls,
        "length" => Finish::Length,
        "content_filter" => Finish::ContentFilter,
        // Local servers have words of their own (`eos`, `end_turn`): they ended by themselves.
        _ => Finish::Stop,
    }
}

impl WireUsage {
    /// `prompt_tokens` includes the cached ones here, as [`Usage`] wants it.
    fn normalized(&self) -> Usage {
        Usage {
            input_tokens: self.prompt_tokens,
            cached_input_tokens: self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens),
            output_tokens: self.completion_tokens,
        }
    }
}
