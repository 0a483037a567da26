//! What policies say of a call, as the gate asks for it. How they come to it is [`Law`]'s business: it may take its
//! time, so it is asked before the journal's transaction, never within.

use std::collections::BTreeMap;

use async_trait::async_trait;
use belay_protocol::Digest;
use belay_protocol::event::ProposedCall;
use belay_protocol::fold::RunState;
use belay_protocol::judgement::{
    DEFAULT_POLICY, Judged, Judgement, Opinion, OpinionVerdict, PolicyRequirement, PolicySource,
};
use belay_protocol::plan::{AskTerms, Effects};

/// Judges calls by the policies of a run's plan, and by those policies as they are now.
#[async_trait]
pub trait Law: Send + Sync + 'static {
    async fn judge(&self, run: &RunState, call: &ProposedCall) -> Word;
}

/// The built-in policy alone.
pub struct BuiltIn;

#[async_trait]
impl Law for BuiltIn {
    async fn judge(&self, run: &RunState, call: &ProposedCall) -> Word {
        let effects = run.plan.as_ref().map(|plan| plan.effects(&call.tool, &call.operation));
        Word::Judged(default_word(effects.unwrap_or_default()))
    }
}

/// What was found out about one proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Judged(Judged),
    /// A policy could not be evaluated in time: the call is held.
    Stalled(String),
}

/// By call id and attempt. A proposal without a word is held.
pub type Words = BTreeMap<(String, u32), Word>;

/// The built-in policy, where no other has a say: what only reads is allowed, everything else is asked.
#[must_use]
pub fn default_word(effects: Effects) -> Judged {
    let AskTerms { quorum, separation_of_duty, expires_after_seconds } = AskTerms::default();
    let (judgement, verdict) = match effects {
        Effects::None => (Judgement::Allow, OpinionVerdict::Allow),
        Effects::Idempotent | Effects::NonIdempotent => {
            let policy = DEFAULT_POLICY.to_owned();
            let asks = PolicyRequirement { policy, generation: 0, quorum, separation_of_duty, expires_after_seconds };
            (Judgement::Ask { requirements: vec![asks] }, OpinionVerdict::Ask)
        }
    };
    let opinion = Opinion {
        policy: DEFAULT_POLICY.to_owned(),
        generation: 0,
        digest: Digest::zero(),
        source: PolicySource::Default,
        verdict,
        rule: None,
        error: None,
    };
    Judged { judgement, opinions: vec![opinion] }
}

/// Whether what people allowed is all that is wanted now: every policy its own yes, on terms as strict.
#[must_use]
pub fn covers(given: &[PolicyRequirement], wanted: &[PolicyRequirement]) -> bool {
    wanted.iter().all(|want| {
        given.iter().any(|had| {
            had.policy == want.policy
                && had.quorum >= want.quorum
                && (had.separation_of_duty || !want.separation_of_duty)
        })
    })
}
