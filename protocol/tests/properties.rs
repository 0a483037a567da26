//! What holds for every sequence of events, legal or not: random walks through the fold, checked against
//! the log of what it accepted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use belay_protocol::call::definition_digest;
use belay_protocol::cost::{Cost, Prices, Usage};
use belay_protocol::elicitation::{InputRequired, Inquiry};
use belay_protocol::event::{
    AcceptedDefinition, Answer, Ask, AskPurpose, Child, ChildEnd, DeathProof, DenyReason, EndReason, EpochEnd, Failure,
    FailureReason, Finish, Item, LaterReason, Limit, ListedOperation, Listing, ModelResponse, NotSentReason, Outcome,
    ProposedCall, Record, RunEnd, ToolResult, Verdict,
};
use belay_protocol::fold::{CallState, ModelState};
use belay_protocol::plan::{
    Effects, Limits, ModelApi, ObjectId, OnDrift, PLAN_VERSION, PlanAgent, PlanModel, PlanOperation, PlanTool, Timeouts,
};
use belay_protocol::trace::{Span, What, spans};
use belay_protocol::transcript::Transcript;
use belay_protocol::{Digest, Event, Plan, RunState};
use proptest::prelude::*;
use serde_json::json;

/// One turn of a walk: which event to try, at which call, and whether its details fit the state.
#[derive(Clone, Copy, Debug)]
struct Turn {
    event: u8,
    call: u8,
    fits: bool,
    /// Whether it takes one of the events that are due in place of its own.
    led: bool,
}

/// How many kinds of turns there are.
const EVENTS: u8 = 24;
/// What the run may use: little enough that some walks use it up.
const TOKENS: u64 = 1000;
const MICRO_USD: u64 = 1500;

/// A walk: what the fold accepted, and the state after each acceptance.
struct Walk {
    accepted: Vec<Record>,
    states: Vec<RunState>,
}

fn plan() -> Plan {
    let id = |name: &str| ObjectId { namespace: "team".into(), name: name.into(), uid: format!("{name}-uid") };
    let model = PlanModel {
        name: "script".into(),
        api: ModelApi::Scripted,
        provider: None,
        model: "script".into(),
        base_url: None,
        ca: None,
        credential: None,
        context_window_tokens: None,
        max_output_tokens: None,
        temperature: None,
        prices: Some(Prices { input: 1_000_000, cached_input: None, cache_write: None, output: 2_000_000 }),
        timeouts: Timeouts::default(),
        reasoning: None,
        headers: Vec::new(),
        script: Vec::new(),
    };
    Plan {
        version: PLAN_VERSION,
        run: id("run"),
        agent: id("agent"),
        agent_generation: 1,
        requested_by: None,
        instructions: String::new(),
        input: "go".into(),
        fallbacks: vec![PlanModel { name: "spare".into(), ..model.clone() }],
        model,
        tools: vec![server(), subagent()],
        credentials: Vec::new(),
        policies: Vec::new(),
        agent_policies: Vec::new(),
        inherited_policies: Vec::new(),
        private_hosts: Vec::new(),
        limits: limits(Some(TOKENS), Some(MICRO_USD)),
        output_schema: None,
        parent: None,
    }
}

fn limits(tokens: Option<u64>, cost_micro_usd: Option<u64>) -> Limits {
    Limits { steps: 50, tokens, cost_micro_usd, active_seconds: 60, wait_seconds: 60 }
}

fn server() -> PlanTool {
    PlanTool {
        name: "tool".into(),
        uid: "tool-uid".into(),
        url: "http://tool/mcp".into(),
        ca: None,
        http: None,
        credential: None,
        call_timeout_seconds: 60,
        policies: Vec::new(),
        on_drift: OnDrift::Wait,
        agent: None,
        operations: vec![
            operation("tool", "do", Effects::NonIdempotent),
            operation("tool", "put", Effects::Idempotent),
        ],
    }
}

/// A tool whose calls other runs carry out.
fn subagent() -> PlanTool {
    let agent =
        PlanAgent { name: "helper".into(), description: String::new(), limits: limits(None, None), priced: true };
    PlanTool {
        name: "helper".into(),
        uid: "helper-uid".into(),
        url: "agent/helper".into(),
        agent: Some(agent),
        operations: vec![operation("helper", "run", Effects::NonIdempotent)],
        ..server()
    }
}

fn operation(tool: &str, name: &str, effects: Effects) -> PlanOperation {
    PlanOperation {
        name: name.into(),
        model_name: format!("{tool}__{name}"),
        definition: definition_digest(name, "", &json!({})).unwrap(),
        effects,
        gone: false,
    }
}

fn failure(retrying: bool) -> Failure {
    Failure { reason: FailureReason::ServerError, message: "no".into(), retrying, retry_after_seconds: None }
}

