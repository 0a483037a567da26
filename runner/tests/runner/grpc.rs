//! The session over real gRPC and TLS: who is spoken to, what is resent, and when it is over.

use std::pin::Pin;
use std::time::Duration;

use belay_protocol::event::Artifact;
use belay_protocol::network::ClusterRanges;
use belay_protocol::probe::{Presence, ProbeReport, ProbeTask};
use belay_protocol::wire::artifact_part::Body as Part;
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::probe_message::Body as FromProbe;
use belay_protocol::wire::run_service_server::{RunService, RunServiceServer};
use belay_protocol::wire::runner_message::Body as FromRunner;
use belay_protocol::wire::{
    Ack, ArtifactPart, Batch, Bye, Decision, Hello, Kept, OperatorMessage, Permit, ProbeDone, ProbeMessage, ProbeOrder,
    RunnerMessage, Welcome, decision, probe_order,
};
use belay_protocol::{BATCH_BYTES_MAX, Digest, Event, TICKET_METADATA};
use belay_runner::agent_loop::Parting;
use belay_runner::config::{Config, Mode, OperatorAddress};
use belay_runner::run::RunError;
use belay_runner::session::{Keeper as _, Link, LinkError, Uploads};
use futures::Stream;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::fake_operator::welcome;
use crate::plans::{plan, says, scripted};

/// One stream of a runner, in the test's hands.
pub struct Session {
    token: String,
    ticket: Option<Vec<u8>>,
    pub incoming: Streaming<RunnerMessage>,
    outgoing: mpsc::Sender<Result<OperatorMessage, Status>>,
}

struct Probed {
    incoming: Streaming<ProbeMessage>,
    outgoing: mpsc::Sender<Result<ProbeOrder, Status>>,
}

/// The parts that an artifact came in, and what that is answered.
type Upload = (Vec<ArtifactPart>, oneshot::Sender<Result<(), Status>>);

struct Service {
    uploads: mpsc::Sender<Upload>,
    sessions: mpsc::Sender<Session>,
    probes: mpsc::Sender<Probed>,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RunService for Service {
    type SessionStream = Replies<OperatorMessage>;
    type ProbeStream = Replies<ProbeOrder>;

    async fn session(
        &self,
        request: Request<Streaming<RunnerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let ticket = request.metadata().get_bin(TICKET_METADATA).map(|value| value.to_bytes().unwrap().to_vec());
        let (outgoing, replies) = mpsc::channel(4);
        let session = Session { token, ticket, incoming: request.into_inner(), outgoing };
        self.sessions.send(session).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn probe(&self, request: Request<Streaming<ProbeMessage>>) -> Result<Response<Self::ProbeStream>, Status> {
        let (outgoing, replies) = mpsc::channel(4);
        self.probes.send(Probed { incoming: request.into_inner(), outgoing }).await.unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn keep(&self, request: Request<Streaming<ArtifactPart>>) -> Result<Response<Kept>, Status> {
        let mut incoming = request.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = incoming.message().await? {
            parts.push(part);
        }
        let (answer, answered) = oneshot::channel();
        self.uploads.send((parts, answer)).await.unwrap();
        answered.await.unwrap().map(|()| Response::new(Kept {}))
    }
}

pub struct Operator {
    pub config: Config,
    pub folder: tempfile::TempDir,
    uploads: mpsc::Receiver<Upload>,
    sessions: mpsc::Receiver<Session>,
    probes: mpsc::Receiver<Probed>,
}

impl Operator {
    pub async fn start() -> Self {
        let (ca_pem, identity) = certificates();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (session_sender, sessions) = mpsc::channel(4);
        let (probe_sender, probes) = mpsc::channel(4);
        let (upload_sender, uploads) = mpsc::channel(4);
        let service =
            RunServiceServer::new(Service { uploads: upload_sender, sessions: session_sender, probes: probe_sender });
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "first-token\n").unwrap();
        let config = Config {
            operator: OperatorAddress::parse(url, ca_pem).unwrap(),
            mode: Mode::Run,
            pod_name: "belay-run-x".into(),
            token_file: folder.path().join("token"),
            credentials_folder: folder.path().join("credentials"),
            documents_folder: folder.path().join("documents"),
            authorities_folder: folder.path().join("authorities"),
            egress_proxy: None,
            cluster_ranges: ClusterRanges::default(),
        };
        Self { config, folder, uploads, sessions, probes }
    }

    /// The next stream and its Hello.
    pub async fn greeted(&mut self) -> (Session, Hello) {
        let mut session = self.sessions.recv().await.unwrap();
        let Some(FromRunner::Hello(hello)) = session.incoming.message().await.unwrap().unwrap().body else {
            panic!("a stream begins with Hello");
        };
        (session, hello)
    }
}

fn certificates() -> (String, Identity) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let ca_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    (ca_pem, Identity::from_pem(certificate.pem(), key.serialize_pem()))
}

impl Session {
    pub async fn say(&self, body: FromOperator) {
        self.outgoing.send(Ok(OperatorMessage { body: Some(body) })).await.unwrap();
    }

