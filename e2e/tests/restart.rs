//! What a restart of the operator does to runs that are under way: nothing. In a file of its own, because no
//! other test may run beside it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::kubectl::belay;
use belay_e2e::{Kubectl, TempNamespace};

#[test]
fn a_run_goes_on_across_a_restart_of_the_operator() {
    let namespace = TempNamespace::enabled("restart").unwrap();
    namespace
        .kubectl
        .apply(
            "{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: m}, spec: {api: Scripted, model: s, scripted: {turns: [\
             {delayMilliseconds: 6000, toolCalls: [{tool: nowhere, operation: x}]}, {text: went on}]}}}\n---\n\
             {apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {name: a}, spec: {modelRef: {name: m}}}\n",
        )
        .unwrap();
    let started = belay(&["-n", &namespace.name, "run", "a", "--name", "r", "--input", "go"]).unwrap();
    assert!(started.success, "{}", started.stderr);
    let minute = Duration::from_mins(1);
    let pod = namespace
        .wait_until("agentrun", "r", minute, |run| {
            (run["status"]["phase"] == "Running").then(|| run["status"]["podRef"]["uid"].as_str().map(str::to_owned))?
        })
        .unwrap();
    let operator = Kubectl::new().with(&["--namespace", "belay-system"]);
    operator.run(&["delete", "pods", "--selector=app.kubernetes.io/name=belay-operator", "--timeout=60s"]).unwrap();
    operator.run(&["rollout", "status", "deployment/belay-operator", "--timeout=60s"]).unwrap();
    let run = namespace.run_to_the_end("r", minute).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(run["status"]["output"], "went on");
    assert_eq!(run["status"]["podRef"]["uid"], pod.as_str(), "the same pod to the end");
}
