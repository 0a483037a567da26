//! The parts that the operator is put together of, each built from its core.

use std::sync::Arc;

use belay_crds::admission::Rules;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio_util::task::TaskTracker;

use super::feeds::Feeds;
use super::{Core, OperatorError, STREAMS_SPARE};
use crate::agent_run::queue::QueueLimits;
use crate::agent_run::{AgentRuns, Orphans};
use crate::gate::Law;
use crate::grant::{self, GrantingLaw};
use crate::guard::{Guard, Live, Patrol};
use crate::namespaces::Namespaces;
use crate::network::fences::Fences;
use crate::peers::TokenPeers;
use crate::policy::{Current, Judge};
use crate::probe_pod::{self, ProbePods};
use crate::quota::{Quotas, Rates};
use crate::read_grant::{self, ApiGrants, Readers};
use crate::service::{AddressCheck, Options, Probes, RunService, Sessions};
use crate::suspension::Suspensions;
use crate::world::{Queues, Relations, World};
use crate::writes::Writes;

impl Core {
    pub(super) fn feeds(
        &self,
        relations: &Relations,
        suspensions: &Suspensions,
        current: &Current,
        runs: &Arc<AgentRuns>,
        tasks: &TaskTracker,
    ) -> Feeds {
        let (orphans, reports) = Orphans::new();
        // Before the first list: it may report more runs than wait in the queue.
        tasks.spawn(self.journal.clone().keep_house(self.shutdown.clone()));
        tasks.spawn(Arc::clone(runs).close_orphans(reports, self.shutdown.clone()));
        Feeds {
            client: self.client.clone(),
            relations: relations.clone(),
            namespaces: runs.namespaces.clone(),
            suspensions: suspensions.clone(),
            current: current.clone(),
            runs: Arc::clone(runs),
            orphans,
            pulses: self.pulses.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    pub(super) fn guard(&self, world: &World) -> Result<Guard, OperatorError> {
        let rules = Rules::shipped(&self.config.namespace)?;
        let api = Arc::new(Live(self.client.clone()));
        Ok(Guard::new(api, rules, world.approvals.clone(), self.metrics.clone()))
    }

    /// What policies say of calls, and by which grants they may go.
    pub(super) fn law(&self, judge: &Judge, guard: &Guard) -> Arc<dyn Law> {
        let objects = Arc::new(grant::Live(self.client.clone()));
        Arc::new(GrantingLaw { judge: judge.clone(), objects, guard: guard.clone() })
    }

    /// The limits of Models as their objects have them at each look.
    pub(super) fn quotas(world: &World) -> Quotas {
        let models = world.clone();
        Quotas::new(Arc::new(move |model| {
            let model = models.model(&model.namespace, &model.name);
            model.and_then(|model| model.spec.rate_limits.as_ref().map(Rates::from)).unwrap_or_default()
        }))
    }

    /// Only once every Approval is known: it forges a decision where there is one.
    pub(super) fn patrol(&self, guard: Guard, relations: &Relations, tasks: &TaskTracker) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.config.namespace.clone()),
            name: Some(std::env::var("HOSTNAME").unwrap_or_else(|_| "belay-operator".to_owned())),
            uid: self.config.pod_uid.clone(),
            ..ObjectReference::default()
        };
        let patrol = Patrol {
            guard,
            client: self.client.clone(),
            relations: relations.clone(),
            about,
            pulses: self.pulses.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        };
        patrol.start(tasks);
    }

    /// Answers readers of the journal, and deletes their grants afterwards.
    pub(super) fn let_readers_in(&self, guard: &Guard, writes: &Writes, tasks: &TaskTracker) {
        let grants = Arc::new(ApiGrants(self.client.clone()));
        self.reading.open(Readers::new(grants, self.journal.clone(), guard.clone()));
        tasks.spawn(read_grant::sweep(self.client.clone(), writes.clone(), self.shutdown.clone()));
    }

    pub(super) fn probe_pods(
        &self,
        writes: &Writes,
        namespaces: &Namespaces,
        probes: &Probes,
        queues: &Queues,
        fences: &Fences,
    ) -> ProbePods {
        ProbePods::new(probe_pod::Parts {
            client: self.client.clone(),
            writes: writes.clone(),
            namespaces: namespaces.clone(),
            probes: probes.clone(),
            queues: queues.clone(),
            settings: self.settings.clone(),
            fences: fences.clone(),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        })
    }

    pub(super) fn queue_limits(&self) -> QueueLimits {
        let count = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        QueueLimits {
            installation: count(self.config.max_runs),
            namespace: count(self.config.max_runs_per_namespace),
            starting: count(self.config.max_starting_pods),
        }
    }

    pub(super) fn address_check(&self) -> AddressCheck {
        if self.config.verify_peer_address { AddressCheck::Required } else { AddressCheck::Off }
    }

    pub(super) fn run_service(
        &self,
        namespaces: &Namespaces,
        sessions: Sessions,
        probes: Probes,
        suspensions: Suspensions,
        law: Arc<dyn Law>,
        quotas: Quotas,
    ) -> RunService {
        let peers =
            TokenPeers { client: self.client.clone(), namespaces: namespaces.clone(), metrics: self.metrics.clone() };
        let address_check = self.address_check();
        let streams_max = self.queue_limits().installation.saturating_add(STREAMS_SPARE);
        RunService {
            journal: self.journal.clone(),
            sessions,
            probes,
            peers: Arc::new(peers),
            suspended: Arc::new(move |agent| suspensions.is_suspended(&agent.namespace, &agent.name)),
            law,
            quotas,
            options: Options { address_check, streams_max, run_bytes_max: self.config.run_bytes_max() },
        }
    }
}
