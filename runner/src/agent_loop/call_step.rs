//! Tool calls: read from the model's words, proposed together, and each, with a permit, sent once.

use std::collections::BTreeMap;
use std::time::Duration;

use belay_protocol::call::CallBinding;
use belay_protocol::digest::DigestError;
use belay_protocol::event::{NotSentReason, ProposedCall};
use belay_protocol::fold::CallState;
use belay_protocol::plan::{Effects, PlanOperation, PlanTool};
use belay_protocol::{BATCH_BYTES_MAX, Digest, Event};
use serde_json::{Map, Value};

use super::flights::{Flight, Landed};
use super::next::Due;
use super::progress::Requested;
use super::{Agent, Halt};
use crate::egress::{not_sent, piece};
use crate::log::CallOutcome;
use crate::permit::{Decided, Permit, Verdict, Woken, WokenWord};
use crate::session::Order;
use crate::tools::{Call, ListError, Outcome};

/// After that many permits that ran out unsent, the server counts as out of reach.
const PERMITS_RETURNED_MAX: u32 = 3;

/// A proposal has to fit into one batch, with its names and digests. The model's words may be shorter than what they
/// stand for: `1e9` is written out.
const ARGUMENTS_BYTES_MAX: usize = BATCH_BYTES_MAX - 8192;

/// The model's own words for a tool may be as long as its whole answer.
const NAME_BYTES_SHOWN: usize = 128;

/// A call that can be proposed.
pub(super) struct Bound {
    pub tool: String,
    pub call: Call,
    digest: Digest,
    pub timeout: Duration,
    effects: Effects,
}

impl Bound {
    pub fn may_repeat(&self) -> bool {
        self.effects.may_repeat()
    }

    fn proposal(&self) -> ProposedCall {
        ProposedCall {
            tool: self.tool.clone(),
            operation: self.call.operation.clone(),
            args: Value::Object(self.call.arguments.clone()),
            definition: self.call.definition,
            digest: self.digest,
        }
    }
}

enum Prepared {
    Ready,
    Failed(ListError),
    /// No request could carry the call's arguments.
    Misfit(String),
    Stopped,
}

/// A call that cannot even be proposed.
struct NotSent {
    reason: NotSentReason,
    message: String,
}

impl Agent {
    /// Proposes what is due, all in one batch, and lets off what was permitted. Servers that may offer something else by
    /// now are asked first: calls are judged by what they offer.
    pub(super) async fn propose(&mut self, due: Vec<Due>) -> Result<(), Halt> {
        let unlisted = self.list_again(&due).await?;
        if self.progress.state().drifted().next().is_some() {
            return Ok(()); // the run waits, and the operator is told why
        }
        let mut proposed = Vec::with_capacity(due.len());
        for Due { call_id, attempt } in due {
            match self.fitting(&call_id) {
                Err(NotSent { reason, message }) => self.settle_unsent(&call_id, attempt, reason, message)?,
                Ok(bound) => match self.prepare(&bound, &unlisted).await {
                    Prepared::Ready => {
                        let call = bound.proposal();
                        self.record(Event::CallProposed { call_id: call_id.clone(), attempt, call })?;
                        proposed.push((call_id, attempt, bound));
                    }
                    Prepared::Failed(ListError { reason, message }) => {
                        self.settle_unsent(&call_id, attempt, not_sent(reason), message)?;
                    }
                    Prepared::Misfit(message) => {
                        self.settle_unsent(&call_id, attempt, NotSentReason::MalformedArguments, message)?;
                    }
                    Prepared::Stopped => break,
                },
            }
        }
        // What was not even proposed rides with the next batch.
        let mut decisions = if proposed.is_empty() { Vec::new() } else { self.flush().await? };
        for (call_id, attempt, bound) in proposed {
            let verdict = decision_for(&mut decisions, &call_id, attempt);
            self.obey(call_id, attempt, bound, verdict)?;
        }
        Ok(())
    }

