//! The question whether what a server offers is accepted: built from the Tool alone, so that it is the same whenever it
//! is built. Pure.

use belay_crds::drift::Offer;
use belay_crds::{
    Approval, ApprovalPurpose, ApprovalRequest, ApprovalSpec, DriftQuestion, QuestionGuard, Requirement, Tool,
    ToolStatus,
};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use belay_protocol::digest::{DigestError, canonical};
use belay_protocol::guard::{GuardStamp, RuleVersion};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::drift::summary;
use crate::approval::ARGUMENTS_BYTES_MAX;
use crate::writes::{cut, owner_of};

const MESSAGE_BYTES_MAX: usize = 4096;
/// One person is enough; whoever wrote the Tool may be the one who knows.
const QUORUM: i32 = 1;

/// What a question has that the Tool does not: journaled in its status before it is put.
pub struct Terms<'a> {
    pub nonce: &'a str,
    pub expires_at: &'a Time,
}

impl<'a> From<&'a DriftQuestion> for Terms<'a> {
    fn from(question: &'a DriftQuestion) -> Self {
        Self { nonce: &question.nonce, expires_at: &question.expires_at }
    }
}

/// The request with its digest; none where nothing differs.
///
/// # Errors
/// Where a part of it has no canonical form: what is kept of a server's words always has one.
pub fn request(
    tool: &Tool,
    status: &ToolStatus,
    terms: &Terms<'_>,
) -> Result<Option<(ApprovalRequest, Digest)>, DigestError> {
    let (Some(drift), Some(offer)) = (&status.drift, Offer::of(status)) else { return Ok(None) };
    // Canonical bytes are JSON, and JSON is UTF-8.
    let arguments = String::from_utf8_lossy(&canonical(&offer)?).into_owned();
    let shown = cut(&arguments, ARGUMENTS_BYTES_MAX);
    let name = tool.name_any();
    let message = format!("Tool {name} does not offer what was accepted: {}", summary(drift));
    let mut request = ApprovalRequest {
        purpose: ApprovalPurpose::Drift,
        run: None,
        call_id: None,
        attempt: None,
        tool: name.clone(),
        operation: None,
        definition: drift.digest.clone(),
        arguments_truncated: (shown.len() < arguments.len()).then_some(true),
        arguments: shown.to_owned(),
        destination: tool.spec.url().to_owned(),
        credential: tool.spec.credential_ref().map(|reference| reference.name.clone()),
        call_digest: None,
        question: None,
        answered: Vec::new(),
        sent_at: None,
        message: cut(&message, MESSAGE_BYTES_MAX).to_owned(),
        requirements: vec![Requirement {
            policy: name,
            generation: None,
            quorum: QUORUM,
            separation_of_duty: None,
            grants: None,
        }],
        requested_by: String::new(),
        expires_at: terms.expires_at.clone(),
        nonce: terms.nonce.to_owned(),
        digest: String::new(),
    };
    let whole = serde_json::to_value(&request).map_err(|error| DigestError::Canonical(error.to_string()))?;
    let digest = request_digest(&whole)?;
    request.digest = digest.to_string();
    Ok(Some((request, digest)))
}

/// The Approval under the name that status holds. It goes with its Tool.
#[must_use]
pub fn approval(tool: &Tool, name: &str, request: ApprovalRequest) -> Approval {
    Approval {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: tool.metadata.namespace.clone(),
            owner_references: Some(vec![owner_of(tool)]),
            ..ObjectMeta::default()
        },
        spec: ApprovalSpec { request, decisions: Vec::new() },
        status: None,
    }
}

#[must_use]
pub fn kept(stamp: GuardStamp) -> QuestionGuard {
    QuestionGuard {
        policy_uid: stamp.policy.uid,
        policy_generation: stamp.policy.generation,
        binding_uid: stamp.binding.uid,
        binding_generation: stamp.binding.generation,
    }
}

#[must_use]
pub fn stamp(guard: &QuestionGuard) -> GuardStamp {
    GuardStamp {
        policy: RuleVersion { uid: guard.policy_uid.clone(), generation: guard.policy_generation },
        binding: RuleVersion { uid: guard.binding_uid.clone(), generation: guard.binding_generation },
    }
}

/// For people who look at the Approval: what is wanted of whom, and what to type.
#[must_use]
pub fn words(tool: &str, question: &DriftQuestion) -> String {
    let (name, until) = (&question.approval, question.expires_at.0);
    format!(
        "what Tool {tool} offers otherwise than it was accepted waits until {until} for one person who may approve on Tool \
         {tool}: belay tool accept {tool}, or belay deny {name} --reason WHY"
    )
}
