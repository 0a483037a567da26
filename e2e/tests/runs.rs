//! Runs on a real cluster: the promises of README and issue, each in a namespace of its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use belay_e2e::kubectl::belay;
use belay_e2e::namespace::condition;
use serde_json::Value;

const A_MINUTE: Duration = Duration::from_mins(1);

/// A namespace with the quickstart's Agent, ready to run, and its MCP server.
fn quickstart(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    namespace.apply_manifest("demo/server.yaml").unwrap();
    namespace.apply_manifest("samples/quickstart.yaml").unwrap();
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"]).unwrap();
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/quickstart", "--timeout=60s"]).unwrap();
    namespace
}

/// Applies an Agent on a scripted model whose turns are given, without tools.
fn scripted(namespace: &TempNamespace, agent: &str, turns: &str, more: &str) {
    namespace
        .kubectl
        .apply(&format!(
            "apiVersion: belay.dev/v1alpha1\nkind: Model\nmetadata: {{name: {agent}}}\nspec: {{api: Scripted, model: s, scripted: {{turns: {turns}}}}}\n---\n\
             apiVersion: belay.dev/v1alpha1\nkind: Agent\nmetadata: {{name: {agent}}}\nspec: {{modelRef: {{name: {agent}}}{more}}}\n"
        ))
        .unwrap();
}

fn start(namespace: &TempNamespace, agent: &str, name: &str) {
    let output =
        belay(&["-n", &namespace.name, "run", agent, "--name", name, "--input", "Do what you were told."]).unwrap();
    assert!(output.success, "{}", output.stderr);
}

fn message(run: &Value) -> String {
    condition(run, "Ready").unwrap()["message"].as_str().unwrap_or_default().to_owned()
}

fn assert_ended(run: &Value, phase: &str, reason: &str) {
    assert_eq!(run["status"]["phase"], phase, "{run:#}");
    assert_eq!(condition(run, "Finished").unwrap()["reason"], phase, "{run:#}");
    assert_eq!(condition(run, "Ready").unwrap()["reason"], reason, "{run:#}");
}

/// No runner pod of the run is left, once the operator had the time to delete it.
fn assert_no_pod(namespace: &TempNamespace) {
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "--selector=belay.dev/run-uid", "--timeout=60s"]).unwrap();
}

#[test]
fn the_quickstart_succeeds_with_a_real_mcp_server_and_a_denied_call() {
    let namespace = quickstart("run-demo");
    let output = belay(&[
        "-n",
        &namespace.name,
        "run",
        "quickstart",
        "--name",
        "q",
        "--input",
        "Add.",
        "--wait",
        "--timeout",
        "60",
    ])
    .unwrap();
    assert!(output.success, "{}{}", output.stdout, output.stderr);
    for line in ["everything/get-sum", "everything/echo", "denied", "Succeeded"] {
        assert!(output.stdout.contains(line), "no step says {line}: {}", output.stdout);
    }
    assert!(!output.stdout.contains("message"), "steps show no arguments: {}", output.stdout);
    let agent = namespace.kubectl.get("agents.belay.dev", "quickstart").unwrap();
    assert_eq!(condition(&agent, "PeerAddressVerified").unwrap()["status"], "True", "{agent:#}");
    let run = namespace.run_to_the_end("q", A_MINUTE).unwrap();
    assert_ended(&run, "Succeeded", "Completed");
    let status = &run["status"];
    assert_eq!(status["usage"]["steps"], 3);
    assert!(status["output"].as_str().unwrap().starts_with("19 and 23 make 42."), "{status:#}");
    assert!(status["planDigest"].as_str().unwrap().starts_with("sha256:"));
    assert!(status["journal"]["seq"].as_i64().unwrap() > 10, "{status:#}");
    // A scripted model reports no tokens and has no price: unknown is absent, not 0.
    assert!(status["usage"].get("totalTokens").is_none() && status["usage"].get("costUSD").is_none());
    assert_no_pod(&namespace);
    let table = namespace.kubectl.run(&["get", "agentruns"]).unwrap();
    assert!(table.contains("Succeeded") && table.contains("quickstart"), "{table}");
}