    /// A conversation is opened before a permit runs, so that none is spent on waiting for it. Nothing is sent to a server
    /// of which it is not known what it offers.
    async fn prepare(&self, Bound { tool, call, .. }: &Bound, unlisted: &BTreeMap<String, ListError>) -> Prepared {
        if let Some(error) = unlisted.get(tool) {
            return Prepared::Failed(error.clone());
        }
        let Some(server) = self.servers.get(tool) else { return Prepared::Ready };
        // One that is busy with a call has its conversation.
        let Ok(mut server) = server.try_lock() else { return Prepared::Ready };
        tokio::select! {
            prepared = server.prepare() => match prepared {
                Ok(()) => server.misfit(call).map_or(Prepared::Ready, Prepared::Misfit),
                Err(error) => Prepared::Failed(error),
            },
            () = self.operator.stopped() => Prepared::Stopped,
        }
    }

    fn obey(&mut self, call_id: String, attempt: u32, bound: Bound, verdict: Verdict) -> Result<(), Halt> {
        match verdict {
            Verdict::Call(permit) => self.send(call_id, attempt, bound, permit),
            Verdict::Denied(message) => {
                self.log_call(&bound.tool, &bound.call.operation, CallOutcome::Denied, 0);
                Ok(self.progress.deny(&call_id, attempt, message)?)
            }
            Verdict::Asked => {
                self.log_call(&bound.tool, &bound.call.operation, CallOutcome::Asked, 0);
                self.progress.wait_for_people(&call_id, attempt)?;
                self.parked.insert(call_id);
                Ok(())
            }
            Verdict::Later => {
                self.progress.wait(&call_id, attempt)?;
                self.parked.insert(call_id);
                Ok(())
            }
            Verdict::Model(_) => {
                let message = "the operator's permit names no digest".to_owned();
                Ok(self.progress.deny(&call_id, attempt, message)?)
            }
        }
    }

    fn send(&mut self, call_id: String, attempt: u32, bound: Bound, permit: Permit) -> Result<(), Halt> {
        self.progress.allow(&call_id, attempt, permit.digest())?;
        let server = self.servers.get(&bound.tool).cloned();
        match server.filter(|_| self.operator.order() == Order::Go) {
            Some(server) => {
                let step = self.progress.state().steps;
                let flight = Flight { step, call_id, attempt, bound };
                self.flights.take_off(flight, server, permit, self.operator.orders());
                Ok(())
            }
            None => self.record(Event::PermitReturned { call_id, attempt }),
        }
    }

    /// Takes in what became of a call; what waited for it may go now.
    pub(super) fn land(&mut self, landed: Landed) -> Result<(), Halt> {
        let Landed { flight: Flight { call_id, attempt, bound, .. }, outcome, milliseconds } = landed;
        self.report(call_id, attempt, &bound, outcome, milliseconds)?;
        let state = self.progress.state();
        self.parked.retain(|call_id| !matches!(state.calls.get(call_id), Some(CallState::Later { .. })));
        Ok(())
    }

    /// What the operator said by itself about calls that wait.
    pub(super) fn wake(&mut self, woken: Vec<Woken>) -> Result<(), Halt> {
        for Woken { call_id, attempt, word } in woken {
            match (self.progress.state().calls.get(&call_id), word) {
                (Some(CallState::Asked { attempt: held, .. }), WokenWord::Denied(message)) if *held == attempt => {
                    self.parked.remove(&call_id);
                    self.progress.deny(&call_id, attempt, message)?;
                }
                (
                    Some(CallState::Asked { attempt: held, .. } | CallState::Later { attempt: held, .. }),
                    WokenWord::Again,
                ) if *held == attempt => {
                    self.parked.remove(&call_id);
                }
                // It was told about something that this process knows already, or never proposed.
                (_, WokenWord::Again | WokenWord::Denied(_)) => {}
            }
        }
        Ok(())
    }

