//! The frozen plan: every reference of a run, resolved once. Pure; what it is given was Ready a moment ago.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::{
    Agent, AgentRun, Credential, Effects as CrdEffects, Inject as CrdInject, Limits as CrdLimits, Model, ModelApi,
    Tool, Usd,
};
use belay_protocol::Digest;
use belay_protocol::call::model_name;
use belay_protocol::cost::Prices;
use belay_protocol::plan::{
    Effects, Inject, Limits, ModelApi as PlanApi, ObjectId, PLAN_VERSION, Plan, PlanCredential, PlanModel,
    PlanOperation, PlanTool, ScriptedCall, ScriptedTurn, Timeouts,
};
use kube::{Resource, ResourceExt};

use crate::agent::EVERY_OPERATION;
use crate::references;
use crate::world::World;

const OPENAI_URL: &str = "https://api.openai.com/v1";
const STEPS: u32 = 50;
const ACTIVE_SECONDS: u32 = 1800;
const WAIT_SECONDS: u32 = 604_800;
const CALL_TIMEOUT_SECONDS: u32 = 60;

/// Everything that a plan is made of.
pub struct Parts {
    pub agent: Arc<Agent>,
    pub model: Arc<Model>,
    pub tools: Vec<Arc<Tool>>,
    pub credentials: Vec<Arc<Credential>>,
}

impl Parts {
    /// Gathers what the Agent names, or says what is missing.
    pub fn gather(world: &World, agent: Arc<Agent>) -> Result<Self, String> {
        let namespace = agent.namespace().unwrap_or_default();
        let subject = format!("Agent {}", agent.name_any());
        let absent = |field: &str, kind: &str, name: &str| {
            references::missing(&format!("{subject}: {field}"), kind, name, &namespace)
        };
        let model_ref = &agent.spec.model_ref.name;
        let model = world.model(&namespace, model_ref).ok_or_else(|| absent("spec.modelRef", "Model", model_ref))?;
        let mut tools = Vec::with_capacity(agent.spec.tools.len());
        for listed in &agent.spec.tools {
            let tool = world.tool(&namespace, &listed.name);
            tools.push(tool.ok_or_else(|| absent("spec.tools", "Tool", &listed.name))?);
        }
        let names: BTreeSet<&str> = (model.spec.credential_ref.iter())
            .chain(tools.iter().filter_map(|tool| tool.spec.mcp.credential_ref.as_ref()))
            .map(|reference| reference.name.as_str())
            .collect();
        let mut credentials = Vec::with_capacity(names.len());
        for name in names {
            credentials
                .push(world.credential(&namespace, name).ok_or_else(|| absent("credentialRef", "Credential", name))?);
        }
        Ok(Self { agent, model, tools, credentials })
    }
}

/// Freezes the plan of `run`, or says which operation has no definition to freeze.
pub fn freeze(run: &AgentRun, parts: &Parts) -> Result<Plan, String> {
    let mut taken = BTreeSet::new();
    let mut tools = Vec::with_capacity(parts.tools.len());
    for (listed, tool) in parts.agent.spec.tools.iter().zip(&parts.tools) {
        tools.push(freeze_tool(&listed.operations, tool, &mut taken)?);
    }
    Ok(Plan {
        version: PLAN_VERSION,
        run: id_of(run),
        agent: id_of(&*parts.agent),
        agent_generation: parts.agent.metadata.generation.unwrap_or_default(),
        requested_by: run.spec.requested_by.clone(),
        instructions: parts.agent.spec.instructions.clone().unwrap_or_default(),
        input: run.spec.input.clone(),
        model: freeze_model(&parts.model),
        tools,
        credentials: parts.credentials.iter().map(|credential| freeze_credential(credential)).collect(),
        limits: limits(parts.agent.spec.limits.as_ref(), run.spec.limits.as_ref()),
    })
}

#[must_use]
pub fn id_of(object: &impl Resource) -> ObjectId {
    let meta = object.meta();
    ObjectId {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    }
}

