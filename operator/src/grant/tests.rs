#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use belay_policy::{Identity, freeze};
use belay_protocol::Digest;
use belay_protocol::event::ProposedCall;
use belay_protocol::fold::{HeldGrant, RunState};
use belay_protocol::grant::{Grant, GrantPattern};
use belay_protocol::judgement::{Judgement, PolicyRequirement};
use belay_protocol::plan::PlanPolicy;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{GrantObjects, GrantingLaw};
use crate::fixtures;
use crate::gate::{Law, Word};
use crate::guard::tests::Stage;
use crate::guard::{Guard, State};
use crate::policy::{Current, Judge};

/// Uids of ApprovalGrants that are there, by name, and which were looked up.
#[derive(Default)]
struct Objects {
    there: Mutex<BTreeMap<String, String>>,
    looked_up: Mutex<Vec<String>>,
}

#[async_trait]
impl GrantObjects for Objects {
    async fn stands(&self, namespace: &str, name: &str, uid: &str) -> bool {
        assert_eq!(namespace, "triage");
        self.looked_up.lock().push(name.to_owned());
        self.there.lock().get(name).is_some_and(|there| there == uid)
    }
}

struct World {
    law: GrantingLaw,
    objects: Arc<Objects>,
    current: Current,
    guard: Stage,
    state: RunState,
}

fn policy(name: &str, generation: i64, grants: &Value) -> PlanPolicy {
    let ask = if grants.is_null() { json!({}) } else { json!({"grants": grants}) };
    let spec = json!({"otherwise": "Abstain", "rules": [{"name": "all", "action": "Ask", "ask": ask}]});
    let identity = Identity { name: name.to_owned(), uid: format!("uid-{name}"), generation };
    freeze(identity, &serde_json::from_value(spec).unwrap())
}

fn five() -> Value {
    json!({"maxCount": 5, "maxSeconds": 60})
}

fn call(repo: &str) -> ProposedCall {
    let digest = Digest::of(b"call");
    let args = json!({"repo": repo});
    ProposedCall { tool: "github".into(), operation: "list_issues".into(), args, definition: digest, digest }
}

impl World {
    /// A run under these policies, each of which lets people give five calls.
    async fn new(policies: &[&str]) -> Self {
        let guard = Stage::up(&[]).await;
        let (current, objects) = (Current::default(), Arc::new(Objects::default()));
        let judge = Judge::new(current.clone());
        let mut plan = fixtures::plan();
        plan.agent_policies = policies.iter().map(|name| (*name).to_owned()).collect();
        plan.policies = policies.iter().map(|name| policy(name, 1, &five())).collect();
        let state = RunState { plan: Some(Arc::new(plan)), ..RunState::default() };
        let law = GrantingLaw { judge, objects: Arc::<Objects>::clone(&objects), guard: guard.guard.clone() };
        Self { law, objects, current, guard, state }
    }

    /// People gave it, and its object is there.
    fn give(&mut self, name: &str, policy: &str, when: &str, expires_at: i64) {
        let call = call("x");
        let pattern = GrantPattern {
            policy: policy.into(),
            tool: call.tool,
            operation: call.operation,
            definition: call.definition,
            when: when.into(),
            count: 5,
            seconds: 60,
        };
        let requirement = PolicyRequirement {
            policy: policy.into(),
            generation: 1,
            quorum: 1,
            separation_of_duty: false,
            expires_after_seconds: 60,
            grants: None,
        };
        let grant = Grant {
            name: name.into(),
            digest: pattern.digest().unwrap(),
            pattern,
            requirement,
            call_id: "c1".into(),
            approval: "a".into(),
            by: vec!["ada".into()],
            expires_at,
            guard: stamp(&self.guard.guard),
        };
        let uid = Some(format!("uid-{name}"));
        self.state.grants.insert(name.into(), HeldGrant { grant, uid, used: 0 });
        self.objects.there.lock().insert(name.into(), format!("uid-{name}"));
    }

    async fn word(&self) -> Word {
        self.law.judge(&self.state, &call("x")).await
    }

