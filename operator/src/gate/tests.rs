#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use belay_protocol::call::CallBinding;
use belay_protocol::cost::{Prices, Usage};
use belay_protocol::elicitation::{InputRequired, Inquiry, digest_with};
use belay_protocol::event::{
    AcceptedDefinition, Answer, Approver, Ask, AskPurpose, DeathProof, DenyReason, EndReason, EpochEnd, Event, Failure,
    FailureReason, Finish, Item, LaterReason, ListedOperation, Listing, ModelResponse, Outcome, ProposedCall, RunEnd,
    ToolResult, Verdict,
};
use belay_protocol::fold::{CallState, IllegalEvent, RunState};
use belay_protocol::judgement::{Judged, Judgement, Opinion, OpinionVerdict, PolicyRequirement, PolicySource};
use belay_protocol::plan::{
    Effects, Limits, ModelApi, ObjectId, OnDrift, Plan, PlanModel, PlanOperation, PlanTool, Timeouts,
};
use belay_protocol::{Digest, LISTINGS_PER_EPOCH_MAX, MISFITS_MAX, Record};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Circumstances, Room, Standing, Word, Words, decide, held};

mod children;
mod grants;

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
            ca: None,
            credential: None,
            context_window_tokens: None,
            max_output_tokens: None,
            temperature: None,
            prices: Some(Prices { input: 1_000_000, cached_input: None, cache_write: None, output: 1_000_000 }),
            timeouts: Timeouts::default(),
            reasoning: None,
            headers: Vec::new(),
            script: vec![],
        },
        fallbacks: Vec::new(),
        tools: vec![PlanTool {
            name: "files".into(),
            uid: "files-uid".into(),
            url: "http://files/mcp".into(),
            ca: None,
            http: None,
            credential: None,
            call_timeout_seconds: 5,
            policies: vec![],
            on_drift: OnDrift::Continue,
            agent: None,
            operations: vec![PlanOperation {
                name: "read".into(),
                model_name: "files__read".into(),
                definition: definition(),
                effects: Effects::NonIdempotent,
                gone: false,
            }],
        }],
        credentials: vec![],
        policies: vec![],
        agent_policies: vec![],
        inherited_policies: vec![],
        private_hosts: Vec::new(),
        limits: Limits { steps: 2, tokens: Some(100), cost_micro_usd: Some(50), active_seconds: 60, wait_seconds: 60 },
        output_schema: None,
        parent: None,
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
    let usage =
        Usage { input_tokens: Some(tokens), cached_input_tokens: None, output_tokens: Some(0), ..Usage::default() };
    let response = ModelResponse::new(items, finish, usage, 1);
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

/// What every policy says of every proposal.
fn words_for(events: &[Event], judged: &Judged) -> Words {
    let proposals = events.iter().filter_map(|event| match event {
        Event::CallProposed { call_id, attempt, .. } => Some((call_id.clone(), *attempt)),
        _ => None,
    });
    proposals.map(|key| (key, Word::Judged(judged.clone()))).collect()
}

fn allow() -> Judged {
    Judged { judgement: Judgement::Allow, opinions: vec![], grants: vec![] }
}

fn wants(policy: &str, quorum: u32) -> PolicyRequirement {
    let policy = policy.to_owned();
    PolicyRequirement {
        policy,
        generation: 1,
        quorum,
        separation_of_duty: false,
        expires_after_seconds: 60,
        grants: None,
    }
}

fn ask(requirements: &[PolicyRequirement]) -> Judged {
    Judged { judgement: Judgement::Ask { requirements: requirements.to_vec() }, opinions: vec![], grants: vec![] }
}

fn decide_by(
    state: &RunState,
    events: Vec<Event>,
    judged: &Judged,
    standing: Standing,
) -> Result<Vec<Event>, IllegalEvent> {
    let words = words_for(&events, judged);
    let circumstances = Circumstances { standing, room: Room::Left, words: &words, now: state.updated_at };
    decide(state, events, &circumstances)
}

pub(crate) fn decide_allowed(state: &RunState, events: Vec<Event>) -> Result<Vec<Event>, IllegalEvent> {
    decide_by(state, events, &allow(), Standing::Running)
}

fn decide_within(state: &RunState, events: Vec<Event>, room: Room) -> Result<Vec<Event>, IllegalEvent> {
    let words = words_for(&events, &allow());
    decide(state, events, &Circumstances { standing: Standing::Running, room, words: &words, now: state.updated_at })
}

fn verdicts(decided: &[Event]) -> Vec<Verdict> {
    let verdicts = decided.iter().filter_map(|event| match event {
        Event::CallDecided { verdict, .. } => Some(verdict.clone()),
        _ => None,
    });
    verdicts.collect()
}

