//! One world: API server, kubelet, operator, relay, tool, model and person, around one run.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use belay_e2e::chaos::effects;
use belay_e2e::counter::Arrived;
use belay_operator::tls::Material;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::api::{Api, Key};
use super::kubelet::Kubelet;
use super::operator::{Operator, Outlets, Places, serve_seam};
use super::person::{Person, When};
use super::points::{Point, Points, Seen};
use super::tool::Outside;
use super::{api_server, relay, rules};

/// The process under test.
pub const SUBJECT: &str = env!("CARGO_BIN_EXE_subject");
pub const NAMESPACE: &str = "team";
const OPERATORS: &str = "belay-system";
pub const RUN: &str = "nightly";
/// What the model of the Agent is called that calls another one.
pub const LEAD: &str = "lead";
/// Tokens that a child may use: more than any faults here have it use.
const SHARE: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_mins(2);

/// What the Agents' models say, turn by turn.
#[derive(Clone)]
pub struct Scripts {
    /// To the one that calls the server.
    pub own: Script,
    /// To one that calls the first one in its place, where the run is of such a one.
    pub lead: Option<Script>,
}

pub type Script = Vec<Vec<Value>>;

/// What a world begins with, and what its models say.
#[derive(Clone)]
pub struct Setting {
    objects: Vec<(Key, Value)>,
    /// Where the objects say that tool and model are.
    outside: String,
    material: Material,
    scripts: Scripts,
    person: When,
    pub outlets: Outlets,
}

pub struct World {
    pub api: Arc<Api>,
    pub kubelet: Arc<Kubelet>,
    pub operator: Arc<Operator>,
    outside: Arc<Outside>,
    points: Arc<Points>,
    folder: TempDir,
}

/// One run at its end.
#[derive(Clone, Debug)]
pub struct Ran {
    pub name: String,
    pub status: Value,
    /// The journal's rows, exported.
    pub export: Vec<u8>,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub run: Ran,
    /// Every other AgentRun that there is.
    pub children: Vec<Ran>,
    pub calls: Vec<Arrived>,
    /// Requests that arrived, by model and step.
    pub model_steps: Vec<(String, u32)>,
    pub seen: Vec<Seen>,
    pub struck: Vec<Point>,
}

impl Setting {
    /// Objects as people apply them, and as the operator leaves them once it has probed the tool.
    pub async fn prepare(scripts: Scripts, person: When) -> Result<Self> {
        let names = ["127.0.0.1"].map(str::to_owned);
        let operator_names = [
            "belay-operator.belay-system.svc.cluster.local",
            "belay-operator.belay-system.svc",
            "belay-operator.belay-system",
        ];
        let names: Vec<String> = operator_names.map(str::to_owned).into_iter().chain(names).collect();
        let material = Material::fresh(&names, jiff::Timestamp::now())?;
        let outside = "127.0.0.1:1".to_owned();
        let mut objects = objects(&outside, &material);
        objects.extend(scripts.lead.iter().flat_map(|_| leading_objects(&outside)));
        let fresh = Self { objects, outside, material, scripts, person, outlets: Outlets::default() };
        let (world, tasks, outside) = World::start(&fresh, &[]).await?;
        let ready = |object: &Value| object.pointer("/status/conditions/0/status") == Some(&json!("True"));
        let prepared = world.wait(|| world.api.list("agents", None).1.iter().all(ready) && world.pods().is_empty());
        prepared.await.with_context(|| format!("an Agent does not get Ready\n{}", world.logs()))?;
        world.operator.stop().await;
        drop(tasks);
        let kept = |(key, _): &(Key, Value)| !["events", "leases"].contains(&key.resource.as_str());
        let objects = world.api.snapshot().into_iter().filter(kept).chain([lease()]).collect();
        Ok(Self { objects, outside: outside.to_string(), ..fresh })
    }
}

