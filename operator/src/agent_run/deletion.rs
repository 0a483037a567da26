//! Runs whose AgentRun is gone: the pod goes, the journal records the end and keeps
//! the rows for its retention time. A watch that says so is believed only after the API server agreed, by name
//! and uid.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use belay_crds::AgentRun;
use belay_protocol::Event;
use belay_protocol::plan::ObjectId;
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::AgentRuns;
use super::ending::Ending;
use crate::controller::Failure;
use crate::journal::JournalError;

const QUEUE_MAX: usize = 1024;
const AGAIN: Duration = Duration::from_secs(5);

/// Where sightings of deleted AgentRuns go. Cheap to clone.
#[derive(Clone)]
pub struct Orphans(mpsc::Sender<ObjectId>);

impl Orphans {
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ObjectId>) {
        let (report, reports) = mpsc::channel(QUEUE_MAX);
        (Self(report), reports)
    }

    /// Full means that the watch waits. After the end nobody looks, and the next start looks at all.
    pub async fn report(&self, run: ObjectId) {
        let _ = self.0.send(run).await;
    }
}

impl AgentRuns {
    /// Closes runs whose AgentRun was deleted until `shutdown`; what fails is tried again.
    pub async fn close_orphans(self: Arc<Self>, mut reports: mpsc::Receiver<ObjectId>, shutdown: CancellationToken) {
        let mut failed: VecDeque<ObjectId> = VecDeque::new();
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => return,
                report = reports.recv() => report,
                () = tokio::time::sleep(AGAIN), if !failed.is_empty() => failed.pop_front(),
            };
            let Some(run) = next else { return };
            match self.close_orphan(&run).await {
                Ok(()) => {}
                // Only a person can mend it; the garbage collector takes its pod.
                Err(Failure::Journal { source: source @ JournalError::Damaged { .. }, .. }) => {
                    tracing::error!(namespace = run.namespace, name = run.name, %source, "deleted run left as it is");
                }
                Err(failure) => {
                    tracing::warn!(namespace = run.namespace, name = run.name, %failure, "deleted run not closed yet");
                    failed.push_back(run);
                }
            }
        }
    }

    /// Runs of the journal that no AgentRun stands for any more: they were deleted while nobody watched.
    pub async fn report_missing(&self, orphans: &Orphans) -> Result<(), Failure> {
        let kept = self.journal.kept_runs().await.map_err(Failure::journal("listing runs"))?;
        for run in kept {
            let there = self.world.run(&run.namespace, &run.name);
            if there.and_then(|there| there.uid()).as_deref() != Some(run.uid.as_str()) {
                orphans.report(run).await;
            }
        }
        Ok(())
    }

    async fn close_orphan(&self, run: &ObjectId) -> Result<(), Failure> {
        let api: Api<AgentRun> = Api::namespaced(self.writes.client(), &run.namespace);
        let found = api.get_opt(&run.name).await.map_err(Failure::api("reading the AgentRun"))?;
        if found.is_some_and(|found| found.uid().as_deref() == Some(run.uid.as_str())) {
            return Ok(());
        }
        let reading = "reading the journal";
        let state = self.journal.state(&run.uid).await.map_err(Failure::journal(reading))?;
        if let Some(state) = state.filter(|state| state.end.is_none() || state.live_epoch().is_some()) {
            let mut events = Ending::cancelled("the AgentRun was deleted").events(Some(&state), Duration::ZERO);
            if state.end.is_some() {
                events.retain(|event| !matches!(event, Event::RunEnded { .. }));
            }
            let appended = self.journal.append(run, state.seq, events).await;
            appended.map_err(Failure::journal("writing the journal"))?;
            // Without a stream there is nobody to tell.
            let _ = self.sessions.bye(&run.uid, "the AgentRun was deleted");
            tracing::info!(namespace = run.namespace, name = run.name, uid = run.uid, "deleted run closed");
            self.delete_pod_of(run, &state).await;
            self.wake_family(&run.namespace, &state).await;
        }
        self.journal.mark_deleted(&run.uid).await.map_err(Failure::journal("marking a run as deleted"))?;
        self.memories.forget(&run.uid);
        self.quotas.over(&run.uid);
        self.leave_lobby(&run.uid).await;
        Ok(())
    }

    /// The garbage collector would do so too, when it comes to it; so failing is no reason to keep rows. In a
    /// namespace that went, or is served no more, it is the only one who may.
    async fn delete_pod_of(&self, run: &ObjectId, state: &belay_protocol::RunState) {
        let Some(epoch) = &state.epoch else { return };
        let pod = self.namespaces.pod(&run.namespace, &epoch.pod_name);
        let Some(pod) = pod.filter(|pod| super::observe::is_ours(pod, &run.uid)) else { return };
        if let Err(failure) = self.delete_pod(&run.namespace, &pod).await {
            tracing::debug!(namespace = run.namespace, pod = epoch.pod_name, %failure, "left to the garbage collector");
        }
    }
}
