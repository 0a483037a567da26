//! Runs with a live epoch: whether its pod is still there, and whether it is needed. Pure.

use std::time::Duration;

use belay_crds::WaitingOn;
use belay_crds::reason::RunReason;
use belay_protocol::event::{DeathProof, EpochEnd};
use belay_protocol::fold::{CallState, Epoch, ModelState, RunState};
use kube::ResourceExt;

use super::{Decision, EpochEnding, Follow, LAST_WORDS_MAX, Observed, SILENT_MAX, Stream, Wait, seconds_since};
use crate::namespaces::Service;
use crate::pod_view::{Exit, PodView};
use crate::quota::{HeldBy, LONG_WAIT, Waits};
use crate::tuning::Times;

impl Observed<'_> {
    /// Whether the epoch is over because its pod is. What the kubelet reported as ended can act no more; an
    /// object that merely vanished proves nothing.
    pub(super) fn lost_epoch(&self, epoch: &Epoch) -> Option<Decision> {
        let claimed = epoch.claim.is_some();
        let (cause, proof, how) = match &self.pod {
            PodView::Ended(_) if claimed && self.stream == Stream::Live && self.ended_for < LAST_WORDS_MAX => {
                return None;
            }
            PodView::Ended(exit) => {
                let (cause, how) = ended(exit);
                (cause, Some(DeathProof::Reported), how)
            }
            PodView::Absent if claimed || self.pod_was_there => (EpochEnd::PodLost, None, "is gone".to_owned()),
            PodView::Foreign => {
                (EpochEnd::PodLost, None, "is another pod, that the operator did not create".to_owned())
            }
            PodView::Lost { why } => (EpochEnd::PodLost, None, format!("was given up: {why}")),
            PodView::Running { since } if !claimed && self.is_silent(since.as_millisecond()) => {
                let how = format!(
                    "ran for {} s without saying Hello: see its log, and whether the network lets it reach the operator",
                    SILENT_MAX.as_secs()
                );
                (EpochEnd::NoHello, None, how)
            }
            PodView::Absent
            | PodView::Unseen
            | PodView::Blocked { .. }
            | PodView::Starting
            | PodView::Running { .. }
            | PodView::Leaving => return None,
        };
        let message = format!("pod {} {how}", epoch.pod_name);
        Some(Decision::EndEpoch(EpochEnding { epoch: epoch.number, cause, proof, message }))
    }

    fn is_silent(&self, since: i64) -> bool {
        seconds_since(since, self.now) >= SILENT_MAX.as_secs()
    }

    pub(super) fn live(&self, epoch: &Epoch, state: &RunState) -> Decision {
        if epoch.claim.is_none() {
            return self.unclaimed(epoch);
        }
        let Some(wait) = self.wait(state) else { return Decision::Follow(self.at_work(state)) };
        // What a child comes to another pod reads: this one would wait for nothing.
        let in_vain = self.drift_is_over() || wait.reason == RunReason::ChildRunning;
        let patient = self.idle_for < self.times.wait_grace && !in_vain;
        if is_idle(state, self.withheld) && !patient {
            let message = format!("the run waits for {}", wait.on.display);
            let (epoch, cause) = (epoch.number, EpochEnd::Released);
            return Decision::EndEpoch(EpochEnding { epoch, cause, proof: None, message });
        }
        Decision::Follow(Follow::Waiting(wait))
    }

    /// A runner at work says so, unless its calls wait for an earlier pod's end, or nobody looks after it.
    fn at_work(&self, state: &RunState) -> Follow {
        let namespace = self.run.namespace().unwrap_or_default();
        if let Some(complaint) = self.service.complaint(&namespace) {
            let message = format!(
                "its runner goes on, but nobody replaces its pod or takes it away: {complaint}; belay cancel {} ends the run",
                self.run.name_any()
            );
            return Follow::Held { reason: RunReason::NamespaceNotEnabled, message };
        }
        let told_to_wait = state.calls.values().any(|call| matches!(call, CallState::Later { .. }));
        match state.undead.values().next().filter(|_| told_to_wait) {
            Some(pod) => {
                let seconds = quarantine(state, self.times).as_secs();
                let message = format!(
                    "pod {pod} is gone, but its process may still act: calls wait until the kubelet reports its end, or \
                     until it cannot act any more, {seconds} s at most"
                );
                Follow::Held { reason: RunReason::Quarantine, message }
            }
            None => {
                self.model_wait.as_ref().filter(|waits| waits.time >= LONG_WAIT).map_or(Follow::Running, rate_limited)
            }
        }
    }

    fn unclaimed(&self, epoch: &Epoch) -> Decision {
        match &self.pod {
            PodView::Unseen => match self.service {
                Service::NotEnabled | Service::Forbidden => self.not_accepted(),
                Service::Starting | Service::Enabled => Decision::Hold,
            },
            PodView::Absent => self.unlaunched(),
            PodView::Blocked { why } => Decision::Follow(Follow::Waiting(Wait {
                on: WaitingOn::new("pod", &epoch.pod_name),
                reason: RunReason::PodBlocked,
                message: format!("pod {} cannot start: {why}", epoch.pod_name),
            })),
            PodView::Foreign
            | PodView::Lost { .. }
            | PodView::Ended(_)
            | PodView::Starting
            | PodView::Leaving
            | PodView::Running { .. } => Decision::Follow(Follow::Starting),
        }
    }
}

