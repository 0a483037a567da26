//! Each page of docs/tasks, done as it stands: its objects applied, its commands run, in their order.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use belay_e2e::kubectl::shell;
use belay_e2e::namespace::condition;
use belay_e2e::{TempNamespace, counter, peer};
use serde_json::json;

/// What a page has its reader do. What a command prints is a block without a language, and not done.
enum Step<'a> {
    Apply(&'a str),
    Run(&'a str),
}

fn steps(page: &str) -> Vec<Step<'_>> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    let steps: Vec<Step<'_>> = blocks
        .filter_map(|block| match block.split_once('\n')? {
            ("yaml", objects) => Some(Step::Apply(objects)),
            ("sh", commands) => Some(Step::Run(commands)),
            _ => None,
        })
        .collect();
    assert!(steps.len() >= 3, "{} steps", steps.len());
    steps
}

/// Does what the page says. Returns all that was printed.
fn follow(namespace: &TempNamespace, page: &str, environment: &[(&str, &str)]) -> String {
    let file = format!("{}/../docs/tasks/{page}.md", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(file).unwrap();
    let mut printed = String::new();
    for step in steps(&text) {
        match step {
            Step::Apply(objects) => printed.push_str(&namespace.kubectl.apply(objects).unwrap()),
            Step::Run(commands) => {
                let output = shell(&namespace.name, commands, environment).unwrap();
                assert!(output.success, "{commands}\n{}{}", output.stdout, output.stderr);
                printed.push_str(&output.stdout);
            }
        }
    }
    printed
}

/// The reference MCP server, as the Service `everything`.
fn everything(namespace: &TempNamespace) {
    namespace.apply_manifest("demo/server.yaml").unwrap();
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"]).unwrap();
}

/// Pages end with runs that `belay run --wait` found to have succeeded.
fn output_of(namespace: &TempNamespace, run: &str) -> String {
    let run = namespace.kubectl.get("agentrun", run).unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    run["status"]["output"].as_str().unwrap().to_owned()
}

#[test]
fn an_mcp_server_is_connected() {
    let namespace = TempNamespace::enabled("task-mcp").unwrap();
    everything(&namespace);
    let printed = follow(&namespace, "connect-an-mcp-server", &[]);
    assert!(printed.contains("get-sum\n") && printed.contains("everything/get-sum"), "{printed}");
    assert_eq!(output_of(&namespace, "first"), "It is 42.");
}

#[test]
fn an_http_api_is_called() {
    let namespace = TempNamespace::enabled("task-http").unwrap();
    counter::start(&namespace).unwrap();
    peer::also_called(&namespace.kubectl, "counter", "orders", 8080, 3001).unwrap();
    let printed = follow(&namespace, "call-an-http-api", &[]);
    assert!(printed.contains("put_order: PUT /orders/{id}?tag, body body"), "{printed}");
    assert_eq!(output_of(&namespace, "first"), "Three of them are ordered.");
    let arrived = counter::arrived(&namespace).unwrap();
    let [one] = arrived.as_slice() else { panic!("{arrived:?}") };
    assert_eq!((one.name.as_str(), one.id.as_deref()), (r#"thing paper {"quantity":3}"#, Some("7")));
}

#[test]
fn a_gateway_is_used() {
    let namespace = TempNamespace::enabled("task-gateway").unwrap();
    peer::aimock(&namespace.kubectl, &json!([{"match": {}, "response": {"content": "Hello."}}])).unwrap();
    peer::also_called(&namespace.kubectl, "aimock", "gateway", 4010, 4010).unwrap();
    follow(&namespace, "use-a-gateway", &[("GATEWAY_KEY", "key-of-the-gateway")]);
    assert_eq!(output_of(&namespace, "first"), "Hello.");
}

#[test]
fn a_key_is_rotated() {
    let namespace = TempNamespace::enabled("task-key").unwrap();
    peer::aimock(&namespace.kubectl, &json!([{"match": {}, "response": {"content": "Hello."}}])).unwrap();
    peer::also_called(&namespace.kubectl, "aimock", "provider", 4010, 4010).unwrap();
    follow(&namespace, "rotate-a-key", &[("OLD_KEY", "the-old-key"), ("NEW_KEY", "the-new-key")]);
    for run in ["before", "after"] {
        assert_eq!(output_of(&namespace, run), "Hello.");
    }
    let secret = namespace.kubectl.get("secret", "provider").unwrap();
    assert_eq!(secret["data"], json!({"key": "dGhlLW5ldy1rZXk="}), "nothing but the new key, and without a newline");
    assert_eq!(secret["metadata"]["annotations"], serde_json::Value::Null, "the value stands in no annotation");
}

#[test]
fn egress_is_restricted() {
    let namespace = TempNamespace::enabled("task-egress").unwrap();
    everything(&namespace);
    let printed = follow(&namespace, "restrict-egress", &[]);
    let agent = namespace.kubectl.get("agent", "sums").unwrap();
    let enforced = condition(&agent, "NetworkEnforced").unwrap();
    assert!(printed.contains(enforced["message"].as_str().unwrap()), "{printed}");
    assert!(printed.contains("files.infrastructure.svc"), "it names what is missing on the list: {printed}");
    assert_eq!(output_of(&namespace, "first"), "Done.");
}
