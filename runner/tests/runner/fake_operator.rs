//! An operator without network or disk: keeps the journal's rules by the protocol's own fold, decides by a
//! script, and remembers every batch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::chain::Head;
use belay_protocol::digest::canonical;
use belay_protocol::event::{
    Artifact, DenyReason, EndReason, Finish, LaterReason, Outcome, ProposedCall, RunEnd, Verdict,
};
use belay_protocol::fold::{CallState, ModelState};
use belay_protocol::{Digest, Event, PERMIT_VALID_MILLISECONDS, Plan, Record, RunState, wire};
use belay_runner::agent_loop::{Agent, Parting, Parts, Progress};
use belay_runner::credential::Credentials;
use belay_runner::models::Model;
use belay_runner::redact::Redactor;
use belay_runner::session::{Append, Keeper, Operator, Order, Wakes, cancel_within, raise, stop_within};
use belay_runner::tools::ToolServer;
use tokio::sync::{mpsc, watch};

use crate::fake_mcp::FakeMcp;

/// How the fake decides.
#[derive(Clone, Default)]
pub struct Script {
    pub denied_operations: BTreeSet<String>,
    /// Asks people about these, who then say yes or no.
    pub asked_operations: BTreeMap<String, People>,
    /// Validity of the first permits; later ones are valid as usual.
    pub permit_milliseconds: VecDeque<u32>,
    /// Gives permits for these bytes instead of the proposed ones.
    pub wrong_digest: bool,
    /// Order the run to stop when this event has been journaled.
    pub stop_on: Option<&'static str>,
    pub grace: Duration,
    /// Order the run to stop once it waits for a definition.
    pub stop_when_drifted: bool,
    /// Order the run to stop when this server has a call in hand, and then let that call end.
    pub stop_when_called: Option<FakeMcp>,
    /// Then cancel the run instead, and let no call end.
    pub cancels: bool,
    /// Deny model requests from this step on.
    pub deny_model_from: Option<u32>,
    pub keeper: FakeKeeper,
}

/// What was kept under which digest.
pub type Kept = (Digest, Vec<u8>);

/// Holds what was kept, or refuses to.
#[derive(Clone, Default)]
pub struct FakeKeeper {
    pub kept: Arc<Mutex<Vec<Kept>>>,
    pub refuses: Option<&'static str>,
    /// Never answers.
    pub hangs: bool,
}

#[async_trait]
impl Keeper for FakeKeeper {
    async fn keep(&self, artifact: &Artifact, bytes: &[u8]) -> Result<(), String> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        if let Some(why) = self.refuses {
            return Err(why.to_owned());
        }
        self.kept.lock().unwrap().push((artifact.digest, bytes.to_vec()));
        Ok(())
    }
}

/// What people say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum People {
    Allow,
    Deny,
}

/// Everything that a run left behind.
#[derive(Debug)]
pub struct Journal {
    pub state: RunState,
    pub batches: Vec<Vec<Event>>,
    pub parting: Parting,
}

impl Journal {
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.batches.iter().flatten()
    }

    /// The names of each batch's events: what rode with what.
    pub fn names(&self) -> Vec<Vec<&'static str>> {
        self.batches.iter().map(|batch| batch.iter().map(Event::name).collect()).collect()
    }

    pub fn end(&self) -> &RunEnd {
        self.state.end.as_ref().expect("the run has ended")
    }
}

struct Fake {
    state: RunState,
    script: Script,
    orders: watch::Sender<Order>,
    wakes: Wakes,
    batches: Vec<Vec<Event>>,
}

/// Decides for a runner in another process.
pub struct Remote {
    appends: mpsc::Sender<Append>,
    seen: watch::Receiver<Order>,
    served: tokio::task::JoinHandle<Fake>,
}

impl Remote {
    pub fn start(plan: &Plan, script: Script) -> Self {
        let (_, progress) = Progress::read(&welcome(plan)).unwrap();
        let (appends, queue) = mpsc::channel(1);
        let (orders, seen) = watch::channel(Order::Go);
        let wakes = Wakes::default();
        let fake = Fake { state: progress.state().clone(), script, orders, wakes, batches: Vec::new() };
        Self { appends, seen, served: tokio::spawn(fake.serve(queue)) }
    }

    pub async fn append(&self, events: Vec<Vec<u8>>) -> wire::Ack {
        let (answer, answered) = tokio::sync::oneshot::channel();
        assert!(self.appends.send(Append { events, answer }).await.is_ok());
        answered.await.unwrap()
    }

    /// Why the run is over, if it is.
    pub fn over(&self) -> Option<String> {
        match &*self.seen.borrow() {
            Order::Leave { reason } => Some(reason.clone()),
            Order::Go | Order::Stop { .. } => None,
        }
    }

