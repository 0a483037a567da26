//! Reading a run's journal with one's own identity, through the API server's proxy and without entering any pod.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_e2e::kubectl::{Output, belay, belay_as};
use belay_e2e::stage::{accepted, binding, refused, role, rule};
use belay_e2e::{Kubectl, TempNamespace};
use serde_json::{Value, json};

const A_MINUTE: Duration = Duration::from_mins(1);

/// The Role that leads to the operator, for one user: taken away again when dropped.
struct Way(String);

impl Way {
    fn open(user: &str) -> Self {
        let way = binding(user, "Role", "belay-reader");
        let name = way["metadata"]["name"].as_str().unwrap().to_owned();
        Kubectl::new().with(&["-n", "belay-system"]).apply(&way.to_string()).unwrap();
        Self(name)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = Kubectl::new().run(&["-n", "belay-system", "delete", "rolebinding", &self.0]);
    }
}

/// A run, `r`, of an Agent whose model says `turns`.
fn finished_run(namespace: &TempNamespace, turns: &Value, tools: &Value) {
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "Scripted", "model": "scripted", "scripted": {"turns": turns}}});
    let agent = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}, "tools": tools}});
    for object in [model, agent] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    let run = belay(&["-n", &namespace.name, "run", "a", "--name", "r", "--input", "go"]).unwrap();
    assert!(run.success, "{}", run.stderr);
    let ended = namespace.run_to_the_end("r", A_MINUTE).unwrap();
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
}

#[test]
fn a_reader_exports_a_run_without_any_right_in_the_operators_pod() {
    let namespace = TempNamespace::enabled("read-own").unwrap();
    finished_run(&namespace, &json!([{"text": "done"}]), &json!([]));
    let user = format!("rita-{}", namespace.name);
    let export = || -> Output { belay_as(&user, &["-n", &namespace.name, "journal", "export", "r"]).unwrap() };
    refused("cannot get resource \"agentruns\"", export);
    namespace.kubectl.apply(&binding(&user, "ClusterRole", "belay-reader").to_string()).unwrap();
    refused("services \"belay-operator:http\" is forbidden", export);
    let _way = Way::open(&user);
    let exported = accepted(export);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &exported.stdout).unwrap();
    let verified = belay(&["journal", "verify", file.path().to_str().unwrap()]).unwrap();
    assert!(verified.success && verified.stdout.contains(&namespace.name), "{}{}", verified.stdout, verified.stderr);
    let refused_by_name = belay_as(&user, &["-n", &namespace.name, "journal", "export", "other"]).unwrap();
    assert!(refused_by_name.stderr.contains("say which by --uid"), "{}", refused_by_name.stderr);
    // The uid of one run under the name of another.
    let uid = namespace.kubectl.get("agentrun", "r").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let crossed = belay_as(&user, &["-n", &namespace.name, "journal", "export", "other", "--uid", &uid]).unwrap();
    assert!(!crossed.success && crossed.stderr.contains("the ReadGrant is for run"), "{}", crossed.stderr);
    // And of one that is gone, under its own.
    namespace.kubectl.run(&["delete", "agentrun", "r", "--timeout=60s"]).unwrap();
    let gone = belay_as(&user, &["-n", &namespace.name, "journal", "export", "r", "--uid", &uid]).unwrap();
    assert!(gone.success && gone.stdout.contains("RunEnded"), "{}", gone.stderr);
}

/// What the reference server sends as its image, by its own code.
fn image_of_the_server(namespace: &TempNamespace) -> Vec<u8> {
    let file = "/app/node_modules/@modelcontextprotocol/server-everything/dist/tools/get-tiny-image.js";
    let script = format!("import {{ MCP_TINY_IMAGE }} from '{file}'; process.stdout.write(MCP_TINY_IMAGE)");
    let node = ["exec", "deployment/everything", "--", "node", "--input-type=module", "--eval", &script];
    STANDARD.decode(namespace.kubectl.run(&node).unwrap()).unwrap()
}

#[test]
fn a_reader_fetches_the_image_of_a_result_byte_for_byte_and_nobody_else_does() {
    let namespace = TempNamespace::enabled("read-image").unwrap();
    namespace.apply_manifest("demo/server.yaml").unwrap();
    let tool = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Tool", "metadata": {"name": "everything"},
        "spec": {"mcp": {"url": "http://everything:3001/mcp"}, "effects": {"default": "None"}}});
    namespace.kubectl.apply(&tool.to_string()).unwrap();
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"]).unwrap();
    let call = json!({"tool": "everything", "operation": "get-tiny-image", "args": {}});
    let turns = json!([{"toolCalls": [call]}, {"text": "done"}]);
    finished_run(&namespace, &turns, &json!([{"name": "everything", "operations": ["get-tiny-image"]}]));

    let (rita, sam) = (format!("rita-{}", namespace.name), format!("sam-{}", namespace.name));
    let artifacts = |user: &str, more: &[&str]| -> Output {
        belay_as(user, &[&["-n", &namespace.name, "artifacts", "r"], more].concat()).unwrap()
    };
    namespace.kubectl.apply(&binding(&rita, "ClusterRole", "belay-reader").to_string()).unwrap();
    refused("services \"belay-operator:http\" is forbidden", || artifacts(&rita, &[]));
    let _way = Way::open(&rita);
    let listed = accepted(|| artifacts(&rita, &[])).stdout;
    let image = image_of_the_server(&namespace);
    let rows: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let [row] = rows.as_slice() else { panic!("{listed}") };
    let size = image.len().to_string();
    assert_eq!(row[1..4], ["everything/get-tiny-image", "image/png", &size], "{listed}");
    let digest = row[4];
    for wanted in [digest, &digest["sha256:".len()..][..8]] {
        let fetched = artifacts(&rita, &[wanted]);
        assert!(
            fetched.success && fetched.bytes == image,
            "{wanted}: {} bytes, {}",
            fetched.bytes.len(),
            fetched.stderr
        );
    }
    let unknown = artifacts(&rita, &["00000000"]);
    assert!(unknown.stderr.contains("AgentRun r has no artifact 00000000"), "{}", unknown.stderr);

    // Whoever finds the way alone, and whoever may see the run besides.
    let _way = Way::open(&sam);
    refused("cannot get resource \"agentruns\"", || artifacts(&sam, &[digest]));
    let sees = role("sees", &[rule("belay.dev", "agentruns", Some("r"), "get")]);
    for object in [sees, binding(&sam, "Role", "sees")] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    refused("cannot create resource \"readgrants\"", || artifacts(&sam, &[digest]));
}
