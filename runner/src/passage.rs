//! Whether a connection that the NetworkPolicy around this pod forbids is made all the same. Sends no byte.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use belay_protocol::network::Destination;
use belay_protocol::probe::Passage;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::egress::{Names as _, SystemNames};

/// Rules follow a new pod within a moment; a network that has not blocked by then does not.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// One lost packet is no rule: so many tries in a row come to nothing, over so long a time.
const BLOCKED_TRIES: u32 = 3;
const BLOCKED_FOR: Duration = Duration::from_secs(3);

/// What a try to connect came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Made,
    Failed,
    /// Whoever is there said so, or a rule did: nobody can tell which.
    Refused,
}

/// Tries `address`, HOST:PORT, until it is blocked, or has been open for too long.
pub async fn look(address: &str) -> Passage {
    let names = SystemNames::of_pod();
    let Some((host, port)) = asked(address, names.cluster_domain()) else { return Passage::NotFound };
    let Ok(found) = names.look_up(host).await else { return Passage::NotFound };
    let addresses: Vec<SocketAddr> = found.into_iter().map(|found| SocketAddr::new(found, port)).collect();
    watch(FOLLOWED_WITHIN, || connects(&addresses)).await
}

/// What is looked up, and the port. Whoever answers for the name has the say whether policies are enforced.
fn asked(address: &str, cluster_domain: &str) -> Option<(String, u16)> {
    let Destination { host, port } = Destination::parse(&format!("http://{address}"), "").ok()?;
    Some((host.absolute(cluster_domain).unwrap_or_else(|| host.to_string()), port))
}

async fn watch<F: Future<Output = Tried>>(within: Duration, connects: impl Fn() -> F) -> Passage {
    let deadline = Instant::now() + within;
    let mut failed = 0;
    let mut failing_since = Instant::now();
    loop {
        let began = Instant::now();
        let tried = connects().await;
        match tried {
            Tried::Made if Instant::now() >= deadline => return Passage::Open,
            Tried::Refused if Instant::now() >= deadline => return Passage::Refused,
            Tried::Made | Tried::Refused => failed = 0,
            Tried::Failed => {
                failing_since = if failed == 0 { began } else { failing_since };
                failed += 1;
                if failed >= BLOCKED_TRIES && failing_since.elapsed() >= BLOCKED_FOR {
                    return Passage::Blocked;
                }
            }
        }
        sleep(AGAIN).await;
    }
}

async fn connects(addresses: &[SocketAddr]) -> Tried {
    match timeout(CONNECT_WITHIN, TcpStream::connect(addresses)).await {
        Ok(Ok(_)) => Tried::Made,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Tried::Refused,
        Ok(Err(_)) | Err(_) => Tried::Failed,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// What it comes to when the first tries are like that, and all others like this.
    async fn watched(first: u32, then: Tried, others: Tried) -> (Passage, u32) {
        let count = AtomicU32::new(0);
        let tried = || async { if count.fetch_add(1, Ordering::Relaxed) < first { then } else { others } };
        let passage = watch(FOLLOWED_WITHIN, tried).await;
        (passage, count.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn rules_that_follow_a_pod_late_block_and_none_do_not() {
        assert_eq!(watched(5, Tried::Made, Tried::Failed).await, (Passage::Blocked, 5 + 7), "for 3 s");
        assert_eq!(watched(0, Tried::Made, Tried::Made).await.0, Passage::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_was_lost_is_no_rule_and_neither_is_a_port_that_refuses() {
        assert_eq!(watched(2, Tried::Failed, Tried::Made).await.0, Passage::Open);
        assert_eq!(watched(6, Tried::Failed, Tried::Made).await.0, Passage::Open, "not for 3 s");
        assert_eq!(watched(0, Tried::Made, Tried::Refused).await.0, Passage::Refused);
        assert_eq!(watched(3, Tried::Refused, Tried::Made).await.0, Passage::Open);
        let slow = || async {
            sleep(CONNECT_WITHIN).await;
            Tried::Failed
        };
        let start = Instant::now();
        assert_eq!(watch(FOLLOWED_WITHIN, slow).await, Passage::Blocked);
        assert!(start.elapsed() >= CONNECT_WITHIN * BLOCKED_TRIES, "three times");
    }

    #[tokio::test]
    async fn what_listens_is_connected_to_and_what_is_not_there_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(connects(&[address]).await, Tried::Made);
        drop(listener);
        assert_eq!(connects(&[address]).await, Tried::Refused);
        assert_eq!(look("127.0.0.1:no-port").await, Passage::NotFound);
    }

    #[test]
    fn the_operator_is_looked_up_by_its_whole_name() {
        let asked = |address| asked(address, "corp.example");
        let name = "belay-operator.belay-system.svc.corp.example.".to_owned();
        assert_eq!(asked("belay-operator.belay-system.svc:8080"), Some((name, 8080)));
        assert_eq!(asked("10.96.0.7:8080"), Some(("10.96.0.7".to_owned(), 8080)));
    }
}
