//! Random secrets in every kind of credential, and the servers that give them back. No secret is on a command line.

use std::collections::BTreeMap;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_e2e::TempNamespace;
use rand::Rng as _;
use rand::distr::Alphanumeric;
use serde::Deserialize;
use serde_json::{Value, json};

const SERVER: &str = include_str!("../../canary/server.mjs");
/// Any image with Node will do.
const IMAGE: &str = "localhost/belay-peer-everything:2026.8.31";
/// Under which every Secret holds its value: how a raw file of etcd tells a Secret from anything else.
pub const KEY: &str = "canary-of-belay";

/// The credentials, by name: how each is injected, and where it may be sent. The servers know an OAuth client's own secret
/// as `client`, and its tokens by the name of the credential.
pub fn credentials() -> [(&'static str, Value, &'static str); 6] {
    let client = json!({"tokenURL": "http://leaky:3001/token", "clientID": "belay", "scopes": ["read"]});
    [
        ("bearer", json!({"bearer": {}}), "leaky"),
        ("header", json!({"header": {"name": "X-Canary", "format": "key={}"}}), "leaky"),
        ("oauth", json!({"oauth2ClientCredentials": client}), "leaky"),
        ("query", json!({"query": {"name": "key"}}), "leaky"),
        ("basic", json!({"basic": {"username": "ada"}}), "elsewhere"),
        ("model", json!({"bearer": {}}), "leaky"),
    ]
}

pub const LEAKS_OF_MCP: [&str; 9] = ["text", "key", "error", "stream", "forms", "link", "gzip", "status", "redirect"];
pub const LEAKS_OF_HTTP: [&str; 6] = ["text", "key", "forms", "gzip", "status", "redirect"];

/// A value that no text holds by chance, with the characters that encoders change.
pub fn random() -> String {
    let letters = || -> String { rand::rng().sample_iter(Alphanumeric).take(15).map(char::from).collect() };
    format!("{}\"/+ &{}%=?{}", letters(), letters(), letters())
}

/// What a server saw.
#[derive(Debug, Deserialize)]
pub struct Seen {
    pub secrets: BTreeMap<String, Vec<String>>,
    pub called: Vec<String>,
    /// What came to no place of its own: after a redirect.
    pub strays: Vec<String>,
    /// Requests of the model.
    pub turns: usize,
}

pub fn seen(namespace: &TempNamespace, server: &str) -> Result<Seen> {
    Ok(serde_json::from_str(&fetch(namespace, server, "seen")?)?)
}

/// Everything that the model was sent.
pub fn asked(namespace: &TempNamespace) -> Result<String> {
    fetch(namespace, "leaky", "asked")
}

fn fetch(namespace: &TempNamespace, server: &str, path: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{}/services/{server}:3001/proxy/{path}", namespace.name);
    namespace.kubectl.run(&["get", "--raw", &path])
}

/// Writes the Secret of a credential, anew or otherwise.
pub fn keep(namespace: &TempNamespace, name: &str, value: &str) -> Result<()> {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "data": {KEY: STANDARD.encode(value)}});
    namespace.kubectl.apply(&secret.to_string()).map(drop)
}

/// Servers, Credentials, Tools, Model and Agent `a`; the Secrets are there already. Returns once the Agent is Ready.
pub fn set(namespace: &TempNamespace) -> Result<()> {
    let script = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "server"}, "data": {"server.mjs": SERVER}});
    let mut objects = vec![script];
    for server in ["leaky", "elsewhere"] {
        objects.extend(pod_and_service(server));
    }
    objects.extend(credentials().map(|(name, inject, host)| {
        json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Credential", "metadata": {"name": name},
            "spec": {"secretKeyRef": {"name": name, "key": KEY}, "inject": inject, "hosts": [host]}})
    }));
    namespace.kubectl.apply(&joined(&objects))?;
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "pod", "leaky", "elsewhere", "--timeout=60s"])?;
    let mut objects: Vec<_> = ["bearer", "header", "oauth"]
        .map(|kind| {
            tool(
                kind,
                &json!({"mcp": {"url": format!("http://leaky:3001/mcp/{kind}"), "credentialRef": {"name": kind}}}),
            )
        })
        .into();
    for (kind, host) in [("query", "leaky"), ("basic", "elsewhere")] {
        let operations = LEAKS_OF_HTTP.map(|leak| json!({"name": leak, "method": "GET", "path": format!("/{leak}")}));
        let base = format!("http://{host}:3001/api/{kind}");
        objects.push(tool(
            kind,
            &json!({"http": {"baseURL": base, "credentialRef": {"name": kind}, "operations": operations}}),
        ));
    }
    objects.push(json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "ChatCompletions", "model": "m", "baseURL": "http://leaky:3001/v1", "credentialRef": {"name": "model"}}}));
    let mcp = ["bearer", "header", "oauth"].map(|name| json!({"name": name, "operations": LEAKS_OF_MCP}));
    let http = ["query", "basic"].map(|name| json!({"name": name, "operations": LEAKS_OF_HTTP}));
    let tools = [&mcp[..], &http[..]].concat();
    objects.push(json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}, "tools": tools, "limits": {"steps": 200}}}));
    namespace.kubectl.apply(&joined(&objects))?;
    namespace.wait_ready("agent", "a", "True", "Ready").map(drop)
}

fn joined(objects: &[Value]) -> String {
    objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

fn tool(name: &str, server: &Value) -> Value {
    let mut spec = server.clone();
    // A call without an answer is made again, and then goes back as an error: nobody is asked.
    spec["effects"] = json!({"default": "None"});
    json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Tool", "metadata": {"name": name}, "spec": spec})
}

fn pod_and_service(name: &str) -> [Value; 2] {
    let container = json!({
        "name": "server", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["node", "/server/server.mjs"],
        "env": [{"name": "ELSEWHERE", "value": "http://elsewhere:3001"}],
        "ports": [{"containerPort": 3001}],
        "readinessProbe": {"tcpSocket": {"port": 3001}, "periodSeconds": 1, "failureThreshold": 60},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "script", "mountPath": "/server"}],
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "script", "configMap": {"name": "server"}}],
        },
    });
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 3001}]}});
    [pod, service]
}
