//! An operator's run service on loopback, and a scripted runner that speaks to it over TLS.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use belay_operator::gate::{Law, Word};
use belay_operator::journal::Journal;
use belay_operator::quota::{Quotas, Rates};
use belay_operator::service::{
    AddressCheck, Options, PeerError, PeerPod, Peers, Probes, RunService, ServeError, Sessions, serve,
};
use belay_operator::tls::{Material, Reloadable, trust_bundle};
use belay_protocol::call::CallBinding;
use belay_protocol::event::{Event, Finish, Item, ListedOperation, Listing, ModelResponse, ProposedCall, ToolResult};
use belay_protocol::judgement::{Judged, Judgement, PolicyRequirement};
use belay_protocol::plan::{
    Effects, Limits, ModelApi, ObjectId, OnDrift, Plan, PlanModel, PlanOperation, PlanTool, Timeouts,
};
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::run_service_client::RunServiceClient;
use belay_protocol::wire::runner_message::Body as ToOperator;
use belay_protocol::wire::{Ack, Batch, Hello, OperatorMessage, RunnerMessage, Welcome};
use belay_protocol::{Digest, PROTOCOL_VERSION, RunState, TICKET_METADATA, wire};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};

const NAME: &str = "belay-operator.test";
const PATIENCE: Duration = Duration::from_secs(20);

/// A token is `namespace/pod/uid`, with `#run` behind it for a pod that names its run, and `@address` for one that
/// lives elsewhere.
struct TokenPeers {
    away: Arc<AtomicBool>,
}

#[async_trait]
impl Peers for TokenPeers {
    async fn vouch(&self, token: &str) -> Result<PeerPod, PeerError> {
        if token == "unreachable" || (self.away.load(Ordering::SeqCst) && token != "revoked") {
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
    /// Nobody can say whose a token is, unless it was revoked.
    pub api_server_away: Arc<AtomicBool>,
    /// Limits of every Model.
    pub rates: Arc<Mutex<Rates>>,
    pub quotas: Quotas,
    run_bytes_max: u64,
    address: String,
    ca_pem: String,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
}

/// People are asked about `delete`; everything else is allowed.
struct AskToDelete;

#[async_trait]
impl Law for AskToDelete {
    async fn judge(&self, _run: &RunState, call: &ProposedCall) -> Word {
        let judgement =
            if call.operation == "delete" { Judgement::Ask { requirements: wants() } } else { Judgement::Allow };
        Word::Judged(Judged { judgement, opinions: vec![], grants: vec![] })
    }
}

/// Whose yes `delete` needs.
pub fn wants() -> Vec<PolicyRequirement> {
    let policy = "careful".into();
    vec![PolicyRequirement {
        policy,
        generation: 1,
        quorum: 1,
        separation_of_duty: false,
        expires_after_seconds: 60,
        grants: None,
    }]
}

impl World {
    pub async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::with_room(48 << 20).await
    }

    /// Where a run may write that many bytes.
    pub async fn with_room(run_bytes_max: u64) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::over(tempfile::tempdir().unwrap(), run_bytes_max).await
    }

    async fn over(folder: TempDir, run_bytes_max: u64) -> Self {
        let journal = Journal::open(&file(folder.path())).await.unwrap();
        let material = Material::fresh(&[NAME.into()], jiff::Timestamp::now()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let (sessions, probes, shutdown) = (Sessions::new(), Probes::default(), CancellationToken::new());
        let suspended = Arc::new(AtomicBool::new(false));
        let flag = suspended.clone();
        let api_server_away = Arc::new(AtomicBool::new(false));
        let rates = Arc::new(Mutex::new(Rates::default()));
        let now = rates.clone();
        let quotas = Quotas::new(Arc::new(move |_| *now.lock().unwrap()));
        tokio::spawn(quotas.clone().keep(shutdown.clone()));
        let service = RunService {
            journal: journal.clone(),
            sessions: sessions.clone(),
            probes: probes.clone(),
            peers: Arc::new(TokenPeers { away: api_server_away.clone() }),
            suspended: Arc::new(move |_| flag.load(Ordering::SeqCst)),
            law: Arc::new(AskToDelete),
            quotas: quotas.clone(),
            options: Options { address_check: AddressCheck::Required, streams_max: 8, run_bytes_max },
        };
        let tls = Reloadable::new(&material).unwrap();
        let server = tokio::spawn(serve(listener, tls, service, shutdown.clone()));
        let ca_pem = trust_bundle(&material);
        Self {
            folder,
            journal,
            sessions,
            probes,
            suspended,
            api_server_away,
            rates,
            quotas,
            run_bytes_max,
            address,
            ca_pem,
            shutdown,
            server,
        }
    }

    /// Ends the service and the journal as a shutdown does; the folder stays.
    pub async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        within(self.server).await.unwrap().unwrap();
        self.journal.close().await;
        self.folder
    }

    pub async fn restart(self) -> Self {
        let run_bytes_max = self.run_bytes_max;
        Self::over(self.stop().await, run_bytes_max).await
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
        self.accept_plan(plan(name)).await
    }