/// The event of a turn; where it fits, its numbers are those that are due.
fn event(turn: Turn, state: &RunState) -> Event {
    let off = u32::from(!turn.fits);
    let epoch = state.epoch.as_ref().map_or(0, |epoch| epoch.number) + u64::from(off);
    let (step, attempt) = match state.model {
        ModelState::InFlight { step, attempt, .. } => (step + off, attempt),
        ModelState::Failed { step, attempt } => (step, attempt + 1 + off),
        ModelState::Idle | ModelState::Done => (state.steps + 1 + off, 1),
    };
    let (call_id, attempt_of_call) = a_call(turn, state);
    let call_digest = Digest::of(call_id.as_bytes());
    match turn.event % EVENTS {
        0 => Event::RunAccepted { plan_digest: Digest::zero(), plan: Box::new(plan()) },
        1 => Event::EpochOpened { epoch: epoch + 1, pod_name: "pod".into() },
        2 => Event::InstanceClaimed { epoch, instance: "me".into(), pod_uid: "uid".into() },
        3 => {
            let operation = ListedOperation { name: "do".into(), definition: Digest::zero() };
            let tool = if turn.fits { "tool" } else { "other" };
            Event::ToolsListed { tool: tool.into(), listing: Listing::Listed(vec![operation]) }
        }
        4 => Event::ModelRequested { step, attempt, request: Digest::zero(), reserved_tokens: 10 },
        5 | 6 => Event::ModelResponded { step, attempt, response: response(turn, state) },
        7 => {
            let reported = turn.call.is_multiple_of(3).then(Usage::default);
            Event::ModelFailed { step, attempt, failure: failure(turn.call.is_multiple_of(2)), reported }
        }
        8 => Event::CallProposed { call_id, attempt: attempt_of_call, call: a_proposal(turn, call_digest) },
        9 | 10 => {
            let digest = if turn.fits { call_digest } else { Digest::zero() };
            let verdict = if turn.call.is_multiple_of(5) {
                Verdict::Asked { requirements: vec![] }
            } else if turn.call.is_multiple_of(7) {
                Verdict::Later { reason: LaterReason::CallsUnderWay }
            } else if turn.call.is_multiple_of(3) {
                Verdict::Denied { reason: DenyReason::NotListed, message: "no".into() }
            } else {
                Verdict::Allowed { digest }
            };
            Event::CallDecided { call_id, attempt: attempt_of_call, verdict, judged: None }
        }
        11 => Event::PermitReturned { call_id, attempt: attempt_of_call },
        12 if turn.call.is_multiple_of(3) => {
            let inquiry = Inquiry::Url { message: "open".into(), url: "https://x.example".into() };
            let questions = vec![inquiry; usize::from(turn.call % 4)];
            let required = Box::new(InputRequired::in_call(questions, "later"));
            Event::CallInputRequired { call_id, attempt: attempt_of_call, required, milliseconds: 1 }
        }
        12 => {
            let result =
                ToolResult { is_error: false, content: "ok".into(), truncated_from_bytes: None, artifacts: Vec::new() };
            Event::CallObserved { call_id, attempt: attempt_of_call, result, milliseconds: 1 }
        }
        13 => Event::CallNotSent {
            call_id,
            attempt: attempt_of_call,
            reason: NotSentReason::Unreachable,
            message: "no".into(),
        },
        14 if turn.call.is_multiple_of(2) => {
            Event::CallUnknown { call_id, attempt: attempt_of_call, message: "?".into() }
        }
        14 => Event::CallInterrupted { call_id, attempt: attempt_of_call, message: "?".into() },
        15 => Event::AskOpened { ask: an_open_ask(turn, state, call_id, attempt_of_call) },
        16 => Event::AskPosted { name: an_ask(turn, state), uid: "approval-uid".into() },
        17 => Event::AskSettled { name: an_ask(turn, state), answer: answer(turn.call) },
        18 => Event::ChildOpened { child: a_new_child(turn, state, &call_id), call_id, attempt: attempt_of_call },
        19 => Event::ChildPosted { name: a_child(turn, state).0, uid: "child-uid".into() },
        20 => child_ended(turn, state),
        21 => Event::EpochDead {
            epoch: state.undead.keys().next().copied().unwrap_or(epoch) + u64::from(off),
            proof: DeathProof::Reported,
        },
        22 => match turn.call % 8 {
            0 => Event::RunEnded {
                end: RunEnd {
                    outcome: Outcome::Failed,
                    reason: EndReason::Cancelled,
                    message: format!("{}", turn.call),
                },
            },
            1 => Event::EpochEnded { epoch, cause: EpochEnd::Exited, active_milliseconds: 5 },
            2 | 3 => Event::CancelRequested {},
            6 => {
                let definition = turn.fits.then(Digest::zero);
                let operations = vec![AcceptedDefinition { name: "do".into(), definition }];
                Event::DefinitionsAccepted { tool: "tool".into(), operations, approval: None }
            }
            4 | 5 => {
                let (model, by) = if turn.fits { ("script", "spare") } else { ("spare", "script") };
                let because = FailureReason::ServerError;
                Event::ModelReplaced { model: model.into(), by: by.into(), because }
            }
            _ => Event::LimitReached { limit: Limit::Steps },
        },
        _ => Event::CancelRequested {},
    }
}

