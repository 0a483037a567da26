//! Grants: calls of one operation that people allowed for the rest of a run. What was said, on which terms, and how much
//! of it is left. Where a grant comes from and who still stands by it is the operator's business.

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError, digest_of};
use crate::event::ProposedCall;
use crate::guard::GuardStamp;
use crate::judgement::PolicyRequirement;

/// How far a policy lets people allow more than the one call that they are asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantTerms {
    /// Calls of one grant.
    pub max_count: u32,
    /// How long a grant is good, counted from when it is given.
    pub max_seconds: u32,
}

impl GrantTerms {
    /// The stricter of two: none at all beats any.
    #[must_use]
    pub fn stricter(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        let (a, b) = (a?, b?);
        Some(Self { max_count: a.max_count.min(b.max_count), max_seconds: a.max_seconds.min(b.max_seconds) })
    }

    /// Whether so many calls within so long are within these terms.
    #[must_use]
    pub fn admit(&self, count: u32, seconds: u32) -> bool {
        (1..=self.max_count).contains(&count) && (1..=self.max_seconds).contains(&seconds)
    }
}

/// Which calls: what those who gave it said alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrantPattern {
    /// The policy that asked.
    pub policy: String,
    pub tool: String,
    pub operation: String,
    pub definition: Digest,
    /// CEL over `args`.
    pub when: String,
    /// Calls, the one that was asked about not among them.
    pub count: u32,
    pub seconds: u32,
}

impl GrantPattern {
    /// What a grant is known by.
    pub fn digest(&self) -> Result<Digest, DigestError> {
        digest_of(self)
    }

    /// Whether the call is one of that operation. Its arguments are not looked at.
    #[must_use]
    pub fn is_about(&self, call: &ProposedCall) -> bool {
        (&self.tool, &self.operation, self.definition) == (&call.tool, &call.operation, call.definition)
    }
}

/// What people gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// Of the ApprovalGrant that stands for it.
    pub name: String,
    pub pattern: GrantPattern,
    /// Over the pattern.
    pub digest: Digest,
    /// What its policy wanted of people when it was given.
    pub requirement: PolicyRequirement,
    /// The call that was asked about.
    pub call_id: String,
    /// The Approval in which they said it.
    pub approval: String,
    /// Who said it, each once.
    pub by: Vec<String>,
    /// Milliseconds since the Unix epoch.
    pub expires_at: i64,
    /// The admission rules under which they said it. It counts under those alone.
    pub guard: GuardStamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(max_count: u32, max_seconds: u32) -> GrantTerms {
        GrantTerms { max_count, max_seconds }
    }

    #[test]
    fn the_stricter_terms_have_the_smaller_of_each_and_none_beats_all() {
        assert_eq!(GrantTerms::stricter(Some(terms(5, 60)), Some(terms(3, 90))), Some(terms(3, 60)));
        assert_eq!(GrantTerms::stricter(Some(terms(5, 60)), None), None);
        assert_eq!(GrantTerms::stricter(None, Some(terms(5, 60))), None);
    }

    #[test]
    fn terms_admit_at_least_one_and_at_most_what_they_say() {
        let terms = terms(5, 60);
        for (count, seconds, admitted) in
            [(1, 1, true), (5, 60, true), (0, 1, false), (1, 0, false), (6, 60, false), (5, 61, false)]
        {
            assert_eq!(terms.admit(count, seconds), admitted, "{count} in {seconds}");
        }
    }

    #[test]
    fn each_part_of_a_pattern_counts_in_its_digest() {
        let pattern = GrantPattern {
            policy: "careful".into(),
            tool: "github".into(),
            operation: "delete_repo".into(),
            definition: Digest::zero(),
            when: "args.repo == 'x'".into(),
            count: 5,
            seconds: 60,
        };
        let others = [
            GrantPattern { policy: "owners".into(), ..pattern.clone() },
            GrantPattern { tool: "gitlab".into(), ..pattern.clone() },
            GrantPattern { operation: "push".into(), ..pattern.clone() },
            GrantPattern { definition: Digest::of(b"other"), ..pattern.clone() },
            GrantPattern { when: "args.repo == 'y'".into(), ..pattern.clone() },
            GrantPattern { count: 6, ..pattern.clone() },
            GrantPattern { seconds: 61, ..pattern.clone() },
        ];
        for other in others {
            assert_ne!(other.digest(), pattern.digest(), "{other:?}");
        }
    }
}