#[test]
fn a_runner_pod_is_locked_down() {
    let namespace = TempNamespace::enabled("run-pod").unwrap();
    scripted(&namespace, "slow", "[{text: done, delayMilliseconds: 20000}]", "");
    start(&namespace, "slow", "r");
    let pod = namespace
        .wait_until("agentrun", "r", A_MINUTE, |run| run["status"]["podRef"]["name"].as_str().map(str::to_owned))
        .unwrap();
    assert!(pod.starts_with("belay-run-"));
    let pod_object = namespace.kubectl.get("pod", &pod).unwrap();
    let spec = &pod_object["spec"];
    let container = &spec["containers"][0];
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    assert!(container["resources"]["limits"]["memory"].is_string());
    let name = format!("pod/{pod}");
    for attempt in [
        vec!["exec", name.as_str(), "--", "/belay-runner"],
        vec!["label", name.as_str(), "a=b"],
        vec!["attach", name.as_str()],
        vec!["set", "image", name.as_str(), "runner=x"],
    ] {
        let output = namespace.kubectl.output(&attempt, None).unwrap();
        assert!(!output.success && output.stderr.contains("belay-run-* are the operator's"), "{}", output.stderr);
    }
}

#[test]
fn ten_runs_at_once_all_succeed() {
    let namespace = TempNamespace::enabled("run-ten").unwrap();
    scripted(&namespace, "quick", "[{text: done}]", "");
    let names: Vec<String> = (0..10).map(|n| format!("r{n}")).collect();
    for name in &names {
        start(&namespace, "quick", name);
    }
    for name in &names {
        assert_ended(&namespace.run_to_the_end(name, Duration::from_mins(2)).unwrap(), "Succeeded", "Completed");
    }
    assert_no_pod(&namespace);
}

#[test]
fn more_runs_than_the_agent_allows_wait_in_order() {
    let namespace = TempNamespace::enabled("run-queue").unwrap();
    scripted(&namespace, "one", "[{text: done, delayMilliseconds: 3000}]", ", maxConcurrentRuns: 1");
    start(&namespace, "one", "first");
    namespace
        .wait_until("agentrun", "first", A_MINUTE, |run| (run["status"]["phase"] == "Running").then_some(()))
        .unwrap();
    start(&namespace, "one", "second");
    namespace.wait_ready("agentrun", "second", "False", "Queued").unwrap();
    assert_ended(&namespace.run_to_the_end("first", A_MINUTE).unwrap(), "Succeeded", "Completed");
    assert_ended(&namespace.run_to_the_end("second", A_MINUTE).unwrap(), "Succeeded", "Completed");
}

#[test]
fn a_run_goes_on_in_another_pod_when_its_own_is_deleted() {
    let namespace = TempNamespace::enabled("run-lost").unwrap();
    scripted(
        &namespace,
        "slow",
        "[{toolCalls: [{tool: nowhere, operation: x}]}, {text: done, delayMilliseconds: 3000}]",
        "",
    );
    for (name, how) in [("gently", &["--wait=false"][..]), ("by-force", &["--grace-period=0", "--force"])] {
        start(&namespace, "slow", name);
        let second_step = |run: &Value| {
            let asked = run["status"]["phase"] == "Running";
            asked.then(|| run["status"]["podRef"]["name"].as_str().map(str::to_owned))?
        };
        let pod = namespace.wait_until("agentrun", name, A_MINUTE, second_step).unwrap();
        namespace.kubectl.run(&[&["delete", "pod", &pod], how].concat()).unwrap();
        let run = namespace.run_to_the_end(name, A_MINUTE).unwrap();
        assert_ended(&run, "Succeeded", "Completed");
        assert_ne!(run["status"]["podRef"]["name"], pod.as_str(), "in another pod");
        assert_eq!(run["status"]["usage"]["steps"], 2, "an answer that was recorded is not asked for again");
    }
    assert_no_pod(&namespace);
}

#[test]
fn a_run_is_cancelled_while_the_model_thinks() {
    let namespace = TempNamespace::enabled("run-cancel").unwrap();
    scripted(&namespace, "slow", "[{text: done, delayMilliseconds: 60000}]", "");
    start(&namespace, "slow", "r");
    namespace.wait_until("agentrun", "r", A_MINUTE, |run| (run["status"]["phase"] == "Running").then_some(())).unwrap();
    let output = belay(&["-n", &namespace.name, "cancel", "r"]).unwrap();
    assert!(output.success, "{}", output.stderr);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_ended(&run, "Cancelled", "Cancelled");
    assert_no_pod(&namespace);
}

