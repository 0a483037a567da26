//! Passes over a run against a scripted API server and a real journal: which writes, in which order, and what a
//! crash or a lost race in between leaves behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod attacks;
mod child_tests;
mod grant_tests;

use std::sync::Arc;
use std::time::Duration;

use belay_crds::{Agent, AgentRun};
use belay_protocol::event::{EndReason, Event};
use http::Method;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::queue::{Lobby, QueueLimits};
use super::{AgentRuns, Memories};
use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::fixtures::{agent, model, ready, run};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::namespaces::{Namespaces, Service};
use crate::network::NetworkSettings;
use crate::network::fences::Fences;
use crate::played::{self, empty_world, queues, refusal, settings};
use crate::probe_pod::{Parts, ProbePods};
use crate::service::{Probes, Sessions};
use crate::tuning::Times;
use crate::watches::Pulses;
use crate::world::{Relations, World};
use crate::writes::Writes;

/// What the API server answers to one kind of write, next; after that everything goes well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    StatusConflict,
    PodQuota,
    PodExists,
    NetworkPolicies,
}

/// Keeps what was written, and the pods and the status as they are now.
#[derive(Default)]
struct Server {
    writes: Vec<String>,
    refusals: Vec<Refusal>,
    pods: Vec<Value>,
    status: Option<Value>,
    /// Raised when somebody else writes the AgentRun; a write of the operator's own leaves it as it is.
    version: u64,
    /// What is changed in every AgentRun before a pass.
    ttl_seconds: Option<i32>,
    approvals: attacks::Approvals,
    people: Box<grant_tests::People>,
    children: child_tests::Runs,
    /// Names of NetworkPolicies. They are shared by runs, so that they are no writes of one.
    policies: Vec<String>,
}

impl Server {
    fn refuses(&mut self, refusal: Refusal) -> bool {
        let at = self.refusals.iter().position(|next| *next == refusal);
        at.map(|at| self.refusals.remove(at)).is_some()
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        let last = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/agentruns") && matches!(method.as_str(), "GET" | "POST") {
            return self.children.answer(method, last, body, &mut self.writes);
        }
        if path.contains("/approvalgrants") || (path.contains("/approvals") && self.people.are_asked()) {
            return self.people.answer(method, path, body, &mut self.writes);
        }
        if let Some((_, place)) = path.split_once("/approvals") {
            return self.approvals.answer(method, place, body);
        }
        match (method.as_str(), last) {
            ("GET", "services" | "networkpolicies") => {
                (200, json!({"metadata": {"resourceVersion": "1"}, "items": []}))
            }
            ("PATCH", _) if path.contains("/networkpolicies/") => {
                if self.refuses(Refusal::NetworkPolicies) {
                    return refusal(403, "Forbidden", "no networkpolicies for you");
                }
                self.policies.push(last.to_owned());
                (200, body.clone())
            }
            ("GET", "pods") => (200, json!({"metadata": {"resourceVersion": "1"}, "items": self.pods})),
            ("GET", name) => match self.pods.iter().find(|pod| pod["metadata"]["name"] == name) {
                Some(pod) => (200, pod.clone()),
                None => refusal(404, "NotFound", "no such pod"),
            },
            ("POST", "pods") => self.create_pod(body),
            ("PATCH", "status") => {
                if self.refuses(Refusal::StatusConflict) {
                    self.version += 1;
                }
                let seen = &body["metadata"]["resourceVersion"];
                if !seen.is_null() && seen.as_str() != Some(self.version.to_string().as_str()) {
                    self.writes.push("status refused".to_owned());
                    return refusal(409, "Conflict", "the object has been modified");
                }
                let ready = body["status"]["conditions"][0]["reason"].as_str().unwrap_or_default();
                self.writes.push(format!("status {ready}"));
                self.status = Some(body["status"].clone());
                let mut object = serde_json::to_value(run("nightly", "triage")).unwrap();
                object["status"] = body["status"].clone();
                (200, object)
            }
            ("POST", "events") => (201, body.clone()),
            ("DELETE", name) => self.delete(path, name, &body["preconditions"]),
            (method, _) => panic!("unexpected {method} {path}"),
        }
    }

    fn create_pod(&mut self, body: &Value) -> (u16, Value) {
        let mut pod = body.clone();
        pod["metadata"]["uid"] = json!("uid-pod");
        if self.refuses(Refusal::PodQuota) {
            self.writes.push("pod refused".to_owned());
            return refusal(403, "Forbidden", "exceeded quota: q");
        }
        if self.refuses(Refusal::PodExists) {
            self.writes.push("pod refused".to_owned());
            pod["metadata"]["labels"] = json!({"made-by": "someone else"});
            self.pods.push(pod);
            return refusal(409, "AlreadyExists", "pods already exists");
        }
        let key = pod["metadata"]["labels"]["belay.dev/network"].as_str().unwrap();
        for fence in ["belay-runners".to_owned(), format!("belay-net-{key}")] {
            assert!(self.policies.contains(&fence), "a pod before its NetworkPolicy {fence}");
        }
        self.writes.push("pod created".to_owned());
        self.pods.push(pod.clone());
        (201, pod)
    }
}