/// Half of the calls are an Agent's.
fn a_proposal(turn: Turn, digest: Digest) -> ProposedCall {
    let operations = [("tool", "do"), ("tool", "put"), ("helper", "run"), ("helper", "run")];
    let (tool, operation) = operations[usize::from(turn.call / 4 % 4)];
    ProposedCall { tool: tool.into(), operation: operation.into(), args: json!({}), definition: Digest::zero(), digest }
}

/// What would bring the run forward, by the numbers of [`event`]: without such a lead few walks get anywhere.
fn due_events(state: &RunState) -> Vec<u8> {
    let of_call = |call: &CallState| match call {
        CallState::Due { .. } | CallState::Later { .. } => vec![8, 8, 8, 13],
        CallState::Proposed { .. } => vec![9],
        CallState::Permitted { call, .. } if call.tool == "helper" => vec![18, 18, 18, 11, 14],
        CallState::Permitted { .. } => vec![11, 12, 12, 12, 13, 14, 14],
        CallState::Asked { .. } | CallState::Unknown { .. } | CallState::InputRequired { .. } => vec![15, 16, 17, 17],
        CallState::Delegated { .. } => vec![19, 20],
        CallState::Settled(_) => Vec::new(),
    };
    let run = match (state.live_epoch(), state.model) {
        (None, _) => 1,
        (Some(epoch), _) if epoch.claim.is_none() => 2,
        (Some(_), ModelState::InFlight { .. }) => 5,
        (Some(_), ModelState::Failed { .. }) => 22,
        (Some(_), ModelState::Idle | ModelState::Done) => 4,
    };
    let dead = state.undead.keys().map(|_| 21);
    state.calls.values().flat_map(of_call).chain([run]).chain(dead).collect()
}

/// What could be asked about that call.
fn an_open_ask(turn: Turn, state: &RunState, call_id: String, attempt: u32) -> Ask {
    let (purpose, call, requirements) = match state.calls.get(&call_id) {
        Some(CallState::Asked { call, requirements, .. }) => {
            (AskPurpose::Call, Some(call.digest), requirements.clone())
        }
        Some(CallState::InputRequired { .. }) => (AskPurpose::Question, None, Vec::new()),
        _ => (AskPurpose::Unknown, None, Vec::new()),
    };
    Ask {
        name: format!("ask-{call_id}-{}", turn.call),
        purpose,
        attempt,
        nonce: String::new(),
        expires_at: 0,
        digest: Digest::zero(),
        call,
        question: state.open_question(&call_id).map(|(number, _)| number + u32::from(!turn.fits)),
        requirements,
        guard: None,
        call_id,
    }
}

/// A run for that call: with what is left or with half of it; seldom with more, without a bound, under a name that another
/// one may have, or of another Agent.
fn a_new_child(turn: Turn, state: &RunState, call_id: &str) -> Child {
    let share = |left: Option<u64>, choice: u8| match choice % 8 {
        0 => left.map(|left| left + 1),
        1 => None,
        2 | 3 => left,
        _ => left.map(|left| left / 2),
    };
    Child {
        name: if turn.call.is_multiple_of(7) { "child".into() } else { format!("child-{call_id}") },
        agent: if turn.call.is_multiple_of(11) { "another" } else { "helper" }.into(),
        limits: limits(share(state.tokens_left(), turn.call), share(state.cost_left(), turn.call / 8)),
    }
}

/// Some child by its name, and the call that it carries out.
fn a_child(turn: Turn, state: &RunState) -> (String, String, u32) {
    let count = state.children.len().max(1);
    let found = state.children.iter().nth(usize::from(turn.call) % count);
    let off = u32::from(!turn.fits);
    found.map(|(name, open)| (name.clone(), open.call_id.clone(), open.attempt + off)).unwrap_or_default()
}

/// It used less than it might, or more by a request.
fn child_ended(turn: Turn, state: &RunState) -> Event {
    let (name, call_id, attempt) = a_child(turn, state);
    let outcome = [None, Some(Outcome::Succeeded), Some(Outcome::Failed), Some(Outcome::Cancelled)];
    let result =
        ToolResult { is_error: false, content: "ok".into(), truncated_from_bytes: None, artifacts: Vec::new() };
    let end = ChildEnd {
        outcome: outcome[usize::from(turn.call % 4)],
        result,
        tokens: u64::from(turn.call),
        cost_micro_usd: u64::from(turn.call) * 2,
    };
    Event::ChildEnded { call_id, attempt, name, end: Box::new(end) }
}

