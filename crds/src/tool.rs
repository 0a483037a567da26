//! Tool: a server whose operations agents may call.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::NameRef;

/// A tool server. Its operations are what MCP calls tools; `status.operations` lists them once an isolated
/// probe pod has asked the server.
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
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.mcp.url"),
    printcolumn(name = "OPERATIONS", type_ = "integer", json_path = ".status.operationCount"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ToolSpec {
    /// A server that speaks MCP over streamable HTTP. Required.
    pub mcp: Mcp,
    /// How long one call may take before it counts as unknown. Default 60, 1 to 3600.
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
    /// Sent twice with one key it has one effect. Every attempt carries the same key, in `_meta` under
    /// `belay.dev/idempotency-key`.
    Idempotent,
    /// A call without an answer may have taken effect: a person says what became of it.
    #[default]
    NonIdempotent,
}

/// An MCP server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
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
}

/// What a probe pod found out about the server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolStatus {
    /// What the server offered when it was last asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub operations: Vec<ToolOperation>,
    /// How many operations that are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_count: Option<i32>,
    /// Ready, Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// An operation as its server defines it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ToolOperation {
    /// The operation's name as the server spells it. At most 128 characters; longer ones cannot be used.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// SHA-256 over name, description and input schema: what a run compares with.
    #[schemars(length(max = 128))]
    pub digest: String,
    /// The beginning of what the server says of it, at most 1024 characters. Untrusted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub description: String,
}
