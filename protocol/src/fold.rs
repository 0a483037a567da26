//! Turns a run's events into its state, and refuses events that cannot follow. The one place that knows
//! which order of events is legal; journal, status, runner and CLI all read the state it makes.

mod calls;
mod children;
mod drift;
mod epochs;
mod grants;
mod inputs;
mod order;
mod steps;

pub use self::children::OpenChild;
pub use self::grants::HeldGrant;
pub use self::order::call_number;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cost::{Cost, Usage};
use crate::digest::Digest;
use crate::elicitation::{InputRequired, Inputs};
use crate::event::{Approver, Ask, EpochEnd, Event, Failure, Limit, ListedOperation, ProposedCall, Record, RunEnd};
use crate::judgement::PolicyRequirement;
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
    /// Of the first claim; milliseconds since the Unix epoch.
    pub started_at: Option<i64>,
    /// When the newest epoch that was claimed ended, or a child that ended after it; likewise.
    pub rested_at: Option<i64>,
    /// Epochs that have ended and may still act on a permit, with the names of their pods.
    pub undead: BTreeMap<u64, String>,
    /// What each tool's server listed to this epoch's runner.
    pub listings: BTreeMap<String, Vec<ListedOperation>>,
    /// When this epoch's runner last said so; milliseconds since the Unix epoch.
    pub listed_at: Option<i64>,
    /// By tool, operations of the plan whose listed definition is not the accepted one, or that were not listed. Whether
    /// the run waits for them is the plan's word: [`RunState::drifted`].
    pub differs: BTreeMap<String, Vec<String>>,
    /// How often this epoch's runner said so, by tool.
    pub listed: BTreeMap<String, u32>,
    pub model: ModelState,
    /// Models of the plan that were given up: the one after them is asked.
    pub models_given_up: usize,
    /// Attempts of the coming step that went to models since given up.
    pub attempts_given_up: u32,
    /// Calls of the newest response, by call id.
    pub calls: BTreeMap<String, CallState>,
    /// Calls that any response of the run asked for, so that ids stay unique.
    pub calls_total: u32,
    /// Questions that are open, by the name of their Approval.
    pub asks: BTreeMap<String, OpenAsk>,
    /// Since when people are asked about a call of the newest response, whichever Approval it was.
    pub asked_since: BTreeMap<String, AskedSince>,
    /// Policies under which the newest attempt of a call was permitted, by call id.
    pub ran_under: BTreeMap<String, Vec<String>>,
    /// What people allowed, by call id. Good for that attempt and those bytes alone, and until it runs out.
    pub approved: BTreeMap<String, Approved>,
    /// What people allowed for the rest of the run, by the name of its ApprovalGrant; without what was revoked.
    pub grants: BTreeMap<String, HeldGrant>,
    /// Runs that carry out calls of the newest response, by the name of their AgentRun.
    pub children: BTreeMap<String, OpenChild>,
    /// Runs that this one has started, those that have ended included.
    pub children_total: u32,
    /// What those that have ended used, or may have.
    pub children_spent: Presumed,
    /// What people answered to the questions of a call's server, by call id. It goes with the next attempt.
    pub inputs: BTreeMap<String, Inputs>,
    /// Model requests that were answered.
    pub steps: u32,
    /// Last answers in a row that did not fit the plan's `output_schema`.
    pub misfits: u32,
    pub usage: Usage,
    /// Whether some answer came without the number of its input or output tokens: then `usage` is less than what was used.
    pub uncounted: bool,
    pub cost: Cost,
    /// What requests may have used that ended without a complete answer.
    pub presumed: Presumed,
    /// What answers may have used that came without the number of their input or output tokens.
    pub unreported: Presumed,
    /// Time of ended epochs with a live runner.
    pub active_milliseconds: u64,
    /// Epochs that ended since the run last came forward; and those of them that ended by a crash.
    pub restarts: u32,
    pub crashes: u32,
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
    pub ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub cause: EpochEnd,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
}

/// Counted against limits like what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presumed {
    pub tokens: u64,
    pub cost: Cost,
}