fn freeze_tool(listed: &[String], tool: &Tool, taken: &mut BTreeSet<String>) -> Result<PlanTool, String> {
    let offered = tool.status.as_ref().map_or(&[][..], |status| &status.operations);
    let every = listed.iter().any(|name| name == EVERY_OPERATION);
    let mut operations = Vec::new();
    for operation in offered.iter().filter(|operation| every || listed.contains(&operation.name)) {
        let definition: Digest = operation.digest.parse().map_err(|_| {
            format!("Tool {}: status.operations holds no digest for {}", tool.name_any(), operation.name)
        })?;
        let model_name = model_name(&tool.name_any(), &operation.name, taken);
        taken.insert(model_name.clone());
        let effects = effects(tool, &operation.name);
        operations.push(PlanOperation { name: operation.name.clone(), model_name, definition, effects });
    }
    Ok(PlanTool {
        name: tool.name_any(),
        uid: tool.uid().unwrap_or_default(),
        url: tool.spec.mcp.url.clone(),
        credential: tool.spec.mcp.credential_ref.as_ref().map(|reference| reference.name.clone()),
        call_timeout_seconds: tool.spec.call_timeout_seconds.map_or(CALL_TIMEOUT_SECONDS, positive),
        operations,
    })
}

/// What the Tool's author says of an operation; silence means the worst.
fn effects(tool: &Tool, operation: &str) -> Effects {
    let said = tool.spec.effects.as_ref();
    let said = said.and_then(|effects| effects.operations.get(operation).copied().or(effects.default));
    match said.unwrap_or_default() {
        CrdEffects::None => Effects::None,
        CrdEffects::Idempotent => Effects::Idempotent,
        CrdEffects::NonIdempotent => Effects::NonIdempotent,
    }
}

fn freeze_model(model: &Model) -> PlanModel {
    let spec = &model.spec;
    let (api, default_url) = match spec.api {
        ModelApi::ChatCompletions => (PlanApi::ChatCompletions, Some(OPENAI_URL)),
        ModelApi::Scripted => (PlanApi::Scripted, None),
    };
    let base_url = spec.base_url.as_deref().or(default_url).map(|url| url.trim_end_matches('/').to_owned());
    let defaults = Timeouts::default();
    let timeouts = spec.timeouts.clone().unwrap_or_default();
    PlanModel {
        name: model.name_any(),
        api,
        provider: spec.provider.clone(),
        model: spec.model.clone(),
        base_url,
        credential: spec.credential_ref.as_ref().map(|reference| reference.name.clone()),
        context_window_tokens: spec.context_window_tokens.map(i64::unsigned_abs),
        max_output_tokens: spec.max_output_tokens.map(i64::unsigned_abs),
        temperature: spec.temperature,
        prices: spec.prices_usd.as_ref().map(|prices| Prices {
            input: prices.input.micro(),
            cached_input: prices.cached_input.map(Usd::micro),
            output: prices.output.micro(),
        }),
        timeouts: Timeouts {
            connect_seconds: timeouts.connect_seconds.map_or(defaults.connect_seconds, positive),
            first_byte_seconds: timeouts.first_byte_seconds.map_or(defaults.first_byte_seconds, positive),
            idle_seconds: timeouts.idle_seconds.map_or(defaults.idle_seconds, positive),
            total_seconds: timeouts.total_seconds.map_or(defaults.total_seconds, positive),
        },
        script: spec.scripted.iter().flat_map(|script| &script.turns).map(freeze_turn).collect(),
    }
}

fn freeze_turn(turn: &belay_crds::ScriptTurn) -> ScriptedTurn {
    let call = |call: &belay_crds::ScriptCall| ScriptedCall {
        tool: call.tool.clone(),
        operation: call.operation.clone(),
        args: call.args.clone().unwrap_or_else(|| serde_json::json!({})),
    };
    ScriptedTurn {
        text: turn.text.clone(),
        tool_calls: turn.tool_calls.iter().map(call).collect(),
        error: turn.error.clone(),
        delay_milliseconds: turn.delay_milliseconds.map_or(0, positive),
    }
}

/// What of a Credential a plan holds: everything but a value.
#[must_use]
pub fn freeze_credential(credential: &Credential) -> PlanCredential {
    let spec = &credential.spec;
    PlanCredential {
        name: credential.name_any(),
        uid: credential.uid().unwrap_or_default(),
        secret_name: spec.secret_key_ref.name.clone(),
        secret_key: spec.secret_key_ref.key.clone(),
        inject: freeze_inject(&spec.inject),
        hosts: spec.hosts.clone(),
    }
}

