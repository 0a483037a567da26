//! Runners: each a process that may be dead, frozen, cut off, or of an epoch that is long over without knowing it. What
//! it sends to the operator may be lost on the way, or taken with the answer lost.

use belay_protocol::call::CallBinding;
use belay_protocol::cost::Usage;
use belay_protocol::elicitation::{InputRequired, Inputs, Inquiry, QUESTIONS_PER_CALL_MAX};
use belay_protocol::event::{
    Event, Failure, FailureReason, Finish, Item, ListedOperation, Listing, ModelResponse, ProposedCall, ToolResult,
    Verdict,
};
use belay_protocol::fold::{CallState, ModelState};
use belay_protocol::judgement::{Judged, Judgement, PolicyRequirement};
use belay_protocol::{Digest, PERMIT_VALID_MILLISECONDS};
use serde_json::json;

use super::disk::Taken;
use super::{ASKED, DELEGATED, Fault, Sent, Without, World};
use crate::gate::{Word, Words};
use crate::journal::BatchKey;

/// What a process is in the middle of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// Nothing: the journal says what is next.
    Ready,
    Asking {
        step: u32,
        attempt: u32,
    },
    /// Proposed; the answer is on its way.
    Proposed {
        call_id: String,
        attempt: u32,
        proposed_at: u64,
    },
    Holding {
        call_id: String,
        attempt: u32,
        proposed_at: u64,
    },
    OnTheWire {
        call_id: String,
        attempt: u32,
    },
}

/// A batch that was sent, and whether anybody knows what became of it.
#[derive(Clone, Debug)]
struct Unanswered {
    n: u64,
    events: Vec<Event>,
    next: Phase,
}

#[derive(Clone, Debug)]
pub(super) struct Process {
    pod: String,
    pub epoch: Option<u64>,
    pub alive: bool,
    pub frozen: bool,
    pub connected: bool,
    session: u64,
    next_batch: u64,
    pub phase: Phase,
    unanswered: Option<Unanswered>,
}

impl Process {
    pub(super) fn new(pod: String) -> Self {
        Self {
            pod,
            epoch: None,
            alive: true,
            frozen: false,
            connected: false,
            session: 0,
            next_batch: 1,
            phase: Phase::Ready,
            unanswered: None,
        }
    }
}

/// One call needs people's yes; every other is allowed.
pub(super) fn words(events: &[Event]) -> Words {
    let judge = |call_id: &str| {
        let careful = PolicyRequirement {
            policy: "careful".to_owned(),
            generation: 1,
            quorum: 1,
            separation_of_duty: false,
            expires_after_seconds: 1,
            grants: None,
        };
        let ask = Judgement::Ask { requirements: vec![careful] };
        Judged {
            judgement: if call_id == ASKED { ask } else { Judgement::Allow },
            opinions: Vec::new(),
            grants: Vec::new(),
        }
    };
    let proposals = events.iter().filter_map(|event| match event {
        Event::CallProposed { call_id, attempt, .. } => {
            Some(((call_id.clone(), *attempt), Word::Judged(judge(call_id))))
        }
        _ => None,
    });
    proposals.collect()
}

impl World {
    pub(super) fn run_some_process(&mut self) {
        let Some(at) = self.some_process().filter(|at| !self.processes[*at].frozen) else { return };
        if matches!(self.processes[at].phase, Phase::Holding { .. } | Phase::OnTheWire { .. }) {
            // What needs no operator happens without one.
            return self.use_permit(at);
        }
        if !self.processes[at].connected {
            return self.connect(at);
        }
        if let Some(unanswered) = self.processes[at].unanswered.clone() {
            return self.deliver(at, unanswered);
        }
        self.go_on(at);
    }

    fn is_current(&self, at: usize) -> bool {
        let process = &self.processes[at];
        let live = self.state.live_epoch().filter(|epoch| epoch.pod_name == process.pod);
        self.without == Without::EpochCheck || live.is_some_and(|epoch| Some(epoch.number) == process.epoch)
    }

    /// Hello: the first of an epoch claims it; an epoch that is over lets its runner go.
    fn connect(&mut self, at: usize) {
        let (pod, epoch) = (self.processes[at].pod.clone(), self.processes[at].epoch);
        let live = self.state.live_epoch().filter(|live| live.pod_name == pod).cloned();
        let instance = format!("p{at}");
        let refused = match (&live, epoch) {
            _ if self.state.end.is_some() => true,
            (Some(live), None) => live.claim.as_ref().is_some_and(|claim| claim.instance != instance),
            (Some(live), Some(epoch)) => live.number != epoch,
            (None, _) => self.without != Without::EpochCheck,
        };
        if refused {
            self.note(format!("process {at} is let go"));
            self.processes[at].alive = false;
            return;
        }
        if let (Some(live), None) = (&live, epoch) {
            let claim = Event::InstanceClaimed { epoch: live.number, instance, pod_uid: pod };
            if live.claim.is_none() && !self.append(vec![claim]) {
                return;
            }
            self.processes[at].epoch = Some(live.number);
            self.processes[at].next_batch = 1;
        }
        let session = live.map_or(Some(0), |live| self.raise_session(live.number));
        if let Some(session) = session {
            self.processes[at].session = session;
            self.processes[at].connected = true;
        }
    }

