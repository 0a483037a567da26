//! The way to the operator: TLS against its own authority, and the pod's token on every call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use belay_protocol::wire::run_service_client::RunServiceClient;
use belay_protocol::{MESSAGE_BYTES_MAX, TICKET_METADATA, WELCOME_BYTES_MAX};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use crate::config::OperatorAddress;

const CONNECT_SECONDS: u64 = 5;
const KEEPALIVE_SECONDS: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the operator's address or CA cannot be used: {0}")]
    Address(#[source] tonic::transport::Error),
    #[error("cannot read the token at {path}: {source}")]
    Token { path: String, source: std::io::Error },
    #[error("the token at {0} is not a bearer token")]
    TokenFormat(String),
    #[error("cannot connect to the operator: {0}")]
    Connect(#[source] tonic::transport::Error),
    #[error("the operator ended the stream: {0}")]
    Status(#[from] Status),
    #[error("the operator was silent for too long")]
    Silent,
    #[error("the operator broke the protocol: {0}")]
    Protocol(&'static str),
}

impl LinkError {
    /// Refusals that no reconnect changes. Everything else, a refused token included, may pass.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Status(status) => match status.code() {
                Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::PermissionDenied
                | Code::OutOfRange
                | Code::Unimplemented => true,
                Code::Ok
                | Code::Cancelled
                | Code::Unknown
                | Code::DeadlineExceeded
                | Code::NotFound
                | Code::AlreadyExists
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
                | Code::Unauthenticated => false,
            },
            Self::Address(_) | Self::TokenFormat(_) => true,
            Self::Token { .. } | Self::Connect(_) | Self::Silent | Self::Protocol(_) => false,
        }
    }
}

/// Where the operator is and how to prove who asks.
#[derive(Clone, Debug)]
pub struct Link {
    endpoint: Endpoint,
    token_file: PathBuf,
}

impl Link {
    pub fn new(address: &OperatorAddress, token_file: PathBuf) -> Result<Self, LinkError> {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&address.ca_pem)).domain_name(&address.host);
        let endpoint = Endpoint::from_shared(address.url.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(LinkError::Address)?
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .http2_keep_alive_interval(Duration::from_secs(KEEPALIVE_SECONDS))
            .keep_alive_timeout(Duration::from_secs(KEEPALIVE_SECONDS))
            .keep_alive_while_idle(true);
        Ok(Self { endpoint, token_file })
    }

    /// As [`Link::call`], with the ticket of an earlier Welcome, if there was one.
    pub async fn call_again<T>(
        &self,
        message: T,
        ticket: &[u8],
    ) -> Result<(RunServiceClient<Channel>, Request<T>), LinkError> {
        let (client, mut request) = self.call(message).await?;
        if !ticket.is_empty() {
            let mut value = MetadataValue::from_bytes(ticket);
            value.set_sensitive(true);
            request.metadata_mut().insert_bin(TICKET_METADATA, value);
        }
        Ok((client, request))
    }

    /// A client with a fresh connection, and `message` carrying the token as it is now.
    pub async fn call<T>(&self, message: T) -> Result<(RunServiceClient<Channel>, Request<T>), LinkError> {
        let channel = self.endpoint.connect().await.map_err(LinkError::Connect)?;
        let client = RunServiceClient::new(channel)
            .max_decoding_message_size(WELCOME_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", bearer(&self.token_file)?);
        Ok((client, request))
    }
}

/// The projected token as the kubelet has it now: it is rotated.
fn bearer(path: &Path) -> Result<MetadataValue<tonic::metadata::Ascii>, LinkError> {
    let shown = || path.display().to_string();
    let token = std::fs::read_to_string(path).map_err(|source| LinkError::Token { path: shown(), source })?;
    let value = Zeroizing::new(format!("Bearer {}", Zeroizing::new(token).trim()));
    let mut value: MetadataValue<_> = value.parse().map_err(|_| LinkError::TokenFormat(shown()))?;
    value.set_sensitive(true);
    Ok(value)
}
