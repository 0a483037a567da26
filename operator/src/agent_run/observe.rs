//! Everything that a decision about a run depends on, gathered from caches; the API server is asked only where
//! a cache may be behind.

use std::sync::Arc;
use std::time::Duration;

use belay_crds::conditions;
use belay_crds::{Agent, AgentRun, RUN_UID_LABEL};
use belay_protocol::fold::RunState;
use belay_protocol::plan::{Limits, ObjectId};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::AgentRuns;
use super::memory::{MadePod, Memory};
use super::plan::{AgentView, JournalHead, Observed, Stream};
use super::resolve::{id_of, limits};
use crate::controller::Failure;
use crate::namespaces::Service;
use crate::pod_view::{PodView, view};
use crate::references;

/// How far the cache of pods may be behind a pod that was just created.
const CACHE_LAG_MAX: Duration = Duration::from_secs(5);

/// What was seen in one look.
pub struct Sight {
    pub id: ObjectId,
    pub state: Option<Arc<RunState>>,
    pub head: Option<JournalHead>,
    pub agent: Option<Arc<Agent>>,
    pub agent_view: AgentView,
    pub service: Service,
    pub pod: PodView,
    pub memory: Memory,
    pub stream: Stream,
    pub limits: Limits,
}

impl Sight {
    #[must_use]
    pub fn observed<'a>(&'a self, run: &'a AgentRun, journal_id: &'a str, now: i64) -> Observed<'a> {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.elapsed());
        Observed {
            run,
            journal_id,
            head: self.head.clone(),
            state: self.state.as_deref(),
            agent: self.agent_view.clone(),
            service: self.service,
            pod: self.pod.clone(),
            pod_was_there: self.memory.pod.is_some(),
            stream: self.stream,
            cancelling_for: since(self.memory.cancelling_since),
            ended_for: since(self.memory.pod_ended_since),
            limits: self.limits,
            now,
        }
    }
}

impl AgentRuns {
    pub(super) async fn observe(&self, run: &AgentRun) -> Result<Sight, Failure> {
        let id = id_of(run);
        let state = self.journal.state(&id.uid).await.map_err(Failure::journal("reading the journal"))?;
        let head = self.journal_head(&id.uid).await?;
        let service = self.namespaces.service(&id.namespace);
        let agent = self.world.agent(&id.namespace, &run.spec.agent_ref.name);
        let pod = self.pod_of(&id, state.as_deref(), service).await?;
        let ended = matches!(pod, PodView::Ended(_));
        let cancelling = state.as_ref().is_some_and(|state| state.cancel_requested);
        let memory = self.memories.change(&id.uid, |memory| {
            let now = Instant::now();
            memory.pod_ended_since = ended.then(|| memory.pod_ended_since.unwrap_or(now));
            memory.cancelling_since = cancelling.then(|| memory.cancelling_since.unwrap_or(now));
            memory.clone()
        });
        let frozen = state.as_ref().and_then(|state| state.plan.as_ref()).map(|plan| plan.limits);
        let limits = frozen.unwrap_or_else(|| {
            limits(agent.as_ref().and_then(|agent| agent.spec.limits.as_ref()), run.spec.limits.as_ref())
        });
        let stream = if self.sessions.is_live(&id.uid) { Stream::Live } else { Stream::Closed };
        let agent_view = self.agent_view(run);
        Ok(Sight { id, state, head, agent, agent_view, service, pod, memory, stream, limits })
    }

    pub(super) async fn journal_head(&self, uid: &str) -> Result<Option<JournalHead>, Failure> {
        let head = self.journal.head(uid).await.map_err(Failure::journal("reading the journal"))?;
        Ok(head.map(|head| JournalHead { seq: head.seq, hash: head.hash.to_string() }))
    }

    pub(super) fn agent_view(&self, run: &AgentRun) -> AgentView {
        let namespace = run.metadata.namespace.as_deref().unwrap_or_default();
        let Some(agent) = self.world.agent(namespace, &run.spec.agent_ref.name) else {
            return AgentView::Missing;
        };
        if agent.spec.suspend == Some(true) {
            return AgentView::Suspended;
        }
        let status = agent.status.as_ref().map_or(&[][..], |status| &status.conditions);
        if conditions::is_ready(status, agent.metadata.generation) {
            return AgentView::Ready;
        }
        let subject = format!("AgentRun {}: spec.agentRef", run.name_any());
        AgentView::NotReady(references::not_ready(&subject, "Agent", &*agent, status).unwrap_or_default())
    }

    /// The epoch's pod. A cache that does not have it is believed only after the API server agreed.
    async fn pod_of(&self, id: &ObjectId, state: Option<&RunState>, service: Service) -> Result<PodView, Failure> {
        let Some(epoch) = state.and_then(RunState::live_epoch) else { return Ok(PodView::Absent) };
        if service != Service::Enabled {
            return Ok(PodView::Unseen);
        }
        let made = self.memories.get(&id.uid).pod;
        let pod = match self.namespaces.pod(&id.namespace, &epoch.pod_name) {
            Some(pod) => pod,
            None if made.as_ref().is_some_and(|made| made.at.elapsed() < CACHE_LAG_MAX) => {
                return Ok(PodView::Starting);
            }
            None => match self.fetch_pod(&id.namespace, &epoch.pod_name).await? {
                Some(pod) => Arc::new(pod),
                None => return Ok(PodView::Absent),
            },
        };
        let claimed = epoch.claim.as_ref().map(|claim| claim.pod_uid.as_str());
        let expected = claimed.or(made.as_ref().map(|made| made.uid.as_str()));
        if !is_ours(&pod, &id.uid) || expected.is_some_and(|uid| pod.metadata.uid.as_deref() != Some(uid)) {
            return Ok(PodView::Foreign);
        }
        if made.is_none() {
            self.remember_pod(&id.uid, &pod);
        }
        Ok(view(&pod))
    }

    pub(super) fn remember_pod(&self, uid: &str, pod: &Pod) {
        let made = MadePod { uid: pod.uid().unwrap_or_default(), at: Instant::now() };
        self.memories.change(uid, |memory| memory.pod = Some(made));
    }

    pub(super) async fn fetch_pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, Failure> {
        let pods: Api<Pod> = Api::namespaced(self.writes.client(), namespace);
        pods.get_opt(name).await.map_err(Failure::api("reading the pod"))
    }
}

/// Only the operator makes pods of that name (admission); the label says for whom.
pub(super) fn is_ours(pod: &Pod, run_uid: &str) -> bool {
    pod.labels().get(RUN_UID_LABEL).is_some_and(|uid| uid == run_uid)
}
