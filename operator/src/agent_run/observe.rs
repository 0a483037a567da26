//! Everything that a decision about a run depends on, gathered from caches; the API server is asked only where
//! a cache may be behind.

use std::sync::Arc;
use std::time::Duration;

use belay_crds::conditions;
use belay_crds::{Agent, AgentRun, RUN_UID_LABEL};
use belay_protocol::chain::Head;
use belay_protocol::fold::RunState;
use belay_protocol::plan::{Limits, ObjectId};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::AgentRuns;
use super::children::ChildSeen;
use super::drift::{self, DriftSeen};
use super::lineage::Lineage;
use super::memory::{MadePod, Memory};
use super::plan::{AgentView, AskSeen, GrantSeen, JournalHead, Observed, Stream, Undead, is_idle};
use super::resolve::{id_of, limits};
use crate::controller::Failure;
use crate::guard::State;
use crate::namespaces::Service;
use crate::pod_view::{PodView, view};
use crate::quota::Waits;
use crate::references;
use crate::tuning::Times;

/// How far the cache of pods may be behind a pod that was just created.
const CACHE_LAG_MAX: Duration = Duration::from_secs(5);
/// How long after its grace time a deleted pod may still be reported by its kubelet.
const DELETION_LATE_MILLISECONDS: i64 = 15_000;

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
    pub undead: Vec<Undead>,
    pub asks: Vec<AskSeen>,
    pub children: Vec<ChildSeen>,
    pub lineage: Lineage,
    /// Shared, since a pass holds several looks.
    pub drift: Arc<DriftSeen>,
    pub grants: Vec<GrantSeen>,
    pub guard_down: Option<String>,
    pub status_doubt: Option<String>,
    pub active_for: Duration,
    pub withheld: bool,
    pub model_wait: Option<Waits>,
}

impl Sight {
    #[must_use]
    pub fn observed<'a>(&'a self, run: &'a AgentRun, journal_id: &'a str, times: Times, now: i64) -> Observed<'a> {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.elapsed());
        Observed {
            run,
            journal_id,
            head: self.head.clone(),
            state: self.state.as_deref(),
            agent: self.agent_view.clone(),
            service: self.service,
            pod: self.pod.clone(),
            pod_was_there: self.made_pod().is_some(),
            stream: self.stream,
            cancelling_for: since(self.memory.cancelling_since),
            ended_for: since(self.memory.pod_ended_since),
            undead: self.undead.clone(),
            asks: self.asks.clone(),
            children: self.children.clone(),
            lineage: &self.lineage,
            drift: (*self.drift).clone(),
            grants: self.grants.clone(),
            guard_down: self.guard_down.clone(),
            status_doubt: self.status_doubt.clone(),
            active_for: self.active_for,
            last_words: self.memory.last_words.clone(),
            resting_for: since(self.memory.resting_since),
            idle_for: since(self.memory.idle_since),
            withheld: self.withheld,
            model_wait: self.model_wait.clone(),
            limits: self.limits,
            times,
            now,
        }
    }
}

impl Sight {
    /// The live epoch's pod, if this process made or saw it.
    pub(super) fn made_pod(&self) -> Option<&MadePod> {
        let epoch = self.state.as_deref().and_then(RunState::live_epoch)?;
        self.memory.pod.as_ref().filter(|made| made.epoch == epoch.number)
    }
}

impl AgentRuns {
    pub(super) async fn observe(&self, run: &AgentRun) -> Result<Sight, Failure> {
        let id = id_of(run);
        let state = self.journal.state(&id.uid).await.map_err(Failure::journal("reading the journal"))?;
        let head = self.journal_head(run).await?;
        let service = self.namespaces.service(&id.namespace);
        let agent = self.world.agent(&id.namespace, &run.spec.agent_ref.name);
        let pod = self.pod_of(&id, state.as_deref(), service).await?;
        let ended = matches!(pod, PodView::Ended(_));
        let cancelling = state.as_ref().is_some_and(|state| state.cancel_requested);
        let withheld = self.sessions.is_withheld(&id.uid);
        let resting = state.as_ref().is_some_and(|state| state.live_epoch().is_none());
        let idle = state.as_ref().is_some_and(|state| is_idle(state, withheld));
        let (memory, active_for) = self.memories.change(&id.uid, |memory| {
            let now = Instant::now();
            let keep = |is: bool, since: Option<Instant>| is.then(|| since.unwrap_or(now));
            memory.pod_ended_since = keep(ended, memory.pod_ended_since);
            memory.cancelling_since = keep(cancelling, memory.cancelling_since);
            memory.resting_since = keep(resting, memory.resting_since);
            memory.idle_since = keep(idle, memory.idle_since);
            let undead = state.iter().flat_map(|state| state.undead.keys().copied());
            memory.undead_since =
                undead.map(|epoch| (epoch, memory.undead_since.get(&epoch).copied().unwrap_or(now))).collect();
            let active_for = memory.active_for(state.as_deref(), self.clock.milliseconds());
            (memory.clone(), active_for)
        });
        let undead = state.as_ref().map(|state| self.undead(&id, state, &memory)).unwrap_or_default();
        let (asks, grants) = match &state {
            Some(state) => (self.asks(&id, state).await?, self.grants(&id, state).await?),
            None => (Vec::new(), Vec::new()),
        };
        let children = match &state {
            Some(state) => self.children(&id, state).await?,
            None => Vec::new(),
        };
        let lineage = self.lineage(run, state.as_deref()).await?;
        let tool_of = |name: &str| self.world.tool(&id.namespace, name);
        let drift = Arc::new(state.as_ref().map(|state| drift::look(state, tool_of)).unwrap_or_default());
        let frozen = state.as_ref().and_then(|state| state.plan.as_ref()).map(|plan| plan.limits);
        let limits = frozen.unwrap_or_else(|| {
            limits(agent.as_ref().and_then(|agent| agent.spec.limits.as_ref()), run.spec.limits.as_ref())
        });
        let stream = if self.sessions.is_live(&id.uid) { Stream::Live } else { Stream::Closed };
        let agent_view = self.agent_view(run);
        let model_wait = self.quotas.waits(&id.uid);
        Ok(Sight {
            id,
            state,
            head,
            agent,
            agent_view,
            service,
            pod,
            memory,
            stream,
            limits,
            undead,
            asks,
            children,
            lineage,
            drift,
            grants,
            guard_down: self.guard_down(),
            status_doubt: self.guard.doubts_status().map(|why| why.to_string()),
            active_for,
            withheld,
            model_wait,
        })
    }