    pub async fn accept_plan(&self, plan: Plan) -> ObjectId {
        let run = plan.run.clone();
        let name = &run.name;
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        let opened = Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{name}") };
        self.journal.append(&run, 0, vec![accepted, opened]).await.unwrap();
        run
    }

    pub async fn client(&self) -> RunServiceClient<Channel> {
        self.client_from("127.0.0.1").await
    }

    /// From another address of this machine.
    async fn client_from(&self, address: &str) -> RunServiceClient<Channel> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem)).domain_name(NAME);
        let endpoint = Endpoint::from_shared(self.address.clone()).unwrap().tls_config(tls).unwrap();
        let endpoint = endpoint.local_address(address.parse().ok());
        RunServiceClient::new(within(endpoint.connect()).await.unwrap())
    }

    pub async fn connect(&self, token: &str) -> Result<Runner, Status> {
        let (outgoing, queue) = mpsc::channel(16);
        let request = with_token(ReceiverStream::new(queue), token);
        let incoming = within(self.client().await.session(request)).await?.into_inner();
        Ok(Runner { outgoing, incoming })
    }

    /// Connects as one that brings a ticket.
    pub async fn connect_again(&self, token: &str, ticket: &[u8], from: &str) -> Result<Runner, Status> {
        let (outgoing, queue) = mpsc::channel(16);
        let mut request = with_token(ReceiverStream::new(queue), token);
        request.metadata_mut().insert_bin(TICKET_METADATA, MetadataValue::from_bytes(ticket));
        let incoming = within(self.client_from(from).await.session(request)).await?.into_inner();
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

    /// What the operator says by itself about calls that wait: call, attempt, and its word.
    pub async fn woken(&mut self) -> Vec<(String, u32, String)> {
        let Ok(FromOperator::Wake(wake)) = self.next().await else { panic!("no wake") };
        let word = |decision: wire::Decision| {
            let word = match decision.verdict {
                Some(wire::decision::Verdict::Again(_)) => "again".to_owned(),
                Some(wire::decision::Verdict::Denied(words)) => words,
                other => panic!("{other:?}"),
            };
            (decision.subject, decision.attempt, word)
        };
        wake.decisions.into_iter().map(word).collect()
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
            ca: None,
            credential: None,
            context_window_tokens: None,
            max_output_tokens: None,
            temperature: None,
            prices: None,
            timeouts: Timeouts::default(),
            reasoning: None,
            headers: Vec::new(),
            script: vec![],
        },
        fallbacks: Vec::new(),
        tools: vec![PlanTool {
            name: "files".into(),
            uid: "files-uid".into(),
            url: "http://files/mcp".into(),
            ca: None,
            http: None,
            credential: None,
            call_timeout_seconds: 5,
            policies: vec![],
            on_drift: OnDrift::Wait,
            agent: None,
            operations: ["read", "delete"].map(operation).to_vec(),
        }],
        credentials: vec![],
        policies: vec![],
        agent_policies: vec![],
        inherited_policies: vec![],
        private_hosts: Vec::new(),
        limits: Limits { steps: 5, tokens: None, cost_micro_usd: None, active_seconds: 60, wait_seconds: 60 },
        output_schema: None,
        parent: None,
    }
}

fn operation(name: &str) -> PlanOperation {
    let model_name = format!("files__{name}");
    let effects = Effects::NonIdempotent;
    PlanOperation { name: name.into(), model_name, definition: definition(), effects, gone: false }
}

pub fn listed() -> Event {
    let listed = ["read", "delete"].map(|name| ListedOperation { name: name.into(), definition: definition() });
    let listing = Listing::Listed(listed.to_vec());
    Event::ToolsListed { tool: "files".into(), listing }
}

pub fn requested(step: u32) -> Event {
    Event::ModelRequested { step, attempt: 1, request: Digest::zero(), reserved_tokens: 0 }
}

pub fn responded(step: u32, items: Vec<Item>, finish: Finish) -> Event {
    let response = ModelResponse::new(items, finish, belay_protocol::cost::Usage::default(), 1);
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
    proposed_with(call_id, operation, &json!({"path": "a"}))
}

pub fn proposed_with(call_id: &str, operation: &str, args: &serde_json::Value) -> Event {
    let plan = plan("any");
    let tool = plan.tool("files").unwrap();
    let digest = CallBinding::new(&plan, tool, definition(), operation, args).digest().unwrap();
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
    let result =
        ToolResult { is_error: false, content: "ok".into(), truncated_from_bytes: None, artifacts: Vec::new() };
    Event::CallObserved { call_id: call_id.into(), attempt: 1, result, milliseconds: 1 }
}

/// What was said to `subject`: the digest that a permit names, or the words of a denial.
pub fn said(ack: &Ack, subject: &str) -> Result<Vec<u8>, String> {
    let decision = ack.decisions.iter().find(|decision| decision.subject == subject).expect("a decision");
    match decision.verdict.clone().expect("a verdict") {
        wire::decision::Verdict::Permit(permit) => Ok(permit.digest),
        wire::decision::Verdict::Denied(words) => Err(words),
        wire::decision::Verdict::Asked(_) => Err("asked".into()),
        wire::decision::Verdict::Later(_) => Err("later".into()),
        wire::decision::Verdict::Again(_) => Err("again".into()),
    }
}