    async fn batch(&mut self) -> Batch {
        match self.incoming.message().await.unwrap().unwrap().body {
            Some(FromRunner::Batch(batch)) => batch,
            other => panic!("{other:?}"),
        }
    }
}

fn events(batch: &Batch) -> Vec<Event> {
    batch.events.iter().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect()
}

fn names(batch: &Batch) -> Vec<&'static str> {
    events(batch).iter().map(Event::name).collect()
}

fn first_welcome() -> Welcome {
    welcome(&plan(scripted(vec![says("done")]), Vec::new()))
}

fn model_permit() -> Decision {
    let verdict = Some(decision::Verdict::Permit(Permit::default()));
    Decision { subject: "m1".into(), attempt: 1, verdict }
}

fn run(config: &Config) -> tokio::task::JoinHandle<Result<Parting, RunError>> {
    let config = config.clone();
    tokio::spawn(async move { belay_runner::run::run(&config, "instance-1".into(), std::future::pending()).await })
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_again_and_the_unanswered_batch_resent() {
    let mut operator = Operator::start().await;
    let running = run(&operator.config);
    let (mut session, hello) = operator.greeted().await;
    assert_eq!(
        (hello.instance.as_str(), hello.last_seq, session.token.as_str()),
        ("instance-1", 0, "Bearer first-token")
    );
    session.say(FromOperator::Welcome(first_welcome())).await;
    let unanswered = session.batch().await;
    assert_eq!((unanswered.n, names(&unanswered)), (1, vec!["ModelRequested"]));
    std::fs::write(operator.folder.path().join("token"), "second-token").unwrap();
    drop(session);

    let (mut session, hello) = operator.greeted().await;
    assert_eq!((hello.instance.as_str(), session.token.as_str()), ("instance-1", "Bearer second-token"));
    session.say(FromOperator::Welcome(Welcome { last_batch: 1, session: 2, ..first_welcome() })).await;
    assert_eq!(session.batch().await, unanswered);
    let ack = Ack { n: 1, seq: 4, hash: vec![4; 32], decisions: vec![model_permit()] };
    session.say(FromOperator::Ack(ack)).await;
    let answered = session.batch().await;
    assert_eq!((answered.n, names(&answered)), (2, vec!["ModelResponded"]));
    drop(session);

    let (mut session, hello) = operator.greeted().await;
    assert_eq!((hello.last_seq, hello.last_hash), (4, vec![4; 32]), "the runner is a witness of what was durable");
    session.say(FromOperator::Welcome(Welcome { last_batch: 1, session: 3, ..first_welcome() })).await;
    assert_eq!(session.batch().await, answered);
    session.say(FromOperator::Ack(Ack { n: 2, seq: 6, hash: vec![6; 32], decisions: Vec::new() })).await;
    session.say(FromOperator::Bye(Bye { reason: "Succeeded".into() })).await;
    assert_eq!(running.await.unwrap().unwrap(), Parting::Dismissed { reason: "Succeeded".into() });
}

#[tokio::test]
async fn a_runner_comes_back_with_its_token_and_the_newest_ticket_that_it_was_given() {
    let mut operator = Operator::start().await;
    let running = run(&operator.config);
    let given = [&b"first"[..], b"", b"second"];
    let brought = [None, Some(&b"first"[..]), Some(b"first"), Some(b"second")];
    for (at, expected) in brought.iter().enumerate() {
        let (session, _) = operator.greeted().await;
        assert_eq!((session.token.as_str(), session.ticket.as_deref()), ("Bearer first-token", *expected));
        match given.get(at) {
            Some(ticket) => {
                session.say(FromOperator::Welcome(Welcome { ticket: ticket.to_vec(), ..first_welcome() })).await;
            }
            None => session.say(FromOperator::Bye(Bye { reason: "enough".into() })).await,
        }
    }
    assert!(running.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_refusal_for_good_ends_the_runner_with_its_words() {
    let mut operator = Operator::start().await;
    let running = run(&operator.config);
    let (session, _) = operator.greeted().await;
    session.outgoing.send(Err(Status::permission_denied("another instance holds the epoch"))).await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("another instance holds the epoch"), "{error}");
}

#[tokio::test]
async fn a_bye_instead_of_a_welcome_is_a_clean_end() {
    let mut operator = Operator::start().await;
    let running = run(&operator.config);
    let (session, _) = operator.greeted().await;
    session.say(FromOperator::Bye(Bye { reason: "the run has ended".into() })).await;
    assert!(running.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_cancel_stops_the_runner_which_closes_the_stream() {
    let mut operator = Operator::start().await;
    let running = run(&operator.config);
    let (mut session, _) = operator.greeted().await;
    session.say(FromOperator::Welcome(first_welcome())).await;
    session.batch().await;
    session.say(FromOperator::Cancel(belay_protocol::wire::Cancel { grace_seconds: 5 })).await;
    session.say(FromOperator::Ack(Ack { n: 1, seq: 4, hash: vec![4; 32], decisions: vec![model_permit()] })).await;
    let rest = session.incoming.message().await.unwrap();
    assert_eq!(rest, None, "the runner's half ends");
    drop(session);
    assert_eq!(running.await.unwrap().unwrap(), Parting::Stopped);
}

#[tokio::test]
async fn an_operator_of_another_authority_gets_no_token() {
    let operator = Operator::start().await;
    let (other_ca, _) = certificates();
    let address = OperatorAddress { ca_pem: other_ca, ..operator.config.operator.clone() };
    let refused = Link::new(&address, operator.config.token_file.clone()).unwrap().call(()).await;
    assert!(matches!(refused, Err(LinkError::Connect(_))), "{:?}", refused.map(|_| ()));
}

#[tokio::test]
async fn a_probe_looks_at_its_credential_and_leaves() {
    let mut operator = Operator::start().await;
    let value = operator.config.credentials_folder.join("key");
    std::fs::create_dir_all(&value).unwrap();
    std::fs::write(value.join("value"), "hunter2\n").unwrap();
    let config = operator.config.clone();
    let probing = tokio::spawn(async move { belay_runner::probe::probe(&config).await });
    let mut probed = operator.probes.recv().await.unwrap();
    assert!(matches!(probed.incoming.message().await.unwrap().unwrap().body, Some(FromProbe::Hello(_))));
    let task = serde_json::to_vec(&ProbeTask::Credential { name: "key".into() }).unwrap();
    let order = |body| Ok(ProbeOrder { body: Some(body) });
    probed.outgoing.send(order(probe_order::Body::Task(task))).await.unwrap();
    let Some(FromProbe::Report(report)) = probed.incoming.message().await.unwrap().unwrap().body else { panic!() };
    let report: ProbeReport = serde_json::from_slice(&report).unwrap();
    assert_eq!(report, ProbeReport::Credential(Presence::TrailingNewline));
    probed.outgoing.send(order(probe_order::Body::Done(ProbeDone {}))).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), probing).await.unwrap();
    assert!(ended.unwrap().is_ok());
}

#[tokio::test]
async fn an_artifact_is_sent_in_parts_in_the_name_of_its_instance_and_again_when_the_operator_was_away() {
    let mut operator = Operator::start().await;
    let link = Link::new(&operator.config.operator, operator.config.token_file.clone()).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(3 * BATCH_BYTES_MAX / 2).collect();
    let artifact = Artifact {
        digest: Digest::of(&bytes),
        bytes: bytes.len() as u64,
        media_type: "image/png".into(),
        name: String::new(),
    };
    let (sent, expected) = (bytes.clone(), artifact.clone());
    let keeping = tokio::spawn(async move { Uploads::new(link, "me".into()).keep(&artifact, &sent).await });
    let (_, answer) = operator.uploads.recv().await.unwrap();
    answer.send(Err(Status::unavailable("starting"))).unwrap();
    let (parts, answer) = operator.uploads.recv().await.unwrap();
    answer.send(Ok(())).unwrap();
    assert_eq!(keeping.await.unwrap(), Ok(()));
    let mut bodies = parts.into_iter().map(|part| part.body.unwrap());
    let Some(Part::Head(head)) = bodies.next() else { panic!("it begins with its head") };
    assert_eq!((head.instance.as_str(), head.bytes), ("me", expected.bytes));
    assert_eq!(head.digest, expected.digest.as_bytes());
    let mut whole = Vec::new();
    for body in bodies {
        let Part::Bytes(part) = body else { panic!("one head") };
        assert!(part.len() < BATCH_BYTES_MAX);
        whole.extend(part);
    }
    assert_eq!(whole, bytes);
}

#[tokio::test]
async fn an_artifact_that_the_operator_will_not_keep_is_not_sent_twice() {
    let mut operator = Operator::start().await;
    let link = Link::new(&operator.config.operator, operator.config.token_file.clone()).unwrap();
    let artifact = Artifact { digest: Digest::of(b"x"), bytes: 1, media_type: "a/b".into(), name: String::new() };
    let keeping = tokio::spawn(async move { Uploads::new(link, "me".into()).keep(&artifact, b"x").await });
    let (_, answer) = operator.uploads.recv().await.unwrap();
    answer.send(Err(Status::failed_precondition("this run keeps enough"))).unwrap();
    assert_eq!(keeping.await.unwrap(), Err("this run keeps enough".to_owned()));
    assert!(operator.uploads.try_recv().is_err());
}
