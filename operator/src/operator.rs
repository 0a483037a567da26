//! Puts the operator together: caches, controllers, the run service, and the order in which they start and
//! stop.

mod caches;
mod feeds;
mod parts;

use std::sync::Arc;
use std::time::Duration;

use belay_crds::admission::Unreadable;
use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::caches::{Pulls, caches, queues};
use crate::agent::Agents;
use crate::agent_run::queue::Lobby;
use crate::agent_run::{AgentRuns, resume_slots};
use crate::approval_policy::ApprovalPolicies;
use crate::certificate::{Certificate, CertificateError};
use crate::clock::Clock;
use crate::config::Config;
use crate::controller;
use crate::credential::Credentials;
use crate::http::{self, Page, Reading, Stage, Stages};
use crate::journal::{Journal, JournalError};
use crate::leader::{Leadership, Loss, lead};
use crate::metrics::Metrics;
use crate::model::Models;
use crate::namespaces::Namespaces;
use crate::network::fences::Fences;
use crate::pod_template::{PodSettings, SharedSettings};
use crate::policy::{Current, Judge};
use crate::probe_pod::ProbePods;
use crate::rollback;
use crate::service::{self, Probes, ServeError, Sessions};
use crate::suspension::Suspensions;
use crate::telemetry::{CollectorError, Export, Telemetry};
use crate::tls::{Reloadable, TlsError, trust_bundle};
use crate::tool::Tools;
use crate::tuning::Tuning;
use crate::watches::Pulses;
use crate::world::{Relations, World};
use crate::writes::Writes;

