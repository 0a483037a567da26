//! Agent: a model, instructions, tools and limits.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::money::Usd;
use crate::refs::NameRef;

/// What an agent is and may do. Naming Models and Tools needs the verb `use` on them; so does starting a run
/// of the Agent. ApprovalPolicies say which calls are allowed, asked or denied; where none has a say, those with effects
/// `None` are allowed and all others asked.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "Agent",
    plural = "agents",
    singular = "agent",
    shortname = "bagent",
    category = "belay",
    namespaced,
    status = "AgentStatus",
    derive = "PartialEq",
    printcolumn(name = "MODEL", type_ = "string", json_path = ".spec.modelRef.name"),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// The Model that answers. Naming it needs the verb `use` on it (models.decide.belay.dev). May change; runs
    /// under way keep theirs.
    pub model_ref: NameRef,
    /// What the agent is told before every run's input. At most 65536 characters. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub instructions: Option<String>,
    /// The JSON Schema that the last answer of every run has to fit: the run's output is JSON then. An object (its type
    /// is `object`), at most 16384 bytes as JSON and 32 levels deep; a `$ref` leads to the schema itself. It is asked of
    /// the model in its provider's own way; an answer that does not fit is told so and asked again, twice, and then
    /// the run fails. Providers hold their models to it where every object lists all its properties as `required` and
    /// sets `additionalProperties: false`; api Messages takes no other. Default: any text. May change; runs under way
    /// keep theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::any_object")]
    pub output_schema: Option<serde_json::Value>,
    /// The Tools it may call, and which of their operations; everything else is denied. At most 32, each
    /// named once. Naming one needs the verb `use` on it (tools.decide.belay.dev). Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub tools: Vec<AgentTool>,
    /// ApprovalPolicies that judge every call of its runs, besides those that its Tools and their Credentials name:
    /// they can add to what those decide, never loosen it. At most 8, each named once; a call is judged by at most 8
    /// altogether. Default: none. May change; runs under way keep theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub policy_refs: Vec<NameRef>,
    /// Where a run ends at the latest; each limit has a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Runs of this Agent at one time; the rest wait in order. 1 to 1000. Default: the installation's
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_concurrent_runs: Option<i32>,
    /// The kill switch: withholds permits and new pods at once; runs wait. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// The pod that a run gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<AgentPod>,
}

/// A Tool and what of it the agent may call.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AgentTool {
    /// Name of the Tool, in this namespace. At most 253 characters.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// 1 to 128 operations of that Tool, each listed once, 1 to 128 characters long; `['*']` alone means those
    /// that it had when the run was accepted.
    #[schemars(length(min = 1, max = 128), inner(length(min = 1, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = ("!self.exists(o, o == '*') || self.size() == 1", "'*' stands alone: it means every operation"))]
    pub operations: Vec<String>,
    /// What becomes of runs while the server defines one of these operations otherwise than it was accepted, or does not
    /// offer it any more. Default `Wait`. May change; runs under way keep theirs.
    #[serde(default, rename = "onDrift", skip_serializing_if = "Option::is_none")]
    pub on_drift: Option<OnDrift>,
}

/// What a run does without the definition that it was planned with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OnDrift {
    /// It waits, without asking its model and in time without a pod, until people accept what the server offers, or the
    /// server offers again what was accepted; `limits.waitSeconds` at most. A new run waits before it starts.
    #[default]
    Wait,
    /// It goes on without that operation, which is not offered to the model; calls to it are denied.
    Continue,
}

/// Where a run ends at the latest. What is absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Answers of the model. Default 50, 1 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: Option<i32>,
    /// Input, cached included, plus output tokens. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub tokens: Option<i64>,
    /// US dollars, such as "2.00". Needs `pricesUSD` on the Model. Default: no limit.
    #[serde(default, rename = "costUSD", skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<Usd>,
    /// Seconds with a live pod. Default 1800, 1 to 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub active_seconds: Option<i32>,
    /// Seconds that one wait may last. Default 604800 (7 days), 1 to 31536000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub wait_seconds: Option<i32>,
}

/// What may be chosen of the pod that a run gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct AgentPod {
    /// What the runner container asks for and may use of cpu and memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<PodResources>,
}

/// Quantities of `cpu` and `memory`; nothing else is taken.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = ("!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || quantity(self.requests[k]).compareTo(quantity(self.limits[k])) <= 0)", "spec.pod.resources.requests may not exceed the limits"))]
pub struct PodResources {
    /// What the scheduler sets aside. Default cpu 10m, memory 24Mi, and never more than the limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub requests: BTreeMap<String, String>,
    /// What the container may use at most. Default memory 128Mi, cpu unlimited.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub limits: BTreeMap<String, String>,
}

/// Whether every reference of the Agent resolves.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Ready, Reconciling and Stalled as kstatus reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
