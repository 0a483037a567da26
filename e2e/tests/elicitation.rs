//! A real MCP server that asks people in the middle of a call, on a real cluster: a form and a page, answered with
//! `belay answer` and with plain kubectl, and declined.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::TempNamespace;
use belay_e2e::chaos::effects::{events, verified_export};
use belay_e2e::kubectl::belay;
use belay_e2e::namespace::condition;
use serde_json::{Value, json};

const TWO_MINUTES: Duration = Duration::from_mins(2);
const FORM: &str = "trigger-elicitation-request";
const PAGE: &str = "trigger-url-elicitation";

/// The server, its Tool, which lists more to a client that can pass questions on, and ada, who may answer.
fn asking(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    namespace.apply_manifest("demo/server.yaml").unwrap();
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"]).unwrap();
    let policy = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "careful"},
        "spec": {"mode": "Enforce", "otherwise": "Ask", "rules": [{"name": "all", "action": "Allow"}]},
    });
    let tool = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Tool", "metadata": {"name": "everything"},
        "spec": {"mcp": {"url": "http://everything:3001/mcp"}, "policyRefs": [{"name": "careful"}]},
    });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "approver"},
        "rules": [
            {"apiGroups": ["belay.dev"], "resources": ["approvals"], "verbs": ["get", "list", "watch", "patch", "update"]},
            {"apiGroups": ["decide.belay.dev"], "resources": ["approvalpolicies"], "verbs": ["approve"],
             "resourceNames": ["careful"]},
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "approvers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "approver"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ada"}],
    });
    for object in [policy, tool, role, binding] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    namespace.wait_ready("tool", "everything", "True", "Ready").unwrap();
    namespace
}

/// Starts a run whose one call is this, and waits until it is asked about: the Approval's name.
fn asked(namespace: &TempNamespace, name: &str, operation: &str, args: &Value) -> String {
    let turns =
        json!([{"toolCalls": [{"tool": "everything", "operation": operation, "args": args}]}, {"text": "Done."}]);
    let model = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}},
    });
    let agent = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
        "spec": {"modelRef": {"name": name}, "tools": [{"name": "everything", "operations": [operation]}]},
    });
    namespace.kubectl.apply(&model.to_string()).unwrap();
    namespace.kubectl.apply(&agent.to_string()).unwrap();
    let started = belay(&["-n", &namespace.name, "run", name, "--name", name, "--input", "go"]).unwrap();
    assert!(started.success, "{}", started.stderr);
    namespace
        .wait_until("agentrun", name, TWO_MINUTES, |run| {
            let waits = run["status"]["phase"] == "Waiting"
                && condition(run, "Ready").is_some_and(|ready| ready["reason"] == "AnswerPending");
            let name = run["status"]["waitingOn"]["name"].as_str()?;
            waits.then(|| name.to_owned())
        })
        .unwrap()
}

/// As ada, with plain kubectl.
fn decide(namespace: &TempNamespace, approval: &str, verdict: &str, answer: &Value) {
    let digest = namespace.kubectl.get("approval", approval).unwrap()["spec"]["request"]["digest"].clone();
    let mut decision =
        json!({"policy": "careful", "by": "ada", "digest": digest, "verdict": verdict, "reason": "as the test says"});
    if !answer.is_null() {
        decision["answer"] = answer.clone();
    }
    let body = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": approval},
        "spec": {"decisions": [decision]},
    });
    let apply = ["apply", "--server-side", "--field-manager", "ada", "-f", "-"];
    let decided = namespace.kubectl.as_user("ada").output(&apply, Some(&body.to_string())).unwrap();
    assert!(decided.success, "{}", decided.stderr);
}

/// What the model was told as the call's result, once the run has succeeded.
fn told(namespace: &TempNamespace, run: &str) -> Vec<Value> {
    let over =
        |run: &Value| matches!(run["status"]["phase"].as_str(), Some("Succeeded" | "Failed")).then(|| run.clone());
    let ended = namespace.wait_until("agentrun", run, TWO_MINUTES, over).unwrap();
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    events(&verified_export(namespace, run).unwrap()).unwrap()
}

fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind).collect()
}

#[test]
fn a_form_of_a_real_server_is_filled_in_with_kubectl_and_reaches_it() {
    let namespace = asking("elicit-form");
    let approval = asked(&namespace, "form", FORM, &json!({}));
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "-l", "belay.dev/run-uid", "--timeout=90s"]).unwrap();
    let shown = belay(&["-n", &namespace.name, "show", &approval]).unwrap();
    for words in [
        "What does the server of this call want to know?",
        "THE SERVER ASKS. It is not trusted",
        "    | Please provide inputs for the following fields:",
        "  field name (required): text",
        "  field titledSingleSelectEnum (optional): one of \"hero-1\" (Superman)",
    ] {
        assert!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
    }
    let content =
        json!({"name": "Ada", "integer": 7, "check": true, "untitledMultipleSelectEnum": ["Piano"]}).to_string();
    decide(&namespace, &approval, "Allow", &json!({"input": {"content": content}}));
    let events = told(&namespace, "form");
    assert_eq!(of(&events, "CallInputRequired").len(), 1);
    let observed = of(&events, "CallObserved");
    let result = observed[0]["result"]["content"].as_str().unwrap();
    assert!(result.contains("- Name: Ada") && result.contains("- Favorite Integer: 7"), "{result}");
    assert_eq!(observed[0]["attempt"], 2);
}

#[test]
fn an_answer_that_does_not_fit_is_asked_anew_and_says_why_and_a_no_is_told_to_the_model() {
    let namespace = asking("elicit-misfit");
    let first = asked(&namespace, "misfit", FORM, &json!({}));
    decide(&namespace, &first, "Allow", &json!({"input": {"content": r#"{"name":"Ada","integer":700}"#}}));
    let next = namespace
        .wait_until("agentrun", "misfit", TWO_MINUTES, |run| {
            let name = run["status"]["waitingOn"]["name"].as_str().filter(|name| *name != first)?;
            Some(name.to_owned())
        })
        .unwrap();
    namespace.wait_until("approval", &next, TWO_MINUTES, |found| Some(found.clone())).unwrap();
    let message = namespace.kubectl.get("approval", &next).unwrap()["spec"]["request"]["message"].clone();
    let why =
        "Asked again: what ada answered does not fit: field \"integer\" wants a whole number, at least 1, at most 100";
    assert!(message.as_str().unwrap().contains(why), "{message}");
    decide(&namespace, &next, "Deny", &Value::Null);
    let events = told(&namespace, "misfit");
    assert!(of(&events, "CallObserved").is_empty());
    let denied = of(&events, "CallDecided").into_iter().find(|event| event["verdict"]["denied"].is_object()).unwrap();
    let words = denied["verdict"]["denied"]["message"].as_str().unwrap();
    assert!(
        words.contains("they declined: as the test says") && words.contains("cancelled the elicitation"),
        "{words}"
    );
}

#[test]
fn a_page_is_opened_by_a_person_and_by_nobody_else() {
    let namespace = asking("elicit-page");
    let url = "https://pages.example/consent";
    let approval = asked(&namespace, "page", PAGE, &json!({"url": url, "message": "sign in", "elicitationId": "e1"}));
    let question = namespace.kubectl.get("approval", &approval).unwrap()["spec"]["request"]["question"].clone();
    assert_eq!(question, json!({"message": "sign in", "url": url}));
    decide(&namespace, &approval, "Allow", &json!({"input": {}}));
    let events = told(&namespace, "page");
    let result = of(&events, "CallObserved")[0]["result"]["content"].as_str().unwrap().to_owned();
    assert!(result.contains("User completed the URL elicitation flow"), "{result}");
}
