#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use belay_protocol::Digest;
use belay_protocol::chain::Head;
use belay_protocol::event::{Finish, Item, ListedOperation, Listing, ModelResponse};
use belay_protocol::plan::ObjectId;
use serde_json::{Value, json};

use super::*;

fn plan(policies: &Value) -> Plan {
    let named: Vec<String> =
        policies.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect();
    serde_json::from_value(json!({
        "version": 1, "run": {"namespace": "team", "name": "nightly", "uid": "u"},
        "agent": {"namespace": "team", "name": "triage", "uid": "a"},
        "agentGeneration": 1, "input": "go", "policies": policies, "agentPolicies": named,
        "model": {"name": "m", "api": "Scripted", "model": "m", "timeouts":
            {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
        "tools": [{"name": "github", "uid": "g", "url": "http://github/mcp", "callTimeoutSeconds": 5, "operations": [
            {"name": "list", "modelName": "github__list", "definition": Digest::of(b"d"), "effects": "None"},
            {"name": "push", "modelName": "github__push", "definition": Digest::of(b"d")}]}],
        "limits": {"steps": 9, "activeSeconds": 60, "waitSeconds": 60},
    }))
    .unwrap()
}

fn proposal(plan: &Plan, operation: &str, args: Value) -> Proposal {
    let digest = Digest::of(b"d");
    let call = ProposedCall { tool: "github".into(), operation: operation.into(), args, definition: digest, digest };
    Proposal { plan: Arc::new(plan.clone()), call_id: "c1".into(), at: 0, call, spend: Spend::default() }
}

fn engine(spec: &str) -> Arc<Engine> {
    let yaml = format!(
        "apiVersion: belay.dev/v1alpha1\nkind: ApprovalPolicy\nmetadata: {{name: careful, generation: 2}}\nspec: {spec}\n"
    );
    let mut documents = Documents::default();
    documents.take(Path::new("x"), &yaml);
    Arc::new(Engine::compile(&frozen(&documents.policies[0])).unwrap())
}

fn old(otherwise: &str) -> Value {
    json!([{"name": "careful", "uid": "u", "generation": 1, "mode": "Enforce", "otherwise": otherwise, "rules": []}])
}

#[test]
fn only_what_a_policy_changes_is_shown_with_the_rule_that_changes_it() {
    let plan = plan(&old("Ask"));
    let policy = engine(
        "{rules: [{name: force, when: 'args.force', action: Deny}, {name: list, operations: [list], action: Allow}]}",
    );
    let force = change(&proposal(&plan, "push", json!({"force": true})), &policy).unwrap();
    assert_eq!(force.cells, ["team/nightly", "c1", "github/push", "asked", "denied", "force"]);
    assert_eq!(change(&proposal(&plan, "push", json!({"force": false})), &policy), None);
    let list = change(&proposal(&plan, "list", json!({"force": false})), &policy).unwrap();
    assert_eq!(list.cells[3..], ["asked", "allowed", "list"]);
    let error = change(&proposal(&plan, "push", json!({})), &policy).unwrap();
    assert_eq!(error.cells[3..], ["asked", "denied", "force (rule force: No such key: force)"]);
    assert_eq!(
        summary(&[force, list, error], 4, "careful"),
        "4 proposals: with careful, 1 more or otherwise allowed, 0 asked, 2 denied; 1 as before"
    );
}

#[test]
fn other_terms_are_a_change_and_another_generation_is_none() {
    let plan = plan(&old("Ask"));
    let same = engine("{otherwise: Ask}");
    let now = change(&proposal(&plan, "push", json!({})), &same);
    assert_eq!(now, None);
    let more = engine("{rules: [{name: two, action: Ask, ask: {quorum: 2}}]}");
    let cells = change(&proposal(&plan, "push", json!({})), &more).unwrap().cells;
    assert_eq!(
        cells[3..],
        ["asked: careful(1, 86400 s)", "asked: careful(2, 86400 s)", "two"],
        "what differs is shown"
    );
}

#[test]
fn a_policy_that_no_plan_names_is_judged_by_beside_the_others() {
    let alone = plan(&json!([]));
    let policy = engine("{otherwise: Abstain, rules: [{name: all, operations: [push], action: Allow}]}");
    assert_eq!(change(&proposal(&alone, "push", json!({})), &policy).unwrap().cells[3..5], ["asked", "allowed"]);
    let mut other = old("Deny");
    other[0]["name"] = json!("owners");
    assert_eq!(change(&proposal(&plan(&other), "push", json!({})), &policy), None);
}

#[test]
fn a_policy_of_the_runs_above_denies_in_a_replay_and_allows_nothing() {
    let inherited = |otherwise| {
        let mut plan = plan(&old(otherwise));
        plan.inherited_policies = std::mem::take(&mut plan.agent_policies);
        proposal(&plan, "push", json!({}))
    };
    let allows = engine("{otherwise: Abstain, rules: [{name: all, action: Allow}]}");
    assert_eq!(change(&inherited("Abstain"), &allows), None, "it is asked about as before");
    let denied = change(&inherited("Abstain"), &engine("{otherwise: Deny}")).unwrap();
    assert_eq!(denied.cells[3..5], ["asked", "denied"]);
    let fewer = change(&inherited("Ask"), &allows).unwrap();
    assert_eq!(fewer.cells[3..5], ["asked: careful(1, 86400 s) default(1, 86400 s)", "asked: default(1, 86400 s)"]);
}

#[test]
fn a_call_that_is_proposed_again_is_one_call() {
    let plan = plan(&old("Ask"));
    let mut other = proposal(&plan, "push", json!({}));
    other.call.digest = Digest::of(b"other arguments");
    let proposals = vec![proposal(&plan, "push", json!({})), other, proposal(&plan, "push", json!({}))];
    assert_eq!(distinct(proposals).len(), 2);
}

#[test]
fn what_the_agent_does_not_list_is_left_out() {
    assert_eq!(change(&proposal(&plan(&old("Deny")), "delete", json!({})), &engine("{otherwise: Ask}")), None);
}

#[test]
fn proposals_are_read_from_an_export_with_what_the_run_had_used() {
    let plan = plan(&json!([]));
    let call = proposal(&plan, "push", json!({"n": 1})).call;
    let asked = Item::ToolCall {
        call_id: "c1".into(),
        provider_id: "x".into(),
        name: "github__push".into(),
        arguments: "{\"n\":1}".into(),
    };
    let response = ModelResponse::new(
        vec![asked],
        Finish::ToolCalls,
        serde_json::from_value(json!({"inputTokens": 70, "outputTokens": 30})).unwrap(),
        1,
    );
    let listing = ["list", "push"].map(|name| ListedOperation { name: name.into(), definition: Digest::of(b"d") });
    let events = [
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan.clone()) },
        Event::EpochOpened { epoch: 1, pod_name: "belay-run-a".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
        Event::ToolsListed { tool: "github".into(), listing: Listing::Listed(listing.to_vec()) },
        Event::ModelRequested { step: 1, attempt: 1, request: Digest::of(b"r"), reserved_tokens: 0 },
        Event::ModelResponded { step: 1, attempt: 1, response },
        Event::CallProposed { call_id: "c1".into(), attempt: 1, call: call.clone() },
    ];
    let (mut head, mut records) = (Head::empty(), Vec::new());
    for (at, event) in (1_000..).step_by(1_000).zip(events) {
        let sealed = head.seal(event, at).unwrap();
        head = sealed.head();
        records.push(sealed);
    }
    let run = ObjectId { namespace: "team".into(), name: "nightly".into(), uid: "u".into() };
    let file = belay_protocol::export::write("journal", &run, &records);
    verify(&file).unwrap();
    let read = read(&file).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].call_id.as_str(), read[0].at, &read[0].call), ("c1", 7_000, &call));
    assert_eq!(read[0].spend, Spend { steps: 1, tokens: 100, cost_micro_usd: None });
}

