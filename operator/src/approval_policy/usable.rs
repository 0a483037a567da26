//! Which generation of a policy counts: the one that is there, or the last good one. Pure.

use belay_crds::conditions::{self, READY};
use belay_crds::{ApprovalPolicy, ApprovalPolicySpec};
use belay_policy::{Identity, freeze};
use belay_protocol::plan::PlanPolicy;
use kube::ResourceExt;

/// What new runs go by, and what "as it is now" means for those under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usable {
    AsItIs(PlanPolicy),
    /// The newest generation is not Ready; `why` says so for people.
    LastGood {
        policy: PlanPolicy,
        why: String,
    },
    /// There is none.
    Not {
        why: String,
    },
}

impl Usable {
    #[must_use]
    pub fn policy(self) -> Option<PlanPolicy> {
        match self {
            Self::AsItIs(policy) | Self::LastGood { policy, .. } => Some(policy),
            Self::Not { .. } => None,
        }
    }
}

/// The generation of `policy` that counts.
#[must_use]
pub fn usable(policy: &ApprovalPolicy) -> Usable {
    let generation = policy.metadata.generation;
    let status = policy.status.as_ref();
    let conditions = status.map_or(&[][..], |status| &status.conditions);
    if conditions::is_ready(conditions, generation) {
        return Usable::AsItIs(as_it_is(policy));
    }
    let name = policy.name_any();
    let newest = generation.unwrap_or_default();
    let why = match conditions::find(conditions, READY).filter(|ready| ready.observed_generation == generation) {
        Some(ready) => format!("ApprovalPolicy \"{name}\" is not Ready: {}: {}", ready.reason, ready.message),
        None => format!("ApprovalPolicy \"{name}\" is not Ready yet"),
    };
    // A generation that was good and is not any more overran: it is no refuge from itself.
    match status.and_then(|status| status.last_good.as_ref()).filter(|good| good.generation != newest) {
        Some(good) => Usable::LastGood {
            policy: frozen(policy, good.generation, &good.spec),
            why: format!("{why}; its generation {} goes on", good.generation),
        },
        None => Usable::Not { why },
    }
}

/// The newest generation, good or not.
#[must_use]
pub fn as_it_is(policy: &ApprovalPolicy) -> PlanPolicy {
    frozen(policy, policy.metadata.generation.unwrap_or_default(), &policy.spec)
}

fn frozen(policy: &ApprovalPolicy, generation: i64, spec: &ApprovalPolicySpec) -> PlanPolicy {
    let identity = Identity { name: policy.name_any(), uid: policy.uid().unwrap_or_default(), generation };
    freeze(identity, spec)
}

#[cfg(test)]
mod tests {
    use belay_crds::{ApprovalPolicyStatus, LastGood};
    use belay_protocol::plan::Otherwise;

    use super::*;
    use crate::fixtures::{not_ready, policy, ready};

    fn with_last_good(mut policy: ApprovalPolicy, generation: i64) -> ApprovalPolicy {
        let spec = ApprovalPolicySpec { otherwise: belay_crds::Otherwise::Deny, ..ApprovalPolicySpec::default() };
        policy.status.get_or_insert_with(ApprovalPolicyStatus::default).last_good = Some(LastGood { generation, spec });
        policy
    }

    #[test]
    fn a_ready_policy_counts_as_it_is() {
        let found = usable(&with_last_good(ready(policy("careful", "{}")), 0));
        assert!(
            matches!(found, Usable::AsItIs(policy) if policy.generation == 1 && policy.otherwise == Otherwise::Ask)
        );
    }

    #[test]
    fn one_that_went_bad_counts_as_its_last_good_generation_and_says_so() {
        let bad = not_ready(policy("careful", "{}"), "TestFailed", "tests[0] x/y: expected Deny, got Ask");
        let Usable::LastGood { policy, why } = usable(&with_last_good(bad, 0)) else { unreachable!("no last good") };
        assert_eq!((policy.generation, policy.otherwise), (0, Otherwise::Deny));
        assert_eq!(
            why,
            "ApprovalPolicy \"careful\" is not Ready: TestFailed: tests[0] x/y: expected Deny, got Ask; its generation \
             0 goes on"
        );
    }

    #[test]
    fn one_that_lost_its_last_good_generation_or_never_had_one_counts_as_nothing() {
        assert_eq!(
            usable(&policy("careful", "{}")),
            Usable::Not { why: "ApprovalPolicy \"careful\" is not Ready yet".into() }
        );
        let overran = not_ready(policy("careful", "{}"), "Overran", "slow");
        assert!(matches!(usable(&with_last_good(overran, 1)), Usable::Not { .. }));
    }
}
