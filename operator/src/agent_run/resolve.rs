//! The frozen plan: every reference of a run, resolved once. Pure; what it is given was Ready a moment ago.

mod subagents;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use belay_crds::{
    Agent, AgentRun, AgentTool, ClientAuthentication as CrdClientAuthentication, Credential, Http, Inject as CrdInject,
    Limits as CrdLimits, Model, ModelApi, ModelReasoning, NameRef, OnDrift as CrdOnDrift, ReasoningEffort, Tls, Tool,
    Usd,
};
use belay_policy::freeze_effects;
use belay_protocol::Digest;
use belay_protocol::call::model_name;
use belay_protocol::cost::Prices;
use belay_protocol::network::AllowedHosts;
use belay_protocol::plan::{
    CaBundle, ClientAuthentication, ClientCredentials, Effects, Effort, HttpOperations, Inject, Limits,
    ModelApi as PlanApi, ObjectId, OnDrift, PLAN_VERSION, Plan, PlanCredential, PlanHeader, PlanModel, PlanOperation,
    PlanPolicy, PlanTool, Reasoning, ScriptedCall, ScriptedTurn, Timeouts, tighter,
};
use kube::{Resource, ResourceExt};

pub use self::subagents::{Subagent, is_priced};
use self::subagents::{freeze_subagent, gather_subagents, of_those_above};
use super::lineage::Above;
use crate::agent::EVERY_OPERATION;
use crate::approval_policy::{JUDGES_MAX, Named, Usable, named, usable};
use crate::http_api;
use crate::network::destinations;
use crate::references;
use crate::world::{World, credential_names};

const OPENAI_URL: &str = "https://api.openai.com/v1";
const ANTHROPIC_URL: &str = "https://api.anthropic.com/v1";
const STEPS: u32 = 50;
const ACTIVE_SECONDS: u32 = 1800;
const WAIT_SECONDS: u32 = 604_800;
const CALL_TIMEOUT_SECONDS: u32 = 60;

/// Everything that a plan is made of.
pub struct Parts {
    pub agent: Arc<Agent>,
    pub model: Arc<Model>,
    /// In the order in which the Model names them.
    pub fallbacks: Vec<Arc<Model>>,
    pub tools: Vec<Arc<Tool>>,
    pub credentials: Vec<Arc<Credential>>,
    /// Every policy that the Agent, a tool or a credential names, by name: the generation that counts.
    pub policies: Vec<PlanPolicy>,
    /// What of the installation's list of private hosts these name.
    pub private_hosts: Vec<String>,
    /// Agents that tools stand for, by the tool.
    pub subagents: BTreeMap<String, Subagent>,
    /// The run whose call is carried out.
    pub above: Option<Above>,
}

