//! From one pod of a run to the next: an epoch ends in the journal before anything else happens, and its pod is
//! taken away.

use belay_crds::AgentRun;
use belay_protocol::event::{DeathProof, EpochEnd, Event};
use belay_protocol::fold::RunState;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::AgentRuns;
use super::observe::Sight;
use super::plan::EpochEnding;
use crate::controller::Failure;
use crate::gate::{ModelRequest, close};
use crate::pod_view::{PodView, view};

impl AgentRuns {
    /// 1. Journal what it leaves behind, its end, and its death where that is proven. 2. Let its runner go.
    /// 3. Take its pod away.
    pub(super) async fn end_epoch(
        &self,
        run: &AgentRun,
        sight: &Sight,
        ending: EpochEnding,
    ) -> Result<Action, Failure> {
        let Some(state) = sight.state.as_deref() else { return Ok(Action::await_change()) };
        let EpochEnding { epoch, cause, proof, message } = ending;
        // A suspension may end at this very moment: what the runner was not seen to be kept from counts as spent.
        let withheld = cause == EpochEnd::Released && self.sessions.let_go(&sight.id.uid);
        let request = if withheld { ModelRequest::Withheld } else { ModelRequest::Given };
        let mut events = close(state, request, &format!("{message} before the answer came"));
        let active_milliseconds = u64::try_from(sight.active_for.as_millis()).unwrap_or(u64::MAX);
        events.push(Event::EpochEnded { epoch, cause, active_milliseconds });
        let claimed = state.live_epoch().is_some_and(|epoch| epoch.claim.is_some());
        events.extend(proof.filter(|_| claimed).map(|proof| Event::EpochDead { epoch, proof }));
        let appended = self.append(sight, events).await;
        self.sessions.let_gone(&sight.id.uid);
        appended?;
        let (namespace, name) = (&sight.id.namespace, &sight.id.name);
        tracing::info!(namespace, name, epoch, ?cause, message, "epoch ended");
        // A runner that was let go is not one that was lost.
        let lost = cause != EpochEnd::Released;
        self.memories.change(&sight.id.uid, |memory| {
            if !lost {
                return;
            }
            let words = message.split_once(' ').and_then(|(_, rest)| rest.split_once(' '));
            memory.last_words = words.map(|(_, how)| how.to_owned());
        });
        // Without a stream there is nobody to tell: its pod is deleted in any case.
        let _ = self.sessions.bye(&sight.id.uid, &message);
        if cause == EpochEnd::Released {
            self.leave_lobby(&sight.id.uid).await;
        }
        let sight = self.observe(run).await?;
        self.clear_old_pods(&sight).await?;
        Ok(Action::requeue(super::follow::SOON))
    }

    pub(super) async fn bury(&self, sight: &Sight, epoch: u64, proof: DeathProof) -> Result<Action, Failure> {
        self.append(sight, vec![Event::EpochDead { epoch, proof }]).await?;
        tracing::info!(namespace = sight.id.namespace, name = sight.id.name, epoch, ?proof, "epoch is dead");
        Ok(Action::requeue(super::follow::SOON))
    }

    /// Pods of the run that no live epoch needs.
    pub(super) async fn clear_old_pods(&self, sight: &Sight) -> Result<(), Failure> {
        let Some(state) = sight.state.as_deref().filter(|state| state.end.is_none()) else { return Ok(()) };
        let live = state.live_epoch().map(|epoch| epoch.pod_name.as_str());
        for pod in self.namespaces.pods_of(&sight.id.namespace, &sight.id.uid) {
            let name = pod.name_any();
            let deleted = pod.metadata.deletion_timestamp.is_some();
            if !deleted && live != Some(name.as_str()) && !is_unburied(state, &name, &view(&pod)) {
                self.delete_pod(&sight.id.namespace, &pod).await?;
            }
        }
        Ok(())
    }
}

/// The proof of an epoch's death is its pod: it stays until the journal holds that.
fn is_unburied(state: &RunState, pod_name: &str, pod: &PodView) -> bool {
    matches!(pod, PodView::Ended(_)) && state.undead.values().any(|name| name == pod_name)
}
