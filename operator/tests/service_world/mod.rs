//! An operator's run service on loopback, and a scripted runner that speaks to it over TLS.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use belay_operator::journal::Journal;
use belay_operator::service::{
    AddressCheck, Options, PeerError, PeerPod, Peers, Probes, RunService, ServeError, Sessions, serve,
};
use belay_operator::tls::{Material, Reloadable, trust_bundle};
use belay_protocol::call::CallBinding;
use belay_protocol::event::{Event, Finish, Item, ListedOperation, Listing, ModelResponse, ProposedCall, ToolResult};
use belay_protocol::plan::{Effects, Limits, ModelApi, ObjectId, Plan, PlanModel, PlanOperation, PlanTool, Timeouts};
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::run_service_client::RunServiceClient;
use belay_protocol::wire::runner_message::Body as ToOperator;
use belay_protocol::wire::{Ack, Batch, Hello, OperatorMessage, RunnerMessage, Welcome};
use belay_protocol::{Digest, PROTOCOL_VERSION, wire};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

const NAME: &str = "belay-operator.test";
const PATIENCE: Duration = Duration::from_secs(20);

/// A token is `namespace/pod/uid`, with `#run` behind it for a pod that names its run, and `@address` for one that
/// lives elsewhere.
struct TokenPeers;

#[async_trait]
impl Peers for TokenPeers {
    async fn vouch(&self, token: &str) -> Result<PeerPod, PeerError> {
        if token == "unreachable" {
            return Err(PeerError::Unavailable("no API server".into()));
        }
        let (pod, ip) = token.split_once('@').unwrap_or((token, "127.0.0.1"));
        let (pod, run) = pod.split_once('#').unwrap_or((pod, ""));
        let run_uid = Some(run.to_owned()).filter(|run| !run.is_empty());
        let parts: Vec<&str> = pod.split('/').collect();
        let [namespace, name, uid] = parts[..] else { return Err(PeerError::Refused("not authenticated".into())) };
        Ok(PeerPod { namespace: namespace.into(), name: name.into(), uid: uid.into(), run_uid, ip: ip.parse().ok() })
    }
}

pub struct World {
    folder: TempDir,
    pub journal: Journal,
    pub sessions: Sessions,
    pub probes: Probes,
    pub suspended: Arc<AtomicBool>,
    address: String,
    ca_pem: String,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
}

impl World {
    pub async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::over(tempfile::tempdir().unwrap()).await
    }

    async fn over(folder: TempDir) -> Self {
        let journal = Journal::open(&file(folder.path())).await.unwrap();
        let material = Material::fresh(&[NAME.into()], jiff::Timestamp::now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let (sessions, probes, shutdown) = (Sessions::new(), Probes::default(), CancellationToken::new());
        let suspended = Arc::new(AtomicBool::new(false));
        let flag = suspended.clone();
        let service = RunService {
            journal: journal.clone(),
            sessions: sessions.clone(),
            probes: probes.clone(),
            peers: Arc::new(TokenPeers),
            suspended: Arc::new(move |_| flag.load(Ordering::SeqCst)),
            options: Options { address_check: AddressCheck::Required, streams_max: 8 },
        };
        let tls = Reloadable::new(&material).unwrap();
        let server = tokio::spawn(serve(listener, tls, service, shutdown.clone()));
        let ca_pem = trust_bundle(&material);
        Self { folder, journal, sessions, probes, suspended, address, ca_pem, shutdown, server }
    }

    /// Ends the service and the journal as a shutdown does; the folder stays.
    pub async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        within(self.server).await.unwrap().unwrap();
        self.journal.close().await;
        self.folder
    }

    pub async fn restart(self) -> Self {
        Self::over(self.stop().await).await
    }

    /// Tells every stream to go, without waiting for the end.
    pub fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Where the service listens, without the scheme.
    pub fn socket(&self) -> &str {
        self.address.trim_start_matches("https://")
    }

    /// A run whose pod `belay-run-{name}` may say Hello.
    pub async fn accept(&self, name: &str) -> ObjectId {
        let plan = plan(name);
        let run = plan.run.clone();
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        let opened = Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{name}") };
        self.journal.append(&run, 0, vec![accepted, opened]).await.unwrap();
        run
    }

    pub async fn client(&self) -> RunServiceClient<Channel> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem)).domain_name(NAME);
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap().tls_config(tls).unwrap();
        RunServiceClient::new(within(endpoint.connect()).await.unwrap())
    }

    pub async fn connect(&self, token: &str) -> Result<Runner, Status> {
        let (outgoing, queue) = mpsc::channel(16);
        let request = with_token(ReceiverStream::new(queue), token);
        let incoming = within(self.client().await.session(request)).await?.into_inner();
        Ok(Runner { outgoing, incoming })
    }

    /// Connects as the pod of run `name` and says Hello.
    pub async fn greet(&self, name: &str, instance: &str, witness: Option<&Ack>) -> (Runner, FromOperator) {
        let mut runner = self.connect(&token(name)).await.unwrap();
        runner.hello(instance, witness).await;
        let first = runner.next().await.unwrap();
        (runner, first)
    }

    /// The same, by a runner that is let in.
    pub async fn welcome(&self, name: &str, instance: &str, witness: Option<&Ack>) -> (Runner, Welcome) {
        match self.greet(name, instance, witness).await {
            (runner, FromOperator::Welcome(welcome)) => (runner, welcome),
            (_, other) => panic!("{other:?}"),
        }
    }
}

