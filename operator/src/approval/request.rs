//! What is asked: built from journal and plan alone, so that it is the same whenever it is built.

use belay_crds::{
    AgentRun, Approval, ApprovalPurpose, ApprovalQuestion, ApprovalRequest, ApprovalRun, ApprovalSpec, EarlierAnswer,
    GrantTerms, Requirement,
};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use belay_protocol::digest::{DigestError, canonical};
use belay_protocol::elicitation::Inputs;
use belay_protocol::event::{Ask, ProposedCall};
use belay_protocol::judgement::{DEFAULT_POLICY, PolicyRequirement};
use belay_protocol::plan::Plan;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;

use super::inquiry::answered_before;
use crate::clock::from_milliseconds;
use crate::writes::{cut, owner_of};

/// What of the arguments an Approval can show.
pub const ARGUMENTS_BYTES_MAX: usize = 262_144;
const MESSAGE_BYTES_MAX: usize = 4096;
/// One person is enough to say what happened; whoever started the run may be the one who knows.
const QUORUM: i32 = 1;

/// A call, and what makes the question about it one of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub plan: &'a Plan,
    pub call_id: &'a str,
    pub attempt: u32,
    pub call: &'a ProposedCall,
    pub about: About<'a>,
    /// Milliseconds since the Unix epoch.
    pub expires_at: i64,
    pub nonce: &'a str,
}

/// What is asked about the call.
#[derive(Clone, Copy, Debug)]
pub enum About<'a> {
    /// May it be made? So many people of these policies must say yes. `inputs`: what goes with it of earlier answers.
    Call { requirements: &'a [PolicyRequirement], inputs: Option<&'a Inputs> },
    /// Did it happen? `sent_at` in milliseconds since the Unix epoch; `ran_under`: the policies that let it through.
    Unknown { sent_at: i64, message: &'a str, ran_under: &'a [String] },
    /// What does its server want to know? So many people of these policies must give the same answer.
    Question { asked: super::Inquired<'a>, requirements: &'a [PolicyRequirement], inputs: Option<&'a Inputs> },
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
    let Asked { purpose, sent_at, message, requirements, question: inquiry, answered } = asked(&question.about, call);
    let mut request = ApprovalRequest {
        purpose,
        run: Some(ApprovalRun { name: plan.run.name.clone(), uid: plan.run.uid.clone() }),
        call_id: Some(question.call_id.to_owned()),
        attempt: Some(i32::try_from(question.attempt).unwrap_or(i32::MAX)),
        tool: call.tool.clone(),
        operation: Some(call.operation.clone()),
        definition: call.definition.to_string(),
        arguments_truncated: (shown.len() < arguments.len()).then_some(true),
        arguments: shown.to_owned(),
        destination: tool.map(|tool| tool.url.clone()).unwrap_or_default(),
        credential: tool.and_then(|tool| tool.credential.clone()),
        call_digest: Some(call.digest.to_string()),
        question: inquiry,
        answered,
        sent_at,
        message: cut(&message, MESSAGE_BYTES_MAX).to_owned(),
        requirements,
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

/// The parts of a request that depend on what is asked.
struct Asked {
    purpose: ApprovalPurpose,
    sent_at: Option<Time>,
    message: String,
    requirements: Vec<Requirement>,
    question: Option<ApprovalQuestion>,
    answered: Vec<EarlierAnswer>,
}

fn asked(about: &About<'_>, call: &ProposedCall) -> Asked {
    match about {
        About::Call { requirements, inputs } => {
            let policies: Vec<&str> = requirements.iter().map(|one| one.policy.as_str()).collect();
            Asked {
                purpose: ApprovalPurpose::Call,
                sent_at: None,
                message: format!(
                    "{}/{} is not sent before {} says yes{}",
                    call.tool,
                    call.operation,
                    policies.join(", "),
                    inputs.map_or_else(String::new, super::inquiry::going_with)
                ),
                requirements: requirements.iter().map(requirement).collect(),
                question: None,
                answered: answered_before(*inputs, None),
            }
        }
        About::Question { asked, requirements, inputs } => Asked {
            purpose: ApprovalPurpose::Question,
            sent_at: None,
            message: asked.words(call),
            requirements: requirements.iter().map(requirement).collect(),
            question: Some(asked.shown()),
            answered: answered_before(*inputs, Some(*asked)),
        },
        About::Unknown { sent_at, message, ran_under } => Asked {
            purpose: ApprovalPurpose::Unknown,
            sent_at: Some(Time(from_milliseconds(whole_seconds(*sent_at)))),
            message: (*message).to_owned(),
            requirements: unknown_requirements(ran_under),
            question: None,
            answered: Vec::new(),
        },
    }
}

fn requirement(wanted: &PolicyRequirement) -> Requirement {
    Requirement {
        policy: wanted.policy.clone(),
        generation: (wanted.generation > 0).then_some(wanted.generation),
        quorum: i32::try_from(wanted.quorum).unwrap_or(i32::MAX),
        separation_of_duty: wanted.separation_of_duty.then_some(true),
        grants: wanted.grants.map(|terms| GrantTerms {
            max_count: i32::try_from(terms.max_count).unwrap_or(i32::MAX),
            max_seconds: i32::try_from(terms.max_seconds).unwrap_or(i32::MAX),
        }),
    }
}

/// Whoever may approve under the policies that let the call through may say what became of it.
fn unknown_requirements(ran_under: &[String]) -> Vec<Requirement> {
    let names =
        if ran_under.is_empty() { vec![DEFAULT_POLICY] } else { ran_under.iter().map(String::as_str).collect() };
    let one = |policy: &str| Requirement {
        policy: policy.to_owned(),
        generation: None,
        quorum: QUORUM,
        separation_of_duty: None,
        grants: None,
    };
    names.into_iter().map(one).collect()
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
