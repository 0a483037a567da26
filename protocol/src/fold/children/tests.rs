#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use serde_json::json;

use crate::Record;
use crate::call::CallBinding;
use crate::cost::{Cost, Prices, Usage};
use crate::digest::Digest;
use crate::event::{
    Child, ChildEnd, EpochEnd, Event, Finish, Item, ModelResponse, Outcome, ProposedCall, ToolResult, Verdict,
};
use crate::fold::{CallState, IllegalEvent, RunState, Settlement};
use crate::plan::{Limits, Plan};
use crate::transcript::Transcript;

fn plan() -> Plan {
    serde_json::from_value(json!({
        "version": 1, "run": {"namespace": "team", "name": "run", "uid": "run-uid"},
        "agent": {"namespace": "team", "name": "lead", "uid": "agent-uid"}, "agentGeneration": 1, "input": "go",
        "model": {"name": "m", "api": "Scripted", "model": "m", "timeouts":
            {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
        "tools": [
            {"name": "helper", "uid": "t1", "url": "agent/helper", "callTimeoutSeconds": 0,
                "agent": {"name": "helper", "description": "", "priced": true, "limits": {"steps": 5, "activeSeconds": 9, "waitSeconds": 9}},
                "operations": [{"name": "run", "modelName": "helper__run", "definition": Digest::of(b"d")}]},
            {"name": "files", "uid": "t2", "url": "http://files/mcp", "callTimeoutSeconds": 5,
                "operations": [{"name": "write", "modelName": "files__write", "definition": Digest::of(b"d")}]}],
        "limits": {"steps": 9, "activeSeconds": 60, "waitSeconds": 60, "tokens": 1000, "costMicroUsd": 500},
    }))
    .unwrap()
}

fn take(state: &mut RunState, at: i64, event: Event) -> Result<(), IllegalEvent> {
    state.apply(&Record { seq: state.seq + 1, at, event })
}

fn call(tool: &str, operation: &str) -> ProposedCall {
    let (plan, args, definition) = (plan(), json!({"input": "x"}), Digest::of(b"d"));
    let digest = CallBinding::new(&plan, plan.tool(tool).unwrap(), definition, operation, &args).digest().unwrap();
    ProposedCall { tool: tool.into(), operation: operation.into(), args, definition, digest }
}

/// Calls `c1` and `c2` of the Agent and `c3` of a server, each with a permit.
fn permitted() -> RunState {
    let asks = |id: &str| Item::ToolCall {
        call_id: id.into(),
        provider_id: id.into(),
        name: "helper__run".into(),
        arguments: "{}".into(),
    };
    let response = ModelResponse::new(
        vec![asks("c1"), asks("c2"), asks("c3")],
        Finish::ToolCalls,
        crate::cost::Usage { input_tokens: Some(100), ..crate::cost::Usage::default() },
        1,
    );
    let mut events = vec![
        Event::RunAccepted { plan_digest: plan().digest().unwrap(), plan: Box::new(plan()) },
        Event::EpochOpened { epoch: 1, pod_name: "p".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "u".into() },
        Event::ModelRequested { step: 1, attempt: 1, request: Digest::zero(), reserved_tokens: 0 },
        Event::ModelResponded { step: 1, attempt: 1, response },
    ];
    for (id, call) in [("c1", call("helper", "run")), ("c2", call("helper", "run")), ("c3", call("files", "write"))] {
        let verdict = Verdict::Allowed { digest: call.digest };
        events.push(Event::CallProposed { call_id: id.into(), attempt: 1, call });
        events.push(Event::CallDecided { call_id: id.into(), attempt: 1, verdict, judged: None });
    }
    let mut state = RunState::default();
    for event in events {
        take(&mut state, 1000, event).unwrap();
    }
    state
}

fn opened(call_id: &str, name: &str, tokens: Option<u64>, cost_micro_usd: Option<u64>) -> Event {
    let limits = Limits { steps: 5, tokens, cost_micro_usd, active_seconds: 9, wait_seconds: 9 };
    let child = Child { name: name.into(), agent: "helper".into(), limits };
    Event::ChildOpened { call_id: call_id.into(), attempt: 1, child }
}

fn ended(call_id: &str, name: &str, outcome: Option<Outcome>) -> Event {
    let result =
        ToolResult { is_error: false, content: "found it".into(), truncated_from_bytes: None, artifacts: Vec::new() };
    let end = ChildEnd { outcome, result, tokens: 300, cost_micro_usd: 70 };
    Event::ChildEnded { call_id: call_id.into(), attempt: 1, name: name.into(), end: Box::new(end) }
}

fn posted(name: &str) -> Event {
    Event::ChildPosted { name: name.into(), uid: format!("{name}-uid") }
}

#[test]
fn a_permitted_call_of_an_agent_is_carried_out_by_a_run_and_is_not_on_the_wire() {
    let mut state = permitted();
    take(&mut state, 2000, opened("c1", "a", Some(400), Some(200))).unwrap();
    assert!(matches!(&state.calls["c1"], CallState::Delegated { child, attempt: 1, .. } if child == "a"));
    let in_flight: Vec<&str> = state.calls_in_flight().map(|(id, ..)| id).collect();
    assert_eq!(in_flight, ["c2", "c3"]);
    assert!(!state.has_child_at_work(), "nothing was made yet");
    take(&mut state, 2000, posted("a")).unwrap();
    assert!(state.has_child_at_work());
    assert!(take(&mut state, 2000, posted("a")).is_err(), "one run carries it out, not two");
    take(&mut state, 3000, ended("c1", "a", Some(Outcome::Succeeded))).unwrap();
    assert_eq!(state.calls["c1"], CallState::Settled(Settlement::Observed));
    assert!(take(&mut state, 3000, ended("c1", "a", Some(Outcome::Succeeded))).is_err(), "it ends once");
    assert!(take(&mut state, 3000, opened("c1", "a2", Some(1), Some(1))).is_err(), "and is not begun again");
    assert_eq!(state.children_total, 1);
}

#[test]
fn what_a_child_may_use_is_set_aside_until_it_ends_and_then_what_it_used_counts() {
    let mut state = permitted();
    assert_eq!((state.tokens_left(), state.cost_left()), (Some(900), Some(500)));
    for (tokens, cost) in [(Some(901), Some(1)), (Some(1), Some(501)), (None, Some(1)), (Some(1), None)] {
        let more = take(&mut state, 2000, opened("c1", "a", tokens, cost));
        assert!(more.is_err(), "{tokens:?} {cost:?} is more than there is");
    }
    take(&mut state, 2000, opened("c1", "a", Some(600), Some(400))).unwrap();
    assert_eq!((state.tokens_left(), state.cost_left()), (Some(300), Some(100)));
    assert!(take(&mut state, 2000, opened("c2", "b", Some(301), Some(1))).is_err(), "two may not exceed it together");
    take(&mut state, 2000, opened("c2", "b", Some(300), Some(100))).unwrap();
    assert_eq!(state.tokens_spent(), 100);
    take(&mut state, 2000, posted("a")).unwrap();
    take(&mut state, 3000, ended("c1", "a", Some(Outcome::Failed))).unwrap();
    assert_eq!((state.tokens_spent(), state.cost_spent()), (400, Cost::of_micro_usd(70)));
    assert_eq!((state.tokens_left(), state.cost_left()), (Some(300), Some(330)));
}

#[test]
fn only_a_call_of_that_very_agent_starts_a_run_and_only_under_a_name_of_its_own() {
    let mut state = permitted();
    assert!(take(&mut state, 2000, opened("c3", "a", Some(1), Some(1))).is_err(), "its tool is a server");
    let Event::ChildOpened { call_id, attempt, mut child } = opened("c1", "a", Some(1), Some(1)) else { return };
    let later = Event::ChildOpened { call_id: call_id.clone(), attempt: 2, child: child.clone() };
    assert!(take(&mut state, 2000, later).is_err(), "another attempt");
    child.agent = "another".into();
    assert!(take(&mut state, 2000, Event::ChildOpened { call_id, attempt, child }).is_err(), "another Agent");
    take(&mut state, 2000, opened("c1", "a", Some(1), Some(1))).unwrap();
    assert!(take(&mut state, 2000, opened("c2", "a", Some(1), Some(1))).is_err(), "the name is taken");
}

#[test]
fn a_child_that_never_was_ends_without_an_outcome_and_one_that_is_not_there_with_none() {
    let mut state = permitted();
    take(&mut state, 2000, opened("c1", "a", Some(1), Some(1))).unwrap();
    assert!(take(&mut state, 2000, ended("c1", "a", Some(Outcome::Succeeded))).is_err(), "nobody made it");
    assert!(take(&mut state, 2000, ended("c2", "a", None)).is_err(), "another call");
    assert!(take(&mut state, 2000, ended("c1", "b", None)).is_err(), "another child");
    take(&mut state, 2000, ended("c1", "a", None)).unwrap();
}

#[test]
fn a_child_goes_on_without_its_parents_pod_and_the_parents_next_wait_is_counted_from_its_end() {
    let mut state = permitted();
    take(&mut state, 2000, opened("c1", "a", Some(1), Some(1))).unwrap();
    take(&mut state, 2000, posted("a")).unwrap();
    for id in ["c2", "c3"] {
        take(&mut state, 2000, Event::CallUnknown { call_id: id.into(), attempt: 1, message: String::new() }).unwrap();
    }
    let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 1 };
    take(&mut state, 3000, over).unwrap();
    assert!(matches!(state.calls["c1"], CallState::Delegated { .. }));
    assert_eq!(state.rested_at, Some(3000));
    take(&mut state, 9000, ended("c1", "a", Some(Outcome::Succeeded))).unwrap();
    assert_eq!(state.rested_at, Some(9000));
}

#[test]
fn the_model_is_told_what_the_child_answered() {
    let mut transcript = Transcript::default();
    let response = ModelResponse::new(vec![], Finish::ToolCalls, crate::cost::Usage::default(), 1);
    transcript.apply(&Event::ModelResponded { step: 1, attempt: 1, response });
    transcript.apply(&ended("c1", "a", Some(Outcome::Succeeded)));
    let result = &transcript.turns()[0].results["c1"];
    assert_eq!((result.is_error, result.content.as_str()), (false, "found it"));
}

#[test]
fn what_a_run_used_is_known_only_if_every_answer_told_both_numbers() {
    let uncounted = |answers: &[(Option<u64>, Option<u64>)]| {
        let mut state = RunState::default();
        let accepted = Event::RunAccepted { plan_digest: plan().digest().unwrap(), plan: Box::new(plan()) };
        let mut events = vec![
            accepted,
            Event::EpochOpened { epoch: 1, pod_name: "p".into() },
            Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "u".into() },
        ];
        for (step, (input_tokens, output_tokens)) in (1..).zip(answers) {
            let usage = Usage { input_tokens: *input_tokens, output_tokens: *output_tokens, ..Usage::default() };
            let mut response = ModelResponse::new(vec![Item::Text { text: "x".into() }], Finish::Stop, usage, 1);
            response.misfit = Some("no JSON".into());
            events.push(Event::ModelRequested { step, attempt: 1, request: Digest::zero(), reserved_tokens: 0 });
            events.push(Event::ModelResponded { step, attempt: 1, response });
        }
        for event in events {
            take(&mut state, 1000, event).unwrap();
        }
        state.uncounted
    };
    assert!(!uncounted(&[]));
    assert!(!uncounted(&[(Some(1), Some(1)), (Some(0), Some(2))]));
    assert!(uncounted(&[(Some(1), Some(1)), (Some(1), None)]));
    assert!(uncounted(&[(None, Some(1)), (Some(1), Some(1))]));
}