impl Server {
    /// As the API server does: where uid and resourceVersion are named, that very object as it was seen.
    fn delete(&mut self, path: &str, name: &str, only: &Value) -> (u16, Value) {
        let (kind, uid, version) = if path.contains("/agentruns/") {
            ("run", json!("uid-nightly"), json!(self.version.to_string()))
        } else {
            let pod = self.pods.iter().find(|pod| pod["metadata"]["name"] == name);
            let Some(pod) = pod else { return refusal(404, "NotFound", "no such pod") };
            ("pod", pod["metadata"]["uid"].clone(), pod["metadata"]["resourceVersion"].clone())
        };
        let fits = |named: &Value, is: &Value| named.is_null() || named == is;
        if !fits(&only["uid"], &uid) || !fits(&only["resourceVersion"], &version) {
            self.writes.push(format!("{kind} not deleted"));
            return refusal(409, "Conflict", "the precondition does not hold");
        }
        self.writes.push(format!("{kind} deleted"));
        self.pods.retain(|pod| pod["metadata"]["uid"] != uid);
        (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
    }
}

/// The run `nightly` in a world where everything that it names is ready.
struct Stage {
    runs: AgentRuns,
    journal: Journal,
    server: Arc<Mutex<Server>>,
    folder: tempfile::TempDir,
    _agents: Writer<Agent>,
    shutdown: CancellationToken,
}

impl Stage {
    async fn new(refusals: &[Refusal]) -> Self {
        Self::over(Server { refusals: refusals.to_vec(), ..Server::default() }).await
    }

    /// Where these pods of the run are there, and in the operator's cache.
    async fn with_pods(pods: Vec<Value>) -> Self {
        Self::over(Server { pods, ..Server::default() }).await
    }

    async fn over(server: Server) -> Self {
        let server = Arc::new(Mutex::new(server));
        let (folder, shutdown) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let client = {
            let server = Arc::clone(&server);
            played::client(move |method, path, body| server.lock().answer(method, path, body))
        };
        let journal = Journal::open(&folder.path().join("journal.sqlite")).await.unwrap();
        let (world, agents) = world();
        let queues = queues();
        let relations = Relations { world: world.clone(), queues: queues.clone(), shared: Arc::default() };
        let (metrics, pulses) = (Metrics::default(), Pulses::default());
        let namespaces = Namespaces::new(client.clone(), relations, pulses, metrics.clone(), shutdown.clone());
        played::opt_in(&namespaces, "triage").await;
        played::until_served(&namespaces, "triage", Service::Enabled).await;
        let (writes, settings) = (Writes::new(client.clone()), settings());
        let fences = Fences::new(writes.clone(), namespaces.clone(), NetworkSettings::default());
        let probes = ProbePods::new(Parts {
            client,
            writes: writes.clone(),
            namespaces: namespaces.clone(),
            probes: Probes::default(),
            queues: queues.clone(),
            settings: settings.clone(),
            fences: fences.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
        });
        let runs = AgentRuns {
            world,
            namespaces,
            queues,
            journal: journal.clone(),
            sessions: Sessions::new(),
            quotas: crate::quota::Quotas::default(),
            guard: crate::guard::tests::standing().await,
            probes,
            fences,
            lobby: Lobby::new(QueueLimits { installation: 2, namespace: 2, starting: 2 }),
            writes,
            settings,
            metrics,
            clock: Clock,
            times: Times::default(),
            memories: Memories::default(),
        };
        Self { runs, journal, server, folder, _agents: agents, shutdown }
    }

    /// One pass over the run as the API server has it now.
    async fn pass(&self) -> Result<(), Failure> {
        self.pass_over(self.object()).await
    }

    fn object(&self) -> AgentRun {
        let mut object: AgentRun = run("nightly", "triage");
        {
            let server = self.server.lock();
            object.status = server.status.clone().map(|status| serde_json::from_value(status).unwrap());
            object.metadata.resource_version = Some(server.version.to_string());
            object.spec.ttl_seconds_after_finished = server.ttl_seconds;
        }
        // Created now: the fixture's day lies in the past of some clocks and the future of others.
        object.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Clock.now()));
        object
    }

    async fn pass_over(&self, object: AgentRun) -> Result<(), Failure> {
        Box::pin(self.runs.reconcile(Arc::new(object))).await.map(drop)
    }

    /// The runner of the first epoch says Hello.
    async fn claim(&self) {
        let id = super::resolve::id_of(&run("nightly", "triage"));
        let claimed = Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "uid-pod".into() };
        self.journal.append(&id, 2, vec![claimed]).await.unwrap();
    }

    fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().writes)
    }

    async fn events(&self) -> Vec<&'static str> {
        let records = self.journal.records("uid-nightly", 1).await.unwrap();
        records.iter().map(|sealed| sealed.record.event.name()).collect()
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.journal.close().await;
    }
}

