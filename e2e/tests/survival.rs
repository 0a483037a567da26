//! What a run survives, and what it does not pretend to know: pods that go at any moment, calls without an answer,
//! people who are asked. What truly arrived is counted by the server that the calls went to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use belay_e2e::TempNamespace;
use belay_e2e::counter::{agent, arrived, call, start};
use belay_e2e::kubectl::{Output, belay};
use belay_e2e::namespace::condition;
use serde_json::{Value, json};

const A_MINUTE: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_secs(20);
const AT_ONCE: Duration = Duration::ZERO;

fn with_counter(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    start(&namespace).unwrap();
    namespace
}

fn begin(namespace: &TempNamespace, agent: &str) {
    let started = belay(&["-n", &namespace.name, "run", agent, "--name", agent, "--input", "go"]).unwrap();
    assert!(started.success, "{}", started.stderr);
}

fn until_arrived(namespace: &TempNamespace, count: usize) {
    let deadline = Instant::now() + A_MINUTE;
    while arrived(namespace).unwrap().len() < count {
        assert!(Instant::now() < deadline, "{count} calls did not arrive: {:?}", arrived(namespace).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn kill_pod_of(namespace: &TempNamespace, run: &str, how: &[&str]) {
    let pod = namespace.kubectl.get("agentrun", run).unwrap()["status"]["podRef"]["name"].as_str().map(str::to_owned);
    let pods = namespace.kubectl.run(&["get", "pods", "-l", &format!("belay.dev/run={run}"), "-o", "name"]).unwrap();
    let pod = pods.lines().last().map_or_else(|| pod.unwrap(), |name| name.replace("pod/", ""));
    namespace.kubectl.run(&[&["delete", "pod", &pod, "--wait=false"], how].concat()).unwrap();
}

/// The Approval that the run waits for.
fn asked(namespace: &TempNamespace, run: &str) -> String {
    namespace
        .wait_until("agentrun", run, Duration::from_mins(2), |run| {
            let waits = run["status"]["phase"] == "Waiting" && run["status"]["waitingOn"]["kind"] == "approval";
            waits.then(|| run["status"]["waitingOn"]["name"].as_str().map(str::to_owned))?
        })
        .unwrap()
}

fn resolve(namespace: &TempNamespace, approval: &str, how: &[&str]) -> Output {
    belay(&[&["-n", &namespace.name, "resolve", approval, "--yes"], how].concat()).unwrap()
}

fn ready(run: &Value) -> (String, String) {
    let ready = condition(run, "Ready").unwrap();
    (ready["reason"].as_str().unwrap().to_owned(), ready["message"].as_str().unwrap_or_default().to_owned())
}

fn names(namespace: &TempNamespace) -> Vec<String> {
    arrived(namespace).unwrap().into_iter().map(|one| format!("{} {}", one.name, one.id.unwrap_or_default())).collect()
}

#[test]
fn a_call_in_flight_when_its_pod_goes_waits_for_a_person_who_says_that_it_happened() {
    let namespace = with_counter("srv-happened");
    agent(&namespace, "r", &json!([{"toolCalls": [call("add", "a", LONG)]}, {"text": "done"}])).unwrap();
    begin(&namespace, "r");
    until_arrived(&namespace, 1);
    kill_pod_of(&namespace, "r", &["--grace-period=1"]);
    let approval = asked(&namespace, "r");
    let run = namespace.kubectl.get("agentrun", "r").unwrap();
    let (reason, message) = ready(&run);
    assert_eq!(reason, "EffectUnknown");
    assert!(message.contains("counter/add") && message.contains(&format!("belay resolve {approval}")), "{message}");
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "-l", "belay.dev/run-uid", "--timeout=60s"]).unwrap();

    let shown = belay(&["-n", &namespace.name, "show", &approval]).unwrap().stdout;
    assert!(shown.contains("counter/add") && shown.contains("\"id\":\"a\""), "{shown}");
    let list = belay(&["-n", &namespace.name, "approvals"]).unwrap().stdout;
    assert!(list.contains(&approval), "{list}");
    let decided = resolve(&namespace, &approval, &["--happened", "it was added"]);
    assert!(decided.success, "{}", decided.stderr);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(names(&namespace), ["add a"], "never sent again");
    let late = resolve(&namespace, &approval, &["--retry"]);
    assert!(!late.success && late.stderr.contains("sealed"), "{}", late.stderr);
}

#[test]
fn a_person_may_have_it_sent_again_or_end_the_run_with_plain_kubectl() {
    let namespace = with_counter("srv-retry");
    for name in ["again", "no-more"] {
        agent(&namespace, name, &json!([{"toolCalls": [call("drop", name, AT_ONCE)]}, {"text": "done"}])).unwrap();
        begin(&namespace, name);
    }
    // The connection broke with the runner alive: nothing but waiting keeps its pod.
    let approval = asked(&namespace, "again");
    let object = namespace.kubectl.get("approval", &approval).unwrap();
    assert_eq!(object["spec"]["request"]["arguments"], r#"{"delay":0,"id":"again"}"#);
    assert_eq!(resolve(&namespace, &approval, &["--retry"]).stderr, "");
    let second = namespace.wait_until("agentrun", "again", A_MINUTE, |run| {
        let name = run["status"]["waitingOn"]["name"].as_str()?;
        (name != approval && run["status"]["waitingOn"]["kind"] == "approval").then(|| name.to_owned())
    });
    let second = second.unwrap();
    assert_eq!(namespace.kubectl.get("approval", &second).unwrap()["spec"]["request"]["attempt"], 2);
    let sent = names(&namespace).iter().filter(|name| *name == "drop again").count();
    assert_eq!(sent, 2, "once more, since a person said so");

    let approval = asked(&namespace, "no-more");
    let request = &namespace.kubectl.get("approval", &approval).unwrap()["spec"]["request"];
    let me = namespace.kubectl.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).unwrap();
    let decision = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": approval},
        "spec": {"decisions": [{"policy": request["requirements"][0]["policy"], "by": me, "digest": request["digest"], "verdict": "Deny", "reason": "not now"}]}});
    let decided = namespace
        .kubectl
        .output(&["apply", "--server-side", "--field-manager", &me, "-f", "-"], Some(&decision.to_string()));
    assert!(decided.as_ref().unwrap().success, "{decided:?}");
    let run = namespace.run_to_the_end("no-more", A_MINUTE).unwrap();
    let (reason, message) = ready(&run);
    assert_eq!((run["status"]["phase"].as_str().unwrap(), reason.as_str()), ("Failed", "EndedByApprover"));
    assert!(message.contains("ended the run: not now") && message.contains("c1 (counter/drop)"), "{message}");
}

