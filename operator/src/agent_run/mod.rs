//! AgentRun: from a request to a pod to an end. The journal is the truth about what a run did; this folder is
//! what Kubernetes sees of it.

mod adopt;
mod asks;
pub(crate) mod child_end;
pub(crate) mod children;
mod deletion;
pub(crate) mod drift;
mod end;
mod ending;
mod epochs;
mod follow;
mod grants;
pub(crate) mod lineage;
mod memory;
mod observe;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod pod;
pub(crate) mod questions;
pub mod queue;
#[cfg(test)]
mod reconcile_tests;
pub mod resolve;
mod settle;
mod start;
pub mod status;
#[cfg(test)]
mod status_tests;

use std::sync::Arc;
use std::time::Duration;

use belay_crds::AgentRun;
use belay_protocol::RunState;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use tokio::time::Instant;

pub use self::deletion::Orphans;
pub use self::ending::Ending;
pub use self::memory::Memories;
use self::plan::Decision;
use self::queue::{Lobby, Ticket};
use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::guard::Guard;
use crate::journal::{Journal, JournalError};
use crate::metrics::{Kind, Metrics};
use crate::namespaces::{Namespaces, Service};
use crate::network::fences::Fences;
use crate::pod_template::SharedSettings;
use crate::probe_pod::ProbePods;
use crate::quota::Quotas;
use crate::service::Sessions;
use crate::tuning::Times;
use crate::world::{Queues, World, has_ended};
use crate::writes::Writes;

/// What a run waits on that waits for its turn.
const QUEUE: &str = "queue";

/// What passes over AgentRuns need.
pub struct AgentRuns {
    pub world: World,
    pub namespaces: Namespaces,
    pub queues: Queues,
    pub journal: Journal,
    pub sessions: Sessions,
    pub quotas: Quotas,
    pub guard: Guard,
    pub probes: ProbePods,
    pub fences: Fences,
    pub lobby: Lobby,
    pub writes: Writes,
    pub settings: SharedSettings,
    pub metrics: Metrics,
    pub clock: Clock,
    pub times: Times,
    pub memories: Memories,
}

impl Reconcile for AgentRuns {
    type Kind = AgentRun;
    const KIND: Kind = Kind::AgentRun;

    /// 1. Look: journal, Agent, namespace, pod, stream. 2. Decide, purely. 3. Do that one thing, status included.
    ///
    /// Whatever it was is journaled first and re-derived after a restart.
    async fn reconcile(&self, run: Arc<AgentRun>) -> Result<Action, Failure> {
        if self.is_tidy(&run) {
            return self.expire(&run).await;
        }
        let sight = match self.observe(&run).await {
            Err(Failure::Journal { source: JournalError::Damaged { damage, .. }, .. }) => {
                return self.write_off(&run, &damage).await;
            }
            sight => sight?,
        };
        let decision = sight.observed(&run, self.journal.id(), self.times, self.clock.milliseconds()).decide();
        tracing::debug!(namespace = run.namespace(), name = run.name_any(), ?decision, "decided");
        match decision {
            Decision::Hold => Ok(Action::requeue(Duration::from_secs(30))),
            Decision::Wait(wait) => self.wait(&run, &sight, wait).await,
            Decision::Start => self.start(&run, &sight).await,
            Decision::Launch => self.launch(&run, &sight).await,
            Decision::EndEpoch(ending) => self.end_epoch(&run, &sight, ending).await,
            Decision::Bury { epoch, proof } => self.bury(&sight, epoch, proof).await,
            Decision::Ask { call_id } => self.ask(&run, &sight, &call_id).await,
            Decision::Post { name } => self.post(&run, &sight, &name).await,
            Decision::Settle { name } => self.settle(&run, &sight, &name).await,
            Decision::Count { name } => self.count(&sight, &name).await,
            Decision::PostChild { name } => self.post_child(&run, &sight, &name).await,
            Decision::SettleChild { name } => self.settle_child(&sight, &name).await,
            Decision::Adopt { tool } => self.adopt(&sight, &tool).await,
            Decision::PostGrant { name } => self.post_grant(&run, &sight, &name).await,
            Decision::RevokeGrant { name, why } => self.revoke_grant(&run, &sight, &name, why).await,
            Decision::RequestCancel => self.request_cancel(&run, &sight).await,
            Decision::Follow(follow) => self.follow(&run, &sight, follow).await,
            Decision::End(ending) => self.end(&run, &sight, ending).await,
            Decision::Finish => self.finish(&run, &sight).await,
        }
    }
}

