#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use belay_policy::{Identity, freeze};
use belay_protocol::cost::Prices;
use belay_protocol::fold::RunState;
use belay_protocol::judgement::{Judgement, OpinionVerdict, PolicySource};
use belay_protocol::plan::{PlanModel, PolicyMode};
use serde_json::{Value, json};

use super::*;
use crate::fixtures;

fn policy(name: &str, generation: i64, spec: Value) -> PlanPolicy {
    let identity = Identity { name: name.to_owned(), uid: format!("uid-{name}"), generation };
    freeze(identity, &serde_json::from_value(spec).unwrap())
}

fn allows() -> Value {
    json!({"otherwise": "Abstain", "rules": [{"name": "all", "action": "Allow", "when": "size(args) < 100"}]})
}

fn denies() -> Value {
    json!({"otherwise": "Abstain", "rules": [{"name": "none", "action": "Deny", "when": "tool == 'github'"}]})
}

/// Over 4,000 elements it takes far longer than any deadline of these tests.
fn slow() -> Value {
    json!({"rules": [{"name": "walk", "action": "Allow", "when": "args.xs.all(x, !x.matches('(a|b)*c$'))"}]})
}

fn plan(agents: &[PlanPolicy]) -> Plan {
    let mut plan = fixtures::plan();
    plan.agent_policies = agents.iter().map(|policy| policy.name.clone()).collect();
    plan.policies = agents.to_vec();
    plan
}

fn call(args: Value) -> ProposedCall {
    let digest = Digest::of(b"call");
    ProposedCall { tool: "github".into(), operation: "list_issues".into(), args, definition: digest, digest }
}

/// A deadline that a busy machine keeps.
fn judge(current: Current) -> Judge {
    Judge::with_deadline(current, Duration::from_mins(1))
}

async fn judged(judge: &Judge, plan: &Plan) -> Judged {
    judge.judge(plan, &call(json!({})), Spend::default()).await.unwrap()
}

#[tokio::test]
async fn a_call_is_judged_by_the_policies_of_agent_tool_and_credential_together() {
    let all = [policy("agent", 1, allows()), policy("tool", 1, allows()), policy("key", 1, denies())];
    let mut plan = plan(&all);
    plan.agent_policies = vec!["agent".into()];
    plan.tools[0].policies = vec!["tool".into()];
    plan.tools[0].credential = Some("k".into());
    let mut key = crate::agent_run::resolve::freeze_credential(&fixtures::credential("k"));
    key.policies = vec!["key".into()];
    plan.credentials = vec![key];
    let found = judged(&judge(Current::default()), &plan).await;
    assert_eq!(found.opinions.iter().map(|o| o.policy.as_str()).collect::<Vec<_>>(), ["agent", "key", "tool"]);
    assert!(matches!(found.judgement, Judgement::Deny { .. }));
    // Each place counts: without the credential's policy the call is allowed.
    plan.credentials[0].policies.clear();
    assert_eq!(judged(&judge(Current::default()), &plan).await.judgement, Judgement::Allow);
    // Another tool's policies do not judge it.
    plan.tools[0].policies.clear();
    plan.agent_policies.clear();
    let left = judged(&judge(Current::default()), &plan).await;
    assert_eq!(left.opinions.iter().map(|o| o.source).collect::<Vec<_>>(), [PolicySource::Default]);
}

#[tokio::test]
async fn a_policy_that_was_tightened_denies_at_once_and_one_that_was_loosened_changes_nothing() {
    let current = Current::default();
    let judge = judge(current.clone());
    let frozen = plan(&[policy("p", 1, allows())]);
    assert_eq!(judged(&judge, &frozen).await.judgement, Judgement::Allow);
    current.set("triage", policy("p", 2, denies()));
    let denied = judged(&judge, &frozen).await;
    assert!(matches!(denied.judgement, Judgement::Deny { .. }));
    let told: Vec<_> = denied.opinions.iter().map(|o| (o.generation, o.source, o.verdict)).collect();
    assert_eq!(
        told,
        [(1, PolicySource::Plan, OpinionVerdict::Allow), (2, PolicySource::Current, OpinionVerdict::Deny),]
    );
    let strict = plan(&[policy("p", 1, denies())]);
    current.set("triage", policy("p", 2, allows()));
    assert!(matches!(judged(&judge, &strict).await.judgement, Judgement::Deny { .. }));
}

#[tokio::test]
async fn the_same_generation_is_asked_once_and_another_namespaces_policy_never() {
    let current = Current::default();
    let judge = judge(current.clone());
    let frozen = plan(&[policy("p", 1, allows())]);
    current.set("triage", policy("p", 1, allows()));
    current.set("elsewhere", policy("p", 2, denies()));
    let found = judged(&judge, &frozen).await;
    assert_eq!((found.judgement, found.opinions.len()), (Judgement::Allow, 1));
}

#[tokio::test]
async fn a_policy_that_was_deleted_goes_on_as_the_plan_holds_it() {
    let current = Current::default();
    let judge = judge(current.clone());
    current.set("triage", policy("p", 2, denies()));
    current.remove("triage", "p");
    assert_eq!(judged(&judge, &plan(&[policy("p", 1, allows())])).await.judgement, Judgement::Allow);
    assert!(matches!(judged(&judge, &plan(&[policy("p", 1, denies())])).await.judgement, Judgement::Deny { .. }));
}

