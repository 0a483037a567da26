//! Runs without a live epoch: whether older ones can still act, what is waited for, and when the next one opens.
//! Pure.

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_protocol::event::{DeathProof, EndReason, EpochEnd};
use belay_protocol::fold::RunState;

use super::epoch::quarantine;
use super::{AgentView, CRASHES_MAX, Decision, Follow, Observed, Wait};
use crate::agent_run::drift::DriftSeen;
use crate::agent_run::ending::Ending;
use crate::namespaces::Service;
use crate::pod_view::PodView;

/// Between runners that get lost one after the other.
const BACKOFF_MOST: Duration = Duration::from_mins(1);

impl Observed<'_> {
    /// An epoch is dead when the kubelet says so, or when whatever it was permitted has run out.
    pub(super) fn buried(&self) -> Option<Decision> {
        let state = self.state?;
        self.undead.iter().find_map(|undead| {
            let proof = match undead.pod {
                PodView::Ended(_) => DeathProof::Reported,
                PodView::Unseen
                | PodView::Absent
                | PodView::Foreign
                | PodView::Lost { .. }
                | PodView::Blocked { .. }
                | PodView::Starting
                | PodView::Running { .. }
                | PodView::Leaving => {
                    if undead.waited < quarantine(state, self.times) {
                        return None;
                    }
                    DeathProof::Quarantine
                }
            };
            Some(Decision::Bury { epoch: undead.epoch, proof })
        })
    }

    pub(super) fn resting(&self, state: &RunState) -> Decision {
        if let DriftSeen::Accepted { tool, .. } = &self.drift
            && self.status_doubt.is_none()
        {
            return Decision::Adopt { tool: tool.clone() };
        }
        let over = |wait: &Wait| wait.reason == RunReason::DefinitionDrifted && self.may_list_again();
        if state.started_at.is_some()
            && let Some(wait) = self.wait(state).filter(|wait| !over(wait))
        {
            return Decision::Follow(Follow::Waiting(wait));
        }
        if state.crashes >= CRASHES_MAX {
            return Decision::End(self.given_up(state));
        }
        let left = backoff(state.restarts).saturating_sub(self.resting_for);
        if left > Duration::ZERO && state.epoch.is_some() {
            return Decision::Follow(Follow::Backoff(left));
        }
        self.unlaunched()
    }

    /// Accepted, and no pod may exist yet.
    pub(super) fn unlaunched(&self) -> Decision {
        match (self.service, &self.agent) {
            (Service::Starting, _) => Decision::Hold,
            (Service::NotEnabled | Service::Forbidden, _) => self.not_accepted(),
            (Service::Enabled, AgentView::Suspended) => match self.state.and_then(|state| self.wait(state)) {
                Some(wait) => Decision::Wait(wait),
                None => Decision::Hold,
            },
            (Service::Enabled, AgentView::Missing | AgentView::NotReady(_) | AgentView::Ready) => Decision::Launch,
        }
    }

    fn given_up(&self, state: &RunState) -> Ending {
        let epoch = state.epoch.as_ref();
        let silent = epoch.and_then(|epoch| epoch.ended).is_some_and(|ended| ended.cause == EpochEnd::NoHello);
        let reason = if silent { EndReason::RunnerSilent } else { EndReason::RunnerCrashed };
        let pod = epoch.map(|epoch| epoch.pod_name.as_str()).unwrap_or_default();
        let how = self.last_words.as_deref().unwrap_or("ended without a word to the operator");
        let message = format!(
            "{CRASHES_MAX} runners in a row ended before the run came any further; the last, in pod {pod}, {how}"
        );
        Ending::failed(reason, EpochEnd::Exited, message).naming_unknowns(state)
    }
}

/// None before the first retry, then a second, doubling.
fn backoff(restarts: u32) -> Duration {
    match restarts {
        0 | 1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2).min(6)).min(BACKOFF_MOST),
    }
}
