//! One request to the model: announced, permitted, sent, and its answer or failure recorded.

use std::collections::BTreeSet;
use std::time::Duration;

use belay_protocol::event::{FailureReason, Item, ModelResponse};
use belay_protocol::{BATCH_BYTES_MAX, CALLS_PER_RESPONSE_MAX, Digest, Event};
use rand::Rng as _;
use tokio::time::Instant;

use super::{Agent, Halt, milliseconds_since};
use crate::models::{AnswerItem, Context, ModelAnswer, ModelError, Prepared};
use crate::permit::{Decided, ModelPermit, Verdict};

/// Every attempt is journaled; after this many the run ends.
const ATTEMPTS_MAX: u32 = 5;
const BACKOFF_FIRST_MILLISECONDS: u64 = 500;
/// A server that asks for more patience than this is not worth a pod that waits.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

impl Agent {
    pub(super) async fn ask(&mut self, step: u32, attempt: u32) -> Result<(), Halt> {
        let prepared = self.model.prepare(&Context {
            plan: &self.plan,
            transcript: self.progress.transcript(),
            tools: self.offered.as_deref().unwrap_or_default(),
            answered: self.progress.state().steps,
        });
        let (request, reserved_tokens) = match &prepared {
            Ok(prepared) => (prepared.digest, prepared.reserved_tokens),
            // Journaled all the same: the failure needs a request to belong to.
            Err(_) => (Digest::zero(), 0),
        };
        self.record(Event::ModelRequested { step, attempt, request, reserved_tokens })?;
        let decisions = self.flush().await?;
        let Some(permit) = permit_for(decisions, step, attempt) else {
            self.denied = true;
            return Ok(());
        };
        let start = Instant::now();
        let answer = match prepared {
            Ok(prepared) => match self.ask_unless_stopped(prepared, permit).await {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Err(error) => Err(error),
        };
        let milliseconds = milliseconds_since(start);
        match answer.and_then(|answer| self.response(answer, step, attempt, milliseconds)) {
            Ok(response) => {
                self.log.responded(step, &self.plan.model.name, &response);
                self.record(Event::ModelResponded { step, attempt, response })
            }
            Err(error) => {
                self.log.model_failed(step, &self.plan.model.name, error.reason, milliseconds);
                self.fail(step, attempt, error).await
            }
        }
    }

    /// Nothing where the run was stopped meanwhile: an answer would have no use.
    async fn ask_unless_stopped(
        &self,
        prepared: Prepared,
        permit: ModelPermit,
    ) -> Option<Result<ModelAnswer, ModelError>> {
        tokio::select! {
            biased;
            () = self.operator.stopped() => None,
            answer = self.model.ask(prepared, permit) => Some(answer),
        }
    }

    async fn fail(&mut self, step: u32, attempt: u32, error: ModelError) -> Result<(), Halt> {
        let patient = error.retry_after.is_none_or(|time| time <= RETRY_AFTER_MAX);
        let retrying = error.is_transient() && attempt < ATTEMPTS_MAX && patient;
        let pause = error.retry_after.unwrap_or_else(|| backoff(attempt));
        self.record(Event::ModelFailed { step, attempt, failure: error.into_failure(retrying) })?;
        self.flush().await?;
        if retrying {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.operator.stopped() => {}
            }
        }
        Ok(())
    }

    /// The answer as it is journaled: calls named by the run, credential values taken out.
    fn response(
        &self,
        answer: ModelAnswer,
        step: u32,
        attempt: u32,
        milliseconds: u64,
    ) -> Result<ModelResponse, ModelError> {
        let response = ModelResponse {
            items: self.items(answer.items),
            finish: answer.finish,
            usage: answer.usage,
            response_id: answer.response_id,
            model: answer.model,
            milliseconds,
        };
        let event = Event::ModelResponded { step, attempt, response };
        let bytes = serde_json::to_vec(&event).map_or(usize::MAX, |bytes| bytes.len());
        match event {
            Event::ModelResponded { response, .. } if bytes <= BATCH_BYTES_MAX => Ok(response),
            _ => Err(ModelError::new(
                FailureReason::TooLarge,
                format!(
                    "Model {}: one answer of {bytes} bytes is more than a step may hold: lower spec.maxOutputTokens",
                    self.plan.model.name
                ),
            )),
        }
    }

    fn items(&self, answered: Vec<AnswerItem>) -> Vec<Item> {
        let mut items = Vec::with_capacity(answered.len());
        let mut provider_ids = BTreeSet::new();
        let mut dropped = 0_u32;
        let mut number = self.progress.state().calls_total;
        for item in answered {
            match item {
                AnswerItem::Text(text) => items.push(Item::Text { text: self.redactor.redact(&text).into_owned() }),
                AnswerItem::Call { .. } if provider_ids.len() >= CALLS_PER_RESPONSE_MAX => dropped += 1,
                AnswerItem::Call { provider_id, name, arguments } => {
                    number += 1;
                    let call_id = format!("c{number}");
                    // Some servers send no ids, or the same one twice: results could not be told apart.
                    let provider_id = Some(provider_id).filter(|id| !id.is_empty() && !provider_ids.contains(id));
                    let provider_id = provider_id.unwrap_or_else(|| call_id.clone());
                    provider_ids.insert(provider_id.clone());
                    let name = self.redactor.redact(&name).into_owned();
                    let arguments = self.redactor.redact_arguments(&arguments);
                    items.push(Item::ToolCall { call_id, provider_id, name, arguments });
                }
            }
        }
        if dropped > 0 {
            items.push(Item::Text {
                text: format!(
                    "[belay: {dropped} more calls of this answer were dropped; \
                     at most {CALLS_PER_RESPONSE_MAX} are taken at once]"
                ),
            });
        }
        items
    }
}

/// Leave to ask, if the operator gave it for this very attempt. Silence is a no.
fn permit_for(decisions: Vec<Decided>, step: u32, attempt: u32) -> Option<ModelPermit> {
    let subject = format!("m{step}");
    let ours = decisions.into_iter().find(|decided| decided.subject == subject && decided.attempt == attempt)?;
    match ours.verdict {
        Verdict::Model(permit) => Some(permit),
        Verdict::Call(_) => None,
        Verdict::Denied(why) => {
            tracing::info!(step, why, "the operator denies the model request");
            None
        }
    }
}

/// Doubles with each attempt; jitter keeps many runs on one server apart.
fn backoff(attempt: u32) -> Duration {
    let most = BACKOFF_FIRST_MILLISECONDS << attempt.min(6);
    Duration::from_millis(rand::rng().random_range(most / 2..=most))
}