/// Some call of the newest response, mostly one that the event can move, and the attempt that it is at.
fn a_call(turn: Turn, state: &RunState) -> (String, u32) {
    let moves = |call: &CallState| match turn.event % EVENTS {
        8 => matches!(call, CallState::Due { .. } | CallState::Later { .. } | CallState::Asked { .. }),
        9 | 10 => matches!(call, CallState::Proposed { .. }),
        11..=14 => matches!(call, CallState::Permitted { .. }),
        18 => matches!(call, CallState::Permitted { call, .. } if call.tool == "helper"),
        _ => true, // it is about no call, or about what was asked of one
    };
    let any = turn.call.is_multiple_of(8) || !state.calls.values().any(moves);
    let calls: Vec<_> = state.calls.iter().filter(|(_, call)| any || moves(call)).collect();
    let fallback = || (format!("c{}", turn.call), 1);
    let found = calls.get(usize::from(turn.call) % calls.len().max(1));
    let (call_id, attempt) = found.map_or_else(fallback, |(call_id, call)| {
        let attempt = match call {
            CallState::Due { attempt }
            | CallState::Proposed { attempt, .. }
            | CallState::Later { attempt, .. }
            | CallState::Asked { attempt, .. }
            | CallState::Permitted { attempt, .. }
            | CallState::InputRequired { attempt, .. }
            | CallState::Delegated { attempt, .. }
            | CallState::Unknown { attempt, .. } => *attempt,
            CallState::Settled(_) => 1,
        };
        ((*call_id).clone(), attempt)
    });
    (call_id, if turn.fits { attempt } else { attempt + 1 })
}

fn an_ask(turn: Turn, state: &RunState) -> String {
    let count = state.asks.len().max(1);
    state.asks.keys().nth(usize::from(turn.call) % count).cloned().unwrap_or_default()
}

fn answer(choice: u8) -> Answer {
    let by = || "ada".to_owned();
    match choice % 9 {
        8 => Answer::Misfit { why: "no JSON".into() },
        7 => Answer::Answered { content: None, by: vec![] },
        4 => Answer::Allowed { by: vec![] },
        5 => Answer::Denied { by: by(), reason: String::new() },
        6 => Answer::Expired {},
        0 => Answer::Happened { result: "yes".into(), by: by() },
        1 => Answer::Retry { by: by() },
        2 => Answer::End { by: by(), reason: String::new() },
        _ => Answer::Withdrawn { why: "deleted".into() },
    }
}

fn response(turn: Turn, state: &RunState) -> ModelResponse {
    let first = state.calls_total + if turn.fits { 1 } else { 2 };
    let call = |offset: u32| Item::ToolCall {
        call_id: format!("c{}", first + offset),
        provider_id: String::new(),
        name: "tool__do".into(),
        arguments: "{}".into(),
    };
    let usage = Usage { input_tokens: Some(u64::from(turn.call)), output_tokens: Some(1), ..Usage::default() };
    // A last answer comes seldom: nothing follows it.
    let calls = if turn.call.is_multiple_of(16) { 0 } else { 1 + u32::from(turn.call % 3) };
    ModelResponse::new((0..calls).map(call).collect(), Finish::Stop, usage, 1)
}

/// Tries every turn; what is refused must leave the state as it was.
fn walk(turns: &[Turn]) -> Walk {
    let mut state = RunState::default();
    let mut walk = Walk { accepted: Vec::new(), states: vec![state.clone()] };
    let opening = [0, 1, 2].map(|event| Turn { event, call: 0, fits: true, led: false });
    for turn in opening.iter().chain(turns) {
        let due = due_events(&state);
        let led = due.get(usize::from(turn.event) % due.len().max(1)).copied().filter(|_| turn.led);
        let turn = Turn { event: led.unwrap_or(turn.event), ..*turn };
        let record = Record { seq: state.seq + 1, at: 1000 + i64::from(turn.call), event: event(turn, &state) };
        let before = state.clone();
        match state.apply(&record) {
            Ok(()) => {
                walk.accepted.push(record);
                walk.states.push(state.clone());
            }
            Err(_) => assert_eq!(state, before, "a refused event changes nothing: {record:?}"),
        }
    }
    walk
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    // Endings come seldom, or no walk would get far.
    let event = prop_oneof![20 => 3_u8..22, 2 => 22_u8..24, 1 => 0_u8..3];
    let turn = (event, any::<u8>(), prop::bool::weighted(0.9), prop::bool::weighted(0.6));
    prop::collection::vec(turn.prop_map(|(event, call, fits, led)| Turn { event, call, fits, led }), 0..200)
}

