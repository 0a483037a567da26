//! Objects for unit tests, in namespace `triage`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use belay_crds::conditions::{READY, Statement, Truth, set_condition};
use belay_crds::{Agent, AgentRun, AgentStatus, Credential, CredentialStatus, Model, ModelStatus, Tool, ToolStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Resource;
use serde_json::{Value, json};

pub const NAMESPACE: &str = "triage";

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> K {
    serde_json::from_value(json!({
        "apiVersion": "belay.dev/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": format!("uid-{name}"),
            "generation": 1,
            "resourceVersion": "7",
            "creationTimestamp": "2026-11-23T10:00:00Z",
        },
        "spec": spec,
    }))
    .unwrap()
}

pub fn model(name: &str, credential: Option<&str>) -> Model {
    let mut spec = json!({"api": "ChatCompletions", "model": "some-model"});
    if let Some(credential) = credential {
        spec["credentialRef"] = json!({"name": credential});
    }
    object("Model", name, &spec)
}

pub fn credential(name: &str) -> Credential {
    let spec = json!({
        "secretKeyRef": {"name": format!("{name}-secret"), "key": "token"},
        "inject": {"bearer": {}},
        "hosts": ["api.example.com"],
    });
    object("Credential", name, &spec)
}

/// A Tool that was probed and offers `operations`; without a Ready condition.
pub fn tool(name: &str, operations: &[&str]) -> Tool {
    let mut tool: Tool = object("Tool", name, &json!({"mcp": {"url": format!("http://{name}:3001/mcp")}}));
    let operations: Vec<Value> = operations
        .iter()
        .map(|name| json!({"name": name, "digest": belay_protocol::Digest::of(name.as_bytes()).to_string()}))
        .collect();
    tool.status = Some(serde_json::from_value(json!({"operations": operations})).unwrap());
    tool
}

pub fn agent(name: &str, model: &str, tools: &[(&str, &[&str])]) -> Agent {
    let tools: Vec<Value> =
        tools.iter().map(|(name, operations)| json!({"name": name, "operations": operations})).collect();
    object("Agent", name, &json!({"modelRef": {"name": model}, "tools": tools}))
}

pub fn run(name: &str, agent: &str) -> AgentRun {
    object("AgentRun", name, &json!({"agentRef": {"name": agent}, "input": "Label what came in today."}))
}

/// Kinds whose status holds conditions.
pub trait Conditioned: Resource<DynamicType = ()> {
    fn conditions(&mut self) -> &mut Vec<Condition>;
}

macro_rules! conditioned {
    ($($kind:ident $status:ident),+) => { $(impl Conditioned for $kind {
        fn conditions(&mut self) -> &mut Vec<Condition> {
            &mut self.status.get_or_insert_with($status::default).conditions
        }
    })+ };
}

conditioned!(Model ModelStatus, Credential CredentialStatus, Tool ToolStatus, Agent AgentStatus);

pub fn ready<K: Conditioned>(object: K) -> K {
    with_ready(object, Truth::True, "Ready", "")
}

pub fn not_ready<K: Conditioned>(object: K, reason: &str, message: &str) -> K {
    with_ready(object, Truth::False, reason, message)
}

fn with_ready<K: Conditioned>(mut object: K, truth: Truth, reason: &str, message: &str) -> K {
    let generation = object.meta().generation;
    let say = Statement { type_: READY, truth, reason, message };
    set_condition(object.conditions(), &say, generation, Time(jiff::Timestamp::UNIX_EPOCH));
    object
}
