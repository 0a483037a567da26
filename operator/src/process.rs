//! Puts the operator together: journal, certificate, watches, controllers, servers; and takes it apart again.

use std::sync::Arc;

use anyhow::Context as _;
use belay_crds::{Agent, AgentRun, Credential, Model, Tool};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agents;
use crate::agent_run::queue::{Lobby, QueueLimits};
use crate::agent_run::resolve::id_of;
use crate::agent_run::{AgentRuns, Memories, Orphans, resume_slots};
use crate::certificate::Certificate;
use crate::clock::Clock;
use crate::config::Config;
use crate::controller;
use crate::credential::Credentials;
use crate::http;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::model::Models;
use crate::namespaces::Namespaces;
use crate::peers::TokenPeers;
use crate::pod_template::{PodSettings, SharedSettings};
use crate::probe_pod::{Parts, ProbePods};
use crate::service::{AddressCheck, Options, Probes, RunService, Sessions, serve};
use crate::suspension::Suspensions;
use crate::tls::{Reloadable, trust_bundle};
use crate::tool::Tools;
use crate::watches::{Pulses, Seen, Watch};
use crate::world::{Queue, Queues, Relations, World, has_ended};
use crate::writes::Writes;

/// Streams at one time: every run that may be active, probes, and room for reconnects.
const STREAMS_SPARE: usize = 64;

/// What the parts of the process share.
#[derive(Clone)]
struct Shared {
    client: Client,
    journal: Journal,
    sessions: Sessions,
    probes: Probes,
    suspensions: Suspensions,
    pulses: Pulses,
    metrics: Metrics,
    namespaces: Namespaces,
    relations: Relations,
    shutdown: CancellationToken,
}

/// Where the controllers find what to look at.
struct Pulls {
    models: mpsc::Receiver<ObjectRef<Model>>,
    credentials: mpsc::Receiver<ObjectRef<Credential>>,
    tools: mpsc::Receiver<ObjectRef<Tool>>,
    agents: mpsc::Receiver<ObjectRef<Agent>>,
    runs: mpsc::Receiver<ObjectRef<AgentRun>>,
}

struct Writers {
    models: Writer<Model>,
    credentials: Writer<Credential>,
    tools: Writer<Tool>,
    agents: Writer<Agent>,
    runs: Writer<AgentRun>,
    namespaces: Writer<Namespace>,
}

/// Runs the operator until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("no way to the API server")?;
    let journal = Journal::open(&config.journal_path()).await.context("opening the journal")?;
    let certificate = Certificate::new(client.clone(), config.namespace.clone(), config.certificate_names());
    let material = certificate.ensure(Timestamp::now()).await?;
    let tls = Reloadable::new(&material)?;
    let grpc = TcpListener::bind(config.grpc_address).await.context("listening for runners")?;
    let http = TcpListener::bind(config.http_address).await.context("listening for health and metrics")?;

    let (relations, writers, pulls) = relate();
    let (pulses, metrics) = (Pulses::default(), Metrics::default());
    let namespaces =
        Namespaces::new(client.clone(), relations.clone(), pulses.clone(), metrics.clone(), shutdown.clone());
    let shared = Shared {
        client,
        journal: journal.clone(),
        sessions: Sessions::new(),
        probes: Probes::default(),
        suspensions: Suspensions::default(),
        pulses: pulses.clone(),
        metrics: metrics.clone(),
        namespaces: namespaces.clone(),
        relations,
        shutdown: shutdown.clone(),
    };

    let tasks = TaskTracker::new();
    let started = http::Started::default();
    tasks.spawn(http::serve(http, pulses, started.clone(), metrics.registry(), shutdown.clone()));
    let settings = SharedSettings::new(pod_settings(&config, trust_bundle(&material)));
    tasks.spawn(certificate.keep(tls.clone(), settings.clone(), material, shutdown.clone()));
    let lobby = Lobby::new(QueueLimits {
        installation: count(config.max_runs),
        namespace: count(config.max_runs_per_namespace),
        starting: count(config.max_starting_pods),
    });
    resume_slots(&journal, &lobby).await.context("reading live runs")?;
    let (runs, probe_pods) = control(&shared, settings, lobby, pulls, &tasks);
    let (orphans, reports) = Orphans::new();
    tasks.spawn(Arc::clone(&runs).close_orphans(reports, shutdown.clone()));
    watch(&shared, writers, &runs, &orphans, &tasks);
    tasks.spawn(listen(shared.clone()));
    started.set();
    tracing::info!(journal = journal.id(), version = env!("CARGO_PKG_VERSION"), "operator started");

    let served = serve(grpc, tls, run_service(&shared, &config), shutdown.clone()).await;
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    probe_pods.stopped().await;
    namespaces.stopped().await;
    journal.close().await;
    Ok(served?)
}