/// What a log says of permits, kept without the fold.
#[derive(Default)]
struct Permits {
    out: BTreeMap<String, u32>,
    /// Attempts that may have been sent.
    spent: BTreeSet<(String, u32)>,
    settled: BTreeSet<String>,
    /// Calls that only a person may have sent again, by what was asked about them.
    unknown: BTreeSet<String>,
    /// Calls that policies want people's yes for.
    wanted: BTreeSet<String>,
    /// Calls whose server wants to know something first.
    inquiring: BTreeSet<String>,
    asks: BTreeMap<String, String>,
    /// Calls that other runs carry out, by the child's name.
    delegated: BTreeMap<String, String>,
    undead: BTreeSet<u64>,
}

impl Permits {
    fn follow(&mut self, event: &Event) {
        if let Some(call_id) = call_of(event).filter(|_| !matches!(event, Event::ChildEnded { .. })) {
            assert!(!self.delegated.values().any(|delegated| delegated == call_id), "{call_id} is a run's: {event:?}");
        }
        match event {
            Event::ChildOpened { call_id, attempt, child } => {
                self.spend(call_id, *attempt);
                assert_eq!(self.delegated.insert(child.name.clone(), call_id.clone()), None);
            }
            Event::ChildEnded { call_id, name, .. } => {
                assert_eq!(self.delegated.remove(name).as_ref(), Some(call_id));
                assert!(self.settled.insert(call_id.clone()), "{call_id} was settled");
            }
            Event::CallDecided { call_id, attempt, verdict, .. } => {
                assert!(!self.settled.contains(call_id), "{call_id} was settled");
                match verdict {
                    Verdict::Allowed { .. } => self.permit(call_id, *attempt),
                    Verdict::Denied { .. } => assert!(self.settled.insert(call_id.clone())),
                    Verdict::Asked { .. } => {
                        self.wanted.insert(call_id.clone());
                    }
                    Verdict::Later { .. } => {}
                }
            }
            Event::PermitReturned { call_id, attempt } => assert_eq!(self.out.remove(call_id), Some(*attempt)),
            Event::CallObserved { call_id, attempt, .. } => {
                self.spend(call_id, *attempt);
                assert!(self.settled.insert(call_id.clone()), "{call_id} was settled");
            }
            Event::CallUnknown { call_id, attempt, .. } => {
                self.spend(call_id, *attempt);
                assert!(self.unknown.insert(call_id.clone()));
            }
            Event::CallInterrupted { call_id, attempt, .. } => self.spend(call_id, *attempt),
            Event::CallInputRequired { call_id, attempt, .. } => {
                self.spend(call_id, *attempt);
                self.inquiring.insert(call_id.clone());
            }
            Event::CallNotSent { call_id, .. } => {
                self.out.remove(call_id);
                assert!(self.settled.insert(call_id.clone()), "{call_id} was settled");
            }
            Event::AskOpened { ask } => {
                let about = match ask.purpose {
                    AskPurpose::Call => &self.wanted,
                    AskPurpose::Unknown => &self.unknown,
                    AskPurpose::Question => &self.inquiring,
                };
                assert!(about.contains(&ask.call_id));
                self.asks.insert(ask.name.clone(), ask.call_id.clone());
            }
            Event::AskSettled { name, answer } => {
                let call_id = self.asks.remove(name).unwrap();
                match answer {
                    Answer::Happened { .. } => assert!(self.unknown.remove(&call_id) && self.settled.insert(call_id)),
                    Answer::Retry { .. } => assert!(self.unknown.remove(&call_id)),
                    Answer::Allowed { .. } => assert!(self.wanted.contains(&call_id)),
                    Answer::Denied { .. } | Answer::Expired {} => {
                        assert!(self.wanted.contains(&call_id) || self.inquiring.contains(&call_id));
                    }
                    Answer::Answered { .. } | Answer::Misfit { .. } => assert!(self.inquiring.contains(&call_id)),
                    Answer::End { .. } | Answer::Withdrawn { .. } => {}
                }
            }
            Event::EpochEnded { epoch, .. } => {
                assert!(self.out.is_empty(), "an epoch ended with a permit out");
                self.undead.insert(*epoch);
            }
            Event::EpochDead { epoch, .. } => assert!(self.undead.remove(epoch)),
            Event::ModelRequested { .. } => {
                assert!(self.out.is_empty(), "a permit is out while the model is asked");
                assert!(self.delegated.is_empty(), "a call is a run's while the model is asked");
            }
            _ => {}
        }
    }