pub struct Runner {
    outgoing: mpsc::Sender<RunnerMessage>,
    incoming: Streaming<OperatorMessage>,
}

impl Runner {
    pub async fn hello(&self, instance: &str, witness: Option<&Ack>) {
        let (last_seq, last_hash) = witness.map_or((0, Vec::new()), |ack| (ack.seq, ack.hash.clone()));
        let hello = Hello { protocol_version: PROTOCOL_VERSION, instance: instance.into(), last_seq, last_hash };
        self.send(ToOperator::Hello(hello)).await;
    }

    /// The service may have cut the stream already: then the message goes nowhere.
    pub async fn send(&self, body: ToOperator) {
        let _ = self.outgoing.send(RunnerMessage { body: Some(body) }).await;
    }

    pub async fn send_batch(&self, n: u64, events: &[Event]) {
        let events = events.iter().map(|event| serde_json::to_vec(event).unwrap()).collect();
        self.send(ToOperator::Batch(Batch { n, events })).await;
    }

    pub async fn append(&mut self, n: u64, events: &[Event]) -> Ack {
        self.send_batch(n, events).await;
        match self.next().await {
            Ok(FromOperator::Ack(ack)) => ack,
            other => panic!("{other:?}"),
        }
    }

    /// The next message, or the status that the stream was cut with.
    pub async fn next(&mut self) -> Result<FromOperator, Status> {
        let message = within(self.incoming.message()).await?;
        Ok(message.expect("the stream goes on").body.expect("a message has a body"))
    }

    pub async fn cut_with(&mut self) -> tonic::Code {
        match self.next().await {
            Err(status) => status.code(),
            Ok(other) => panic!("{other:?}"),
        }
    }

    pub async fn bye(&mut self) -> String {
        match self.next().await {
            Ok(FromOperator::Bye(bye)) => bye.reason,
            other => panic!("{other:?}"),
        }
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an answer in time")
}

pub fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub fn token(name: &str) -> String {
    format!("ns/belay-run-{name}/pod-uid-{name}")
}

fn file(folder: &Path) -> std::path::PathBuf {
    folder.join("journal.db")
}

fn definition() -> Digest {
    Digest::of(b"definition")
}

pub fn plan(name: &str) -> Plan {
    let id = |name: &str| ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") };
    Plan {
        version: 1,
        run: id(name),
        agent: id("agent"),
        agent_generation: 1,
        requested_by: None,
        instructions: String::new(),
        input: "go".into(),
        model: PlanModel {
            name: "m".into(),
            api: ModelApi::Scripted,
            provider: None,
            model: "m".into(),
            base_url: None,
            credential: None,
            context_window_tokens: None,
            max_output_tokens: None,
            temperature: None,
            prices: None,
            timeouts: Timeouts::default(),
            script: vec![],
        },
        tools: vec![PlanTool {
            name: "files".into(),
            uid: "files-uid".into(),
            url: "http://files/mcp".into(),
            credential: None,
            call_timeout_seconds: 5,
            operations: vec![PlanOperation {
                name: "read".into(),
                model_name: "files__read".into(),
                definition: definition(),
                effects: Effects::NonIdempotent,
            }],
        }],
        credentials: vec![],
        limits: Limits { steps: 5, tokens: None, cost_micro_usd: None, active_seconds: 60, wait_seconds: 60 },
    }
}

pub fn listed() -> Event {
    let listing = Listing::Listed(vec![ListedOperation { name: "read".into(), definition: definition() }]);
    Event::ToolsListed { tool: "files".into(), listing }
}

pub fn requested(step: u32) -> Event {
    Event::ModelRequested { step, attempt: 1, request: Digest::zero(), reserved_tokens: 0 }
}

pub fn responded(step: u32, items: Vec<Item>, finish: Finish) -> Event {
    let response = ModelResponse {
        items,
        finish,
        usage: belay_protocol::cost::Usage::default(),
        response_id: None,
        model: None,
        milliseconds: 1,
    };
    Event::ModelResponded { step, attempt: 1, response }
}

pub fn text(text: &str) -> Item {
    Item::Text { text: text.into() }
}

pub fn asks(call_id: &str) -> Item {
    let arguments = "{}".into();
    Item::ToolCall { call_id: call_id.into(), provider_id: "p".into(), name: "files__read".into(), arguments }
}

pub fn proposed(call_id: &str, operation: &str) -> Event {
    let (plan, args) = (plan("any"), json!({"path": "a"}));
    let tool = plan.tool("files").unwrap();
    let digest = CallBinding::new(&plan, tool, definition(), operation, &args).digest().unwrap();
    let call = ProposedCall {
        tool: "files".into(),
        operation: operation.into(),
        args: args.clone(),
        definition: definition(),
        digest,
    };
    Event::CallProposed { call_id: call_id.into(), attempt: 1, call }
}

pub fn observed(call_id: &str) -> Event {
    let result = ToolResult { is_error: false, content: "ok".into(), truncated_from_bytes: None };
    Event::CallObserved { call_id: call_id.into(), attempt: 1, result, milliseconds: 1 }
}

/// What was said to `subject`: the digest that a permit names, or the words of a denial.
pub fn said(ack: &Ack, subject: &str) -> Result<Vec<u8>, String> {
    let decision = ack.decisions.iter().find(|decision| decision.subject == subject).expect("a decision");
    match decision.verdict.clone().expect("a verdict") {
        wire::decision::Verdict::Permit(permit) => Ok(permit.digest),
        wire::decision::Verdict::Denied(words) => Err(words),
    }
}