fn relate() -> (Relations, Writers, Pulls) {
    let writers = Writers {
        models: Writer::new(()),
        credentials: Writer::new(()),
        tools: Writer::new(()),
        agents: Writer::new(()),
        runs: Writer::new(()),
        namespaces: Writer::new(()),
    };
    let world = World {
        models: writers.models.as_reader(),
        credentials: writers.credentials.as_reader(),
        tools: writers.tools.as_reader(),
        agents: writers.agents.as_reader(),
        runs: writers.runs.as_reader(),
        namespaces: writers.namespaces.as_reader(),
    };
    let (models, pull_models) = Queue::new();
    let (credentials, pull_credentials) = Queue::new();
    let (tools, pull_tools) = Queue::new();
    let (agents, pull_agents) = Queue::new();
    let (runs, pull_runs) = Queue::new();
    let queues = Queues { models, credentials, tools, agents, runs };
    let pulls = Pulls {
        models: pull_models,
        credentials: pull_credentials,
        tools: pull_tools,
        agents: pull_agents,
        runs: pull_runs,
    };
    (Relations { world, queues }, writers, pulls)
}

fn pod_settings(config: &Config, ca_pem: String) -> PodSettings {
    PodSettings {
        image: config.runner_image.clone(),
        pull_policy: config.runner_image_pull_policy.as_str(),
        operator_address: config.operator_address(),
        ca_pem,
        tolerations: config.pod_tolerations.0.clone(),
        node_selector: config.pod_node_selector.0.clone(),
    }
}

/// One controller a kind.
fn control(
    shared: &Shared,
    settings: SharedSettings,
    lobby: Lobby,
    pulls: Pulls,
    tasks: &TaskTracker,
) -> (Arc<AgentRuns>, ProbePods) {
    let (world, clock) = (shared.relations.world.clone(), Clock);
    let (namespaces, writes) = (shared.namespaces.clone(), Writes::new(shared.client.clone()));
    let (metrics, shutdown) = (shared.metrics.clone(), shared.shutdown.clone());
    let probes = ProbePods::new(Parts {
        client: shared.client.clone(),
        writes: writes.clone(),
        namespaces: namespaces.clone(),
        probes: shared.probes.clone(),
        queues: shared.relations.queues.clone(),
        settings: settings.clone(),
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    });
    let runs = Arc::new(AgentRuns {
        world: world.clone(),
        queues: shared.relations.queues.clone(),
        namespaces: namespaces.clone(),
        writes: writes.clone(),
        clock,
        journal: shared.journal.clone(),
        sessions: shared.sessions.clone(),
        probes: probes.clone(),
        lobby,
        settings,
        metrics: metrics.clone(),
        memories: Memories::default(),
    });
    let models = Models { world: world.clone(), namespaces: namespaces.clone(), writes: writes.clone(), clock };
    let agents = Agents { world: world.clone(), namespaces: namespaces.clone(), writes: writes.clone(), clock };
    let credentials =
        Credentials { namespaces: namespaces.clone(), probes: probes.clone(), writes: writes.clone(), clock };
    let tools = Tools { world: world.clone(), namespaces, probes: probes.clone(), writes, clock };
    tasks.spawn(controller::run(Arc::new(models), world.models, pulls.models, metrics.clone(), shutdown.clone()));
    tasks.spawn(controller::run(Arc::new(agents), world.agents, pulls.agents, metrics.clone(), shutdown.clone()));
    let credentials = Arc::new(credentials);
    tasks.spawn(controller::run(credentials, world.credentials, pulls.credentials, metrics.clone(), shutdown.clone()));
    tasks.spawn(controller::run(Arc::new(tools), world.tools, pulls.tools, metrics.clone(), shutdown.clone()));
    tasks.spawn(controller::run(Arc::clone(&runs), world.runs, pulls.runs, metrics, shutdown));
    (runs, probes)
}

/// One watch a kind, each telling whom its objects concern.
fn watch(shared: &Shared, writers: Writers, runs: &Arc<AgentRuns>, orphans: &Orphans, tasks: &TaskTracker) {
    let relations = shared.relations.clone();
    spawn_watch(shared, tasks, "models", writers.models, trim, move |seen| {
        let relations = relations.clone();
        async move {
            if let Seen::There(model) | Seen::Gone(model) = seen {
                relations.model_changed(&model).await;
            }
        }
    });
    let relations = shared.relations.clone();
    spawn_watch(shared, tasks, "credentials", writers.credentials, trim, move |seen| {
        let relations = relations.clone();
        async move {
            if let Seen::There(credential) | Seen::Gone(credential) = seen {
                relations.credential_changed(&credential).await;
            }
        }
    });
    let relations = shared.relations.clone();
    spawn_watch(shared, tasks, "tools", writers.tools, trim, move |seen| {
        let relations = relations.clone();
        async move {
            if let Seen::There(tool) | Seen::Gone(tool) = seen {
                relations.tool_changed(&tool).await;
            }
        }
    });
    let (relations, suspensions) = (shared.relations.clone(), shared.suspensions.clone());
    spawn_watch(shared, tasks, "agents", writers.agents, trim, move |seen| {
        let (relations, suspensions) = (relations.clone(), suspensions.clone());
        async move {
            if let Seen::There(agent) | Seen::Gone(agent) = seen {
                note_suspension(&suspensions, &agent);
                relations.agent_changed(&agent).await;
            }
        }
    });
    let namespaces = shared.namespaces.clone();
    spawn_watch(shared, tasks, "namespaces", writers.namespaces, trim, move |seen| {
        let namespaces = namespaces.clone();
        async move { namespaces.saw(seen).await }
    });
    watch_runs(shared, writers.runs, Arc::clone(runs), orphans.clone(), tasks);
}

