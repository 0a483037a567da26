//! Streams of runners that are open now, so that controllers can speak to them and hear of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};

/// Orders that a stream may be behind; a stream which takes none is about to end anyway.
const ORDERS: usize = 8;
/// Streams that opened or closed which a slow listener may be behind; beyond it, it must look at every run.
const CHANGED: usize = 1024;

/// Live streams by run uid; clones share them.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    streams: Mutex<Streams>,
    changed: broadcast::Sender<String>,
}

#[derive(Default)]
struct Streams {
    live: HashMap<String, Live>,
    /// Runs whose runner is being let go while its answer is held back: nothing is answered meanwhile.
    letting_go: HashSet<String>,
}

struct Live {
    session: u64,
    orders: mpsc::Sender<Order>,
    withheld: bool,
}

impl Streams {
    /// The run's stream, if it is that one.
    fn of(&mut self, uid: &str, session: u64) -> Option<&mut Live> {
        self.live.get_mut(uid).filter(|live| live.session == session)
    }
}

/// What a stream is told from outside. A closed channel means that a newer stream took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Cancel {
        grace: Duration,
    },
    Bye {
        reason: String,
    },
    /// Something was decided that the runner may wait for.
    Look,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new()
    }
}

impl Sessions {
    #[must_use]
    pub fn new() -> Self {
        let (changed, _) = broadcast::channel(CHANGED);
        Self { inner: Arc::new(Inner { streams: Mutex::default(), changed }) }
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

    /// Has the run's runner told what was decided meanwhile. Whether there is a stream to tell it on.
    #[must_use]
    pub fn look(&self, uid: &str) -> bool {
        self.tell(uid, Order::Look)
    }

    #[must_use]
    pub fn is_live(&self, uid: &str) -> bool {
        self.lock().live.contains_key(uid)
    }

    /// Whether the runner waits for an answer that is held back: nothing that it asked leave for was begun.
    #[must_use]
    pub fn is_withheld(&self, uid: &str) -> bool {
        self.lock().live.get(uid).is_some_and(|live| live.withheld)
    }

    /// Keeps back what is held back now, until [`Sessions::let_gone`]. False: nothing is held back, or not any more,
    /// so that the runner may have begun what it asked for.
    #[must_use]
    pub fn let_go(&self, uid: &str) -> bool {
        let mut streams = self.lock();
        let withheld = streams.live.get(uid).is_some_and(|live| live.withheld);
        if withheld {
            streams.letting_go.insert(uid.to_owned());
        }
        withheld
    }

    /// The journal says by now whether the epoch has ended: who asks for leave is answered by that.
    pub fn let_gone(&self, uid: &str) {
        self.lock().letting_go.remove(uid);
    }

    /// Uids of runs whose stream opened or closed. A listener that lags must look at every run.
    #[must_use]
    pub fn changed(&self) -> broadcast::Receiver<String> {
        self.inner.changed.subscribe()
    }

    /// Takes the run's place; an older stream finds its orders closed and leaves.
    pub(super) fn enter(&self, uid: &str, session: u64) -> mpsc::Receiver<Order> {
        let (orders, receiver) = mpsc::channel(ORDERS);
        let mut streams = self.lock();
        // A Hello that was overtaken on its way here finds its own orders closed at once.
        if streams.live.get(uid).is_none_or(|newest| newest.session < session) {
            streams.live.insert(uid.to_owned(), Live { session, orders, withheld: false });
            drop(streams);
            self.tell_of(uid);
        }
        receiver
    }

    /// As if a stream of the run were open.
    #[cfg(test)]
    pub(crate) fn pretend(&self, uid: &str) {
        drop(self.enter(uid, 1));
    }

    /// The stream's runner waits: its answer is held back.
    pub(super) fn withhold(&self, uid: &str, session: u64) {
        if let Some(live) = self.lock().of(uid, session) {
            live.withheld = true;
        }
    }

    /// From now on nobody takes for held back what this stream is about to answer. False: somebody does, so that
    /// nothing may be answered now.
    #[must_use]
    pub(super) fn take_up(&self, uid: &str, session: u64) -> bool {
        let mut streams = self.lock();
        if streams.letting_go.contains(uid) {
            return false;
        }
        if let Some(live) = streams.of(uid, session) {
            live.withheld = false;
        }
        true
    }

    pub(super) fn leave(&self, uid: &str, session: u64) {
        let mut streams = self.lock();
        if streams.live.get(uid).is_some_and(|newest| newest.session == session) {
            streams.live.remove(uid);
            drop(streams);
            self.tell_of(uid);
        }
    }

    /// Has the run looked at.
    pub(super) fn tell_of(&self, uid: &str) {
        // Nobody listening is no error.
        let _ = self.inner.changed.send(uid.to_owned());
    }

    fn tell(&self, uid: &str, order: Order) -> bool {
        self.lock().live.get(uid).is_some_and(|live| live.orders.try_send(order).is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.inner.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_newer_stream_closes_the_older_ones_orders_and_only_its_own_end_is_told() {
        let sessions = Sessions::new();
        let mut changed = sessions.changed();
        let mut first = sessions.enter("run", 1);
        let mut second = sessions.enter("run", 2);
        assert_eq!((changed.try_recv().unwrap(), changed.try_recv().unwrap()), ("run".into(), "run".into()));
        assert!(sessions.cancel("run", Duration::from_secs(1)));
        assert_eq!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        assert_eq!(second.try_recv(), Ok(Order::Cancel { grace: Duration::from_secs(1) }));
        sessions.leave("run", 1);
        assert!(sessions.is_live("run"));
        assert!(changed.try_recv().is_err());
        sessions.leave("run", 2);
        assert!(!sessions.is_live("run"));
        assert_eq!(changed.try_recv().unwrap(), "run");
        assert!(!sessions.bye("run", "over"));
    }

    #[test]
    fn what_is_held_back_is_either_let_go_or_taken_up_and_never_both() {
        let sessions = Sessions::new();
        let _orders = sessions.enter("run", 1);
        assert!(!sessions.let_go("run"), "nothing is held back");
        sessions.withhold("run", 1);
        assert!(sessions.take_up("run", 1));
        assert!(!sessions.let_go("run"), "it is being answered");
        sessions.withhold("run", 1);
        assert!(sessions.let_go("run"));
        assert!(!sessions.take_up("run", 1));
        // Nor by a stream that comes in between.
        let _orders = sessions.enter("run", 2);
        assert!(!sessions.take_up("run", 2));
        sessions.let_gone("run");
        assert!(sessions.take_up("run", 2));
    }

    #[test]
    fn a_stream_that_was_overtaken_gets_no_orders() {
        let sessions = Sessions::new();
        let _newest = sessions.enter("run", 5);
        let mut late = sessions.enter("run", 4);
        assert_eq!(late.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
