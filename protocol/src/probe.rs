//! What a probe pod is asked and what it answers. Travels as JSON inside the Probe stream.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::event::Failure;
use crate::plan::{PlanCredential, Timeouts};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeTask {
    /// Look at the mounted file of this credential.
    Credential { name: String },
    /// List the operations of this server.
    Tool { name: String, url: String, credential: Option<Box<PlanCredential>>, timeouts: Timeouts },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeReport {
    Credential(Presence),
    Tool(Result<Vec<OperationDefinition>, Failure>),
}

/// What can be said of a credential without saying what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    Present,
    /// The Secret is absent or lacks the key: from inside a pod both look the same.
    Missing,
    Empty,
    /// Usually `echo` without `-n`: no provider takes such a key.
    TrailingNewline,
    TooLarge,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationDefinition {
    pub name: String,
    pub digest: Digest,
    /// Cut for status; the digest covers all of it.
    pub description: String,
}
