//! The end of a run: journaled first, then shown, then tidied up.

use std::time::Duration;

use belay_crds::AgentRun;
use belay_protocol::event::{EndReason, EpochEnd, Event, Outcome, RunEnd};
use belay_protocol::fold::RunState;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::AgentRuns;
use super::drift::is_behind;
use super::ending::Ending;
use super::observe::Sight;
use super::plan::LEAVING_MAX;
use super::resolve::id_of;
use super::status::{Facts, Stand, fold, reason_of};
use crate::controller::Failure;
use crate::journal::Damage;
use crate::pod_view::{PodView, view};
use crate::world::has_ended;
use crate::writes::Target;

const LOOK_AGAIN: Duration = Duration::from_secs(2);
const DELETING_AGAIN: Duration = Duration::from_secs(30);

impl AgentRuns {
    /// 1. Journal the end. 2. Tell the runner. 3. Go on as with every run that is over.
    pub(super) async fn end(&self, run: &AgentRun, sight: &Sight, ending: Ending) -> Result<Action, Failure> {
        let words = ending.end.message.clone();
        tracing::info!(
            namespace = sight.id.namespace,
            name = sight.id.name,
            reason = reason_of(ending.end.reason).as_str(),
            "run ends"
        );
        self.append(sight, ending.events(sight.state.as_deref(), sight.active_for)).await?;
        // Without a stream there is nobody to tell: the pod is deleted in any case.
        let _ = self.sessions.bye(&sight.id.uid, &words);
        let sight = self.observe(run).await?;
        self.finish(run, &sight).await
    }

    /// 1. Status says how it ended, once; its children hear of it. 2. Its slot goes to the next. 3. Its pod goes. 4. In time it goes too.
    pub(super) async fn finish(&self, run: &AgentRun, sight: &Sight) -> Result<Action, Failure> {
        if let Some(state) = sight.state.as_deref().filter(|_| !has_ended(run)) {
            self.close_asks(sight, state).await?;
            self.wake_children(&sight.id.namespace, state).await;
            self.conclude(run, sight, state).await?;
        }
        self.leave_lobby(&sight.id.uid).await;
        match self.clear_pods(sight).await? {
            Cleared::Yes => {}
            // The append announces itself; what is left is done in that pass.
            Cleared::Soon | Cleared::Closed => return Ok(Action::requeue(LOOK_AGAIN)),
            Cleared::Deleting => return Ok(Action::requeue(DELETING_AGAIN)),
        }
        self.memories.forget(&sight.id.uid);
        self.expire(run).await
    }

    /// A run whose records do not hold together: nobody can tell what it did. Kubernetes alone may stop a run.
    pub(super) async fn write_off(&self, run: &AgentRun, damage: &Damage) -> Result<Action, Failure> {
        let id = id_of(run);
        if !has_ended(run) {
            let message = format!(
                "the journal's records of this run are damaged: {damage}. What it did is not known; look at its effects \
                 before you create another AgentRun. belay journal export {} shows what can be read",
                id.name
            );
            tracing::error!(namespace = id.namespace, name = id.name, %damage, "run written off");
            let end = RunEnd { outcome: Outcome::Failed, reason: EndReason::JournalLost, message };
            let stand = Stand::ended(&end);
            let facts =
                Facts { run, state: None, witness: None, pod_uid: None, stand: &stand, now: Time(self.clock.now()) };
            let (status, flip) = fold(&facts);
            self.writes.apply_status(run, &status).await?;
            self.writes.announce(run, flip, &stand.verdict()).await;
        }
        let _ = self.sessions.bye(&id.uid, "the journal's records of this run are damaged");
        for pod in self.namespaces.pods_of(&id.namespace, &id.uid) {
            self.delete_pod(&id.namespace, &pod).await?;
        }
        self.leave_lobby(&id.uid).await;
        self.expire(run).await
    }

    async fn conclude(&self, run: &AgentRun, sight: &Sight, state: &RunState) -> Result<(), Failure> {
        let Some(end) = &state.end else { return Ok(()) };
        self.publish(run, sight, &Stand::ended(end)).await?;
        let priced = state.plan.as_ref().is_some_and(|plan| plan.is_priced());
        self.metrics.run_ended(end.outcome, reason_of(end.reason), priced.then(|| state.cost.micro_usd()));
        self.doubt(sight, state, end.reason, end.outcome).await;
        Ok(())
    }

