//! Calls that go by what people allowed for the rest of the run.

use belay_protocol::grant::{Grant, GrantPattern, GrantTerms};
use belay_protocol::guard::{GuardStamp, RuleVersion};

use super::*;

const FIVE: GrantTerms = GrantTerms { max_count: 5, max_seconds: 60 };

fn lets(policy: &str, quorum: u32, grants: Option<GrantTerms>) -> PolicyRequirement {
    PolicyRequirement { grants, ..wants(policy, quorum) }
}

fn careful() -> Vec<PolicyRequirement> {
    vec![lets("careful", 1, Some(FIVE))]
}

fn granted(judged: &Judged, fits: &[&str]) -> Word {
    Word::Granted { judged: judged.clone(), fits: fits.iter().map(|name| (*name).to_owned()).collect() }
}

/// A run of `asks`, in which people gave grants of these names, policies and counts with their yes to c1; what it asked for
/// next is due.
fn given(requirements: &[PolicyRequirement], grants: &[(&str, &str, u32)]) -> RunState {
    let first = call("files", "read", json!({"path": "a"}));
    let mut state = approved(&first, requirements);
    let decided = decide_by(&state, vec![proposal("c1", first)], &ask(requirements), Standing::Running).unwrap();
    apply(&mut state, decided);
    let opened = grants
        .iter()
        .map(|(name, policy, count)| Event::GrantOpened { grant: grant(requirements, name, policy, *count) });
    apply(&mut state, opened.collect());
    let posted =
        grants.iter().map(|(name, ..)| Event::GrantPosted { name: (*name).into(), uid: format!("uid-{name}") });
    apply(&mut state, posted.collect());
    let result =
        ToolResult { is_error: false, content: String::new(), truncated_from_bytes: None, artifacts: Vec::new() };
    apply(&mut state, vec![Event::CallObserved { call_id: "c1".into(), attempt: 1, result, milliseconds: 1 }]);
    let reason = belay_protocol::event::NotSentReason::UnknownTool;
    apply(&mut state, vec![Event::CallNotSent { call_id: "c2".into(), attempt: 1, reason, message: String::new() }]);
    apply(&mut state, vec![request(2, 1), response(2, &["c3", "c4"], Finish::ToolCalls, 5)]);
    state
}

fn grant(requirements: &[PolicyRequirement], name: &str, policy: &str, count: u32) -> Grant {
    let pattern = GrantPattern {
        policy: policy.into(),
        tool: "files".into(),
        operation: "read".into(),
        definition: definition(),
        when: "true".into(),
        count,
        seconds: 60,
    };
    let version = RuleVersion { uid: "u".into(), generation: 1 };
    Grant {
        name: name.into(),
        digest: pattern.digest().unwrap(),
        pattern,
        requirement: requirements.iter().find(|one| one.policy == policy).unwrap().clone(),
        call_id: "c1".into(),
        approval: "run-c1-x".into(),
        by: requirements.iter().filter(|one| one.policy == policy).map(|_| "ada".to_owned()).collect(),
        expires_at: 1000,
        guard: GuardStamp { policy: version.clone(), binding: version },
    }
}

fn decided(state: &RunState, calls: &[(&str, Word)], now: i64) -> Vec<Event> {
    let call = || call("files", "read", json!({"path": "b"}));
    let words = calls.iter().map(|(id, word)| (((*id).to_owned(), 1), word.clone())).collect();
    let events = calls.iter().map(|(id, _)| proposal(id, call())).collect();
    decide(state, events, &Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now }).unwrap()
}

fn said(state: &RunState, wanted: &[PolicyRequirement], fits: &[&str], now: i64) -> (Verdict, Vec<String>) {
    let events = decided(state, &[("c3", granted(&ask(wanted), fits))], now);
    events
        .into_iter()
        .find_map(|event| match event {
            Event::CallDecided { verdict, judged, .. } => Some((verdict, judged.unwrap().grants)),
            _ => None,
        })
        .unwrap()
}

