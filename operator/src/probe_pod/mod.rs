//! Probe pods: short-lived pods of the runner's image that look at one thing and report. The operator itself
//! opens no address and reads no Secret that a tenant names.

mod memory;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use belay_crds::{NETWORK_LABEL, POD_PREFIX, PROBE_LABEL, conditions};
use belay_protocol::Digest;
use belay_protocol::digest::digest_of;
use belay_protocol::probe::{ProbeReport, ProbeTask};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::memory::{Known, Step};
use self::memory::{Memory, NETWORK, Outcome};
use crate::agent_run::pod::default_resources;
use crate::clock::Clock;
use crate::controller::Failure;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::network::NetworkSettings;
use crate::network::fences::Fences;
use crate::network::policy::Surroundings;
use crate::pod_template::{
    Authorities, Document, Mode, Mount, PodSettings, PodShape, SharedSettings, base_labels, build_pod, random_suffix,
};
use crate::pod_view::{Exit, PodView, view};
use crate::service::Probes;
use crate::world::Queues;
use crate::writes::{Target, Writes};

/// How long a probe may take from its pod's creation to its report. The pod's own deadline is the same.
const PROBE_SECONDS: u32 = 120;
/// How often a pod is looked at whose report is awaited.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Probe pods at one time.
const PROBES_MAX: usize = 8;
const SUFFIX_LENGTH: usize = 8;

/// Starts probes and remembers what they found. Cheap to clone.
#[derive(Clone)]
pub struct ProbePods(Arc<Inner>);

struct Inner {
    client: Client,
    writes: Writes,
    namespaces: Namespaces,
    probes: Probes,
    queues: Queues,
    settings: SharedSettings,
    fences: Fences,
    metrics: Metrics,
    memory: Mutex<Memory>,
    /// Names of pods that a probe of this process waits for.
    awaited: Mutex<HashSet<String>>,
    places: Semaphore,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Which kind of object is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Credential,
    Tool,
    /// The cluster's network, in whichever namespace.
    Network,
}

/// What is to be probed, and for whom.
#[derive(Clone, Debug)]
pub struct Question {
    pub subject: Subject,
    pub namespace: String,
    pub owner: OwnerReference,
    pub task: ProbeTask,
    pub mounts: Vec<Mount>,
    /// What describes the operations of a Tool, where a document does. The task names them as well.
    pub documents: Vec<Document>,
    /// What else a report depends on: another value asks anew.
    pub version: String,
}

/// What a [`ProbePods`] works with.
pub struct Parts {
    pub client: Client,
    pub writes: Writes,
    pub namespaces: Namespaces,
    pub probes: Probes,
    pub queues: Queues,
    pub settings: SharedSettings,
    pub fences: Fences,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
}

