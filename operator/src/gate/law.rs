//! What policies say of a call, as the gate asks for it. How they come to it is [`Law`]'s business: it may take its
//! time, so it is asked before the journal's transaction, never within.

use std::collections::BTreeMap;

use async_trait::async_trait;
use belay_protocol::event::ProposedCall;
use belay_protocol::fold::RunState;
use belay_protocol::judgement::{Judged, PolicyRequirement};

/// Judges calls by the policies of a run's plan, and by those policies as they are now.
#[async_trait]
pub trait Law: Send + Sync + 'static {
    async fn judge(&self, run: &RunState, call: &ProposedCall) -> Word;
}

/// What was found out about one proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Judged(Judged),
    /// Policies ask, and these grants of the run could let it go: its arguments fit, and nobody has revoked them.
    Granted {
        judged: Judged,
        fits: Vec<String>,
    },
    /// A policy could not be evaluated in time: the call is held.
    Stalled(String),
}

/// By call id and attempt. A proposal without a word is held.
pub type Words = BTreeMap<(String, u32), Word>;

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