fn allowed_by(names: &[&str]) -> (Verdict, Vec<String>) {
    let digest = call("files", "read", json!({"path": "b"})).digest;
    (Verdict::Allowed { digest }, names.iter().map(|name| (*name).to_owned()).collect())
}

fn is_asked(wanted: &[PolicyRequirement]) -> (Verdict, Vec<String>) {
    (Verdict::Asked { requirements: wanted.to_vec() }, Vec::new())
}

#[test]
fn what_people_allowed_for_the_run_is_permitted_by_name_until_its_time_is_over() {
    let state = given(&careful(), &[("g", "careful", 5)]);
    assert_eq!(said(&state, &careful(), &["g"], 999), allowed_by(&["g"]));
    assert_eq!(said(&state, &careful(), &["g"], 1000), is_asked(&careful()), "expired");
    assert_eq!(said(&state, &careful(), &[], 1), is_asked(&careful()), "its pattern does not fit");
    assert_eq!(said(&state, &careful(), &["other"], 1), is_asked(&careful()), "the run holds no such grant");
}

#[test]
fn a_grant_that_was_revoked_or_has_no_object_yet_is_good_for_nothing() {
    let mut state = given(&careful(), &[("g", "careful", 5)]);
    let mut unposted = state.clone();
    unposted.grants.get_mut("g").unwrap().uid = None;
    assert_eq!(said(&unposted, &careful(), &["g"], 1), is_asked(&careful()));
    apply(&mut state, vec![Event::GrantRevoked { name: "g".into(), why: "deleted".into() }]);
    assert_eq!(said(&state, &careful(), &["g"], 1), is_asked(&careful()));
}

#[test]
fn two_calls_of_one_batch_do_not_both_take_the_last_use() {
    let mut state = given(&careful(), &[("g", "careful", 1)]);
    let word = granted(&ask(&careful()), &["g"]);
    let events = decided(&state, &[("c3", word.clone()), ("c4", word)], 1);
    assert!(
        matches!(&verdicts(&events)[..], [Verdict::Allowed { .. }, Verdict::Asked { .. }]),
        "{:?}",
        verdicts(&events)
    );
    apply(&mut state, events);
    assert_eq!(state.grants["g"].left(), 0);
}

#[test]
fn a_call_that_has_to_wait_for_another_uses_nothing() {
    let state = given(&careful(), &[("g", "careful", 2)]);
    let word = granted(&ask(&careful()), &["g"]);
    let events = decided(&state, &[("c3", word.clone()), ("c4", word)], 1);
    let told: Vec<_> = verdicts(&events);
    assert!(matches!(&told[..], [Verdict::Allowed { .. }, Verdict::Later { .. }]), "{told:?}");
    let after = after(&state, &events);
    assert_eq!(after.grants["g"].left(), 1);
}

/// What policies want of a call, and whether a grant of five, given where one person was wanted, is enough.
#[rstest]
#[case::as_it_was_given(vec![lets("careful", 1, Some(FIVE))], true)]
#[case::more_may_be_given_now(vec![lets("careful", 1, Some(GrantTerms { max_count: 9, max_seconds: 90 }))], true)]
#[case::nobody_may_give_any_now(vec![lets("careful", 1, None)], false)]
#[case::so_many_may_not_be_given_now(vec![lets("careful", 1, Some(GrantTerms { max_count: 4, max_seconds: 60 }))], false)]
#[case::so_long_may_not_be_given_now(vec![lets("careful", 1, Some(GrantTerms { max_count: 5, max_seconds: 59 }))], false)]
#[case::more_people_are_wanted(vec![lets("careful", 2, Some(FIVE))], false)]
#[case::others_are_wanted(vec![PolicyRequirement { separation_of_duty: true, ..lets("careful", 1, Some(FIVE)) }], false)]
#[case::another_policy_asks(vec![lets("owners", 1, Some(FIVE))], false)]
#[case::another_policy_asks_too(vec![lets("careful", 1, Some(FIVE)), lets("owners", 1, Some(FIVE))], false)]
#[case::nobody_is_wanted(vec![], false)]
fn a_grant_is_good_within_what_is_wanted_now(#[case] wanted: Vec<PolicyRequirement>, #[case] enough: bool) {
    let state = given(&careful(), &[("g", "careful", 5)]);
    let (verdict, used) = said(&state, &wanted, &["g"], 1);
    assert_eq!(matches!(verdict, Verdict::Allowed { .. }), enough, "{verdict:?}");
    assert_eq!(used.is_empty(), !enough);
}

