//! Calls of an Agent: which start a run, and with how much.

use belay_protocol::event::{Child, ChildEnd};
use belay_protocol::plan::{PlanAgent, PlanParent};
use belay_protocol::subagent::{AT_ONCE_MAX, DEPTH_MAX, TOTAL_MAX};

use super::*;

/// The plan whose tool is Agent `helper`; what it may use, the run has not.
fn delegating() -> Plan {
    let mut plan = plan();
    let limits = Limits { steps: 9, tokens: Some(30), cost_micro_usd: None, active_seconds: 9, wait_seconds: 900 };
    plan.tools[0].agent = Some(PlanAgent { name: "helper".into(), description: String::new(), limits, priced: true });
    plan
}

fn with(change: impl FnOnce(&mut Plan)) -> Plan {
    let mut plan = delegating();
    change(&mut plan);
    plan
}

fn go() -> ProposedCall {
    call("files", "read", json!({"input": "go"}))
}

fn opened(decided: &[Event]) -> Vec<Child> {
    let children = decided.iter().filter_map(|event| match event {
        Event::ChildOpened { child, .. } => Some(child.clone()),
        _ => None,
    });
    children.collect()
}

fn decided(state: &RunState, id: &str) -> Vec<Event> {
    decide_allowed(state, vec![proposal(id, go())]).unwrap()
}

