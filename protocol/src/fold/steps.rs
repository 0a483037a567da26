//! Listings and model requests.

use std::collections::BTreeMap;

use super::{CallState, IllegalEvent, ModelState, Presumed, RunState, out_of_order, wrong_call};
use crate::cost::{Prices, Usage};
use crate::event::{Failure, FailureReason, Item, Listing, ModelResponse};
use crate::{CALLS_PER_RESPONSE_MAX, MISFITS_MAX, MODEL_ATTEMPTS_MAX};

impl RunState {
    pub(super) fn list(&mut self, tool: &str, listing: &Listing, at: i64) -> Result<(), IllegalEvent> {
        if self.plan.as_ref().is_none_or(|plan| plan.tool(tool).is_none()) {
            return Err(out_of_order("ToolsListed", "the plan names no such tool"));
        }
        let listed = self.listed.entry(tool.to_owned()).or_default();
        *listed = listed.saturating_add(1);
        match listing {
            Listing::Listed(operations) => {
                self.listings.insert(tool.to_owned(), operations.clone());
                self.listed_at = Some(at);
                self.compare(tool);
            }
            Listing::Failed(failure) => self.failure = Some(failure.clone()),
        }
        Ok(())
    }

    pub(super) fn request_model(&mut self, step: u32, attempt: u32, reserved: u64) -> Result<(), IllegalEvent> {
        let due = match self.model {
            ModelState::Idle => (self.steps + 1, 1),
            ModelState::Failed { step, attempt } => (step, attempt + 1),
            ModelState::InFlight { .. } => return Err(out_of_order("ModelRequested", "a request is in flight")),
            ModelState::Done => return Err(out_of_order("ModelRequested", "the model has given its last answer")),
        };
        if (step, attempt) != due {
            return Err(out_of_order("ModelRequested", "steps and attempts count up by one"));
        }
        if attempt > MODEL_ATTEMPTS_MAX {
            return Err(out_of_order("ModelRequested", "a step has so many attempts and no more"));
        }
        if !self.is_settled() {
            return Err(out_of_order("ModelRequested", "calls of the response before are not settled"));
        }
        self.model = ModelState::InFlight { step, attempt, reserved_tokens: reserved };
        Ok(())
    }

    pub(super) fn respond(&mut self, step: u32, attempt: u32, response: &ModelResponse) -> Result<(), IllegalEvent> {
        let reserved = self.expect_in_flight("ModelResponded", step, attempt)?;
        let mut calls = BTreeMap::new();
        for item in &response.items {
            if let Item::ToolCall { call_id, .. } = item {
                let due = format!("c{}", self.calls_total as usize + calls.len() + 1);
                if *call_id != due || calls.len() >= CALLS_PER_RESPONSE_MAX {
                    return Err(wrong_call("ModelResponded", call_id, "ids count up, and calls are bounded"));
                }
                calls.insert(call_id.clone(), CallState::Due { attempt: 1 });
            }
        }
        self.misfits = if calls.is_empty() && response.misfit.is_some() { self.misfits.saturating_add(1) } else { 0 };
        let asked_again = (1..MISFITS_MAX).contains(&self.misfits);
        self.model = if calls.is_empty() && !asked_again { ModelState::Done } else { ModelState::Idle };
        self.calls_total += u32::try_from(calls.len()).unwrap_or(u32::MAX);
        self.calls = calls;
        self.asked_since.clear();
        self.approved.clear();
        self.ran_under.clear();
        self.inputs.clear();
        self.steps = step;
        self.attempts_given_up = 0;
        self.usage = self.usage.plus(&response.usage);
        if response.usage.input_tokens.is_none() || response.usage.output_tokens.is_none() {
            self.uncounted = true;
            // What it did report counts as such.
            self.unreported = self.unreported.plus(self.at_most(reserved.saturating_sub(response.usage.total())));
        }
        if let Some(prices) = self.prices() {
            self.cost = self.cost.plus(prices.cost(&response.usage));
        }
        self.output = response.text();
        self.failure = None;
        self.come_forward();
        Ok(())
    }