    fn report(
        &mut self,
        call_id: String,
        attempt: u32,
        bound: &Bound,
        outcome: Outcome,
        milliseconds: u64,
    ) -> Result<(), Halt> {
        let (logged, event) = match outcome {
            Outcome::Observed(result) => (
                if result.is_error { CallOutcome::ToolError } else { CallOutcome::Observed },
                Event::CallObserved { call_id, attempt, result, milliseconds },
            ),
            Outcome::InputRequired(required) => {
                let required = Box::new(required);
                (CallOutcome::InputRequired, Event::CallInputRequired { call_id, attempt, required, milliseconds })
            }
            Outcome::Unknown { message } if bound.effects.may_repeat() => {
                (CallOutcome::Interrupted, Event::CallInterrupted { call_id, attempt, message })
            }
            Outcome::Unknown { message } => (CallOutcome::Unknown, Event::CallUnknown { call_id, attempt, message }),
            Outcome::NotSent { reason, message } => {
                (CallOutcome::NotSent(reason), Event::CallNotSent { call_id, attempt, reason, message })
            }
            Outcome::PermitExpired if self.returned(&call_id) >= PERMITS_RETURNED_MAX => {
                let reason = NotSentReason::Unreachable;
                let message = format!("no permit for {} could be used before it ran out", bound.tool);
                (CallOutcome::NotSent(reason), Event::CallNotSent { call_id, attempt, reason, message })
            }
            Outcome::PermitExpired => {
                *self.permits_returned.entry(call_id.clone()).or_default() += 1;
                return self.record(Event::PermitReturned { call_id, attempt });
            }
        };
        self.log_call(&bound.tool, &bound.call.operation, logged, milliseconds);
        self.record(event)
    }

    fn returned(&self, call_id: &str) -> u32 {
        self.permits_returned.get(call_id).copied().unwrap_or_default()
    }

    /// Reads the model's words as a call of the plan, or says what is wrong with them.
    fn bind(&self, call_id: &str) -> Result<Bound, NotSent> {
        let Some(Requested { name, arguments, was_cut }) = self.progress.requested(call_id) else {
            return Err(malformed("the newest answer holds no such call".to_owned()));
        };
        let unknown = || NotSent {
            reason: NotSentReason::UnknownTool,
            message: format!(
                "there is no tool {:?}: use one of the tools that were offered",
                piece(&name, NAME_BYTES_SHOWN)
            ),
        };
        let (tool, operation, accepted) = self.meant(&name).ok_or_else(unknown)?;
        let arguments = self.read_arguments(&arguments, was_cut)?;
        // What is not listed any more has no definition to bind: the accepted one lets the gate say no.
        let listed = self.progress.state().listings.get(&tool.name).into_iter().flatten();
        let listed = listed.into_iter().find(|listed| listed.name == operation);
        let definition = listed.map_or(accepted, |listed| listed.definition);
        let args = Value::Object(arguments);
        let inputs = self.progress.state().inputs.get(call_id).cloned().unwrap_or_default();
        let binding = CallBinding::new(&self.plan, tool, definition, &operation, &args);
        let digest = inputs.digest().and_then(|inputs| CallBinding { inputs, ..binding }.digest());
        let digest = digest.map_err(|error| inexact(&error))?;
        let Value::Object(arguments) = args else { return Err(unknown()) };
        let effects = self.plan.effects(&tool.name, &operation);
        Ok(Bound {
            tool: tool.name.clone(),
            call: Call {
                operation,
                arguments,
                definition,
                key: effects.may_repeat().then(|| self.key(call_id, inputs.rounds.len())),
                inputs,
            },
            digest,
            effects,
            timeout: Duration::from_secs(u64::from(tool.call_timeout_seconds)),
        })
    }