impl Presumed {
    fn plus(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_add(other.tokens), cost: self.cost.plus(other.cost) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAsk {
    pub ask: Ask,
    /// The Approval's, once it exists.
    pub uid: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedSince {
    pub attempt: u32,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
}

/// A call that people said yes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    pub attempt: u32,
    /// The digest of the call.
    pub call: Digest,
    pub requirements: Vec<PolicyRequirement>,
    /// Milliseconds since the Unix epoch.
    pub expires_at: i64,
    pub by: Vec<Approver>,
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

#[derive(Clone, Debug, PartialEq)]
pub enum CallState {
    /// To be proposed with this attempt: the model asked for it, a permit came back unused, or what was sent
    /// before may be sent again.
    Due {
        attempt: u32,
    },
    /// Proposed, undecided: until the gate has its word, or the epoch ends.
    Proposed {
        attempt: u32,
        call: Arc<ProposedCall>,
    },
    /// Not now, said the gate: due again once what held it up is over.
    Later {
        attempt: u32,
        call: Arc<ProposedCall>,
    },
    /// Policies want people's yes before this very call; they are asked since `at`.
    Asked {
        attempt: u32,
        call: Arc<ProposedCall>,
        at: i64,
        requirements: Vec<PolicyRequirement>,
    },
    /// A run of another Agent carries it out since `at`: the one of this name in [`RunState::children`].
    Delegated {
        attempt: u32,
        call: Arc<ProposedCall>,
        at: i64,
        child: String,
    },
    /// A permit is out since `at`: the call may be on the wire.
    Permitted {
        attempt: u32,
        call: Arc<ProposedCall>,
        at: i64,
    },
    /// Nobody knows whether it took effect: people are asked.
    Unknown {
        attempt: u32,
        call: Arc<ProposedCall>,
        at: i64,
        message: String,
    },
    /// Its server wants to know something first, since `at`: people are asked one question after the other.
    InputRequired {
        attempt: u32,
        call: Arc<ProposedCall>,
        at: i64,
        required: Arc<InputRequired>,
        answers: Vec<Option<String>>,
        /// Why the question is asked anew, where it is.
        note: Option<String>,
        /// How often an answer of people could not be sent.
        misfits: u32,
    },
    Settled(Settlement),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    Observed,
    Denied,
    NotSent,
    /// Sent as often as a call may be that can be repeated, and never answered.
    Unanswered,
    /// A person said what became of it.
    Reported,
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

    /// Calls that may be on the wire.
    pub fn calls_in_flight(&self) -> impl Iterator<Item = (&str, u32, &ProposedCall)> {
        self.calls.iter().filter_map(|(id, call)| match call {
            CallState::Permitted { attempt, call, .. } => Some((id.as_str(), *attempt, &**call)),
            CallState::Due { .. }
            | CallState::Proposed { .. }
            | CallState::Later { .. }
            | CallState::Asked { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
            | CallState::Settled(_) => None,
        })
    }

    /// Calls that may have taken effect or not, as far as anybody knows: those on the wire included.
    pub fn calls_unknown(&self) -> impl Iterator<Item = (&str, &ProposedCall)> {
        self.calls.iter().filter_map(|(id, call)| match call {
            CallState::Permitted { call, .. } | CallState::Unknown { call, .. } => Some((id.as_str(), &**call)),
            CallState::Due { .. }
            | CallState::Proposed { .. }
            | CallState::Later { .. }
            | CallState::Asked { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
            | CallState::Settled(_) => None,
        })
    }

    /// The epoch that may append now.
    #[must_use]
    pub fn live_epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref().filter(|epoch| epoch.ended.is_none())
    }

    /// Tokens that count against the limit: used ones, and those that may have been; those of children that have ended
    /// included.
    #[must_use]
    pub fn tokens_spent(&self) -> u64 {
        self.tokens_reported().saturating_add(self.unreported.tokens)
    }

    /// Likewise the cost.
    #[must_use]
    pub fn cost_spent(&self) -> Cost {
        self.cost_reported().plus(self.unreported.cost)
    }

    /// Without what answers may have used that nobody counted.
    fn tokens_reported(&self) -> u64 {
        self.usage.total().saturating_add(self.presumed.tokens).saturating_add(self.children_spent.tokens)
    }

    fn cost_reported(&self) -> Cost {
        self.cost.plus(self.presumed.cost).plus(self.children_spent.cost)
    }

    fn take(&mut self, event: &Event, at: i64) -> Result<(), IllegalEvent> {
        self.check_time(event)?;
        match event {
            Event::RunAccepted { plan, plan_digest } => self.accept(plan, *plan_digest),
            Event::EpochOpened { epoch, pod_name } => self.open_epoch(*epoch, pod_name, at),
            Event::InstanceClaimed { epoch, instance, pod_uid } => self.claim(*epoch, instance, pod_uid, at),
            Event::EpochEnded { epoch, cause, active_milliseconds } => {
                self.end_epoch(*epoch, Ended { cause: *cause, at }, *active_milliseconds)
            }
            Event::EpochDead { epoch, .. } => self.bury(*epoch),
            Event::ToolsListed { tool, listing } => self.list(tool, listing, at),
            Event::ModelRequested { step, attempt, reserved_tokens, .. } => {
                self.request_model(*step, *attempt, *reserved_tokens)
            }
            Event::ModelResponded { step, attempt, response } => self.respond(*step, *attempt, response),
            Event::ModelFailed { step, attempt, failure, reported } => {
                self.fail_model(*step, *attempt, failure, reported.as_ref())
            }
            Event::ModelReplaced { model, by, .. } => self.replace_model(model, by),
            Event::CallProposed { call_id, attempt, call } => self.propose(call_id, *attempt, call),
            Event::CallDecided { call_id, attempt, verdict, judged } => {
                let grants = judged.as_deref().map_or(&[][..], |judged| &judged.grants);
                self.may_use(call_id, verdict, grants)?;
                self.decide(call_id, *attempt, verdict, at)?;
                self.use_grants(grants);
                self.note_judged(call_id, judged.as_deref());
                Ok(())
            }
            Event::PermitReturned { call_id, attempt } => self.return_permit(call_id, *attempt),
            Event::CallObserved { call_id, attempt, .. } => self.observe(call_id, *attempt),
            Event::CallNotSent { call_id, attempt, .. } => self.settle_unsent(call_id, *attempt),
            Event::CallUnknown { call_id, attempt, message } => self.lose(call_id, *attempt, message),
            Event::CallInterrupted { call_id, attempt, .. } => self.interrupt(call_id, *attempt),
            Event::CallInputRequired { call_id, attempt, required, .. } => {
                self.require_input(call_id, *attempt, required, at)
            }
            Event::ChildOpened { call_id, attempt, child } => self.open_child(call_id, *attempt, child),
            Event::ChildPosted { name, uid } => self.post_child(name, uid),
            Event::ChildEnded { call_id, attempt, name, end } => self.end_child((call_id, *attempt), name, end, at),
            Event::AskOpened { ask } => self.ask(ask),
            Event::AskPosted { name, uid } => self.post(name, uid),
            Event::AskSettled { name, answer } => self.settle_ask(name, answer, at),
            Event::DefinitionsAccepted { tool, operations, .. } => self.accept_definitions(tool, operations),
            Event::GrantOpened { grant } => self.open_grant(grant),
            Event::GrantRefused { .. } => Ok(()),
            Event::GrantPosted { name, uid } => self.post_grant(name, uid),
            Event::GrantRevoked { name, .. } => self.revoke_grant(name),
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

    /// What may come at all: nothing before the plan; after the end only what closes what was open; and from a
    /// runner only while its epoch lives. The operator may close calls of an epoch that nobody claimed.
    fn check_time(&self, event: &Event) -> Result<(), IllegalEvent> {
        let name = event.name();
        let closes = matches!(
            event,
            Event::EpochEnded { .. }
                | Event::EpochDead { .. }
                | Event::CallUnknown { .. }
                | Event::CallInterrupted { .. }
        );
        if self.end.is_some() && !closes {
            return Err(IllegalEvent::AfterEnd { event: name });
        }
        if self.plan.is_none() && !matches!(event, Event::RunAccepted { .. } | Event::RunEnded { .. }) {
            return Err(IllegalEvent::BeforeAccepted { event: name });
        }
        let claimed = self.live_epoch().is_some_and(|epoch| epoch.claim.is_some());
        if event.is_runners() && !claimed && !closes {
            return Err(out_of_order(name, "no instance has claimed the epoch"));
        }
        Ok(())
    }

    fn accept(&mut self, plan: &Plan, digest: Digest) -> Result<(), IllegalEvent> {
        if self.plan.is_some() {
            return Err(out_of_order("RunAccepted", "the run was accepted before"));
        }
        self.plan = Some(Arc::new(plan.clone()));
        self.plan_digest = Some(digest);
        Ok(())
    }

    /// The run came forward: what went wrong before counts no more.
    fn come_forward(&mut self) {
        self.restarts = 0;
        self.crashes = 0;
    }
}

fn out_of_order(event: &'static str, why: &'static str) -> IllegalEvent {
    IllegalEvent::OutOfOrder { event, why }
}

fn wrong_call(event: &'static str, call_id: &str, why: &'static str) -> IllegalEvent {
    IllegalEvent::WrongCall { event, call_id: call_id.to_owned(), why }
}