#[test]
fn each_policy_that_asks_needs_a_grant_of_its_own_and_the_one_that_runs_out_first_is_used() {
    let both = vec![lets("careful", 1, Some(FIVE)), lets("owners", 1, Some(FIVE))];
    let mut state = given(&both, &[("g1", "careful", 5), ("g2", "owners", 5), ("g3", "careful", 5)]);
    state.grants.get_mut("g1").unwrap().grant.expires_at = 2000;
    assert_eq!(said(&state, &both, &["g1", "g2", "g3"], 1), allowed_by(&["g3", "g2"]));
    assert_eq!(said(&state, &both, &["g1", "g3"], 1), is_asked(&both));
}

#[test]
fn a_definition_that_is_another_one_than_was_allowed_is_asked_about() {
    let mut state = given(&careful(), &[("g", "careful", 5)]);
    state.grants.get_mut("g").unwrap().grant.pattern.definition = Digest::of(b"as it was");
    assert_eq!(said(&state, &careful(), &["g"], 1), is_asked(&careful()));
}

#[test]
fn no_grant_outweighs_a_policy_that_denies_or_a_run_that_is_held_up() {
    let mut state = given(&careful(), &[("g", "careful", 5)]);
    let judgement = Judgement::Deny { policy: "careful".into(), rule: None, reason: String::new() };
    let denied = granted(&Judged { judgement, opinions: vec![], grants: vec![] }, &["g"]);
    let events = decided(&state, &[("c3", denied)], 1);
    assert!(matches!(&verdicts(&events)[..], [Verdict::Denied { reason: DenyReason::Policy, .. }]));
    state.undead.insert(9, "pod".into());
    let (verdict, used) = said(&state, &careful(), &["g"], 1);
    assert_eq!((verdict, used), (Verdict::Later { reason: LaterReason::EarlierEpoch }, vec![]));
}

#[test]
fn what_people_allowed_themselves_uses_no_grant() {
    let first = call("files", "read", json!({"path": "a"}));
    let mut state = approved(&first, &careful());
    apply(&mut state, vec![Event::GrantOpened { grant: grant(&careful(), "g", "careful", 5) }]);
    apply(&mut state, vec![Event::GrantPosted { name: "g".into(), uid: "u".into() }]);
    let words = Words::from([(("c1".to_owned(), 1), granted(&ask(&careful()), &["g"]))]);
    let circumstances = Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now: 1 };
    let events = decide(&state, vec![proposal("c1", first)], &circumstances).unwrap();
    assert!(matches!(&verdicts(&events)[..], [Verdict::Allowed { .. }]), "{events:?}");
    assert_eq!(after(&state, &events).grants["g"].left(), 5);
}

/// What a person answers to a server's form is not what a pattern looked at.
#[test]
fn a_call_that_carries_answers_goes_by_no_grant() {
    let mut state = given(&careful(), &[("g", "careful", 5)]);
    assert_eq!(said(&state, &careful(), &["g"], 1), allowed_by(&["g"]));
    state.inputs.insert("c3".into(), belay_protocol::elicitation::Inputs::default());
    assert_eq!(said(&state, &careful(), &["g"], 1), is_asked(&careful()));
}