/// A run that went is reported, and so are those that went while nobody watched.
fn watch_runs(shared: &Shared, writer: Writer<AgentRun>, runs: Arc<AgentRuns>, orphans: Orphans, tasks: &TaskTracker) {
    let relations = shared.relations.clone();
    spawn_watch(shared, tasks, "agentruns", writer, trim_run, move |seen| {
        let (relations, runs, orphans) = (relations.clone(), Arc::clone(&runs), orphans.clone());
        async move {
            match seen {
                Seen::There(run) => relations.run_changed(&run).await,
                Seen::Gone(run) => orphans.report(id_of(&*run)).await,
                Seen::Listed => {
                    if let Err(failure) = runs.report_missing(&orphans).await {
                        tracing::warn!(%failure, "runs that were deleted meanwhile not looked for");
                    }
                }
                Seen::Forbidden => {}
            }
        }
    });
}

fn note_suspension(suspensions: &Suspensions, agent: &Agent) {
    let (namespace, name) = (agent.namespace().unwrap_or_default(), agent.name_any());
    if agent.spec.suspend == Some(true) {
        suspensions.suspend(&namespace, &name);
    } else {
        suspensions.resume(&namespace, &name);
    }
}

fn spawn_watch<K, F>(
    shared: &Shared,
    tasks: &TaskTracker,
    name: &str,
    writer: Writer<K>,
    trim: fn(&mut K),
    tell: impl FnMut(Seen<K>) -> F + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let watch = Watch {
        name: name.to_owned(),
        api: Api::<K>::all(shared.client.clone()),
        config: watcher::Config::default(),
        writer,
        trim,
        pulses: shared.pulses.clone(),
        metrics: shared.metrics.clone(),
    };
    tasks.spawn(watch.follow(shared.shutdown.clone(), tell));
}

/// Who wrote which field is nobody's business here, and most of an object's size.
fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Of a run that is over only its end is read.
fn trim_run(run: &mut AgentRun) {
    trim(run);
    if has_ended(run) {
        run.spec.input = String::new();
        if let Some(status) = &mut run.status {
            status.output = None;
        }
    }
}

/// What the journal and the streams tell concerns the run's controller.
async fn listen(shared: Shared) {
    let (mut changes, mut ended) = (shared.journal.changes(), shared.sessions.ended());
    let runs = &shared.relations.queues.runs;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            change = changes.recv() => match change {
                Ok(id) => runs.push(&id.namespace, &id.name).await,
                Err(broadcast::error::RecvError::Lagged(_)) => look_at_all(&shared).await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            closed = ended.recv() => match closed {
                Ok(uid) => look_at(&shared, &uid).await,
                Err(broadcast::error::RecvError::Lagged(_)) => look_at_all(&shared).await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
    }
}

async fn look_at(shared: &Shared, uid: &str) {
    let runs = shared.relations.world.runs.state_filter(|run| run.metadata.uid.as_deref() == Some(uid));
    for run in runs {
        shared.relations.run_changed(&run).await;
    }
}

async fn look_at_all(shared: &Shared) {
    for run in shared.relations.world.runs.state_filter(|run| !has_ended(run)) {
        shared.relations.run_changed(&run).await;
    }
}

fn run_service(shared: &Shared, config: &Config) -> RunService {
    let peers = TokenPeers {
        client: shared.client.clone(),
        namespaces: shared.namespaces.clone(),
        metrics: shared.metrics.clone(),
    };
    let suspensions = shared.suspensions.clone();
    let address_check = if config.verify_peer_address { AddressCheck::Required } else { AddressCheck::Off };
    RunService {
        journal: shared.journal.clone(),
        sessions: shared.sessions.clone(),
        probes: shared.probes.clone(),
        peers: Arc::new(peers),
        suspended: Arc::new(move |agent| suspensions.is_suspended(&agent.namespace, &agent.name)),
        options: Options { address_check, streams_max: count(config.max_runs) + STREAMS_SPARE },
    }
}

fn count(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
