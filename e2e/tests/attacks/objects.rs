//! Approvals as objects: who makes them, takes them away, and hangs things on them.

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, approval, create, decide, decision, merge, merge_status, refused, requirements};
use serde_json::{Value, json};

const ONLY: &str = "only the operator creates, deletes or writes the status of an Approval";
const METADATA: &str = "labels, owners and finalizers of an Approval are the operator's";

#[test]
fn an_approval_made_beforehand_under_the_operators_naming_is_refused() {
    let stage = Stage::new("atk-made");
    for who in [&stage.mallory, &stage.admin] {
        refused(ONLY, || create(who, &approval("nightly-c1-abcdefgh", &requirements())));
    }
}

#[test]
fn nobody_deletes_an_approval_to_have_it_asked_anew() {
    let stage = Stage::asked("atk-delete");
    for who in [&stage.mallory, &stage.admin] {
        refused(ONLY, || who.output(&["delete", "approval", "a"], None).unwrap());
        refused(ONLY, || who.output(&["delete", "approvals", "--all"], None).unwrap());
    }
}

#[test]
fn nobody_seals_an_approval_or_says_how_many_decided() {
    let stage = Stage::asked("atk-status");
    for status in [json!({"sealed": true}), json!({"given": "2/2"})] {
        for who in [&stage.mallory, &stage.admin] {
            // Two policies guard it: which one speaks first is not said.
            refused("only the operator", || merge_status(who, "approval", "a", &status));
        }
    }
}

fn ada_hangs_nothing(prefix: &str, metadata: &Value) {
    let stage = Stage::asked(prefix);
    for who in [&stage.ada, &stage.mallory, &stage.operator] {
        refused(METADATA, || merge(who, "approval", "a", &json!({"metadata": metadata})));
    }
    let mut decided: Value = serde_json::from_str(&decision("a", "ada", &json!({}))).unwrap();
    for (field, value) in metadata.as_object().unwrap() {
        decided["metadata"][field] = value.clone();
    }
    refused(METADATA, || decide(&stage.ada, "ada", &decided.to_string()));
}

#[test]
fn a_dangling_owner_that_would_have_it_collected_is_refused() {
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "u"}]);
    ada_hangs_nothing("atk-owner", &json!({"ownerReferences": owner}));
}

#[test]
fn a_finalizer_that_would_keep_it_for_ever_is_refused() {
    ada_hangs_nothing("atk-finalizer", &json!({"finalizers": ["example.com/stay"]}));
}

#[test]
fn a_label_from_an_approver_is_refused() {
    ada_hangs_nothing("atk-label", &json!({"labels": {"team": "mine"}}));
    let stage = Stage::asked("atk-relabel");
    refused(METADATA, || merge(&stage.ada, "approval", "a", &json!({"metadata": {"labels": {"of": null}}})));
}

#[test]
fn an_approval_goes_with_its_run_in_the_foreground_too_and_cancelling_needs_update_alone() {
    let stage = Stage::new("atk-goes");
    let run = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": "r"},
        "spec": {"agentRef": {"name": "a"}, "input": "go"}});
    stage.apply(&[run]);
    let uid = stage.admin.get("agentrun", "r").unwrap()["metadata"]["uid"].clone();
    let mut asked = approval("a", &requirements());
    asked["metadata"]["ownerReferences"] = json!([{"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "name": "r",
        "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    accepted(|| create(&stage.operator, &asked));
    accepted(|| merge(&stage.mallory, "agentrun", "r", &json!({"spec": {"cancel": true}})));
    stage.mallory.run(&["delete", "agentrun", "r", "--cascade=foreground", "--timeout=60s"]).unwrap();
    refused("not found", || stage.admin.output(&["get", "approval", "a"], None).unwrap());
}

#[test]
fn a_namespace_goes_with_approvals_in_it() {
    let stage = Stage::asked("atk-namespace");
    belay_e2e::Kubectl::new().run(&["delete", "namespace", &stage.namespace.name, "--timeout=60s"]).unwrap();
}
