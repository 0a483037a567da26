//! Which decisions count and how many people each policy wants: one rule for the operator, which takes them, and for who
//! shows them. Whoever calls has checked that `digest` is the one over the whole request.

use std::collections::BTreeSet;

use super::{ApprovalPurpose, ApprovalRequest, ApprovalSpec, Decision, DecisionVerdict, Requirement};

/// As admission has it: no user of the system, and somebody at all.
#[must_use]
pub fn is_person(user: &str) -> bool {
    !user.is_empty() && !user.starts_with("system:")
}

/// Whether one person more than the quorum is needed: whoever created the run may not be among them, and nobody knows which
/// person that is, so that one of them might be.
#[must_use]
pub fn wants_one_more(separation_of_duty: bool, requested_by: &str) -> bool {
    separation_of_duty && !is_person(requested_by)
}

impl ApprovalSpec {
    /// The decisions that were made on this very request, for a policy that asks, by who may make them.
    #[must_use]
    pub fn counted(&self, digest: &str) -> Vec<&Decision> {
        self.decisions.iter().filter(|one| one.digest == digest && self.request.admits(one)).collect()
    }
}

impl ApprovalRequest {
    fn admits(&self, decision: &Decision) -> bool {
        let asked = self.requirements.iter().find(|one| one.policy == decision.policy);
        asked.is_some_and(|one| match decision.verdict {
            DecisionVerdict::Allow => is_person(&decision.by) && !self.excludes(one, &decision.by),
            DecisionVerdict::Deny => true,
        })
    }

    /// The resource of the virtual group on which whoever decides holds `approve`, by the name of the requirement.
    #[must_use]
    pub fn decided_on(&self) -> &'static str {
        match self.purpose {
            ApprovalPurpose::Drift => "tools",
            ApprovalPurpose::Call | ApprovalPurpose::Question | ApprovalPurpose::Unknown => "approvalpolicies",
        }
    }

    /// The run that asks; empty where none does.
    #[must_use]
    pub fn run_name(&self) -> &str {
        self.run.as_ref().map_or("", |run| &run.name)
    }

    /// The operation that is asked about; empty where it is not one.
    #[must_use]
    pub fn operation_name(&self) -> &str {
        self.operation.as_deref().unwrap_or_default()
    }

    /// Whether `user` may not say yes for `requirement`, since they created the run. They may still say no.
    #[must_use]
    pub fn excludes(&self, requirement: &Requirement, user: &str) -> bool {
        requirement.separation_of_duty == Some(true) && user == self.requested_by
    }

    /// How many people have to say yes.
    #[must_use]
    pub fn people_needed(&self, requirement: &Requirement) -> usize {
        let quorum = usize::try_from(requirement.quorum).unwrap_or(usize::MAX);
        let apart = requirement.separation_of_duty == Some(true);
        quorum.saturating_add(wants_one_more(apart, &self.requested_by).into())
    }

    /// Whether everyone whose yes it needs is among `counted`. A no beats it, which is not looked at here.
    #[must_use]
    pub fn has_every_yes(&self, counted: &[&Decision]) -> bool {
        self.requirements.iter().all(|one| one.approvers(counted).len() >= self.people_needed(one))
    }

    /// `GIVEN`: people who said yes, of those that are needed, such as `1/2`.
    #[must_use]
    pub fn given(&self, counted: &[&Decision]) -> String {
        let needed = |one: &Requirement| self.people_needed(one);
        let yes: usize = self.requirements.iter().map(|one| one.approvers(counted).len().min(needed(one))).sum();
        format!("{yes}/{}", self.requirements.iter().map(needed).sum::<usize>())
    }
}

impl Requirement {
    /// Who of `counted` said yes for this policy. One person is one, whatever they write.
    #[must_use]
    pub fn approvers<'a>(&self, counted: &[&'a Decision]) -> BTreeSet<&'a str> {
        let yes = |one: &&&Decision| one.policy == self.policy && one.verdict == DecisionVerdict::Allow;
        counted.iter().filter(yes).map(|decision| decision.by.as_str()).collect()
    }
}