    fn permit(&mut self, call_id: &str, attempt: u32) {
        assert!(!self.unknown.contains(call_id), "{call_id} may have happened");
        assert!(!self.spent.contains(&(call_id.to_owned(), attempt)), "{call_id} was sent with attempt {attempt}");
        assert_eq!(self.undead.len(), 0, "an earlier epoch may still act");
        assert_eq!(self.out.insert(call_id.to_owned(), attempt), None);
    }

    fn spend(&mut self, call_id: &str, attempt: u32) {
        assert_eq!(self.out.remove(call_id), Some(attempt), "{call_id} had no permit for that attempt");
        assert!(self.spent.insert((call_id.to_owned(), attempt)));
    }
}

/// The call that an event is about, of those that could move it.
fn call_of(event: &Event) -> Option<&String> {
    match event {
        Event::CallProposed { call_id, .. }
        | Event::CallDecided { call_id, .. }
        | Event::PermitReturned { call_id, .. }
        | Event::CallObserved { call_id, .. }
        | Event::CallNotSent { call_id, .. }
        | Event::CallUnknown { call_id, .. }
        | Event::CallInterrupted { call_id, .. }
        | Event::CallInputRequired { call_id, .. }
        | Event::ChildOpened { call_id, .. }
        | Event::ChildEnded { call_id, .. } => Some(call_id),
        Event::AskOpened { ask } => Some(&ask.call_id),
        _ => None, // of a run, a model, an epoch, or of a question whose opening was looked at
    }
}

/// What a log says of children, kept without the fold.
#[derive(Debug, Default)]
struct Children {
    open: BTreeMap<String, Limits>,
    posted: BTreeSet<String>,
    opened: u32,
    /// What those that have ended used.
    tokens: u64,
    micro_usd: u64,
}

impl Children {
    /// Tokens and micro-USD.
    fn set_aside(&self) -> (u64, u64) {
        let sum = |share: fn(&Limits) -> Option<u64>| self.open.values().filter_map(share).sum();
        (sum(|limits| limits.tokens), sum(|limits| limits.cost_micro_usd))
    }

    /// `before`: the run before this event.
    fn follow(&mut self, event: &Event, before: &RunState) {
        match event {
            Event::ChildOpened { child, .. } => {
                let (tokens, micro_usd) = self.set_aside();
                let (share, share_of_cost) = (child.limits.tokens.unwrap(), child.limits.cost_micro_usd.unwrap());
                // A share of nothing is no more than is left where more than all was used.
                assert!(share == 0 || share + tokens + before.tokens_spent() <= TOKENS, "{child:?}");
                let spent = before.cost_spent().micro_usd();
                assert!(share_of_cost == 0 || share_of_cost + micro_usd + spent <= MICRO_USD, "{child:?}");
                assert_eq!(self.open.insert(child.name.clone(), child.limits), None, "two of one name");
                self.opened += 1;
            }
            Event::ChildPosted { name, .. } => {
                assert!(self.open.contains_key(name), "{name} was never opened, or has ended");
                assert!(self.posted.insert(name.clone()), "{name} was made twice");
            }
            Event::ChildEnded { name, end, .. } => {
                assert!(self.open.remove(name).is_some(), "{name} was never opened, or ended before");
                assert!(self.posted.remove(name) || end.outcome.is_none(), "{name} came to an end and was never made");
                self.tokens += end.tokens;
                self.micro_usd += end.cost_micro_usd;
            }
            _ => {} // no other event moves a share
        }
    }
}

/// Spans of each kind: begun by which events, and how many there are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    epochs: usize,
    pods: usize,
    requests: usize,
    decisions: usize,
    asks: usize,
    calls: usize,
}

fn counted(spans: &[Span]) -> Counts {
    let mut counts = Counts::default();
    for span in spans {
        match span.what {
            What::Run(_) | What::Rest(_) => {}
            What::Epoch(_) => counts.epochs += 1,
            What::PodStart(_) => counts.pods += 1,
            What::Model(_) => counts.requests += 1,
            What::Decision(_) => counts.decisions += 1,
            What::Ask(_) => counts.asks += 1,
            What::Call(_) => counts.calls += 1,
        }
    }
    counts
}

