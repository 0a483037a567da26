#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use belay_protocol::plan::Effects;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::facts::{Facts, Spend};

/// The policy of these rules, as people write them.
pub fn policy(spec: &str) -> PlanPolicy {
    let identity = crate::Identity { name: "careful".into(), uid: "uid-careful".into(), generation: 3 };
    crate::freeze(identity, &serde_saphyr::from_str(spec).unwrap())
}

pub fn call(operation: &str, args: serde_json::Value) -> Facts {
    Facts {
        tool: "github".into(),
        operation: operation.into(),
        args,
        effects: Effects::NonIdempotent,
        namespace: "triage".into(),
        agent: "labeller".into(),
        run: "nightly".into(),
        requested_by: "ada".into(),
        spend: Spend { steps: 3, tokens: 1000, cost_micro_usd: None },
    }
}

fn ruling(spec: &str, facts: &Facts) -> Ruling {
    let engine = Engine::compile(&policy(spec)).unwrap();
    on_a_large_stack(|| engine.rule_on(&Scene::new(facts))).unwrap()
}

fn verdict(spec: &str, facts: &Facts) -> OpinionVerdict {
    ruling(spec, facts).verdict
}

use OpinionVerdict::{Abstain, Allow, Ask, Deny};

/// Each row holds one condition of a rule; without its enforcement the second call would match as well.
#[rstest]
#[case("tools: [github]", call("x", json!({})), Facts { tool: "other".into(), ..call("x", json!({})) })]
#[case("operations: [set_labels]", call("set_labels", json!({})), call("set_label", json!({})))]
#[case("effects: [NonIdempotent]", call("x", json!({})), Facts { effects: Effects::None, ..call("x", json!({})) })]
#[case("when: \"args.repo != 'prod'\"", call("x", json!({"repo": "test"})), call("x", json!({"repo": "prod"})))]
#[case("when: \"tool == 'github'\"", call("x", json!({})), Facts { tool: "other".into(), ..call("x", json!({})) })]
#[case("when: \"operation == 'x'\"", call("x", json!({})), call("X", json!({})))]
#[case("when: \"effects != 'None'\"", call("x", json!({})), Facts { effects: Effects::None, ..call("x", json!({})) })]
#[case("when: \"agent.name == 'labeller'\"", call("x", json!({})), Facts { agent: "b".into(), ..call("x", json!({})) })]
#[case("when: \"agent.namespace == 'triage'\"", call("x", json!({})), Facts { namespace: "b".into(), ..call("x", json!({})) })]
#[case("when: \"run.requestedBy == 'ada'\"", call("x", json!({})), Facts { requested_by: String::new(), ..call("x", json!({})) })]
#[case("when: \"run.name == 'nightly'\"", call("x", json!({})), Facts { run: "b".into(), ..call("x", json!({})) })]
#[case("when: \"spend.steps < 4\"", call("x", json!({})), Facts { spend: Spend { steps: 4, ..Spend::default() }, ..call("x", json!({})) })]
#[case("when: \"spend.tokens <= 1000\"", call("x", json!({})), Facts { spend: Spend { tokens: 1001, ..Spend::default() }, ..call("x", json!({})) })]
fn every_condition_of_a_rule_has_to_hold(#[case] condition: &str, #[case] meets: Facts, #[case] misses: Facts) {
    for action in ["Allow", "Ask", "Deny"] {
        let spec = format!("{{otherwise: Abstain, rules: [{{name: r, action: {action}, {condition}}}]}}");
        assert_eq!(crate::word(verdict(&spec, &meets)), action, "{condition}");
        assert_eq!(verdict(&spec, &misses), Abstain, "{condition}");
    }
}

#[test]
fn what_a_run_costs_is_unknown_where_its_model_has_no_prices() {
    let spec = "{otherwise: Abstain, rules: [{name: cheap, action: Allow, when: 'spend.costMicroUSD < 100'}]}";
    let priced = Spend { cost_micro_usd: Some(99), ..Spend::default() };
    assert_eq!(verdict(spec, &Facts { spend: priced, ..call("x", json!({})) }), Allow);
    assert_eq!(verdict(spec, &call("x", json!({}))), Ask);
    let known = "{otherwise: Abstain, rules: [{name: cheap, action: Allow, when: '!has(spend.costMicroUSD)'}]}";
    assert_eq!(verdict(known, &call("x", json!({}))), Allow);
}

