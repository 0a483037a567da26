//! What a run did to the world: each decided call, who let it through, and what became of it.

use std::collections::BTreeMap;
use std::fmt;

use crate::event::{Answer, Approver, DenyReason, Event, NotSentReason, Record, Verdict};
use crate::judgement::{Judged, Judgement, Opinion, OpinionVerdict, PolicySource};

/// One attempt at one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    pub call_id: String,
    pub attempt: u32,
    pub tool: String,
    pub operation: String,
    pub permitted_by: PermittedBy,
    /// Milliseconds since the Unix epoch.
    pub decided_at: i64,
    pub outcome: EffectOutcome,
    /// Who said how it ended, and when. None: nobody did.
    pub settled: Option<Settled>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PermittedBy {
    /// The operations that the Agent lists: a journal from before there were policies.
    AllowList,
    /// These policies, each with the rule that allowed it.
    Policies(Vec<String>),
    /// Policies asked, and these people said yes.
    People(Vec<Approver>),
    /// Policies asked, and it went by these grants, which these people gave for the rest of the run.
    Grants(Vec<GrantedBy>),
    Nobody(DenyReason),
}

/// A grant that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedBy {
    /// Of the ApprovalGrant.
    pub grant: String,
    pub policy: String,
    pub people: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectOutcome {
    /// A permit was out when the journal was exported.
    UnderWay,
    Denied,
    Observed,
    /// Answered by the tool with an error.
    ObservedError,
    NotSent(NotSentReason),
    /// The permit came back unused.
    Returned,
    /// It may have happened.
    Unknown,
    /// It may have happened, and was of a kind that may be sent again.
    Interrupted,
    /// A person said that it happened.
    Reported,
    /// Its server asked people something first.
    InputRequired,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub by: String,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
}

/// Gathers effects while records are read in order.
#[derive(Default)]
pub(super) struct Effects {
    rows: Vec<Effect>,
    proposed: Vec<Named>,
    /// Call and attempt by the name of the question about them.
    asked: BTreeMap<String, (String, u32)>,
    /// Who allowed the newest attempt of a call.
    approved: BTreeMap<String, (u32, Vec<Approver>)>,
    /// Who said no to the newest attempt of a call.
    refused: BTreeMap<String, (u32, String)>,
    /// What people gave for the rest of the run, by name.
    given: BTreeMap<String, GrantedBy>,
}

struct Named {
    call_id: String,
    tool: String,
    operation: String,
}

