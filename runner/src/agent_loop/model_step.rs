//! One request to the model: announced, permitted, sent, and its answer or failure recorded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use belay_protocol::event::{FailureReason, Item, ModelResponse};
use belay_protocol::{BATCH_BYTES_MAX, CALLS_PER_RESPONSE_MAX, Digest, Event};
use rand::Rng as _;
use tokio::time::Instant;

use super::{Agent, Halt, LoopError, milliseconds_of, milliseconds_since};
use crate::models::{AnswerItem, Context, ModelAnswer, ModelError, Prepared};
use crate::permit::{Decided, ModelPermit, Verdict};

/// Of one model in one step. Every attempt is journaled; after this many the model is given up.
const ATTEMPTS_MAX: u32 = 5;
const BACKOFF_FIRST_MILLISECONDS: u64 = 500;
/// A server that asks for more patience than this is not worth a pod that waits.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);
/// Where another model is there to ask, waiting is worth less.
const RETRY_AFTER_WITH_SPARE: Duration = Duration::from_secs(30);

impl Agent {
    pub(super) async fn ask(&mut self, step: u32, attempt: u32) -> Result<(), Halt> {
        let given_up = self.progress.state().models_given_up;
        let name = self.plan.model_after(given_up).name.clone();
        let model = self.models.get(given_up).ok_or_else(|| LoopError::NoModel(name.clone()))?;
        let prepared = model.prepare(&Context {
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
            Ok(prepared) => match self.ask_unless_stopped(given_up, prepared, permit).await {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Err(error) => Err(error),
        };
        let milliseconds = milliseconds_since(start);
        match answer.and_then(|answer| self.response(answer, step, attempt, milliseconds)) {
            Ok(response) => {
                self.log.responded(step, &name, &response);
                self.record(Event::ModelResponded { step, attempt, response })
            }
            Err(error) => {
                self.log.model_failed(step, &name, error.reason, milliseconds);
                self.fail(step, attempt, error).await
            }
        }
    }

    /// Nothing where the run was stopped meanwhile: an answer would have no use.
    async fn ask_unless_stopped(
        &self,
        given_up: usize,
        prepared: Prepared,
        permit: ModelPermit,
    ) -> Option<Result<ModelAnswer, ModelError>> {
        let model = self.models.get(given_up)?;
        tokio::select! {
            biased;
            () = self.operator.stopped() => None,
            answer = model.ask(prepared, permit) => Some(answer),
        }
    }

    async fn fail(&mut self, step: u32, attempt: u32, error: ModelError) -> Result<(), Halt> {
        let (state, plan) = (self.progress.state(), Arc::clone(&self.plan));
        let mut models = plan.models().skip(state.models_given_up).map(|model| model.name.clone());
        let (present, next) = (models.next(), models.next());
        let tried = attempt.saturating_sub(state.attempts_given_up);
        let then = after(&error, tried, if next.is_some() { Spare::Left } else { Spare::None });
        let (because, reported) = (error.reason, error.reported.as_deref().copied());
        let failure = error.into_failure(then != Then::End);
        self.record(Event::ModelFailed { step, attempt, failure, reported })?;
        if let (Then::Replace, Some(model), Some(by)) = (then, present, next) {
            self.log.model_replaced(step, &model, &by, because);
            self.record(Event::ModelReplaced { model, by, because })?;
        }
        self.flush().await?;
        if let Then::Again { pause } = then {
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
            first_chunk_milliseconds: answer.first_chunk.map(milliseconds_of),
            response_id: answer.response_id.map(|id| self.redactor.redact(&id).into_owned()),
            model: answer.model.map(|model| self.redactor.redact(&model).into_owned()),
            ..ModelResponse::new(self.items(answer.items), answer.finish, answer.usage, milliseconds)
        };
        // Before it is taken apart: an answer may be much larger in memory than it is written.
        let mut response = self.bounded(response, step, attempt)?;
        response.misfit = self.output.misfit(&response);
        self.bounded(response, step, attempt)
    }

    /// An answer that a batch can hold.
    fn bounded(&self, response: ModelResponse, step: u32, attempt: u32) -> Result<ModelResponse, ModelError> {
        let reported = Some(Box::new(response.usage));
        let event = Event::ModelResponded { step, attempt, response };
        let bytes = serde_json::to_vec(&event).map_or(usize::MAX, |bytes| bytes.len());
        match event {
            Event::ModelResponded { response, .. } if bytes <= BATCH_BYTES_MAX => Ok(response),
            _ => {
                let name = &self.plan.model_after(self.progress.state().models_given_up).name;
                let message = format!(
                    "Model {name}: one answer of {bytes} bytes is more than a step may hold: lower spec.maxOutputTokens"
                );
                Err(ModelError { reported, ..ModelError::new(FailureReason::TooLarge, message) })
            }
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
                AnswerItem::Reasoning { text, field } => {
                    let text = self.redactor.redact(&text).into_owned();
                    items.push(Item::Reasoning { text, field: Some(field.to_owned()) });
                }
                AnswerItem::Block(json) => items.extend(self.block(json)),
                AnswerItem::Call { .. } if provider_ids.len() >= CALLS_PER_RESPONSE_MAX => dropped += 1,
                AnswerItem::Call { provider_id, name, arguments } => {
                    number += 1;
                    let call_id = format!("c{number}");
                    // Some servers send no ids, or the same one twice: results could not be told apart.
                    let provider_id = Some(provider_id).filter(|id| !id.is_empty() && !provider_ids.contains(id));
                    let provider_id = provider_id.filter(|id| self.redactor.is_clean(id));
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

    /// A block goes back as it came or not at all: with a value taken out its signature would not fit any more.
    fn block(&self, json: String) -> Option<Item> {
        if self.redactor.redact_arguments(&json) == json {
            return Some(Item::Block { json });
        }
        tracing::warn!("a block of the provider's held a credential's value and was left out");
        None
    }
}

/// Whether the plan has a model left to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spare {
    Left,
    None,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The same model is asked again.
    Again {
        pause: Duration,
    },
    /// The next one is asked at once.
    Replace,
    End,
}

/// `tried`: attempts of this step that the model has had.
fn after(error: &ModelError, tried: u32, spare: Spare) -> Then {
    let patience = match spare {
        Spare::Left => RETRY_AFTER_WITH_SPARE,
        Spare::None => RETRY_AFTER_MAX,
    };
    let patient = error.retry_after.is_none_or(|time| time <= patience);
    if error.is_transient() && tried < ATTEMPTS_MAX && patient {
        return Then::Again { pause: error.retry_after.unwrap_or_else(|| backoff(tried)) };
    }
    match spare {
        Spare::Left if error.may_spare_others() => Then::Replace,
        Spare::Left | Spare::None => Then::End,
    }
}

/// Leave to ask, if the operator gave it for this very attempt. Silence is a no.
fn permit_for(decisions: Vec<Decided>, step: u32, attempt: u32) -> Option<ModelPermit> {
    let subject = format!("m{step}");
    let ours = decisions.into_iter().find(|decided| decided.subject == subject && decided.attempt == attempt)?;
    match ours.verdict {
        Verdict::Model(permit) => Some(permit),
        Verdict::Call(_) | Verdict::Asked | Verdict::Later => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn error(reason: FailureReason, retry_after: Option<u64>) -> ModelError {
        ModelError { retry_after: retry_after.map(Duration::from_secs), ..ModelError::new(reason, String::new()) }
    }

    fn again(seconds: u64) -> Then {
        Then::Again { pause: Duration::from_secs(seconds) }
    }

    #[rstest]
    #[case::patience(error(FailureReason::RateLimited, Some(20)), 1, Spare::Left, again(20))]
    #[case::too_long_with_another_there(error(FailureReason::RateLimited, Some(31)), 1, Spare::Left, Then::Replace)]
    #[case::not_too_long_alone(error(FailureReason::RateLimited, Some(31)), 1, Spare::None, again(31))]
    #[case::too_long_alone(error(FailureReason::RateLimited, Some(301)), 1, Spare::None, Then::End)]
    #[case::used_up(error(FailureReason::ServerError, Some(0)), 5, Spare::Left, Then::Replace)]
    #[case::used_up_alone(error(FailureReason::ServerError, Some(0)), 5, Spare::None, Then::End)]
    #[case::for_good(error(FailureReason::Unauthorized, None), 1, Spare::Left, Then::Replace)]
    #[case::for_good_alone(error(FailureReason::Unauthorized, None), 1, Spare::None, Then::End)]
    #[case::a_larger_window(error(FailureReason::ContextExceeded, None), 1, Spare::Left, Then::Replace)]
    #[case::told_no(error(FailureReason::Withheld, None), 5, Spare::Left, Then::End)]
    fn a_model_is_asked_again_then_replaced_then_the_run_ends(
        #[case] error: ModelError,
        #[case] tried: u32,
        #[case] spare: Spare,
        #[case] then: Then,
    ) {
        assert_eq!(after(&error, tried, spare), then);
    }

    #[test]
    fn a_stream_that_went_wrong_is_asked_for_again_and_a_wrong_server_is_not() {
        let wrong = error(FailureReason::Malformed, Some(0));
        assert_eq!(after(&wrong, 1, Spare::None), Then::End);
        assert_eq!(after(&ModelError { in_stream: true, ..wrong }, 1, Spare::None), again(0));
    }
}