    fn send_batch(&mut self, at: usize, events: Vec<Event>, next: Phase) {
        let n = self.processes[at].next_batch;
        self.processes[at].next_batch += 1;
        let unanswered = Unanswered { n, events, next };
        self.processes[at].unanswered = Some(unanswered.clone());
        self.deliver(at, unanswered);
    }

    /// A batch reaches the operator or not; its answer comes back or not.
    fn deliver(&mut self, at: usize, batch: Unanswered) {
        if self.strikes(Fault::BatchLost) || (self.faults && self.rng.chance(8)) {
            self.processes[at].connected = false;
            return;
        }
        let (epoch, session) = (self.processes[at].epoch.unwrap_or(0), self.processes[at].session);
        let key = BatchKey { epoch, session, n: batch.n };
        let names: Vec<&str> = batch.events.iter().map(Event::name).collect();
        match self.take_batch(key, batch.events.clone()) {
            Taken::Yes => self.note(format!("process {at}: {names:?}")),
            Taken::Cut => {
                self.processes[at].connected = false;
                return;
            }
            Taken::Refused(why) => {
                self.note(format!("process {at}: {names:?} is refused: {why}"));
                self.processes[at].alive = false;
                return;
            }
        }
        if self.strikes(Fault::AnswerLost) || (self.faults && self.rng.chance(8)) {
            // Taken; the answer is lost, and the batch comes again.
            self.processes[at].connected = false;
            return;
        }
        self.processes[at].unanswered = None;
        self.processes[at].phase = batch.next;
    }

    /// The next thing, as the journal tells it.
    fn go_on(&mut self, at: usize) {
        if !self.is_current(at) || self.state.end.is_some() || self.state.cancel_requested {
            self.processes[at].connected = false;
            return;
        }
        match self.processes[at].phase.clone() {
            Phase::Proposed { call_id, attempt, proposed_at } => self.hear(at, call_id, attempt, proposed_at),
            Phase::Asking { step, attempt } => self.answer(at, step, attempt),
            Phase::Ready => self.begin(at),
            Phase::Holding { .. } | Phase::OnTheWire { .. } => self.use_permit(at),
        }
    }

    fn begin(&mut self, at: usize) {
        if self.state.listings.is_empty() {
            let plan = self.state.plan.clone().unwrap();
            let events = plan.tools.iter().map(|tool| {
                let listed = tool.operations.iter();
                let listed = listed.map(|one| ListedOperation { name: one.name.clone(), definition: one.definition });
                Event::ToolsListed { tool: tool.name.clone(), listing: Listing::Listed(listed.collect()) }
            });
            return self.send_batch(at, events.collect(), Phase::Ready);
        }
        let number = |id: &String| id[1..].parse::<u32>().unwrap();
        let over = |call: &CallState| matches!(call, CallState::Settled(_) | CallState::Delegated { .. });
        let open = self.state.calls.iter().filter(|(_, call)| !over(call));
        if let Some((call_id, call)) = open.min_by_key(|(id, _)| number(id)) {
            if let CallState::Due { attempt } | CallState::Later { attempt, .. } = call {
                let (call_id, attempt) = (call_id.clone(), *attempt);
                self.propose(at, call_id, attempt);
            }
            return;
        }
        let due = match self.state.model {
            _ if !self.state.is_settled() => None,
            ModelState::Idle => Some((self.state.steps + 1, 1)),
            ModelState::Failed { step, attempt } => Some((step, attempt + 1)),
            ModelState::InFlight { .. } | ModelState::Done => None,
        };
        if let Some((step, attempt)) = due {
            let request = Event::ModelRequested { step, attempt, request: Digest::zero(), reserved_tokens: 1 };
            self.send_batch(at, vec![request], Phase::Asking { step, attempt });
        }
    }

    fn answer(&mut self, at: usize, step: u32, attempt: u32) {
        let in_flight =
            matches!(self.state.model, ModelState::InFlight { step: s, attempt: a, .. } if (s, a) == (step, attempt));
        if !in_flight {
            self.processes[at].phase = Phase::Ready;
            return;
        }
        let event = if self.faults && self.rng.chance(10) {
            let failure = Failure {
                reason: FailureReason::ServerError,
                message: String::new(),
                retrying: true,
                retry_after_seconds: None,
            };
            Event::ModelFailed { step, attempt, failure, reported: None }
        } else {
            let first = self.state.calls_total + 1;
            let names: &[&str] = match step {
                ..=3 => &["github__put", "github__list_issues"],
                4 => &["helper__run", "github__list_issues"],
                5.. => &[],
            };
            let call = |(offset, name): (usize, &&str)| Item::ToolCall {
                call_id: format!("c{}", first as usize + offset),
                provider_id: "x".to_owned(),
                name: (*name).to_owned(),
                arguments: "{}".to_owned(),
            };
            let items = names.iter().enumerate().map(call).collect();
            let usage = Usage::default();
            let response = ModelResponse::new(items, Finish::Stop, usage, 1);
            Event::ModelResponded { step, attempt, response }
        };
        self.send_batch(at, vec![event], Phase::Ready);
    }

