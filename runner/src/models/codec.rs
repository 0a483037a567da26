//! What every wire format has in common: a request's bytes out, events in, one complete answer or the reason why
//! there is none. Pure.

use std::borrow::Cow;

use belay_protocol::cost::Usage;
use belay_protocol::digest::INTEGER_MAX;
use belay_protocol::event::FailureReason;
use belay_protocol::output::is_strict;
use belay_protocol::plan::{Effort, Plan, PlanModel};
use belay_protocol::transcript::CallResult;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::sse::SseParser;
use super::{Context, ModelAnswer};

/// Far more than the run takes: beyond that the answer is no answer.
pub const CALLS_MAX: usize = 512;
/// The most that is kept of what a server said, for whoever redacts it before it is cut to what is shown.
pub const KEPT_BYTES: usize = 16 * 1024;

/// The output that a plan wants, as both of OpenAI's formats ask for it.
#[derive(Serialize)]
pub struct OutputFormat<'a> {
    name: &'static str,
    schema: &'a Value,
    /// Said only where it is true: the provider refuses schemas that it cannot hold its model to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

impl<'a> OutputFormat<'a> {
    #[must_use]
    pub fn of(plan: &'a Plan) -> Option<Self> {
        plan.output_schema.as_ref().map(|schema| Self { name: "output", schema, strict: is_strict(schema) })
    }
}

/// An effort as the APIs spell it.
#[must_use]
pub fn effort_word(effort: Effort) -> &'static str {
    match effort {
        Effort::None => "none",
        Effort::Minimal => "minimal",
        Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
    }
}

/// One wire format over HTTP.
pub trait Codec: Send + Sync + 'static {
    /// As people call it.
    const API: &'static str;
    /// Below the Model's base URL.
    const PATH: &'static str;
    /// Sent with every request, beside those that all formats need.
    const HEADERS: &'static [(&'static str, &'static str)];
    type Assembly: Assembly;

    /// The exact bytes of a request to `model`. The beginning of the conversation stays the same from
    /// step to step, byte for byte, so that providers find it in their caches.
    fn body(context: &Context<'_>, model: &PlanModel, to: Destination<'_>) -> Result<Vec<u8>, serde_json::Error>;

    /// Whether the words of a server that refused a request to `model` say that it spells a field in the format's other way.
    #[must_use]
    fn is_misspelled(_model: &PlanModel, _said: &str) -> bool {
        false
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    pub url: &'a str,
    pub spelling: Spelling,
}

/// Which way of a format that has two for the same field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// What the URL lets expect.
    Expected,
    /// The server refused that.
    Other,
}

/// An answer as far as it has arrived.
pub trait Assembly: Default + Send {
    /// Takes in the data of one event.
    fn take(&mut self, data: &[u8]) -> Result<Progress, ResponseError>;

    /// Takes in an answer that came in one piece.
    fn take_whole(&mut self, body: &[u8]) -> Result<(), ResponseError>;

    /// Whether any of what the model says or thinks has arrived.
    fn has_begun(&self) -> bool;

    /// Whether the server said why it stopped.
    fn is_finished(&self) -> bool;

    /// What it has counted so far.
    fn usage(&self) -> Usage;

    /// Likewise, of an answer that has begun: it may cost something even if it never becomes complete.
    fn reported(&self) -> Option<Usage> {
        let usage = self.usage();
        (self.has_begun() || usage != Usage::default()).then_some(usage)
    }

    /// The complete answer; without a finish reason there is none.
    fn finish(self) -> Result<ModelAnswer, ResponseError>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    Done,
}

/// Takes a stream's bytes, cut anywhere, and puts the answer together.
#[derive(Debug)]
pub struct Reader<A> {
    parser: SseParser,
    assembly: A,
}

impl<A: Assembly> Reader<A> {
    /// A reader that takes events of at most `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { parser: SseParser::new(most), assembly: A::default() }
    }

    /// Takes in the next bytes; nothing needs to follow once it is done.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, ResponseError> {
        let events = self.parser.push(bytes).map_err(|error| ResponseError::EventTooLarge { most: error.most })?;
        for event in events {
            if self.assembly.take(&event)? == Progress::Done {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::More)
    }

    /// Whether any of what the model says or thinks has arrived.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.assembly.has_begun()
    }

    /// See [`Assembly::reported`].
    #[must_use]
    pub fn reported(&self) -> Option<Usage> {
        self.assembly.reported()
    }

    /// Whether the server said why it stopped: a stream that breaks after that has lost nothing that matters.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.assembly.is_finished()
    }

    pub fn finish(self) -> Result<ModelAnswer, ResponseError> {
        self.assembly.finish()
    }
}

/// Why bytes of a server are no complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseError {
    Malformed {
        message: String,
        seen: String,
    },
    Truncated,
    /// The server's own words, in the answer or as an event of its stream.
    Server {
        reason: FailureReason,
        message: String,
    },
    /// It stopped for a reason that this format does not have, as far as is known here.
    UnknownFinish(String),
    NoCall,
    TooManyCalls,
    EventTooLarge {
        most: usize,
    },
}

