//! What is asked: built from journal and plan alone, so that it is the same whenever it is built.

use belay_crds::{AgentRun, Approval, ApprovalPurpose, ApprovalRequest, ApprovalRun, ApprovalSpec, Requirement};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use belay_protocol::digest::{DigestError, canonical};
use belay_protocol::event::{Ask, ProposedCall};
use belay_protocol::plan::Plan;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;

use super::DEFAULT_POLICY;
use crate::clock::from_milliseconds;
use crate::writes::{cut, owner_of};

const ARGUMENTS_BYTES_MAX: usize = 262_144;
const MESSAGE_BYTES_MAX: usize = 4096;
/// One person is enough to say what happened; whoever started the run may be the one who knows.
const QUORUM: i32 = 1;

/// A call whose end is unknown, and what makes the question about it one of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub plan: &'a Plan,
    pub call_id: &'a str,
    pub attempt: u32,
    pub call: &'a ProposedCall,
    /// Milliseconds since the Unix epoch.
    pub sent_at: i64,
    pub expires_at: i64,
    pub message: &'a str,
    pub nonce: &'a str,
}

/// The request with its digest.
///
/// # Errors
/// Where a part of it has no canonical form: the gate let nothing like that through.
pub fn request(question: &Question<'_>) -> Result<(ApprovalRequest, Digest), DigestError> {
    let Question { plan, call, .. } = question;
    let tool = plan.tool(&call.tool);
    // Canonical bytes are JSON, and JSON is UTF-8.
    let arguments = String::from_utf8_lossy(&canonical(&call.args)?).into_owned();
    let shown = cut(&arguments, ARGUMENTS_BYTES_MAX);
    let mut request = ApprovalRequest {
        purpose: ApprovalPurpose::Unknown,
        run: ApprovalRun { name: plan.run.name.clone(), uid: plan.run.uid.clone() },
        call_id: question.call_id.to_owned(),
        attempt: i32::try_from(question.attempt).unwrap_or(i32::MAX),
        tool: call.tool.clone(),
        operation: call.operation.clone(),
        definition: call.definition.to_string(),
        arguments_truncated: (shown.len() < arguments.len()).then_some(true),
        arguments: shown.to_owned(),
        destination: tool.map(|tool| tool.url.clone()).unwrap_or_default(),
        credential: tool.and_then(|tool| tool.credential.clone()),
        call_digest: call.digest.to_string(),
        sent_at: Some(Time(from_milliseconds(whole_seconds(question.sent_at)))),
        message: cut(question.message, MESSAGE_BYTES_MAX).to_owned(),
        requirements: vec![Requirement { policy: DEFAULT_POLICY.to_owned(), quorum: QUORUM, separation_of_duty: None }],
        requested_by: plan.requested_by.clone().unwrap_or_default(),
        expires_at: Time(from_milliseconds(whole_seconds(question.expires_at))),
        nonce: question.nonce.to_owned(),
        digest: String::new(),
    };
    let whole = serde_json::to_value(&request).map_err(|error| DigestError::Canonical(error.to_string()))?;
    let digest = request_digest(&whole)?;
    request.digest = digest.to_string();
    Ok((request, digest))
}

/// The Approval under the journaled name. It goes with its run.
#[must_use]
pub fn approval(run: &AgentRun, ask: &Ask, request: ApprovalRequest) -> Approval {
    Approval {
        metadata: ObjectMeta {
            name: Some(ask.name.clone()),
            namespace: run.metadata.namespace.clone(),
            owner_references: Some(vec![owner_of(run)]),
            ..ObjectMeta::default()
        },
        spec: ApprovalSpec { request, decisions: Vec::new() },
        status: None,
    }
}

/// What the API shows is whole seconds: a digest over anything finer could not be checked.
fn whole_seconds(milliseconds: i64) -> i64 {
    milliseconds.div_euclid(1000) * 1000
}
