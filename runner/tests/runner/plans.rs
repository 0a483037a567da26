//! Plans, credentials and definitions that the tests share.

use std::collections::BTreeSet;

use belay_protocol::Plan;
use belay_protocol::call::{definition_digest, model_name};
use belay_protocol::plan::{
    Effects, Inject, Limits, ModelApi, ObjectId, OnDrift, PLAN_VERSION, PlanCredential, PlanModel, PlanOperation,
    PlanTool, ScriptedCall, ScriptedTurn, Timeouts,
};
use belay_runner::credential::Credentials;
use belay_runner::egress::Destinations;
use serde_json::{Value, json};

pub const TOOL: &str = "server";

pub fn plan(model: PlanModel, tools: Vec<PlanTool>) -> Plan {
    let id = |name: &str| ObjectId { namespace: "team".into(), name: name.into(), uid: format!("{name}-uid") };
    Plan {
        version: PLAN_VERSION,
        run: id("run"),
        agent: id("agent"),
        agent_generation: 1,
        requested_by: None,
        instructions: "Be brief.".into(),
        input: "Do it.".into(),
        model,
        fallbacks: Vec::new(),
        tools,
        credentials: Vec::new(),
        policies: Vec::new(),
        agent_policies: Vec::new(),
        inherited_policies: Vec::new(),
        // Where servers of tests listen: an installation may list it, a tenant cannot.
        private_hosts: vec!["127.0.0.1".into()],
        limits: Limits { steps: 50, tokens: None, cost_micro_usd: None, active_seconds: 1800, wait_seconds: 60 },
        output_schema: None,
        parent: None,
    }
}

pub fn scripted(turns: Vec<ScriptedTurn>) -> PlanModel {
    PlanModel { api: ModelApi::Scripted, script: turns, ..chat("") }
}

pub fn chat(base_url: &str) -> PlanModel {
    PlanModel {
        name: "writer".into(),
        api: ModelApi::ChatCompletions,
        provider: None,
        model: "small-1".into(),
        base_url: Some(base_url.into()),
        ca: None,
        credential: None,
        context_window_tokens: None,
        max_output_tokens: None,
        temperature: None,
        prices: None,
        timeouts: Timeouts { connect_seconds: 2, first_byte_seconds: 2, idle_seconds: 2, total_seconds: 10 },
        reasoning: None,
        headers: Vec::new(),
        script: Vec::new(),
    }
}

pub fn responses(base_url: &str) -> PlanModel {
    PlanModel { api: ModelApi::Responses, ..chat(base_url) }
}

pub fn messages(base_url: &str) -> PlanModel {
    PlanModel { api: ModelApi::Messages, max_output_tokens: Some(512), ..chat(base_url) }
}

pub fn says(text: &str) -> ScriptedTurn {
    ScriptedTurn { text: Some(text.into()), ..ScriptedTurn::default() }
}

pub fn calls(operations: &[(&str, Value)]) -> ScriptedTurn {
    let call = |(operation, args): &(&str, Value)| ScriptedCall {
        tool: TOOL.into(),
        operation: (*operation).into(),
        args: args.clone(),
    };
    ScriptedTurn { tool_calls: operations.iter().map(call).collect(), ..ScriptedTurn::default() }
}

/// What every fake operation is defined as.
pub fn definition(operation: &str) -> Value {
    json!({
        "name": operation,
        "description": format!("does {operation}"),
        // A server may show in a schema what it was sent; `s3cr3t-value` is what tests use as a credential.
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string", "default": "s3cr3t-value"}}},
    })
}

pub fn tool(url: &str, operations: &[&str]) -> PlanTool {
    let operation = |name: &&str| {
        let definition = definition(name);
        PlanOperation {
            name: (*name).into(),
            model_name: model_name(TOOL, name, &BTreeSet::new()),
            definition: definition_digest(
                name,
                definition["description"].as_str().unwrap(),
                &definition["inputSchema"],
            )
            .unwrap(),
            effects: Effects::NonIdempotent,
            gone: false,
        }
    };
    PlanTool {
        name: TOOL.into(),
        uid: "server-uid".into(),
        url: url.into(),
        ca: None,
        http: None,
        credential: None,
        call_timeout_seconds: 5,
        policies: Vec::new(),
        on_drift: OnDrift::Continue,
        agent: None,
        operations: operations.iter().map(operation).collect(),
    }
}

pub fn credential(hosts: &[&str]) -> PlanCredential {
    PlanCredential {
        name: "key".into(),
        uid: "key-uid".into(),
        secret_name: "keys".into(),
        secret_key: "token".into(),
        inject: Inject::Bearer {},
        hosts: hosts.iter().map(|host| (*host).into()).collect(),
        methods: Vec::new(),
        path_prefixes: Vec::new(),
        policies: Vec::new(),
    }
}

/// Credentials as the kubelet mounts them; the folder goes with the first value.
pub fn mounted(values: &[(&str, &str)]) -> (tempfile::TempDir, Credentials) {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in values {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("value"), value).unwrap();
    }
    let destinations = Destinations::new("team", &["127.0.0.1".into()]);
    let credentials = Credentials::new(folder.path().to_owned()).reaching(destinations);
    (folder, credentials)
}
