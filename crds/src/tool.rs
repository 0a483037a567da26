//! Tool: a server or an HTTP API whose operations agents may call.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::Limits;
use crate::http_api::{Http, HttpSource};
use crate::refs::NameRef;
use crate::tls::Tls;

/// What is kept of a description or a schema; in characters.
const TEXT_MAX: usize = 4096;
/// Operations that status names although they are not offered.
pub const LEFT_OUT_MAX: usize = 32;
/// Operations in one question.
pub const CHANGES_MAX: usize = 128;

/// A tool server. Its operations are what MCP calls tools, or requests of an HTTP API; `status.operations` lists them
/// once an isolated probe pod has asked the server, or has read what describes the API. Or an Agent, whose one operation
/// is `run`.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "Tool",
    plural = "tools",
    singular = "tool",
    shortname = "bt",
    category = "belay",
    namespaced,
    status = "ToolStatus",
    derive = "PartialEq",
    printcolumn(name = "URL", type_ = "string", json_path = ".spec['mcp.url', 'http.baseURL', 'agent.agentRef.name']"),
    printcolumn(name = "OPERATIONS", type_ = "integer", json_path = ".status.operationCount"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = ("[has(self.mcp), has(self.http), has(self.agent)].exists_one(one, one)", "spec holds exactly one of mcp, http and agent"),
    validation = ("has(self.agent) == has(oldSelf.agent)", "spec.agent can be neither added nor taken away: create another Tool"),
    validation = ("!has(self.agent) || !has(self.callTimeoutSeconds)", "spec.callTimeoutSeconds is for mcp and http: a run of spec.agent ends by its limits")
)]
#[serde(rename_all = "camelCase")]
pub struct ToolSpec {
    /// A server that speaks MCP over streamable HTTP. Exactly one of `mcp`, `http` and `agent` is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Mcp>,
    /// An HTTP API: its operations are described by an OpenAPI document, or here. Exactly one of `mcp`, `http` and `agent`
    /// is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// Another Agent: each call of the one operation, `run`, is an AgentRun of it, which the operator starts. Exactly one of
    /// `mcp`, `http` and `agent` is required; it can be neither added to a Tool nor taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<ToolAgent>,
    /// How long one call may take before it counts as unknown. Default 60, 1 to 3600. Not with `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub call_timeout_seconds: Option<i32>,
    /// What calls do, as the Tool's author knows it; never taken from the server. Decides what becomes of a call
    /// without an answer: `None` and `Idempotent` ones are sent again, any other waits for a person. Default:
    /// every operation is `NonIdempotent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<ToolEffects>,
    /// ApprovalPolicies that judge every call of this Tool, whichever Agent makes it. At most 8, each named once.
    /// Default: none. May change; runs under way keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub policy_refs: Vec<NameRef>,
}

impl ToolSpec {
    /// The endpoint of the MCP server, or the base URL of the HTTP API.
    #[must_use]
    pub fn url(&self) -> &str {
        let mcp = self.mcp.as_ref().map(|mcp| mcp.url.as_str());
        mcp.or_else(|| self.http.as_ref().map(|http| http.base_url.as_str())).unwrap_or_default()
    }

    #[must_use]
    pub fn credential_ref(&self) -> Option<&NameRef> {
        let mcp = self.mcp.as_ref().and_then(|mcp| mcp.credential_ref.as_ref());
        mcp.or_else(|| self.http.as_ref().and_then(|http| http.credential_ref.as_ref()))
    }

    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        let mcp = self.mcp.as_ref().and_then(|mcp| mcp.tls.as_ref());
        mcp.or_else(|| self.http.as_ref().and_then(|http| http.tls.as_ref()))
    }

    /// Which of them it is, as its field is called.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (&self.agent, &self.http) {
            (Some(_), _) => "agent",
            (None, Some(_)) => "http",
            (None, None) => "mcp",
        }
    }
}