    /// A run that found a Credential or a server otherwise than status says: a probe looks again.
    async fn doubt(&self, sight: &Sight, state: &RunState, reason: EndReason, outcome: Outcome) {
        let Some(plan) = &state.plan else { return };
        let namespace = &sight.id.namespace;
        if outcome == Outcome::Failed && reason == EndReason::CredentialUnavailable {
            for credential in &plan.credentials {
                self.probes.again(&credential.uid);
                self.queues.credentials.push(namespace, &credential.name).await;
            }
        }
        for tool in &plan.tools {
            let unavailable = reason == EndReason::ToolUnavailable && !state.listings.contains_key(&tool.name);
            let behind = || self.world.tool(namespace, &tool.name).is_some_and(|it| is_behind(state, tool, &it));
            if unavailable || (state.differs.contains_key(&tool.name) && behind()) {
                self.probes.again(&tool.uid);
                self.queues.tools.push(namespace, &tool.name).await;
            }
        }
    }

    /// A pod whose run is over gets a moment to end by itself, so that its log has its last lines.
    async fn clear_pods(&self, sight: &Sight) -> Result<Cleared, Failure> {
        let state = sight.state.as_deref();
        let since_end = state.map_or(i64::MAX, |state| self.clock.milliseconds().saturating_sub(state.updated_at));
        // A clock that was set back makes nobody wait.
        let since_end = if since_end < 0 { i64::MAX } else { since_end };
        let patient = state.is_some_and(|state| state.live_epoch().is_some())
            && since_end < i64::try_from(LEAVING_MAX.as_millis()).unwrap_or(i64::MAX);
        let lingering = since_end < i64::try_from(self.times.log_linger.as_millis()).unwrap_or(i64::MAX);
        let mut cleared = Cleared::Yes;
        for pod in self.namespaces.pods_of(&sight.id.namespace, &sight.id.uid) {
            let leaving = match view(&pod) {
                PodView::Ended(_) => (pod.metadata.deletion_timestamp.is_none() && !lingering).then_some(()),
                PodView::Leaving => None,
                PodView::Unseen
                | PodView::Absent
                | PodView::Foreign
                | PodView::Lost { .. }
                | PodView::Blocked { .. }
                | PodView::Starting
                | PodView::Running { .. } => (!patient).then_some(()),
            };
            if leaving.is_some() {
                self.delete_pod(&sight.id.namespace, &pod).await?;
            }
            cleared = if patient { Cleared::Soon } else { Cleared::Deleting };
        }
        if let Some(epoch) = state.and_then(RunState::live_epoch).filter(|_| cleared == Cleared::Yes || !patient) {
            let (epoch, claimed) = (epoch.number, epoch.claim.is_some());
            let cause = if claimed { EpochEnd::Completed } else { EpochEnd::PodLost };
            let active_milliseconds = u64::try_from(sight.active_for.as_millis()).unwrap_or(u64::MAX);
            self.append(sight, vec![Event::EpochEnded { epoch, cause, active_milliseconds }]).await?;
            if cleared == Cleared::Yes {
                cleared = Cleared::Closed;
            }
        }
        Ok(cleared)
    }

    pub(super) async fn delete_pod(&self, namespace: &str, pod: &Pod) -> Result<(), Failure> {
        let target = Target {
            namespace: namespace.to_owned(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            resource_version: None,
        };
        self.writes.delete::<Pod>(&target).await
    }

    /// Deletes the AgentRun once its `ttlSecondsAfterFinished` has passed. What stays until then says that it is over.
    pub(super) async fn expire(&self, run: &AgentRun) -> Result<Action, Failure> {
        let ended = run.status.as_ref().and_then(|status| status.completion_time.as_ref());
        let Some(ended) = ended else { return Ok(Action::await_change()) };
        let gone = self.clock.now().as_second().saturating_sub(ended.0.as_second());
        let left = run.spec.ttl_seconds_after_finished.map(|ttl| i64::from(ttl).saturating_sub(gone));
        if left.is_none_or(|left| left > 0) {
            self.close_grants(run).await?;
            let seconds = left.map(|left| Duration::from_secs(left.unsigned_abs()));
            return Ok(seconds.map_or_else(Action::await_change, Action::requeue));
        }
        let target = Target {
            namespace: run.namespace().unwrap_or_default(),
            name: run.name_any(),
            uid: run.uid().unwrap_or_default(),
            // The ttl may have been changed since it was read.
            resource_version: run.resource_version(),
        };
        self.writes.delete::<AgentRun>(&target).await?;
        Ok(Action::await_change())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cleared {
    Yes,
    /// No pod is left, and the journal was told just now.
    Closed,
    /// A pod is about to end by itself.
    Soon,
    /// Its deletion is under way; the watch tells.
    Deleting,
}