fn world() -> (World, Writer<Agent>) {
    let mut agents: Writer<Agent> = Writer::new(());
    let mut models = Writer::new(());
    agents.apply_watcher_event(&watcher::Event::Apply(ready(agent("triage", "writer", &[]))));
    models.apply_watcher_event(&watcher::Event::Apply(ready(model("writer", None))));
    let world = World { models: models.as_reader(), agents: agents.as_reader(), ..empty_world() };
    (world, agents)
}

#[tokio::test]
async fn status_names_the_journal_before_the_pod_is_created() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status PodStarting", "pod created"]);
    assert_eq!(stage.events().await, ["RunAccepted", "EpochOpened"]);
    let status = stage.server.lock().status.clone().unwrap();
    assert_eq!(status["journal"]["id"], stage.journal.id());
    assert_eq!(status["journal"]["seq"], 1);
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), Vec::<String>::new(), "nothing is written twice");
    stage.end().await;
}

/// A pod of the run that no epoch needs any more.
fn old_pod(uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "belay-run-old", "namespace": "triage", "uid": uid, "resourceVersion": "3",
            "labels": {belay_crds::RUN_UID_LABEL: "uid-nightly"},
            "ownerReferences": [
                {"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "name": "nightly", "uid": "uid-nightly"},
            ],
        },
        "spec": {"containers": []},
        "status": {"phase": "Running"},
    })
}

#[tokio::test]
async fn a_pod_is_deleted_by_its_uid_and_one_made_anew_under_its_name_stays() {
    for (uid, wrote) in [("uid-old", "pod deleted"), ("uid-new", "pod not deleted")] {
        let stage = Stage::with_pods(vec![old_pod("uid-old")]).await;
        // The cache has the one that it saw; whether that is still the one, the API server knows.
        stage.server.lock().pods = vec![old_pod(uid)];
        stage.pass().await.unwrap();
        stage.pass().await.unwrap();
        assert_eq!(stage.writes(), ["status PodStarting", "pod created", wrote]);
        let stays = stage.server.lock().pods.iter().any(|pod| pod["metadata"]["name"] == "belay-run-old");
        assert_eq!(stays, uid == "uid-new");
        stage.end().await;
    }
}

#[tokio::test]
async fn a_run_whose_ttl_was_changed_since_it_was_read_is_not_deleted() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    let id = super::resolve::id_of(&run("nightly", "triage"));
    let end = super::Ending::cancelled("the test says so");
    let before = stage.journal.state("uid-nightly").await.unwrap();
    stage.journal.append(&id, 2, end.events(before.as_deref(), Duration::ZERO)).await.unwrap();
    stage.pass().await.unwrap();
    stage.writes();
    stage.server.lock().ttl_seconds = Some(0);
    let read = stage.object();
    // Somebody sets another one in between.
    stage.server.lock().version += 1;
    assert!(matches!(stage.pass_over(read).await, Err(Failure::Conflict)));
    assert_eq!(stage.writes(), ["run not deleted"]);
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["run deleted"]);
    stage.end().await;
}

#[tokio::test]
async fn a_lost_race_on_status_makes_no_pod_and_the_next_pass_goes_on_with_the_same_plan() {
    let stage = Stage::new(&[Refusal::StatusConflict]).await;
    assert!(matches!(stage.pass().await, Err(Failure::Conflict)));
    assert_eq!(stage.writes(), ["status refused"]);
    assert_eq!(stage.events().await, ["RunAccepted"]);
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status PodStarting", "pod created"]);
    assert_eq!(stage.events().await, ["RunAccepted", "EpochOpened"]);
    stage.end().await;
}

#[tokio::test]
async fn a_refused_pod_is_a_wait_that_shows_and_the_same_name_is_tried_again() {
    let stage = Stage::new(&[Refusal::PodQuota]).await;
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status PodStarting", "pod refused", "status PodBlocked"]);
    let status = stage.server.lock().status.clone().unwrap();
    assert!(status["conditions"][0]["message"].as_str().unwrap().contains("exceeded quota: q"), "{status}");
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["pod created"]);
    assert_eq!(stage.events().await, ["RunAccepted", "EpochOpened"]);
    let pod = stage.server.lock().pods[0]["metadata"]["name"].clone();
    assert_eq!(status["waitingOn"]["name"], pod);
    stage.end().await;
}

