//! Calls that people are asked about before they are made, on a real cluster: two people with plain kubectl, and what
//! truly arrived, counted by the server that the calls went to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use belay_e2e::TempNamespace;
use belay_e2e::chaos::effects::{events, verified_export};
use belay_e2e::counter::{arrived, call, start};
use belay_e2e::kubectl::{Output, belay};
use belay_e2e::namespace::condition;
use serde_json::{Value, json};

const A_MINUTE: Duration = Duration::from_mins(1);
const TWO_MINUTES: Duration = Duration::from_mins(2);
const AT_ONCE: Duration = Duration::ZERO;

/// A counter, a policy that wants two people for `add`, and two people who may approve on it.
fn careful(prefix: &str, ask: &Value) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    start(&namespace).unwrap();
    let policy = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "careful"},
        "spec": {"mode": "Enforce", "otherwise": "Ask", "rules": [
            {"name": "adding-needs-people", "operations": ["add"], "action": "Ask", "ask": ask},
            {"name": "the-rest", "operations": ["put"], "action": "Allow"},
        ]},
    });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "approver"},
        "rules": [
            {"apiGroups": ["belay.dev"], "resources": ["approvals"], "verbs": ["get", "list", "watch", "patch", "update"]},
            {"apiGroups": ["decide.belay.dev"], "resources": ["approvalpolicies"], "verbs": ["approve"],
             "resourceNames": ["careful"]},
        ],
    });
    let subjects: Vec<Value> = ["ada", "bob"]
        .iter()
        .map(|user| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}))
        .collect();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "approvers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "approver"}, "subjects": subjects,
    });
    for object in [policy, role, binding] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    namespace.wait_ready("approvalpolicy", "careful", "True", "Ready").unwrap();
    namespace
}

fn agent(namespace: &TempNamespace, name: &str, turns: &Value) {
    let model = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}},
    });
    let agent = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
        "spec": {"modelRef": {"name": name}, "policyRefs": [{"name": "careful"}],
            "tools": [{"name": "counter", "operations": ["add", "put"]}]},
    });
    namespace.kubectl.apply(&model.to_string()).unwrap();
    namespace.kubectl.apply(&agent.to_string()).unwrap();
    let started = belay(&["-n", &namespace.name, "run", name, "--name", name, "--input", "go"]).unwrap();
    assert!(started.success, "{}", started.stderr);
}

/// The Approval that the run waits for.
fn asked(namespace: &TempNamespace, run: &str) -> String {
    namespace
        .wait_until("agentrun", run, TWO_MINUTES, |run| {
            let waits = run["status"]["phase"] == "Waiting" && run["status"]["waitingOn"]["kind"] == "approval";
            let name = run["status"]["waitingOn"]["name"].as_str()?;
            waits.then(|| name.to_owned())
        })
        .unwrap()
}

/// A decision with plain kubectl, as the documents show it.
fn decide(namespace: &TempNamespace, user: &str, approval: &str, verdict: &str) -> Output {
    let digest = namespace.kubectl.get("approval", approval).unwrap()["spec"]["request"]["digest"].clone();
    let manager = if verdict == "Deny" { format!("{user}-deny") } else { user.to_owned() };
    let decision = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": approval},
        "spec": {"decisions": [
            {"policy": "careful", "by": user, "digest": digest, "verdict": verdict, "reason": "as the test says"},
        ]},
    });
    let apply = ["apply", "--server-side", "--field-manager", &manager, "-f", "-"];
    namespace.kubectl.as_user(user).output(&apply, Some(&decision.to_string())).unwrap()
}

fn allow(namespace: &TempNamespace, user: &str, approval: &str) {
    let decided = decide(namespace, user, approval, "Allow");
    assert!(decided.success, "{}", decided.stderr);
}

fn names(namespace: &TempNamespace) -> Vec<String> {
    arrived(namespace).unwrap().into_iter().map(|one| format!("{} {}", one.name, one.id.unwrap_or_default())).collect()
}

/// How often people's yes was taken, and how many permits the call got in all.
fn taken(namespace: &TempNamespace, run: &str) -> (usize, usize) {
    let events = events(&verified_export(namespace, run).unwrap()).unwrap();
    let allowed = events.iter().filter(|event| event["kind"] == "AskSettled" && event["answer"]["Allowed"].is_object());
    let permits =
        events.iter().filter(|event| event["kind"] == "CallDecided" && event["verdict"]["allowed"].is_object());
    (allowed.count(), permits.count())
}

fn until_no_pod(namespace: &TempNamespace) {
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "-l", "belay.dev/run-uid", "--timeout=90s"]).unwrap();
}