#[tokio::test]
async fn a_plan_that_lacks_a_policy_it_names_denies() {
    let mut frozen = plan(&[]);
    frozen.agent_policies = vec!["gone".into()];
    let Judgement::Deny { policy, reason, .. } = judged(&judge(Current::default()), &frozen).await.judgement else {
        panic!("not denied")
    };
    assert_eq!(
        (policy.as_str(), reason.as_str()),
        ("gone", "policy gone cannot be asked: the run's plan does not hold it")
    );
}

#[tokio::test]
async fn a_frozen_policy_that_this_version_cannot_use_denies_and_in_audit_is_silent() {
    let broken = json!({"rules": [{"name": "r", "action": "Allow", "when": "nonsense"}]});
    let found = judged(&judge(Current::default()), &plan(&[policy("p", 1, broken.clone())])).await;
    assert!(matches!(found.judgement, Judgement::Deny { .. }));
    let audit = PlanPolicy { mode: PolicyMode::Audit, ..policy("p", 1, broken) };
    let found = judged(&judge(Current::default()), &plan(&[audit, policy("q", 1, allows())])).await;
    assert_eq!(found.judgement, Judgement::Allow);
}

#[tokio::test]
async fn a_policy_that_overruns_holds_its_calls_and_no_others() {
    let judge = Judge::with_deadline(Current::default(), Duration::from_millis(1));
    let mut overruns = judge.overruns();
    let args = json!({"xs": vec!["ab".repeat(20); 4000]});
    let slow = policy("slow", 1, slow());
    let first = judge.judge(&plan(std::slice::from_ref(&slow)), &call(args), Spend::default()).await;
    assert!(first.is_err(), "{first:?}");
    let overrun = overruns.recv().await.unwrap();
    assert_eq!(overrun, Overrun { namespace: "triage".into(), policy: "slow".into() });
    assert!(judge.has_overrun(&slow));
    // From now on every call that it judges is held, without being evaluated.
    let again = judge.judge(&plan(std::slice::from_ref(&slow)), &call(json!({})), Spend::default()).await;
    assert_eq!(again, Err(Held::Overran { policy: "slow".into() }));
    // Neither are calls under other policies, nor under its next generation.
    let next = PlanPolicy { generation: 2, ..slow };
    assert!(!judge.has_overrun(&next));
    let other = json!({"rules": [{"name": "all", "action": "Allow"}]});
    assert_eq!(judged(&judge, &plan(&[policy("p", 1, other)])).await.judgement, Judgement::Allow);
}

#[tokio::test]
async fn one_namespace_evaluates_one_call_at_a_time_and_does_not_hold_up_another() {
    let lanes = Lanes::default();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let short = Duration::from_millis(20);
    assert_eq!(lanes.run("a", short, move || wait.recv()).await, Err(Late));
    assert_eq!(lanes.run("a", short, || 1).await, Err(Late));
    assert_eq!(lanes.run("b", Duration::from_mins(1), || 2).await, Ok(2));
    release.send(()).unwrap();
    assert_eq!(lanes.run("a", Duration::from_mins(1), || 3).await, Ok(3));
}

#[test]
fn what_a_run_cost_is_known_only_if_each_model_that_may_answer_has_prices() {
    let prices = Prices { input: 1, cached_input: None, cache_write: None, output: 1 };
    let known = |model: Option<Prices>, fallback: Option<Prices>| {
        let mut plan = fixtures::plan();
        plan.fallbacks = vec![PlanModel { prices: fallback, ..plan.model.clone() }];
        plan.model.prices = model;
        Spend::of(&RunState { plan: Some(Arc::new(plan)), ..RunState::default() }).cost_micro_usd.is_some()
    };
    assert!(known(Some(prices), Some(prices)));
    assert!(!known(Some(prices), None));
    assert!(!known(None, Some(prices)));
}

#[tokio::test]
async fn the_policies_of_whoever_calls_a_run_deny_and_do_not_allow() {
    let called = |callers: PlanPolicy| {
        let mut plan = plan(&[]);
        plan.tools[0].operations[0].effects = belay_protocol::plan::Effects::default();
        plan.inherited_policies = vec!["callers".into()];
        plan.policies = vec![callers];
        plan
    };
    let current = Current::default();
    let judge = judge(current.clone());
    let lax = called(policy("callers", 1, allows()));
    assert!(matches!(judged(&judge, &lax).await.judgement, Judgement::Ask { .. }), "as when nobody calls it");
    assert!(matches!(judged(&judge, &called(policy("callers", 1, denies()))).await.judgement, Judgement::Deny { .. }));
    current.set("triage", policy("callers", 2, denies()));
    assert!(matches!(judged(&judge, &lax).await.judgement, Judgement::Deny { .. }), "tightened meanwhile");
    current.set("triage", policy("callers", 2, allows()));
    let mut own = lax.clone();
    own.tools[0].policies = vec!["callers".into()];
    assert_eq!(judged(&judge, &own).await.judgement, Judgement::Allow, "its Tool's owner says so too");
}
