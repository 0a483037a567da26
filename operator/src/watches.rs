//! Watches: one task each, with a back-off and a pulse of its own, feeding a shared store. Knows no kind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// A watch that fails for so long makes the process not live: a restart gets new connections and caches.
const FAILING_FOR_MAX: Duration = Duration::from_mins(5);

/// How every watch fares. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pulses(Arc<Mutex<BTreeMap<String, Pulse>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pulse {
    /// Not listed yet.
    Starting {
        since: Instant,
    },
    Beating,
    /// Refused by RBAC: the namespace has the label and lacks the RoleBinding. No restart mends that.
    Forbidden,
    Failing {
        since: Instant,
    },
}

impl Pulses {
    fn set(&self, watch: &str, to: impl FnOnce(Option<Pulse>) -> Pulse) -> Pulse {
        let mut pulses = self.0.lock();
        let pulse = to(pulses.get(watch).copied());
        pulses.insert(watch.to_owned(), pulse);
        pulse
    }

    fn forget(&self, watch: &str) {
        self.0.lock().remove(watch);
    }

    /// The watches that have failed for too long: the process is not live.
    #[must_use]
    pub fn dead(&self, now: Instant) -> Vec<String> {
        self.pick(|pulse| match pulse {
            Pulse::Failing { since } => now.duration_since(since) > FAILING_FOR_MAX,
            Pulse::Starting { .. } | Pulse::Beating | Pulse::Forbidden => false,
        })
    }

    /// The watches that have not listed what is there.
    #[must_use]
    pub fn behind(&self) -> Vec<String> {
        self.pick(|pulse| match pulse {
            Pulse::Starting { .. } | Pulse::Failing { .. } => true,
            Pulse::Beating | Pulse::Forbidden => false,
        })
    }

    /// Whether RBAC refuses that watch.
    #[must_use]
    pub fn is_forbidden(&self, watch: &str) -> bool {
        self.0.lock().get(watch) == Some(&Pulse::Forbidden)
    }

    fn pick(&self, which: impl Fn(Pulse) -> bool) -> Vec<String> {
        self.0.lock().iter().filter(|(_, pulse)| which(**pulse)).map(|(name, _)| name.clone()).collect()
    }
}

/// What a watch saw.
#[derive(Debug)]
pub enum Seen<K> {
    /// Created, changed, or listed anew.
    There(Arc<K>),
    Gone(Arc<K>),
    /// Everything was listed: what is not in the store is gone.
    Listed,
    /// RBAC refuses the watch now.
    Forbidden,
}

/// One watch: what to ask for, what to keep of it, and whom to tell.
pub struct Watch<K: Resource + Clone + 'static>
where
    K::DynamicType: Eq + Hash + Clone,
{
    pub name: String,
    pub api: Api<K>,
    pub config: watcher::Config,
    pub writer: Writer<K>,
    /// Drops what nobody reads, before it is cached.
    pub trim: fn(&mut K),
    pub pulses: Pulses,
    pub metrics: Metrics,
}

impl<K> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Follows the API server until `shutdown`, telling `tell` of each sighting after the store has it.
    ///
    /// A failed watch starts over with a list: so that its pulse beats again even if nothing ever changes.
    pub async fn follow<F>(mut self, shutdown: CancellationToken, mut tell: impl FnMut(Seen<K>) -> F)
    where
        F: Future<Output = ()>,
    {
        let mut backoff = DefaultBackoff::default();
        self.pulses.set(&self.name, |_| Pulse::Starting { since: Instant::now() });
        loop {
            let mut events = std::pin::pin!(watcher(self.api.clone(), self.config.clone()));
            let failure = loop {
                let next = tokio::select! {
                    () = shutdown.cancelled() => return self.pulses.forget(&self.name),
                    next = events.next() => next,
                };
                match next {
                    Some(Ok(event)) => {
                        self.beat(&event, &mut backoff);
                        self.take(event, &mut tell).await;
                    }
                    Some(Err(failure)) => break failure,
                    None => return self.pulses.forget(&self.name),
                }
            };
            if self.falter(&failure) == Pulse::Forbidden {
                tell(Seen::Forbidden).await;
            }
            let pause = backoff.next().unwrap_or(Duration::from_secs(30));
            tokio::select! {
                () = shutdown.cancelled() => return self.pulses.forget(&self.name),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn take<F: Future<Output = ()>>(&mut self, event: Event<K>, tell: &mut impl FnMut(Seen<K>) -> F) {
        let event = event.modify(self.trim);
        self.writer.apply_watcher_event(&event);
        match event {
            Event::Apply(object) => tell(Seen::There(Arc::new(object))).await,
            Event::Delete(object) => tell(Seen::Gone(Arc::new(object))).await,
            Event::Init | Event::InitApply(_) => {}
            Event::InitDone => {
                for object in self.writer.as_reader().state() {
                    tell(Seen::There(object)).await;
                }
                tell(Seen::Listed).await;
            }
        }
    }

    /// `Init` is said before the list was answered, so it proves nothing.
    fn beat(&self, event: &Event<K>, backoff: &mut DefaultBackoff) {
        if matches!(event, Event::Init) {
            return;
        }
        if matches!(event, Event::InitDone) {
            *backoff = DefaultBackoff::default();
            tracing::debug!(watch = %self.name, "watch listed");
        }
        let listed = !matches!(event, Event::InitApply(_));
        self.pulses.set(&self.name, |was| match was {
            Some(pulse @ Pulse::Starting { .. }) if !listed => pulse,
            Some(_) | None => Pulse::Beating,
        });
    }

    fn falter(&self, failure: &watcher::Error) -> Pulse {
        let now = Instant::now();
        self.metrics.watch_failures.inc();
        let forbidden = is_forbidden(failure);
        tracing::warn!(watch = %self.name, %failure, forbidden, "watch failed");
        self.pulses.set(&self.name, |was| match was {
            _ if forbidden => Pulse::Forbidden,
            Some(Pulse::Failing { since } | Pulse::Starting { since }) => Pulse::Failing { since },
            Some(Pulse::Beating | Pulse::Forbidden) | None => Pulse::Failing { since: now },
        })
    }
}

fn is_forbidden(failure: &watcher::Error) -> bool {
    match failure {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 403,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_watch_that_fails_for_long_is_dead_and_one_good_beat_revives_it() {
        let pulses = Pulses::default();
        let failing = Pulse::Failing { since: Instant::now() };
        pulses.set("agents", |_| failing);
        pulses.set("tools", |_| Pulse::Beating);
        pulses.set("pods/a", |_| Pulse::Forbidden);
        assert_eq!(pulses.dead(Instant::now()), Vec::<String>::new());
        assert_eq!(pulses.behind(), ["agents"]);
        tokio::time::advance(FAILING_FOR_MAX + Duration::from_secs(1)).await;
        assert_eq!(pulses.dead(Instant::now()), ["agents"]);
        pulses.set("agents", |_| Pulse::Beating);
        assert_eq!(pulses.dead(Instant::now()), Vec::<String>::new());
        assert!(pulses.is_forbidden("pods/a") && !pulses.is_forbidden("agents"));
    }
}
