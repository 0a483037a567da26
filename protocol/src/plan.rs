//! The frozen plan of a run: every reference resolved when the run was accepted, digested, and never
//! changed afterwards, but for definitions that people accepted meanwhile ([`crate::fold`]). The operator makes it, the
//! runner follows it, the gate decides by it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cost::Prices;
use crate::digest::{Digest, DigestError, digest_of};
use crate::grant::GrantTerms;

/// Version of the plan's shape that this build writes and reads.
pub const PLAN_VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub version: u32,
    pub run: ObjectId,
    pub agent: ObjectId,
    pub agent_generation: i64,
    /// Who created the run, where admission vouched for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instructions: String,
    pub input: String,
    pub model: PlanModel,
    /// Models that are asked where the one before them is given up, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<PlanModel>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<PlanTool>,
    /// Every credential that the model or a tool names, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<PlanCredential>,
    /// Every policy that the Agent, a tool, a credential or a run above names, by name, as it was when the plan was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PlanPolicy>,
    /// Names of those that the Agent names: they judge every call of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agent_policies: Vec<String>,
    /// Names of those that the Agents of the runs above name: they judge every call of this run too, and allow none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherited_policies: Vec<String>,
    /// What the installation lets this run reach at private addresses, beside Services of its own namespace: names of
    /// other Services (`NAME.NAMESPACE.svc`), host names, addresses. See [`crate::network`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_hosts: Vec<String>,
    pub limits: Limits,
    /// The JSON Schema that the run's last answer has to fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// The run whose call this one carries out. Absent: people, or what they set up, started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PlanParent>,
}

/// Whose call a run carries out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanParent {
    pub run: ObjectId,
    pub call_id: String,
    /// How many runs are above this one: at least 1.
    pub depth: u32,
}

/// An object of the cluster, for good: a name may be given again, a uid never is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectId {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelApi {
    ChatCompletions,
    Responses,
    Messages,
    Scripted,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanModel {
    pub name: String,
    pub api: ModelApi,
    /// For telemetry only; never decides anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    pub model: String,
    /// Ends without a slash; absent for a scripted model alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Who may vouch for that server instead of the public authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaBundle>,
    /// Name of one of the plan's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_window_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<Prices>,
    pub timeouts: Timeouts,
    /// Whether and how much the model is to reason before it answers; absent: as its provider has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Reasoning>,
    /// Sent with every request beside those of the wire format; no secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<PlanHeader>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<ScriptedTurn>,
}

/// Certificates of authorities in PEM, in a ConfigMap's key that the kubelet mounts ([`crate::AUTHORITIES_DIR`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaBundle {
    pub config_map: String,
    pub key: String,
}

/// How much a model reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reasoning {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Tokens that it may spend on reasoning, of those of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
}

/// A header that a Model wants sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanHeader {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    pub connect_seconds: u32,
    pub first_byte_seconds: u32,
    pub idle_seconds: u32,
    pub total_seconds: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect_seconds: 10, first_byte_seconds: 120, idle_seconds: 60, total_seconds: 600 }
    }
}

/// One answer of a scripted model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScriptedTurn {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ScriptedCall>,
    /// When present the request fails with this message instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default)]
    pub delay_milliseconds: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScriptedCall {
    pub tool: String,
    pub operation: String,
    #[serde(default)]
    pub args: Value,
}

/// A tool server and what of it the Agent listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanTool {
    pub name: String,
    pub uid: String,
    /// The endpoint of an MCP server, or what the paths of an HTTP API's operations follow. Of an Agent, what its calls are
    /// bound to ([`crate::subagent::destination`]): nobody requests it.
    pub url: String,
    /// Who may vouch for that server instead of the public authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaBundle>,
    /// Where the operations of an HTTP API are described. Absent: it is an MCP server, which says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpOperations>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    pub call_timeout_seconds: u32,
    pub operations: Vec<PlanOperation>,
    /// Names of the plan's policies that judge every call of this tool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// What the run does where the server offers an operation otherwise than it was accepted. Left out where it is the
    /// default, so that digests of older plans stay what they are.
    #[serde(default, skip_serializing_if = "OnDrift::is_default")]
    pub on_drift: OnDrift,
    /// The Agent that carries out its calls. Absent: its server does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<PlanAgent>,
}

/// An Agent as a tool: each call is a run of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanAgent {
    pub name: String,
    /// What the model is told of it.
    pub description: String,
    /// The tighter of the Agent's own and the Tool's.
    pub limits: Limits,
    /// Whether what its runs cost can be known.
    pub priced: bool,
}

/// Where the operations of an HTTP API are described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HttpOperations {
    /// In an OpenAPI document that the kubelet mounts ([`crate::DOCUMENTS_DIR`]).
    #[serde(rename_all = "camelCase")]
    Document {
        config_map: String,
        key: String,
        /// The operationIds that count; empty: all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        only: Vec<String>,
    },
    Inline(Vec<InlineOperation>),
}

