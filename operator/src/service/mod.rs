//! The gRPC service that runners and probe pods speak to: who they are, what they append, what they are told.
//! Knows no Kubernetes client; who a token belongs to is answered by [`Peers`].

mod authenticate;
mod batch;
mod hello;
mod incoming;
mod keep;
mod parked;
mod places;
mod probes;
mod session;
mod sessions;
mod tickets;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::plan::ObjectId;
use belay_protocol::wire::run_service_server::{RunService as Contract, RunServiceServer};
use belay_protocol::wire::{ArtifactPart, Kept, OperatorMessage, ProbeMessage, ProbeOrder, RunnerMessage};
use belay_protocol::{MESSAGE_BYTES_MAX, WELCOME_BYTES_MAX};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use self::places::Places;
pub use self::probes::Probes;
pub use self::sessions::Sessions;
use self::tickets::Tickets;
use crate::gate::Law;
use crate::journal::Journal;
use crate::quota::Quotas;
use crate::tls::{Reloadable, TlsError};

/// A connection that has not proved itself by then is cut.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait for a peer which does not read.
const OUTGOING: usize = 8;
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A runner opens one stream on its connection; probes too.
const STREAMS_OF_A_CONNECTION: u32 = 4;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
/// Tokens that are being checked at one time.
const VOUCHING_MAX: usize = 16;
/// Artifacts that arrive at one time: each is held in memory until it is whole.
const KEEPING_MAX: usize = 4;
/// What open streams get to say goodbye after the shutdown signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Says whose a token is.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    async fn vouch(&self, token: &str) -> Result<PeerPod, PeerError>;
}

/// A pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The run that the pod was made for, as its label says, which only the operator sets.
    pub run_uid: Option<String>,
    /// None: not known yet; the peer is asked to come again.
    pub ip: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("refused: {0}")]
    Refused(String),
    /// Nobody could say: try again.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Whether nothing may be permitted to runs of this Agent now (`spec.suspend`).
pub type SuspendCheck = Arc<dyn Fn(&ObjectId) -> bool + Send + Sync>;

/// Everything that the service works with.
#[derive(Clone)]
pub struct RunService {
    pub journal: Journal,
    pub sessions: Sessions,
    pub probes: Probes,
    pub peers: Arc<dyn Peers>,
    pub suspended: SuspendCheck,
    pub law: Arc<dyn Law>,
    /// Whose turn it is to ask a Model.
    pub quotas: Quotas,
    pub options: Options,
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub address_check: AddressCheck,
    /// The most streams at one time.
    pub streams_max: usize,
    /// What one run may write into the journal before it is ended; a batch may take it a little further.
    pub run_bytes_max: u64,
}

/// Whether a peer must come from its pod's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressCheck {
    Required,
    /// For networks that rewrite addresses between pods.
    Off,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Serves until `shutdown`, then says Drain on every stream and waits for them, up to ten seconds.
pub async fn serve(
    listener: TcpListener,
    tls: Reloadable,
    service: RunService,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let tasks = TaskTracker::new();
    let connections_max = service.options.streams_max * 2 + VOUCHING_MAX;
    let acceptor = TlsAcceptor::from(Arc::new(tls.server_config()?));
    let incoming = incoming::accept(listener, acceptor, connections_max, shutdown.clone(), &tasks);
    let contract = Served {
        streams: Arc::new(Semaphore::new(service.options.streams_max)),
        vouching: Arc::new(Semaphore::new(VOUCHING_MAX)),
        keeping: Places::new(KEEPING_MAX),
        tickets: Arc::new(Tickets::new()),
        service,
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
    };
    let contract = RunServiceServer::new(contract)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(WELCOME_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(STREAMS_OF_A_CONNECTION))
        .http2_max_header_list_size(Some(HEADER_BYTES_MAX))
        .serve_with_incoming_shutdown(contract, incoming, shutdown.clone().cancelled_owned());
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        ended = server => ended?,
        () = late => tracing::warn!("streams were still open when the drain time ended"),
    }
    tasks.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!("stream tasks were still busy when the drain time ended");
    }
    Ok(())
}

/// The contract's implementation: authenticate, check, hand over to a task.
#[derive(Clone)]
struct Served {
    service: RunService,
    streams: Arc<Semaphore>,
    vouching: Arc<Semaphore>,
    keeping: Places,
    tickets: Arc<Tickets>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[async_trait]
impl Contract for Served {
    type SessionStream = ReceiverStream<Result<OperatorMessage, Status>>;
    type ProbeStream = ReceiverStream<Result<ProbeOrder, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<RunnerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = self.authenticate_runner(&request).await?;
        let slot = self.slot()?;
        let (outgoing, answers) = mpsc::channel(OUTGOING);
        let stream = session::Stream {
            service: self.service.clone(),
            tickets: Arc::clone(&self.tickets),
            caller,
            incoming: request.into_inner(),
            outgoing,
            shutdown: self.shutdown.clone(),
        };
        self.tasks.spawn(async move {
            stream.run().await;
            drop(slot);
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn probe(&self, request: Request<Streaming<ProbeMessage>>) -> Result<Response<Self::ProbeStream>, Status> {
        let caller = self.authenticate(&request).await?;
        let slot = self.slot()?;
        let (outgoing, orders) = mpsc::channel(OUTGOING);
        let stream = probes::Stream {
            probes: self.service.probes.clone(),
            caller,
            incoming: request.into_inner(),
            outgoing,
            shutdown: self.shutdown.clone(),
        };
        self.tasks.spawn(async move {
            stream.run().await;
            drop(slot);
        });
        Ok(Response::new(ReceiverStream::new(orders)))
    }

    async fn keep(&self, request: Request<Streaming<ArtifactPart>>) -> Result<Response<Kept>, Status> {
        self.take_artifact(request).await
    }
}