impl Parts {
    /// Gathers what the Agent names, or says what is missing.
    pub fn gather(
        world: &World,
        agent: Arc<Agent>,
        allowed: &AllowedHosts,
        above: Option<&Above>,
    ) -> Result<Self, String> {
        let namespace = agent.namespace().unwrap_or_default();
        let subject = format!("Agent {}", agent.name_any());
        let absent = |field: &str, kind: &str, name: &str| {
            references::missing(&format!("{subject}: {field}"), kind, name, &namespace)
        };
        let model_ref = &agent.spec.model_ref.name;
        let model = world.model(&namespace, model_ref).ok_or_else(|| absent("spec.modelRef", "Model", model_ref))?;
        let mut fallbacks = Vec::with_capacity(model.spec.fallback_refs.len());
        for (place, reference) in model.spec.fallback_refs.iter().enumerate() {
            let field = format!("Model {}: spec.fallbackRefs[{place}]", model.name_any());
            let missing = || references::missing(&field, "Model", &reference.name, &namespace);
            fallbacks.push(world.model(&namespace, &reference.name).ok_or_else(missing)?);
        }
        let mut tools = Vec::with_capacity(agent.spec.tools.len());
        for listed in &agent.spec.tools {
            let tool = world.tool(&namespace, &listed.name);
            tools.push(tool.ok_or_else(|| absent("spec.tools", "Tool", &listed.name))?);
        }
        let names = credential_names(std::iter::once(&model).chain(&fallbacks), &tools);
        let mut credentials = Vec::with_capacity(names.len());
        for name in names {
            credentials
                .push(world.credential(&namespace, name).ok_or_else(|| absent("credentialRef", "Credential", name))?);
        }
        let subagents = gather_subagents(world, &tools, &namespace)?;
        let mut judges = named(world, &agent, &tools, &credentials);
        judges.extend(above.into_iter().flat_map(|above| of_those_above(world, &namespace, above)));
        let policies = gather_policies(&judges, &namespace)?;
        let urls = destinations::named(std::iter::once(&model).chain(&fallbacks), &tools, &credentials);
        if let Some(refusal) = destinations::refusal(&urls, &namespace, allowed) {
            return Err(refusal);
        }
        let private_hosts = destinations::private_hosts(&urls, &namespace, allowed);
        let above = above.cloned();
        Ok(Self { agent, model, fallbacks, tools, credentials, policies, private_hosts, subagents, above })
    }
}

fn gather_policies(named: &[Named], namespace: &str) -> Result<Vec<PlanPolicy>, String> {
    let mut policies = BTreeMap::new();
    for Named { subject, name, policy } in named {
        let policy = policy.as_ref().ok_or_else(|| references::missing(subject, "ApprovalPolicy", name, namespace))?;
        match usable(policy) {
            Usable::AsItIs(policy) | Usable::LastGood { policy, .. } => policies.insert(name, policy),
            Usable::Not { why } => return Err(format!("{subject} names what cannot be used: {why}")),
        };
    }
    Ok(policies.into_values().collect())
}

fn policy_names(references: &[NameRef]) -> Vec<String> {
    let mut names: Vec<String> = references.iter().map(|reference| reference.name.clone()).collect();
    names.sort();
    names
}

/// Freezes the plan of `run`, or says which operation has no definition to freeze.
pub fn freeze(run: &AgentRun, parts: &Parts) -> Result<Plan, String> {
    let mut taken = BTreeSet::new();
    let mut tools = Vec::with_capacity(parts.tools.len());
    for (listed, tool) in parts.agent.spec.tools.iter().zip(&parts.tools) {
        tools.push(match &tool.spec.agent {
            Some(_) => freeze_subagent(tool, parts.subagents.get(&tool.name_any()), &mut taken)?,
            None => freeze_tool(listed, tool, &mut taken)?,
        });
    }
    let agent_policies = policy_names(&parts.agent.spec.policy_refs);
    let inherited = parts.above.iter().flat_map(|above| &above.policies);
    let inherited_policies = inherited.filter(|name| !agent_policies.contains(name)).cloned().collect();
    let plan = Plan {
        version: PLAN_VERSION,
        run: id_of(run),
        agent: id_of(&*parts.agent),
        agent_generation: parts.agent.metadata.generation.unwrap_or_default(),
        requested_by: run.spec.requested_by.clone(),
        instructions: parts.agent.spec.instructions.clone().unwrap_or_default(),
        input: run.spec.input.clone(),
        model: freeze_model(&parts.model),
        fallbacks: parts.fallbacks.iter().map(|model| freeze_model(model)).collect(),
        tools,
        credentials: parts.credentials.iter().map(|credential| freeze_credential(credential)).collect(),
        policies: parts.policies.clone(),
        agent_policies,
        inherited_policies,
        private_hosts: parts.private_hosts.clone(),
        limits: limits(parts.agent.spec.limits.as_ref(), run.spec.limits.as_ref()),
        output_schema: parts.agent.spec.output_schema.clone(),
        parent: parts.above.as_ref().map(|above| above.parent.clone()),
    };
    if let Some(why) = uncountable(&plan) {
        return Err(why);
    }
    match plan.tools.iter().find(|tool| plan.policies_of(&tool.name).len() > JUDGES_MAX) {
        Some(tool) => Err(format!(
            "{} policies would judge a call of Tool {}, counting those of the runs above: a call can be put to at most \
             {JUDGES_MAX}; put rules together",
            plan.policies_of(&tool.name).len(),
            tool.name
        )),
        None => Ok(plan),
    }
}