/// An operation of an HTTP API that the Tool itself describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InlineOperation {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub method: String,
    /// Holds `{argument}` where an argument's value goes.
    pub path: String,
    /// Names of arguments that are sent as query parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<String>,
    /// Arguments that are sent as headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<InlineHeader>,
    /// Name of the argument that is sent as a JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The JSON Schema of the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InlineHeader {
    pub name: String,
    pub argument: String,
}

/// What a run does without the definition that it was planned with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDrift {
    /// It waits until people accept what the server offers, or the server is back at what was accepted.
    Wait,
    /// It goes on without the operation: not offered to the model, and denied. What plans without the field meant.
    #[default]
    Continue,
}

impl OnDrift {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like that")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanOperation {
    pub name: String,
    /// The name under which the model sees it: see [`crate::call::model_name`].
    pub model_name: String,
    /// Digest of the definition that was accepted when the plan was made.
    pub definition: Digest,
    /// What the Tool's author says a call does. Left out where it is the default, so that digests of older
    /// plans stay what they are.
    #[serde(default, skip_serializing_if = "Effects::is_default")]
    pub effects: Effects,
    /// People accepted that its server does not offer it any more: it is neither waited for nor called.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// What sending a call twice would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effects {
    /// It only reads.
    None,
    /// Sent twice with one key it has one effect.
    Idempotent,
    #[default]
    NonIdempotent,
}

impl Effects {
    /// Whether a call without an answer may be sent again.
    #[must_use]
    pub fn may_repeat(self) -> bool {
        match self {
            Self::None | Self::Idempotent => true,
            Self::NonIdempotent => false,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like that")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a credential reaches a request, and where it may go. Never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanCredential {
    pub name: String,
    pub uid: String,
    pub secret_name: String,
    pub secret_key: String,
    pub inject: Inject,
    /// Exact host names, or one leading wildcard label (`*.example.com`).
    pub hosts: Vec<String>,
    /// Methods with which it may be sent, in upper case. Empty: every one; left out then, so that digests of older plans
    /// stay what they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths below which it may be sent. Empty: every one; left out likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path_prefixes: Vec<String>,
    /// Names of the plan's policies that judge every call that uses this credential.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
}

impl PlanCredential {
    /// Where its value is exchanged for tokens, if it is.
    #[must_use]
    pub fn token_url(&self) -> Option<&str> {
        match &self.inject {
            Inject::ClientCredentials(client) => Some(&client.token_url),
            Inject::Bearer {} | Inject::Header { .. } | Inject::Basic { .. } | Inject::Query { .. } => None,
        }
    }

    /// Who may vouch for the endpoint of its tokens, if not the public authorities.
    #[must_use]
    pub fn ca(&self) -> Option<&CaBundle> {
        match &self.inject {
            Inject::ClientCredentials(client) => client.ca.as_ref(),
            Inject::Bearer {} | Inject::Header { .. } | Inject::Basic { .. } | Inject::Query { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inject {
    /// `Authorization: Bearer <value>`.
    Bearer {},
    /// The header `name` with `format`, in which `{}` stands for the value.
    Header { name: String, format: String },
    /// `Authorization: Basic ..`, with the value as the password.
    Basic { username: String },
    /// The query parameter `name`.
    Query { name: String },
    /// `Authorization: Bearer <token>`, with a token that the value is exchanged for.
    #[serde(rename = "oauth2ClientCredentials")]
    ClientCredentials(ClientCredentials),
}

/// How a token is asked for (RFC 6749, section 4.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientCredentials {
    pub token_url: String,
    /// Who may vouch for the token endpoint instead of the public authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaBundle>,
    pub client_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// RFC 8707.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    pub authentication: ClientAuthentication,
}

/// Where the client's id and secret stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientAuthentication {
    Header,
    Body,
}

/// An ApprovalPolicy as it was when the plan was made. Order of rules never matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanPolicy {
    pub name: String,
    pub uid: String,
    pub generation: i64,
    pub mode: PolicyMode,
    /// What no rule matches.
    pub otherwise: Otherwise,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PlanRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyMode {
    Enforce,
    /// It is recorded what the policy would have said; it counts as absent.
    Audit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Otherwise {
    Ask,
    Deny,
    Abstain,
}

/// Matches a call when every condition that is there holds; an empty list is no condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanRule {
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<Effects>,
    /// CEL over `tool, operation, args, agent, run, effects, spend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    pub action: RuleAction,
    /// Of an `Ask`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<AskTerms>,
    /// Of a `Deny`: what the model is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleAction {
    Allow,
    Ask,
    Deny,
}

/// How people are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskTerms {
    /// How many different people.
    pub quorum: u32,
    /// Whether whoever created the run may not be one of them.
    pub separation_of_duty: bool,
    pub expires_after_seconds: u32,
    /// Whether people may allow more than the one call; absent: not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<GrantTerms>,
}

impl Default for AskTerms {
    /// Those of the built-in policy `default` (design section 5).
    fn default() -> Self {
        Self { quorum: 1, separation_of_duty: false, expires_after_seconds: 86_400, grants: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Model requests that were answered.
    pub steps: u32,
    /// Input, cached included, plus output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_micro_usd: Option<u64>,
    /// Time with a live pod.
    pub active_seconds: u32,
    /// The longest single wait.
    pub wait_seconds: u32,
}

impl Limits {
    /// The tighter of both, limit by limit.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self {
            steps: self.steps.min(other.steps),
            tokens: tighter(self.tokens, other.tokens),
            cost_micro_usd: tighter(self.cost_micro_usd, other.cost_micro_usd),
            active_seconds: self.active_seconds.min(other.active_seconds),
            wait_seconds: self.wait_seconds.min(other.wait_seconds),
        }
    }
}

/// What is absent limits nothing.
pub fn tighter<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Plan {
    /// The digest that status, journal and permits refer to.
    pub fn digest(&self) -> Result<Digest, DigestError> {
        digest_of(self)
    }

    /// The model of this run and its fallbacks, in the order in which they are asked.
    pub fn models(&self) -> impl Iterator<Item = &PlanModel> {
        std::iter::once(&self.model).chain(&self.fallbacks)
    }

    /// Every URL that the run may request.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        let models = self.models().filter_map(|model| model.base_url.as_deref());
        let tools = self.tools.iter().filter(|tool| tool.agent.is_none()).map(|tool| tool.url.as_str());
        models.chain(tools).chain(self.credentials.iter().filter_map(PlanCredential::token_url))
    }

    /// Every bundle of authorities that some destination of the run is verified by, each once.
    #[must_use]
    pub fn ca_bundles(&self) -> BTreeSet<&CaBundle> {
        let models = self.models().filter_map(|model| model.ca.as_ref());
        let tools = self.tools.iter().filter_map(|tool| tool.ca.as_ref());
        models.chain(tools).chain(self.credentials.iter().filter_map(PlanCredential::ca)).collect()
    }

    /// The model after so many were given up; the last one where there are not that many.
    #[must_use]
    pub fn model_after(&self, given_up: usize) -> &PlanModel {
        self.models().nth(given_up).or(self.fallbacks.last()).unwrap_or(&self.model)
    }

    /// Whether what the run costs can be known, whichever of its models answers.
    #[must_use]
    pub fn is_priced(&self) -> bool {
        self.models().all(|model| model.prices.is_some())
    }

    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&PlanTool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    #[must_use]
    pub fn policy(&self, name: &str) -> Option<&PlanPolicy> {
        self.policies.iter().find(|policy| policy.name == name)
    }

    /// The names of all policies that judge a call of this tool, each once, sorted.
    #[must_use]
    pub fn policies_of<'a>(&'a self, tool: &str) -> BTreeSet<&'a str> {
        let inherited = self.inherited_policies.iter().map(String::as_str);
        self.own_policies_of(tool).into_iter().chain(inherited).collect()
    }