impl World {
    /// Plays one run with these faults.
    pub async fn play(setting: &Setting, faults: &[Point]) -> Result<Outcome> {
        let (world, tasks, _) = Self::start(setting, faults).await?;
        world.points.belong_to(world.clone());
        let agent = if setting.scripts.lead.is_some() { "lead" } else { "agent" };
        let run = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {},
            "spec": {"agentRef": {"name": agent}, "input": "Go.", "requestedBy": "ada"},
        });
        let key = Key::new("agentruns", NAMESPACE, RUN);
        world.api.create(key, run).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        let over = |run: &Value| matches!(run["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Cancelled"));
        let ended =
            world.wait(|| world.runs().iter().all(over) && world.pods().is_empty() && world.kubelet.is_idle()).await;
        let closed = match ended {
            Ok(()) => world.closed().await,
            Err(error) => Err(error),
        };
        world.operator.stop().await;
        drop(tasks);
        let (own, children) = closed.with_context(|| world.logs())?.into_iter().partition(|ran| ran.name == RUN);
        let [run] = <[Ran; 1]>::try_from(own).map_err(|own: Vec<Ran>| anyhow::anyhow!("{} runs {RUN}", own.len()))?;
        Ok(Outcome {
            run,
            children,
            calls: world.outside.calls(),
            model_steps: world.outside.steps(),
            seen: world.points.seen(),
            struck: world.points.struck(),
        })
    }

    async fn start(setting: &Setting, faults: &[Point]) -> Result<(Arc<Self>, JoinSet<()>, SocketAddr)> {
        // Nothing here outlives the machine, so that no disk needs to be waited for.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        let points = Arc::new(Points::new(faults));
        let api = Arc::new(Api::default());
        let outside = Outside::new(points.clone(), setting.scripts.clone());
        let address = outside.clone().serve().await;
        for (key, object) in &setting.objects {
            let object = object.to_string().replace(&setting.outside, &address.to_string());
            api.restore(key.clone(), serde_json::from_str(&object)?);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let places = Places {
            api: api_server::serve(api.clone(), points.clone()).await,
            seam: serve_seam(points.clone()).await,
            relay: listener.local_addr()?,
            grpc: own_address(),
            outlets: &setting.outlets,
        };
        relay::serve(listener, places.grpc, &setting.material, points.clone());
        let operator = Operator::new(folder.path().to_owned(), &places);
        let kubelet = Kubelet::new(api.clone(), folder.path().to_owned());
        let mut tasks = JoinSet::new();
        tasks.spawn(operator.clone().work());
        tasks.spawn(kubelet.clone().work());
        let run = Journaled { folder: folder.path().to_owned(), name: RUN.to_owned() };
        let person = Person { when: setting.person, api: api.clone(), outside: outside.clone(), run };
        tasks.spawn(person.work());
        Ok((Arc::new(Self { api, kubelet, operator, outside, points, folder }), tasks, address))
    }

    /// Waits until `done` says so, looking at each change and now and then.
    async fn wait(&self, done: impl Fn() -> bool) -> Result<()> {
        let mut newest = self.api.newest.subscribe();
        let until = tokio::time::Instant::now() + PATIENCE;
        while !done() {
            if tokio::time::Instant::now() > until {
                bail!("nothing came of it in {} s", PATIENCE.as_secs());
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), newest.changed()).await;
        }
        Ok(())
    }

    fn runs(&self) -> Vec<Value> {
        self.api.list("agentruns", None).1
    }

    /// Every run, once its rows hold the end of its last epoch.
    async fn closed(&self) -> Result<Vec<Ran>> {
        let mut closed = Vec::new();
        for run in self.runs() {
            let name = run["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let export = self.rows(&name).await.with_context(|| format!("AgentRun {name}"))?;
            closed.push(Ran { name, status: run["status"].clone(), export });
        }
        Ok(closed)
    }

    async fn rows(&self, name: &str) -> Result<Vec<u8>> {
        let run = Journaled { folder: self.folder.path().to_owned(), name: name.to_owned() };
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let export = run.export()?;
            let verified = belay_protocol::export::verify(&export).map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
            if verified.state.live_epoch().is_none() {
                return Ok(export);
            }
            if tokio::time::Instant::now() > until {
                bail!("the journal holds no end of the last epoch");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn pods(&self) -> Vec<Value> {
        self.api.list("pods", None).1
    }

    /// The last lines of both processes, for whoever has to find out what went wrong.
    fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(60)..].join("\n"))
        };
        let statuses = self.api.snapshot().into_iter().filter(|(key, _)| key.resource != "secrets");
        let statuses: Vec<String> = statuses.map(|(key, object)| format!("{key:?} {}", object["status"])).collect();
        let (statuses, struck) = (statuses.join("\n"), self.points.struck());
        format!("struck: {struck:?}\n{statuses}\n{}{}", tail("operator.log"), tail("runner.log"))
    }
}