fn freeze_inject(inject: &CrdInject) -> Inject {
    match &inject.header {
        Some(header) => {
            let format = header.format.clone().unwrap_or_else(|| "{}".to_owned());
            Inject::Header { name: header.name.clone(), format }
        }
        None => Inject::Bearer {},
    }
}

/// The tighter of both, limit by limit: a run never gets more than its Agent gives, or its default.
#[must_use]
pub fn limits(agent: Option<&CrdLimits>, run: Option<&CrdLimits>) -> Limits {
    let counted = |default: u32, pick: fn(&CrdLimits) -> Option<i32>| {
        let given = agent.and_then(pick).map_or(default, positive);
        run.and_then(pick).map_or(given, |own| positive(own).min(given))
    };
    Limits {
        steps: counted(STEPS, |l| l.steps),
        tokens: tighter(agent.and_then(|l| l.tokens), run.and_then(|l| l.tokens)).map(i64::unsigned_abs),
        cost_micro_usd: tighter(agent.and_then(|l| l.cost_usd), run.and_then(|l| l.cost_usd)).map(Usd::micro),
        active_seconds: counted(ACTIVE_SECONDS, |l| l.active_seconds),
        wait_seconds: counted(WAIT_SECONDS, |l| l.wait_seconds),
    }
}

fn tighter<T: Ord>(agent: Option<T>, run: Option<T>) -> Option<T> {
    match (agent, run) {
        (Some(agent), Some(run)) => Some(agent.min(run)),
        (one, other) => one.or(other),
    }
}

fn positive(value: i32) -> u32 {
    value.unsigned_abs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fixtures::{agent, credential, model, run, tool};

    fn parts(agent: Agent, model: Model, tools: Vec<Tool>, credentials: Vec<Credential>) -> Parts {
        Parts {
            agent: Arc::new(agent),
            model: Arc::new(model),
            tools: tools.into_iter().map(Arc::new).collect(),
            credentials: credentials.into_iter().map(Arc::new).collect(),
        }
    }

    fn some_limits(steps: Option<i32>, tokens: Option<i64>) -> CrdLimits {
        CrdLimits { steps, tokens, ..CrdLimits::default() }
    }

    #[test]
    fn the_tighter_limit_counts_and_a_run_never_loosens_a_default() {
        let agents = some_limits(Some(10), Some(500));
        let table = [
            (Some(&agents), some_limits(Some(5), Some(900)), (5, Some(500))),
            (Some(&agents), some_limits(Some(50), None), (10, Some(500))),
            (None, some_limits(Some(5000), Some(7)), (50, Some(7))),
            (None, some_limits(None, None), (50, None)),
        ];
        for (agent, run, expected) in table {
            let limits = limits(agent, Some(&run));
            assert_eq!((limits.steps, limits.tokens), expected);
        }
    }

    #[test]
    fn a_star_expands_to_what_the_tool_offers_now_and_a_list_to_itself() {
        let tools = [("files", &["*"][..]), ("github", &["list_issues"][..])];
        let agent = agent("triage", "writer", &tools);
        let offered = vec![tool("files", &["read", "write"]), tool("github", &["list_issues", "delete_repo"])];
        let plan = freeze(&run("r", "triage"), &parts(agent, model("writer", None), offered, vec![])).unwrap();
        let names: Vec<(&str, Vec<&str>)> = (plan.tools.iter())
            .map(|tool| (tool.name.as_str(), tool.operations.iter().map(|o| o.model_name.as_str()).collect()))
            .collect();
        assert_eq!(names, [("files", vec!["files__read", "files__write"]), ("github", vec!["github__list_issues"])]);
    }

    #[test]
    fn a_plan_holds_the_place_of_a_key_and_how_it_is_sent() {
        let parts = parts(agent("triage", "writer", &[]), model("writer", Some("k")), vec![], vec![credential("k")]);
        let plan = freeze(&run("r", "triage"), &parts).unwrap();
        assert_eq!(plan.model.credential.as_deref(), Some("k"));
        assert_eq!(plan.model.base_url.as_deref(), Some(OPENAI_URL));
        let expected = PlanCredential {
            name: "k".to_owned(),
            uid: "uid-k".to_owned(),
            secret_name: "k-secret".to_owned(),
            secret_key: "token".to_owned(),
            inject: Inject::Bearer {},
            hosts: vec!["api.example.com".to_owned()],
        };
        assert_eq!(plan.credentials, [expected]);
        assert!(plan.digest().is_ok());
    }
}