/// A request that waits for so long that people may ask why.
fn rate_limited(waits: &Waits) -> Follow {
    let model = &waits.model;
    let message = match waits.held_by {
        Some(HeldBy::Refusal) => format!(
            "Model {model}: its provider asked for patience (429), and the run's request waits its turn: lower the load, or \
             set spec.rateLimits to what the key is good for"
        ),
        Some(HeldBy::ConcurrentRequests) => limit_words(model, "concurrentRequests"),
        Some(HeldBy::RequestsPerMinute) => limit_words(model, "requestsPerMinute"),
        Some(HeldBy::TokensPerMinute) => limit_words(model, "tokensPerMinute"),
        None => format!("Model {model}: the run's request waits its turn"),
    };
    Follow::Held { reason: RunReason::RateLimited, message }
}

fn limit_words(model: &str, field: &str) -> String {
    format!(
        "Model {model}: spec.rateLimits.{field} is reached, and the run's request waits its turn: raise it, or run less at once"
    )
}

/// Whether the runner has nothing under way: no call, and no model request that it has leave for.
#[must_use]
pub fn is_idle(state: &RunState, withheld: bool) -> bool {
    let asking = matches!(state.model, ModelState::InFlight { .. }) && !withheld;
    !asking && state.calls_in_flight().next().is_none()
}

fn ended(exit: &Exit) -> (EpochEnd, String) {
    match exit {
        Exit::Clean => (EpochEnd::Exited, "ended by itself".to_owned()),
        Exit::Crashed { why } => (EpochEnd::Exited, format!("ended with {why}")),
        Exit::Stopped => (EpochEnd::PodLost, "was deleted".to_owned()),
        Exit::Evicted { why } => (EpochEnd::PodLost, format!("was taken away ({why})")),
    }
}

/// How long after its end an epoch may still act: a permit of its last moment, and the call that it was for.
#[must_use]
pub fn quarantine(state: &RunState, times: Times) -> Duration {
    let tools = state.plan.iter().flat_map(|plan| &plan.tools);
    let call = tools.map(|tool| tool.call_timeout_seconds).max().unwrap_or(0);
    let permit = Duration::from_millis(u64::from(belay_protocol::PERMIT_VALID_MILLISECONDS));
    permit + Duration::from_secs(u64::from(call)) + times.quarantine_margin
}
