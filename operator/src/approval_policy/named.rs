//! The policies that an Agent comes under: those that it names, and those that its Tools and their Credentials name.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::{Agent, ApprovalPolicy, Credential, NameRef, Tool};
use kube::ResourceExt;

use crate::world::World;

/// As many as an Approval can carry requirements of.
pub const JUDGES_MAX: usize = 8;

/// A policy and who names it.
#[derive(Clone, Debug)]
pub struct Named {
    /// Such as `Tool github: spec.policyRefs`.
    pub subject: String,
    pub name: String,
    pub policy: Option<Arc<ApprovalPolicy>>,
}

/// Every policy that is named, as often as it is: by the Agent, by its tools, and by what credentials go with model
/// and tools.
#[must_use]
pub fn named(world: &World, agent: &Agent, tools: &[Arc<Tool>], credentials: &[Arc<Credential>]) -> Vec<Named> {
    let namespace = agent.namespace().unwrap_or_default();
    let each = |kind: &str, object: &str, references: &[NameRef]| -> Vec<Named> {
        let one = |reference: &NameRef| Named {
            subject: format!("{kind} {object}: spec.policyRefs"),
            name: reference.name.clone(),
            policy: world.policy(&namespace, &reference.name),
        };
        references.iter().map(one).collect()
    };
    let mut all = each("Agent", &agent.name_any(), &agent.spec.policy_refs);
    for tool in tools {
        all.extend(each("Tool", &tool.name_any(), &tool.spec.policy_refs));
    }
    for credential in credentials {
        all.extend(each("Credential", &credential.name_any(), &credential.spec.policy_refs));
    }
    all
}

/// The first Tool whose calls more policies would judge than may ask about one call, and how many those are.
#[must_use]
pub fn overburdened(agent: &Agent, tools: &[Arc<Tool>], credentials: &[Arc<Credential>]) -> Option<(String, usize)> {
    let names = |references: &[NameRef]| references.iter().map(|it| it.name.clone()).collect::<BTreeSet<_>>();
    tools.iter().find_map(|tool| {
        let reference = tool.spec.credential_ref();
        let credential = reference.and_then(|named| credentials.iter().find(|it| it.name_any() == named.name));
        let mut judges = names(&agent.spec.policy_refs);
        judges.extend(names(&tool.spec.policy_refs));
        judges.extend(credential.map(|it| names(&it.spec.policy_refs)).unwrap_or_default());
        (judges.len() > JUDGES_MAX).then(|| (tool.name_any(), judges.len()))
    })
}
