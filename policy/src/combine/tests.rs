#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::engine::tests::{any_call, any_policy, any_rule, call, policy};
use crate::facts::Facts;

fn engine(name: &str, spec: &str) -> Arc<Engine> {
    Arc::new(Engine::compile(&PlanPolicy { name: name.to_owned(), ..policy(spec) }).unwrap())
}

fn judged(voices: &[Voice], facts: &Facts) -> Judged {
    combine(voices, &Scene::new(facts))
}

fn planned(policies: &[(&str, &str)]) -> Vec<Voice> {
    policies.iter().map(|(name, spec)| Voice::Plan(engine(name, spec))).collect()
}

const ALLOWS: &str = "{otherwise: Abstain, rules: [{name: all, action: Allow}]}";
const DENIES: &str = "{otherwise: Abstain, rules: [{name: none, action: Deny, reason: not here}]}";
const ASKS_TWO: &str =
    "{rules: [{name: two, action: Ask, ask: {quorum: 2, separationOfDuty: true, expiresAfterSeconds: 60}}]}";
const ABSTAINS: &str = "{otherwise: Abstain}";

fn write() -> Facts {
    call("x", json!({}))
}

fn read() -> Facts {
    Facts { effects: Effects::None, ..write() }
}

fn needs(policy: &str, quorum: u32) -> PolicyRequirement {
    PolicyRequirement {
        policy: policy.to_owned(),
        generation: if policy == DEFAULT_POLICY { 0 } else { 3 },
        quorum,
        separation_of_duty: quorum == 2,
        expires_after_seconds: if quorum == 2 { 60 } else { 86_400 },
        grants: None,
    }
}

#[test]
fn the_strictest_policy_wins_and_an_agents_own_never_loosens_what_an_owner_decided() {
    let agents = ("agent", ALLOWS);
    let denied = judged(&planned(&[agents, ("owner", DENIES)]), &write());
    let reason = "not here".to_owned();
    assert_eq!(denied.judgement, Judgement::Deny { policy: "owner".into(), rule: Some("none".into()), reason });
    let asked = judged(&planned(&[agents, ("owner", ASKS_TWO)]), &write());
    assert_eq!(asked.judgement, Judgement::Ask { requirements: vec![needs("owner", 2)] });
    assert_eq!(judged(&planned(&[agents, ("owner", ABSTAINS)]), &write()).judgement, Judgement::Allow);
}

#[test]
fn each_policy_that_asks_adds_its_own_requirement() {
    let asked = judged(&planned(&[("tool", "{}"), ("agent", ASKS_TWO), ("owner", ALLOWS)]), &write());
    assert_eq!(asked.judgement, Judgement::Ask { requirements: vec![needs("agent", 2), needs("tool", 1)] });
    let told: Vec<_> = asked.opinions.iter().map(|o| (o.policy.as_str(), o.verdict, o.rule.as_deref())).collect();
    assert_eq!(
        told,
        [
            ("agent", OpinionVerdict::Ask, Some("two")),
            ("owner", OpinionVerdict::Allow, Some("all")),
            ("tool", OpinionVerdict::Ask, None),
        ]
    );
}

#[test]
fn where_no_policy_has_a_say_reads_are_allowed_and_the_rest_is_asked() {
    for voices in [planned(&[]), planned(&[("a", ABSTAINS), ("b", ABSTAINS)])] {
        assert_eq!(judged(&voices, &read()).judgement, Judgement::Allow);
        let asked = judged(&voices, &write());
        assert_eq!(asked.judgement, Judgement::Ask { requirements: vec![needs(DEFAULT_POLICY, 1)] });
        let last = asked.opinions.iter().find(|o| o.source == PolicySource::Default).unwrap();
        assert_eq!((last.policy.as_str(), last.generation, last.verdict), ("default", 0, OpinionVerdict::Ask));
    }
    for effects in [Effects::Idempotent, Effects::NonIdempotent] {
        let one = PolicyRequirement {
            policy: "default".into(),
            generation: 0,
            quorum: 1,
            separation_of_duty: false,
            expires_after_seconds: 86_400,
            grants: None,
        };
        assert_eq!(judged(&[], &Facts { effects, ..write() }).judgement, Judgement::Ask { requirements: vec![one] });
    }
}

