//! Lets callers that come at one time share one look, and never an older one.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Looks of one subject, one after the other.
#[derive(Debug)]
pub struct Lane<T> {
    /// Counts arrivals and beginnings, so that it is certain which came first.
    ticket: AtomicU64,
    last: Mutex<Option<Looked<T>>>,
}

#[derive(Debug)]
struct Looked<T> {
    began: u64,
    found: T,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { ticket: AtomicU64::new(0), last: Mutex::new(None) }
    }
}

impl<T: Clone> Lane<T> {
    /// What a look found that began after this call did. Whoever arrives during a look waits for it to end; of those,
    /// the first looks again and the others take what that found.
    pub async fn fresh<F: Future<Output = T>>(&self, look: impl FnOnce() -> F) -> T {
        let arrived = self.ticket.fetch_add(1, Ordering::SeqCst);
        // Held while looking: it is the queue.
        let mut last = self.last.lock().await;
        if let Some(looked) = last.as_ref().filter(|looked| looked.began > arrived) {
            return looked.found.clone();
        }
        let began = self.ticket.fetch_add(1, Ordering::SeqCst);
        let found = look().await;
        *last = Some(Looked { began, found: found.clone() });
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn callers_at_one_time_share_a_look_that_began_after_all_of_them() {
        let (lane, looks) = (Arc::new(Lane::<u64>::default()), Arc::new(AtomicU64::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let call = || {
            let (lane, looks, gate) = (Arc::clone(&lane), Arc::clone(&looks), Arc::clone(&gate));
            tokio::spawn(async move {
                lane.fresh(|| async {
                    let number = looks.fetch_add(1, Ordering::SeqCst) + 1;
                    if let Ok(permit) = gate.acquire().await {
                        permit.forget();
                    }
                    number
                })
                .await
            })
        };
        let first = call();
        while looks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..20).map(|_| call()).collect();
        while lane.ticket.load(Ordering::SeqCst) < 22 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.ok(), Some(1));
        for caller in others {
            assert_eq!(caller.await.ok(), Some(2), "the look under way began before this caller came");
        }
    }
}