    pub async fn journal(self) -> Journal {
        drop(self.appends);
        let fake = self.served.await.unwrap();
        Journal { state: fake.state, batches: fake.batches, parting: Parting::Stopped }
    }
}

/// Runs `plan` to its end with the real loop.
pub async fn run(
    plan: Plan,
    script: Script,
    models: Vec<Box<dyn Model>>,
    servers: Vec<(String, Box<dyn ToolServer>)>,
    credentials: Credentials,
) -> Journal {
    let redactor = Redactor::new(credentials, &plan.credentials);
    let welcome = welcome(&plan);
    let (plan, progress) = Progress::read(&welcome).unwrap();
    let (appends, queue) = mpsc::channel(1);
    let (orders, seen) = watch::channel(Order::Go);
    if let Some(server) = script.stop_when_called.clone() {
        let (orders, grace, cancels) = (orders.clone(), script.grace, script.cancels);
        tokio::spawn(async move {
            server.until_called(1).await;
            if cancels {
                return raise(&orders, cancel_within(grace));
            }
            raise(&orders, stop_within(grace));
            server.release();
        });
    }
    let wakes = Wakes::default();
    let keeper = script.keeper.clone();
    let fake = Fake { state: progress.state().clone(), script, orders, wakes: wakes.clone(), batches: Vec::new() };
    let served = tokio::spawn(fake.serve(queue));
    let keeper = Arc::new(keeper);
    let parts = Parts { models, servers: servers.into_iter().collect(), redactor, keeper };
    let agent = Agent::new(plan, progress, Operator::new(appends, seen, wakes), parts);
    let parting = agent.run().await.unwrap();
    let fake = served.await.unwrap();
    Journal { state: fake.state, batches: fake.batches, parting }
}

/// The Welcome of a run that has just begun.
pub fn welcome(plan: &Plan) -> wire::Welcome {
    let events = [
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan.clone()) },
        Event::EpochOpened { epoch: 1, pod_name: "belay-run-x".into() },
        Event::InstanceClaimed { epoch: 1, instance: "me".into(), pod_uid: "pod-uid".into() },
    ];
    let mut head = Head::empty();
    let mut records = Vec::new();
    for event in events {
        let sealed = head.seal(event, 1000).unwrap();
        head = sealed.head();
        records.push(sealed.bytes);
    }
    wire::Welcome {
        plan: serde_json::to_vec(plan).unwrap(),
        epoch: 1,
        session: 1,
        last_batch: 0,
        records,
        ticket: Vec::new(),
    }
}

impl Fake {
    async fn serve(mut self, mut queue: mpsc::Receiver<Append>) -> Self {
        let mut n = 0;
        while let Some(append) = queue.recv().await {
            n += 1;
            let events: Vec<Event> = append.events.iter().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect();
            let decisions = self.take(&events);
            if self.script.stop_on.is_some_and(|name| events.iter().any(|event| event.name() == name)) {
                raise(&self.orders, stop_within(self.script.grace));
            }
            if self.script.stop_when_drifted && self.state.drifted().next().is_some() {
                raise(&self.orders, stop_within(self.script.grace));
            }
            self.batches.push(events);
            let ack = wire::Ack { n, seq: self.state.seq, hash: vec![0; 32], decisions };
            append.answer.send(ack).unwrap();
            self.let_people_speak();
            if let Some(end) = &self.state.end {
                raise(&self.orders, Order::Leave { reason: format!("{:?}", end.outcome) });
            }
        }
        self
    }

    fn take(&mut self, events: &[Event]) -> Vec<wire::Decision> {
        let mut decisions = Vec::new();
        for event in events {
            assert!(event.is_runners(), "{} is not for a runner to append", event.name());
            assert!(canonical(event).is_ok(), "no journal can hold {event:?}");
            self.apply(event.clone());
            match event {
                Event::ModelRequested { step, attempt, .. } => {
                    let denied = self.script.deny_model_from.is_some_and(|from| *step >= from);
                    decisions.push(decision(
                        format!("m{step}"),
                        *attempt,
                        if denied { None } else { Some((Vec::new(), 0)) },
                    ));
                }
                Event::CallProposed { call_id, attempt, call } => {
                    let verdict = self.judge(call_id, call);
                    let said = self.said(call_id, *attempt, call, &verdict);
                    decisions.push(said);
                    let (call_id, attempt) = (call_id.clone(), *attempt);
                    self.apply(Event::CallDecided { call_id, attempt, verdict, judged: None });
                }
                _ => {}
            }
        }
        if let Some(end) = end_of(&self.state, events) {
            self.apply(Event::RunEnded { end });
        }
        decisions
    }