impl ProbePods {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            client: parts.client,
            writes: parts.writes,
            namespaces: parts.namespaces,
            probes: parts.probes,
            queues: parts.queues,
            settings: parts.settings,
            fences: parts.fences,
            metrics: parts.metrics,
            memory: Mutex::default(),
            awaited: Mutex::default(),
            places: Semaphore::new(PROBES_MAX),
            tasks: TaskTracker::new(),
            shutdown: parts.shutdown,
        }))
    }

    /// What to do about the question now; starts a probe where one is due.
    #[must_use]
    pub fn consult(&self, question: &Question, known: Known) -> Step {
        let fingerprint = question.fingerprint();
        let mut memory = self.0.memory.lock();
        let step = memory.step(question.key(), fingerprint, known, Instant::now());
        if step == Step::Start {
            let there = self.0.namespaces.uids_of_probed();
            memory.keep(|uid| uid == question.key() || there.contains(uid));
            let began = Timestamp::from_millisecond(Clock.milliseconds()).unwrap_or_default();
            memory.start(question.key(), fingerprint, began);
            let (probes, question) = (self.clone(), question.clone());
            self.0.tasks.spawn(async move { probes.run(question, fingerprint).await });
        }
        step
    }

    /// Makes the next look at the object ask anew, whatever is known: a run found otherwise.
    pub fn again(&self, uid: &str) {
        self.0.memory.lock().doubt(uid);
    }

    /// When the probe was started whose answer [`Step::Use`] hands out.
    #[must_use]
    pub fn began(&self, uid: &str) -> Option<Timestamp> {
        self.0.memory.lock().began(uid)
    }

    /// Deletes probe pods of the object that no probe of this process waits for: an earlier operator's.
    pub async fn sweep(&self, namespace: &str, owner_uid: &str) {
        for pod in self.0.namespaces.pods_of(namespace, owner_uid) {
            let awaited = self.0.awaited.lock().contains(&pod.name_any());
            if !awaited {
                self.delete(namespace, &pod.name_any(), &pod.uid().unwrap_or_default()).await;
            }
        }
    }

    /// Waits until no probe is under way any more.
    pub async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn run(&self, question: Question, fingerprint: Digest) {
        let outcome = tokio::select! {
            outcome = self.probe(&question) => outcome,
            () = self.0.shutdown.cancelled() => return,
        };
        self.0.memory.lock().finish(question.key(), fingerprint, outcome, Instant::now());
        let (namespace, name) = (&question.namespace, &question.owner.name);
        match question.subject {
            Subject::Credential => self.0.queues.credentials.push(namespace, name).await,
            Subject::Tool => self.0.queues.tools.push(namespace, name).await,
            Subject::Network => self.0.namespaces.look_at_agents().await,
        }
    }

    async fn probe(&self, question: &Question) -> Outcome {
        let Ok(_place) = self.0.places.acquire().await else {
            return Outcome::Failed("the operator is stopping".to_owned());
        };
        let suffix = random_suffix(&mut rand::rng(), SUFFIX_LENGTH);
        let name = format!("{POD_PREFIX}probe-{suffix}");
        self.0.awaited.lock().insert(name.clone());
        let report = self.0.probes.expect(&question.namespace, &name, question.task.clone());
        let outcome = match self.create(question, &name).await {
            Err(failure) => Outcome::Failed(format!("the probe pod could not be created: {failure}")),
            Ok(uid) => {
                self.0.metrics.probes_started.inc();
                let reported = tokio::select! {
                    report = report => report.ok(),
                    () = self.given_up(&question.namespace, &name) => None,
                };
                let outcome = reported.map_or_else(
                    || {
                        self.0.metrics.probes_unanswered.inc();
                        Outcome::Failed(self.why_silent(&question.namespace, &name))
                    },
                    Outcome::Reported,
                );
                self.delete(&question.namespace, &name, &uid).await;
                outcome
            }
        };
        self.0.probes.forget(&question.namespace, &name);
        self.0.awaited.lock().remove(&name);
        outcome
    }

    /// Only behind its NetworkPolicies. Creates, never applies: an apply would adopt a pod that someone made beforehand.
    async fn create(&self, question: &Question, name: &str) -> Result<String, Failure> {
        let settings = self.0.settings.current();
        let at = question.surroundings(&settings.network);
        let network = self.0.fences.raise(&at).await?;
        self.0.fences.clear(&at).await?;
        let pods: Api<Pod> = Api::namespaced(self.0.client.clone(), &question.namespace);
        let pod = build(question, name, network, &settings);
        let created = pods.create(&PostParams::default(), &pod).await.map_err(Failure::api("creating it"))?;
        Ok(created.uid().unwrap_or_default())
    }

    /// Ends when no report is to be expected any more: the time is up, or the pod ended a moment ago.
    async fn given_up(&self, namespace: &str, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(u64::from(PROBE_SECONDS));
        let mut ended = false;
        while Instant::now() < deadline && !ended {
            // A report that was sent before the container ended is on its way for less than this.
            tokio::time::sleep(LAST_WORDS).await;
            ended = self
                .0
                .namespaces
                .pod(namespace, name)
                .is_some_and(|pod| matches!(view(&pod), PodView::Ended(_) | PodView::Lost { .. }));
        }
        if ended {
            tokio::time::sleep(LAST_WORDS).await;
        }
    }

    /// What the pod's status says of a probe that never reported.
    fn why_silent(&self, namespace: &str, name: &str) -> String {
        let seen = self.0.namespaces.pod(namespace, name).map(|pod| view(&pod));
        match seen {
            Some(PodView::Blocked { why }) => format!("the probe pod cannot start: {why}"),
            Some(PodView::Ended(Exit::Clean)) => "the probe pod ended without a report: see its log".to_owned(),
            Some(PodView::Ended(Exit::Crashed { why } | Exit::Evicted { why }) | PodView::Lost { why }) => {
                format!("the probe pod ended without a report: {why}")
            }
            Some(PodView::Ended(Exit::Stopped)) => "the probe pod was deleted".to_owned(),
            Some(PodView::Starting) => format!("the probe pod did not start within {PROBE_SECONDS} s"),
            Some(PodView::Running { .. } | PodView::Leaving | PodView::Foreign | PodView::Unseen | PodView::Absent)
            | None => format!("the probe pod reported nothing within {PROBE_SECONDS} s"),
        }
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) {
        let target = Target {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            resource_version: None,
        };
        if let Err(error) = self.0.writes.delete::<Pod>(&target).await {
            // Its own deadline ends it, and the next sweep deletes it.
            tracing::warn!(namespace, pod = name, %error, "probe pod not deleted");
        }
    }
}