/// Why a limit on what the run costs cannot be kept. Prices may have gone since the Agent was Ready, and the limit may be the
/// run's alone.
fn uncountable(plan: &Plan) -> Option<String> {
    plan.limits.cost_micro_usd?;
    let model = plan.models().find(|model| model.prices.is_none())?;
    Some(format!(
        "Agent {}: spec.limits.costUSD, of the Agent or of AgentRun {}, cannot be kept: Model \"{}\" has no spec.pricesUSD; \
         set it or remove the limit",
        plan.agent.name, plan.run.name, model.name
    ))
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

fn freeze_tool(listed: &AgentTool, tool: &Tool, taken: &mut BTreeSet<String>) -> Result<PlanTool, String> {
    let AgentTool { operations: listed, on_drift, .. } = listed;
    let accepted = tool.status.as_ref().map_or(&[][..], |status| &status.operations);
    let every = listed.iter().any(|name| name == EVERY_OPERATION);
    let mut operations = Vec::new();
    for operation in accepted.iter().filter(|operation| every || listed.contains(&operation.name)) {
        let definition: Digest = operation.digest.parse().map_err(|_| {
            format!("Tool {}: status.operations holds no digest for {}", tool.name_any(), operation.name)
        })?;
        let model_name = model_name(&tool.name_any(), &operation.name, taken);
        taken.insert(model_name.clone());
        let effects = effects(tool, &operation.name);
        let name = operation.name.clone();
        operations.push(PlanOperation { name, model_name, definition, effects, gone: false });
    }
    Ok(PlanTool {
        name: tool.name_any(),
        uid: tool.uid().unwrap_or_default(),
        url: tool.spec.url().to_owned(),
        ca: tool.spec.tls().map(freeze_tls),
        http: tool.spec.http.as_ref().map(|http| freeze_http(http, &operations)),
        credential: tool.spec.credential_ref().map(|reference| reference.name.clone()),
        call_timeout_seconds: tool.spec.call_timeout_seconds.map_or(CALL_TIMEOUT_SECONDS, positive),
        operations,
        policies: policy_names(&tool.spec.policy_refs),
        on_drift: match on_drift.unwrap_or_default() {
            CrdOnDrift::Wait => OnDrift::Wait,
            CrdOnDrift::Continue => OnDrift::Continue,
        },
        agent: None,
    })
}

fn freeze_http(http: &Http, operations: &[PlanOperation]) -> HttpOperations {
    http_api::freeze(http, |name| operations.iter().any(|operation| operation.name == name))
}

/// What the Tool's author says of an operation; silence means the worst.
#[must_use]
pub fn effects(tool: &Tool, operation: &str) -> Effects {
    let said = tool.spec.effects.as_ref();
    let said = said.and_then(|effects| effects.operations.get(operation).copied().or(effects.default));
    freeze_effects(said.unwrap_or_default())
}

/// Where the Model is asked: its own URL, or its provider's. A scripted one is asked nowhere.
#[must_use]
pub fn base_url(model: &Model) -> Option<String> {
    let default = match model.spec.api {
        ModelApi::ChatCompletions | ModelApi::Responses => Some(OPENAI_URL),
        ModelApi::Messages => Some(ANTHROPIC_URL),
        ModelApi::Scripted => None,
    };
    model.spec.base_url.as_deref().or(default).map(|url| url.trim_end_matches('/').to_owned())
}

fn freeze_model(model: &Model) -> PlanModel {
    let spec = &model.spec;
    let api = match spec.api {
        ModelApi::ChatCompletions => PlanApi::ChatCompletions,
        ModelApi::Responses => PlanApi::Responses,
        ModelApi::Messages => PlanApi::Messages,
        ModelApi::Scripted => PlanApi::Scripted,
    };
    let defaults = Timeouts::default();
    let timeouts = spec.timeouts.clone().unwrap_or_default();
    PlanModel {
        name: model.name_any(),
        api,
        provider: spec.provider.clone(),
        model: spec.model.clone(),
        base_url: base_url(model),
        ca: spec.tls.as_ref().map(freeze_tls),
        credential: spec.credential_ref.as_ref().map(|reference| reference.name.clone()),
        context_window_tokens: spec.context_window_tokens.map(i64::unsigned_abs),
        max_output_tokens: spec.max_output_tokens.map(i64::unsigned_abs),
        temperature: spec.temperature,
        prices: spec.prices_usd.as_ref().map(|prices| Prices {
            input: prices.input.micro(),
            cached_input: prices.cached_input.map(Usd::micro),
            cache_write: prices.cache_write.map(Usd::micro),
            output: prices.output.micro(),
        }),
        timeouts: Timeouts {
            connect_seconds: timeouts.connect_seconds.map_or(defaults.connect_seconds, positive),
            first_byte_seconds: timeouts.first_byte_seconds.map_or(defaults.first_byte_seconds, positive),
            idle_seconds: timeouts.idle_seconds.map_or(defaults.idle_seconds, positive),
            total_seconds: timeouts.total_seconds.map_or(defaults.total_seconds, positive),
        },
        reasoning: spec.reasoning.as_ref().map(freeze_reasoning),
        headers: spec
            .headers
            .iter()
            .map(|header| PlanHeader { name: header.name.clone(), value: header.value.clone() })
            .collect(),
        script: spec.scripted.iter().flat_map(|script| &script.turns).map(freeze_turn).collect(),
    }
}

/// Where a runner finds the authorities: by name, so that what they are may be rotated.
#[must_use]
pub fn freeze_tls(tls: &Tls) -> CaBundle {
    let reference = &tls.ca_config_map_key_ref;
    CaBundle { config_map: reference.name.clone(), key: reference.key.clone() }
}

fn freeze_reasoning(reasoning: &ModelReasoning) -> Reasoning {
    let effort = |effort| match effort {
        ReasoningEffort::None => Effort::None,
        ReasoningEffort::Minimal => Effort::Minimal,
        ReasoningEffort::Low => Effort::Low,
        ReasoningEffort::Medium => Effort::Medium,
        ReasoningEffort::High => Effort::High,
    };
    Reasoning { effort: reasoning.effort.map(effort), budget_tokens: reasoning.budget_tokens.map(i64::unsigned_abs) }
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
        methods: spec.methods.iter().map(|method| method.as_str().to_owned()).collect(),
        path_prefixes: spec.path_prefixes.clone(),
        policies: policy_names(&spec.policy_refs),
    }
}