/// An Agent as a tool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolAgent {
    /// The Agent that each call starts a run of. Naming it needs the verb `use` on it (agents.decide.belay.dev). May
    /// change; runs under way keep theirs.
    pub agent_ref: NameRef,
    /// What the models of other Agents are told of it: what it is good for, and what its input has to say. 1 to 2048
    /// characters. Default: that it does what its input says and knows nothing of the conversation. May change; runs under
    /// way keep theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub description: Option<String>,
    /// Limits of each run that a call starts: the tightest of these, the Agent's own and what the calling run has left
    /// counts. Without `tokens` and `costUSD` here or on the Agent one run may take all that is left. Default: the
    /// Agent's. May change; runs under way keep theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// What calling an operation does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolEffects {
    /// For operations that are not named below. Default: `NonIdempotent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Effects>,
    /// By the operation's name, which need not be one that the server lists now. At most 256.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub operations: BTreeMap<String, Effects>,
}

/// What sending a call twice would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Effects {
    /// The operation only reads. A call without an answer is sent again.
    None,
    /// Sent twice with one key it has one effect. Every attempt carries the same key: of an MCP call in `_meta` under
    /// `belay.dev/idempotency-key`, of an HTTP request in the header `Idempotency-Key`.
    Idempotent,
    /// A call without an answer may have taken effect: a person says what became of it.
    #[default]
    NonIdempotent,
}

/// An MCP server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("!has(self.tls) || self.url.startsWith('https://')", "spec.mcp.tls is for an https url"))]
#[serde(rename_all = "camelCase")]
pub struct Mcp {
    /// The server's endpoint, such as `http://everything.tools.svc:3001/mcp`. An http or https URL without user,
    /// query or fragment, at most 2048 characters.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"))]
    pub url: String,
    /// The Credential that requests carry. Naming one needs the verb `use` on it
    /// (credentials.decide.belay.dev). Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_ref: Option<NameRef>,
    /// Which authorities may vouch for the server. For https alone. Default: the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// What a probe pod found out about the server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolStatus {
    /// The accepted definitions: what the server offered when it was first asked, and what people accepted since.
    /// Agents may list these, and runs are planned with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub operations: Vec<ToolOperation>,
    /// How many operations that are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_count: Option<i32>,
    /// The `spec.mcp` by which they were accepted. Where another one is set, what is there is accepted anew, without
    /// asking people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_from: Option<Mcp>,
    /// The `spec.http` by which they were accepted. Where another one is set, what is there is accepted anew, without
    /// asking people: an edit of the Tool is its author's word. A document that changes is asked about.
    #[serde(default, rename = "acceptedFromHTTP", skip_serializing_if = "Option::is_none")]
    pub accepted_from_http: Option<HttpSource>,
    /// What was there and is not offered to anyone, with the reason. At most 32; those after them in the alphabet are
    /// not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = LEFT_OUT_MAX), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub left_out: Vec<LeftOutOperation>,
    /// When people last accepted something, and who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
    /// What the server offered otherwise than it was accepted, when it was last asked. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<ToolDrift>,
    /// Set where the server changes what it offers while people are asked about it, and until they decide. Absent: it does
    /// not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrest: Option<Unrest>,
    /// When the probe pod was started that last listed the operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_at: Option<MicroTime>,
    /// Ready, Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// An operation that cannot be offered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct LeftOutOperation {
    /// The operation's name as the server or the document spells it.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Why: its schema cannot be checked, its request cannot be sent, or its definition holds a value of the Tool's
    /// Credential. At most 512 characters. Untrusted.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// An operation as its server defines it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ToolOperation {
    /// The operation's name as the server spells it. At most 128 characters; longer ones cannot be used.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// SHA-256 over name, description and input schema, and for an HTTP API over method, path template, base URL and the
    /// places of its parameters: what a run compares with.
    #[schemars(length(max = 128))]
    pub digest: String,
    /// What the server says of it, or the beginning of that: at most 4096 characters, and less where a server offers
    /// much. Untrusted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = TEXT_MAX))]
    pub description: String,
    /// The JSON Schema of its arguments, as canonical JSON (RFC 8785). Untrusted. Absent where it is longer than 4096
    /// bytes, or where this Tool's texts together would be longer than 256 KiB.
    #[serde(default, rename = "inputSchema", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = TEXT_MAX))]
    pub input_schema: Option<String>,
}