fn verdict_by(state: &RunState, call: ProposedCall, judged: &Judged, standing: Standing) -> Verdict {
    verdicts(&decide_by(state, vec![proposal("c1", call)], judged, standing).unwrap()).remove(0)
}

fn verdict_on(state: &RunState, call: ProposedCall, standing: Standing) -> Verdict {
    verdict_by(state, call, &allow(), standing)
}

fn apply(state: &mut RunState, events: Vec<Event>) {
    for event in events {
        state.apply(&Record { seq: state.seq + 1, at: state.updated_at, event }).unwrap();
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

/// A run whose Agent says to wait, and whose server offers `read` with this definition.
fn offered(definition: Digest) -> RunState {
    let mut plan = plan();
    plan.tools[0].on_drift = OnDrift::Wait;
    let mut events = claimed(plan);
    let operation = ListedOperation { name: "read".into(), definition };
    events.pop();
    events.push(Event::ToolsListed { tool: "files".into(), listing: Listing::Listed(vec![operation]) });
    events.extend([request(1, 1), response(1, &["c1"], Finish::ToolCalls, 10)]);
    folded(events)
}

#[test]
fn while_a_run_waits_for_a_definition_nothing_is_permitted_asked_or_denied() {
    let call = call("files", "read", json!({}));
    let drifted = offered(Digest::of(b"changed"));
    for judged in [allow(), ask(&[wants("p", 1)])] {
        let verdict = verdict_by(&drifted, call.clone(), &judged, Standing::Running);
        assert_eq!(verdict, Verdict::Later { reason: LaterReason::DefinitionDrifted });
    }
    assert_eq!(held(&drifted, Standing::Running), Some(LaterReason::DefinitionDrifted));
    assert!(matches!(verdict_on(&offered(definition()), call, Standing::Running), Verdict::Allowed { .. }));
}

#[test]
fn what_people_allowed_under_another_definition_is_asked_anew_once_that_is_accepted() {
    let requirements = [wants("p", 1)];
    let old = call("files", "read", json!({}));
    let mut state = approved(&old, &requirements);
    assert!(matches!(verdict_by(&state, old.clone(), &ask(&requirements), Standing::Running), Verdict::Allowed { .. }));
    let changed = Digest::of(b"changed");
    let operations = vec![AcceptedDefinition { name: "read".into(), definition: Some(changed) }];
    let operation = ListedOperation { name: "read".into(), definition: changed };
    apply(
        &mut state,
        vec![
            Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 0 },
            Event::EpochDead { epoch: 1, proof: DeathProof::Reported },
            Event::DefinitionsAccepted { tool: "files".into(), operations, approval: None },
            Event::EpochOpened { epoch: 2, pod_name: "belay-run-b".into() },
            Event::InstanceClaimed { epoch: 2, instance: "j".into(), pod_uid: "q".into() },
            Event::ToolsListed { tool: "files".into(), listing: Listing::Listed(vec![operation]) },
        ],
    );
    let denied = verdict_by(&state, old.clone(), &ask(&requirements), Standing::Running);
    assert!(matches!(denied, Verdict::Denied { reason: DenyReason::DefinitionChanged, .. }), "{denied:?}");
    let plan = state.plan.clone().unwrap();
    let digest = CallBinding::new(&plan, &plan.tools[0], changed, "read", &old.args).digest().unwrap();
    let anew = ProposedCall { definition: changed, digest, ..old };
    let asked = verdict_by(&state, anew, &ask(&requirements), Standing::Running);
    assert_eq!(asked, Verdict::Asked { requirements: requirements.to_vec() });
}

#[test]
fn an_operation_whose_end_people_accepted_is_denied_although_it_is_offered_again() {
    let mut state = folded(claimed(plan()));
    let operations = vec![AcceptedDefinition { name: "read".into(), definition: None }];
    apply(
        &mut state,
        vec![
            Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 0 },
            Event::EpochDead { epoch: 1, proof: DeathProof::Reported },
            Event::DefinitionsAccepted { tool: "files".into(), operations, approval: None },
            Event::EpochOpened { epoch: 2, pod_name: "belay-run-b".into() },
            Event::InstanceClaimed { epoch: 2, instance: "j".into(), pod_uid: "q".into() },
            listed_again(),
            request(1, 1),
            response(1, &["c1"], Finish::ToolCalls, 10),
        ],
    );
    let verdict = verdict_on(&state, call("files", "read", json!({})), Standing::Running);
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
fn a_proposal_of_a_suspended_agent_is_told_to_wait_and_allowed_once_it_is_resumed() {
    let (mut state, call) = (asked(plan()), call("files", "read", json!({})));
    let digest = call.digest;
    let decided = decide_by(&state, vec![proposal("c1", call.clone())], &allow(), Standing::Suspended).unwrap();
    assert_eq!(verdicts(&decided), [Verdict::Later { reason: LaterReason::Suspended }]);
    apply(&mut state, decided);
    assert_eq!(state.calls_in_flight().count(), 0);
    assert_eq!(verdict_on(&state, call, Standing::Running), Verdict::Allowed { digest });
}

#[test]
fn nothing_is_permitted_while_an_earlier_epoch_may_still_act() {
    let mut state = asked(plan());
    state.undead.insert(0, "belay-run-old".to_owned());
    let verdict = verdict_on(&state, call("files", "read", json!({})), Standing::Running);
    assert_eq!(verdict, Verdict::Later { reason: LaterReason::EarlierEpoch });
}

#[test]
fn a_proposal_without_a_word_of_its_policies_is_held() {
    let events = vec![proposal("c1", call("files", "read", json!({})))];
    let stalled = Words::from([(("c1".to_owned(), 1), Word::Stalled("careful: took too long".into()))]);
    let other_attempt = Words::from([(("c1".to_owned(), 2), Word::Judged(allow()))]);
    for words in [Words::new(), stalled, other_attempt] {
        let circumstances = Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now: 1 };
        let decided = decide(&asked(plan()), events.clone(), &circumstances).unwrap();
        assert_eq!(verdicts(&decided), [Verdict::Later { reason: LaterReason::PolicyStalled }]);
    }
}