fn freeze_inject(inject: &CrdInject) -> Inject {
    // The schema takes exactly one.
    if let Some(header) = &inject.header {
        let format = header.format.clone().unwrap_or_else(|| "{}".to_owned());
        return Inject::Header { name: header.name.clone(), format };
    }
    if let Some(basic) = &inject.basic {
        return Inject::Basic { username: basic.username.clone() };
    }
    if let Some(query) = &inject.query {
        return Inject::Query { name: query.name.clone() };
    }
    match &inject.oauth2_client_credentials {
        Some(client) => Inject::ClientCredentials(ClientCredentials {
            token_url: client.token_url.clone(),
            ca: client.tls.as_ref().map(freeze_tls),
            client_id: client.client_id.clone(),
            scopes: client.scopes.clone(),
            audience: client.audience.clone(),
            resource: client.resource.clone(),
            authentication: match client.client_authentication.unwrap_or_default() {
                CrdClientAuthentication::Header => ClientAuthentication::Header,
                CrdClientAuthentication::Body => ClientAuthentication::Body,
            },
        }),
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

fn positive(value: i32) -> u32 {
    value.unsigned_abs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::fixtures::{agent, credential, model, run, tool};

    fn parts(agent: Agent, model: Model, tools: Vec<Tool>, credentials: Vec<Credential>) -> Parts {
        Parts {
            agent: Arc::new(agent),
            model: Arc::new(model),
            fallbacks: vec![],
            tools: tools.into_iter().map(Arc::new).collect(),
            credentials: credentials.into_iter().map(Arc::new).collect(),
            policies: vec![],
            private_hosts: vec![],
            subagents: BTreeMap::new(),
            above: None,
        }
    }

    #[test]
    fn a_plan_names_the_policies_of_agent_tool_and_credential_and_holds_them() {
        let names = |names: &[&str]| names.iter().map(|name| NameRef::new(*name)).collect::<Vec<_>>();
        let mut agent = agent("triage", "writer", &[("github", &["list_issues"])]);
        let (mut github, mut key) = (tool("github", &["list_issues"]), credential("k"));
        agent.spec.policy_refs = names(&["b", "a"]);
        github.spec.policy_refs = names(&["a"]);
        key.spec.policy_refs = names(&["c"]);
        let by_name = |name: &str, from: &str| Named {
            subject: from.to_owned(),
            name: name.to_owned(),
            policy: Some(Arc::new(crate::fixtures::ready(crate::fixtures::policy(name, "{otherwise: Deny}")))),
        };
        let all = [by_name("b", "Agent"), by_name("a", "Agent"), by_name("a", "Tool"), by_name("c", "Credential")];
        let mut parts = parts(agent, model("writer", None), vec![github], vec![key]);
        parts.policies = gather_policies(&all, "triage").unwrap();
        let plan = freeze(&run("r", "triage"), &parts).unwrap();
        assert_eq!(plan.agent_policies, ["a", "b"]);
        assert_eq!(
            (&plan.tools[0].policies[..], &plan.credentials[0].policies[..]),
            (&["a".to_owned()][..], &["c".to_owned()][..])
        );
        let held: Vec<_> = plan.policies.iter().map(|p| (p.name.as_str(), p.generation, p.otherwise)).collect();
        let deny = belay_protocol::plan::Otherwise::Deny;
        assert_eq!(held, [("a", 1, deny), ("b", 1, deny), ("c", 1, deny)]);
    }

    #[test]
    fn a_plan_holds_what_model_and_agent_ask_of_each_answer() {
        let mut agent = agent("triage", "writer", &[]);
        let schema = serde_json::json!({"type": "object"});
        agent.spec.output_schema = Some(schema.clone());
        let mut writer = model("writer", None);
        writer.spec.reasoning = Some(ModelReasoning { effort: Some(ReasoningEffort::Low), budget_tokens: Some(2048) });
        writer.spec.headers = vec![belay_crds::ModelHeader { name: "X-Route".into(), value: "a".into() }];
        let plan = freeze(&run("nightly", "triage"), &parts(agent, writer, vec![], vec![])).unwrap();
        assert_eq!(plan.output_schema, Some(schema));
        let reasoning = Reasoning { effort: Some(Effort::Low), budget_tokens: Some(2048) };
        assert_eq!(plan.model.reasoning, Some(reasoning));
        assert_eq!(plan.model.headers, [PlanHeader { name: "X-Route".into(), value: "a".into() }]);
    }

    #[test]
    fn a_plan_names_the_authorities_that_models_and_tools_are_verified_by() {
        let tls = |name: &str| {
            Some(
                serde_json::from_value(serde_json::json!({"caConfigMapKeyRef": {"name": name, "key": "ca.crt"}}))
                    .unwrap(),
            )
        };
        let ca = |name: &str| Some(CaBundle { config_map: name.to_owned(), key: "ca.crt".to_owned() });
        let mut writer = model("writer", None);
        writer.spec.tls = tls("models");
        let (mut github, mut pets) = (tool("github", &["read"]), tool("pets", &["read"]));
        github.spec.mcp.as_mut().unwrap().tls = tls("tools");
        pets.spec.mcp = None;
        pets.spec.http = Some(
            serde_saphyr::from_str("{baseURL: 'https://x', operations: [{name: read, method: GET, path: /a}]}")
                .unwrap(),
        );
        pets.spec.http.as_mut().unwrap().tls = tls("tools");
        let agent = agent("triage", "writer", &[("github", &["*"]), ("pets", &["*"])]);
        let plan = freeze(&run("r", "triage"), &parts(agent, writer, vec![github, pets], vec![])).unwrap();
        assert_eq!(plan.model.ca, ca("models"));
        assert_eq!((&plan.tools[0].ca, &plan.tools[1].ca), (&ca("tools"), &ca("tools")));
        assert_eq!(plan.ca_bundles().len(), 2, "each is mounted once");
    }

    #[test]
    fn a_run_is_not_planned_without_a_policy_that_it_comes_under() {
        let named = |policy| [Named { subject: "Agent a: spec.policyRefs".into(), name: "p".into(), policy }];
        let missing = gather_policies(&named(None), "triage").unwrap_err();
        assert_eq!(
            missing,
            "Agent a: spec.policyRefs names ApprovalPolicy \"p\", which does not exist in namespace triage"
        );
        let bad = gather_policies(&named(Some(Arc::new(crate::fixtures::policy("p", "{}")))), "triage").unwrap_err();
        assert_eq!(bad, "Agent a: spec.policyRefs names what cannot be used: ApprovalPolicy \"p\" is not Ready yet");
    }

    #[test]
    fn a_run_with_a_limit_on_its_cost_is_not_planned_while_a_model_of_it_has_no_prices() {
        let limited = CrdLimits { cost_usd: Some(Usd::from_micro(500)), ..CrdLimits::default() };
        let priced = |name: &str| {
            let mut model = model(name, None);
            model.spec.prices_usd =
                Some(serde_json::from_value(serde_json::json!({"input": "1", "output": "2"})).unwrap());
            model
        };
        let planned = |model: Model, fallback: Model| {
            let mut parts = parts(agent("triage", "writer", &[]), model, vec![], vec![]);
            parts.fallbacks = vec![Arc::new(fallback)];
            let mut own = run("nightly", "triage");
            own.spec.limits = Some(limited.clone());
            let unlimited = freeze(&run("nightly", "triage"), &parts);
            assert!(unlimited.is_ok(), "{unlimited:?}");
            freeze(&own, &parts)
        };
        assert!(planned(priced("writer"), priced("second")).is_ok());
        assert_eq!(
            planned(priced("writer"), model("second", None)).unwrap_err(),
            "Agent triage: spec.limits.costUSD, of the Agent or of AgentRun nightly, cannot be kept: Model \"second\" has no \
             spec.pricesUSD; set it or remove the limit"
        );
        assert!(planned(model("writer", None), priced("second")).unwrap_err().contains("Model \"writer\" has no"));
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
            methods: vec![],
            path_prefixes: vec![],
            policies: vec![],
        };
        assert_eq!(plan.credentials, [expected]);
        assert!(plan.digest().is_ok());
    }

    #[test]
    fn a_plan_holds_every_way_in_which_a_key_may_be_sent() {
        let frozen = |spec: serde_json::Value| {
            let mut credential = credential("k");
            let whole = serde_json::json!({
                "secretKeyRef": {"name": "s", "key": "k"}, "hosts": ["a.example"], "inject": spec["inject"],
                "methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], "pathPrefixes": ["/v1"],
            });
            credential.spec = serde_json::from_value(whole).unwrap();
            freeze_credential(&credential)
        };
        let basic = frozen(serde_json::json!({"inject": {"basic": {"username": "ada"}}}));
        assert_eq!(basic.inject, Inject::Basic { username: "ada".to_owned() });
        assert_eq!(basic.methods, ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]);
        assert_eq!(basic.path_prefixes, ["/v1"]);
        let query = frozen(serde_json::json!({"inject": {"query": {"name": "key"}}}));
        assert_eq!(query.inject, Inject::Query { name: "key".to_owned() });
        let client = |more: serde_json::Value| {
            let mut client = serde_json::json!({"tokenURL": "https://login.example/token", "clientID": "belay"});
            client.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            frozen(serde_json::json!({"inject": {"oauth2ClientCredentials": client}})).inject
        };
        let expected = ClientCredentials {
            token_url: "https://login.example/token".to_owned(),
            ca: None,
            client_id: "belay".to_owned(),
            scopes: vec![],
            audience: None,
            resource: None,
            authentication: ClientAuthentication::Header,
        };
        assert_eq!(client(serde_json::json!({})), Inject::ClientCredentials(expected.clone()));
        let all = serde_json::json!({
            "scopes": ["read", "write"], "audience": "a", "resource": "r", "clientAuthentication": "Body",
            "tls": {"caConfigMapKeyRef": {"name": "corp", "key": "ca.crt"}},
        });
        let expected = ClientCredentials {
            scopes: vec!["read".to_owned(), "write".to_owned()],
            audience: Some("a".to_owned()),
            resource: Some("r".to_owned()),
            authentication: ClientAuthentication::Body,
            ca: Some(CaBundle { config_map: "corp".to_owned(), key: "ca.crt".to_owned() }),
            ..expected
        };
        assert_eq!(client(all), Inject::ClientCredentials(expected));
    }

    #[test]
    fn fallbacks_are_frozen_in_their_order_each_with_its_own_credential() {
        let mut parts = parts(agent("triage", "writer", &[]), model("writer", Some("k")), vec![], vec![]);
        parts.fallbacks = vec![Arc::new(model("second", Some("other"))), Arc::new(model("third", None))];
        let plan = freeze(&run("r", "triage"), &parts).unwrap();
        let models: Vec<_> = plan.models().map(|model| (model.name.as_str(), model.credential.as_deref())).collect();
        assert_eq!(models, [("writer", Some("k")), ("second", Some("other")), ("third", None)]);
    }

    #[test]
    fn a_plan_without_what_came_later_is_written_as_it_always_was() {
        let plan = freeze(&run("r", "triage"), &parts(agent("triage", "w", &[]), model("w", None), vec![], vec![]));
        let written = serde_json::to_value(plan.unwrap()).unwrap();
        let later = ["fallbacks", "inheritedPolicies"].map(|field| written.get(field));
        assert_eq!(later, [None, None], "older digests stay: {written:#}");
        let credential = serde_json::to_value(freeze_credential(&credential("k"))).unwrap();
        let later = ["methods", "pathPrefixes"].map(|field| credential.get(field));
        assert_eq!(later, [None, None], "older digests stay: {credential:#}");
    }

    #[test]
    fn every_wire_format_has_its_providers_address() {
        let url = |api: &str| {
            let mut model = model("m", None);
            model.spec.api = serde_json::from_value(serde_json::json!(api)).unwrap();
            freeze_model(&model).base_url
        };
        assert_eq!(url("Responses").as_deref(), Some("https://api.openai.com/v1"));
        assert_eq!(url("Messages").as_deref(), Some("https://api.anthropic.com/v1"));
    }
}