#[test]
fn the_built_in_policy_does_not_allow_what_nobody_could_look_at() {
    let large = Facts { args: json!({"body": "x".repeat(1024 * 1024)}), ..read() };
    let asked = judged(&[], &large);
    assert_eq!(asked.judgement, Judgement::Ask { requirements: vec![needs(DEFAULT_POLICY, 1)] });
    assert_eq!(asked.opinions[0].error.as_deref(), Some("rule reads: the arguments hold more than 262144 bytes"));
}

#[test]
fn the_built_in_policy_is_silent_where_another_has_a_say() {
    let denied = judged(&planned(&[("a", DENIES)]), &read());
    assert!(denied.opinions.iter().all(|o| o.source != PolicySource::Default));
}

#[test]
fn what_a_run_above_allows_or_asks_leaves_the_built_in_policy_in_force() {
    let above = |spec| Voice::Above(engine("callers", spec));
    let default = needs(DEFAULT_POLICY, 1);
    for own in [vec![], planned(&[("own", ABSTAINS)])] {
        let with = |spec, facts: &Facts| judged(&[vec![above(spec)], own.clone()].concat(), facts).judgement;
        assert_eq!(with(ALLOWS, &write()), Judgement::Ask { requirements: vec![default.clone()] });
        assert_eq!(with(ALLOWS, &read()), Judgement::Allow, "as it would be without the caller");
        let both = vec![needs("callers", 2), default.clone()];
        assert_eq!(
            with(ASKS_TWO, &write()),
            Judgement::Ask { requirements: both },
            "its lax terms do not replace others"
        );
        assert!(matches!(with(DENIES, &read()), Judgement::Deny { policy, .. } if policy == "callers"));
    }
    let own = planned(&[("own", ALLOWS)]);
    let beside = |spec| judged(&[vec![above(spec)], own.clone()].concat(), &write()).judgement;
    assert_eq!(beside(ABSTAINS), Judgement::Allow);
    assert_eq!(beside(ASKS_TWO), Judgement::Ask { requirements: vec![needs("callers", 2)] });
    let audit = DENIES.replacen('{', "{mode: Audit, ", 1);
    assert_eq!(beside(&audit), Judgement::Allow);
}

#[test]
fn a_policy_in_audit_is_recorded_and_counts_as_absent() {
    for spec in [ALLOWS, DENIES, ASKS_TWO] {
        let audit = spec.replacen('{', "{mode: Audit, ", 1);
        let alone = judged(&planned(&[("a", &audit)]), &write());
        assert_eq!(alone.judgement, Judgement::Ask { requirements: vec![needs(DEFAULT_POLICY, 1)] }, "{spec}");
        let recorded = alone.opinions.iter().find(|o| o.policy == "a").unwrap();
        let enforced = judged(&planned(&[("a", spec)]), &write()).opinions[0].clone();
        assert_eq!((recorded.source, recorded.verdict), (PolicySource::Audit, enforced.verdict));
        assert_eq!(judged(&planned(&[("a", &audit), ("b", ALLOWS)]), &write()).judgement, Judgement::Allow);
    }
}

#[test]
fn the_policy_as_it_is_now_can_only_deny() {
    let with = |spec: &str| {
        let mut voices = planned(&[("a", ALLOWS)]);
        voices.push(Voice::Current(engine("a", spec)));
        judged(&voices, &write())
    };
    let denied = with(DENIES);
    assert!(matches!(denied.judgement, Judgement::Deny { .. }));
    let told: Vec<_> = denied.opinions.iter().map(|o| (o.source, o.verdict)).collect();
    assert_eq!(told, [(PolicySource::Plan, OpinionVerdict::Allow), (PolicySource::Current, OpinionVerdict::Deny)]);
    assert_eq!(with(ASKS_TWO).judgement, Judgement::Allow);
    assert_eq!(with(&DENIES.replacen('{', "{mode: Audit, ", 1)).judgement, Judgement::Allow);
    // Nor does it loosen: the frozen plan holds.
    let mut voices = planned(&[("a", DENIES)]);
    voices.push(Voice::Current(engine("a", ALLOWS)));
    assert!(matches!(judged(&voices, &write()).judgement, Judgement::Deny { .. }));
}