    pub(super) fn fail_model(
        &mut self,
        step: u32,
        attempt: u32,
        failure: &Failure,
        reported: Option<&Usage>,
    ) -> Result<(), IllegalEvent> {
        self.expect_in_flight("ModelFailed", step, attempt)?;
        match reported {
            Some(reported) => self.interrupt_model(reported),
            None if may_cost(failure.reason) => self.interrupt_model(&Usage::default()),
            None => self.model = ModelState::Failed { step, attempt },
        }
        self.failure = Some(failure.clone());
        Ok(())
    }

    /// The plan's next model takes over, once the one before it has failed.
    pub(super) fn replace_model(&mut self, model: &str, by: &str) -> Result<(), IllegalEvent> {
        let ModelState::Failed { attempt, .. } = self.model else {
            return Err(out_of_order("ModelReplaced", "the model has not failed"));
        };
        let mut left = self.plan.iter().flat_map(|plan| plan.models()).skip(self.models_given_up);
        if left.next().is_none_or(|present| present.name != model) {
            return Err(out_of_order("ModelReplaced", "another model is asked"));
        }
        if left.next().is_none_or(|next| next.name != by) {
            return Err(out_of_order("ModelReplaced", "the plan names another model next"));
        }
        self.models_given_up += 1;
        self.attempts_given_up = attempt;
        Ok(())
    }

    /// What the model that is asked now costs.
    fn prices(&self) -> Option<Prices> {
        self.plan.as_ref().and_then(|plan| plan.model_after(self.models_given_up).prices)
    }

    /// A request whose answer will never be known counts as spent, at the dearest of the prices; or as what was reported of
    /// it, where that is more.
    pub(super) fn interrupt_model(&mut self, reported: &Usage) {
        let ModelState::InFlight { step, attempt, reserved_tokens } = self.model else { return };
        self.model = ModelState::Failed { step, attempt };
        let most = self.at_most(reserved_tokens);
        let cost = self.prices().map(|prices| prices.cost(reported)).unwrap_or_default();
        let lost = Presumed { tokens: most.tokens.max(reported.total()), cost: most.cost.max(cost) };
        self.presumed = self.presumed.plus(lost);
    }

    /// So many tokens of the model that is asked now, at the dearest of its prices.
    fn at_most(&self, tokens: u64) -> Presumed {
        let cost = self.prices().map(|prices| {
            let input = Usage { input_tokens: Some(tokens), ..Usage::default() };
            let written = Usage { cache_write_tokens: Some(tokens), ..input };
            let output = Usage { output_tokens: Some(tokens), ..Usage::default() };
            prices.cost(&input).max(prices.cost(&written)).max(prices.cost(&output))
        });
        Presumed { tokens, cost: cost.unwrap_or_default() }
    }

    /// What the request in flight has set aside, if it is this one.
    fn expect_in_flight(&self, event: &'static str, step: u32, attempt: u32) -> Result<u64, IllegalEvent> {
        match self.model {
            ModelState::InFlight { step: s, attempt: a, reserved_tokens } if (s, a) == (step, attempt) => {
                Ok(reserved_tokens)
            }
            ModelState::InFlight { .. } | ModelState::Idle | ModelState::Failed { .. } | ModelState::Done => {
                Err(out_of_order(event, "no such request is in flight"))
            }
        }
    }
}

/// Whether the provider may charge for a request that ended like that and of whose answer nothing was seen: it was sent, and
/// how much of one was made is not known.
fn may_cost(reason: FailureReason) -> bool {
    match reason {
        FailureReason::Interrupted
        | FailureReason::TimedOut
        | FailureReason::Truncated
        | FailureReason::Malformed
        | FailureReason::TooLarge => true,
        FailureReason::Withheld
        | FailureReason::Unreachable
        | FailureReason::Unauthorized
        | FailureReason::RateLimited
        | FailureReason::ServerError
        | FailureReason::BadRequest
        | FailureReason::CredentialMissing
        | FailureReason::CredentialEmpty
        | FailureReason::CredentialTooLarge
        | FailureReason::HostNotAllowed
        | FailureReason::DestinationNotAllowed
        | FailureReason::ScriptExhausted
        | FailureReason::Scripted
        | FailureReason::DocumentMissing
        | FailureReason::DefinitionsInvalid
        | FailureReason::CaBundleUnusable
        | FailureReason::ContextExceeded => false,
    }
}

#[cfg(test)]
mod tests;