#[test]
fn deleting_a_run_leaves_no_pod() {
    let namespace = TempNamespace::enabled("run-delete").unwrap();
    scripted(&namespace, "slow", "[{text: done, delayMilliseconds: 60000}]", "");
    start(&namespace, "slow", "r");
    namespace.wait_until("agentrun", "r", A_MINUTE, |run| (run["status"]["phase"] == "Running").then_some(())).unwrap();
    namespace.kubectl.run(&["delete", "agentrun", "r", "--timeout=30s"]).unwrap();
    assert_no_pod(&namespace);
}

#[test]
fn limits_end_a_run_with_a_reason_that_names_them() {
    let namespace = TempNamespace::enabled("run-limits").unwrap();
    scripted(&namespace, "slow", "[{text: done, delayMilliseconds: 60000}]", ", limits: {activeSeconds: 3}");
    start(&namespace, "slow", "deadline");
    let run = namespace.run_to_the_end("deadline", A_MINUTE).unwrap();
    assert_ended(&run, "Failed", "DeadlineExceeded");
    assert!(message(&run).contains("activeSeconds"), "{}", message(&run));
    let turns = "[{toolCalls: [{tool: nope, operation: x}]}, {toolCalls: [{tool: nope, operation: x}]}, {text: done}]";
    scripted(&namespace, "steps", turns, ", limits: {steps: 2}");
    start(&namespace, "steps", "steps");
    let run = namespace.run_to_the_end("steps", A_MINUTE).unwrap();
    assert_ended(&run, "Failed", "StepsExceeded");
    assert!(message(&run).contains("spec.limits.steps is 2"), "{}", message(&run));
}

#[test]
fn what_is_missing_is_named_and_heals_when_it_comes() {
    let namespace = TempNamespace::enabled("run-missing").unwrap();
    let agent = "{apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {name: a}, spec: {modelRef: {name: nowhere}}}";
    namespace.kubectl.apply(agent).unwrap();
    let object = namespace.wait_ready("agent", "a", "False", "ModelMissing").unwrap();
    assert!(message(&object).contains("nowhere") && message(&object).contains("spec.modelRef"), "{}", message(&object));
    start(&namespace, "a", "r");
    let waiting = namespace
        .wait_until("agentrun", "r", A_MINUTE, |run| run["status"]["waitingOn"]["display"].as_str().map(str::to_owned))
        .unwrap();
    assert_eq!(waiting, "agent/a");
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: nowhere}, spec: {api: Scripted, model: s, scripted: {turns: [{text: found}]}}}")
        .unwrap();
    assert_ended(&namespace.run_to_the_end("r", A_MINUTE).unwrap(), "Succeeded", "Completed");
    namespace.kubectl.run(&["delete", "model", "nowhere"]).unwrap();
    namespace.wait_ready("agent", "a", "False", "ModelMissing").unwrap();
}

#[test]
fn a_suspended_agent_starts_nothing_until_it_goes_on() {
    let namespace = TempNamespace::enabled("run-suspend").unwrap();
    scripted(&namespace, "s", "[{text: done}]", ", suspend: true");
    namespace.wait_ready("agent", "s", "False", "Suspended").unwrap();
    start(&namespace, "s", "r");
    namespace
        .wait_until("agentrun", "r", A_MINUTE, |run| (run["status"]["waitingOn"]["display"] == "agent/s").then_some(()))
        .unwrap();
    scripted(&namespace, "s", "[{text: done}]", "");
    assert_ended(&namespace.run_to_the_end("r", A_MINUTE).unwrap(), "Succeeded", "Completed");
}

#[test]
fn a_full_quota_shows_as_what_the_run_waits_for_and_passes() {
    let namespace = TempNamespace::enabled("run-quota").unwrap();
    scripted(&namespace, "a", "[{text: done}]", "");
    namespace.kubectl.run(&["create", "quota", "none", "--hard=pods=0"]).unwrap();
    start(&namespace, "a", "r");
    let blocked = namespace.wait_ready("agentrun", "r", "False", "PodBlocked").unwrap();
    assert!(blocked["status"]["waitingOn"]["display"].as_str().unwrap().starts_with("pod/belay-run-"), "{blocked:#}");
    assert!(message(&blocked).contains("exceeded quota"), "{}", message(&blocked));
    namespace.kubectl.run(&["delete", "quota", "none"]).unwrap();
    assert_ended(&namespace.run_to_the_end("r", A_MINUTE).unwrap(), "Succeeded", "Completed");
}

