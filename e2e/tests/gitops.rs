//! What Argo CD and Flux see: applying twice changes nothing, every object comes to rest with a reason, and the
//! scheduled sample starts a run with no more rights than it says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use belay_e2e::namespace::condition;
use serde_json::Value;

const A_MINUTE: Duration = Duration::from_mins(1);
const SAMPLES: [&str; 3] = ["samples/quickstart.yaml", "samples/run.yaml", "samples/real-model.yaml"];
const KINDS: &str = "models,credentials.belay.dev,tools.belay.dev,agents.belay.dev,agentruns";

/// kstatus' reading of our conditions: Current, InProgress or Failed.
fn kstatus(object: &Value) -> &'static str {
    let is = |type_: &str, status: &str| condition(object, type_).is_some_and(|c| c["status"] == status);
    if object["status"]["observedGeneration"] != object["metadata"]["generation"] {
        "InProgress"
    } else if is("Stalled", "True") {
        "Failed"
    } else if is("Reconciling", "True") {
        "InProgress"
    } else if is("Ready", "True") {
        "Current"
    } else {
        "InProgress"
    }
}

fn items(namespace: &TempNamespace) -> Vec<Value> {
    let text = namespace.kubectl.run(&["get", KINDS, "-o", "json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["items"].as_array().unwrap().clone()
}

fn versions(namespace: &TempNamespace) -> Vec<(String, String)> {
    let word = |object: &Value, at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    items(namespace).iter().map(|o| (word(o, "/metadata/name"), word(o, "/metadata/resourceVersion"))).collect()
}

#[test]
fn applying_the_samples_twice_changes_nothing_and_every_object_comes_to_rest() {
    let namespace = TempNamespace::enabled("gitops-twice").unwrap();
    namespace.apply_manifest("demo/server.yaml").unwrap();
    namespace.kubectl.run(&["create", "secret", "generic", "openai", "--from-literal=key=not-a-key"]).unwrap();
    for sample in SAMPLES {
        namespace.apply_manifest(sample).unwrap();
    }
    namespace.run_to_the_end("quickstart-once", Duration::from_mins(2)).unwrap();
    for (kind, name) in [("agents.belay.dev", "quickstart-real"), ("agentruns", "quickstart-once")] {
        namespace.wait_until(kind, name, A_MINUTE, |object| (kstatus(object) == "Current").then_some(())).unwrap();
    }
    for object in items(&namespace) {
        assert_eq!(kstatus(&object), "Current", "{object:#}");
        let reason = condition(&object, "Ready").unwrap()["reason"].as_str().unwrap();
        assert!(!reason.is_empty());
    }
    let before = versions(&namespace);
    for sample in SAMPLES {
        namespace.apply_manifest(sample).unwrap();
    }
    assert_eq!(versions(&namespace), before);
}

#[test]
fn what_is_broken_on_purpose_does_not_look_current() {
    let namespace = TempNamespace::enabled("gitops-broken").unwrap();
    namespace
        .kubectl
        .apply(
            "{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: m}, spec: {api: Scripted, model: s, scripted: {turns: [{error: on purpose}]}}}\n---\n\
             {apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {name: a}, spec: {modelRef: {name: m}, limits: {costUSD: '1.00'}}}\n---\n\
             {apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {name: fails}, spec: {modelRef: {name: m}}}\n---\n\
             {apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {name: r}, spec: {agentRef: {name: fails}, input: go}}\n",
        )
        .unwrap();
    let agent = namespace.wait_ready("agents.belay.dev", "a", "False", "PricesMissing").unwrap();
    assert_eq!(kstatus(&agent), "Failed", "{agent:#}");
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(kstatus(&run), "Failed", "{run:#}");
    assert!(condition(&run, "Ready").unwrap()["message"].as_str().unwrap().contains("on purpose"), "{run:#}");
}

#[test]
fn the_scheduled_sample_starts_a_run_and_its_account_may_do_no_more() {
    let namespace = TempNamespace::enabled("gitops-cron").unwrap();
    namespace.apply_manifest("samples/quickstart.yaml").unwrap();
    namespace.apply_manifest("samples/scheduled.yaml").unwrap();
    namespace.kubectl.run(&["create", "job", "now", "--from=cronjob/quickstart"]).unwrap();
    namespace.kubectl.run(&["wait", "--for=condition=Complete", "job/now", "--timeout=60s"]).unwrap();
    let runs = items(&namespace);
    let run = runs.iter().find(|object| object["kind"] == "AgentRun").unwrap();
    let account = format!("system:serviceaccount:{}:quickstart-scheduler", namespace.name);
    assert_eq!(run["spec"]["requestedBy"], account.as_str());
    let scheduler = namespace.kubectl.with(&["--as", &account, "--as-group", "system:serviceaccounts"]);
    let other = "{apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {name: other}, spec: {agentRef: {name: another}, input: go}}";
    let refused = scheduler.output(&["create", "-f", "-"], Some(other)).unwrap();
    assert!(!refused.success && refused.stderr.contains("needs the verb use"), "{}", refused.stderr);
    assert!(!scheduler.output(&["get", "secrets"], None).unwrap().success);
}