#[rstest]
#[case("Ask", Ask)]
#[case("Deny", Deny)]
#[case("Abstain", Abstain)]
fn what_no_rule_matches_gets_otherwise(#[case] otherwise: &str, #[case] expected: OpinionVerdict) {
    let spec = format!("{{otherwise: {otherwise}, rules: [{{name: r, action: Allow, tools: [other]}}]}}");
    let found = ruling(&spec, &call("x", json!({})));
    assert_eq!((found.verdict, found.rule, found.error), (expected, None, None));
    assert_eq!(found.terms.is_some(), expected == Ask);
    assert_eq!(verdict("{}", &call("x", json!({}))), Ask, "Ask is the default");
}

#[test]
fn deny_beats_ask_beats_allow_whatever_the_order() {
    let (allow, ask, deny) = ("{name: a, action: Allow}", "{name: b, action: Ask}", "{name: c, action: Deny}");
    let table =
        [(vec![allow], Allow), (vec![allow, ask], Ask), (vec![allow, ask, deny], Deny), (vec![allow, deny], Deny)];
    for (mut rules, expected) in table {
        for _ in 0..2 {
            assert_eq!(verdict(&format!("{{rules: [{}]}}", rules.join(", ")), &call("x", json!({}))), expected);
            rules.reverse();
        }
    }
}

#[test]
fn several_rules_that_ask_come_to_the_strictest_terms() {
    let spec = "{rules: [
        {name: a, action: Ask, ask: {quorum: 2}},
        {name: b, action: Ask, ask: {separationOfDuty: true}},
        {name: c, action: Ask, ask: {expiresAfterSeconds: 60}}]}";
    let found = ruling(spec, &call("x", json!({})));
    let terms = AskTerms { quorum: 2, separation_of_duty: true, expires_after_seconds: 60, grants: None };
    assert_eq!((found.rule.as_deref(), found.terms), (Some("a, b, c"), Some(terms)));
}

/// Rules that ask, and what people may give for the run where all of them match.
#[rstest]
#[case("{grants: {maxCount: 5, maxSeconds: 60}}", "{grants: {maxCount: 3, maxSeconds: 90}}", Some((3, 60)))]
#[case("{grants: {maxCount: 5, maxSeconds: 60}}", "{}", None)]
#[case("{quorum: 2}", "{grants: {maxCount: 5, maxSeconds: 60}}", None)]
fn every_rule_that_asks_has_to_let_people_give_grants(
    #[case] one: &str,
    #[case] other: &str,
    #[case] expected: Option<(u32, u32)>,
) {
    let spec = format!("{{rules: [{{name: a, action: Ask, ask: {one}}}, {{name: b, action: Ask, ask: {other}}}]}}");
    let terms = ruling(&spec, &call("x", json!({}))).terms.unwrap();
    let expected = expected.map(|(max_count, max_seconds)| GrantTerms { max_count, max_seconds });
    assert_eq!(terms.grants, expected);
}

#[test]
fn a_rule_in_error_lets_nobody_give_grants() {
    let spec = "{rules: [{name: a, action: Ask, ask: {grants: {maxCount: 5, maxSeconds: 60}}}, {name: b, action: Allow, when: 'args.gone'}]}";
    assert_eq!(ruling(spec, &call("x", json!({}))).terms.unwrap().grants, None);
}

#[test]
fn terms_that_a_rule_leaves_out_are_those_of_the_default() {
    for rule in ["{name: a, action: Ask}", "{name: a, action: Ask, ask: {}}"] {
        let found = ruling(&format!("{{rules: [{rule}]}}"), &call("x", json!({})));
        assert_eq!(
            found.terms,
            Some(AskTerms { quorum: 1, separation_of_duty: false, expires_after_seconds: 86_400, grants: None })
        );
    }
}