impl Question {
    /// Under which its answer is remembered: there is one network, and as many owners as objects.
    fn key(&self) -> &str {
        match self.subject {
            Subject::Credential | Subject::Tool => &self.owner.uid,
            Subject::Network => NETWORK,
        }
    }

    /// What its pod may reach: the one server that it asks, if it asks one.
    fn surroundings(&self, network: &NetworkSettings) -> Surroundings {
        let routes = match &self.task {
            ProbeTask::Credential { .. } | ProbeTask::Network { .. } => BTreeSet::new(),
            ProbeTask::Tool { url, credential, private_hosts, .. } => {
                let token_url = credential.as_ref().and_then(|credential| credential.token_url());
                let urls = std::iter::once(url.as_str()).chain(token_url);
                network.routes(urls, &self.namespace, private_hosts)
            }
        };
        let (namespace, owner) = (self.namespace.clone(), self.owner.clone());
        Surroundings { namespace, owner, routes, proxy: network.proxy.clone() }
    }

    /// Who may vouch for those servers, where that is not the public authorities.
    fn authorities(&self) -> Authorities {
        match &self.task {
            ProbeTask::Credential { .. } | ProbeTask::Network { .. } => Authorities::default(),
            ProbeTask::Tool { ca, credential, .. } => {
                ca.iter().chain(credential.as_ref().and_then(|credential| credential.ca())).collect()
            }
        }
    }

    fn fingerprint(&self) -> Digest {
        let mounts: Vec<_> = self.mounts.iter().map(|m| [&m.credential, &m.secret_name, &m.secret_key]).collect();
        let whole = json!({"task": self.task, "mounts": mounts, "version": self.version});
        // A question that has no canonical form would be asked once and never again: its bytes always have one.
        digest_of(&whole).unwrap_or_else(|_| Digest::of(whole.to_string().as_bytes()))
    }
}

fn build(question: &Question, name: &str, network: String, settings: &PodSettings) -> Pod {
    let mut labels = base_labels("probe");
    let subject = match question.subject {
        Subject::Credential => "credential",
        Subject::Tool => "tool",
        Subject::Network => "network",
    };
    labels.insert(PROBE_LABEL.to_owned(), subject.to_owned());
    labels.insert(NETWORK_LABEL.to_owned(), network);
    let shape = PodShape {
        namespace: question.namespace.clone(),
        name: name.to_owned(),
        mode: Mode::Probe,
        labels,
        owner: question.owner.clone(),
        credentials: question.mounts.clone(),
        documents: question.documents.clone(),
        authorities: question.authorities(),
        resources: default_resources(),
        active_deadline_seconds: i64::from(PROBE_SECONDS),
    };
    build_pod(shape, settings)
}

/// Whether status may stay as it is while a probe looks again: it tells what an earlier probe found of this
/// generation. `not_found` are the reasons that no probe found.
#[must_use]
pub fn still_tells(conditions: &[Condition], generation: Option<i64>, not_found: &[&str]) -> bool {
    conditions::find(conditions, conditions::READY)
        .is_some_and(|ready| ready.observed_generation == generation && !not_found.contains(&ready.reason.as_str()))
}

/// A report of one kind, or why there is none.
pub type Report = Result<ProbeReport, String>;