impl Effects {
    pub(super) fn take(&mut self, record: &Record) {
        match &record.event {
            Event::CallProposed { call_id, call, .. } => {
                let (tool, operation) = (call.tool.clone(), call.operation.clone());
                self.proposed.retain(|named| named.call_id != *call_id);
                self.proposed.push(Named { call_id: call_id.clone(), tool, operation });
            }
            Event::CallDecided { call_id, attempt, verdict, judged } => {
                self.decide(call_id, *attempt, verdict, (judged.as_deref(), record.at));
            }
            Event::CallObserved { call_id, attempt, result, .. } => {
                let outcome = if result.is_error { EffectOutcome::ObservedError } else { EffectOutcome::Observed };
                self.settle(call_id, *attempt, outcome, Some(settled("runner", record.at)));
            }
            Event::ChildEnded { call_id, attempt, name, end } => {
                let outcome = if end.result.is_error { EffectOutcome::ObservedError } else { EffectOutcome::Observed };
                self.settle(call_id, *attempt, outcome, Some(settled(&format!("agentrun {name}"), record.at)));
            }
            Event::CallNotSent { call_id, attempt, reason, .. } => {
                let outcome = EffectOutcome::NotSent(*reason);
                self.settle(call_id, *attempt, outcome, Some(settled("runner", record.at)));
            }
            Event::PermitReturned { call_id, attempt } => {
                self.settle(call_id, *attempt, EffectOutcome::Returned, Some(settled("runner", record.at)));
            }
            Event::CallUnknown { call_id, attempt, .. } => {
                self.settle(call_id, *attempt, EffectOutcome::Unknown, None);
            }
            Event::CallInterrupted { call_id, attempt, .. } => {
                self.settle(call_id, *attempt, EffectOutcome::Interrupted, None);
            }
            Event::CallInputRequired { call_id, attempt, .. } => {
                let by = Some(settled("runner", record.at));
                self.settle(call_id, *attempt, EffectOutcome::InputRequired, by);
            }
            Event::AskOpened { ask } => {
                self.asked.insert(ask.name.clone(), (ask.call_id.clone(), ask.attempt));
            }
            Event::AskSettled { name, answer } => self.answer(name, answer, record.at),
            Event::GrantOpened { grant } => {
                let (policy, people) = (grant.pattern.policy.clone(), grant.by.clone());
                self.given.insert(grant.name.clone(), GrantedBy { grant: grant.name.clone(), policy, people });
            }
            Event::RunAccepted { .. }
            | Event::EpochOpened { .. }
            | Event::InstanceClaimed { .. }
            | Event::ToolsListed { .. }
            | Event::ModelRequested { .. }
            | Event::ModelResponded { .. }
            | Event::ModelFailed { .. }
            | Event::ModelReplaced { .. }
            | Event::LimitReached { .. }
            | Event::CancelRequested {}
            | Event::ChildOpened { .. }
            | Event::ChildPosted { .. }
            | Event::AskPosted { .. }
            | Event::DefinitionsAccepted { .. }
            | Event::GrantRefused { .. }
            | Event::GrantPosted { .. }
            | Event::GrantRevoked { .. }
            | Event::EpochEnded { .. }
            | Event::EpochDead { .. }
            | Event::RunEnded { .. } => {}
        }
    }

    pub(super) fn into_rows(self) -> Vec<Effect> {
        self.rows
    }

    fn permitted_by(&self, call_id: &str, attempt: u32, judged: Option<&Judged>) -> PermittedBy {
        let approved = self.approved.get(call_id).filter(|(approved, _)| *approved == attempt);
        PermittedBy::tell(judged, approved.map(|(_, by)| by.as_slice()), &self.given)
    }

    /// The person or the policy that said no; the gate where neither did.
    fn denied_by(&self, call_id: &str, attempt: u32, reason: DenyReason, judged: Option<&Judged>) -> String {
        let by = match reason {
            DenyReason::Refused => {
                let refused = self.refused.get(call_id).filter(|(refused, _)| *refused == attempt);
                refused.map(|(_, by)| by.clone())
            }
            DenyReason::Policy => judged.and_then(|judged| match &judged.judgement {
                Judgement::Deny { policy, rule, .. } => Some(format!("policy {}", with_rule(policy, rule.as_deref()))),
                Judgement::Allow | Judgement::Ask { .. } => None,
            }),
            DenyReason::NotListed
            | DenyReason::DefinitionChanged
            | DenyReason::DigestMismatch
            | DenyReason::RunEnding
            | DenyReason::CannotBeAsked
            | DenyReason::Expired
            | DenyReason::NoChild => None,
        };
        by.unwrap_or_else(|| "gate".to_owned())
    }

    fn decide(&mut self, call_id: &str, attempt: u32, verdict: &Verdict, (judged, at): (Option<&Judged>, i64)) {
        let named = self.proposed.iter().find(|named| named.call_id == call_id);
        let Some(Named { tool, operation, .. }) = named else { return }; // the fold refuses that
        let (permitted_by, outcome, settled) = match verdict {
            Verdict::Allowed { .. } => (self.permitted_by(call_id, attempt, judged), EffectOutcome::UnderWay, None),
            // Nothing of it was sent yet.
            Verdict::Asked { .. } | Verdict::Later { .. } => return,
            Verdict::Denied { reason, .. } => {
                let by = self.denied_by(call_id, attempt, *reason, judged);
                (PermittedBy::Nobody(*reason), EffectOutcome::Denied, Some(settled(&by, at)))
            }
        };
        self.rows.push(Effect {
            call_id: call_id.to_owned(),
            attempt,
            tool: tool.clone(),
            operation: operation.clone(),
            permitted_by,
            decided_at: at,
            outcome,
            settled,
        });
    }

