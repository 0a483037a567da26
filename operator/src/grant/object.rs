//! The ApprovalGrant of a grant: how it is made, and whether it is there.

use std::time::Duration;

use async_trait::async_trait;
use belay_crds::{AgentRun, ApprovalGrant, ApprovalGrantSpec, ApprovalRun};
use belay_protocol::grant::Grant;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;
use kube::{Api, Client, ResourceExt};

use super::GrantObjects;
use crate::clock::from_milliseconds;
use crate::writes::owner_of;

/// A runner waits for the answer to its proposal meanwhile.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Under the journaled name. It goes with its run.
#[must_use]
pub fn approval_grant(run: &AgentRun, grant: &Grant) -> ApprovalGrant {
    let pattern = &grant.pattern;
    let whole = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let spec = ApprovalGrantSpec {
        run: ApprovalRun { name: run.name_any(), uid: run.uid().unwrap_or_default() },
        approval: grant.approval.clone(),
        by: grant.by.clone(),
        policy: pattern.policy.clone(),
        tool: pattern.tool.clone(),
        operation: pattern.operation.clone(),
        definition: pattern.definition.to_string(),
        when: pattern.when.clone(),
        count: whole(pattern.count),
        seconds: whole(pattern.seconds),
        expires_at: Time(from_milliseconds(grant.expires_at)),
        digest: grant.digest.to_string(),
    };
    let metadata = ObjectMeta {
        name: Some(grant.name.clone()),
        namespace: run.metadata.namespace.clone(),
        owner_references: Some(vec![owner_of(run)]),
        ..ObjectMeta::default()
    };
    ApprovalGrant { metadata, spec, status: None }
}

/// Those of the real API server.
pub struct Live(pub Client);

#[async_trait]
impl GrantObjects for Live {
    async fn stands(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let grants: Api<ApprovalGrant> = Api::namespaced(self.0.clone(), namespace);
        let found = match tokio::time::timeout(ANSWER_WITHIN, grants.get_opt(name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(namespace, name, %error, "an ApprovalGrant cannot be read: it does not count");
                None
            }
            Err(_) => {
                tracing::warn!(namespace, name, "an ApprovalGrant was not read in time: it does not count");
                None
            }
        };
        found.is_some_and(|found| stands(&found, uid))
    }
}

/// Whether it is that very object, and nobody is deleting it.
#[must_use]
pub fn stands(found: &ApprovalGrant, uid: &str) -> bool {
    found.metadata.uid.as_deref() == Some(uid) && found.metadata.deletion_timestamp.is_none()
}