/// Streams beyond the runs that may be under way: probes, and reconnects that overlap.
const STREAMS_SPARE: usize = 32;
/// How long a leader that is none any more may take to stop: others lead 5 s after it gave up.
const STOP_WITHIN: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("listening on {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Rules(#[from] Unreadable),
    #[error(transparent)]
    Collector(#[from] CollectorError),
    #[error("serving health and metrics: {0}")]
    Http(std::io::Error),
    #[error("a watch ended before it had listed anything")]
    WatchEnded,
    #[error("this operator is not the leader any more: {0}")]
    LeadershipLost(Loss),
}

/// Runs the operator until `shutdown`, then drains: streams are told to come again, passes under way end, the
/// journal is closed, and the Lease is given back last. Until it leads, only health and metrics are served.
pub async fn run(
    config: Config,
    client: Client,
    tuning: Tuning,
    shutdown: CancellationToken,
) -> Result<(), OperatorError> {
    let metrics = Metrics::default();
    let (pulses, stages, reading) = (Pulses::default(), Stages::default(), Reading::default());
    let http = listen(config.http_address).await?;
    let page = Page {
        pulses: pulses.clone(),
        stages: stages.clone(),
        registry: Arc::new(metrics.registry()),
        readers: reading.clone(),
    };
    let page = tokio::spawn(http::serve(http, page, shutdown.clone()));
    let leadership = lead(client.clone(), &config.namespace, config.identity(), &shutdown).await;
    let result = match leadership {
        Some(leadership) => {
            stages.reach(Stage::Starting);
            let outset =
                Outset { config, client, tuning, metrics, pulses, stages, reading, shutdown: shutdown.clone() };
            while_leading(leadership, outset).await
        }
        None => Ok(()),
    };
    // Also where serving failed: nothing may go on without it.
    shutdown.cancel();
    match page.await {
        Ok(page) => result.and(page.map_err(OperatorError::Http)),
        Err(_) => result,
    }
}

/// What is there before anything is led.
struct Outset {
    config: Config,
    client: Client,
    tuning: Tuning,
    metrics: Metrics,
    pulses: Pulses,
    stages: Stages,
    reading: Reading,
    shutdown: CancellationToken,
}

/// Everything that only a leader does. Who stops being one gets a moment to stop, and then is stopped.
async fn while_leading(leadership: Leadership, outset: Outset) -> Result<(), OperatorError> {
    let shutdown = outset.shutdown.clone();
    let result = tokio::select! {
        result = outset.serve(&leadership) => result,
        () = overstayed(&leadership, &shutdown) => Ok(()),
    };
    match leadership.resign().await {
        Ok(()) => result,
        Err(loss) => Err(OperatorError::LeadershipLost(loss)),
    }
}

async fn overstayed(leadership: &Leadership, shutdown: &CancellationToken) {
    leadership.lost.cancelled().await;
    shutdown.cancel();
    tokio::time::sleep(STOP_WITHIN).await;
}

impl Outset {
    async fn serve(self, leadership: &Leadership) -> Result<(), OperatorError> {
        let Self { config, client, tuning, metrics, pulses, stages, reading, shutdown } = self;
        let certificate = Certificate::new(client.clone(), config.namespace.clone(), config.certificate_names());
        let material = certificate.ensure(Clock.now()).await?;
        let settings = SharedSettings::new(pod_settings(&config, trust_bundle(&material)));
        let tls = Reloadable::new(&material)?;
        let journal =
            Journal::open_observed(&config.journal_path(), config.journal_settings(), tuning.commits.clone()).await?;
        let export = Export::begin(config.collector(), &metrics)?;
        let telemetry = Telemetry::new(metrics.clone(), export.exporter.clone(), config.span_content());
        Arc::new(telemetry).attend(&journal).await;
        journal.raise_fence(&leadership.token.lease_uid, leadership.token.transitions).await?;
        let finding = rollback::compare(leadership.previous.as_ref(), journal.id(), journal.commits().await?);
        rollback::heed(&journal, &finding).await?;
        let tally = rollback::Tally::keep(&journal, shutdown.clone());
        leadership.bear_witness(tally.testimony());
        tracing::info!(journal = journal.id(), reign = leadership.token.transitions, "journal open");

        let core = Core {
            config,
            client,
            tuning,
            journal: journal.clone(),
            metrics,
            pulses,
            settings,
            reading,
            shutdown: shutdown.clone(),
        };
        let renewal = certificate.keep(tls.clone(), core.settings.clone(), material, shutdown.clone());
        let renewal = tokio::spawn(renewal);
        let result = tokio::select! {
            result = core.serve(tls, stages) => result,
            // Another leader writes now: whatever this one still had in mind is void.
            () = journal.fenced() => Err(OperatorError::Journal(JournalError::Fenced)),
        };
        shutdown.cancel();
        tally.count().await;
        journal.close().await;
        export.end().await;
        let _ = renewal.await;
        result
    }
}

/// What everything else is made of.
struct Core {
    config: Config,
    client: Client,
    tuning: Tuning,
    journal: Journal,
    metrics: Metrics,
    pulses: Pulses,
    settings: SharedSettings,
    reading: Reading,
    shutdown: CancellationToken,
}

impl Core {
    /// 1. Caches. 2. Everything that works with them. 3. Watches, until all have listed. 4. The run service.
    /// 5. Controllers. 6. Until the end: drain in the opposite order.
    async fn serve(self, tls: Reloadable, stages: Stages) -> Result<(), OperatorError> {
        let (caches, world) = caches();
        self.metrics.approvals.follow(world.approvals.clone());
        let (queues, pulls) = queues();
        let network = self.config.network();
        let shared = Arc::new(network.shared_services());
        let relations = Relations { world: world.clone(), queues: queues.clone(), shared };
        let namespaces = self.namespaces(&relations);
        let (sessions, probes, suspensions) = (Sessions::new(), Probes::default(), Suspensions::default());
        let (current, writes) = (Current::default(), Writes::new(self.client.clone()));
        let judge = Judge::new(current.clone());
        let fences = Fences::new(writes.clone(), namespaces.clone(), network);
        let probe_pods = self.probe_pods(&writes, &namespaces, &probes, &queues, &fences);
        let lobby = Lobby::new(self.queue_limits());
        resume_slots(&self.journal, &lobby).await?;
        let (guard, quotas) = (self.guard(&world)?, Self::quotas(&world));
        let runs = Arc::new(AgentRuns {
            world: world.clone(),
            guard: guard.clone(),
            namespaces: namespaces.clone(),
            queues: queues.clone(),
            journal: self.journal.clone(),
            sessions: sessions.clone(),
            quotas: quotas.clone(),
            probes: probe_pods.clone(),
            fences,
            lobby,
            writes: writes.clone(),
            settings: self.settings.clone(),
            metrics: self.metrics.clone(),
            clock: Clock,
            times: self.tuning.times,
            memories: crate::agent_run::Memories::default(),
        });

        let tasks = TaskTracker::new();
        tasks.spawn(quotas.clone().keep(self.shutdown.clone()));
        self.let_readers_in(&guard, &writes, &tasks);
        let feeds = self.feeds(&relations, &suspensions, &current, &runs, &tasks);
        feeds.watch(caches, &tasks).await?;
        let law = self.law(&judge, &guard);
        self.patrol(guard, &relations, &tasks);
        feeds.listen_to(&judge, &tasks);
        feeds.listen(&sessions, &self.journal, &tasks);

        let listener = listen(self.config.grpc_address).await?;
        let service = self.run_service(&namespaces, sessions, probes, suspensions, law, quotas);
        let grpc = service::serve(listener, tls, service, self.shutdown.clone());
        stages.reach(Stage::Serving);
        tracing::info!(grpc = %self.config.grpc_address, "serving runners");
        self.control(
            &tasks,
            world,
            pulls,
            &Controllers { runs, namespaces: namespaces.clone(), probe_pods: probe_pods.clone(), writes, judge },
        );

        let served = grpc.await;
        self.shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        probe_pods.stopped().await;
        namespaces.stopped().await;
        tracing::info!("stopped");
        Ok(served?)
    }

    fn namespaces(&self, relations: &Relations) -> Namespaces {
        let (pulses, metrics, shutdown) = (self.pulses.clone(), self.metrics.clone(), self.shutdown.clone());
        Namespaces::new(self.client.clone(), relations.clone(), pulses, metrics, shutdown)
    }

    fn control(&self, tasks: &TaskTracker, world: World, pulls: Pulls, with: &Controllers) {
        let (namespaces, probes, writes) = (&with.namespaces, &with.probe_pods, &with.writes);
        let models =
            Models { world: world.clone(), namespaces: namespaces.clone(), writes: writes.clone(), clock: Clock };
        let credentials = Credentials {
            namespaces: namespaces.clone(),
            probes: probes.clone(),
            writes: writes.clone(),
            clock: Clock,
        };
        let tools = Tools {
            world: world.clone(),
            network: self.config.network(),
            namespaces: namespaces.clone(),
            probes: probes.clone(),
            guard: with.runs.guard.clone(),
            writes: writes.clone(),
            clock: Clock,
        };
        let policies = ApprovalPolicies {
            world: world.clone(),
            namespaces: namespaces.clone(),
            writes: writes.clone(),
            clock: Clock,
            judge: with.judge.clone(),
        };
        let agents = Agents {
            world: world.clone(),
            network: self.config.network(),
            fences: with.runs.fences.clone(),
            probes: probes.clone(),
            namespaces: namespaces.clone(),
            writes: writes.clone(),
            clock: Clock,
            address_check: self.address_check(),
        };
        let (metrics, stop) = (|| self.metrics.clone(), || self.shutdown.clone());
        tasks.spawn(controller::run(Arc::new(models), world.models, pulls.models, metrics(), stop()));
        tasks.spawn(controller::run(Arc::new(credentials), world.credentials, pulls.credentials, metrics(), stop()));
        tasks.spawn(controller::run(Arc::new(tools), world.tools, pulls.tools, metrics(), stop()));
        tasks.spawn(controller::run(Arc::new(policies), world.policies, pulls.policies, metrics(), stop()));
        tasks.spawn(controller::run(Arc::new(agents), world.agents, pulls.agents, metrics(), stop()));
        tasks.spawn(controller::run(Arc::clone(&with.runs), world.runs, pulls.runs, metrics(), stop()));
    }
}

/// What controllers share.
struct Controllers {
    runs: Arc<AgentRuns>,
    namespaces: Namespaces,
    probe_pods: ProbePods,
    writes: Writes,
    judge: Judge,
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, OperatorError> {
    TcpListener::bind(address).await.map_err(|source| OperatorError::Listen { address, source })
}

fn pod_settings(config: &Config, ca_pem: String) -> PodSettings {
    PodSettings {
        image: config.runner_image.clone(),
        pull_policy: config.runner_image_pull_policy.as_str(),
        operator_address: config.operator_address(),
        ca_pem,
        tolerations: config.pod_tolerations.0.clone(),
        node_selector: config.pod_node_selector.0.clone(),
        network: config.network(),
    }
}