    /// What a person said of an attempt. Where it is sent again or the run ends, it stays unknown.
    fn answer(&mut self, name: &str, answer: &Answer, at: i64) {
        let Some((call_id, attempt)) = self.asked.remove(name) else { return };
        let (outcome, by) = match answer {
            Answer::Happened { by, .. } => (EffectOutcome::Reported, by),
            Answer::Retry { by } | Answer::End { by, .. } => (EffectOutcome::Unknown, by),
            Answer::Allowed { by } => {
                self.approved.insert(call_id, (attempt, by.clone()));
                return;
            }
            // A denial follows.
            Answer::Denied { by, .. } => {
                self.refused.insert(call_id, (attempt, by.clone()));
                return;
            }
            // The same, or another question.
            Answer::Expired {} | Answer::Withdrawn { .. } | Answer::Misfit { .. } => return,
            // Where people had said yes to the call, these said yes to the next attempt.
            Answer::Answered { by, .. } => {
                if self.approved.get(&call_id).is_some_and(|(approved, _)| *approved == attempt) {
                    self.approved.insert(call_id, (attempt.saturating_add(1), by.clone()));
                }
                return;
            }
        };
        self.settle(&call_id, attempt, outcome, Some(settled(by, at)));
    }

    /// Of a call that was never decided nothing was sent: it is no effect.
    fn settle(&mut self, call_id: &str, attempt: u32, outcome: EffectOutcome, settled: Option<Settled>) {
        let row = self.rows.iter_mut().rev().find(|row| row.call_id == call_id && row.attempt == attempt);
        if let Some(row) = row {
            row.outcome = outcome;
            row.settled = settled;
        }
    }
}

impl PermittedBy {
    /// Who let an attempt through that was allowed. `approved`: the people who said yes to this very attempt; `given`: what
    /// people gave for the rest of the run, by name.
    pub(crate) fn tell(
        judged: Option<&Judged>,
        approved: Option<&[Approver]>,
        given: &BTreeMap<String, GrantedBy>,
    ) -> Self {
        match (approved, judged) {
            (_, Some(judged)) if !judged.grants.is_empty() => {
                Self::Grants(judged.grants.iter().filter_map(|name| given.get(name).cloned()).collect())
            }
            (Some(by), _) => Self::People(by.to_vec()),
            (_, Some(judged)) => Self::Policies(judged.opinions.iter().filter_map(allows).collect()),
            (_, None) => Self::AllowList,
        }
    }
}

impl fmt::Display for PermittedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllowList => f.write_str("allow list"),
            Self::Policies(policies) => write!(f, "policy {}", policies.join(", ")),
            Self::People(people) => {
                let people: Vec<String> = people.iter().map(|one| format!("{} ({})", one.by, one.policy)).collect();
                f.write_str(&people.join(", "))
            }
            Self::Grants(grants) => {
                let one = |it: &GrantedBy| format!("grant {} of {} ({})", it.grant, it.people.join(", "), it.policy);
                f.write_str(&grants.iter().map(one).collect::<Vec<_>>().join("; "))
            }
            Self::Nobody(reason) => write!(f, "denied: {reason:?}"),
        }
    }
}

/// The policy and its rule, where it is one that counts and says yes.
fn allows(opinion: &Opinion) -> Option<String> {
    let counts = match opinion.source {
        PolicySource::Plan | PolicySource::Default => true,
        PolicySource::Current | PolicySource::Audit => false,
    };
    (counts && opinion.verdict == OpinionVerdict::Allow).then(|| with_rule(&opinion.policy, opinion.rule.as_deref()))
}

fn with_rule(policy: &str, rule: Option<&str>) -> String {
    rule.map_or_else(|| policy.to_owned(), |rule| format!("{policy}/{rule}"))
}

fn settled(by: &str, at: i64) -> Settled {
    Settled { by: by.to_owned(), at }
}
