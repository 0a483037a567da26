#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use belay_protocol::call::CallBinding;
use belay_protocol::cost::{Prices, Usage};
use belay_protocol::event::{
    DenyReason, EndReason, Event, Failure, FailureReason, Finish, Item, ListedOperation, Listing, ModelResponse,
    Outcome, ProposedCall, RunEnd, ToolResult, Verdict,
};
use belay_protocol::fold::RunState;
use belay_protocol::plan::{Effects, Limits, ModelApi, ObjectId, Plan, PlanModel, PlanOperation, PlanTool, Timeouts};
use belay_protocol::{Digest, Record};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Standing, decide, decide_late};

fn definition() -> Digest {
    Digest::of(b"definition")
}

fn plan() -> Plan {
    plan_of(&ObjectId { namespace: "ns".into(), name: "run".into(), uid: "run-uid".into() })
}

/// A plan with one tool and one operation, for this run.
pub(crate) fn plan_of(run: &ObjectId) -> Plan {
    let id = |name: &str| ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") };
    Plan {
        version: 1,
        run: run.clone(),
        agent: id("agent"),
        agent_generation: 1,
        requested_by: None,
        instructions: String::new(),
        input: "go".into(),
        model: PlanModel {
            name: "m".into(),
            api: ModelApi::Scripted,
            provider: None,
            model: "m".into(),
            base_url: None,
            credential: None,
            context_window_tokens: None,
            max_output_tokens: None,
            temperature: None,
            prices: Some(Prices { input: 1_000_000, cached_input: None, output: 1_000_000 }),
            timeouts: Timeouts::default(),
            script: vec![],
        },
        tools: vec![PlanTool {
            name: "files".into(),
            uid: "files-uid".into(),
            url: "http://files/mcp".into(),
            credential: None,
            call_timeout_seconds: 5,
            operations: vec![PlanOperation {
                name: "read".into(),
                model_name: "files__read".into(),
                definition: definition(),
                effects: Effects::NonIdempotent,
            }],
        }],
        credentials: vec![],
        limits: Limits { steps: 2, tokens: Some(100), cost_micro_usd: Some(50), active_seconds: 60, wait_seconds: 60 },
    }
}

fn folded(events: Vec<Event>) -> RunState {
    let mut state = RunState::default();
    for event in events {
        let record = Record { seq: state.seq + 1, at: 1, event };
        state.apply(&record).unwrap();
    }
    state
}