#[test]
fn two_people_allow_a_call_with_plain_kubectl_and_it_is_sent_once() {
    let namespace = careful("asked-two", &json!({"quorum": 2}));
    agent(
        &namespace,
        "r",
        &json!([{"toolCalls": [call("add", "a", AT_ONCE), call("put", "b", AT_ONCE)]}, {"text": "done"}]),
    );
    let approval = asked(&namespace, "r");
    let object = namespace.kubectl.get("approval", &approval).unwrap();
    assert_eq!(object["spec"]["request"]["purpose"], "Call");
    assert_eq!(object["spec"]["request"]["arguments"], r#"{"delay":0,"id":"a"}"#);
    let run = namespace.kubectl.get("agentrun", "r").unwrap();
    let ready = condition(&run, "Ready").unwrap();
    assert_eq!(ready["reason"], "ApprovalPending");
    let words = ready["message"].as_str().unwrap();
    assert!(words.contains("2 who may approve on ApprovalPolicy careful") && words.contains(&approval), "{words}");

    let stranger = decide(&namespace, "eve", &approval, "Allow");
    assert!(!stranger.success, "eve may not: {}", stranger.stdout);
    allow(&namespace, "ada", &approval);
    let counted = namespace
        .wait_until("approval", &approval, A_MINUTE, |approval| (approval["status"]["given"] == "1/2").then_some(()));
    counted.unwrap();
    assert_eq!(names(&namespace), ["put b"], "one yes is not two, and the other call waits for nobody");
    allow(&namespace, "bob", &approval);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(names(&namespace), ["put b", "add a"]);
    assert_eq!(taken(&namespace, "r"), (1, 2));
    let late = decide(&namespace, "ada", &approval, "Deny");
    assert!(!late.success && late.stderr.contains("sealed"), "{}", late.stderr);
    let export = verified_export(&namespace, "r").unwrap();
    assert!(export.contains("\"by\":\"ada\"") && export.contains("\"by\":\"bob\""), "the journal says who");
}

#[test]
fn a_yes_after_days_wakes_a_run_that_kept_no_pod_and_a_no_is_told_to_the_model() {
    let namespace = careful("asked-wake", &json!({"quorum": 1}));
    let turns = json!([{"toolCalls": [call("add", "a", AT_ONCE)]}, {"toolCalls": [call("add", "b", AT_ONCE)]}, {"text": "done"}]);
    agent(&namespace, "r", &turns);
    let first = asked(&namespace, "r");
    until_no_pod(&namespace);
    let began = Instant::now();
    allow(&namespace, "ada", &first);
    let second = namespace.wait_until("agentrun", "r", A_MINUTE, |run| {
        let name = run["status"]["waitingOn"]["name"].as_str()?;
        (name != first && run["status"]["waitingOn"]["kind"] == "approval").then(|| name.to_owned())
    });
    let second = second.unwrap();
    assert!(began.elapsed() < A_MINUTE);
    assert_eq!(names(&namespace), ["add a"]);
    let denied = decide(&namespace, "bob", &second, "Deny");
    assert!(denied.success, "{}", denied.stderr);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "the model went on: {run:#}");
    assert_eq!(names(&namespace), ["add a"], "what was denied was never sent");
    let export = verified_export(&namespace, "r").unwrap();
    assert!(export.contains("a person who may decide said no: as the test says"), "{export}");
}

#[test]
fn a_no_after_a_yes_wins_while_nothing_is_sealed() {
    let namespace = careful("asked-deny", &json!({"quorum": 2}));
    agent(&namespace, "r", &json!([{"toolCalls": [call("add", "a", AT_ONCE)]}, {"text": "done"}]));
    let approval = asked(&namespace, "r");
    allow(&namespace, "ada", &approval);
    let denied = decide(&namespace, "ada", &approval, "Deny");
    assert!(denied.success, "{}", denied.stderr);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(names(&namespace), Vec::<String>::new());
    assert_eq!(taken(&namespace, "r"), (0, 0));
}

#[test]
fn nobody_who_decides_in_time_means_no() {
    let namespace = careful("asked-late", &json!({"quorum": 1, "expiresAfterSeconds": 30}));
    agent(&namespace, "r", &json!([{"toolCalls": [call("add", "a", AT_ONCE)]}, {"text": "done"}]));
    let approval = asked(&namespace, "r");
    let run = namespace.run_to_the_end("r", TWO_MINUTES).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(names(&namespace), Vec::<String>::new());
    let export = verified_export(&namespace, "r").unwrap();
    assert!(export.contains("not enough of them said yes in time"), "the model is told");
    let late = decide(&namespace, "ada", &approval, "Allow");
    assert!(!late.success && late.stderr.contains("sealed"), "{}", late.stderr);
}

#[test]
fn an_approved_call_is_sent_at_most_once_whatever_dies_while_it_is_taken() {
    let namespace = careful("asked-die", &json!({"quorum": 1}));
    agent(&namespace, "r", &json!([{"toolCalls": [call("add", "a", AT_ONCE)]}, {"text": "done"}]));
    let approval = asked(&namespace, "r");
    // With its pod: it goes at the very moment at which the yes is taken.
    let pods = namespace.kubectl.run(&["get", "pods", "-l", "belay.dev/run=r", "-o", "name"]).unwrap();
    assert!(!pods.trim().is_empty(), "there is nothing to kill any more");
    allow(&namespace, "ada", &approval);
    for pod in pods.lines() {
        let pod = pod.replace("pod/", "");
        namespace.kubectl.run(&["delete", "pod", &pod, "--wait=false", "--grace-period=0", "--force"]).unwrap();
    }
    let settled = namespace.wait_until("agentrun", "r", TWO_MINUTES + TWO_MINUTES, |run| {
        let status = &run["status"];
        let over = status["phase"] == "Succeeded";
        let unknown = condition(run, "Ready").is_some_and(|ready| ready["reason"] == "EffectUnknown");
        (over || unknown).then_some(over)
    });
    let over = settled.unwrap();
    let sent = names(&namespace).len();
    assert!(sent <= 1, "{:?}", names(&namespace));
    assert!(!over || sent == 1, "it succeeded, so it was sent");
    assert_eq!(taken(&namespace, "r").0, 1, "people's yes was taken once");
}
