//! Streams of runners that are open now, so that controllers can speak to them and hear of their end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};

/// Orders that a stream may be behind; a stream which takes none is about to end anyway.
const ORDERS: usize = 8;
/// Ends that a slow listener may be behind; beyond it, it must look at every run.
const ENDED: usize = 1024;

/// Live streams by run uid; clones share them.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    live: Mutex<HashMap<String, Live>>,
    ended: broadcast::Sender<String>,
}

struct Live {
    session: u64,
    orders: mpsc::Sender<Order>,
    withheld: bool,
}

/// What a stream is told from outside. A closed channel means that a newer stream took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Cancel { grace: Duration },
    Bye { reason: String },
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new()
    }
}

impl Sessions {
    #[must_use]
    pub fn new() -> Self {
        let (ended, _) = broadcast::channel(ENDED);
        Self { inner: Arc::new(Inner { live: Mutex::default(), ended }) }
    }

    /// Tells the run's runner to start nothing new. Whether there is a stream to tell it on.
    #[must_use]
    pub fn cancel(&self, uid: &str, grace: Duration) -> bool {
        self.tell(uid, Order::Cancel { grace })
    }

    /// Tells the run's runner to exit. Whether there is a stream to tell it on.
    #[must_use]
    pub fn bye(&self, uid: &str, reason: &str) -> bool {
        self.tell(uid, Order::Bye { reason: reason.to_owned() })
    }

    #[must_use]
    pub fn is_live(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    /// Whether the runner waits for an answer that is held back: nothing that it asked leave for was begun.
    #[must_use]
    pub fn is_withheld(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|live| live.withheld)
    }

    /// Uids of runs whose stream closed. A listener that lags must look at every run.
    #[must_use]
    pub fn ended(&self) -> broadcast::Receiver<String> {
        self.inner.ended.subscribe()
    }

    /// Takes the run's place; an older stream finds its orders closed and leaves.
    pub(super) fn enter(&self, uid: &str, session: u64) -> mpsc::Receiver<Order> {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let mut live = self.lock();
        // A Hello that was overtaken on its way here finds its own orders closed at once.
        if live.get(uid).is_none_or(|newest| newest.session < session) {
            live.insert(uid.to_owned(), Live { session, orders, withheld: false });
        }
        receiver
    }

    pub(super) fn withhold(&self, uid: &str, session: u64, withheld: bool) {
        if let Some(live) = self.lock().get_mut(uid).filter(|live| live.session == session) {
            live.withheld = withheld;
        }
    }

    pub(super) fn leave(&self, uid: &str, session: u64) {
        let mut live = self.lock();
        if live.get(uid).is_some_and(|newest| newest.session == session) {
            live.remove(uid);
            drop(live);
            // Nobody listening is no error.
            let _ = self.inner.ended.send(uid.to_owned());
        }
    }

    fn tell(&self, uid: &str, order: Order) -> bool {
        self.lock().get(uid).is_some_and(|live| live.orders.try_send(order).is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_newer_stream_closes_the_older_ones_orders_and_only_its_own_end_is_told() {
        let sessions = Sessions::new();
        let mut ended = sessions.ended();
        let mut first = sessions.enter("run", 1);
        let mut second = sessions.enter("run", 2);
        assert!(sessions.cancel("run", Duration::from_secs(1)));
        assert_eq!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(second.try_recv(), Ok(Order::Cancel { grace: Duration::from_secs(1) }));
        sessions.leave("run", 1);
        assert!(sessions.is_live("run"));
        sessions.leave("run", 2);
        assert!(!sessions.is_live("run"));
        assert_eq!(ended.try_recv().unwrap(), "run");
        assert!(!sessions.bye("run", "over"));
    }

    #[test]
    fn a_stream_that_was_overtaken_gets_no_orders() {
        let sessions = Sessions::new();
        let _newest = sessions.enter("run", 5);
        let mut late = sessions.enter("run", 4);
        assert_eq!(late.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
