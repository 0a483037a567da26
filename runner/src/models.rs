//! Asking a model: what is asked, what comes back, and the wire formats behind one trait. Knows nothing of
//! journals or permits beyond taking one.

pub mod chat_completions;
pub mod scripted;
pub mod sse;

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::Plan;
use belay_protocol::cost::Usage;
use belay_protocol::digest::Digest;
use belay_protocol::event::{Failure, FailureReason, Finish};
use belay_protocol::transcript::Transcript;
use serde_json::Value;

use crate::permit::ModelPermit;

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
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerItem {
    Text(String),
    Call { provider_id: String, name: String, arguments: String },
}

/// A request that ended without a complete answer. `message` is already free of secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub reason: FailureReason,
    pub message: String,
    /// How long the server asked to wait before asking again.
    pub retry_after: Option<Duration>,
}

impl ModelError {
    #[must_use]
    pub fn new(reason: FailureReason, message: String) -> Self {
        Self { reason, message, retry_after: None }
    }

    /// Whether asking again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.reason {
            FailureReason::Unreachable
            | FailureReason::RateLimited
            | FailureReason::ServerError
            | FailureReason::TimedOut
            | FailureReason::Truncated
            | FailureReason::Interrupted
            | FailureReason::Withheld => true,
            FailureReason::Unauthorized
            | FailureReason::BadRequest
            | FailureReason::Malformed
            | FailureReason::TooLarge
            | FailureReason::CredentialMissing
            | FailureReason::CredentialEmpty
            | FailureReason::CredentialTooLarge
            | FailureReason::HostNotAllowed
            | FailureReason::ScriptExhausted
            | FailureReason::Scripted
            | FailureReason::ContextExceeded => false,
        }
    }

    #[must_use]
    pub fn into_failure(self, retrying: bool) -> Failure {
        Failure { reason: self.reason, message: self.message, retrying }
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