#[test]
fn a_policys_no_is_told_with_its_rule_and_its_words() {
    let judgement = Judgement::Deny { policy: "careful".into(), rule: Some("no-force".into()), reason: "never".into() };
    let denied = Judged { judgement, opinions: vec![], grants: vec![] };
    let verdict = verdict_by(&asked(plan()), call("files", "read", json!({})), &denied, Standing::Running);
    let message = "ApprovalPolicy careful, rule no-force says no: never".to_owned();
    assert_eq!(verdict, Verdict::Denied { reason: DenyReason::Policy, message });
}

/// A run in which people allowed call c1 with these terms, until 100.
fn approved(call: &ProposedCall, requirements: &[PolicyRequirement]) -> RunState {
    let mut state = asked(plan());
    let decided = decide_by(&state, vec![proposal("c1", call.clone())], &ask(requirements), Standing::Running).unwrap();
    assert_eq!(verdicts(&decided), [Verdict::Asked { requirements: requirements.to_vec() }]);
    apply(&mut state, decided);
    let ask = Ask {
        name: "run-c1-x".into(),
        purpose: AskPurpose::Call,
        call_id: "c1".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: 100,
        digest: Digest::zero(),
        call: Some(call.digest),
        question: None,
        requirements: requirements.to_vec(),
        guard: None,
    };
    let by = requirements.iter().map(|one| Approver { policy: one.policy.clone(), by: "ada".into() }).collect();
    apply(
        &mut state,
        vec![
            Event::AskOpened { ask },
            Event::AskPosted { name: "run-c1-x".into(), uid: "u".into() },
            Event::AskSettled { name: "run-c1-x".into(), answer: Answer::Allowed { by } },
        ],
    );
    state
}

#[test]
fn what_people_allowed_is_permitted_for_those_bytes_on_those_terms_and_until_it_runs_out() {
    let call_a = call("files", "read", json!({"path": "a"}));
    let terms = [wants("careful", 2)];
    let state = approved(&call_a, &terms);
    let on = |call: ProposedCall, terms: &[PolicyRequirement]| verdict_by(&state, call, &ask(terms), Standing::Running);
    assert_eq!(on(call_a.clone(), &terms), Verdict::Allowed { digest: call_a.digest });
    let asked = |terms: &[PolicyRequirement]| Verdict::Asked { requirements: terms.to_vec() };
    assert_eq!(on(call("files", "read", json!({"path": "b"})), &terms), asked(&terms), "other bytes");
    for stricter in [[wants("careful", 3)], [wants("owners", 1)]] {
        assert_eq!(on(call_a.clone(), &stricter), asked(&stricter));
    }
    let duty = [PolicyRequirement { separation_of_duty: true, ..wants("careful", 2) }];
    assert_eq!(on(call_a.clone(), &duty), asked(&duty));
    let words = words_for(&[proposal("c1", call_a.clone())], &ask(&terms));
    let late = Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now: 100 };
    let decided = decide(&state, vec![proposal("c1", call_a)], &late).unwrap();
    assert!(matches!(&verdicts(&decided)[..], [Verdict::Denied { reason: DenyReason::Expired, .. }]), "{decided:?}");
}

