//! Drives reconciles of one kind: bounded, one at a time for each object, backing off for each object alone.
//! Knows no kind; the watches feed the queue, so no two watches share a back-off.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::controller::{Action, Config, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::journal::JournalError;
use crate::metrics::{Kind, Metrics, ReconcileResult};

/// Passes of one kind at the same time.
const CONCURRENCY: u16 = 16;
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_mins(5);
/// After a lost race the watch tells what won; this is for when it does not.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);

/// Looks at an object and brings it one step closer to what it says.
pub trait Reconcile: Send + Sync + 'static {
    type Kind: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static;
    const KIND: Kind;

    fn reconcile(&self, object: Arc<Self::Kind>) -> impl Future<Output = Result<Action, Failure>> + Send;
}

/// Why a pass could not find out or could not do what it had to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the object is gone")]
    Gone,
    #[error("someone else wrote in between")]
    Conflict,
    #[error("{doing}: {source}")]
    Api { doing: &'static str, source: kube::Error },
    #[error("{doing}: {source}")]
    Journal { doing: &'static str, source: JournalError },
    #[error("the plan has no digest: {0}")]
    Digest(#[from] belay_protocol::digest::DigestError),
}

impl Failure {
    /// Tells a lost race and a vanished object from everything else.
    pub fn api(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| match &source {
            kube::Error::Api(status) if status.code == 404 => Self::Gone,
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            _ => Self::Api { doing, source },
        }
    }

    /// A journal that moved on is a lost race like any other.
    pub fn journal(doing: &'static str) -> impl FnOnce(JournalError) -> Self {
        move |source| match source {
            JournalError::Moved { .. } => Self::Conflict,
            source => Self::Journal { doing, source },
        }
    }

    fn result(&self) -> ReconcileResult {
        match self {
            Self::Gone => ReconcileResult::Done,
            Self::Conflict => ReconcileResult::Conflict,
            Self::Api { .. } | Self::Journal { .. } | Self::Digest(_) => ReconcileResult::Failed,
        }
    }
}

/// Runs passes until `shutdown`, then lets those under way end.
pub async fn run<R: Reconcile>(
    reconciler: Arc<R>,
    store: Store<R::Kind>,
    queue: mpsc::Receiver<ObjectRef<R::Kind>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let failures = Arc::new(Failures::default());
    let queue = ReceiverStream::new(queue).take_until(shutdown.cancelled_owned()).map(Ok::<_, Infallible>);
    let pass = {
        let failures = Arc::clone(&failures);
        move |object: Arc<R::Kind>, reconciler: Arc<R>| {
            let (failures, metrics) = (Arc::clone(&failures), metrics.clone());
            Box::pin(async move {
                let started = Instant::now();
                let result = reconciler.reconcile(Arc::clone(&object)).await;
                let label = result.as_ref().map_or_else(Failure::result, |_| ReconcileResult::Done);
                metrics.reconciled(R::KIND, label, started.elapsed().as_secs_f64());
                if result.is_ok() {
                    failures.clear(&key(&*object));
                }
                result
            })
        }
    };
    let on_failure = move |object: Arc<R::Kind>, failure: &Failure, _: Arc<R>| match failure {
        Failure::Gone => Action::await_change(),
        Failure::Conflict => Action::requeue(AFTER_CONFLICT),
        Failure::Api { .. } | Failure::Journal { .. } | Failure::Digest(_) => {
            let pause = failures.count(key(&*object));
            let (namespace, name) = key(&*object);
            tracing::warn!(kind = R::KIND.as_str(), namespace, name, %failure, retry_seconds = pause.as_secs(), "reconcile failed");
            Action::requeue(pause)
        }
    };
    let config = Config::default().concurrency(CONCURRENCY);
    // What comes out was counted and logged inside; objects that are gone before their turn are normal.
    applier(pass, on_failure, reconciler, store, queue, config).for_each(|_| std::future::ready(())).await;
}

/// Failures in a row of each object.
#[derive(Default)]
struct Failures(Mutex<HashMap<(String, String), u32>>);

impl Failures {
    fn count(&self, key: (String, String)) -> Duration {
        let mut failures = self.0.lock();
        let count = failures.entry(key).or_default();
        let pause = BACKOFF_MIN.saturating_mul(1 << (*count).min(16));
        *count += 1;
        pause.min(BACKOFF_MAX)
    }

    fn clear(&self, key: &(String, String)) {
        self.0.lock().remove(key);
    }
}

fn key(object: &impl ResourceExt) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_backs_off_alone_and_at_most_five_minutes() {
        let failures = Failures::default();
        let (a, b) = (("ns".to_owned(), "a".to_owned()), ("ns".to_owned(), "b".to_owned()));
        let pauses: Vec<u64> = (0..10).map(|_| failures.count(a.clone()).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(failures.count(b).as_secs(), 1);
        failures.clear(&a);
        assert_eq!(failures.count(a).as_secs(), 1);
    }
}