/// What differs, and what people say to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolDrift {
    /// SHA-256 over names, changes and digests of all that differs: another one is asked about anew.
    #[schemars(length(max = 128))]
    pub digest: String,
    /// What differs, at most 128 operations; those after them in the alphabet are asked about next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = CHANGES_MAX), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub operations: Vec<DriftedOperation>,
    /// How many more differ. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<i32>,
    /// The Approval that asks people to accept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<DriftQuestion>,
    /// Who said no. It is asked about again once the server offers something else, or the Tool's spec changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<DriftRefusal>,
}

/// A server that changes what it offers while people are asked: the next question waits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Unrest {
    /// Questions in a row that were closed undecided since the server had changed again. Counted anew after a week without
    /// one.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub questions: i32,
    /// When the newest was closed. The first change is asked about at once; after the second people are asked a minute
    /// after this time, then at doubling intervals up to a day.
    pub at: Time,
}

/// One operation that is not offered as it was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriftedOperation {
    /// The operation's name as the server spells it.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// How it differs.
    pub change: Change,
    /// Digest of the definition that is offered. Absent on one that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub digest: Option<String>,
    /// What the server says of it now; as in `operations`. Untrusted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = TEXT_MAX))]
    pub description: String,
    /// The schema of its arguments that is offered; as in `operations`. Untrusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = TEXT_MAX))]
    pub input_schema: Option<String>,
    /// Line by line, `-` what was accepted and `+` what is offered, with hidden characters spelled out. At most 4096
    /// characters; `belay tool accept` shows all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = TEXT_MAX))]
    pub diff: String,
}

/// How an operation differs from what was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Change {
    /// Its description or the schema of its arguments is another one.
    Changed,
    /// It is not offered any more.
    Removed,
    /// It was not there when the others were accepted. No Agent can list it before it is.
    Added,
}

/// The question to people: written before its Approval is made, and by which its decisions are checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriftQuestion {
    /// Name of the Approval.
    #[schemars(length(min = 1, max = 253))]
    pub approval: String,
    /// Its uid, once it exists: decisions count on that one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// `spec.request.nonce` of it.
    #[schemars(length(min = 1, max = 64))]
    pub nonce: String,
    /// `spec.request.digest` of it.
    #[schemars(length(min = 1, max = 128))]
    pub digest: String,
    /// When it runs out; then it is asked anew.
    pub expires_at: Time,
    /// The admission rules under which it was put: decisions count under those alone.
    pub guard: QuestionGuard,
}

/// The policy and the binding `belay-approvals`, as they were when people were asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuestionGuard {
    /// uid of the `ValidatingAdmissionPolicy`.
    #[schemars(length(max = 64))]
    pub policy_uid: String,
    /// Its generation.
    pub policy_generation: i64,
    /// uid of the `ValidatingAdmissionPolicyBinding`.
    #[schemars(length(max = 64))]
    pub binding_uid: String,
    /// Its generation.
    pub binding_generation: i64,
}

/// A no.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct DriftRefusal {
    /// Who said it.
    #[schemars(length(max = 512))]
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// The sealed Approval.
    #[schemars(length(max = 253))]
    pub approval: String,
    /// The Tool's `metadata.generation` at that time.
    pub generation: i64,
}

/// People's yes to what a server offers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Acceptance {
    /// The sealed Approval.
    #[schemars(length(max = 253))]
    pub approval: String,
    /// Who said yes.
    #[schemars(length(max = 24), inner(length(max = 512)))]
    pub by: Vec<String>,
    /// When the operator took it.
    pub at: Time,
}
