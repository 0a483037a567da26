//! What policies said of one proposed call. Journaled with the verdict, so that it can be told later who or what
//! allowed it. How it comes about is the operator's business.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::grant::GrantTerms;

/// The built-in policy, which decides where no other has a say. No ApprovalPolicy may have its name.
pub const DEFAULT_POLICY: &str = "default";

/// What all policies that have a say come to, and what each of them said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    pub judgement: Judgement,
    /// By policy; those in `Audit` and those that abstained included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opinions: Vec<Opinion>,
    /// Names of the grants by which it was allowed where policies asked; each was used once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
}

impl Judged {
    /// The policies that let the call through, or would with people's yes: whoever may approve under them is asked later what
    /// became of it, and what its server wants to know.
    pub fn with_a_say(&self) -> impl Iterator<Item = &str> {
        let has_a_say = |opinion: &&Opinion| match (opinion.source, opinion.verdict) {
            (PolicySource::Plan | PolicySource::Default, OpinionVerdict::Allow | OpinionVerdict::Ask) => true,
            (PolicySource::Plan | PolicySource::Default, OpinionVerdict::Deny | OpinionVerdict::Abstain)
            | (PolicySource::Current | PolicySource::Audit, _) => false,
        };
        self.opinions.iter().filter(has_a_say).map(|opinion| opinion.policy.as_str())
    }
}

/// The strictest of the opinions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all_fields = "camelCase")]
pub enum Judgement {
    Allow,
    /// Every one of these policies wants its own yes.
    Ask {
        requirements: Vec<PolicyRequirement>,
    },
    Deny {
        policy: String,
        rule: Option<String>,
        reason: String,
    },
}

/// What one policy wants of people before a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRequirement {
    pub policy: String,
    /// Of the policy that asks; 0 for the built-in `default`.
    pub generation: i64,
    /// How many different people.
    pub quorum: u32,
    pub separation_of_duty: bool,
    /// Counted from the proposal.
    pub expires_after_seconds: u32,
    /// Whether people may allow more than this call; absent: not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<GrantTerms>,
}

/// What one policy said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Opinion {
    pub policy: String,
    pub generation: i64,
    /// Over the policy as it was judged by.
    pub digest: Digest,
    pub source: PolicySource,
    pub verdict: OpinionVerdict,
    /// The rule that decided; absent where `otherwise` did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why a rule could not be evaluated: then it counts as asking or denying, never as allowing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Which generation of a policy was judged by, and whether it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicySource {
    /// The one in the run's plan.
    Plan,
    /// The policy as it is now: it can only deny.
    Current,
    /// In `Audit`: recorded, and counts as absent.
    Audit,
    /// The built-in one, where no other had a say.
    Default,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpinionVerdict {
    Allow,
    Ask,
    Deny,
    Abstain,
}
