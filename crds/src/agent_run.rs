//! AgentRun: one run of an Agent, from Pending to its end.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::Limits;
use crate::money::Usd;
use crate::refs::NameRef;

/// A run of an Agent. Everything but `cancel` and `ttlSecondsAfterFinished` is fixed once it is created.
/// Creating one needs the verb `use` on the Agent (agents.decide.belay.dev).
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "AgentRun",
    plural = "agentruns",
    singular = "agentrun",
    shortname = "ar",
    category = "belay",
    namespaced,
    status = "AgentRunStatus",
    derive = "PartialEq",
    printcolumn(name = "AGENT", type_ = "string", json_path = ".spec.agentRef.name"),
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "REASON", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "WAITING-ON", type_ = "string", json_path = ".status.waitingOn.display"),
    printcolumn(name = "STEPS", type_ = "integer", json_path = ".status.usage.steps"),
    printcolumn(name = "TOKENS", type_ = "integer", json_path = ".status.usage.totalTokens"),
    printcolumn(name = "COST-USD", type_ = "string", json_path = ".status.usage.costUSD"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "MODEL", type_ = "string", json_path = ".status.model", priority = 1),
    printcolumn(name = "POD", type_ = "string", json_path = ".status.podRef.name", priority = 1),
    printcolumn(name = "REQUESTED-BY", type_ = "string", json_path = ".spec.requestedBy", priority = 1),
    printcolumn(name = "PARENT", type_ = "string", json_path = ".spec.parent.name", priority = 1)
)]
#[x_kube(
    validation = ("self.agentRef == oldSelf.agentRef", "spec.agentRef cannot change: create another AgentRun"),
    validation = ("self.input == oldSelf.input", "spec.input cannot change: create another AgentRun"),
    validation = ("has(self.limits) == has(oldSelf.limits) && (!has(self.limits) || self.limits == oldSelf.limits)", "spec.limits cannot change: create another AgentRun"),
    validation = ("has(self.requestedBy) == has(oldSelf.requestedBy) && (!has(self.requestedBy) || self.requestedBy == oldSelf.requestedBy)", "spec.requestedBy cannot change"),
    validation = ("has(self.parent) == has(oldSelf.parent) && (!has(self.parent) || self.parent == oldSelf.parent)", "spec.parent cannot change"),
    validation = ("!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)", "spec.cancel stays true once it is")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentRunSpec {
    /// The Agent to run. Naming it needs the verb `use` on it (agents.decide.belay.dev). Cannot change.
    pub agent_ref: NameRef,
    /// What it shall do. At most 65536 characters, and not empty. Cannot change.
    #[schemars(length(min = 1, max = 65536))]
    pub input: String,
    /// Limits of this run alone; the tighter one of these and the Agent's counts. Default: the Agent's.
    /// Cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// The user who creates the run; admission refuses any other name. Absent: the requester counts as not a
    /// person. At most 512 characters. Cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub requested_by: Option<String>,
    /// The run whose call this one carries out. Only the operator creates such runs: admission refuses the field from anyone
    /// else. It ends when that run does. Default: none. Cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentRun>,
    /// Set to true to end the run: no further step starts. Needs `update` on the AgentRun alone. Default false.
    /// Cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<bool>,
    /// Deletes this object so many seconds after the run has ended. Absent: it is kept until someone deletes it.
    /// 0 to 31536000. May change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// The run above a child.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRun {
    /// Name of the AgentRun, in this namespace. 1 to 253 characters.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid. 1 to 64 characters.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Which of its calls, such as `c4`. 1 to 32 characters.
    #[schemars(length(min = 1, max = 32))]
    pub call_id: String,
}

/// Where the run stands. Only the operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRunStatus {
    /// Pending, Running, Waiting, or one of the ends Succeeded, Failed and Cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// When its first pod said Hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// The pod that runs or ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_ref: Option<PodRef>,
    /// Digest of the frozen plan: every reference as it was resolved when the run was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub plan_digest: Option<String>,
    /// Where the journal stood when this was written: a witness against a journal that was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalRef>,
    /// The model of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub model: Option<String>,
    /// What the run used so far. Exact at the end; while it runs, refreshed at growing intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<RunUsage>,
    /// The model's last words, at most 4096 bytes; the journal holds all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub output: Option<String>,
    /// Whether `output` was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_truncated: Option<bool>,
    /// What the run waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_on: Option<WaitingOn>,
    /// Ready, Reconciling and Stalled as kstatus reads them, and Finished: True once the run has ended, with the
    /// outcome as reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The `metadata.generation` that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Pending, Running and Waiting lead on; Succeeded, Failed and Cancelled are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum Phase {
    Pending,
    Running,
    Waiting,
    Succeeded,
    Failed,
    Cancelled,
}

/// A pod, for good: a name may be given again, a uid never is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct PodRef {
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// A place in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct JournalRef {
    /// The journal's own id.
    #[schemars(length(max = 128))]
    pub id: String,
    /// Sequence number of the newest record.
    pub seq: i64,
    /// Hash of that record, which chains all before it.
    #[schemars(length(max = 128))]
    pub hash: String,
}

/// What nobody reported is absent, never 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunUsage {
    /// Answers of the model.
    pub steps: i32,
    /// Input tokens that the provider counted, cached ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i64>,
    /// Input tokens that the provider had cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input_tokens: Option<i64>,
    /// Output tokens that the provider counted, reasoning included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i64>,
    /// Input plus output, for the TOKENS column. Absent where the provider did not count all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<i64>,
    /// US dollars by the Model's prices. Absent where the provider did not count all tokens.
    #[serde(default, rename = "costUSD", skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<Usd>,
}

/// What the run waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct WaitingOn {
    /// In lower case: agent, pod, queue ..
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Its name, in this namespace.
    #[schemars(length(max = 253))]
    pub name: String,
    /// `kind/name`, for the WAITING-ON column.
    #[schemars(length(max = 320))]
    pub display: String,
}

impl WaitingOn {
    #[must_use]
    pub fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned(), display: format!("{kind}/{name}") }
    }
}

impl Phase {
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Running | Self::Waiting => false,
        }
    }
}