impl ResponseError {
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Malformed { .. } | Self::NoCall | Self::UnknownFinish(_) => FailureReason::Malformed,
            Self::Truncated => FailureReason::Truncated,
            Self::Server { reason, .. } => *reason,
            Self::TooManyCalls | Self::EventTooLarge { .. } => FailureReason::TooLarge,
        }
    }

    /// What a server of `api` did, as the end of a sentence that names it. `shown` makes of the server's own words what
    /// may be shown of them.
    #[must_use]
    pub fn in_words(&self, api: &str, shown: impl Fn(&str) -> String) -> String {
        match self {
            Self::Malformed { message, seen } => {
                format!("answered with something that is no {api} answer ({}): {}", shown(message), shown(seen))
            }
            Self::Truncated => "ended its answer without a finish reason: the answer was cut off".to_owned(),
            Self::Server { message, .. } => format!("reported an error in its answer: {}", shown(message)),
            Self::UnknownFinish(reason) => {
                format!("ended its answer for a reason that is not known: {}", shown(reason))
            }
            Self::NoCall => "said that it stopped for tool calls and sent no call".to_owned(),
            Self::EventTooLarge { most } => {
                format!("answered with a stream in which an event is larger than {most} bytes")
            }
            Self::TooManyCalls => format!("asked for more than {CALLS_MAX} calls at once"),
        }
    }

    #[must_use]
    pub fn unknown_finish(reason: &str) -> Self {
        Self::UnknownFinish(kept(reason))
    }
}

/// Reads JSON of a server, or shows how it begins.
pub fn parse<'a, T: Deserialize<'a>>(data: &'a [u8]) -> Result<T, ResponseError> {
    serde_json::from_slice(data).map_err(|error| malformed(&error.to_string(), data))
}

/// `data` is valid JSON perhaps, but not what may come here.
#[must_use]
pub fn malformed(message: &str, data: &[u8]) -> ResponseError {
    ResponseError::Malformed { message: kept(message), seen: kept(&String::from_utf8_lossy(data)) }
}

fn kept(text: &str) -> String {
    text.get(..text.floor_char_boundary(KEPT_BYTES)).unwrap_or_default().to_owned()
}

/// A number of tokens as a server writes it. One that makes no sense is not known: an answer that is paid for is no worse
/// for it.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_u64())
}

/// Without the counts that no journal can hold: those are not known.
#[must_use]
pub fn countable(usage: Usage) -> Usage {
    let exact = |count: Option<u64>| count.filter(|count| *count <= INTEGER_MAX);
    Usage {
        input_tokens: exact(usage.input_tokens),
        cached_input_tokens: exact(usage.cached_input_tokens),
        output_tokens: exact(usage.output_tokens),
        cache_write_tokens: exact(usage.cache_write_tokens),
        reasoning_tokens: exact(usage.reasoning_tokens),
    }
}

/// An error object that stands in an answer or comes as an event: all formats have `type` or `code` in it.
#[must_use]
pub fn server_error(error: &Value) -> ResponseError {
    let word = |field: &str| error.get(field).and_then(Value::as_str).map(error_reason);
    // The code is the more exact word where both are there.
    let reason = word("code").filter(|reason| *reason != FailureReason::ServerError).or_else(|| word("type"));
    ResponseError::Server { reason: reason.unwrap_or(FailureReason::ServerError), message: kept(&error.to_string()) }
}

fn error_reason(word: &str) -> FailureReason {
    match word {
        "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => FailureReason::RateLimited,
        "authentication_error" | "permission_error" | "billing_error" | "invalid_api_key" => {
            FailureReason::Unauthorized
        }
        "context_length_exceeded" | "exceed_context_size_error" => FailureReason::ContextExceeded,
        "invalid_request_error" | "not_found_error" | "request_too_large" | "invalid_prompt" => {
            FailureReason::BadRequest
        }
        // `overloaded_error`, `api_error`, `server_error`, and whatever gateways make up.
        _ => FailureReason::ServerError,
    }
}

/// The arguments of an earlier call as they may be sent back: the model's own characters wherever they are an
/// object. Servers parse them, and some fail the whole request over malformed ones.
#[must_use]
pub fn sendable(arguments: &str) -> Cow<'_, str> {
    match serde_json::from_str::<serde_json::Map<String, Value>>(arguments) {
        Ok(_) => Cow::Borrowed(arguments),
        Err(_) if arguments.trim().is_empty() => Cow::Borrowed("{}"),
        Err(_) => Cow::Owned(serde_json::json!({ "malformed": arguments }).to_string()),
    }
}

/// A result for formats that have no place for 'this is an error' but the text.
#[must_use]
pub fn error_text(result: &CallResult) -> String {
    if result.is_error { format!("Error: {}", result.content) } else { result.content.clone() }
}
