//! A tool's server that changes what an operation means in the middle of a run, on a real cluster: what is held, who accepts
//! it, and what truly arrived, counted by the server itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use belay_e2e::chaos::effects::{events, verified_export};
use belay_e2e::counter::{arrived, call, define, start};
use belay_e2e::kubectl::{belay, belay_as};
use belay_e2e::namespace::condition;
use belay_e2e::stage::{binding, role, rule};
use serde_json::{Value, json};

const A_MINUTE: Duration = Duration::from_mins(1);
const TWO_MINUTES: Duration = Duration::from_mins(2);

/// A counter, and ada, who may approve on policy `careful` and on Tool `counter`; eve may on the policy alone.
fn stage(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    start(&namespace).unwrap();
    let policy = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "careful"},
        "spec": {"mode": "Enforce", "otherwise": "Ask", "rules": [
            {"name": "adding-needs-people", "operations": ["add"], "action": "Ask", "ask": {"quorum": 1}},
            {"name": "the-rest", "operations": ["put"], "action": "Allow"}]},
    });
    let policies = rule("decide.belay.dev", "approvalpolicies", Some("careful"), "approve");
    let tools = rule("decide.belay.dev", "tools", Some("counter"), "approve");
    let objects = [
        policy,
        role("calls", std::slice::from_ref(&policies)),
        role("definitions", std::slice::from_ref(&tools)),
        binding("ada", "Role", "calls"),
        binding("ada", "Role", "definitions"),
        binding("eve", "Role", "calls"),
        binding("ada", "ClusterRole", "belay-approver"),
        binding("eve", "ClusterRole", "belay-approver"),
    ];
    for object in objects {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    namespace.wait_ready("approvalpolicy", "careful", "True", "Ready").unwrap();
    namespace
}

/// Starts run `r` of an Agent of that name.
fn run(namespace: &TempNamespace, turns: &Value, policies: &Value, on_drift: &str) {
    let model = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "r"},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}},
    });
    let agent = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "r"},
        "spec": {"modelRef": {"name": "r"}, "policyRefs": policies,
            "tools": [{"name": "counter", "operations": ["add", "put"], "onDrift": on_drift}]},
    });
    namespace.kubectl.apply(&model.to_string()).unwrap();
    namespace.kubectl.apply(&agent.to_string()).unwrap();
    let started = belay(&["-n", &namespace.name, "run", "r", "--name", "r", "--input", "go"]).unwrap();
    assert!(started.success, "{}", started.stderr);
}

fn add(id: &str) -> Value {
    json!({"toolCalls": [call("add", id, Duration::ZERO)]})
}

/// What the run waits on, once that is of this kind and none of `before`.
fn waits_on(namespace: &TempNamespace, kind: &str, before: &str) -> String {
    namespace
        .wait_until("agentrun", "r", TWO_MINUTES, |run| {
            let on = &run["status"]["waitingOn"];
            let name = on["name"].as_str().filter(|name| on["kind"] == kind && *name != before)?;
            Some(name.to_owned())
        })
        .unwrap()
}

fn allow(namespace: &TempNamespace, approval: &str) {
    let allowed = belay_as("ada", &["-n", &namespace.name, "approve", approval, "--yes"]).unwrap();
    assert!(allowed.success, "{}", allowed.stderr);
}

fn ids(namespace: &TempNamespace) -> Vec<String> {
    arrived(namespace).unwrap().into_iter().map(|one| format!("{} {}", one.name, one.id.unwrap_or_default())).collect()
}