/// A run whose runner has claimed its epoch and listed its tool.
fn claimed(plan: Plan) -> Vec<Event> {
    vec![
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
        Event::EpochOpened { epoch: 1, pod_name: "belay-run-a".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
        Event::ToolsListed {
            tool: "files".into(),
            listing: Listing::Listed(vec![ListedOperation { name: "read".into(), definition: definition() }]),
        },
    ]
}

fn request(step: u32, attempt: u32) -> Event {
    Event::ModelRequested { step, attempt, request: Digest::zero(), reserved_tokens: 10 }
}

fn response(step: u32, calls: &[&str], finish: Finish, tokens: u64) -> Event {
    let items = calls
        .iter()
        .map(|id| Item::ToolCall {
            call_id: (*id).into(),
            provider_id: "x".into(),
            name: "files__read".into(),
            arguments: "{}".into(),
        })
        .collect();
    let usage = Usage { input_tokens: Some(tokens), cached_input_tokens: None, output_tokens: Some(0) };
    let response = ModelResponse { items, finish, usage, response_id: None, model: None, milliseconds: 1 };
    Event::ModelResponded { step, attempt: 1, response }
}

fn call(tool: &str, operation: &str, args: Value) -> ProposedCall {
    let plan = plan();
    let files = plan.tool("files").unwrap();
    let digest = CallBinding::new(&plan, files, definition(), operation, &args).digest().unwrap();
    ProposedCall { tool: tool.into(), operation: operation.into(), args, definition: definition(), digest }
}

fn proposal(id: &str, call: ProposedCall) -> Event {
    Event::CallProposed { call_id: id.into(), attempt: 1, call }
}

/// A run that waits for the verdict on call c1.
fn asked(plan: Plan) -> RunState {
    let mut events = claimed(plan);
    events.extend([request(1, 1), response(1, &["c1", "c2"], Finish::ToolCalls, 5)]);
    folded(events)
}

fn verdict_on(state: &RunState, call: ProposedCall, standing: Standing) -> Verdict {
    match decide(state, vec![proposal("c1", call)], standing).unwrap().remove(1) {
        Event::CallDecided { verdict, .. } => verdict,
        other => panic!("{other:?}"),
    }
}

fn end_of(events: &[Event]) -> &RunEnd {
    match events.last() {
        Some(Event::RunEnded { end }) => end,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_listed_call_with_the_right_digest_is_allowed() {
    let call = call("files", "read", json!({"path": "a"}));
    let digest = call.digest;
    assert_eq!(verdict_on(&asked(plan()), call, Standing::Running), Verdict::Allowed { digest });
}

#[rstest]
#[case::another_tool(call("other", "read", json!({})), DenyReason::NotListed)]
#[case::another_operation(call("files", "delete", json!({})), DenyReason::NotListed)]
#[case::other_arguments(ProposedCall { args: json!({"path": "b"}), ..call("files", "read", json!({"path": "a"})) }, DenyReason::DigestMismatch)]
#[case::a_wrong_digest(ProposedCall { digest: Digest::zero(), ..call("files", "read", json!({})) }, DenyReason::DigestMismatch)]
#[case::another_definition(ProposedCall { definition: Digest::zero(), ..call("files", "read", json!({})) }, DenyReason::DefinitionChanged)]
#[case::a_number_without_canonical_form(ProposedCall { args: json!({"n": u64::MAX}), ..call("files", "read", json!({})) }, DenyReason::DigestMismatch)]
fn whatever_differs_is_denied(#[case] call: ProposedCall, #[case] expected: DenyReason) {
    let verdict = verdict_on(&asked(plan()), call, Standing::Running);
    assert!(matches!(verdict, Verdict::Denied { reason, .. } if reason == expected), "{verdict:?}");
}

#[test]
fn a_definition_that_the_server_changed_since_the_plan_is_denied() {
    let mut changed = plan();
    changed.tools[0].operations[0].definition = Digest::of(b"accepted earlier");
    let verdict = verdict_on(&asked(changed), call("files", "read", json!({})), Standing::Running);
    assert!(matches!(verdict, Verdict::Denied { reason: DenyReason::DefinitionChanged, .. }), "{verdict:?}");
}

#[test]
fn a_cancelled_run_gets_no_permit_suspended_or_not() {
    let mut cancelled = asked(plan());
    cancelled.cancel_requested = true;
    for standing in [Standing::Running, Standing::Suspended] {
        let verdict = verdict_on(&cancelled, call("files", "read", json!({})), standing);
        assert!(matches!(verdict, Verdict::Denied { reason: DenyReason::RunEnding, .. }), "{verdict:?}");
    }
}

#[test]
fn a_proposal_of_a_suspended_agent_is_journaled_undecided_and_decided_once_it_is_resumed() {
    let (mut state, call) = (asked(plan()), call("files", "read", json!({})));
    let digest = call.digest;
    let proposed = vec![proposal("c1", call)];
    let journaled = decide(&state, proposed.clone(), Standing::Suspended).unwrap();
    assert_eq!(journaled, proposed);
    state.apply(&Record { seq: state.seq + 1, at: 1, event: proposed[0].clone() }).unwrap();
    assert_eq!(decide_late(&state, &proposed, Standing::Suspended), []);
    let allowed = Event::CallDecided { call_id: "c1".into(), attempt: 1, verdict: Verdict::Allowed { digest } };
    assert_eq!(decide_late(&state, &proposed, Standing::Running), std::slice::from_ref(&allowed));
    state.apply(&Record { seq: state.seq + 1, at: 1, event: allowed }).unwrap();
    assert_eq!(decide_late(&state, &proposed, Standing::Running), [], "a verdict is given once");
}

#[test]
fn one_permit_is_out_at_a_time() {
    let both = vec![
        proposal("c1", call("files", "read", json!({"n": 1}))),
        proposal("c2", call("files", "read", json!({"n": 2}))),
    ];
    let decided = decide(&asked(plan()), both, Standing::Running).unwrap();
    let verdicts: Vec<bool> = decided
        .iter()
        .filter_map(|event| match event {
            Event::CallDecided { verdict, .. } => Some(matches!(verdict, Verdict::Allowed { .. })),
            _ => None,
        })
        .collect();
    assert_eq!(verdicts, [true, false]);
}

#[test]
fn the_last_answer_ends_the_run_well_and_a_cut_one_does_not() {
    for (finish, outcome, reason) in [
        (Finish::Stop, Outcome::Succeeded, EndReason::Completed),
        (Finish::Length, Outcome::Failed, EndReason::ModelIncomplete),
        (Finish::ContentFilter, Outcome::Failed, EndReason::ModelIncomplete),
    ] {
        let mut events = claimed(plan());
        events.push(request(1, 1));
        let decided = decide(&folded(events), vec![response(1, &[], finish, 1)], Standing::Running).unwrap();
        assert_eq!((end_of(&decided).outcome, end_of(&decided).reason), (outcome, reason));
    }
}

#[test]
fn a_failure_that_nobody_retries_ends_the_run_with_its_words() {
    let failure = |retrying| Failure { reason: FailureReason::Unauthorized, message: "Model m: 401".into(), retrying };
    let mut events = claimed(plan());
    events.push(request(1, 1));
    let state = folded(events);
    let failed = |retrying| Event::ModelFailed { step: 1, attempt: 1, failure: failure(retrying) };
    assert_eq!(decide(&state, vec![failed(true)], Standing::Running).unwrap().len(), 1);
    let decided = decide(&state, vec![failed(false)], Standing::Running).unwrap();
    assert_eq!(end_of(&decided).message, "Model m: 401");
}

#[rstest]
#[case::steps(2, 1, EndReason::StepsExceeded)]
#[case::tokens(1, 95, EndReason::TokensExceeded)]
#[case::cost(1, 60, EndReason::CostExceeded)]
fn a_limit_refuses_the_next_request_and_names_itself(
    #[case] steps: u32,
    #[case] tokens: u64,
    #[case] expected: EndReason,
) {
    let mut events = claimed(plan());
    for step in 1..=steps {
        let id = format!("c{step}");
        events.extend([request(step, 1), response(step, &[&id], Finish::ToolCalls, tokens)]);
        events.push(Event::CallNotSent {
            call_id: id,
            attempt: 1,
            reason: belay_protocol::event::NotSentReason::UnknownTool,
            message: String::new(),
        });
    }
    let decided = decide(&folded(events), vec![request(steps + 1, 1)], Standing::Running).unwrap();
    assert_eq!(end_of(&decided).reason, expected);
    assert!(end_of(&decided).message.contains("limits."), "{}", end_of(&decided).message);
    assert!(!decided.iter().any(|event| matches!(event, Event::ModelRequested { .. })));
}

#[test]
fn what_cannot_follow_is_refused_whole() {
    let observed = Event::CallObserved {
        call_id: "c1".into(),
        attempt: 1,
        result: ToolResult { is_error: false, content: "made up".into(), truncated_from_bytes: None },
        milliseconds: 1,
    };
    assert!(decide(&asked(plan()), vec![observed], Standing::Running).is_err());
    assert!(decide(&asked(plan()), vec![request(2, 1)], Standing::Running).is_err());
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = prop::sample::select(vec!["c1", "c2", "c3"]);
    let operation = prop::sample::select(vec!["read", "delete"]);
    prop_oneof![
        (1..4_u32, 1..3_u32).prop_map(|(step, attempt)| request(step, attempt)),
        (1..4_u32, prop::sample::subsequence(vec!["c1", "c2", "c3"], 0..3)).prop_map(|(step, calls)| response(
            step,
            &calls,
            Finish::ToolCalls,
            1
        )),
        (id.clone(), operation).prop_map(|(id, operation)| proposal(id, call("files", operation, json!({})))),
        (id.clone(), 1..3_u32).prop_map(|(id, attempt)| Event::PermitReturned { call_id: id.into(), attempt }),
        id.prop_map(|id| Event::CallObserved {
            call_id: id.into(),
            attempt: 1,
            result: ToolResult { is_error: false, content: String::new(), truncated_from_bytes: None },
            milliseconds: 1,
        }),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_events_permits_what_is_not_listed_or_two_calls_at_once(events in prop::collection::vec(any_event(), 0..40)) {
        let mut state = folded(claimed(plan()));
        for event in events {
            let Ok(decided) = decide(&state, vec![event], Standing::Running) else { continue };
            for event in decided {
                if let Event::CallDecided { verdict: Verdict::Allowed { digest }, .. } = &event {
                    prop_assert_eq!(*digest, call("files", "read", json!({})).digest);
                }
                state.apply(&Record { seq: state.seq + 1, at: 1, event }).unwrap();
                prop_assert!(state.calls_in_flight().count() <= 1);
            }
        }
    }
}