#[test]
fn a_run_that_is_over_goes_after_its_time_to_live() {
    let namespace = TempNamespace::enabled("run-ttl").unwrap();
    scripted(&namespace, "a", "[{text: done}]", "");
    start(&namespace, "a", "r");
    namespace.run_to_the_end("r", A_MINUTE).unwrap();
    namespace
        .kubectl
        .run(&["patch", "agentrun", "r", "--type=merge", "-p", r#"{"spec":{"ttlSecondsAfterFinished":1}}"#])
        .unwrap();
    namespace.kubectl.run(&["wait", "--for=delete", "agentrun/r", "--timeout=30s"]).unwrap();
}

#[test]
fn the_tighter_limit_of_run_and_agent_counts() {
    let namespace = TempNamespace::enabled("run-tighter").unwrap();
    let turns = "[{toolCalls: [{tool: nope, operation: x}]}, {toolCalls: [{tool: nope, operation: x}]}, {text: done}]";
    scripted(&namespace, "a", turns, ", limits: {steps: 10}");
    let run = |name: &str, steps: u32| {
        format!(
            "{{apiVersion: belay.dev/v1alpha1, kind: AgentRun, metadata: {{name: {name}}}, spec: {{agentRef: {{name: a}}, input: go, limits: {{steps: {steps}}}}}}}"
        )
    };
    namespace.kubectl.apply(&run("tighter", 1)).unwrap();
    namespace.kubectl.apply(&run("looser", 99)).unwrap();
    assert_ended(&namespace.run_to_the_end("tighter", A_MINUTE).unwrap(), "Failed", "StepsExceeded");
    assert_ended(&namespace.run_to_the_end("looser", A_MINUTE).unwrap(), "Succeeded", "Completed");
}

#[test]
fn a_namespace_that_has_not_opted_in_says_how_to() {
    let namespace = TempNamespace::plain("run-plain").unwrap();
    scripted(&namespace, "a", "[{text: done}]", "");
    let object = namespace.wait_ready("agent", "a", "False", "NamespaceNotEnabled").unwrap();
    assert!(message(&object).contains(&format!("belay namespace enable {}", namespace.name)), "{}", message(&object));
}

#[test]
fn a_server_that_is_not_there_makes_the_tool_unreachable_in_words() {
    let namespace = TempNamespace::enabled("run-tool").unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: t}, spec: {mcp: {url: 'http://nobody:1/mcp'}}}")
        .unwrap();
    let tool = namespace.wait_ready("tool", "t", "False", "Unreachable").unwrap();
    assert!(message(&tool).contains("http://nobody:1/mcp"), "{}", message(&tool));
}

#[test]
fn a_credentials_key_is_looked_for_and_never_shown() {
    let namespace = TempNamespace::enabled("run-cred").unwrap();
    namespace
        .kubectl
        .apply("{apiVersion: belay.dev/v1alpha1, kind: Credential, metadata: {name: c}, spec: {secretKeyRef: {name: s, key: k}, inject: {bearer: {}}, hosts: [a.example]}}")
        .unwrap();
    let absent = namespace.wait_ready("credential", "c", "False", "KeyMissing").unwrap();
    assert!(message(&absent).contains("Secret s") && message(&absent).contains("key k"), "{}", message(&absent));
    let with = |name: &str, value: &str| {
        namespace.kubectl.run(&["create", "secret", "generic", name, &format!("--from-literal=k={value}")]).unwrap();
        namespace
            .kubectl
            .apply(&format!("{{apiVersion: belay.dev/v1alpha1, kind: Credential, metadata: {{name: {name}}}, spec: {{secretKeyRef: {{name: {name}, key: k}}, inject: {{bearer: {{}}}}, hosts: [a.example]}}}}"))
            .unwrap();
    };
    with("good", "canary-6fe1");
    with("newline", "canary-6fe1\n");
    with("empty", "");
    let good = namespace.wait_ready("credential", "good", "True", "Ready").unwrap();
    assert!(!good.to_string().contains("canary"), "{good:#}");
    namespace.wait_ready("credential", "newline", "False", "TrailingNewline").unwrap();
    namespace.wait_ready("credential", "empty", "False", "Empty").unwrap();
}