#[test]
fn a_denial_carries_its_reason_to_the_model() {
    let with = ruling("{rules: [{name: n, action: Deny, reason: force is never right}]}", &call("x", json!({})));
    assert_eq!(with.reason.as_deref(), Some("force is never right"));
    let without = ruling("{rules: [{name: n, action: Deny}]}", &call("x", json!({})));
    assert_eq!(without.reason.as_deref(), Some("rule n of policy careful denies it"));
    let unmatched = ruling("{otherwise: Deny}", &call("x", json!({})));
    assert_eq!(unmatched.reason.as_deref(), Some("no rule of policy careful allows it"));
}

/// A condition over an argument that is not there is an error in CEL.
#[rstest]
#[case("Allow", "Ask", Ask)]
#[case("Allow", "Abstain", Ask)]
#[case("Allow", "Deny", Deny)]
#[case("Ask", "Abstain", Ask)]
#[case("Deny", "Abstain", Deny)]
fn a_rule_that_cannot_be_evaluated_never_allows(
    #[case] action: &str,
    #[case] otherwise: &str,
    #[case] expected: OpinionVerdict,
) {
    let spec = format!(
        "{{otherwise: {otherwise}, rules: [{{name: all, action: Allow}}, {{name: r, action: {action}, when: 'args.gone == 1'}}]}}"
    );
    let found = ruling(&spec, &call("x", json!({"a": 1})));
    assert_eq!(found.verdict, expected);
    assert_eq!(found.error.as_deref(), Some("rule r: No such key: gone"));
}

#[rstest]
#[case("args.n + 'a' == 'b'")]
#[case("args.n.startsWith('a')")]
#[case("args.n")]
#[case("!args.n")]
#[case("args.n && true")]
#[case("args.n.exists(x, x == 1)")]
#[case("1 / args.zero == 1")]
#[case("args.max + args.max + args.max + args.max > 0 && args.max * args.max > 0")]
#[case("args.list[7] == 1")]
#[case("args.nothing.field == 1")]
#[case("int(args.text) == 1")]
fn what_only_shows_with_a_call_is_an_error_and_never_an_allow(#[case] when: &str) {
    let args = json!({"n": 1, "zero": 0, "max": 9_007_199_254_740_992_i64, "list": [1], "nothing": null, "text": "x"});
    let spec = format!("{{rules: [{{name: r, action: Allow, when: \"{when}\"}}]}}");
    let found = ruling(&spec, &call("x", args));
    assert_eq!(found.verdict, Ask, "{when}");
    assert!(found.error.is_some(), "{when}");
}

#[test]
fn arguments_that_cannot_be_looked_at_are_never_allowed() {
    let large = call("x", json!({"body": "x".repeat(1024 * 1024)}));
    let many = call("x", json!({"list": vec![1; 5000]}));
    let inexact = call("x", json!({"id": 9_007_199_254_740_993_u64}));
    for facts in [large, many, inexact] {
        assert_eq!(verdict("{rules: [{name: r, action: Allow}]}", &facts), Ask);
        assert_eq!(verdict("{otherwise: Deny, rules: [{name: r, action: Allow}]}", &facts), Deny);
        assert_eq!(verdict("{rules: [{name: r, action: Deny, when: 'args.a == 1'}]}", &facts), Deny);
        // A rule that does not look at them decides as ever.
        let plain = ruling("{rules: [{name: r, action: Ask, ask: {quorum: 2}}]}", &facts);
        assert_eq!((plain.verdict, plain.terms.map(|t| t.quorum), plain.error), (Ask, Some(2), None));
        assert_eq!(verdict("{otherwise: Abstain, rules: [{name: r, action: Allow, tools: [b]}]}", &facts), Abstain);
    }
}

#[rstest]
#[case("1", true)]
#[case("1.0", true)]
#[case("1e0", true)]
#[case("1.5", false)]
#[case("\"1\"", false)]
fn a_number_matches_however_it_is_spelt(#[case] spelt: &str, #[case] equal: bool) {
    let facts = call("x", serde_json::from_str(&format!("{{\"n\": {spelt}}}")).unwrap());
    let expected = if equal { Allow } else { Abstain };
    for when in ["args.n == 1", "args.n == 1.0", "args.n in [1]"] {
        let spec = format!("{{otherwise: Abstain, rules: [{{name: r, action: Allow, when: '{when}'}}]}}");
        assert_eq!(verdict(&spec, &facts), expected, "{when}");
    }
}

