//! Tickets: the operator's own word for a runner that the API server vouched for once, so that it may come back while
//! nobody can check its token. Pure but for the key.
//!
//! # Guarantees
//! A ticket says what was vouched for (pod, uid, address) and whom it was given to (epoch, instance), and nobody but
//! this process can make one. It dies with the process: a new one serves nobody before the API server has given it the
//! Lease, and then tokens can be checked as well (docs/decisions/0007).

use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign, verify};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::PeerPod;

/// How long a ticket is good. No runner is served for long while the API server is away: the operator itself leads for
/// ten seconds more. It has to outlast the stream on which it was given.
const VALID: Duration = Duration::from_hours(1);
const MAC_BYTES: usize = 32;
/// The longest ticket that is looked at.
const TICKET_BYTES_MAX: usize = 4096;

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ticket {
    pub pod: PeerPod,
    pub epoch: u64,
    pub instance: String,
    /// Milliseconds since the issuing process began, by the monotonic clock.
    good_until: u64,
}

/// Issues tickets and recognizes them.
pub(super) struct Tickets {
    key: Key,
    began: Instant,
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self { key: Key::new(HMAC_SHA256, &rand::random::<[u8; MAC_BYTES]>()), began: Instant::now() }
    }

    /// The bytes that the runner brings back. Empty, which is good for nothing, where it cannot be written.
    pub(super) fn issue(&self, pod: &PeerPod, epoch: u64, instance: &str) -> Vec<u8> {
        let good_until = self.now().saturating_add(milliseconds(VALID));
        let ticket = Ticket { pod: pod.clone(), epoch, instance: instance.to_owned(), good_until };
        let Ok(words) = serde_json::to_vec(&ticket) else { return Vec::new() };
        [sign(&self.key, &words).as_ref(), &words].concat()
    }

    /// What the ticket says, if it is one of ours and still good. Compares in constant time.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Ticket> {
        if bytes.len() > TICKET_BYTES_MAX {
            return None;
        }
        let (mac, words) = bytes.split_at_checked(MAC_BYTES)?;
        verify(&self.key, words, mac).ok()?;
        let ticket: Ticket = serde_json::from_slice(words).ok()?;
        (self.now() < ticket.good_until).then_some(ticket)
    }

    fn now(&self) -> u64 {
        milliseconds(self.began.elapsed())
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn pod() -> PeerPod {
        PeerPod {
            namespace: "ns".into(),
            name: "belay-run-a".into(),
            uid: "uid-a".into(),
            run_uid: Some("run-uid".into()),
            ip: "10.0.0.7".parse().ok(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_says_what_was_vouched_for_until_its_time_is_up() {
        let tickets = Tickets::new();
        let ticket = tickets.issue(&pod(), 3, "one");
        let read = tickets.read(&ticket).unwrap();
        assert_eq!((read.pod, read.epoch, read.instance.as_str()), (pod(), 3, "one"));
        tokio::time::advance(VALID.checked_sub(Duration::from_millis(1)).unwrap()).await;
        assert!(tickets.read(&ticket).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(tickets.read(&ticket), None);
    }

    #[tokio::test]
    async fn no_bit_of_a_ticket_can_be_changed_and_no_other_process_takes_it() {
        let tickets = Tickets::new();
        let ticket = tickets.issue(&pod(), 3, "one");
        for at in 0..ticket.len() {
            let mut bent = ticket.clone();
            bent[at] ^= 1;
            assert_eq!(tickets.read(&bent), None, "byte {at}");
        }
        for cut in [0, MAC_BYTES - 1, MAC_BYTES, ticket.len() - 1] {
            assert_eq!(tickets.read(&ticket[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Tickets::new().read(&ticket), None);
        assert_eq!(tickets.read(&[0; TICKET_BYTES_MAX + 1]), None);
    }
}