/// A run's rows, read beside whoever writes them.
pub struct Journaled {
    folder: PathBuf,
    name: String,
}

impl Journaled {
    pub fn export(&self) -> Result<Vec<u8>> {
        let journal = belay_operator::config::journal_path(&self.folder);
        Ok(belay_operator::journal::export(&journal, &format!("{NAMESPACE}/{}", self.name))?)
    }

    pub fn events(&self) -> Result<Vec<Value>> {
        effects::events(std::str::from_utf8(&self.export()?)?)
    }
}

/// An address that no connection's own end can come to lie on, so that the operator finds it free again.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let salt = u8::try_from(std::process::id() % 200).unwrap_or_default() + 10;
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, salt, high, low)), 8443)
}

/// As people apply it.
fn belay(resource: &str, kind: &str, name: &str, spec: &Value) -> (Key, Value) {
    let object = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{resource}-{name}"), "generation": 1,
            "creationTimestamp": "2026-11-23T10:00:00Z"},
    });
    (Key::new(resource, NAMESPACE, name), object)
}

fn model(outside: &str, id: &str) -> Value {
    let timeouts = json!({"connectSeconds": 2, "firstByteSeconds": 2, "idleSeconds": 2, "totalSeconds": 10});
    json!({"api": "ChatCompletions", "model": id, "baseURL": format!("http://{outside}/v1"), "timeouts": timeouts})
}

/// An Agent that may call the other one. It reads, as far as anybody is told, so that nobody is asked.
fn leading_objects(outside: &str) -> [(Key, Value); 3] {
    let tool =
        json!({"agent": {"agentRef": {"name": "agent"}, "limits": {"tokens": SHARE}}, "effects": {"default": "None"}});
    let agent = json!({
        "modelRef": {"name": "lead"}, "tools": [{"name": "helper", "operations": ["run"]}], "limits": {"tokens": 2 * SHARE},
    });
    [
        belay("models", "Model", "lead", &model(outside, LEAD)),
        belay("tools", "Tool", "helper", &tool),
        belay("agents", "Agent", "lead", &agent),
    ]
}

fn objects(outside: &str, material: &Material) -> Vec<(Key, Value)> {
    use base64::Engine as _;
    let encode = |text: &String| base64::engine::general_purpose::STANDARD.encode(text);
    let data = BTreeMap::from([
        ("ca.crt", encode(&material.ca_cert_pem)),
        ("ca.key", encode(&material.ca_key_pem)),
        ("tls.crt", encode(&material.cert_pem)),
        ("tls.key", encode(&material.key_pem)),
    ]);
    let tool = json!({
        "mcp": {"url": format!("http://{outside}/mcp")}, "callTimeoutSeconds": 2,
        "effects": {"operations": {"put": "Idempotent"}},
    });
    let agent = json!({"modelRef": {"name": "model"}, "tools": [{"name": "counter", "operations": ["add", "put", "drop", "ask"]}]});
    let mut objects = vec![
        (
            Key::new("namespaces", "", NAMESPACE),
            json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": NAMESPACE, "uid": "uid-team", "labels": {"belay.dev/enabled": "true"}}}),
        ),
        (
            Key::new("secrets", OPERATORS, "belay-operator-tls"),
            json!({"apiVersion": "v1", "kind": "Secret", "data": data,
                "metadata": {"name": "belay-operator-tls", "namespace": OPERATORS, "uid": "uid-tls"}}),
        ),
        belay("models", "Model", "model", &model(outside, "m")),
        belay("tools", "Tool", "counter", &tool),
        belay("agents", "Agent", "agent", &agent),
        lease(),
    ];
    objects.extend(rules::objects());
    objects
}

/// The installation comes with an empty one.
fn lease() -> (Key, Value) {
    let metadata = json!({"name": "belay-operator", "namespace": OPERATORS, "uid": "uid-lease"});
    let object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata});
    (Key::new("leases", OPERATORS, "belay-operator"), object)
}
