//! The counting MCP server: a pod of a test's namespace that knows what truly arrived.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::TempNamespace;

const SCRIPT: &str = include_str!("../counter/server.mjs");
/// Any image with Node will do.
const IMAGE: &str = "localhost/belay-peer-everything:2026.8.31";

/// A call that arrived.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Arrived {
    pub name: String,
    pub id: Option<String>,
    pub key: Option<String>,
}

/// Starts the server and its Tool `counter`, whose `put` is idempotent, and waits until it is Ready.
pub fn start(namespace: &TempNamespace) -> Result<()> {
    let script = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counter"}, "data": {"server.mjs": SCRIPT}});
    namespace.kubectl.apply(&script.to_string())?;
    let container = json!({
        "name": "counter", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["node", "/counter/server.mjs"],
        "ports": [{"containerPort": 3001}],
        "readinessProbe": {"tcpSocket": {"port": 3001}, "periodSeconds": 1, "failureThreshold": 60},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "script", "mountPath": "/counter"}],
    });
    let pod = json!({
        "enableServiceLinks": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "script", "configMap": {"name": "counter"}}],
    });
    let labels = json!({"app": "counter"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "counter"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "counter"},
        "spec": {"selector": labels, "ports": [{"port": 3001}]},
    });
    let tool = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Tool", "metadata": {"name": "counter"},
        "spec": {"mcp": {"url": "http://counter:3001/mcp"}, "callTimeoutSeconds": 30, "policyRefs": [{"name": "unattended"}],
            "effects": {"operations": {"put": "Idempotent"}}},
    });
    let policy = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "unattended"},
        "spec": {"mode": "Enforce", "otherwise": "Ask", "rules": [{"name": "all", "action": "Allow"}]},
    });
    for object in [deployment, service, policy] {
        namespace.kubectl.apply(&object.to_string())?;
    }
    namespace.kubectl.run(&["rollout", "status", "deployment/counter", "--timeout=120s"])?;
    namespace.kubectl.apply(&tool.to_string())?;
    namespace.wait_ready("tool", "counter", "True", "Ready").map(drop)
}

/// An Agent that plays these turns with the counter's operations.
pub fn agent(namespace: &TempNamespace, name: &str, turns: &Value) -> Result<()> {
    let model = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}},
    });
    let agent = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
        "spec": {
            "modelRef": {"name": name},
            "tools": [{"name": "counter", "operations": ["add", "put", "drop"]}],
        },
    });
    namespace.kubectl.apply(&model.to_string())?;
    namespace.kubectl.apply(&agent.to_string()).map(drop)
}

/// One call of the counter, as a scripted turn spells it.
#[must_use]
pub fn call(operation: &str, id: &str, delay: Duration) -> Value {
    let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    json!({"tool": "counter", "operation": operation, "args": {"id": id, "delay": delay}})
}

/// Has the counter describe an operation otherwise from now on: one word.
pub fn define(namespace: &TempNamespace, operation: &str, word: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/services/counter:3001/proxy/define/{operation}/{word}", namespace.name);
    namespace.kubectl.run(&["get", "--raw", &path]).map(drop)
}

/// What arrived so far, in order.
pub fn arrived(namespace: &TempNamespace) -> Result<Vec<Arrived>> {
    calls(namespace)
}

/// When it arrived, in order, in milliseconds since the Unix epoch.
pub fn arrivals(namespace: &TempNamespace) -> Result<Vec<i64>> {
    #[derive(serde::Deserialize)]
    struct At {
        at: i64,
    }
    Ok(calls::<At>(namespace)?.into_iter().map(|call| call.at).collect())
}

fn calls<T: DeserializeOwned>(namespace: &TempNamespace) -> Result<Vec<T>> {
    let path = format!("/api/v1/namespaces/{}/services/counter:3001/proxy/calls", namespace.name);
    let text = namespace.kubectl.run(&["get", "--raw", &path])?;
    serde_json::from_str(&text).context("the counter printed something else than its calls")
}
