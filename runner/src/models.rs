//! Asking a model: what is asked, what comes back, and the wire formats behind one trait. Knows nothing of
//! journals or permits beyond taking one.

pub mod chat_completions;
pub mod codec;
pub mod exchange;
pub mod messages;
pub mod responses;
pub mod scripted;
pub mod sse;

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::Plan;
use belay_protocol::cost::Usage;
use belay_protocol::digest::Digest;
use belay_protocol::event::{Failure, FailureReason, Finish};
use belay_protocol::plan::{ModelApi, PlanModel};
use belay_protocol::transcript::{Transcript, Turn};
use serde_json::Value;

use self::chat_completions::ChatCompletions;
use self::messages::Messages;
use self::responses::Responses;
use self::scripted::Scripted;
use crate::credential::Credentials;
use crate::egress::EgressError;
use crate::permit::ModelPermit;
use crate::redact::Redactor;

/// An operation as the model is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferedTool {
    pub name: String,
    pub description: String,
    pub input_schema: Value,
}

/// Everything the model is to see.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub plan: &'a Plan,
    pub transcript: &'a Transcript,
    pub tools: &'a [OfferedTool],
    /// Counts from 0: model requests that were answered before.
    pub answered: u32,
}

/// No tokenizer is exact for every model; four bytes a token is what English text comes to.
const BYTES_PER_TOKEN: u64 = 4;

impl Context<'_> {
    /// Tokens of a request to `model` that is so many bytes long: what its server counted last, and what is new since; before
    /// that a guess by the bytes, which base64 and escapes make a high one.
    #[must_use]
    pub fn input_tokens(&self, model: &PlanModel, bytes: usize) -> u64 {
        let last = self.transcript.turns().last().filter(|turn| self.is_own(turn, model));
        let counted = last.and_then(|turn| {
            let results: usize = turn.results.values().map(|result| result.content.len()).sum();
            let new = results + turn.misfit.as_ref().map_or(0, String::len);
            let known = turn.usage.input_tokens?.saturating_add(turn.usage.output_tokens?);
            Some(known.saturating_add(new as u64 / BYTES_PER_TOKEN))
        });
        counted.unwrap_or(bytes as u64 / BYTES_PER_TOKEN)
    }

    /// Whether `model` gave the answer of this turn: what only its provider understands is for it alone.
    #[must_use]
    pub fn is_own(&self, turn: &Turn, model: &PlanModel) -> bool {
        turn.fallback.as_ref().unwrap_or(&self.plan.model.name) == &model.name
    }
}

/// The id of a call as `model` is told of it: its own, or the run's, since others' may have forms that it refuses.
#[must_use]
pub fn call_name<'a>(own: bool, call_id: &'a str, provider_id: &'a str) -> &'a str {
    if own { provider_id } else { call_id }
}

/// A request as it would be sent, and what it may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub body: Vec<u8>,
    pub digest: Digest,
    pub reserved_tokens: u64,
}

/// A complete answer, its calls not yet named by the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelAnswer {
    pub items: Vec<AnswerItem>,
    pub finish: Finish,
    pub usage: Usage,
    pub response_id: Option<String>,
    pub model: Option<String>,
    /// From when it was asked until the first piece of what the model says or thinks, where the answer came in pieces.
    pub first_chunk: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerItem {
    Text(String),
    /// What the model thought: for people, and for its server, which takes it back in the field of that name.
    Reasoning {
        text: String,
        field: &'static str,
    },
    /// Of the provider, for the provider: its JSON exactly as it has to come back.
    Block(String),
    Call {
        provider_id: String,
        name: String,
        arguments: String,
    },
}

/// A request that ended without a complete answer. `message` is already free of secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub reason: FailureReason,
    pub message: String,
    /// It went wrong in the midst of an answer: what broke this one may not break the next.
    pub in_stream: bool,
    /// What was counted of an answer that had begun.
    pub reported: Option<Box<Usage>>,
    /// What the server refused was changed, a token or the spelling of a field: the next request carries another one.
    pub renewed: bool,
    /// How long the server asked to wait before asking again.
    pub retry_after: Option<Duration>,
}

impl ModelError {
    #[must_use]
    pub fn new(reason: FailureReason, message: String) -> Self {
        Self { reason, message, in_stream: false, reported: None, renewed: false, retry_after: None }
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.reason.is_transient() || self.renewed || (self.reason == FailureReason::Malformed && self.in_stream)
    }

    /// Whether another model may do better: not where the run itself was told no.
    #[must_use]
    pub fn may_spare_others(&self) -> bool {
        match self.reason {
            FailureReason::Unreachable
            | FailureReason::Unauthorized
            | FailureReason::RateLimited
            | FailureReason::ServerError
            | FailureReason::BadRequest
            | FailureReason::TimedOut
            | FailureReason::Truncated
            | FailureReason::Malformed
            | FailureReason::TooLarge
            | FailureReason::CredentialMissing
            | FailureReason::CredentialEmpty
            | FailureReason::CredentialTooLarge
            | FailureReason::HostNotAllowed
            | FailureReason::DestinationNotAllowed
            | FailureReason::CaBundleUnusable
            | FailureReason::Scripted
            | FailureReason::ContextExceeded => true,
            FailureReason::Interrupted
            | FailureReason::Withheld
            | FailureReason::ScriptExhausted
            | FailureReason::DocumentMissing
            | FailureReason::DefinitionsInvalid => false,
        }
    }

    #[must_use]
    pub fn into_failure(self, retrying: bool) -> Failure {
        // Rounded up: too early is asked in vain.
        let retry_after_seconds = self.retry_after.map(|time| time.as_millis().div_ceil(1000));
        let retry_after_seconds = retry_after_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Failure { reason: self.reason, message: self.message, retrying, retry_after_seconds }
    }
}

/// One wire format.
#[async_trait]
pub trait Model: Send + Sync {
    /// Writes the request down without sending anything.
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared, ModelError>;

    /// Sends what was prepared, once.
    async fn ask(&self, prepared: Prepared, permit: ModelPermit) -> Result<ModelAnswer, ModelError>;
}

/// What speaks to `model`, which is one of the plan's.
pub fn client(
    plan: &Plan,
    model: &PlanModel,
    credentials: &Credentials,
    redactor: &Redactor,
) -> Result<Box<dyn Model>, EgressError> {
    let (credentials, redactor) = (credentials.clone(), redactor.clone());
    Ok(match model.api {
        ModelApi::ChatCompletions => Box::new(ChatCompletions::new(plan, model, credentials, redactor)?),
        ModelApi::Responses => Box::new(Responses::new(plan, model, credentials, redactor)?),
        ModelApi::Messages => Box::new(Messages::new(plan, model, credentials, redactor)?),
        ModelApi::Scripted => Box::new(Scripted::new(plan, model)),
    })
}