    /// Odd calls may be repeated, even ones may not; and one another run carries out.
    fn operation(call_id: &str) -> &'static str {
        match call_id[1..].parse::<u32>().unwrap() % 2 {
            _ if call_id == DELEGATED => "run",
            1 => "put",
            _ => "list_issues",
        }
    }

    fn propose(&mut self, at: usize, call_id: String, attempt: u32) {
        let plan = self.state.plan.clone().unwrap();
        let tool = plan.tool(if call_id == DELEGATED { "helper" } else { "github" }).unwrap();
        let (operation, args) = (Self::operation(&call_id), json!({"input": call_id}));
        let definition = tool.operation(operation).unwrap().definition;
        let inputs = self.state.inputs.get(&call_id).and_then(|inputs| inputs.digest().unwrap());
        let binding = CallBinding::new(&plan, tool, definition, operation, &args);
        let digest = CallBinding { inputs, ..binding }.digest().unwrap();
        let call = ProposedCall { tool: tool.name.clone(), operation: operation.to_owned(), args, definition, digest };
        let next = Phase::Proposed { call_id: call_id.clone(), attempt, proposed_at: self.now };
        self.send_batch(at, vec![Event::CallProposed { call_id, attempt, call }], next);
    }

    /// The verdict on what it proposed.
    fn hear(&mut self, at: usize, call_id: String, attempt: u32, proposed_at: u64) {
        let permitted =
            matches!(self.state.calls.get(&call_id), Some(CallState::Permitted { attempt: a, .. }) if *a == attempt);
        let ours = self.records.iter().rev().find_map(|(_, event)| match event {
            Event::CallDecided { call_id: id, attempt: a, verdict, .. } if *id == call_id && *a == attempt => {
                Some(verdict)
            }
            _ => None,
        });
        self.processes[at].phase = if permitted && matches!(ours, Some(Verdict::Allowed { .. })) {
            Phase::Holding { call_id, attempt, proposed_at }
        } else {
            Phase::Ready
        };
    }

    /// Some calls come back with a question, even after an answer; as often as they may.
    fn wants_input(&mut self, call_id: &str) -> bool {
        let asked = self.state.inputs.get(call_id).map_or(0, Inputs::questions);
        self.faults && asked < QUESTIONS_PER_CALL_MAX && self.rng.chance(5)
    }

    /// Sends if the permit still holds, by the clock of its node; then the answer comes, or does not.
    fn use_permit(&mut self, at: usize) {
        match self.processes[at].phase.clone() {
            Phase::Holding { call_id, attempt, proposed_at } => {
                let valid = self.now < proposed_at + u64::from(PERMIT_VALID_MILLISECONDS);
                if valid {
                    let epoch = self.processes[at].epoch.unwrap();
                    self.note(format!("process {at} sends {call_id} attempt {attempt}"));
                    let after = self.records.len();
                    self.sent.push(Sent { call_id: call_id.clone(), attempt, epoch, after });
                    self.processes[at].phase = Phase::OnTheWire { call_id, attempt };
                } else if let Some(unanswered) =
                    self.processes[at].unanswered.clone().filter(|_| self.processes[at].connected)
                {
                    self.deliver(at, unanswered);
                } else if self.processes[at].connected {
                    self.send_batch(at, vec![Event::PermitReturned { call_id, attempt }], Phase::Ready);
                } else {
                    self.connect(at);
                }
            }
            Phase::OnTheWire { call_id, attempt } => {
                if !self.processes[at].connected {
                    return self.connect(at);
                }
                if let Some(unanswered) = self.processes[at].unanswered.clone() {
                    return self.deliver(at, unanswered);
                }
                let lost = self.faults && self.rng.chance(6);
                let message = "no answer".to_owned();
                let event = match (lost, Self::operation(&call_id)) {
                    (true, "put") => Event::CallInterrupted { call_id, attempt, message },
                    (true, _) => Event::CallUnknown { call_id, attempt, message },
                    (false, _) if self.wants_input(&call_id) => {
                        let inquiry = Inquiry::Url { message: "open it".into(), url: "https://x.example".into() };
                        let required = Box::new(InputRequired::in_call(vec![inquiry], "not yet"));
                        Event::CallInputRequired { call_id, attempt, required, milliseconds: 1 }
                    }
                    (false, _) => {
                        let result = ToolResult {
                            is_error: false,
                            content: "ok".into(),
                            truncated_from_bytes: None,
                            artifacts: Vec::new(),
                        };
                        Event::CallObserved { call_id, attempt, result, milliseconds: 1 }
                    }
                };
                self.send_batch(at, vec![event], Phase::Ready);
            }
            Phase::Ready | Phase::Asking { .. } | Phase::Proposed { .. } => {}
        }
    }
}