#[test]
fn a_current_allow_does_not_keep_the_built_in_policy_from_asking() {
    let mut voices = planned(&[("a", ABSTAINS)]);
    voices.push(Voice::Current(engine("a", ALLOWS)));
    assert!(matches!(judged(&voices, &write()).judgement, Judgement::Ask { .. }));
}

#[test]
fn a_policy_that_cannot_be_asked_denies() {
    let voices = [Voice::Broken { policy: "a".into(), why: "the plan does not hold it".into() }];
    let reason = "policy a cannot be asked: the plan does not hold it".to_owned();
    assert_eq!(judged(&voices, &read()).judgement, Judgement::Deny { policy: "a".into(), rule: None, reason });
}

#[test]
fn an_error_is_visible_in_the_opinion() {
    let spec = "{rules: [{name: r, action: Allow, when: 'args.gone == 1'}]}";
    let asked = judged(&planned(&[("a", spec)]), &write());
    assert_eq!(asked.opinions[0].error.as_deref(), Some("rule r: No such key: gone"));
}

fn rank(judgement: &Judgement) -> u8 {
    match judgement {
        Judgement::Allow => 0,
        Judgement::Ask { .. } => 1,
        Judgement::Deny { .. } => 2,
    }
}

fn all_planned(policies: Vec<PlanPolicy>) -> Vec<Voice> {
    let named = |(at, policy): (usize, PlanPolicy)| PlanPolicy { name: format!("p{at}"), ..policy };
    let compiled = policies.into_iter().enumerate().map(named).map(|policy| Engine::compile(&policy).unwrap());
    compiled.map(|engine| Voice::Plan(Arc::new(engine))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn listing_policies_in_another_order_changes_nothing(
        policies in prop::collection::vec(any_policy(), 0..4),
        facts in any_call(),
        turn in 0_usize..4,
    ) {
        let named = |(at, policy): (usize, PlanPolicy)| PlanPolicy { name: format!("p{at}"), ..policy };
        let engines = policies.into_iter().enumerate().map(named).map(|p| Arc::new(Engine::compile(&p).unwrap()));
        let mut voices: Vec<Voice> = engines.map(Voice::Plan).collect();
        let before = judged(&voices, &facts);
        let length = voices.len().max(1);
        voices.rotate_left(turn % length);
        prop_assert_eq!(before, judged(&voices, &facts));
    }

    /// Wherever a policy has a say already, a further one only restricts.
    #[test]
    fn a_further_policy_never_loosens_what_others_decided(
        mut policies in prop::collection::vec(any_policy(), 1..4),
        facts in any_call(),
    ) {
        let last = policies.pop().unwrap();
        let named = |(at, policy): (usize, PlanPolicy)| PlanPolicy { name: format!("p{at}"), ..policy };
        let engines = policies.into_iter().enumerate().map(named).map(|p| Arc::new(Engine::compile(&p).unwrap()));
        let mut voices: Vec<Voice> = engines.map(Voice::Plan).collect();
        let before = judged(&voices, &facts);
        let had_a_say = before.opinions.iter().all(|o| o.source != PolicySource::Default);
        voices.push(Voice::Plan(Arc::new(Engine::compile(&PlanPolicy { name: "last".into(), ..last }).unwrap())));
        let after = judged(&voices, &facts);
        prop_assert!(!had_a_say || rank(&after.judgement) >= rank(&before.judgement));
    }

    /// A deny rule in any of them, the built-in one and those in `Audit` included in the sum.
    #[test]
    fn a_further_rule_that_denies_never_allows_more_of_a_whole_plan(
        policies in prop::collection::vec(any_policy(), 1..4),
        facts in any_call(),
        further in any_rule("further".to_owned()),
        place in any::<prop::sample::Index>(),
    ) {
        let mut tightened = policies.clone();
        let rule = PlanRule { action: RuleAction::Deny, ask: None, ..further };
        place.get_mut(&mut tightened[..]).rules.push(rule);
        let (before, after) = (judged(&all_planned(policies), &facts), judged(&all_planned(tightened), &facts));
        prop_assert!(rank(&after.judgement) >= rank(&before.judgement), "{before:?} became {after:?}");
    }

    /// Whatever became of a policy since, loosened, tightened or put into `Audit`.
    #[test]
    fn no_generation_of_now_allows_more_than_the_plan(
        policies in prop::collection::vec(any_policy(), 1..4),
        now in any_policy(),
        facts in any_call(),
    ) {
        let before = judged(&all_planned(policies.clone()), &facts);
        let mut voices = all_planned(policies);
        let now = PlanPolicy { name: "p0".into(), generation: 2, ..now };
        voices.push(Voice::Current(Arc::new(Engine::compile(&now).unwrap())));
        let after = judged(&voices, &facts);
        prop_assert!(rank(&after.judgement) >= rank(&before.judgement), "{before:?} became {after:?}");
        if !matches!(after.judgement, Judgement::Deny { .. }) {
            let (now, then) = (grants_of(&after), grants_of(&before));
            prop_assert!(now.iter().zip(&then).all(|(now, then)| is_within(*now, *then)), "{then:?} became {now:?}");
            let (now, then) = (without_grants(after.judgement), without_grants(before.judgement));
            prop_assert_eq!(now, then, "it can deny, or let people give less, and nothing else");
        }
    }
}

/// Whether whoever is let to give `now` was let to give as much before.
fn is_within(now: Option<GrantTerms>, then: Option<GrantTerms>) -> bool {
    now.is_none_or(|now| {
        then.is_some_and(|then| now.max_count <= then.max_count && now.max_seconds <= then.max_seconds)
    })
}

fn without_grants(judgement: Judgement) -> Judgement {
    let Judgement::Ask { mut requirements } = judgement else { return judgement };
    for requirement in &mut requirements {
        requirement.grants = None;
    }
    Judgement::Ask { requirements }
}

/// A policy that asks, with these terms of grants.
fn lets(grants: &str) -> String {
    format!("{{rules: [{{name: all, action: Ask, ask: {{{grants}}}}}]}}")
}

fn grants_of(judged: &Judged) -> Vec<Option<GrantTerms>> {
    match &judged.judgement {
        Judgement::Ask { requirements } => requirements.iter().map(|one| one.grants).collect(),
        Judgement::Allow | Judgement::Deny { .. } => Vec::new(),
    }
}

#[test]
fn people_may_give_for_the_run_what_the_policy_as_it_was_and_as_it_is_both_let_them() {
    let terms = |max_count, max_seconds| Some(GrantTerms { max_count, max_seconds });
    let five = lets("grants: {maxCount: 5, maxSeconds: 60}");
    for (now, expected) in [
        (lets("grants: {maxCount: 9, maxSeconds: 30}"), terms(5, 30)),
        (lets(""), None),
        ("{}".to_owned(), None),
        ("{rules: [{name: r, action: Allow, when: 'args.gone == 1'}]}".to_owned(), None),
        (ALLOWS.to_owned(), terms(5, 60)),
        (ABSTAINS.to_owned(), terms(5, 60)),
        (lets("").replacen('{', "{mode: Audit, ", 1), terms(5, 60)),
    ] {
        for first in [true, false] {
            let mut voices = planned(&[("a", &five)]);
            voices.insert(usize::from(first), Voice::Current(engine("a", &now)));
            assert_eq!(grants_of(&judged(&voices, &write())), [expected], "{now}");
        }
    }
    // What another policy says now is another policy's business.
    let mut voices = planned(&[("a", &five)]);
    voices.push(Voice::Current(engine("b", &lets(""))));
    assert_eq!(grants_of(&judged(&voices, &write())), [terms(5, 60)]);
    let mut voices = planned(&[("a", &lets(""))]);
    voices.push(Voice::Current(engine("a", &five)));
    assert_eq!(grants_of(&judged(&voices, &write())), [None], "a policy that was loosened changes nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Nor does it let people give more than they could.
    #[test]
    fn the_policy_as_it_is_now_never_loosens(plan in any_policy(), now in any_policy(), facts in any_call()) {
        let mut voices = vec![Voice::Plan(Arc::new(Engine::compile(&plan).unwrap()))];
        let before = judged(&voices, &facts);
        voices.push(Voice::Current(Arc::new(Engine::compile(&now).unwrap())));
        let after = judged(&voices, &facts);
        prop_assert!(rank(&after.judgement) >= rank(&before.judgement));
        for (before, after) in grants_of(&before).into_iter().zip(grants_of(&after)) {
            prop_assert_eq!(GrantTerms::stricter(before, after), after);
        }
    }
}
