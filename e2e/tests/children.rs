//! An Agent as a tool of another one, on a cluster: samples/subagent.yaml.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(2);

fn with_lead(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    namespace.apply_manifest("samples/subagent.yaml").unwrap();
    namespace.wait_ready("tool", "finder", "True", "Ready").unwrap();
    namespace.wait_ready("agent", "lead", "True", "Ready").unwrap();
    namespace
}

fn start(namespace: &TempNamespace) {
    let run = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": "r"},
        "spec": {"agentRef": {"name": "lead"}, "input": "Where is the key?"}});
    namespace.kubectl.apply(&run.to_string()).unwrap();
}

/// The one child of run `r`.
fn child(namespace: &TempNamespace) -> Value {
    let children = namespace.kubectl.run(&["get", "agentruns", "-l", "belay.dev/parent=r", "-o", "json"]).unwrap();
    let children: Value = serde_json::from_str(&children).unwrap();
    children["items"][0].clone()
}

#[test]
fn a_run_has_another_agent_do_a_part_and_goes_on_with_its_answer() {
    let namespace = with_lead("children");
    start(&namespace);
    let run = namespace.run_to_the_end("r", PATIENCE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let child = child(&namespace);
    assert_eq!(child["status"]["phase"], "Succeeded", "{child:#}");
    assert_eq!(child["status"]["output"], "It is in the attic.");
    assert_eq!(child["spec"]["parent"]["uid"], run["metadata"]["uid"]);
    assert_eq!(child["spec"]["input"], "Find the key.");
    assert_eq!(child["spec"]["limits"]["tokens"], 20000, "the tightest of all limits");
    let table = namespace.kubectl.run(&["get", "agentruns", "-o", "wide"]).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].ends_with("PARENT"), "{table}");
    assert!(
        lines[1].starts_with("r ") && lines[2].starts_with("r-c1-") && lines[2].trim_end().ends_with(" r"),
        "{table}"
    );
    namespace.kubectl.run(&["delete", "agentrun", "r"]).unwrap();
    let gone = format!("agentrun/{}", child["metadata"]["name"].as_str().unwrap());
    namespace.kubectl.run(&["wait", &gone, "--for=delete", "--timeout=60s"]).unwrap();
}

#[test]
fn a_run_that_is_cancelled_takes_its_child_with_it() {
    let namespace = with_lead("children-cancel");
    let slow = json!({"spec": {"scripted": {"turns": [{"text": "late", "delayMilliseconds": 300_000}]}}}).to_string();
    namespace.kubectl.run(&["patch", "model", "finder", "--type=merge", "--patch", &slow]).unwrap();
    namespace.wait_ready("agent", "finder", "True", "Ready").unwrap();
    start(&namespace);
    let waits_for = |run: &Value| {
        let on = &run["status"]["waitingOn"];
        (on["kind"] == "agentrun").then(|| on["name"].as_str().unwrap().to_owned())
    };
    let name = namespace.wait_until("agentrun", "r", PATIENCE, waits_for).unwrap();
    let runs = |run: &Value| (run["status"]["phase"] == "Running").then_some(());
    namespace.wait_until("agentrun", &name, PATIENCE, runs).unwrap();
    let cancel = json!({"spec": {"cancel": true}}).to_string();
    namespace.kubectl.run(&["patch", "agentrun", "r", "--type=merge", "--patch", &cancel]).unwrap();
    let run = namespace.run_to_the_end("r", PATIENCE).unwrap();
    assert_eq!(run["status"]["phase"], "Cancelled", "{run:#}");
    let child = namespace.run_to_the_end(&name, PATIENCE).unwrap();
    assert_eq!(child["status"]["phase"], "Cancelled", "{child:#}");
    let words = child["status"]["conditions"].to_string();
    assert!(words.contains("AgentRun r, whose call it carries out, "), "{words}");
}
