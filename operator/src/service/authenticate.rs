//! Who is at the other end: a token that its cluster vouches for, from the pod's own address.

use std::net::IpAddr;
use std::time::Duration;

use belay_protocol::TICKET_METADATA;
use tonic::{Request, Status};

use super::incoming::Origin;
use super::tickets::Ticket;
use super::{AddressCheck, PeerError, PeerPod, Served};

/// The longest token that is sent on to be checked.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How long the API server may take to answer for somebody who has a ticket.
const TICKET_AFTER: Duration = Duration::from_secs(3);

/// A peer that proved itself.
pub(super) struct Caller {
    pub pod: PeerPod,
    pub origin: Origin,
    pub proof: Proof,
}

/// By what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Token,
    /// Nobody could check its token now; this operator had its word before.
    Ticket(Ticket),
}

impl Served {
    /// One of the streams that may be open, kept until it is dropped.
    pub(super) fn slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            tracing::warn!(max = self.service.options.streams_max, "stream refused: too many are open");
            Status::resource_exhausted("too many streams are open: come again")
        })
    }

    /// By its token alone.
    pub(super) async fn authenticate<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let origin = origin(request)?;
        let pod = self.vouch(request, &origin).await?;
        self.at_its_address(Caller { pod, origin, proof: Proof::Token })
    }

    /// By its token, or, where nobody can check that now, by the ticket that it was given before. A token that is
    /// refused is refused.
    pub(super) async fn authenticate_runner<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let ticket = request.metadata().get_bin(TICKET_METADATA).and_then(|value| value.to_bytes().ok());
        let Some(ticket) = ticket.and_then(|bytes| self.tickets.read(&bytes)) else {
            return self.authenticate(request).await;
        };
        let origin = origin(request)?;
        let vouched = tokio::time::timeout(TICKET_AFTER, self.vouch(request, &origin)).await;
        match vouched.unwrap_or_else(|_| Err(Status::unavailable("no answer"))) {
            Ok(pod) => self.at_its_address(Caller { pod, origin, proof: Proof::Token }),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                let pod = ticket.pod.clone();
                tracing::info!(namespace = pod.namespace, pod = pod.name, "peer let in by its ticket");
                self.at_its_address(Caller { pod, origin, proof: Proof::Ticket(ticket) })
            }
            Err(status) => Err(status),
        }
    }

    async fn vouch<T>(&self, request: &Request<T>, origin: &Origin) -> Result<PeerPod, Status> {
        let refused = |reason: &str| {
            tracing::warn!(address = %origin.address, reason, "peer refused");
            Status::unauthenticated(reason.to_owned())
        };
        let token = bearer(request).ok_or_else(|| refused("no bearer token"))?;
        let busy = || Status::unavailable("too many tokens are being checked: come again");
        let _vouching = self.vouching.try_acquire().map_err(|_| busy())?;
        match self.service.peers.vouch(token).await {
            Ok(pod) => Ok(pod),
            Err(PeerError::Refused(reason)) => Err(refused(&reason)),
            Err(PeerError::Unavailable(reason)) => {
                tracing::warn!(address = %origin.address, reason, "peer cannot be checked");
                Err(Status::unavailable("who you are cannot be checked now: come again"))
            }
        }
    }

    fn at_its_address(&self, caller: Caller) -> Result<Caller, Status> {
        let Caller { pod, origin, .. } = &caller;
        match check_address(self.service.options.address_check, pod.ip, origin.address.ip()) {
            AddressVerdict::Fits => Ok(caller),
            AddressVerdict::Unknown => Err(Status::unavailable("the pod's address is not known yet: come again")),
            AddressVerdict::Foreign => {
                tracing::warn!(
                    namespace = pod.namespace, pod = pod.name, address = %origin.address, pod_ip = ?pod.ip,
                    "peer refused: its token is another pod's"
                );
                Err(Status::unauthenticated("this address is not the address of the token's pod"))
            }
        }
    }
}

fn origin<T>(request: &Request<T>) -> Result<Origin, Status> {
    let origin = request.extensions().get::<Origin>().cloned();
    origin.ok_or_else(|| Status::internal("the connection has no address"))
}

#[derive(Debug, PartialEq, Eq)]
enum AddressVerdict {
    Fits,
    Unknown,
    Foreign,
}

fn check_address(check: AddressCheck, pod: Option<IpAddr>, peer: IpAddr) -> AddressVerdict {
    match (check, pod) {
        (AddressCheck::Off, _) => AddressVerdict::Fits,
        (AddressCheck::Required, None) => AddressVerdict::Unknown,
        (AddressCheck::Required, Some(pod)) if pod.to_canonical() == peer.to_canonical() => AddressVerdict::Fits,
        (AddressCheck::Required, Some(_)) => AddressVerdict::Foreign,
    }
}

fn bearer<T>(request: &Request<T>) -> Option<&str> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    value.strip_prefix("Bearer ").filter(|token| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pod_must_come_from_its_own_address_in_either_notation() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let required = |pod: Option<IpAddr>, peer: &str| check_address(AddressCheck::Required, pod, ip(peer));
        assert_eq!(required(Some(ip("10.0.0.7")), "10.0.0.7"), AddressVerdict::Fits);
        assert_eq!(required(Some(ip("10.0.0.7")), "::ffff:10.0.0.7"), AddressVerdict::Fits);
        assert_eq!(required(Some(ip("10.0.0.7")), "10.0.0.8"), AddressVerdict::Foreign);
        assert_eq!(required(None, "10.0.0.8"), AddressVerdict::Unknown);
        assert_eq!(check_address(AddressCheck::Off, None, ip("10.0.0.8")), AddressVerdict::Fits);
    }

    #[test]
    fn only_a_bearer_token_of_bearable_length_is_read() {
        let with = |value: &str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("authorization", value.parse().unwrap());
            bearer(&request).map(str::to_owned)
        };
        assert_eq!(with("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(with("Basic abc"), None);
        assert_eq!(with(&format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX + 1))), None);
    }
}
