//! What people allow for the rest of a run, on a real cluster: counted down, run out, taken back; and what truly arrived,
//! counted by the server that the calls went to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use belay_e2e::chaos::effects::verified_export;
use belay_e2e::counter::{arrived, call, start};
use belay_e2e::kubectl::belay;
use serde_json::{Value, json};

const A_MINUTE: Duration = Duration::from_mins(1);
const TWO_MINUTES: Duration = Duration::from_mins(2);
/// What the model takes for an answer, so that people can do something before it.
const A_WHILE_MILLISECONDS: u32 = 20_000;

/// A counter whose `add` is asked of two people, who may allow five more within ten minutes.
fn careful(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    start(&namespace).unwrap();
    let policy = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "careful"},
        "spec": {"rules": [{"name": "adding", "operations": ["add"], "action": "Ask",
            "ask": {"quorum": 2, "grants": {"maxCount": 5, "maxSeconds": 600}}}]},
    });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "approver"},
        "rules": [{"apiGroups": ["decide.belay.dev"], "resources": ["approvalpolicies"], "verbs": ["approve"],
            "resourceNames": ["careful"]}],
    });
    for object in [policy, role] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    for user in ["ada", "bob"] {
        for (flag, role) in [("--role", "approver"), ("--clusterrole", "belay-approver")] {
            let name = format!("{user}-{role}");
            namespace.kubectl.run(&["create", "rolebinding", &name, flag, role, "--user", user]).unwrap();
        }
    }
    namespace.wait_ready("approvalpolicy", "careful", "True", "Ready").unwrap();
    namespace
}

/// Starts run `r`, which calls `add` once in each turn; before the last one its model takes a while where `waits` says so.
fn add_each(namespace: &TempNamespace, ids: &[&str], waits: Option<&str>) {
    let turn = |id: &&str| {
        let mut turn = json!({"toolCalls": [call("add", id, Duration::ZERO)]});
        if waits == Some(*id) {
            turn["delayMilliseconds"] = json!(A_WHILE_MILLISECONDS);
        }
        turn
    };
    let turns: Vec<Value> = ids.iter().map(turn).chain([json!({"text": "done"})]).collect();
    let model = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "r"},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}},
    });
    let agent = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "r"},
        "spec": {"modelRef": {"name": "r"}, "policyRefs": [{"name": "careful"}],
            "tools": [{"name": "counter", "operations": ["add"]}]},
    });
    for object in [model, agent] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    let started = belay(&["-n", &namespace.name, "run", "r", "--name", "r", "--input", "go"]).unwrap();
    assert!(started.success, "{}", started.stderr);
}

/// The Approval that the run waits for, other than `before`.
fn asked(namespace: &TempNamespace, before: &str) -> String {
    let waits = |run: &Value| {
        let on = &run["status"]["waitingOn"];
        let name = on["name"].as_str().filter(|name| on["kind"] == "approval" && *name != before)?;
        (run["status"]["phase"] == "Waiting").then(|| name.to_owned())
    };
    namespace.wait_until("agentrun", "r", TWO_MINUTES, waits).unwrap()
}

/// Each of these people says yes, with this grant.
fn allow(namespace: &TempNamespace, approval: &str, people: &[&str], grant: &Value) {
    let digest = namespace.kubectl.get("approval", approval).unwrap()["spec"]["request"]["digest"].clone();
    for user in people {
        let mut decision = json!({"policy": "careful", "by": user, "digest": digest, "verdict": "Allow"});
        if !grant.is_null() {
            decision["answer"] = json!({"grant": grant});
        }
        let body = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": approval},
            "spec": {"decisions": [decision]},
        });
        let apply = ["apply", "--server-side", "--field-manager", user, "-f", "-"];
        let decided = namespace.kubectl.as_user(user).output(&apply, Some(&body.to_string())).unwrap();
        assert!(decided.success, "{}", decided.stderr);
    }
}

fn grants(namespace: &TempNamespace) -> Vec<Value> {
    let list = namespace.kubectl.run(&["get", "approvalgrants", "-o", "json"]).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    list["items"].as_array().unwrap().clone()
}

fn ids(namespace: &TempNamespace) -> Vec<String> {
    arrived(namespace).unwrap().into_iter().filter_map(|one| one.id).collect()
}

const BOTH: [&str; 2] = ["ada", "bob"];

#[test]
fn two_people_allow_two_more_calls_which_are_not_asked_about_and_the_next_one_is() {
    let namespace = careful("granted-count");
    add_each(&namespace, &["a", "b", "c", "d"], None);
    let first = asked(&namespace, "");
    allow(&namespace, &first, &BOTH, &json!({"when": "args.id != 'z'", "count": 2, "seconds": 600}));
    let second = asked(&namespace, &first);
    assert_eq!(ids(&namespace), ["a", "b", "c"]);
    let given = grants(&namespace);
    assert_eq!(given.len(), 1);
    assert_eq!((&given[0]["spec"]["by"], &given[0]["spec"]["approval"]), (&json!(BOTH), &json!(first)));
    let name = given[0]["metadata"]["name"].as_str().unwrap();
    let none_left = |grant: &Value| (grant["status"]["left"] == 0).then_some(());
    namespace.wait_until("approvalgrant", name, A_MINUTE, none_left).unwrap();
    // Only one of them wants to allow more: that is not enough for it, and enough for the call.
    allow(&namespace, &second, &["ada"], &json!({"when": "true", "count": 5, "seconds": 600}));
    allow(&namespace, &second, &["bob"], &Value::Null);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(ids(&namespace), ["a", "b", "c", "d"]);
    let export = verified_export(&namespace, "r").unwrap();
    assert!(export.contains("\"kind\":\"GrantRefused\"") && export.contains("1 of 2 people gave"), "{export}");
    assert_eq!(export.matches(&format!("\"grants\":[\"{name}\"]")).count(), 2, "each use is in the journal: {export}");
}

#[test]
fn what_was_taken_back_is_asked_again_and_so_is_what_the_pattern_does_not_fit() {
    let namespace = careful("granted-back");
    add_each(&namespace, &["a", "z", "b"], Some("b"));
    let first = asked(&namespace, "");
    allow(&namespace, &first, &BOTH, &json!({"when": "args.id != 'z'", "count": 5, "seconds": 600}));
    let second = asked(&namespace, &first);
    assert_eq!(ids(&namespace), ["a"], "the pattern does not fit z");
    allow(&namespace, &second, &BOTH, &Value::Null);
    let sealed = |approval: &Value| (approval["status"]["sealed"] == true).then_some(());
    namespace.wait_until("approval", &second, A_MINUTE, sealed).unwrap();
    let name = grants(&namespace)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    namespace.kubectl.as_user("ada").run(&["delete", "approvalgrant", &name]).unwrap();
    let third = asked(&namespace, &second);
    assert_eq!(ids(&namespace), ["a", "z"], "b would have fitted");
    allow(&namespace, &third, &BOTH, &Value::Null);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let export = verified_export(&namespace, "r").unwrap();
    assert!(export.contains("\"kind\":\"GrantRevoked\""), "{export}");
}
