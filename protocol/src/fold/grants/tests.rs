#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use crate::Record;
use crate::call::CallBinding;
use crate::chain::{Head, SealedRecord};
use crate::cost::Usage;
use crate::digest::Digest;
use crate::event::{
    Answer, Approver, Ask, AskPurpose, DenyReason, Event, Finish, Item, LaterReason, ModelResponse, ProposedCall,
    ToolResult, Verdict,
};
use crate::export::{GrantedBy, PermittedBy, verify, write};
use crate::fold::{IllegalEvent, RunState};
use crate::grant::{Grant, GrantPattern, GrantTerms};
use crate::guard::{GuardStamp, RuleVersion};
use crate::judgement::{Judged, Judgement, PolicyRequirement};
use crate::plan::Plan;

fn plan() -> Plan {
    serde_json::from_value(json!({
        "version": 1, "run": {"namespace": "team", "name": "run", "uid": "run-uid"},
        "agent": {"namespace": "team", "name": "triage", "uid": "agent-uid"}, "agentGeneration": 1, "input": "go",
        "model": {"name": "m", "api": "Scripted", "model": "m", "timeouts":
            {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
        "tools": [{"name": "files", "uid": "files-uid", "url": "http://files/mcp", "callTimeoutSeconds": 5,
            "operations": [{"name": "write", "modelName": "files__write", "definition": Digest::of(b"definition")}]}],
        "limits": {"steps": 9, "activeSeconds": 60, "waitSeconds": 60},
    }))
    .unwrap()
}

fn take(state: &mut RunState, event: Event) -> Result<(), IllegalEvent> {
    let record = Record { seq: state.seq + 1, at: 1000, event };
    state.apply(&record)
}

fn folded(events: Vec<Event>) -> RunState {
    let mut state = RunState::default();
    for event in events {
        take(&mut state, event).unwrap();
    }
    state
}

fn call(operation: &str) -> ProposedCall {
    let (plan, args, definition) = (plan(), json!({}), Digest::of(b"definition"));
    let digest = CallBinding::new(&plan, &plan.tools[0], definition, operation, &args).digest().unwrap();
    ProposedCall { tool: "files".into(), operation: operation.into(), args, definition, digest }
}

fn wanted() -> PolicyRequirement {
    PolicyRequirement {
        policy: "careful".into(),
        generation: 1,
        quorum: 2,
        separation_of_duty: false,
        expires_after_seconds: 60,
        grants: Some(GrantTerms { max_count: 3, max_seconds: 60 }),
    }
}

fn grant() -> Grant {
    let pattern = GrantPattern {
        policy: "careful".into(),
        tool: "files".into(),
        operation: "write".into(),
        definition: Digest::of(b"definition"),
        when: "true".into(),
        count: 2,
        seconds: 60,
    };
    let version = RuleVersion { uid: "u".into(), generation: 1 };
    Grant {
        name: "run-c1-gx".into(),
        digest: pattern.digest().unwrap(),
        pattern,
        requirement: wanted(),
        call_id: "c1".into(),
        approval: "run-c1-x".into(),
        by: vec!["ada".into(), "bob".into()],
        expires_at: 61_000,
        guard: GuardStamp { policy: version.clone(), binding: version },
    }
}

fn response(step: u32, first: u32, calls: u32) -> [Event; 2] {
    let item = |n: u32| Item::ToolCall {
        call_id: format!("c{n}"),
        provider_id: String::new(),
        name: "files__write".into(),
        arguments: "{}".into(),
    };
    let response =
        ModelResponse::new((first..first + calls).map(item).collect(), Finish::ToolCalls, Usage::default(), 1);
    [
        Event::ModelRequested { step, attempt: 1, request: Digest::zero(), reserved_tokens: 1 },
        Event::ModelResponded { step, attempt: 1, response },
    ]
}

fn proposed(id: &str, operation: &str) -> Event {
    Event::CallProposed { call_id: id.into(), attempt: 1, call: call(operation) }
}

fn by(grants: &[&str]) -> Judged {
    let requirements = vec![wanted()];
    let grants = grants.iter().map(|name| (*name).to_owned()).collect();
    Judged { judgement: Judgement::Ask { requirements }, opinions: vec![], grants }
}

fn allowed(id: &str, operation: &str, grants: &[&str]) -> Event {
    let verdict = Verdict::Allowed { digest: call(operation).digest };
    Event::CallDecided { call_id: id.into(), attempt: 1, verdict, judged: Some(Box::new(by(grants))) }
}

/// Two people allowed c1, which was answered; the model then asked for four more calls.
fn approved() -> Vec<Event> {
    let requirements = vec![wanted()];
    let ask = Ask {
        name: "run-c1-x".into(),
        purpose: AskPurpose::Call,
        call_id: "c1".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: 100_000,
        digest: Digest::zero(),
        call: Some(call("write").digest),
        requirements: requirements.clone(),
        guard: None,
        question: None,
    };
    let yes = |by: &str| Approver { policy: "careful".into(), by: by.into() };
    let answer = Answer::Allowed { by: vec![yes("ada"), yes("bob")] };
    let [asks, responds] = response(1, 1, 1);
    vec![
        Event::RunAccepted { plan_digest: plan().digest().unwrap(), plan: Box::new(plan()) },
        Event::EpochOpened { epoch: 1, pod_name: "p".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "u".into() },
        asks,
        responds,
        proposed("c1", "write"),
        Event::CallDecided {
            call_id: "c1".into(),
            attempt: 1,
            verdict: Verdict::Asked { requirements },
            judged: Some(Box::new(by(&[]))),
        },
        Event::AskOpened { ask },
        Event::AskPosted { name: "run-c1-x".into(), uid: "a".into() },
        Event::AskSettled { name: "run-c1-x".into(), answer },
    ]
}

fn posted() -> Event {
    Event::GrantPosted { name: "run-c1-gx".into(), uid: "g".into() }
}

fn revoked() -> Event {
    Event::GrantRevoked { name: "run-c1-gx".into(), why: "deleted".into() }
}

/// A run with a grant of two uses, in which c2 to c5 are due.
fn granted() -> RunState {
    folded(granted_events())
}

fn granted_events() -> Vec<Event> {
    let mut events = approved();
    let result =
        ToolResult { is_error: false, content: String::new(), truncated_from_bytes: None, artifacts: Vec::new() };
    events.extend([
        Event::GrantOpened { grant: grant() },
        posted(),
        proposed("c1", "write"),
        allowed("c1", "write", &[]),
    ]);
    events.push(Event::CallObserved { call_id: "c1".into(), attempt: 1, result, milliseconds: 1 });
    events.extend(response(2, 2, 4));
    events
}

#[test]
fn what_went_by_a_grant_is_told_with_who_gave_it() {
    let events = granted_events().into_iter().chain([proposed("c2", "write"), allowed("c2", "write", &[NAME])]);
    let mut head = Head::empty();
    let seal = |event| {
        let sealed = head.seal(event, 1000).unwrap();
        head = sealed.head();
        sealed
    };
    let records: Vec<SealedRecord> = events.map(seal).collect();
    let verified = verify(&write("journal", &plan().run, &records)).unwrap();
    let people = vec!["ada".to_owned(), "bob".to_owned()];
    let given = GrantedBy { grant: NAME.into(), policy: "careful".into(), people };
    let told: Vec<_> = verified.effects.iter().map(|row| (row.call_id.as_str(), row.permitted_by.clone())).collect();
    let yes = |by: &str| Approver { policy: "careful".into(), by: by.into() };
    let people = PermittedBy::People(vec![yes("ada"), yes("bob")]);
    assert_eq!(told, [("c1", people), ("c2", PermittedBy::Grants(vec![given]))]);
}

const NAME: &str = "run-c1-gx";

#[test]
fn a_grant_counts_down_with_each_call_that_gets_a_permit_by_it_and_then_allows_none() {
    let mut state = granted();
    for (id, left) in [("c2", 1), ("c3", 0)] {
        take(&mut state, proposed(id, "write")).unwrap();
        take(&mut state, allowed(id, "write", &[NAME])).unwrap();
        assert_eq!(state.grants[NAME].left(), left);
    }
    take(&mut state, proposed("c4", "write")).unwrap();
    let before = state.clone();
    assert!(take(&mut state, allowed("c4", "write", &[NAME])).is_err());
    assert_eq!(state, before, "a refused event changes nothing");
    take(&mut state, allowed("c4", "write", &[])).unwrap();
}

#[test]
fn a_permit_that_came_back_stays_counted() {
    let mut state = granted();
    for event in [
        proposed("c2", "write"),
        allowed("c2", "write", &[NAME]),
        Event::PermitReturned { call_id: "c2".into(), attempt: 1 },
        proposed("c2", "write"),
        allowed("c2", "write", &[NAME]),
    ] {
        take(&mut state, event).unwrap();
    }
    assert_eq!(state.grants[NAME].left(), 0);
}

#[test]
fn only_a_permit_uses_a_grant() {
    for verdict in [
        Verdict::Later { reason: LaterReason::CallsUnderWay },
        Verdict::Asked { requirements: vec![wanted()] },
        Verdict::Denied { reason: DenyReason::Policy, message: String::new() },
    ] {
        let mut state = granted();
        take(&mut state, proposed("c2", "write")).unwrap();
        let decided =
            |judged| Event::CallDecided { call_id: "c2".into(), attempt: 1, verdict: verdict.clone(), judged };
        assert!(take(&mut state, decided(Some(Box::new(by(&[NAME]))))).is_err(), "{verdict:?}");
        take(&mut state, decided(Some(Box::new(by(&[]))))).unwrap();
        assert_eq!(state.grants[NAME].left(), 2);
    }
}

#[rstest]
#[case::another_operation("read", &[NAME])]
#[case::one_that_is_not_there("write", &["run-c1-gy"])]
#[case::the_same_twice("write", &[NAME, NAME])]
fn a_call_goes_by_no_other_grant(#[case] operation: &str, #[case] grants: &[&str]) {
    let mut state = granted();
    take(&mut state, proposed("c2", operation)).unwrap();
    assert!(take(&mut state, allowed("c2", operation, grants)).is_err());
}

#[test]
fn a_grant_allows_nothing_before_its_object_is_there_and_never_again_once_that_is_gone() {
    let mut state = granted();
    take(&mut state, proposed("c2", "write")).unwrap();
    take(&mut state, revoked()).unwrap();
    assert!(take(&mut state, allowed("c2", "write", &[NAME])).is_err());
    for again in [posted(), revoked()] {
        assert!(take(&mut state, again).is_err());
    }
    let mut unposted = folded(approved());
    take(&mut unposted, Event::GrantOpened { grant: grant() }).unwrap();
    take(&mut unposted, proposed("c1", "write")).unwrap();
    assert!(take(&mut unposted, allowed("c1", "write", &[NAME])).is_err());
}

type Edit = fn(&mut Grant);

#[rstest]
#[case::fewer_people_than_the_quorum(|it: &mut Grant| it.by = vec!["ada".into()])]
#[case::one_twice(|it: &mut Grant| it.by = vec!["ada".into(), "ada".into()])]
#[case::someone_who_said_nothing(|it: &mut Grant| it.by = vec!["ada".into(), "bob".into(), "eve".into()])]
#[case::a_call_that_nobody_allowed(|it: &mut Grant| it.call_id = "c2".into())]
#[case::more_than_the_terms(|it: &mut Grant| it.pattern.count = 4)]
#[case::longer_than_the_terms(|it: &mut Grant| it.pattern.seconds = 61)]
#[case::a_policy_without_terms(|it: &mut Grant| it.requirement.grants = None)]
#[case::other_terms_than_were_asked(|it: &mut Grant| it.requirement.grants = Some(GrantTerms { max_count: 9, max_seconds: 60 }))]
#[case::another_policy(|it: &mut Grant| it.requirement.policy = "owners".into())]
fn only_what_enough_people_said_on_the_terms_of_their_policy_is_a_grant(#[case] edit: Edit) {
    let mut wrong = grant();
    edit(&mut wrong);
    wrong.digest = wrong.pattern.digest().unwrap();
    assert!(take(&mut folded(approved()), Event::GrantOpened { grant: wrong }).is_err());
}

#[test]
fn a_grant_under_another_digest_or_a_name_that_is_taken_is_none() {
    let wrong = Grant { digest: Digest::zero(), ..grant() };
    assert!(take(&mut folded(approved()), Event::GrantOpened { grant: wrong }).is_err());
    let mut state = folded(approved());
    take(&mut state, Event::GrantOpened { grant: grant() }).unwrap();
    assert!(take(&mut state, Event::GrantOpened { grant: grant() }).is_err());
}

#[test]
fn a_run_holds_so_many_grants_and_no_more() {
    let mut state = folded(approved());
    for n in 0..crate::GRANTS_MAX {
        take(&mut state, Event::GrantOpened { grant: Grant { name: format!("g{n}"), ..grant() } }).unwrap();
    }
    assert!(take(&mut state, Event::GrantOpened { grant: grant() }).is_err());
}

proptest! {
    #[test]
    fn no_sequence_of_events_gets_more_permits_out_of_a_grant_than_it_has(turns in prop::collection::vec((0_u8..5, 2_u32..6), 0..60)) {
        let mut state = granted();
        let (mut used, mut gone) = (0, false);
        for (what, n) in turns {
            let id = format!("c{n}");
            let event = match what {
                0 | 1 => proposed(&id, "write"),
                2 => allowed(&id, "write", &[NAME]),
                3 => Event::PermitReturned { call_id: id, attempt: 1 },
                _ => revoked(),
            };
            let by_grant = what == 2;
            if take(&mut state, event).is_ok() {
                prop_assert!(!by_grant || !gone, "after it was revoked");
                used += u32::from(by_grant);
                gone |= what > 3;
            }
        }
        prop_assert!(used <= 2);
    }
}