/// What there must be. A call without a permit is one only where it was not sent.
fn due(records: &[Record]) -> Counts {
    let mut counts = Counts::default();
    let mut permitted = BTreeSet::new();
    for record in records {
        match &record.event {
            Event::EpochOpened { .. } => (counts.epochs, counts.pods) = (counts.epochs + 1, counts.pods + 1),
            Event::ModelRequested { .. } => counts.requests += 1,
            Event::AskOpened { .. } => counts.asks += 1,
            Event::CallDecided { call_id, verdict, .. } => {
                counts.decisions += 1;
                if matches!(verdict, Verdict::Allowed { .. }) {
                    counts.calls += 1;
                    permitted.insert(call_id);
                }
            }
            Event::CallNotSent { call_id, .. } => counts.calls += usize::from(!permitted.remove(call_id)),
            Event::PermitReturned { call_id, .. }
            | Event::CallObserved { call_id, .. }
            | Event::CallInputRequired { call_id, .. }
            | Event::CallUnknown { call_id, .. }
            | Event::CallInterrupted { call_id, .. }
            | Event::ChildEnded { call_id, .. } => {
                permitted.remove(call_id);
            }
            _ => {} // no other event begins a span or ends a call
        }
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn terminal_is_final(turns in turns()) {
        let walk = walk(&turns);
        let mut end = None;
        for (record, state) in walk.accepted.iter().zip(&walk.states[1..]) {
            if let Some(end) = &end {
                prop_assert_eq!(state.end.as_ref(), Some(end));
                let closes = matches!(
                    record.event,
                    Event::EpochEnded { .. }
                        | Event::EpochDead { .. }
                        | Event::CallUnknown { .. }
                        | Event::CallInterrupted { .. }
                );
                prop_assert!(closes, "{:?} after the end", record.event);
            }
            end.clone_from(&state.end);
        }
    }

    #[test]
    fn a_model_is_given_up_only_after_it_failed_and_for_the_next_one_of_the_plan(turns in turns()) {
        let walk = walk(&turns);
        for (record, pair) in walk.accepted.iter().zip(walk.states.windows(2)) {
            let replaced = usize::from(matches!(record.event, Event::ModelReplaced { .. }));
            prop_assert_eq!(pair[1].models_given_up, pair[0].models_given_up + replaced);
            let failed = matches!(pair[0].model, ModelState::Failed { .. });
            prop_assert!(replaced == 0 || failed);
            prop_assert!(pair[1].models_given_up <= plan().fallbacks.len());
        }
    }

    #[test]
    fn replaying_a_prefix_gives_the_same_state(turns in turns()) {
        let walk = walk(&turns);
        for (length, state) in walk.states.iter().enumerate() {
            prop_assert_eq!(&RunState::replay(&walk.accepted[..length]).unwrap(), state);
        }
    }

    #[test]
    fn an_attempt_is_permitted_once_and_what_may_have_happened_only_by_a_person(turns in turns()) {
        let mut permits = Permits::default();
        for record in &walk(&turns).accepted {
            permits.follow(&record.event);
        }
    }

    #[test]
    fn what_is_set_aside_for_children_is_never_more_than_there_is_and_each_is_charged_once(turns in turns()) {
        let (walk, mut children) = (walk(&turns), Children::default());
        for (record, pair) in walk.accepted.iter().zip(walk.states.windows(2)) {
            children.follow(&record.event, &pair[0]);
            let (tokens, micro_usd) = children.set_aside();
            prop_assert!(tokens <= TOKENS && micro_usd <= MICRO_USD);
            let after = &pair[1];
            prop_assert_eq!((after.tokens_set_aside(), after.cost_set_aside()), (tokens, micro_usd));
            let spent = (after.children_spent.tokens, after.children_spent.cost);
            prop_assert_eq!(spent, (children.tokens, Cost::of_micro_usd(children.micro_usd)));
            prop_assert_eq!(after.children_total, children.opened);
            prop_assert!(after.children.keys().eq(children.open.keys()));
        }
    }

    /// A child is at work for exactly one call, and for no call two are.
    #[test]
    fn a_call_is_delegated_exactly_while_its_child_is_open(turns in turns()) {
        for state in walk(&turns).states {
            let delegated = state.calls.iter().filter_map(|(call_id, call)| match call {
                CallState::Delegated { child, attempt, .. } => Some((child.clone(), (call_id.clone(), *attempt))),
                _ => None, // no other call has a child
            });
            let open = state.children.iter().map(|(name, open)| (name.clone(), (open.call_id.clone(), open.attempt)));
            let (open, delegated) = (open.collect::<BTreeMap<_, _>>(), delegated.collect::<BTreeMap<_, _>>());
            prop_assert_eq!(open, delegated);
        }
    }

    /// As a journal keeps it: each batch written, read again, and folded onto what the batches before it came to.
    #[test]
    fn a_fold_is_the_same_wherever_its_batches_begin(turns in turns(), sizes in prop::collection::vec(1_usize..9, 1..9)) {
        let walk = walk(&turns);
        let (mut kept, mut rest, mut sizes) = (RunState::default(), walk.accepted.as_slice(), sizes.iter().cycle());
        while let Some(size) = sizes.next().filter(|_| !rest.is_empty()) {
            let (batch, behind) = rest.split_at((*size).min(rest.len()));
            let mut grown = kept.clone();
            for record in batch {
                let bytes = serde_json::to_vec(record).unwrap();
                grown.apply(&serde_json::from_slice(&bytes).unwrap()).unwrap();
            }
            (kept, rest) = (grown, behind);
            prop_assert_eq!(&kept, &walk.states[walk.accepted.len() - rest.len()]);
        }
        prop_assert_eq!(&kept, walk.states.last().unwrap());
    }

    #[test]
    fn a_record_out_of_sequence_is_refused(turns in turns(), gap in 1_u64..5) {
        let mut state = walk(&turns).states.pop().unwrap();
        let event = Event::CancelRequested {};
        for seq in [state.seq, state.seq + 1 + gap] {
            let record = Record { seq, at: 0, event: event.clone() };
            prop_assert!(state.apply(&record).is_err());
        }
    }

    #[test]
    fn call_ids_are_unique_and_steps_count_answers(turns in turns()) {
        let walk = walk(&turns);
        let mut answers = 0;
        let mut ids = BTreeSet::new();
        for record in &walk.accepted {
            if let Event::ModelResponded { step, response, .. } = &record.event {
                answers += 1;
                prop_assert_eq!(*step, answers);
                for item in &response.items {
                    if let Item::ToolCall { call_id, .. } = item {
                        prop_assert!(ids.insert(call_id.clone()));
                    }
                }
            }
        }
        let last = walk.states.last().unwrap();
        prop_assert_eq!((last.steps, last.calls_total as usize), (answers, ids.len()));
    }

    #[test]
    fn every_record_survives_its_json_form(turns in turns()) {
        for record in walk(&turns).accepted {
            let bytes = serde_json::to_vec(&record).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Record>(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn a_conversation_holds_a_result_for_every_settled_call_before_its_next_turn(turns in turns()) {
        let walk = walk(&turns);
        let mut transcript = Transcript::default();
        for (record, state) in walk.accepted.iter().zip(&walk.states[1..]) {
            transcript.apply(&record.event);
            let asked = |turn: &belay_protocol::transcript::Turn| -> BTreeSet<String> {
                let ids = turn.items.iter().filter_map(|item| match item {
                    Item::ToolCall { call_id, .. } => Some(call_id.clone()),
                    Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
                });
                ids.collect()
            };
            if let Some((newest, earlier)) = transcript.turns().split_last() {
                for turn in earlier {
                    prop_assert_eq!(asked(turn), turn.results.keys().cloned().collect::<BTreeSet<_>>());
                }
                let settled = state.calls.iter().filter(|(_, call)| matches!(call, CallState::Settled(_)));
                let settled: BTreeSet<String> = settled.map(|(call_id, _)| call_id.clone()).collect();
                prop_assert_eq!(settled, newest.results.keys().cloned().collect::<BTreeSet<_>>());
            }
        }
        let mut replayed = Transcript::default();
        for record in &walk.accepted {
            replayed.apply(&record.event);
        }
        prop_assert_eq!(replayed, transcript);
    }

    /// Nothing that happened is without its span, and nothing has two.
    #[test]
    fn what_happened_has_one_span(turns in turns()) {
        let walk = walk(&turns);
        let spans = spans("run-uid", &walk.accepted);
        prop_assert_eq!(counted(&spans), due(&walk.accepted));
        let ids: BTreeSet<_> = spans.iter().map(|span| span.id).collect();
        prop_assert_eq!(ids.len(), spans.len());
        prop_assert!(spans.iter().all(|span| span.parent.is_none_or(|parent| ids.contains(&parent))));
        prop_assert_eq!(spans.iter().filter(|span| span.parent.is_none()).count(), 1);
        // Once the run has ended and its pod is gone, nothing goes on.
        let state = walk.states.last().unwrap();
        if state.end.is_some() && state.live_epoch().is_none() && state.calls_in_flight().next().is_none() {
            prop_assert!(spans.iter().all(|span| span.end.is_some()));
        }
    }
}

#[test]
fn walks_get_as_far_as_observations_and_ends() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let turns = turns().new_tree(&mut runner).unwrap().current();
        seen.extend(walk(&turns).accepted.iter().map(|record| record.event.name()));
    }
    let expected = [
        "AskOpened",
        "AskPosted",
        "AskSettled",
        "CallDecided",
        "CallInputRequired",
        "CallInterrupted",
        "CallNotSent",
        "CallObserved",
        "CallProposed",
        "CallUnknown",
        "CancelRequested",
        "ChildEnded",
        "ChildOpened",
        "ChildPosted",
        "DefinitionsAccepted",
        "EpochDead",
        "EpochEnded",
        "EpochOpened",
        "InstanceClaimed",
        "LimitReached",
        "ModelFailed",
        "ModelReplaced",
        "ModelRequested",
        "ModelResponded",
        "PermitReturned",
        "RunAccepted",
        "RunEnded",
        "ToolsListed",
    ];
    assert_eq!(seen, BTreeSet::from(expected), "a property that is never tried proves nothing");
}
