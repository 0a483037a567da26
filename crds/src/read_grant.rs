//! ReadGrant: lets whoever may see a run read what the journal holds of it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::NameRef;

/// A key that may read one thing for a short time. `belay journal export` makes one and signs its request with that key:
/// the API server says by admission who made it and that they may `get` the run, so that no token of anybody's is ever
/// sent to the operator. The operator deletes it after it has run out.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[kube(
    group = "belay.dev",
    version = "v1alpha1",
    kind = "ReadGrant",
    plural = "readgrants",
    singular = "readgrant",
    shortname = "brg",
    category = "belay",
    namespaced,
    derive = "PartialEq",
    printcolumn(name = "RUN", type_ = "string", json_path = ".spec.runRef.name"),
    printcolumn(name = "PURPOSE", type_ = "string", json_path = ".spec.purpose"),
    printcolumn(name = "BY", type_ = "string", json_path = ".spec.by"),
    printcolumn(name = "SECONDS", type_ = "integer", json_path = ".spec.validSeconds"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = ("self == oldSelf", "spec cannot change: create another ReadGrant"))]
#[serde(rename_all = "camelCase")]
pub struct ReadGrantSpec {
    /// The run that may be read, which may be gone already. Naming it needs `get` on it. Cannot change.
    pub run_ref: NameRef,
    /// What may be read. Cannot change.
    pub purpose: ReadPurpose,
    /// The user who makes it; admission refuses any other name. Cannot change.
    #[schemars(length(min = 1, max = 512))]
    pub by: String,
    /// The Ed25519 key that requests are signed with: its public half, 32 bytes as base64 with padding. The private half
    /// stays with whoever made it. Cannot change.
    #[schemars(length(min = 44, max = 44), regex(pattern = "^[A-Za-z0-9+/]{43}=$"))]
    pub public_key: String,
    /// How long it may be used, in seconds from its creation by the API server's clock. 1 to 600. Cannot change.
    #[schemars(range(min = 1, max = 600))]
    pub valid_seconds: i32,
}

/// What a ReadGrant lets be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ReadPurpose {
    /// All that the journal holds of the run, once or more often.
    JournalExport,
}