#[tokio::test]
async fn no_pod_is_created_before_its_network_policies_are_there() {
    let stage = Stage::new(&[Refusal::NetworkPolicies]).await;
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status PodStarting", "status PodBlocked"]);
    let status = stage.server.lock().status.clone().unwrap();
    let message = status["conditions"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("no NetworkPolicy can be applied") && message.contains("for you"), "{message}");
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["pod created"]);
    stage.end().await;
}

#[tokio::test]
async fn a_pod_that_someone_made_beforehand_is_neither_adopted_nor_deleted() {
    let stage = Stage::new(&[Refusal::PodExists]).await;
    stage.pass().await.unwrap();
    stage.pass().await.unwrap();
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status PodStarting", "pod refused", "pod created"]);
    assert_eq!(stage.events().await, ["RunAccepted", "EpochOpened", "EpochEnded", "EpochOpened"]);
    let names: Vec<Value> = stage.server.lock().pods.iter().map(|pod| pod["metadata"]["name"].clone()).collect();
    assert!(names.len() == 2 && names[0] != names[1], "{names:?}");
    stage.end().await;
}

#[tokio::test]
async fn a_pod_that_vanished_is_followed_by_another_under_another_name() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    stage.claim().await;
    stage.pass().await.unwrap();
    stage.writes();
    stage.server.lock().pods.clear();
    // Made a moment ago; but it has said Hello, so that no lag of a cache explains that it is missing.
    stage.pass().await.unwrap();
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["pod created"], "no status for what is the same run");
    let events = stage.events().await;
    assert_eq!(events, ["RunAccepted", "EpochOpened", "InstanceClaimed", "EpochEnded", "EpochOpened"]);
    let folded = stage.journal.state("uid-nightly").await.unwrap().unwrap();
    assert_eq!(folded.undead.len(), 1, "nobody saw the first one end");
    stage.end().await;
}

#[tokio::test]
async fn a_journal_that_was_lost_starts_nothing_again() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    stage.writes();
    let other = Stage::new(&[]).await;
    other.server.lock().status.clone_from(&stage.server.lock().status);
    other.pass().await.unwrap();
    assert_eq!(other.writes(), ["status JournalLost"]);
    assert_eq!(other.events().await, ["RunEnded"]);
    other.pass().await.unwrap();
    assert_eq!(other.writes(), Vec::<String>::new(), "terminal is terminal");
    stage.end().await;
    other.end().await;
}

#[tokio::test]
async fn a_status_that_somebody_forged_does_not_end_a_run() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    stage.writes();
    {
        let mut server = stage.server.lock();
        let status = server.status.as_mut().unwrap();
        status["phase"] = json!("Succeeded");
        status["podRef"] = Value::Null;
        server.pods.clear();
    }
    stage.runs.memories.change("uid-nightly", |memory| memory.pod = None);
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["pod created"]);
    assert_eq!(stage.events().await, ["RunAccepted", "EpochOpened"]);
    stage.end().await;
}

#[tokio::test]
async fn a_run_whose_records_are_damaged_is_written_off_in_words_and_loses_its_pod() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    stage.writes();
    let path = stage.folder.path().join("journal.sqlite");
    stage.journal.close().await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("UPDATE events SET bytes = x'00' WHERE seq = 2", []).unwrap();
    drop(connection);
    let journal = Journal::open(&path).await.unwrap();
    let stage = Stage { runs: AgentRuns { journal: journal.clone(), ..stage.runs }, journal, ..stage };
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status JournalLost"]);
    let status = stage.server.lock().status.clone().unwrap();
    assert_eq!(status["phase"], "Failed");
    assert!(status["conditions"][0]["message"].as_str().unwrap().contains("are damaged: record 2"), "{status}");
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), Vec::<String>::new(), "said once");
    assert!(stage.runs.lobby.is_empty());
    stage.end().await;
}

#[tokio::test]
async fn an_end_is_shown_once_and_its_epoch_closed() {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    stage.writes();
    let id = super::resolve::id_of(&run("nightly", "triage"));
    let end = belay_protocol::event::RunEnd {
        outcome: belay_protocol::event::Outcome::Succeeded,
        reason: EndReason::Completed,
        message: String::new(),
    };
    stage.journal.append(&id, 2, vec![Event::RunEnded { end }]).await.unwrap();
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["status Completed"]);
    assert_eq!(stage.events().await.last(), Some(&"EpochEnded"));
    assert!(stage.runs.lobby.is_empty(), "its slot is free");
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), Vec::<String>::new());
    stage.end().await;
}
