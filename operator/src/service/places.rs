//! Places for what is held in memory while it arrives: so many for all pods, and one a pod.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// How long is waited for a place that others hold.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    pods: Arc<Mutex<HashSet<String>>>,
}

/// Given back when dropped.
pub(super) struct Place {
    _all: OwnedSemaphorePermit,
    _of_pod: OfPod,
}

struct OfPod {
    places: Places,
    uid: String,
}

impl Places {
    pub fn new(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), pods: Arc::default() }
    }

    /// The place of the pod with this uid, once one is free.
    pub async fn take(&self, pod_uid: &str) -> Result<Place, Status> {
        if !self.pods().insert(pod_uid.to_owned()) {
            return Err(Status::unavailable("an artifact of this pod is arriving: come again"));
        }
        let of_pod = OfPod { places: self.clone(), uid: pod_uid.to_owned() };
        match tokio::time::timeout(WAIT, Arc::clone(&self.all).acquire_owned()).await {
            Ok(Ok(all)) => Ok(Place { _all: all, _of_pod: of_pod }),
            Ok(Err(_)) | Err(_) => Err(Status::unavailable("too many artifacts arrive at one time: come again")),
        }
    }

    fn pods(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OfPod {
    fn drop(&mut self) {
        self.places.pods().remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_has_one_place_and_who_waits_for_a_place_of_others_gets_it_or_is_told_in_time() {
        let places = Places::new(2);
        let first = places.take("a").await.unwrap();
        assert!(places.take("a").await.is_err(), "one pod");
        let second = places.take("b").await.unwrap();
        assert!(places.take("c").await.is_err(), "all are taken");
        let waiting = places.clone();
        let waiting = tokio::spawn(async move { waiting.take("c").await.map(drop) });
        tokio::time::sleep(WAIT / 2).await;
        drop(first);
        waiting.await.unwrap().unwrap();
        drop(second);
        places.take("a").await.map(drop).unwrap();
    }
}