    /// Likewise, without those that only the runs above brought: what these allow is allowed to nobody.
    #[must_use]
    pub fn own_policies_of<'a>(&'a self, tool: &str) -> BTreeSet<&'a str> {
        let tool = self.tool(tool);
        let credential = tool.and_then(|tool| tool.credential.as_deref()).and_then(|name| self.credential(name));
        let tools = tool.into_iter().flat_map(|tool| &tool.policies);
        let credentials = credential.into_iter().flat_map(|credential| &credential.policies);
        self.agent_policies.iter().chain(tools).chain(credentials).map(String::as_str).collect()
    }

    #[must_use]
    pub fn credential(&self, name: &str) -> Option<&PlanCredential> {
        self.credentials.iter().find(|credential| credential.name == name)
    }

    /// What the operation does; one that the plan does not list counts as the worst.
    #[must_use]
    pub fn effects(&self, tool: &str, operation: &str) -> Effects {
        let operation = self.tool(tool).and_then(|tool| tool.operation(operation));
        operation.map_or_else(Effects::default, |operation| operation.effects)
    }

    /// The tool and operation that the model means by `name`.
    #[must_use]
    pub fn by_model_name(&self, name: &str) -> Option<(&PlanTool, &PlanOperation)> {
        self.tools.iter().find_map(|tool| {
            let operation = tool.operations.iter().find(|operation| operation.model_name == name)?;
            Some((tool, operation))
        })
    }
}

impl PlanTool {
    #[must_use]
    pub fn operation(&self, name: &str) -> Option<&PlanOperation> {
        self.operations.iter().find(|operation| operation.name == name)
    }
}