/// A run that wants a child and has asked its model before, which did not count: the request may have taken so many tokens.
fn uncounted(reserved_tokens: u64) -> RunState {
    let mut plan = plan();
    plan.model.prices = Some(Prices { input: 1_000_000, cached_input: None, cache_write: None, output: 0 });
    let asks = Item::ToolCall {
        call_id: "c1".into(),
        provider_id: "c1".into(),
        name: "helper__run".into(),
        arguments: "{}".into(),
    };
    let response = ModelResponse::new(vec![asks], Finish::ToolCalls, Usage::default(), 1);
    let call = call("helper", "run");
    let verdict = Verdict::Allowed { digest: call.digest };
    let events = [
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
        Event::EpochOpened { epoch: 1, pod_name: "p".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "u".into() },
        Event::ModelRequested { step: 1, attempt: 1, request: Digest::zero(), reserved_tokens },
        Event::ModelResponded { step: 1, attempt: 1, response },
        Event::CallProposed { call_id: "c1".into(), attempt: 1, call },
        Event::CallDecided { call_id: "c1".into(), attempt: 1, verdict, judged: None },
    ];
    let mut state = RunState::default();
    for event in events {
        take(&mut state, 1000, event).unwrap();
    }
    state
}

#[test]
fn an_answer_that_nobody_counted_is_held_against_the_limits_with_all_that_it_may_have_used() {
    let state = uncounted(400);
    assert_eq!((state.tokens_spent(), state.cost_spent()), (400, Cost::of_micro_usd(400)));
    assert_eq!((state.tokens_left(), state.cost_left()), (Some(600), Some(100)));
    assert_eq!((state.usage, state.cost), (Usage::default(), Cost::default()), "none of it is known");
    assert_eq!(uncounted(0).tokens_spent(), 0, "a scripted model uses nothing");
}

#[test]
fn a_child_that_an_older_operator_opened_is_legal_though_it_held_uncounted_answers_against_no_run() {
    let mut state = uncounted(400);
    take(&mut state, 2000, opened("c1", "a", Some(1000), Some(500))).unwrap();
    assert_eq!((state.tokens_left(), state.cost_left()), (Some(0), Some(0)));
    assert!(take(&mut uncounted(400), 2000, opened("c1", "a", Some(1001), Some(500))).is_err());
}