#[test]
fn twins_in_unicode_are_not_one() {
    let spec = "{otherwise: Abstain, rules: [{name: r, action: Allow, when: \"args.name == 'caf\u{e9}'\"}]}";
    assert_eq!(verdict(spec, &call("x", json!({"name": "caf\u{e9}"}))), Allow);
    assert_eq!(verdict(spec, &call("x", json!({"name": "cafe\u{301}"}))), Abstain);
}

#[test]
fn whatever_is_wrong_is_said_rule_by_rule() {
    let spec = "{rules: [
        {name: fine, action: Allow, when: 'true'},
        {name: typo, action: Allow, when: 'arg.x == 1'},
        {name: torn, action: Deny, when: 'args.x =='},
        {name: dear, action: Deny, when: \"args.xs.all(x, !args.s.contains('a'))\"}]}";
    let faults = Engine::compile(&policy(spec)).unwrap_err();
    let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(words[0].starts_with("rules[1] typo: when: unknown name arg: a rule can ask about"), "{words:?}");
    assert!(words[1].starts_with("rules[2] torn: when: not CEL: line 1 column"), "{words:?}");
    assert!(words[2].starts_with("rules[3] dear: spec.rules[3].when could take"), "{words:?}");
    assert_eq!(words.len(), 3);
}

#[test]
fn what_all_rules_cost_together_is_bounded() {
    let rule = |at: usize| {
        format!("{{name: r{at}, action: Ask, when: \"args.xs.all(x, x.contains('a') || x.contains('b'))\"}}")
    };
    let spec = |many: usize| format!("{{rules: [{}]}}", (0..many).map(rule).collect::<Vec<_>>().join(", "));
    assert!(Engine::compile(&policy(&spec(2))).is_ok());
    let faults = Engine::compile(&policy(&spec(12))).unwrap_err();
    assert!(faults[0].message.contains("all rules together"), "{faults:?}");
}

#[test]
fn the_dearest_policy_that_is_accepted_does_not_take_long_over_the_largest_arguments() {
    let rule = |at: usize| {
        format!("{{name: r{at}, action: Ask, when: \"args.xs.all(x, !x.matches('(a|b)*{at}$') && !x.contains('c'))\"}}")
    };
    let spec = format!("{{rules: [{}]}}", (0..4).map(rule).collect::<Vec<_>>().join(", "));
    let facts = call("x", json!({"xs": vec!["ab".repeat(20); 4000]}));
    let engine = Engine::compile(&policy(&spec)).unwrap();
    let started = std::time::Instant::now();
    on_a_large_stack(|| engine.rule_on(&Scene::new(&facts))).unwrap();
    // A build without optimisation on a busy machine; with it, it is tens of milliseconds.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// Rules that meet the calls of this module in every way: matching, not, and in error.
pub fn any_rule(name: String) -> impl Strategy<Value = PlanRule> {
    let lists = (
        prop::sample::select(vec![vec![], vec!["github".to_owned()], vec!["other".to_owned()]]),
        prop::sample::select(vec![vec![], vec!["x".to_owned()], vec!["y".to_owned()]]),
        prop::sample::select(vec![vec![], vec![Effects::None], vec![Effects::NonIdempotent]]),
    );
    let when = prop::sample::select(vec![
        None,
        Some("true"),
        Some("false"),
        Some("args.n == 1"),
        Some("args.gone == 1"),
        Some("args.n < 'a'"),
        Some("has(args.gone)"),
        Some("args.xs.exists(x, x == 2)"),
    ]);
    let action = prop::sample::select(vec![RuleAction::Allow, RuleAction::Ask, RuleAction::Deny]);
    let grants = prop::option::of((1_u32..9, 1_u32..90));
    let terms = (1_u32..4, any::<bool>(), 30_u32..90, grants);
    (lists, when, action, terms).prop_map(move |((tools, operations, effects), when, action, terms)| PlanRule {
        name: name.clone(),
        tools,
        operations,
        effects,
        when: when.map(str::to_owned),
        action,
        ask: (action == RuleAction::Ask).then_some(AskTerms {
            quorum: terms.0,
            separation_of_duty: terms.1,
            expires_after_seconds: terms.2,
            grants: terms.3.map(|(max_count, max_seconds)| GrantTerms { max_count, max_seconds }),
        }),
        reason: None,
    })
}

pub fn any_policy() -> impl Strategy<Value = PlanPolicy> {
    let rules = prop::collection::vec(any::<()>(), 0..6).prop_flat_map(|places| {
        places.iter().enumerate().map(|(at, ())| any_rule(format!("r{at}"))).collect::<Vec<_>>()
    });
    let otherwise = prop::sample::select(vec![Otherwise::Ask, Otherwise::Deny, Otherwise::Abstain]);
    let mode = prop::sample::select(vec![PolicyMode::Enforce, PolicyMode::Audit]);
    (rules, otherwise, mode).prop_map(|(rules, otherwise, mode)| PlanPolicy {
        name: "p".into(),
        uid: "u".into(),
        generation: 1,
        mode,
        otherwise,
        rules,
    })
}

pub fn any_call() -> impl Strategy<Value = Facts> {
    let args = prop::sample::select(vec![
        json!({"n": 1, "xs": [1, 2]}),
        json!({"n": "a"}),
        json!({}),
        json!({"n": 9_007_199_254_740_993_u64}),
    ]);
    let effects = prop::sample::select(vec![Effects::None, Effects::Idempotent, Effects::NonIdempotent]);
    (args, effects, prop::sample::select(vec!["x", "y", "z"]))
        .prop_map(|(args, effects, operation)| Facts { effects, ..call(operation, args) })
}

pub fn strictness(verdict: OpinionVerdict) -> u8 {
    match verdict {
        OpinionVerdict::Abstain => 0,
        OpinionVerdict::Allow => 1,
        OpinionVerdict::Ask => 2,
        OpinionVerdict::Deny => 3,
    }
}

fn judged(policy: &PlanPolicy, facts: &Facts) -> (Digest, Ruling) {
    let engine = Engine::compile(policy).unwrap();
    (engine.digest(), engine.rule_on(&Scene::new(facts)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn shuffling_rules_changes_nothing(policy in any_policy(), facts in any_call(), seed in any::<usize>()) {
        let mut shuffled = policy.clone();
        let length = shuffled.rules.len().max(1);
        shuffled.rules.rotate_left(seed % length);
        if seed % 2 == 0 {
            shuffled.rules.reverse();
        }
        prop_assert_eq!(judged(&policy, &facts), judged(&shuffled, &facts));
    }

    #[test]
    fn a_further_rule_that_denies_never_allows_more(
        policy in any_policy(),
        facts in any_call(),
        further in any_rule("further".to_owned()),
    ) {
        let (_, before) = judged(&policy, &facts);
        let mut tightened = policy;
        tightened.rules.push(PlanRule { action: RuleAction::Deny, ask: None, ..further });
        let (_, after) = judged(&tightened, &facts);
        prop_assert!(strictness(after.verdict) >= strictness(before.verdict), "{before:?} became {after:?}");
    }

    #[test]
    fn a_rule_in_error_never_allows(policy in any_policy(), facts in any_call(), broken in any_rule("b".to_owned())) {
        let (_, before) = judged(&policy, &facts);
        let mut with = policy;
        with.rules.push(PlanRule { when: Some("args.gone == 1".to_owned()), ..broken });
        let (_, after) = judged(&with, &facts);
        prop_assert!(after.verdict != OpinionVerdict::Allow || before.verdict == OpinionVerdict::Allow);
        let least = strictness(before.verdict).min(strictness(OpinionVerdict::Ask));
        prop_assert!(strictness(after.verdict) >= least, "{before:?} became {after:?}");
    }
}
