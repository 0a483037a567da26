//! Between runners and the operator: ends TLS under the operator's own certificate and passes each message on, with
//! a place before and after each.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::http::Uri;
use belay_operator::tls::{Material, Reloadable};
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::run_service_client::RunServiceClient;
use belay_protocol::wire::run_service_server::{RunService, RunServiceServer};
use belay_protocol::wire::runner_message::Body as FromRunner;
use belay_protocol::wire::{ArtifactPart, Kept, OperatorMessage, ProbeMessage, ProbeOrder, RunnerMessage};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::points::{Next, Points, Process};

#[derive(Clone)]
struct Relay {
    points: Arc<Points>,
    operator: Endpoint,
}

/// Serves on `listener`; the operator is at `operator`.
pub fn serve(listener: TcpListener, operator: SocketAddr, material: &Material, points: Arc<Points>) {
    let tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&material.ca_cert_pem)).domain_name("127.0.0.1");
    let uri: Uri = format!("https://{operator}").parse().unwrap();
    let operator = Endpoint::from(uri).tls_config(tls).unwrap();
    let config = Reloadable::new(material).unwrap().server_config().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (accepted, connections) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = accepted.send(Ok::<_, std::io::Error>(stream)).await;
                }
            });
        }
    });
    let relay = RunServiceServer::new(Relay { points, operator }).max_encoding_message_size(64 << 20);
    let server = Server::builder().add_service(relay);
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(connections)));
}

#[async_trait]
impl RunService for Relay {
    type SessionStream = ReceiverStream<Result<OperatorMessage, Status>>;
    type ProbeStream = ReceiverStream<Result<ProbeOrder, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<RunnerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut client = self.client().await?;
        let (up, rising) = mpsc::channel(1);
        let (down, falling) = mpsc::channel(1);
        let talk = Arc::new(Talk { points: self.points.clone(), batch: Mutex::default() });
        let (metadata, extensions, incoming) = request.into_parts();
        // Both directions end together: a broken connection is broken for both.
        let rise = talk.clone().rise(incoming, up, down.clone());
        tokio::spawn(async move {
            let answers = tokio::select! {
                answers = client.session(Request::from_parts(metadata, extensions, ReceiverStream::new(rising))) => answers,
                () = down.closed() => return,
            };
            match answers {
                Ok(answers) => talk.fall(answers.into_inner(), down).await,
                Err(status) => part(&down, status).await,
            }
        });
        tokio::spawn(rise);
        Ok(Response::new(ReceiverStream::new(falling)))
    }

    async fn probe(&self, request: Request<Streaming<ProbeMessage>>) -> Result<Response<Self::ProbeStream>, Status> {
        let mut client = self.client().await?;
        let (up, rising) = mpsc::channel(1);
        let (down, falling) = mpsc::channel(1);
        let (metadata, extensions, mut incoming) = request.into_parts();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let _ = up.send(message).await;
            }
        });
        let mut answers =
            client.probe(Request::from_parts(metadata, extensions, ReceiverStream::new(rising))).await?.into_inner();
        tokio::spawn(async move {
            while let Some(answer) = answers.message().await.transpose() {
                let _ = down.send(answer).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(falling)))
    }

    async fn keep(&self, request: Request<Streaming<ArtifactPart>>) -> Result<Response<Kept>, Status> {
        let (metadata, extensions, mut incoming) = request.into_parts();
        let mut parts = Vec::new();
        while let Some(part) = incoming.message().await? {
            parts.push(part);
        }
        self.client().await?.keep(Request::from_parts(metadata, extensions, tokio_stream::iter(parts))).await
    }
}

impl Relay {
    async fn client(&self) -> Result<RunServiceClient<Channel>, Status> {
        let channel = self.operator.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(RunServiceClient::new(channel).max_decoding_message_size(64 << 20))
    }
}

/// One stream.
struct Talk {
    points: Arc<Points>,
    /// What the newest batch holds, so that its answer can be named after it.
    batch: Mutex<String>,
}

fn broken() -> Status {
    Status::unavailable("the connection broke")
}

/// The runner's stream ends with `status`, if the runner is still there.
async fn part(down: &mpsc::Sender<Result<OperatorMessage, Status>>, status: Status) {
    let _ = down.send(Err(status)).await;
}

impl Talk {
    async fn rise(
        self: Arc<Self>,
        mut incoming: Streaming<RunnerMessage>,
        up: mpsc::Sender<RunnerMessage>,
        down: mpsc::Sender<Result<OperatorMessage, Status>>,
    ) {
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                () = up.closed() => return,
            };
            // A runner that has gone, or has closed its half.
            let Ok(Some(message)) = message else { return };
            let name = self.name_of(&message);
            if self.points.pass(&format!("before {name}"), Process::Runner).await != Next::Go {
                return part(&down, broken()).await;
            }
            let _ = up.send(message).await;
            if self.points.pass(&format!("after {name}"), Process::Runner).await != Next::Go {
                return part(&down, broken()).await;
            }
        }
    }

    async fn fall(&self, mut answers: Streaming<OperatorMessage>, down: mpsc::Sender<Result<OperatorMessage, Status>>) {
        loop {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                () = down.closed() => return,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return,
                Err(status) => return part(&down, status).await,
            };
            let name = match &answer.body {
                Some(FromOperator::Welcome(_)) => "Welcome".to_owned(),
                Some(FromOperator::Ack(_)) => format!("ack of {}", self.batch.lock()),
                Some(FromOperator::Wake(_)) => "Wake".to_owned(),
                Some(FromOperator::Cancel(_)) => "Cancel".to_owned(),
                Some(FromOperator::Drain(_)) => "Drain".to_owned(),
                Some(FromOperator::Bye(_)) => "Bye".to_owned(),
                None => "nothing".to_owned(),
            };
            if self.points.pass(&format!("before {name}"), Process::Operator).await != Next::Go {
                return part(&down, broken()).await;
            }
            let _ = down.send(Ok(answer)).await;
            if self.points.pass(&format!("after {name}"), Process::Operator).await != Next::Go {
                return part(&down, broken()).await;
            }
        }
    }

    fn name_of(&self, message: &RunnerMessage) -> String {
        match &message.body {
            Some(FromRunner::Hello(_)) => "Hello".to_owned(),
            Some(FromRunner::Batch(batch)) => {
                let name = |bytes: &Vec<u8>| serde_json::from_slice::<belay_protocol::Event>(bytes).unwrap().name();
                let names = batch.events.iter().map(name).collect::<Vec<_>>().join("+");
                self.batch.lock().clone_from(&names);
                format!("batch {names}")
            }
            None => "nothing".to_owned(),
        }
    }
}