impl AgentRuns {
    /// Whether the run is over and nothing is left of it but its object: thousands of such are looked at after
    /// every start, without reading one journal row.
    fn is_tidy(&self, run: &AgentRun) -> bool {
        let id = resolve::id_of(run);
        let pod = run.status.as_ref().and_then(|status| status.pod_ref.as_ref());
        let open = pod.is_some_and(|pod| self.journal.run_of_pod(&id.namespace, &pod.name).is_some());
        // A status is anyone's who may write it; the journal's word is first.
        let goes_on = self.journal.is_open(&id.uid);
        has_ended(run) && !goes_on && !open && self.namespaces.pods_of(&id.namespace, &id.uid).is_empty()
    }

    /// Runs that could start if there were room.
    fn waiting(&self) -> Vec<Ticket> {
        let could = |run: &AgentRun| {
            // One that waits for its turn again has been accepted long ago.
            let status = run.status.as_ref();
            let queued = status.and_then(|status| status.waiting_on.as_ref()).is_some_and(|on| on.kind == QUEUE);
            let accepted = status.is_some_and(|status| status.journal.is_some()) && !queued;
            let leaving = run.spec.cancel == Some(true) || run.metadata.deletion_timestamp.is_some();
            let namespace = run.metadata.namespace.as_deref().unwrap_or_default();
            !has_ended(run)
                && !accepted
                && !leaving
                && self.namespaces.service(namespace) == Service::Enabled
                && self.agent_view(run) == plan::AgentView::Ready
        };
        let waiting: Vec<Ticket> = self.world.runs.state_filter(could).iter().map(|run| self.ticket(run)).collect();
        self.metrics.runs_waiting.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        waiting
    }

    fn ticket(&self, run: &AgentRun) -> Ticket {
        let namespace = run.namespace().unwrap_or_default();
        let agent = self.world.agent(&namespace, &run.spec.agent_ref.name);
        let limit = agent.and_then(|agent| agent.spec.max_concurrent_runs);
        Ticket {
            created: run.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::MAX, |time| time.0),
            name: run.name_any(),
            uid: run.uid().unwrap_or_default(),
            agent: run.spec.agent_ref.name.clone(),
            agent_limit: limit.and_then(|limit| usize::try_from(limit).ok()),
            namespace,
        }
    }

    /// A slot or a place to start became free: whoever is next takes it.
    async fn wake_next(&self) {
        self.metrics.runs_active.set(i64::try_from(self.lobby.len()).unwrap_or(i64::MAX));
        for ticket in self.lobby.next(self.waiting(), Instant::now()) {
            self.queues.runs.push(&ticket.namespace, &ticket.name).await;
        }
    }

    async fn leave_lobby(&self, uid: &str) {
        if self.lobby.leave(uid) {
            self.wake_next().await;
        }
    }
}

/// Runs of the journal that have not ended hold their slots from the start.
pub async fn resume_slots(journal: &Journal, lobby: &Lobby) -> Result<(), crate::journal::JournalError> {
    for run in journal.live_runs().await? {
        let state = match journal.state(&run.uid).await {
            Err(JournalError::Damaged { run, damage }) => {
                tracing::error!(run, %damage, "a damaged run takes no slot");
                continue;
            }
            state => state?,
        };
        // One that waits for a person, or for a child, gave its slot back.
        let waits =
            |state: &RunState| !state.asks.is_empty() || !state.children.is_empty() || state.drifted().next().is_some();
        let holds = |state: &Arc<RunState>| state.live_epoch().is_some() || !waits(state);
        let plan = state.filter(holds).and_then(|state| state.plan.clone());
        if let Some(plan) = plan {
            lobby.resume(&run.uid, &run.namespace, &plan.agent.name);
        }
    }
    Ok(())
}
