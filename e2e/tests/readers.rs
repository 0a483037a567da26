//! Reading a run's journal with one's own identity, through the API server's proxy and without entering any pod.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::time::Duration;

use belay_e2e::kubectl::{Output, belay, belay_as};
use belay_e2e::stage::{accepted, binding, refused};
use belay_e2e::{Kubectl, TempNamespace};
use serde_json::json;

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

fn finished_run(prefix: &str) -> TempNamespace {
    let namespace = TempNamespace::enabled(prefix).unwrap();
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "Scripted", "model": "scripted", "scripted": {"turns": [{"text": "done"}]}}});
    let agent = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}}});
    for object in [model, agent] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    let run = belay(&["-n", &namespace.name, "run", "a", "--name", "r", "--input", "go"]).unwrap();
    assert!(run.success, "{}", run.stderr);
    namespace.run_to_the_end("r", A_MINUTE).unwrap();
    namespace
}

#[test]
fn a_reader_exports_a_run_without_any_right_in_the_operators_pod() {
    let namespace = finished_run("read-own");
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
