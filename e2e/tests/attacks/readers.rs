//! Who may read a run's journal: whoever makes a key for it names himself, and may see that run.

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, create, merge, refused, rule};
use serde_json::{Value, json};

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn grant(by: &str, more: &Value) -> Value {
    let mut spec =
        json!({"runRef": {"name": "r"}, "purpose": "JournalExport", "by": by, "publicKey": KEY, "validSeconds": 60});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"apiVersion": "belay.dev/v1alpha1", "kind": "ReadGrant", "metadata": {"generateName": "read-"}, "spec": spec})
}

/// nina may make grants and see the run `r`.
fn stage(prefix: &str) -> (Stage, belay_e2e::Kubectl) {
    let stage = Stage::new(prefix);
    stage.grant("nina", &rule("belay.dev", "readgrants", None, "create"));
    let nina = stage.admin.as_user("nina");
    (stage, nina)
}

#[test]
fn a_grant_in_anothers_name_is_refused() {
    let (_stage, nina) = stage("atk-reader");
    refused("spec.by is ada, but you are nina", || create(&nina, &grant("ada", &json!({}))));
}

#[test]
fn a_grant_for_a_run_that_one_may_not_see_is_refused() {
    let stage = Stage::new("atk-blind");
    stage.apply(&[
        belay_e2e::stage::role(
            "grants",
            &[rule("belay.dev", "readgrants", None, "create"), rule("belay.dev", "agentruns", Some("mine"), "get")],
        ),
        belay_e2e::stage::binding("oscar", "Role", "grants"),
    ]);
    let oscar = stage.admin.as_user("oscar");
    refused("spec.runRef names the AgentRun r: oscar needs the verb get on it", || {
        create(&oscar, &grant("oscar", &json!({})))
    });
    accepted(|| create(&oscar, &grant("oscar", &json!({"runRef": {"name": "mine"}}))));
}

#[test]
fn a_grant_lasts_ten_minutes_at_most_and_is_for_a_whole_key() {
    let (_stage, nina) = stage("atk-lasting");
    for (more, words) in [
        (json!({"validSeconds": 601}), "spec.validSeconds"),
        (json!({"validSeconds": 0}), "spec.validSeconds"),
        (json!({"publicKey": "short"}), "spec.publicKey"),
        (json!({"purpose": "Everything"}), "spec.purpose"),
    ] {
        refused(words, || create(&nina, &grant("nina", &more)));
    }
    accepted(|| create(&nina, &grant("nina", &json!({"validSeconds": 600}))));
}

#[test]
fn a_grant_is_never_changed_to_anothers_key_or_run() {
    let (stage, nina) = stage("atk-swap");
    let mut named = grant("nina", &json!({}));
    named["metadata"] = json!({"name": "g"});
    accepted(|| create(&nina, &named));
    for change in
        [json!({"publicKey": KEY.replace('A', "B")}), json!({"runRef": {"name": "s"}}), json!({"validSeconds": 600})]
    {
        for who in [&stage.mallory, &stage.admin] {
            refused("spec cannot change", || merge(who, "readgrant", "g", &json!({"spec": change})));
        }
    }
}
