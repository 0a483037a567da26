//! Whether a connection that the NetworkPolicy around this pod forbids is made all the same. Sends no byte.

use std::net::SocketAddr;
use std::time::Duration;

use belay_protocol::probe::Passage;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Rules follow a new pod within a moment; a network that has not blocked by then does not.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Tries `address` until it is blocked, or has been open for too long.
pub async fn look(address: &str) -> Passage {
    let Ok(found) = tokio::net::lookup_host(address).await else { return Passage::NotFound };
    let addresses: Vec<SocketAddr> = found.collect();
    watch(FOLLOWED_WITHIN, || connects(&addresses)).await
}

async fn watch<F: Future<Output = bool>>(within: Duration, connects: impl Fn() -> F) -> Passage {
    let deadline = Instant::now() + within;
    loop {
        if !connects().await {
            return Passage::Blocked;
        }
        if Instant::now() >= deadline {
            return Passage::Open;
        }
        sleep(AGAIN).await;
    }
}

async fn connects(addresses: &[SocketAddr]) -> bool {
    matches!(timeout(CONNECT_WITHIN, TcpStream::connect(addresses)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rules_that_follow_a_pod_late_block_and_none_do_not() {
        let tries = AtomicU32::new(0);
        let late = watch(FOLLOWED_WITHIN, || async { tries.fetch_add(1, Ordering::Relaxed) < 5 }).await;
        assert_eq!((late, tries.into_inner()), (Passage::Blocked, 6));
        assert_eq!(watch(FOLLOWED_WITHIN, || async { true }).await, Passage::Open);
    }

    #[tokio::test]
    async fn what_listens_is_connected_to_and_what_is_not_there_is_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(connects(&[address]).await);
        drop(listener);
        assert!(!connects(&[address]).await);
        assert_eq!(look("127.0.0.1:no-port").await, Passage::NotFound);
    }
}
