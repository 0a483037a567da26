//! Turns a run's events into its state, and refuses events that cannot follow. The one place that knows
//! which order of events is legal; journal, status, runner and CLI all read the state it makes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::CALLS_PER_RESPONSE_MAX;
use crate::cost::{Cost, Usage};
use crate::digest::Digest;
use crate::event::{
    EpochEnd, Event, Failure, Item, Limit, ListedOperation, Listing, ModelResponse, Record, RunEnd, Verdict,
};
use crate::plan::Plan;

/// A run as its journal tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunState {
    pub seq: u64,
    /// Milliseconds since the Unix epoch of the first and of the newest record.
    pub accepted_at: i64,
    pub updated_at: i64,
    pub plan: Option<Arc<Plan>>,
    pub plan_digest: Option<Digest>,
    pub epoch: Option<Epoch>,
    /// What each tool's server listed to this epoch's runner.
    pub listings: BTreeMap<String, Vec<ListedOperation>>,
    pub model: ModelState,
    /// Calls of the newest response, by call id.
    pub calls: BTreeMap<String, CallState>,
    /// Calls that any response of the run asked for, so that ids stay unique.
    pub calls_total: u32,
    /// Model requests that were answered.
    pub steps: u32,
    pub usage: Usage,
    pub cost: Cost,
    /// Text of the newest response; the run's output once it has ended well.
    pub output: Option<String>,
    pub failure: Option<Failure>,
    pub limit: Option<Limit>,
    pub cancel_requested: bool,
    pub end: Option<RunEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub number: u64,
    pub pod_name: String,
    /// Milliseconds since the Unix epoch.
    pub opened_at: i64,
    pub claim: Option<Claim>,
    pub ended: Option<EpochEnd>,
}

