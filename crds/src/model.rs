//! Model: which model answers, where, and what it costs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::money::Usd;
use crate::refs::NameRef;
use crate::tls::Tls;

/// A language model that Agents of this namespace may use.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "Model",
    plural = "models",
    singular = "model",
    shortname = "bm",
    category = "belay",
    namespaced,
    status = "ModelStatus",
    derive = "PartialEq",
    printcolumn(name = "API", type_ = "string", json_path = ".spec.api"),
    printcolumn(name = "MODEL", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = ("(self.api == 'Scripted') == has(self.scripted)", "spec.scripted is for api Scripted, and api Scripted needs it"),
    validation = ("self.api != 'Scripted' || (!has(self.baseURL) && !has(self.credentialRef))", "a Scripted model is played by the runner: it takes neither spec.baseURL nor spec.credentialRef"),
    validation = ("self.api != 'Messages' || has(self.maxOutputTokens)", "api Messages sends the longest answer with every request: set spec.maxOutputTokens"),
    validation = ("self.api != 'Scripted' || (!has(self.reasoning) && !has(self.headers))", "a Scripted model is played by the runner: it takes neither spec.reasoning nor spec.headers"),
    validation = ("self.api != 'Scripted' || !(has(self.temperature) || has(self.contextWindowTokens) || has(self.maxOutputTokens) || (has(self.rateLimits) && has(self.rateLimits.tokensPerMinute)) || (has(self.timeouts) && (has(self.timeouts.connectSeconds) || has(self.timeouts.firstByteSeconds) || has(self.timeouts.idleSeconds))))", "a Scripted model has neither tokens nor a server: it takes no spec.temperature, contextWindowTokens, maxOutputTokens or rateLimits.tokensPerMinute, and of spec.timeouts totalSeconds alone"),
    validation = ("!has(self.tls) || (self.api != 'Scripted' && (!has(self.baseURL) || self.baseURL.startsWith('https://')))", "spec.tls is for an https spec.baseURL, and not for api Scripted"),
    validation = ("!has(self.reasoning) || !has(self.reasoning.budgetTokens) || (self.api == 'Messages' && has(self.maxOutputTokens) && self.reasoning.budgetTokens < self.maxOutputTokens)", "spec.reasoning.budgetTokens is for api Messages, and less than spec.maxOutputTokens"),
    validation = ("self.api != 'Messages' || !has(self.reasoning) || !has(self.reasoning.effort) || self.reasoning.effort != 'Minimal'", "api Messages knows no spec.reasoning.effort Minimal: use Low"),
    validation = ("self.api != 'Messages' || !has(self.temperature) || self.temperature <= 1.0", "spec.temperature is at most 1 for api Messages")
)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// The wire format that the provider speaks: `ChatCompletions`, `Responses` (OpenAI's newer one), `Messages`
    /// (Anthropic's), or `Scripted`, which plays `scripted.turns` without any provider. May change; runs under way
    /// keep theirs.
    pub api: ModelApi,
    /// Who serves the model, for telemetry only, such as `openai`. At most 63 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub provider: Option<String>,
    /// The model's id as the provider spells it. At most 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// Where the API is served, up to and including its version, such as `https://gateway.example/v1`. An http
    /// or https URL without user, query or fragment, at most 2048 characters. Default: the public endpoint of
    /// the wire format's own provider. Not for api Scripted.
    #[serde(default, rename = "baseURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"))]
    pub base_url: Option<String>,
    /// Which authorities may vouch for the server at `baseURL`. For https alone, not for api Scripted. Default: the public
    /// ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The Credential that requests carry. Naming one needs the verb `use` on it
    /// (credentials.decide.belay.dev). Default: none is sent. Not for api Scripted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_ref: Option<NameRef>,
    /// How many tokens a request and its answer may hold together. A run whose conversation outgrows it ends.
    /// 1 to 100000000. Not for api Scripted. Default: what the provider says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub context_window_tokens: Option<i64>,
    /// The longest answer, sent with each request; also what a request reserves of the run's token limit.
    /// 1 to 10000000. Required by api Messages. Not for api Scripted. Default: the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_output_tokens: Option<i64>,
    /// Sampling temperature, 0 to 2; for api Messages at most 1. Not for api Scripted. Default: the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f64>,
    /// Whether and how much the model reasons before it answers. Not for api Scripted. Default: as its provider has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<ModelReasoning>,
    /// Headers that every request carries beside those of the wire format, such as a gateway's routing or a provider's
    /// beta. They are no place for secrets: whoever reads the Model or a journal sees them; a key belongs into a
    /// Credential. At most 16, each named once; none that frames a request or says who sends it. Not for api Scripted.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers: Vec<ModelHeader>,
    /// What a million tokens cost in US dollars. Without it the cost of a run is unknown, and a `costUSD`
    /// limit cannot be kept.
    #[serde(default, rename = "pricesUSD", skip_serializing_if = "Option::is_none")]
    pub prices_usd: Option<PricesUsd>,
    /// How long the parts of a request may take; each has a default. For api Scripted `totalSeconds` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<ModelTimeouts>,
    /// What all runs of this namespace may ask of this Model together, so that many runs do not storm one key. What is
    /// over a limit waits its turn, in order, and counts as active time of its run. May change, and counts for every
    /// later request of runs under way too. Without it nothing is held back but what the provider itself refused
    /// (429, `Retry-After`): then every run of the Model waits, 5 minutes at most. Default: no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<ModelRateLimits>,
    /// Models that are asked in this one's place, in their order, once it fails for good: its attempts are used up,
    /// or it fails in a way that asking again cannot mend. A run never goes back to a model that it gave up. Each
    /// has its own Credential, prices and time-outs; their own `fallbackRefs` are not followed. At most 4, none of
    /// them this Model. Naming one needs the verb `use` on it (models.decide.belay.dev). Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub fallback_refs: Vec<NameRef>,
    /// The answers of a Scripted model: required by api Scripted, refused by every other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scripted: Option<Script>,
}

