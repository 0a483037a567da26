//! One evaluation at a time in each namespace, with a deadline: whatever a tenant's rules and arguments do, they hold
//! up that tenant's calls alone. An evaluation cannot be stopped; one that is late keeps its namespace's lane until it
//! ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use belay_policy::STACK_BYTES;
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// It came to no end in time, or not even to its turn.
#[derive(Debug, PartialEq, Eq)]
pub struct Late;

#[derive(Default)]
pub struct Lanes(Mutex<HashMap<String, Arc<Semaphore>>>);

impl Lanes {
    /// Runs `evaluation` on a thread of its own, after whatever else the namespace is evaluating.
    ///
    /// Queueing and evaluating each take at most `deadline`.
    pub async fn run<T: Send + 'static>(
        &self,
        namespace: &str,
        deadline: Duration,
        evaluation: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Late> {
        let turn = timeout(deadline, self.lane(namespace).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(Late) };
        let (tell, told) = oneshot::channel();
        let thread = std::thread::Builder::new().name("policy".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            // Whoever waited may have gone: then what was found out is in the judge's own records.
            let _ = tell.send(evaluation());
            drop(turn);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to evaluate policies on");
            return Err(Late);
        }
        match timeout(deadline, told).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) | Err(_) => Err(Late),
        }
    }

    fn lane(&self, namespace: &str) -> Arc<Semaphore> {
        let mut lanes = self.0.lock();
        Arc::clone(lanes.entry(namespace.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

/// What this thread has used of a processor. Waiting for one does not count: a busy machine makes no policy slow.
pub fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