#[test]
fn a_call_that_may_be_repeated_is_sent_again_with_the_same_key() {
    let namespace = with_counter("srv-put");
    agent(&namespace, "r", &json!([{"toolCalls": [call("put", "a", Duration::from_secs(8))]}, {"text": "done"}]))
        .unwrap();
    begin(&namespace, "r");
    until_arrived(&namespace, 1);
    kill_pod_of(&namespace, "r", &["--grace-period=1"]);
    let run = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let calls = arrived(&namespace).unwrap();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls[0].key.is_some() && calls[0] == calls[1], "{calls:?}");
}

#[test]
fn a_pending_approval_that_is_deleted_by_the_administrator_is_asked_again() {
    let namespace = with_counter("srv-deleted");
    agent(&namespace, "r", &json!([{"toolCalls": [call("drop", "a", AT_ONCE)]}, {"text": "done"}])).unwrap();
    begin(&namespace, "r");
    let approval = asked(&namespace, "r");
    let refused = namespace.kubectl.output(&["delete", "approval", &approval], None).unwrap();
    assert!(!refused.success && refused.stderr.contains("only the operator"), "{}", refused.stderr);
    // What a restored backup of etcd or a lifted policy can do.
    let gc = ["--as", "system:kube-controller-manager", "--as-group", "system:masters"];
    namespace.kubectl.with(&gc).run(&["delete", "approval", &approval]).unwrap();
    let again = namespace.wait_until("agentrun", "r", A_MINUTE, |run| {
        let name = run["status"]["waitingOn"]["name"].as_str()?;
        (name != approval).then(|| name.to_owned())
    });
    let again = namespace.kubectl.get("approval", &again.unwrap()).unwrap();
    assert!(again["spec"]["request"]["message"].as_str().unwrap().contains("deleted"), "{again:#}");
    assert_eq!(names(&namespace), ["drop a"]);
}
