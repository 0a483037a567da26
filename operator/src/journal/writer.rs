//! The one that writes: takes changes of many runs from a bounded queue, commits them together, and answers each
//! once it is durable. Why on a thread of its own: docs/decisions/0010.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use belay_protocol::plan::ObjectId;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::memory::{Folded, Memory};
use super::observer::{Audience, CommitObserver, names};
use super::store::{Change, Outcome, Store, StoreError};

/// The most changes of one transaction.
const GROUP_MAX: usize = 256;
/// Changes that may wait; whoever comes next waits with its own.
pub(super) const QUEUE: usize = 1024;

pub(super) struct Write {
    pub change: Change,
    pub waiter: Waiter,
}

/// What memory holds once the change is in, and who waits for the answer.
pub(super) struct Waiter {
    pub folded: Option<Folded>,
    pub reply: oneshot::Sender<Result<Outcome, StoreError>>,
}

pub(super) struct Writer {
    pub store: Arc<dyn Store>,
    pub observer: Option<Arc<dyn CommitObserver>>,
    /// Who hears of appends, once somebody does.
    pub audience: Arc<OnceLock<Arc<dyn Audience>>>,
    pub memory: Arc<Memory>,
    pub changes: broadcast::Sender<ObjectId>,
    pub healthy: Arc<AtomicBool>,
    /// Cancelled once another leader has raised the fence.
    pub fenced: CancellationToken,
}

/// Drives a [`Writer`] of this runtime beside the runtime's workers: a commit blocks until the disk has answered,
/// and the next group must not wait for a worker that is busy.
pub(super) fn on_its_own_thread(writing: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("journal".into()).spawn(move || runtime.block_on(writing)).map(drop)
}

impl Writer {
    /// Runs until every sender is gone or `close` is cancelled; what is queued by then is still written.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Write>, close: CancellationToken) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        let mut closing = false;
        loop {
            let taken = tokio::select! {
                () = close.cancelled(), if !closing => {
                    closing = true;
                    queue.close();
                    continue;
                }
                taken = queue.recv_many(&mut group, GROUP_MAX) => taken,
            };
            if taken == 0 {
                break;
            }
            let (changes, waiters) = group.drain(..).map(|write: Write| (write.change, write.waiter)).unzip();
            self.commit(changes, waiters).await;
        }
        self.store.close().await;
    }

    async fn commit(&self, changes: Vec<Change>, waiters: Vec<Waiter>) {
        if self.fenced.is_cancelled() {
            return fail(waiters, &StoreError::Fenced);
        }
        if !self.healthy.load(Ordering::Acquire) && !self.recover().await {
            return fail(waiters, &StoreError::Io("the journal's file could not be opened anew".into()));
        }
        if let Some(observer) = &self.observer {
            observer.before(&names(&changes)).await;
        }
        let committed = self.store.commit(&changes).await;
        if let Some(observer) = &self.observer {
            observer.after(&names(&changes)).await;
        }
        match committed {
            Ok(outcomes) => self.settle(&changes, waiters, outcomes),
            // Neither one run's large batch nor its damage may keep another run out.
            Err(StoreError::Full | StoreError::Corrupt(_)) if changes.len() > 1 => {
                for (change, waiter) in changes.into_iter().zip(waiters) {
                    Box::pin(self.commit(vec![change], vec![waiter])).await;
                }
            }
            Err(error) => self.give_up(waiters, &error).await,
        }
    }

    async fn give_up(&self, waiters: Vec<Waiter>, error: &StoreError) {
        tracing::error!(%error, writes = waiters.len(), "journal commit failed");
        match error {
            StoreError::Full | StoreError::Corrupt(_) | StoreError::Closed => {}
            StoreError::Fenced => self.fenced.cancel(),
            // Never the same sync again: what the disk holds is read anew before anything else is written.
            StoreError::Io(_) => {
                self.healthy.store(false, Ordering::Release);
                self.recover().await;
            }
        }
        fail(waiters, error);
    }

    async fn recover(&self) -> bool {
        self.memory.clear_states();
        let reopened = self.store.reopen().await;
        match &reopened {
            Ok(()) => {
                tracing::info!("journal opened anew");
                self.healthy.store(true, Ordering::Release);
            }
            Err(error) => tracing::error!(%error, "journal could not be opened anew"),
        }
        reopened.is_ok()
    }

    fn settle(&self, changes: &[Change], waiters: Vec<Waiter>, outcomes: Vec<Outcome>) {
        for ((change, waiter), outcome) in changes.iter().zip(waiters).zip(outcomes) {
            match &outcome {
                Outcome::Done => self.remember(change, waiter.folded),
                Outcome::Session(session) => self.memory.put_session(change.run(), *session),
                Outcome::More | Outcome::Refused(_) => {}
            }
            // Whoever asked may be gone; what was written stays written.
            let _ = waiter.reply.send(Ok(outcome));
        }
    }

    fn remember(&self, change: &Change, folded: Option<Folded>) {
        match change {
            Change::Append(append) => {
                if let Some(folded) = folded {
                    self.memory.put(folded);
                }
                if let Some(audience) = self.audience.get() {
                    audience.appended(&append.next.run, &append.records);
                }
                // Nobody listening is no error.
                let _ = self.changes.send(append.next.run.clone());
            }
            Change::RaiseSession { .. } | Change::MarkDeleted { .. } => {}
            Change::Forget { run } => self.memory.forget(run),
        }
    }
}

fn fail(waiters: Vec<Waiter>, error: &StoreError) {
    for waiter in waiters {
        let _ = waiter.reply.send(Err(error.clone()));
    }
}