    async fn fits(&self) -> Vec<String> {
        match self.word().await {
            Word::Granted { fits, judged } => {
                assert!(matches!(judged.judgement, Judgement::Ask { .. }));
                fits
            }
            Word::Judged(_) => Vec::new(),
            Word::Stalled(why) => panic!("{why}"),
        }
    }
}

fn stamp(guard: &Guard) -> belay_protocol::guard::GuardStamp {
    match guard.state() {
        State::Up { stamp, .. } => stamp,
        State::Down(why) => panic!("{why}"),
    }
}

const LATE: i64 = i64::MAX;

#[tokio::test]
async fn a_grant_whose_pattern_fits_and_whose_object_is_there_is_named() {
    let mut world = World::new(&["careful"]).await;
    assert_eq!(world.fits().await, Vec::<String>::new());
    world.give("g", "careful", "args.repo == 'x'", LATE);
    assert_eq!(world.fits().await, ["g"]);
}

#[tokio::test]
async fn a_pattern_that_does_not_fit_or_cannot_be_evaluated_names_nothing_and_nothing_is_looked_up() {
    for when in ["args.repo == 'y'", "args.owner == 'x'", "args.repo", "nonsense(", "tool == 'github'"] {
        let mut world = World::new(&["careful"]).await;
        world.give("g", "careful", when, LATE);
        assert_eq!(world.fits().await, Vec::<String>::new(), "{when}");
        assert_eq!(*world.objects.looked_up.lock(), Vec::<String>::new(), "{when}");
    }
}

#[tokio::test]
async fn an_object_that_was_deleted_or_made_anew_stops_its_grant_at_once() {
    let mut world = World::new(&["careful"]).await;
    world.give("g", "careful", "true", LATE);
    world.objects.there.lock().insert("g".into(), "uid-of-another".into());
    assert_eq!(world.fits().await, Vec::<String>::new());
    world.objects.there.lock().clear();
    assert_eq!(world.fits().await, Vec::<String>::new());
}

#[tokio::test]
async fn each_policy_that_asks_needs_one_of_its_own() {
    let mut world = World::new(&["careful", "owners"]).await;
    world.give("g1", "careful", "true", LATE);
    assert_eq!(world.fits().await, Vec::<String>::new());
    assert_eq!(*world.objects.looked_up.lock(), Vec::<String>::new(), "nothing is asked of the API server for nothing");
    world.give("g2", "owners", "true", LATE);
    assert_eq!(world.fits().await, ["g1", "g2"]);
}

#[tokio::test]
async fn what_ran_out_is_not_named_and_what_runs_out_first_comes_first() {
    let mut world = World::new(&["careful"]).await;
    world.give("a", "careful", "true", LATE);
    world.give("b", "careful", "true", LATE - 1);
    world.give("over", "careful", "true", 1);
    assert_eq!(world.fits().await, ["b", "a"]);
}

#[tokio::test]
async fn while_the_guard_is_down_or_after_its_rules_were_made_anew_no_grant_is_honoured() {
    let mut world = World::new(&["careful"]).await;
    world.give("g", "careful", "true", LATE);
    world.state.grants.get_mut("g").unwrap().grant.guard.binding.generation += 1;
    assert_eq!(world.fits().await, Vec::<String>::new(), "given under other rules");
    world.give("g", "careful", "true", LATE);
    assert_eq!(world.fits().await, ["g"]);
    world.guard.take_away_a_rule().await;
    assert_eq!(world.fits().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_policy_that_was_tightened_since_takes_back_what_is_more_than_it_lets_people_give_now() {
    for (grants, good) in [
        (five(), true),
        (json!({"maxCount": 9, "maxSeconds": 90}), true),
        (json!({"maxCount": 4, "maxSeconds": 60}), false),
        (json!({"maxCount": 5, "maxSeconds": 59}), false),
        (Value::Null, false),
    ] {
        let mut world = World::new(&["careful"]).await;
        world.give("g", "careful", "true", LATE);
        world.current.set("triage", policy("careful", 2, &grants));
        assert_eq!(!world.fits().await.is_empty(), good, "{grants}");
    }
}