/// `approved()`, sent, come back with a question, and that answered: the call is due again.
fn answered_after(call: &ProposedCall, terms: &[PolicyRequirement], expires_at: i64) -> RunState {
    let mut state = approved(call, terms);
    let decided = decide_by(&state, vec![proposal("c1", call.clone())], &ask(terms), Standing::Running).unwrap();
    apply(&mut state, decided);
    let inquiry = Inquiry::Url { message: "m".into(), url: "https://x.example".into() };
    let required = Box::new(InputRequired::in_call(vec![inquiry], "not signed in"));
    let ask = Ask {
        name: "run-c1-q".into(),
        purpose: AskPurpose::Question,
        call_id: "c1".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at,
        digest: Digest::zero(),
        call: None,
        question: Some(0),
        requirements: terms.to_vec(),
        guard: None,
    };
    let by = vec![Approver { policy: "careful".into(), by: "ada".into() }];
    apply(
        &mut state,
        vec![
            Event::CallInputRequired { call_id: "c1".into(), attempt: 1, required, milliseconds: 1 },
            Event::AskOpened { ask },
            Event::AskPosted { name: "run-c1-q".into(), uid: "w".into() },
            Event::AskSettled { name: "run-c1-q".into(), answer: Answer::Answered { content: None, by } },
        ],
    );
    state
}

#[test]
fn who_answers_a_calls_server_has_said_yes_to_the_call_with_that_answer_and_to_nothing_else() {
    let call_a = call("files", "read", json!({"path": "a"}));
    let terms = [wants("careful", 2)];
    let state = answered_after(&call_a, &terms, 200);
    let digest = digest_with(&plan(), &call_a, &state.inputs["c1"]).unwrap();
    let with_answer = ProposedCall { digest, ..call_a.clone() };
    let on = |call: &ProposedCall, terms: &[PolicyRequirement]| {
        let again = Event::CallProposed { call_id: "c1".into(), attempt: 2, call: call.clone() };
        verdicts(&decide_by(&state, vec![again], &ask(terms), Standing::Running).unwrap()).remove(0)
    };
    assert_eq!(on(&with_answer, &terms), Verdict::Allowed { digest });
    let stricter = [wants("careful", 3)];
    assert_eq!(on(&with_answer, &stricter), Verdict::Asked { requirements: stricter.to_vec() });
    let without = on(&call_a, &terms);
    assert!(matches!(without, Verdict::Denied { reason: DenyReason::DigestMismatch, .. }), "{without:?}");
    let other = call("files", "read", json!({"path": "b"}));
    let digest = digest_with(&plan(), &other, &state.inputs["c1"]).unwrap();
    let other = on(&ProposedCall { digest, ..other }, &terms);
    assert!(matches!(other, Verdict::Asked { .. }), "other arguments with the same answer: {other:?}");
}

#[test]
fn an_approval_is_good_for_one_attempt_and_for_no_other_call() {
    let call_a = call("files", "read", json!({"path": "a"}));
    let terms = [wants("careful", 1)];
    let mut state = approved(&call_a, &terms);
    let twin = vec![proposal("c2", call_a.clone())];
    let decided = decide_by(&state, twin, &ask(&terms), Standing::Running).unwrap();
    assert_eq!(verdicts(&decided), [Verdict::Asked { requirements: terms.to_vec() }], "equal bytes of another call");
    let decided = decide_by(&state, vec![proposal("c1", call_a.clone())], &ask(&terms), Standing::Running).unwrap();
    apply(&mut state, decided);
    let lost = Event::CallUnknown { call_id: "c1".into(), attempt: 1, message: String::new() };
    apply(&mut state, vec![lost]);
    let ask_what = Ask {
        name: "run-c1-y".into(),
        purpose: AskPurpose::Unknown,
        call_id: "c1".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: 100,
        digest: Digest::zero(),
        call: None,
        question: None,
        requirements: vec![],
        guard: None,
    };
    apply(
        &mut state,
        vec![
            Event::AskOpened { ask: ask_what },
            Event::AskPosted { name: "run-c1-y".into(), uid: "v".into() },
            Event::AskSettled { name: "run-c1-y".into(), answer: Answer::Retry { by: "ada".into() } },
        ],
    );
    let again = Event::CallProposed { call_id: "c1".into(), attempt: 2, call: call_a };
    let decided = decide_by(&state, vec![again], &ask(&terms), Standing::Running).unwrap();
    assert_eq!(verdicts(&decided), [Verdict::Asked { requirements: terms.to_vec() }], "a retry is asked anew");
}

#[test]
fn what_people_cannot_be_shown_whole_or_so_many_cannot_say_yes_to_is_denied() {
    let huge = call("files", "read", json!({"body": "x".repeat(300_000)}));
    let verdict = verdict_by(&asked(plan()), huge, &ask(&[wants("careful", 1)]), Standing::Running);
    assert!(matches!(verdict, Verdict::Denied { reason: DenyReason::CannotBeAsked, .. }), "{verdict:?}");
    let many: Vec<PolicyRequirement> = (0..4).map(|n| wants(&format!("p{n}"), 8)).collect();
    for requirements in [many, vec![]] {
        let call = call("files", "read", json!({}));
        let verdict = verdict_by(&asked(plan()), call, &ask(&requirements), Standing::Running);
        assert!(matches!(verdict, Verdict::Denied { reason: DenyReason::CannotBeAsked, .. }), "{verdict:?}");
    }
}

