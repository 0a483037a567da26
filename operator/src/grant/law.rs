//! What policies say of a call, and by which grants it could go where they ask.

use std::sync::Arc;

use async_trait::async_trait;
use belay_protocol::event::ProposedCall;
use belay_protocol::fold::{HeldGrant, RunState};
use belay_protocol::judgement::{Judgement, PolicyRequirement};

use crate::clock::Clock;
use crate::gate::{Law, Word, is_good};
use crate::guard::{Guard, State};
use crate::policy::Judge;

/// Patterns that are tried for one policy: all of them together have to come to an end in time.
const TRIED_MAX: usize = 16;
/// Grants that are looked up for one policy: another call of the batch may take the last use of the first.
const LOOKED_UP_MAX: usize = 4;

/// The ApprovalGrants of the cluster.
#[async_trait]
pub trait GrantObjects: Send + Sync + 'static {
    /// Whether the one of that uid is there, and nobody is deleting it. False also where nobody could say.
    async fn stands(&self, namespace: &str, name: &str, uid: &str) -> bool;
}

/// Judges as [`Judge`] does, and looks for grants where policies ask.
pub struct GrantingLaw {
    pub judge: Judge,
    pub objects: Arc<dyn GrantObjects>,
    pub guard: Guard,
}

#[async_trait]
impl Law for GrantingLaw {
    async fn judge(&self, run: &RunState, call: &ProposedCall) -> Word {
        match Law::judge(&self.judge, run, call).await {
            Word::Judged(judged) => {
                let fits = match &judged.judgement {
                    Judgement::Ask { requirements } => self.fits(run, call, requirements).await,
                    Judgement::Allow | Judgement::Deny { .. } => Vec::new(),
                };
                if fits.is_empty() { Word::Judged(judged) } else { Word::Granted { judged, fits } }
            }
            word @ (Word::Granted { .. } | Word::Stalled(_)) => word,
        }
    }
}

impl GrantingLaw {
    /// Names of grants by which the call could go. Empty where one of the policies has none: then people are asked.
    async fn fits(&self, run: &RunState, call: &ProposedCall, wanted: &[PolicyRequirement]) -> Vec<String> {
        let Some(plan) = &run.plan else { return Vec::new() };
        let namespace = &plan.run.namespace;
        let now = Clock.milliseconds().max(run.updated_at);
        // What runs out first comes first.
        let of = |want: &PolicyRequirement| -> Vec<&HeldGrant> {
            let good = |held: &&HeldGrant| self.is_guarded(held) && is_good(held, call, want, now);
            let mut held: Vec<&HeldGrant> = run.grants.values().filter(good).collect();
            held.sort_by_key(|held| (held.grant.expires_at, &held.grant.name));
            held.truncate(TRIED_MAX);
            held
        };
        let candidates: Vec<Vec<&HeldGrant>> = wanted.iter().map(of).collect();
        if candidates.iter().any(Vec::is_empty) {
            return Vec::new();
        }
        let patterns = candidates.iter().flatten();
        let patterns = patterns.map(|held| (held.grant.name.clone(), held.grant.pattern.when.clone())).collect();
        let fitting = self.judge.fitting(namespace, patterns, call.args.clone()).await;
        let mut found = Vec::new();
        for mut held in candidates {
            held.retain(|held| fitting.contains(&held.grant.name));
            let before = found.len();
            for held in held.into_iter().take(LOOKED_UP_MAX) {
                let uid = held.uid.as_deref().unwrap_or_default();
                if self.objects.stands(namespace, &held.grant.name, uid).await {
                    found.push(held.grant.name.clone());
                }
            }
            if found.len() == before {
                return Vec::new();
            }
        }
        found
    }

    /// Whether the rules under which people gave it are in force, and have been all the while.
    fn is_guarded(&self, held: &HeldGrant) -> bool {
        match self.guard.state() {
            State::Up { stamp, .. } => stamp == held.grant.guard,
            State::Down(_) => false,
        }
    }
}