#[test]
fn an_approved_call_whose_definition_changed_is_held_until_people_accept_it_and_asked_anew() {
    let namespace = stage("drift-wait");
    run(&namespace, &json!([add("a"), {"text": "done"}]), &json!([{"name": "careful"}]), "Wait");
    let first = waits_on(&namespace, "approval", "");
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "-l", "belay.dev/run-uid", "--timeout=90s"]).unwrap();
    define(&namespace, "add", "send-it-to-a-stranger").unwrap();
    allow(&namespace, &first);

    assert_eq!(waits_on(&namespace, "tool", ""), "counter");
    let ready = condition(&namespace.kubectl.get("agentrun", "r").unwrap(), "Ready").unwrap().clone();
    assert_eq!(ready["reason"], "DefinitionDrifted");
    let tool = namespace.wait_ready("tool", "counter", "False", "Drifted").unwrap();
    let drifted = &tool["status"]["drift"]["operations"];
    assert_eq!(drifted.as_array().unwrap().len(), 1, "{drifted:#}");
    let diff = drifted[0]["diff"].as_str().unwrap();
    assert!(diff.contains("- description: add\n+ description: send-it-to-a-stranger"), "{diff}");
    assert_eq!(tool["status"]["operations"][0]["description"], "add", "a probe accepts nothing");
    namespace.wait_ready("agent", "r", "False", "ToolDrifted").unwrap();
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "-l", "belay.dev/run-uid", "--timeout=90s"]).unwrap();
    assert_eq!(ids(&namespace), Vec::<String>::new());

    let accept = ["-n", &namespace.name, "tool", "accept", "counter", "--yes"];
    let question = namespace.wait_until("tool", "counter", A_MINUTE, |tool| {
        tool["status"]["drift"]["question"]["uid"].as_str().map(str::to_owned)
    });
    question.unwrap();
    let stranger = belay_as("eve", &accept).unwrap();
    assert!(stranger.stderr.contains("verb approve on tools.decide.belay.dev counter"), "{}", stranger.stderr);
    let accepted = belay_as("ada", &accept).unwrap();
    assert!(
        accepted.success && accepted.stdout.contains("+ description: send-it-to-a-stranger"),
        "{}",
        accepted.stderr
    );
    namespace.wait_ready("tool", "counter", "True", "Ready").unwrap();

    let second = waits_on(&namespace, "approval", &first);
    let (old, new) =
        (namespace.kubectl.get("approval", &first).unwrap(), namespace.kubectl.get("approval", &second).unwrap());
    assert_eq!(old["status"]["sealed"], true);
    assert_ne!(old["spec"]["request"]["definition"], new["spec"]["request"]["definition"]);
    assert_eq!(ids(&namespace), Vec::<String>::new(), "what was allowed before is void");
    allow(&namespace, &second);
    let run = namespace.run_to_the_end("r", TWO_MINUTES).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(ids(&namespace), ["add a"]);
    let events = events(&verified_export(&namespace, "r").unwrap()).unwrap();
    let taken_over: Vec<_> = events.iter().filter(|event| event["kind"] == "DefinitionsAccepted").collect();
    assert_eq!(taken_over.len(), 1);
    assert_eq!(taken_over[0]["approval"], tool_approval(&namespace));
}

fn tool_approval(namespace: &TempNamespace) -> Value {
    namespace.kubectl.get("tool", "counter").unwrap()["status"]["acceptance"]["approval"].clone()
}

#[test]
fn a_run_that_waits_goes_on_by_itself_once_the_server_offers_again_what_was_accepted() {
    let namespace = stage("drift-back");
    run(&namespace, &json!([add("a"), {"text": "done"}]), &json!([{"name": "careful"}]), "Wait");
    let first = waits_on(&namespace, "approval", "");
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "-l", "belay.dev/run-uid", "--timeout=90s"]).unwrap();
    define(&namespace, "add", "otherwise").unwrap();
    allow(&namespace, &first);
    waits_on(&namespace, "tool", "");
    namespace.wait_ready("tool", "counter", "False", "Drifted").unwrap();
    define(&namespace, "add", "add").unwrap();
    // Or ten minutes of waiting.
    let patch = json!({"spec": {"callTimeoutSeconds": 31}}).to_string();
    namespace.kubectl.run(&["patch", "tool", "counter", "--type=merge", "-p", &patch]).unwrap();
    namespace.wait_ready("tool", "counter", "True", "Ready").unwrap();
    let run = namespace.run_to_the_end("r", TWO_MINUTES).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(ids(&namespace), ["add a"], "its definition is the one that people allowed it under");
    let open =
        namespace.kubectl.run(&["get", "approvals", "-o", "jsonpath={.items[?(@.status.sealed!=true)].metadata.name}"]);
    assert_eq!(open.unwrap(), "", "nobody is asked any more");
}

#[test]
fn a_run_that_does_not_wait_goes_on_without_the_operation_and_its_tool_says_so() {
    let namespace = stage("drift-on");
    define(&namespace, "add", "otherwise").unwrap();
    run(
        &namespace,
        &json!([add("a"), {"toolCalls": [call("put", "b", Duration::ZERO)]}, {"text": "done"}]),
        &json!([]),
        "Continue",
    );
    let run = namespace.run_to_the_end("r", TWO_MINUTES).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(ids(&namespace), ["put b"]);
    assert!(verified_export(&namespace, "r").unwrap().contains("is not the one that was accepted for this run"));
    namespace.wait_ready("tool", "counter", "False", "Drifted").unwrap();
    let agent = namespace.wait_ready("agent", "r", "True", "Ready").unwrap();
    assert!(condition(&agent, "Ready").unwrap()["message"].as_str().is_some());
}