/// Where its server asks something, whoever allowed the call without people has to answer as well: what could never be
/// answered is not sent.
#[test]
fn a_call_whose_server_could_ask_more_people_than_an_approval_holds_is_denied() {
    let asking: Vec<PolicyRequirement> = (0..3).map(|n| wants(&format!("p{n}"), 8)).collect();
    let opinion = |n: usize| Opinion {
        policy: format!("other{n}"),
        generation: 1,
        digest: Digest::zero(),
        source: PolicySource::Plan,
        verdict: OpinionVerdict::Allow,
        rule: None,
        error: None,
    };
    let verdict = |others: usize| {
        let mut law = ask(&asking);
        law.opinions.extend((0..others).map(opinion));
        verdict_by(&asked(plan()), call("files", "read", json!({})), &law, Standing::Running)
    };
    assert!(matches!(verdict(0), Verdict::Asked { .. }));
    let Verdict::Denied { reason, message } = verdict(1) else { panic!("it was asked") };
    assert_eq!(reason, DenyReason::CannotBeAsked);
    assert!(message.contains("one more of each of 1 other policies"), "{message}");
}

/// A plan in which `files` and `mail` each offer `read`, that only reads, and `write`.
fn two_tools() -> Plan {
    let mut plan = plan();
    let operation = |name: &str, effects| PlanOperation {
        name: name.into(),
        model_name: name.into(),
        definition: definition(),
        effects,
        gone: false,
    };
    plan.tools[0].operations = vec![operation("read", Effects::None), operation("write", Effects::NonIdempotent)];
    let mail = PlanTool { name: "mail".into(), uid: "mail-uid".into(), ..plan.tools[0].clone() };
    plan.tools.push(mail);
    plan
}

fn calls_of(names: &[&str]) -> (RunState, Vec<Event>) {
    let plan = two_tools();
    let ids: Vec<String> = (1..=names.len()).map(|n| format!("c{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let listed = ["read", "write"].map(|name| ListedOperation { name: name.into(), definition: definition() });
    let mut events = claimed(plan.clone());
    for tool in ["files", "mail"] {
        events.push(Event::ToolsListed { tool: tool.into(), listing: Listing::Listed(listed.to_vec()) });
    }
    events.extend([request(1, 1), response(1, &ids, Finish::ToolCalls, 5)]);
    let proposals = ids.iter().zip(names).map(|(id, name)| {
        let (tool, operation) = name.split_once('/').unwrap();
        let args = json!({});
        let digest =
            CallBinding::new(&plan, plan.tool(tool).unwrap(), definition(), operation, &args).digest().unwrap();
        let (tool, operation, definition) = (tool.into(), operation.into(), definition());
        proposal(id, ProposedCall { tool, operation, args, definition, digest })
    });
    let proposals = proposals.collect();
    (folded(events), proposals)
}

#[rstest]
#[case::reads_of_two_tools_go_together(&["files/read", "mail/read"], &[true, true])]
#[case::a_tool_has_one_call_at_a_time(&["files/read", "files/read", "mail/read"], &[true, false, true])]
#[case::writes_go_one_after_the_other(&["files/write", "mail/write"], &[true, false])]
#[case::a_write_waits_for_the_reads_before_it(&["files/read", "mail/write"], &[true, false])]
#[case::what_follows_a_write_waits_for_it(&["files/write", "mail/read"], &[true, false])]
#[case::a_read_does_not_overtake_a_write_that_waits(&["files/read", "files/write", "mail/read"], &[true, false, false])]
fn calls_of_one_response_go_together_where_their_effects_allow(#[case] names: &[&str], #[case] expected: &[bool]) {
    let (state, proposals) = calls_of(names);
    let decided = decide_allowed(&state, proposals).unwrap();
    let verdicts = verdicts(&decided);
    let goes: Vec<bool> = verdicts.iter().map(|verdict| matches!(verdict, Verdict::Allowed { .. })).collect();
    assert_eq!(goes, expected, "{verdicts:?}");
    let waits = Verdict::Later { reason: LaterReason::CallsUnderWay };
    assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Allowed { .. }) || *verdict == waits));
}

#[test]
fn a_call_that_people_are_asked_about_holds_up_no_other() {
    let (state, proposals) = calls_of(&["files/write", "mail/write"]);
    let mut words = words_for(&proposals, &allow());
    words.insert(("c1".to_owned(), 1), Word::Judged(ask(&[wants("careful", 1)])));
    let circumstances = Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now: 1 };
    let decided = decide(&state, proposals, &circumstances).unwrap();
    assert!(matches!(&verdicts(&decided)[..], [Verdict::Asked { .. }, Verdict::Allowed { .. }]), "{decided:?}");
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
        let decided = decide_allowed(&folded(events), vec![response(1, &[], finish, 1)]).unwrap();
        assert_eq!((end_of(&decided).outcome, end_of(&decided).reason), (outcome, reason));
    }
}