    fn guard_down(&self) -> Option<String> {
        match self.guard.state() {
            State::Up { .. } => None,
            State::Down(why) => Some(why.to_string()),
        }
    }

    pub(super) async fn journal_head(&self, run: &AgentRun) -> Result<Option<JournalHead>, Failure> {
        let (uid, reading) = (run.uid().unwrap_or_default(), Failure::journal("reading the journal"));
        let Some(head) = self.journal.head(&uid).await.map_err(reading)? else { return Ok(None) };
        let holds_witness = self.holds_witness(run, &uid, &head).await?;
        Ok(Some(JournalHead { seq: head.seq, hash: head.hash.to_string(), holds_witness }))
    }

    /// Whether the record that status names is still the one in its place. Each one is looked up once.
    async fn holds_witness(&self, run: &AgentRun, uid: &str, head: &Head) -> Result<bool, Failure> {
        let witness = run.status.as_ref().and_then(|status| status.journal.as_ref());
        let Some(witness) = witness.filter(|witness| witness.id == self.journal.id()) else { return Ok(true) };
        let seq = u64::try_from(witness.seq).unwrap_or_default();
        if seq == 0 || seq > head.seq || self.memories.get(uid).witness.as_ref() == Some(witness) {
            return Ok(true);
        }
        let stored = if seq == head.seq {
            Some(head.hash)
        } else {
            self.journal.hash_at(uid, seq).await.map_err(Failure::journal("reading the journal"))?
        };
        let holds = stored.is_some_and(|hash| hash.to_string() == witness.hash);
        if holds {
            self.memories.change(uid, |memory| memory.witness = Some(witness.clone()));
        }
        Ok(holds)
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
        let made = self.memories.get(&id.uid).pod.filter(|made| made.epoch == epoch.number);
        let pod = match self.namespaces.pod(&id.namespace, &epoch.pod_name) {
            Some(pod) => pod,
            // One that has said Hello was there: where the cache lacks it, it may be gone.
            None if epoch.claim.is_none() && made.as_ref().is_some_and(|made| made.at.elapsed() < CACHE_LAG_MAX) => {
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
            self.remember_pod(&id.uid, epoch.number, &pod);
        }
        Ok(self.overdue(&pod).unwrap_or_else(|| view(&pod)))
    }

    /// Nobody confirms a deletion whose grace time is long over: the kubelet is not there.
    fn overdue(&self, pod: &Pod) -> Option<PodView> {
        let due = pod.metadata.deletion_timestamp.as_ref()?.0.as_millisecond();
        let late = self.clock.milliseconds().saturating_sub(due) > DELETION_LATE_MILLISECONDS;
        (late && view(pod) == PodView::Leaving).then(|| PodView::Lost { why: "its deletion is overdue".to_owned() })
    }

    /// What is seen of epochs that may still act.
    fn undead(&self, id: &ObjectId, state: &RunState, memory: &Memory) -> Vec<Undead> {
        let see = |(epoch, pod_name): (&u64, &String)| {
            let pod = self.namespaces.pod(&id.namespace, pod_name).filter(|pod| is_ours(pod, &id.uid));
            let waited = memory.undead_since.get(epoch).map_or(Duration::ZERO, Instant::elapsed);
            Undead { epoch: *epoch, pod: pod.map_or(PodView::Absent, |pod| view(&pod)), waited }
        };
        state.undead.iter().map(see).collect()
    }

    pub(super) fn remember_pod(&self, uid: &str, epoch: u64, pod: &Pod) {
        let made = MadePod { epoch, uid: pod.uid().unwrap_or_default(), at: Instant::now() };
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
