//! One epoch's conversation with the operator: batches go out and are resent until they are answered;
//! orders come in. Knows the gRPC stream; the loop knows only [`Operator`].

mod conversation;
mod keeper;
mod link;
mod wakes;

use std::time::Duration;

use belay_protocol::wire;
use belay_protocol::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Event};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use conversation::{Started, start};
pub use keeper::{Keeper, Uploads};
pub use link::{Link, LinkError};
pub use wakes::Wakes;

use crate::permit::{BootTime, Decided, Woken};

/// How much longer than what it reports a last batch may take.
const LAST_REPORT: Duration = Duration::from_secs(2);

/// What the operator, or the kubelet, wants of this runner. Later variants win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    Go,
    /// Start nothing new; what is in flight has until then to end.
    Stop {
        until: Instant,
        why: Why,
    },
    /// The run has ended or this runner is refused for good.
    Leave {
        reason: String,
    },
}

/// Why a runner is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The run goes on in another pod.
    Leaving,
    /// Nobody wants to know any more what a call would find out.
    Cancelled,
}

/// One batch on its way, already serialized.
#[derive(Debug)]
pub struct Append {
    pub events: Vec<Vec<u8>>,
    pub answer: oneshot::Sender<wire::Ack>,
}

/// The operator as the loop sees it.
#[derive(Debug)]
pub struct Operator {
    appends: mpsc::Sender<Append>,
    orders: watch::Receiver<Order>,
    wakes: Wakes,
}

/// What became durable, and what the gate said.
#[derive(Debug)]
pub struct Answer {
    pub seq: u64,
    pub decisions: Vec<Decided>,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No answer will come: the run ended, or the time to stop is up.
    #[error("the operator is gone")]
    Gone,
    #[error("an event of {bytes} bytes does not fit a batch")]
    TooLarge { bytes: usize },
    #[error("an event cannot be written as JSON: {0}")]
    Unwritable(#[source] serde_json::Error),
}

impl Operator {
    #[must_use]
    pub fn new(appends: mpsc::Sender<Append>, orders: watch::Receiver<Order>, wakes: Wakes) -> Self {
        Self { appends, orders, wakes }
    }

    /// What was decided about calls that wait.
    pub async fn woken(&self) -> Vec<Woken> {
        self.wakes.take().await.into_iter().filter_map(Woken::read).collect()
    }

    /// The orders alone, for what runs beside the loop.
    #[must_use]
    pub fn orders(&self) -> Orders {
        Orders(self.orders.clone())
    }

    #[must_use]
    pub fn order(&self) -> Order {
        self.orders.borrow().clone()
    }

    /// Returns as soon as the order is no longer to go on.
    pub async fn stopped(&self) {
        let mut orders = self.orders.clone();
        // A sender that is gone gives no more orders: the same as leaving.
        let _ = orders.wait_for(|order| *order != Order::Go).await;
    }

    /// Returns `later` than the time to stop is up, or as soon as the operator has let go.
    async fn left_behind(&self, later: Duration) {
        self.orders().left_behind(later).await;
    }

    /// Appends `events` in as few batches as their size takes; returns once all of them are durable, however
    /// often the stream breaks on the way. Decisions count their time from before the sending.
    pub async fn append(&self, events: &[Event]) -> Result<Answer, AppendError> {
        let mut all = Answer { seq: 0, decisions: Vec::new() };
        for batch in batches(events)? {
            let proposed_at = BootTime::now();
            let (answer, answered) = oneshot::channel();
            let exchange = async {
                self.appends.send(Append { events: batch, answer }).await.map_err(|_| AppendError::Gone)?;
                answered.await.map_err(|_| AppendError::Gone)
            };
            let ack = tokio::select! {
                biased;
                ack = exchange => ack?,
                () = self.left_behind(LAST_REPORT) => return Err(AppendError::Gone),
            };
            all.seq = ack.seq;
            all.decisions.extend(ack.decisions.into_iter().map(|decision| Decided::read(decision, proposed_at)));
        }
        Ok(all)
    }
}

/// A view of the orders that can be handed on.
#[derive(Clone, Debug)]
pub struct Orders(watch::Receiver<Order>);

impl Orders {
    /// Returns when nothing may be in flight any more.
    pub async fn out_of_time(&self) {
        self.left_behind(Duration::ZERO).await;
    }