fn denial(state: &RunState) -> String {
    let decided = decided(state, "c1");
    assert_eq!(opened(&decided), []);
    match verdicts(&decided).remove(0) {
        Verdict::Denied { reason: DenyReason::NoChild, message } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_allowed_call_of_an_agent_opens_a_run_with_the_tighter_of_all_limits() {
    let state = asked(delegating());
    let decided = decided(&state, "c1");
    let child = opened(&decided).remove(0);
    // 100 tokens and 50 micro-USD, of which 5 are used.
    let limits = Limits { steps: 2, tokens: Some(30), cost_micro_usd: Some(45), active_seconds: 9, wait_seconds: 60 };
    assert_eq!((child.agent.as_str(), child.limits), ("helper", limits));
    assert!(child.name.starts_with("run-c1-"), "{}", child.name);
    let mut after = state;
    apply(&mut after, decided);
    assert_eq!(after.calls_in_flight().count(), 0, "no runner holds a permit");
    let without = with(|plan| plan.tools[0].agent.as_mut().unwrap().limits.tokens = None);
    let all = opened(&super::children::decided(&asked(without), "c1")).remove(0);
    assert_eq!(all.limits.tokens, Some(95), "all that is left");
}

#[test]
fn a_call_of_an_agent_is_judged_and_asked_about_like_any_other() {
    let state = asked(delegating());
    let careful = [wants("careful", 1)];
    let decided = decide_by(&state, vec![proposal("c1", go())], &ask(&careful), Standing::Running).unwrap();
    assert_eq!(opened(&decided), []);
    assert!(matches!(verdicts(&decided).remove(0), Verdict::Asked { .. }));
    let denied = Judged {
        judgement: Judgement::Deny { policy: "careful".into(), rule: None, reason: String::new() },
        ..allow()
    };
    let decided = decide_by(&state, vec![proposal("c1", go())], &denied, Standing::Running).unwrap();
    assert_eq!(opened(&decided), []);
    let held = decide_by(&state, vec![proposal("c1", go())], &allow(), Standing::Suspended).unwrap();
    assert_eq!(opened(&held), [], "nothing starts while the Agent is suspended");
}

#[test]
fn two_runs_at_once_may_not_use_more_than_is_left_together() {
    let mut state = asked(with(|plan| plan.tools[0].agent.as_mut().unwrap().limits.tokens = Some(60)));
    let first = decided(&state, "c1");
    apply(&mut state, first);
    let second = opened(&decided(&state, "c2"));
    assert_eq!(
        second.first().map(|child| child.limits.tokens),
        None,
        "the first may spend all that is left of the cost"
    );
    let mut state = asked(with(|plan| {
        let limits = &mut plan.tools[0].agent.as_mut().unwrap().limits;
        (limits.tokens, limits.cost_micro_usd) = (Some(60), Some(20));
    }));
    let first = decided(&state, "c1");
    apply(&mut state, first);
    let second = opened(&decided(&state, "c2")).remove(0);
    assert_eq!((second.limits.tokens, second.limits.cost_micro_usd), (Some(35), Some(20)));
}

#[test]
fn how_deep_how_many_at_once_and_how_many_in_all_is_bounded() {
    let below = |depth| {
        let run = ObjectId { namespace: "ns".into(), name: "up".into(), uid: "up-uid".into() };
        with(|plan| plan.parent = Some(PlanParent { run, call_id: "c1".into(), depth }))
    };
    assert_eq!(opened(&decided(&asked(below(DEPTH_MAX - 1)), "c1")).len(), 1);
    assert!(denial(&asked(below(DEPTH_MAX))).contains("no run is deeper"));
    let state = RunState { children_total: TOTAL_MAX, ..asked(delegating()) };
    assert!(denial(&state).contains("starts no more"));
    let mut state = asked(delegating());
    let first = decided(&state, "c1");
    apply(&mut state, first);
    let (_, open) = state.children.pop_first().unwrap();
    let mut state = asked(delegating());
    state.children = (0..AT_ONCE_MAX).map(|n| (format!("child-{n}"), open.clone())).collect();
    assert!(denial(&state).contains("wait for the results"));
}

#[test]
fn a_run_with_nothing_left_or_with_a_budget_and_no_prices_starts_none() {
    let spent = |change: fn(&mut Limits)| with(|plan| change(&mut plan.limits));
    assert!(denial(&asked(spent(|limits| limits.tokens = Some(5)))).contains("limits.tokens"));
    assert!(denial(&asked(spent(|limits| limits.cost_micro_usd = Some(5)))).contains("limits.costUSD"));
    let unpriced = with(|plan| plan.tools[0].agent.as_mut().unwrap().priced = false);
    let words = denial(&asked(unpriced.clone()));
    assert!(words.contains("Agent helper") && words.contains("pricesUSD"), "{words}");
    let free = Plan { limits: Limits { cost_micro_usd: None, ..unpriced.limits }, ..unpriced };
    assert_eq!(opened(&decided(&asked(free), "c1")).len(), 1);
}

#[test]
fn an_input_that_no_run_takes_starts_none() {
    for args in [json!({}), json!({"input": ""}), json!({"input": 7})] {
        let verdict = verdict_on(&asked(delegating()), call("files", "read", args), Standing::Running);
        assert!(matches!(verdict, Verdict::Denied { reason: DenyReason::NoChild, .. }), "{verdict:?}");
    }
}

#[test]
fn what_a_child_used_counts_before_the_model_is_asked_again() {
    let mut state = asked(delegating());
    let events = decided(&state, "c1");
    let name = opened(&events).remove(0).name;
    apply(&mut state, events);
    let reason = belay_protocol::event::NotSentReason::UnknownTool;
    let result =
        ToolResult { is_error: false, content: String::new(), truncated_from_bytes: None, artifacts: Vec::new() };
    let end = ChildEnd { outcome: Some(Outcome::Succeeded), result, tokens: 90, cost_micro_usd: 0 };
    apply(
        &mut state,
        vec![
            Event::CallNotSent { call_id: "c2".into(), attempt: 1, reason, message: String::new() },
            Event::ChildPosted { name: name.clone(), uid: "uid".into() },
            Event::ChildEnded { call_id: "c1".into(), attempt: 1, name, end: Box::new(end) },
        ],
    );
    let decided = decide_allowed(&state, vec![request(2, 1)]).unwrap();
    let end = end_of(&decided);
    assert_eq!(end.reason, EndReason::TokensExceeded);
    assert!(end.message.contains("runs that it started included"), "{}", end.message);
}