    /// A call as [`Self::bind`] reads it, whose arguments fit the definition that the model was shown. What it was not
    /// shown, the gate denies.
    fn fitting(&mut self, call_id: &str) -> Result<Bound, NotSent> {
        let bound = self.bind(call_id)?;
        let planned = self.plan.tool(&bound.tool).and_then(|tool| tool.operation(&bound.call.operation));
        let shown =
            |planned: &PlanOperation| self.offered.iter().flatten().find(|offered| offered.name == planned.model_name);
        if let Some(offered) = planned.and_then(shown) {
            let arguments = Value::Object(bound.call.arguments.clone());
            self.schemas.check(offered, &arguments).map_err(malformed)?;
        }
        Ok(bound)
    }

    /// The same for every attempt of a call with the same answers of people, and never another's.
    fn key(&self, call_id: &str, rounds: usize) -> String {
        let key = format!("{}/{call_id}", self.plan.run.uid);
        if rounds == 0 { key } else { format!("{key}/{rounds}") }
    }

    /// The tool and operation that the model means, with the definition that was accepted. An operation that
    /// the Agent does not list is proposed as well: that it is denied belongs into the journal.
    pub(super) fn meant(&self, name: &str) -> Option<(&PlanTool, String, Digest)> {
        if let Some((tool, operation)) = self.plan.by_model_name(name) {
            return Some((tool, operation.name.clone(), operation.definition));
        }
        let (tool, operation) = name.split_once("__")?;
        Some((self.plan.tool(tool)?, operation.to_owned(), Digest::zero()))
    }

    fn read_arguments(&self, arguments: &str, was_cut: bool) -> Result<Map<String, Value>, NotSent> {
        if was_cut {
            return Err(malformed("the answer was cut at the output limit, perhaps within these arguments".to_owned()));
        }
        if let Some(credential) = self.redactor.marked(arguments) {
            return Err(malformed(format!(
                "the arguments held the value of credential {credential}: leave it out, it is added where it belongs"
            )));
        }
        // What several servers send for a call without arguments.
        if arguments.trim().is_empty() {
            return Ok(Map::new());
        }
        let read: Map<String, Value> = serde_json::from_str(arguments)
            .map_err(|error| malformed(format!("the arguments are not a JSON object: {error}")))?;
        let bytes = serde_json::to_vec(&read).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > ARGUMENTS_BYTES_MAX {
            return Err(malformed(format!(
                "the arguments come to {bytes} bytes, and a call holds {ARGUMENTS_BYTES_MAX}: call it with less at a time"
            )));
        }
        Ok(read)
    }

    fn settle_unsent(
        &mut self,
        call_id: &str,
        attempt: u32,
        reason: NotSentReason,
        message: String,
    ) -> Result<(), Halt> {
        let name = self.progress.requested(call_id).map_or_else(String::new, |requested| requested.name);
        match self.meant(&name) {
            Some((tool, operation, _)) => {
                let tool = tool.name.clone();
                self.log_call(&tool, &operation, CallOutcome::NotSent(reason), 0);
            }
            None => self.log_call("?", &name, CallOutcome::NotSent(reason), 0),
        }
        self.record(Event::CallNotSent { call_id: call_id.to_owned(), attempt, reason, message })
    }

    fn log_call(&self, tool: &str, operation: &str, outcome: CallOutcome, milliseconds: u64) {
        self.log.call(self.progress.state().steps, tool, operation, outcome, milliseconds);
    }
}

fn malformed(message: String) -> NotSent {
    NotSent { reason: NotSentReason::MalformedArguments, message }
}

fn inexact(error: &DigestError) -> NotSent {
    malformed(format!("the arguments have no exact canonical form: {error}"))
}

/// The operator's word on this very attempt. Silence is a no.
fn decision_for(decisions: &mut Vec<Decided>, call_id: &str, attempt: u32) -> Verdict {
    let ours = decisions.iter().position(|decided| decided.subject == call_id && decided.attempt == attempt);
    match ours {
        Some(at) => decisions.swap_remove(at).verdict,
        None => Verdict::Denied("the operator gave no decision".to_owned()),
    }
}
