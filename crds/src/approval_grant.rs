//! ApprovalGrant: calls that people allowed for the rest of a run; and how policies and decisions speak of such.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::approval::ApprovalRun;

/// Calls of one operation that people allowed for the rest of a run, given with their yes to one such call. The operator
/// alone makes it, and counts on it while it is there: whoever may delete it takes back what is left. It goes with its run.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "ApprovalGrant",
    plural = "approvalgrants",
    singular = "approvalgrant",
    shortname = "apg",
    category = "belay",
    namespaced,
    status = "ApprovalGrantStatus",
    derive = "PartialEq",
    printcolumn(name = "RUN", type_ = "string", json_path = ".spec.run.name"),
    printcolumn(name = "POLICY", type_ = "string", json_path = ".spec.policy"),
    printcolumn(name = "TOOL", type_ = "string", json_path = ".spec.tool"),
    printcolumn(name = "OPERATION", type_ = "string", json_path = ".spec.operation"),
    printcolumn(name = "LEFT", type_ = "integer", json_path = ".status.left"),
    printcolumn(name = "EXPIRES", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(name = "OVER", type_ = "string", json_path = ".status.over"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = ("self == oldSelf", "spec cannot change: delete it to take back what is left"))]
#[serde(rename_all = "camelCase")]
pub struct ApprovalGrantSpec {
    /// The run whose calls may go by it, and no other's. Cannot change.
    pub run: ApprovalRun,
    /// The Approval in which people gave it. Cannot change.
    #[schemars(length(min = 1, max = 253))]
    pub approval: String,
    /// Who gave it. Cannot change.
    #[schemars(length(min = 1, max = 24), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "set"))]
    pub by: Vec<String>,
    /// The policy whose people it stands for: what other policies ask about such a call is asked as before. Cannot change.
    #[schemars(length(min = 1, max = 253))]
    pub policy: String,
    /// The Tool that the calls go to. Cannot change.
    #[schemars(length(min = 1, max = 253))]
    pub tool: String,
    /// The operation, as its server spells it. Cannot change.
    #[schemars(length(min = 1, max = 256))]
    pub operation: String,
    /// Digest of the operation's definition: where the server changes it, the grant is for nothing. Cannot change.
    #[schemars(length(min = 1, max = 128))]
    pub definition: String,
    /// Which arguments: CEL over `args`, true for those that may go. Cannot change.
    #[schemars(length(min = 1, max = 1024))]
    pub when: String,
    /// How many calls may go by it in all. The one that was asked about does not count. Cannot change.
    #[schemars(range(min = 1, max = 1000))]
    pub count: i32,
    /// How long it is good, in seconds from when it was given. Cannot change.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub seconds: i32,
    /// When that is over. Cannot change.
    pub expires_at: Time,
    /// SHA-256 over the canonical bytes of policy, tool, operation, definition, when, count and seconds. Cannot change.
    #[schemars(length(min = 1, max = 128))]
    pub digest: String,
}

/// What is left of it. Only the operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalGrantStatus {
    /// How many calls may still go by it, as of the run's last status. The run's journal counts exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<i32>,
    /// Why none of those will, whatever is left. Absent: they may, until `spec.expiresAt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<GrantOver>,
}

/// What ended a grant that was neither used up nor had expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum GrantOver {
    /// The run has ended.
    RunEnded,
    /// The admission rules under which people gave it are not those in force any more.
    Revoked,
}

/// How far people may allow more than the one call that they are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantTerms {
    /// The most calls of one grant, besides the one that was asked about. 1 to 1000.
    #[schemars(range(min = 1, max = 1000))]
    pub max_count: i32,
    /// The longest that one grant is good, in seconds. 1 to 2592000.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub max_seconds: i32,
}

/// What a person allows besides the call that they say yes to: calls of the same operation, for the rest of the run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct GrantAnswer {
    /// Which arguments: CEL over `args`, true for those that may go, the present ones among them. 1 to 1024 characters.
    #[schemars(length(min = 1, max = 1024))]
    pub when: String,
    /// How many calls, besides the present one. 1 to `grants.maxCount` of what the policy wants.
    #[schemars(range(min = 1, max = 1000))]
    pub count: i32,
    /// For how long, in seconds from the moment when the decisions are taken. 1 to `grants.maxSeconds`.
    #[schemars(range(min = 1, max = 2_592_000))]
    pub seconds: i32,
}