#[test]
fn an_answer_that_does_not_fit_is_asked_again_and_the_third_in_a_row_ends_the_run() {
    let mut plan = plan();
    plan.limits.steps = 9;
    let mut events = claimed(plan);
    for step in 1..=MISFITS_MAX {
        events.push(request(step, 1));
        let mut answer = response(step, &[], Finish::Stop, 1);
        let Event::ModelResponded { response, .. } = &mut answer else { unreachable!() };
        response.misfit = Some("it is not JSON alone.".into());
        let decided = decide_allowed(&folded(events.clone()), vec![answer.clone()]).unwrap();
        if step < MISFITS_MAX {
            assert_eq!(decided, [answer.clone()], "asked again");
            events.push(answer);
            continue;
        }
        let end = end_of(&decided);
        assert_eq!((end.outcome, end.reason), (Outcome::Failed, EndReason::OutputInvalid));
        for words in ["spec.outputSchema of Agent", "it is not JSON alone."] {
            assert!(end.message.contains(words), "{}", end.message);
        }
    }
}

#[test]
fn a_failure_that_nobody_retries_ends_the_run_with_its_words() {
    let failure = |retrying| Failure {
        reason: FailureReason::Unauthorized,
        message: "Model m: 401".into(),
        retrying,
        retry_after_seconds: None,
    };
    let mut events = claimed(plan());
    events.push(request(1, 1));
    let state = folded(events);
    let failed = |retrying| Event::ModelFailed { step: 1, attempt: 1, failure: failure(retrying), reported: None };
    assert_eq!(decide_allowed(&state, vec![failed(true)]).unwrap().len(), 1);
    let decided = decide_allowed(&state, vec![failed(false)]).unwrap();
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
    let decided = decide_allowed(&folded(events), vec![request(steps + 1, 1)]).unwrap();
    assert_eq!(end_of(&decided).reason, expected);
    assert!(end_of(&decided).message.contains("limits."), "{}", end_of(&decided).message);
    assert!(!decided.iter().any(|event| matches!(event, Event::ModelRequested { .. })));
}

fn listed_again() -> Event {
    Event::ToolsListed { tool: "files".into(), listing: Listing::Listed(vec![]) }
}

fn unlistable() -> Event {
    let failure = Failure {
        reason: FailureReason::Unreachable,
        message: "no route".into(),
        retrying: false,
        retry_after_seconds: None,
    };
    Event::ToolsListed { tool: "files".into(), listing: Listing::Failed(failure) }
}

/// A run whose call c1 has a permit out.
fn in_flight(plan: Plan) -> RunState {
    let state = asked(plan);
    let events = vec![proposal("c1", call("files", "read", json!({})))];
    after(&state, &decide_allowed(&state, events).unwrap())
}

fn after(state: &RunState, events: &[Event]) -> RunState {
    let mut state = state.clone();
    for event in events {
        state.apply(&Record { seq: state.seq + 1, at: state.updated_at, event: event.clone() }).unwrap();
    }
    state
}

#[test]
fn without_room_what_is_reported_is_taken_what_is_asked_is_not_and_the_run_ends() {
    let state = in_flight(plan());
    let result =
        ToolResult { is_error: false, content: "ok".into(), truncated_from_bytes: None, artifacts: Vec::new() };
    let observed = Event::CallObserved { call_id: "c1".into(), attempt: 1, result, milliseconds: 1 };
    let room = Room::Used { bytes_max: 7 };
    let decided = decide_within(&state, vec![observed, request(2, 1)], room).unwrap();
    let names: Vec<&str> = decided.iter().map(Event::name).collect();
    assert_eq!(names, ["CallObserved", "LimitReached", "RunEnded"]);
    let end = end_of(&decided);
    assert_eq!(end.reason, EndReason::JournalExceeded);
    assert!(end.message.contains("wrote 7 bytes") && end.message.contains("BELAY_RUN_JOURNAL_MEBIBYTES"), "{end:?}");
}

#[test]
fn a_tool_is_listed_so_often_in_one_epoch_and_no_more() {
    let mut state = folded(claimed(plan()));
    for _ in 0..LISTINGS_PER_EPOCH_MAX {
        let decided = decide_allowed(&state, vec![listed_again()]).unwrap();
        state = after(&state, &decided);
        if state.end.is_some() {
            break;
        }
    }
    assert_eq!(state.end.as_ref().unwrap().reason, EndReason::JournalExceeded);
    // `claimed` holds the first one.
    assert_eq!(state.listed["files"], LISTINGS_PER_EPOCH_MAX + 1);
}

