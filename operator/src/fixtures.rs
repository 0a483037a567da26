//! Objects for unit tests, in namespace `triage`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use belay_crds::conditions::{READY, Statement, Truth, set_condition};
use belay_crds::{
    Agent, AgentRun, AgentStatus, ApprovalPolicy, ApprovalPolicyStatus, Credential, CredentialStatus, Model,
    ModelStatus, Tool, ToolStatus,
};
use belay_protocol::cost::Usage;
use belay_protocol::event::{Event, Finish, Item, ModelResponse, ProposedCall, Verdict};
use belay_protocol::{Digest, Plan, Record, RunState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Resource;
use serde_json::{Value, json};

use crate::agent_run::resolve::{Parts, freeze};

pub const NAMESPACE: &str = "triage";
/// 2026-11-23T10:00:00Z in milliseconds: when every object was created.
pub const CREATED_AT: i64 = 1_795_428_000_000;

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

/// `spec` as people write it.
pub fn policy(name: &str, spec: &str) -> ApprovalPolicy {
    object("ApprovalPolicy", name, &serde_saphyr::from_str(spec).unwrap())
}

pub fn agent(name: &str, model: &str, tools: &[(&str, &[&str])]) -> Agent {
    let tools: Vec<Value> =
        tools.iter().map(|(name, operations)| json!({"name": name, "operations": operations})).collect();
    object("Agent", name, &json!({"modelRef": {"name": model}, "tools": tools}))
}

pub fn run(name: &str, agent: &str) -> AgentRun {
    object("AgentRun", name, &json!({"agentRef": {"name": agent}, "input": "Label what came in today."}))
}

/// The plan of run `nightly` of Agent `triage`, which may call `github/list_issues`.
pub fn plan() -> Plan {
    let parts = Parts {
        agent: Arc::new(agent("triage", "writer", &[("github", &["list_issues"])])),
        model: Arc::new(model("writer", None)),
        fallbacks: vec![],
        tools: vec![Arc::new(tool("github", &["list_issues"]))],
        credentials: vec![],
        policies: vec![],
        private_hosts: vec![],
        subagents: std::collections::BTreeMap::new(),
        above: None,
    };
    freeze(&run("nightly", "triage"), &parts).unwrap()
}

/// A run's state after `events`, one a second from 10:00:01 on the day of every fixture.
pub fn state(events: Vec<Event>) -> RunState {
    let plan = plan();
    let first = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
    let mut state = RunState::default();
    for (seq, event) in (1_u64..).zip(std::iter::once(first).chain(events)) {
        let at = CREATED_AT + i64::try_from(seq).unwrap() * 1000;
        state.apply(&Record { seq, at, event }).unwrap();
    }
    state
}

pub fn opened() -> Event {
    Event::EpochOpened { epoch: 1, pod_name: "belay-run-a".to_owned() }
}

pub fn claimed() -> Event {
    Event::InstanceClaimed { epoch: 1, instance: "i".to_owned(), pod_uid: "uid-pod".to_owned() }
}

/// Asks the model and gets `items`.
pub fn answered(step: u32, items: Vec<Item>, usage: Usage) -> Vec<Event> {
    let response = ModelResponse::new(items, Finish::Stop, usage, 1);
    vec![
        Event::ModelRequested { step, attempt: 1, request: Digest::of(b"r"), reserved_tokens: 0 },
        Event::ModelResponded { step, attempt: 1, response },
    ]
}

/// A run whose call `c1` has a permit out.
pub fn in_flight() -> RunState {
    let call = Item::ToolCall {
        call_id: "c1".to_owned(),
        provider_id: "p".to_owned(),
        name: "github__list_issues".to_owned(),
        arguments: "{}".to_owned(),
    };
    let digest = Digest::of(b"call");
    let proposed = ProposedCall {
        tool: "github".to_owned(),
        operation: "list_issues".to_owned(),
        args: json!({}),
        definition: Digest::of(b"list_issues"),
        digest,
    };
    let mut events = vec![opened(), claimed()];
    events.extend(answered(1, vec![call], Usage::default()));
    events.push(Event::CallProposed { call_id: "c1".to_owned(), attempt: 1, call: proposed });
    let verdict = Verdict::Allowed { digest };
    events.push(Event::CallDecided { call_id: "c1".to_owned(), attempt: 1, verdict, judged: None });
    state(events)
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

conditioned!(
    Model ModelStatus, Credential CredentialStatus, Tool ToolStatus, ApprovalPolicy ApprovalPolicyStatus,
    Agent AgentStatus
);

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