    fn judge(&self, call_id: &str, call: &ProposedCall) -> Verdict {
        let asked_before = self.batches.iter().flatten().any(|event| match event {
            Event::CallProposed { call_id: id, .. } => id == call_id,
            _ => false,
        });
        let accepted = self.state.plan.as_ref().and_then(|plan| plan.tool(&call.tool)?.operation(&call.operation));
        let changed = accepted.is_some_and(|accepted| accepted.definition != call.definition);
        if changed {
            let message = "another definition was accepted".into();
            Verdict::Denied { reason: DenyReason::DefinitionChanged, message }
        } else if self.script.denied_operations.contains(&call.operation) {
            Verdict::Denied { reason: DenyReason::NotListed, message: "policy says no".into() }
        } else if self.script.asked_operations.contains_key(&call.operation) && !asked_before {
            Verdict::Asked { requirements: vec![] }
        } else if !self.state.has_room(call_id, call) {
            Verdict::Later { reason: LaterReason::CallsUnderWay }
        } else {
            Verdict::Allowed { digest: call.digest }
        }
    }

    fn said(&mut self, call_id: &str, attempt: u32, call: &ProposedCall, verdict: &Verdict) -> wire::Decision {
        use wire::decision::Verdict as Said;
        let said = match verdict {
            Verdict::Denied { message, .. } => Said::Denied(message.clone()),
            Verdict::Asked { .. } => Said::Asked(wire::Asked {}),
            Verdict::Later { .. } => Said::Later(wire::Later {}),
            Verdict::Allowed { .. } => {
                let valid_milliseconds =
                    self.script.permit_milliseconds.pop_front().unwrap_or(PERMIT_VALID_MILLISECONDS);
                let digest = if self.script.wrong_digest { vec![7; 32] } else { call.digest.as_bytes().to_vec() };
                Said::Permit(wire::Permit { digest, valid_milliseconds })
            }
        };
        wire::Decision { subject: call_id.into(), attempt, verdict: Some(said) }
    }

    /// Everyone who is asked answers at once.
    fn let_people_speak(&mut self) {
        use wire::decision::Verdict as Said;
        let asked = self.state.calls.clone().into_iter().filter_map(|(call_id, call)| match call {
            CallState::Asked { attempt, call, .. } => {
                Some((call_id, attempt, self.script.asked_operations[&call.operation]))
            }
            _ => None,
        });
        let asked: Vec<_> = asked.collect();
        let decisions = asked.into_iter().map(|(subject, attempt, people)| {
            let verdict = Some(match people {
                People::Allow => Said::Again(wire::Again {}),
                People::Deny => {
                    let message = "a person said no".to_owned();
                    let verdict = Verdict::Denied { reason: DenyReason::Refused, message: message.clone() };
                    self.apply(Event::CallDecided { call_id: subject.clone(), attempt, verdict, judged: None });
                    Said::Denied(message)
                }
            });
            wire::Decision { subject, attempt, verdict }
        });
        let decisions: Vec<_> = decisions.collect();
        self.wakes.hear(decisions);
    }

    fn apply(&mut self, event: Event) {
        let record = Record { seq: self.state.seq + 1, at: 1000, event };
        self.state.apply(&record).unwrap_or_else(|error| panic!("{error}: {record:?}"));
    }
}

fn decision(subject: String, attempt: u32, permit: Option<(Vec<u8>, u32)>) -> wire::Decision {
    let verdict = match permit {
        Some((digest, valid_milliseconds)) => {
            wire::decision::Verdict::Permit(wire::Permit { digest, valid_milliseconds })
        }
        None => wire::decision::Verdict::Denied("policy says no".into()),
    };
    wire::Decision { subject, attempt, verdict: Some(verdict) }
}

fn end_of(state: &RunState, events: &[Event]) -> Option<RunEnd> {
    let end = |outcome, reason, message: &str| RunEnd { outcome, reason, message: message.into() };
    if let Some(failure) = state.failure.as_ref().filter(|failure| !failure.retrying) {
        let listing = events.iter().any(|event| matches!(event, Event::ToolsListed { .. }));
        let reason = if listing { EndReason::ToolUnavailable } else { EndReason::ModelFailed };
        return Some(end(Outcome::Failed, reason, &failure.message));
    }
    let finish = events.iter().find_map(|event| match event {
        Event::ModelResponded { response, .. } => Some(response.finish),
        _ => None,
    });
    match (state.model, finish) {
        (ModelState::Done, Some(Finish::Length | Finish::ContentFilter)) => {
            Some(end(Outcome::Failed, EndReason::ModelIncomplete, ""))
        }
        (ModelState::Done, _) if state.misfits > 0 => Some(end(Outcome::Failed, EndReason::OutputInvalid, "")),
        (ModelState::Done, _) => Some(end(Outcome::Succeeded, EndReason::Completed, "")),
        _ => None,
    }
}