/// Nothing closes a call after the end, and no epoch ends while one is open.
#[rstest]
#[case::by_a_listing_that_failed(vec![unlistable()], Room::Left)]
#[case::by_a_request_that_a_limit_refuses(vec![request(2, 1)], Room::Left)]
#[case::for_want_of_room(vec![listed_again()], Room::Used { bytes_max: 7 })]
fn a_run_that_its_runner_ends_in_the_middle_of_a_call_leaves_nothing_open(
    #[case] events: Vec<Event>,
    #[case] room: Room,
) {
    let mut plan = plan();
    plan.limits.steps = 1;
    let state = in_flight(plan);
    let ended = after(&state, &decide_within(&state, events, room).unwrap());
    assert!(ended.end.is_some());
    assert_eq!(ended.calls_in_flight().count(), 0);
    let cause = belay_protocol::event::EpochEnd::Completed;
    after(&ended, &[Event::EpochEnded { epoch: 1, cause, active_milliseconds: 0 }]);
}

#[test]
fn what_cannot_follow_is_refused_whole() {
    let observed = Event::CallObserved {
        call_id: "c1".into(),
        attempt: 1,
        result: ToolResult {
            is_error: false,
            content: "made up".into(),
            truncated_from_bytes: None,
            artifacts: Vec::new(),
        },
        milliseconds: 1,
    };
    assert!(decide_allowed(&asked(plan()), vec![observed]).is_err());
    assert!(decide_allowed(&asked(plan()), vec![request(2, 1)]).is_err());
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
            result: ToolResult {
                is_error: false,
                content: String::new(),
                truncated_from_bytes: None,
                artifacts: Vec::new()
            },
            milliseconds: 1,
        }),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_events_permits_what_is_not_listed_or_two_calls_at_once(events in prop::collection::vec(any_event(), 0..40)) {
        let mut state = folded(claimed(plan()));
        for event in events {
            let Ok(decided) = decide_allowed(&state, vec![event]) else { continue };
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

/// What may happen to the calls of a response, policies and people included.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// With one of two arguments, and one of some words of the policies.
    Propose {
        id: &'static str,
        path: &'static str,
        word: u8,
    },
    Ask(&'static str),
    Post(&'static str),
    Answer(&'static str, u8),
    Return(&'static str),
    Observe(&'static str),
    Lose(&'static str),
}

const CALLS: [&str; 3] = ["c1", "c2", "c3"];

fn any_move() -> impl Strategy<Value = Move> {
    let id = || prop::sample::select(CALLS.to_vec());
    let path = prop::sample::select(vec!["a", "a", "a", "b"]);
    prop_oneof![
        6 => (id(), path, 0..16_u8).prop_map(|(id, path, word)| Move::Propose { id, path, word }),
        4 => id().prop_map(Move::Ask),
        4 => id().prop_map(Move::Post),
        4 => (id(), 0..16_u8).prop_map(|(id, choice)| Move::Answer(id, choice)),
        1 => id().prop_map(Move::Return),
        2 => id().prop_map(Move::Observe),
        1 => id().prop_map(Move::Lose),
    ]
}

fn word(word: u8) -> Judged {
    match word {
        0..9 => ask(&[wants("careful", 1)]),
        9..11 => ask(&[wants("careful", 2)]),
        11..13 => ask(&[wants("careful", 1), wants("owners", 1)]),
        13..15 => allow(),
        _ => Judged {
            judgement: Judgement::Deny { policy: "careful".into(), rule: None, reason: String::new() },
            opinions: vec![],
            grants: vec![],
        },
    }
}

fn attempt_of(state: &RunState, id: &str) -> u32 {
    match state.calls.get(id) {
        Some(
            CallState::Due { attempt }
            | CallState::Proposed { attempt, .. }
            | CallState::Later { attempt, .. }
            | CallState::Asked { attempt, .. }
            | CallState::Permitted { attempt, .. }
            | CallState::InputRequired { attempt, .. }
            | CallState::Delegated { attempt, .. }
            | CallState::Unknown { attempt, .. },
        ) => *attempt,
        Some(CallState::Settled(_)) | None => 1,
    }
}

fn open_ask<'a>(state: &'a RunState, id: &str) -> Option<&'a Ask> {
    state.asks.values().map(|open| &open.ask).find(|ask| ask.call_id == id)
}

/// The operator's own events; a move that does not fit comes to one that the fold refuses.
fn event_of(state: &RunState, step: Move) -> Option<Event> {
    Some(match step {
        Move::Propose { .. } => return None,
        Move::Ask(id) => {
            let (purpose, call, requirements) = match state.calls.get(id)? {
                CallState::Asked { call, requirements, .. } => {
                    (AskPurpose::Call, Some(call.digest), requirements.clone())
                }
                _ => (AskPurpose::Unknown, None, vec![]), // refused unless its end is unknown
            };
            let ask = Ask {
                name: format!("run-{id}-{}", state.seq),
                purpose,
                call_id: id.into(),
                attempt: attempt_of(state, id),
                nonce: String::new(),
                expires_at: 100,
                digest: Digest::zero(),
                call,
                question: None,
                requirements,
                guard: None,
            };
            Event::AskOpened { ask }
        }
        Move::Post(id) => Event::AskPosted { name: open_ask(state, id)?.name.clone(), uid: "u".into() },
        Move::Answer(id, choice) => {
            let answer = match choice {
                0..8 => Answer::Allowed { by: vec![] },
                8..10 => Answer::Denied { by: "ada".into(), reason: String::new() },
                10..12 => Answer::Expired {},
                12..14 => Answer::Retry { by: "ada".into() },
                _ => Answer::Withdrawn { why: "gone".into() },
            };
            Event::AskSettled { name: open_ask(state, id)?.name.clone(), answer }
        }
        Move::Return(id) => Event::PermitReturned { call_id: id.into(), attempt: attempt_of(state, id) },
        Move::Observe(id) => Event::CallObserved {
            call_id: id.into(),
            attempt: attempt_of(state, id),
            result: ToolResult {
                is_error: false,
                content: String::new(),
                truncated_from_bytes: None,
                artifacts: Vec::new(),
            },
            milliseconds: 1,
        },
        Move::Lose(id) => {
            Event::CallUnknown { call_id: id.into(), attempt: attempt_of(state, id), message: String::new() }
        }
    })
}

/// What people said yes to, kept without the fold.
#[derive(Default)]
struct Yeses(Vec<(String, u32, Digest, Vec<PolicyRequirement>)>);

impl Yeses {
    fn hear(&mut self, ask: &Ask, answer: &Answer) {
        if let (Answer::Allowed { .. }, Some(call)) = (answer, ask.call) {
            self.0.push((ask.call_id.clone(), ask.attempt, call, ask.requirements.clone()));
        }
    }

    fn cover(&self, id: &str, attempt: u32, digest: Digest, wanted: &[PolicyRequirement]) -> bool {
        self.0.iter().any(|(call, of, over, terms)| {
            let met = |want: &PolicyRequirement| {
                terms.iter().any(|had| had.policy == want.policy && had.quorum >= want.quorum)
            };
            call == id && *of == attempt && *over == digest && wanted.iter().all(met)
        })
    }
}

/// Plays the moves and checks each permit; how many of them people had to say yes to.
fn permits_after_a_yes(moves: &[Move]) -> usize {
    let mut events = claimed(plan());
    events.extend([request(1, 1), response(1, &CALLS, Finish::ToolCalls, 5)]);
    let (mut state, mut yeses, mut permits) = (folded(events), Yeses::default(), 0);
    for step in moves {
        let Move::Propose { id, path, word: said } = *step else {
            let Some(event) = event_of(&state, *step) else { continue };
            let about = match &event {
                Event::AskSettled { name, answer } => Some((state.asks[name].ask.clone(), answer.clone())),
                _ => None,
            };
            if state.apply(&Record { seq: state.seq + 1, at: 1, event }).is_ok()
                && let Some((ask, answer)) = about
            {
                yeses.hear(&ask, &answer);
            }
            continue;
        };
        let (judged, attempt) = (word(said), attempt_of(&state, id));
        let call = call("files", "read", json!({"path": path}));
        let digest = call.digest;
        let proposed = Event::CallProposed { call_id: id.into(), attempt, call };
        let Ok(decided) = decide_by(&state, vec![proposed], &judged, Standing::Running) else { continue };
        if let [Verdict::Allowed { digest: permitted }] = verdicts(&decided)[..] {
            assert_eq!(permitted, digest);
            match &judged.judgement {
                Judgement::Allow => {}
                Judgement::Ask { requirements } => {
                    assert!(yeses.cover(id, attempt, digest, requirements), "{id} goes without a yes: {moves:?}");
                    permits += 1;
                }
                Judgement::Deny { .. } => panic!("{id} was denied: {moves:?}"),
            }
        }
        apply(&mut state, decided);
    }
    permits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_sequence_of_events_permits_what_people_have_to_allow_without_their_yes_to_it(
        moves in prop::collection::vec(any_move(), 0..120),
    ) {
        permits_after_a_yes(&moves);
    }
}

#[test]
fn walks_get_as_far_as_permits_that_people_gave() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let (mut runner, any) = (TestRunner::deterministic(), prop::collection::vec(any_move(), 0..120));
    let permits: usize = (0..400).map(|_| permits_after_a_yes(&any.new_tree(&mut runner).unwrap().current())).sum();
    assert!(permits >= 20, "a property that is never tried proves nothing: {permits}");
}