#[test]
fn since_is_a_number_and_a_unit() {
    let now = Timestamp::from_second(1_000_000).unwrap();
    assert_eq!(start("2d", now).unwrap(), (1_000_000 - 2 * 86_400) * 1000);
    assert_eq!(start("3h", now).unwrap(), (1_000_000 - 3 * 3_600) * 1000);
    assert_eq!(start("5m", now).unwrap(), (1_000_000 - 300) * 1000);
    for wrong in ["", "d", "7", "7w", "-1d", "9999999999999999d", "7é"] {
        assert!(start(wrong, now).is_err(), "{wrong}");
    }
}

#[test]
fn a_frozen_policy_that_cannot_be_used_denies_if_it_decides_and_says_nothing_in_audit() {
    let allows = engine("{rules: [{name: all, action: Allow}]}");
    let before = |mode: &str| {
        let mut broken = old("Ask");
        broken[0]["name"] = json!("broken");
        broken[0]["mode"] = json!(mode);
        broken[0]["rules"] = json!([{"name": "r", "action": "Allow", "when": "args.x =="}]);
        change(&proposal(&plan(&broken), "push", json!({})), &allows).map(|change| change.cells[3].clone())
    };
    assert_eq!(before("Audit").as_deref(), Some("asked"));
    assert_eq!(before("Enforce"), None, "denied before and after");
}
