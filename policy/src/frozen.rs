//! From the kind that people write to what a plan holds. Defaults are filled in here and nowhere else.

use belay_crds::{
    ApprovalPolicySpec, Effects as CrdEffects, Otherwise as CrdOtherwise, PolicyMode as CrdMode, PolicyRule,
    RuleAction as CrdAction,
};
use belay_protocol::grant::GrantTerms;
use belay_protocol::plan::{AskTerms, Effects, Otherwise, PlanPolicy, PlanRule, PolicyMode, RuleAction};

/// Which generation of which ApprovalPolicy a spec is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub uid: String,
    pub generation: i64,
}

/// The policy as a plan holds it, whole. The order of rules is kept, so that messages can point at them.
#[must_use]
pub fn freeze(identity: Identity, spec: &ApprovalPolicySpec) -> PlanPolicy {
    PlanPolicy {
        name: identity.name,
        uid: identity.uid,
        generation: identity.generation,
        mode: match spec.mode {
            CrdMode::Enforce => PolicyMode::Enforce,
            CrdMode::Audit => PolicyMode::Audit,
        },
        otherwise: match spec.otherwise {
            CrdOtherwise::Ask => Otherwise::Ask,
            CrdOtherwise::Deny => Otherwise::Deny,
            CrdOtherwise::Abstain => Otherwise::Abstain,
        },
        rules: spec.rules.iter().map(freeze_rule).collect(),
    }
}

fn freeze_rule(rule: &PolicyRule) -> PlanRule {
    let action = match rule.action {
        CrdAction::Allow => RuleAction::Allow,
        CrdAction::Ask => RuleAction::Ask,
        CrdAction::Deny => RuleAction::Deny,
    };
    PlanRule {
        name: rule.name.clone(),
        tools: rule.tools.clone(),
        operations: rule.operations.clone(),
        effects: rule.effects.iter().copied().map(freeze_effects).collect(),
        when: rule.when.clone(),
        action,
        ask: (action == RuleAction::Ask).then(|| terms(rule)),
        reason: rule.reason.clone(),
    }
}

fn terms(rule: &PolicyRule) -> AskTerms {
    let default = AskTerms::default();
    let Some(ask) = &rule.ask else { return default };
    AskTerms {
        quorum: ask.quorum.map_or(default.quorum, i32::unsigned_abs),
        separation_of_duty: ask.separation_of_duty.unwrap_or(default.separation_of_duty),
        expires_after_seconds: ask.expires_after_seconds.map_or(default.expires_after_seconds, i32::unsigned_abs),
        grants: ask.grants.as_ref().map(|grants| GrantTerms {
            max_count: grants.max_count.unsigned_abs(),
            max_seconds: grants.max_seconds.unsigned_abs(),
        }),
    }
}

/// As plans and policies spell it.
#[must_use]
pub fn freeze_effects(effects: CrdEffects) -> Effects {
    match effects {
        CrdEffects::None => Effects::None,
        CrdEffects::Idempotent => Effects::Idempotent,
        CrdEffects::NonIdempotent => Effects::NonIdempotent,
    }
}