/// The one process that may speak for the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub instance: String,
    pub pod_uid: String,
    pub at: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelState {
    /// No request under way; `attempts` of the coming step failed before.
    #[default]
    Idle,
    Failed {
        step: u32,
        attempt: u32,
    },
    InFlight {
        step: u32,
        attempt: u32,
        reserved_tokens: u64,
    },
    /// Answered without a call: nothing is left to do.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallState {
    /// The model asked for it; nothing was proposed yet.
    Requested,
    /// Proposed, undecided: lasts only within one batch.
    Proposed {
        attempt: u32,
        tool: String,
        operation: String,
        digest: Digest,
    },
    /// A permit is out: the call may be on the wire.
    Permitted {
        attempt: u32,
        tool: String,
        operation: String,
    },
    /// The permit came back unused; the call may be proposed again with this attempt.
    Returned {
        attempt: u32,
    },
    Settled(Settlement),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    Observed,
    Denied,
    NotSent,
    Unknown,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IllegalEvent {
    #[error("record {found} where {expected} was due")]
    OutOfSequence { expected: u64, found: u64 },
    #[error("{event} after the run has ended")]
    AfterEnd { event: &'static str },
    #[error("{event} before the run was accepted")]
    BeforeAccepted { event: &'static str },
    #[error("{event} cannot follow: {why}")]
    OutOfOrder { event: &'static str, why: &'static str },
    #[error("{event} names the call {call_id}: {why}")]
    WrongCall { event: &'static str, call_id: String, why: &'static str },
}

impl RunState {
    /// Folds records in order.
    pub fn replay<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<Self, IllegalEvent> {
        let mut state = Self::default();
        for record in records {
            state.apply(record)?;
        }
        Ok(state)
    }

    /// Takes in the next record, or says why it cannot follow; then nothing has changed.
    pub fn apply(&mut self, record: &Record) -> Result<(), IllegalEvent> {
        let expected = self.seq + 1;
        if record.seq != expected {
            return Err(IllegalEvent::OutOfSequence { expected, found: record.seq });
        }
        self.take(&record.event, record.at)?;
        if self.seq == 0 {
            self.accepted_at = record.at;
        }
        self.seq = record.seq;
        self.updated_at = record.at;
        Ok(())
    }

    /// Whether every call of the newest response has come to an end.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.calls.values().all(|call| matches!(call, CallState::Settled(_)))
    }

    /// Calls that may have been sent and whose end is not known.
    pub fn calls_in_flight(&self) -> impl Iterator<Item = (&str, u32)> {
        self.calls.iter().filter_map(|(id, call)| match call {
            CallState::Permitted { attempt, .. } => Some((id.as_str(), *attempt)),
            CallState::Requested | CallState::Proposed { .. } | CallState::Returned { .. } | CallState::Settled(_) => {
                None
            }
        })
    }

    /// The epoch that may append now.
    #[must_use]
    pub fn live_epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref().filter(|epoch| epoch.ended.is_none())
    }

    fn take(&mut self, event: &Event, at: i64) -> Result<(), IllegalEvent> {
        let name = event.name();
        if self.end.is_some() && !matches!(event, Event::EpochEnded { .. } | Event::CallUnknown { .. }) {
            return Err(IllegalEvent::AfterEnd { event: name });
        }
        if self.plan.is_none() && !matches!(event, Event::RunAccepted { .. } | Event::RunEnded { .. }) {
            return Err(IllegalEvent::BeforeAccepted { event: name });
        }
        if event.is_runners() && self.live_epoch().is_none_or(|epoch| epoch.claim.is_none()) && self.end.is_none() {
            // The operator may still close calls of an epoch that ended.
            if !matches!(event, Event::CallUnknown { .. }) {
                return Err(out_of_order(name, "no instance has claimed the epoch"));
            }
        }
        match event {
            Event::RunAccepted { plan, plan_digest } => self.accept(plan, *plan_digest),
            Event::EpochOpened { epoch, pod_name } => self.open_epoch(*epoch, pod_name, at),
            Event::InstanceClaimed { epoch, instance, pod_uid } => self.claim(*epoch, instance, pod_uid, at),
            Event::EpochEnded { epoch, cause } => self.end_epoch(*epoch, *cause),
            Event::ToolsListed { tool, listing } => self.list(tool, listing),
            Event::ModelRequested { step, attempt, reserved_tokens, .. } => {
                self.request_model(*step, *attempt, *reserved_tokens)
            }
            Event::ModelResponded { step, attempt, response } => self.respond(*step, *attempt, response),
            Event::ModelFailed { step, attempt, failure } => self.fail_model(*step, *attempt, failure),
            Event::CallProposed { call_id, attempt, call } => {
                let next = CallState::Proposed {
                    attempt: *attempt,
                    tool: call.tool.clone(),
                    operation: call.operation.clone(),
                    digest: call.digest,
                };
                self.move_call(name, call_id, next, |now| match now {
                    CallState::Requested => *attempt == 1,
                    CallState::Returned { attempt: returned } => attempt == returned,
                    CallState::Proposed { .. } | CallState::Permitted { .. } | CallState::Settled(_) => false,
                })
            }
            Event::CallDecided { call_id, attempt, verdict } => self.decide(call_id, *attempt, verdict),
            Event::PermitReturned { call_id, attempt } => {
                self.move_call(name, call_id, CallState::Returned { attempt: *attempt }, is_permitted(*attempt))
            }
            Event::CallObserved { call_id, attempt, .. } => {
                self.move_call(name, call_id, CallState::Settled(Settlement::Observed), is_permitted(*attempt))
            }
            Event::CallUnknown { call_id, attempt, .. } => {
                self.move_call(name, call_id, CallState::Settled(Settlement::Unknown), is_permitted(*attempt))
            }
            Event::CallNotSent { call_id, .. } => {
                self.move_call(name, call_id, CallState::Settled(Settlement::NotSent), |now| match now {
                    CallState::Requested | CallState::Permitted { .. } | CallState::Returned { .. } => true,
                    CallState::Proposed { .. } | CallState::Settled(_) => false,
                })
            }
            Event::LimitReached { limit } => {
                self.limit = Some(*limit);
                Ok(())
            }
            Event::CancelRequested {} => {
                self.cancel_requested = true;
                Ok(())
            }
            Event::RunEnded { end } => {
                self.end = Some(end.clone());
                Ok(())
            }
        }
    }

    fn accept(&mut self, plan: &Plan, digest: Digest) -> Result<(), IllegalEvent> {
        if self.plan.is_some() {
            return Err(out_of_order("RunAccepted", "the run was accepted before"));
        }
        self.plan = Some(Arc::new(plan.clone()));
        self.plan_digest = Some(digest);
        Ok(())
    }

    fn open_epoch(&mut self, number: u64, pod_name: &str, at: i64) -> Result<(), IllegalEvent> {
        if self.live_epoch().is_some() {
            return Err(out_of_order("EpochOpened", "an epoch is open"));
        }
        if number != self.epoch.as_ref().map_or(0, |epoch| epoch.number) + 1 {
            return Err(out_of_order("EpochOpened", "epochs count up by one"));
        }
        self.listings.clear();
        self.epoch = Some(Epoch { number, pod_name: pod_name.to_owned(), opened_at: at, claim: None, ended: None });
        Ok(())
    }

    fn claim(&mut self, number: u64, instance: &str, pod_uid: &str, at: i64) -> Result<(), IllegalEvent> {
        let epoch = self.epoch.as_mut().filter(|epoch| epoch.number == number && epoch.ended.is_none());
        let epoch = epoch.ok_or(out_of_order("InstanceClaimed", "that epoch is not open"))?;
        if epoch.claim.is_some() {
            return Err(out_of_order("InstanceClaimed", "the epoch was claimed before"));
        }
        epoch.claim = Some(Claim { instance: instance.to_owned(), pod_uid: pod_uid.to_owned(), at });
        Ok(())
    }

    fn end_epoch(&mut self, number: u64, cause: EpochEnd) -> Result<(), IllegalEvent> {
        let epoch = self.epoch.as_mut().filter(|epoch| epoch.number == number && epoch.ended.is_none());
        epoch.ok_or(out_of_order("EpochEnded", "that epoch is not open"))?.ended = Some(cause);
        Ok(())
    }

    fn list(&mut self, tool: &str, listing: &Listing) -> Result<(), IllegalEvent> {
        if self.plan.as_ref().is_none_or(|plan| plan.tool(tool).is_none()) {
            return Err(out_of_order("ToolsListed", "the plan names no such tool"));
        }
        match listing {
            Listing::Listed(operations) => {
                self.listings.insert(tool.to_owned(), operations.clone());
            }
            Listing::Failed(failure) => self.failure = Some(failure.clone()),
        }
        Ok(())
    }

    fn request_model(&mut self, step: u32, attempt: u32, reserved_tokens: u64) -> Result<(), IllegalEvent> {
        let due = match self.model {
            ModelState::Idle => (self.steps + 1, 1),
            ModelState::Failed { step, attempt } => (step, attempt + 1),
            ModelState::InFlight { .. } => return Err(out_of_order("ModelRequested", "a request is in flight")),
            ModelState::Done => return Err(out_of_order("ModelRequested", "the model has given its last answer")),
        };
        if (step, attempt) != due {
            return Err(out_of_order("ModelRequested", "steps and attempts count up by one"));
        }
        if !self.is_settled() {
            return Err(out_of_order("ModelRequested", "calls of the response before are not settled"));
        }
        self.model = ModelState::InFlight { step, attempt, reserved_tokens };
        Ok(())
    }

    fn respond(&mut self, step: u32, attempt: u32, response: &ModelResponse) -> Result<(), IllegalEvent> {
        self.expect_in_flight("ModelResponded", step, attempt)?;
        let mut calls = BTreeMap::new();
        for item in &response.items {
            if let Item::ToolCall { call_id, .. } = item {
                let due = format!("c{}", self.calls_total as usize + calls.len() + 1);
                if *call_id != due || calls.len() >= CALLS_PER_RESPONSE_MAX {
                    return Err(wrong_call("ModelResponded", call_id, "ids count up, and calls are bounded"));
                }
                calls.insert(call_id.clone(), CallState::Requested);
            }
        }
        self.model = if calls.is_empty() { ModelState::Done } else { ModelState::Idle };
        self.calls_total += u32::try_from(calls.len()).unwrap_or(u32::MAX);
        self.calls = calls;
        self.steps = step;
        self.usage = self.usage.plus(&response.usage);
        if let Some(prices) = self.plan.as_ref().and_then(|plan| plan.model.prices) {
            self.cost = self.cost.plus(prices.cost(&response.usage));
        }
        self.output = text_of(response);
        self.failure = None;
        Ok(())
    }

    fn fail_model(&mut self, step: u32, attempt: u32, failure: &Failure) -> Result<(), IllegalEvent> {
        self.expect_in_flight("ModelFailed", step, attempt)?;
        self.model = ModelState::Failed { step, attempt };
        self.failure = Some(failure.clone());
        Ok(())
    }

    fn expect_in_flight(&self, event: &'static str, step: u32, attempt: u32) -> Result<(), IllegalEvent> {
        match self.model {
            ModelState::InFlight { step: s, attempt: a, .. } if (s, a) == (step, attempt) => Ok(()),
            ModelState::InFlight { .. } | ModelState::Idle | ModelState::Failed { .. } | ModelState::Done => {
                Err(out_of_order(event, "no such request is in flight"))
            }
        }
    }

    fn decide(&mut self, call_id: &str, attempt: u32, verdict: &Verdict) -> Result<(), IllegalEvent> {
        let wrong = |why| wrong_call("CallDecided", call_id, why);
        let call = self.calls.get_mut(call_id).ok_or_else(|| wrong("no such call"))?;
        let CallState::Proposed { attempt: proposed, tool, operation, digest } = call else {
            return Err(wrong("it is not proposed"));
        };
        if *proposed != attempt {
            return Err(wrong("another attempt is proposed"));
        }
        *call = match verdict {
            Verdict::Allowed { digest: allowed } if allowed != digest => {
                return Err(wrong("the verdict is for other bytes"));
            }
            Verdict::Allowed { .. } => {
                CallState::Permitted { attempt, tool: std::mem::take(tool), operation: std::mem::take(operation) }
            }
            Verdict::Denied { .. } => CallState::Settled(Settlement::Denied),
        };
        Ok(())
    }

    fn move_call(
        &mut self,
        event: &'static str,
        call_id: &str,
        next: CallState,
        may: impl FnOnce(&CallState) -> bool,
    ) -> Result<(), IllegalEvent> {
        let call = self.calls.get_mut(call_id).ok_or_else(|| wrong_call(event, call_id, "no such call"))?;
        if !may(call) {
            return Err(wrong_call(event, call_id, "its state or attempt does not allow that"));
        }
        *call = next;
        Ok(())
    }
}

fn is_permitted(attempt: u32) -> impl FnOnce(&CallState) -> bool {
    move |now| matches!(now, CallState::Permitted { attempt: permitted, .. } if *permitted == attempt)
}

fn text_of(response: &ModelResponse) -> Option<String> {
    let texts: Vec<&str> = response
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Text { text } => Some(text.as_str()),
            Item::ToolCall { .. } => None,
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join("\n"))
}

fn out_of_order(event: &'static str, why: &'static str) -> IllegalEvent {
    IllegalEvent::OutOfOrder { event, why }
}

fn wrong_call(event: &'static str, call_id: &str, why: &'static str) -> IllegalEvent {
    IllegalEvent::WrongCall { event, call_id: call_id.to_owned(), why }
}