    /// Returns when the run is cancelled, and at no other time.
    pub async fn cancelled(&self) {
        let mut orders = self.0.clone();
        let cancelled = |order: &Order| matches!(order, Order::Stop { why: Why::Cancelled, .. });
        if orders.wait_for(cancelled).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns `later` than the time to stop is up, or as soon as the operator has let go.
    async fn left_behind(&self, later: Duration) {
        let mut orders = self.0.clone();
        let Ok(order) = orders.wait_for(|order| *order != Order::Go).await.map(|order| order.clone()) else {
            return;
        };
        match order {
            Order::Go | Order::Leave { .. } => {}
            Order::Stop { until, .. } => {
                let left = orders.wait_for(|order| matches!(order, Order::Leave { .. }));
                let _ = tokio::time::timeout_at(until + later, left).await;
            }
        }
    }
}

/// Cuts events into batches within the protocol's bounds, order kept.
fn batches(events: &[Event]) -> Result<Vec<Vec<Vec<u8>>>, AppendError> {
    let mut all = vec![Vec::new()];
    let mut filled = 0;
    for event in events {
        let bytes = serde_json::to_vec(event).map_err(AppendError::Unwritable)?;
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes: bytes.len() });
        }
        if let Some(last) = all
            .last_mut()
            .filter(|last: &&mut Vec<_>| filled + bytes.len() <= BATCH_BYTES_MAX && last.len() < BATCH_EVENTS_MAX)
        {
            filled += bytes.len();
            last.push(bytes);
        } else {
            filled = bytes.len();
            all.push(vec![bytes]);
        }
    }
    Ok(all)
}

/// Raises the order; a weaker one never replaces a stronger one, and the first deadline to stop stands.
pub fn raise(orders: &watch::Sender<Order>, order: Order) {
    orders.send_if_modified(|now| {
        let stronger = match (&*now, &order) {
            (Order::Go, _) | (Order::Stop { .. }, Order::Leave { .. }) => true,
            (Order::Stop { until, .. }, Order::Stop { until: new, .. }) => new < until,
            (Order::Stop { .. }, Order::Go) | (Order::Leave { .. }, _) => false,
        };
        if stronger {
            *now = order;
        }
        stronger
    });
}

/// The order to stop within `grace` from now, and leave the run to another pod.
#[must_use]
pub fn stop_within(grace: Duration) -> Order {
    Order::Stop { until: Instant::now() + grace, why: Why::Leaving }
}

/// The order to stop within `grace` from now, since the run is cancelled.
#[must_use]
pub fn cancel_within(grace: Duration) -> Order {
    Order::Stop { until: Instant::now() + grace, why: Why::Cancelled }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use belay_protocol::event::ToolResult;

    fn observed(bytes: usize) -> Event {
        let result = ToolResult {
            is_error: false,
            content: "x".repeat(bytes),
            truncated_from_bytes: None,
            artifacts: Vec::new(),
        };
        Event::CallObserved { call_id: "c1".to_owned(), attempt: 1, result, milliseconds: 0 }
    }

    #[test]
    fn events_are_cut_into_batches_by_bytes_and_count() {
        let two = batches(&[observed(600_000), observed(600_000), observed(10)]).unwrap();
        assert_eq!(two.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
        let many = batches(&vec![observed(1); BATCH_EVENTS_MAX + 1]).unwrap();
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [BATCH_EVENTS_MAX, 1]);
        assert!(matches!(batches(&[observed(BATCH_BYTES_MAX)]), Err(AppendError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn an_order_is_only_ever_raised() {
        let (orders, seen) = watch::channel(Order::Go);
        let soon = stop_within(Duration::from_secs(1));
        raise(&orders, stop_within(Duration::from_secs(9)));
        raise(&orders, soon.clone());
        raise(&orders, stop_within(Duration::from_secs(9)));
        raise(&orders, Order::Go);
        assert_eq!(*seen.borrow(), soon);
        let leave = Order::Leave { reason: "ended".to_owned() };
        raise(&orders, leave.clone());
        raise(&orders, stop_within(Duration::ZERO));
        assert_eq!(*seen.borrow(), leave);
    }

    #[tokio::test(start_paused = true)]
    async fn an_append_without_an_answer_ends_when_the_time_to_stop_is_up() {
        let (appends, mut queue) = mpsc::channel(1);
        let (orders, seen) = watch::channel(Order::Go);
        let operator = Operator::new(appends, seen, Wakes::default());
        raise(&orders, stop_within(Duration::from_secs(20)));
        let start = Instant::now();
        let ended = operator.append(&[observed(1)]).await;
        assert!(matches!(ended, Err(AppendError::Gone)));
        assert_eq!(start.elapsed(), Duration::from_secs(20) + LAST_REPORT);
        assert_eq!(queue.recv().await.unwrap().events.len(), 1);
    }
}