/// Wire formats that this version speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ModelApi {
    ChatCompletions,
    Responses,
    Messages,
    Scripted,
}

/// US dollars for a million tokens, as exact decimal strings such as "3.00", with at most six digits after the
/// point.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PricesUsd {
    /// Input that was not cached. Required.
    pub input: Usd,
    /// Input that the provider had cached. Default: the price of input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<Usd>,
    /// Input that the provider writes to its cache, where it reports that. Default: the price of input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<Usd>,
    /// Output, reasoning included. Required.
    pub output: Usd,
}

/// Bounds in seconds; what is absent has the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelTimeouts {
    /// Until the connection stands. Default 10, 1 to 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 300))]
    pub connect_seconds: Option<i32>,
    /// Until the first byte of the answer. Default 120, 1 to 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub first_byte_seconds: Option<i32>,
    /// Between two pieces of the answer. Default 60, 1 to 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub idle_seconds: Option<i32>,
    /// The whole request. Default 600, 1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub total_seconds: Option<i32>,
}

/// How much a model reasons; what is absent is the provider's.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("!has(self.budgetTokens) || !has(self.effort) || self.effort != 'None'", "spec.reasoning.budgetTokens is for models that reason: leave it out, or effort None"))]
#[serde(rename_all = "camelCase")]
pub struct ModelReasoning {
    /// `None` (not at all), `Minimal`, `Low`, `Medium` or `High`, as far as the model knows them; api Messages has no
    /// `Minimal`. Default: the provider's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<ReasoningEffort>,
    /// Tokens of an answer that may go into reasoning, for models of api Messages that take a budget. 1024 to 10000000,
    /// and less than `maxOutputTokens`. Default: no budget of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 10_000_000))]
    pub budget_tokens: Option<i64>,
}

/// How much a model reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
}

/// A header of every request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ModelHeader {
    /// Letters, digits and `-`, 1 to 64 of them. Not a header that frames the request (`Content-Length`, `Host` and
    /// others), nor one that the wire format sends, nor one that says who sends it: all that begin with `Proxy-`, and
    /// all whose names hold `auth`, `token`, `key`, `secret`, `password`, `cookie`, `session` or `credential`. The name
    /// `portkey` is no `key`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9]*$"))]
    #[x_kube(validation = ("!(self.lowerAscii() in ['accept', 'accept-encoding', 'anthropic-version', 'connection', 'content-encoding', 'content-length', 'content-type', 'expect', 'host', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().replace('portkey', '').matches('auth|token|key|secret|password|cookie|session|credential')", "spec.headers may neither frame a request nor say who sends it, and whoever reads the Model sees them: put a key into a Secret, and name its Credential in spec.credentialRef"))]
    pub name: String,
    /// Its value: 1 to 1024 printable characters of ASCII.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"))]
    pub value: String,
}

/// Limits that all runs of a Model share; what is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRateLimits {
    /// Requests in any 60 seconds, failed ones included. 1 to 1000000. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests_per_minute: Option<i64>,
    /// Tokens in any 60 seconds, input and output: what a request may take at most until its answer says what it
    /// took. A single request that is larger goes where nothing else counts. 1 to 100000000000. Not for api Scripted.
    /// Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000_000_i64))]
    pub tokens_per_minute: Option<i64>,
    /// Requests that are under way at one time. 1 to 10000. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrent_requests: Option<i32>,
}

/// What a Scripted model answers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct Script {
    /// One answer a step, in order. 1 to 1000; a run that asks for one more fails.
    #[schemars(length(min = 1, max = 1000))]
    pub turns: Vec<ScriptTurn>,
}

/// One answer of a Scripted model.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScriptTurn {
    /// What the model says. At most 65536 characters. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub text: Option<String>,
    /// The calls that it asks for. At most 16; with none, the run ends with `text` as its output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tool_calls: Vec<ScriptCall>,
    /// Makes the request fail with this message instead. 1 to 1024 characters. Default: it succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub error: Option<String>,
    /// How long the model thinks before it answers. Default 0, at most 600000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 600_000))]
    pub delay_milliseconds: Option<i32>,
}

/// A call that a Scripted model asks for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct ScriptCall {
    /// Name of the Tool, as the Agent lists it. 1 to 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub tool: String,
    /// Name of the Tool's operation. 1 to 128 characters.
    #[schemars(length(min = 1, max = 128))]
    pub operation: String,
    /// The arguments, an object of whatever fields the operation takes. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub args: Option<serde_json::Value>,
}

/// What the operator found out about the Model.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// Ready, Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
