//! The truth about runs: appends that are durable on return, and the states they fold to. Knows no Kubernetes
//! and no network; what an event may follow is the fold's business, what is allowed the gate's.
//!
//! # Guarantees
//! Every run is a hash chain. An append goes behind the head it was decided on or not at all. A batch of a
//! runner is taken once: sent again, it is answered with what was recorded then.

mod artifacts;
mod batches;
mod chain;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod damage_tests;
mod error;
mod export;
#[cfg(test)]
pub(crate) mod fixture;
mod memory;
#[cfg(test)]
pub(crate) mod model;
mod observer;
mod place;
mod reserve;
mod retention;
mod sqlite;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torn_tests;
#[cfg(test)]
mod volume_tests;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use belay_protocol::Digest;
use belay_protocol::chain::{Head, SealedRecord};
use belay_protocol::event::Event;
use belay_protocol::fold::RunState;
use belay_protocol::plan::ObjectId;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::artifacts::Folder;
pub use self::artifacts::{ArtifactError, ArtifactStore};
pub use self::batches::{Batch, Taken};
use self::chain::{Prepared, check_end, open_rows, prepare};
pub use self::error::{Damage, JournalError, OpenError};
pub use self::export::{ExportError, export};
use self::memory::{Folded, Memory};
pub use self::observer::{Audience, CommitObserver};
use self::sqlite::SqliteStore;
pub use self::store::{BatchKey, RunHead};
use self::store::{Change, Fence, Outcome, Store, StoreError};
use self::writer::{QUEUE, Waiter, Write, Writer};

/// Announcements that a slow listener may be behind; beyond it, it is told to look at everything.
const CHANGES: usize = 1024;
/// Handle to the journal; clones share it.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    artifacts: Arc<dyn ArtifactStore>,
    audience: Arc<OnceLock<Arc<dyn Audience>>>,
    memory: Arc<Memory>,
    queue: mpsc::Sender<Write>,
    changes: broadcast::Sender<ObjectId>,
    healthy: Arc<AtomicBool>,
    fenced: CancellationToken,
    closing: CancellationToken,
    clock: Clock,
    retention: Duration,
}

/// What an installation decides about its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Space that is held back for cancels and ends while the volume is full.
    pub reserve_bytes: u64,
    /// How long rows are kept after their AgentRun was deleted.
    pub retention: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reserve_bytes: 8 * 1024 * 1024, retention: Duration::from_hours(30 * 24) }
    }
}

/// Milliseconds since the Unix epoch.
type Clock = fn() -> i64;

impl Journal {
    /// As [`Journal::open_with`], by default settings.
    pub async fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_with(path, Settings::default()).await
    }

    /// Opens the journal in the file `path`, or makes it. Held locked until [`Journal::close`] or the last
    /// handle is dropped. Must be called within a tokio runtime.
    pub async fn open_with(path: &Path, settings: Settings) -> Result<Self, JournalError> {
        Self::open_observed(path, settings, None).await
    }

    /// As [`Journal::open_with`], with someone who stands by at every commit.
    pub async fn open_observed(
        path: &Path,
        settings: Settings,
        observer: Option<Arc<dyn CommitObserver>>,
    ) -> Result<Self, JournalError> {
        let id = format!("{:032x}", rand::random::<u128>());
        let store = Arc::new(SqliteStore::open(path, id, settings.reserve_bytes).await?);
        let clock = || jiff::Timestamp::now().as_millisecond();
        let artifacts = Arc::new(Folder::beside(path, settings.reserve_bytes.saturating_mul(2)));
        let opened = Self::assemble(store, artifacts, clock, settings.retention, observer).await;
        let (journal, writing) = opened.map_err(|error| match error {
            StoreError::Corrupt(message) => OpenError::Corrupt { path: path.to_owned(), message }.into(),
            StoreError::Full | StoreError::Fenced | StoreError::Io(_) | StoreError::Closed => JournalError::from(error),
        })?;
        writer::on_its_own_thread(writing)
            .map_err(|e| OpenError::Unusable { path: path.to_owned(), message: format!("no thread for it: {e}") })?;
        Ok(journal)
    }

    /// A journal over any store, that writes in a task.
    #[cfg(test)]
    async fn over(
        store: Arc<dyn Store>,
        clock: Clock,
        retention: Duration,
        observer: Option<Arc<dyn CommitObserver>>,
    ) -> Result<Self, StoreError> {
        let nowhere = Arc::new(Folder::beside(Path::new("/nowhere/journal.db"), u64::MAX));
        let (journal, writing) = Self::assemble(store, nowhere, clock, retention, observer).await?;
        tokio::spawn(writing);
        Ok(journal)
    }

    /// The handle, and what writes for it until the last handle is gone, or until `close`, which waits for it.
    async fn assemble(
        store: Arc<dyn Store>,
        artifacts: Arc<dyn ArtifactStore>,
        clock: Clock,
        retention: Duration,
        observer: Option<Arc<dyn CommitObserver>>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), StoreError> {
        let memory = Arc::new(Memory::default());
        for head in store.open_heads().await? {
            memory.note(&head);
        }
        let (queue, queued) = mpsc::channel(QUEUE);
        let (changes, _) = broadcast::channel(CHANGES);
        let healthy = Arc::new(AtomicBool::new(true));
        let (fenced, closing) = (CancellationToken::new(), CancellationToken::new());
        let audience = Arc::default();
        let writer = Writer {
            store: Arc::clone(&store),
            observer,
            audience: Arc::clone(&audience),
            memory: Arc::clone(&memory),
            changes: changes.clone(),
            healthy: Arc::clone(&healthy),
            fenced: fenced.clone(),
        };
        let writing = writer.run(queued, closing.clone());
        let inner =
            Inner { store, artifacts, audience, memory, queue, changes, healthy, fenced, closing, clock, retention };
        Ok((Self { inner: Arc::new(inner) }, writing))
    }

    /// From now on `audience` hears of every append. There is one, for good.
    pub fn tell(&self, audience: Arc<dyn Audience>) {
        // Who came first goes on hearing.
        let _ = self.inner.audience.set(audience);
    }

    /// What results hold besides the text that is shown.
    #[must_use]
    pub fn artifacts(&self) -> &dyn ArtifactStore {
        self.inner.artifacts.as_ref()
    }

    /// Milliseconds since the Unix epoch, as the next record would tell them.
    #[must_use]
    pub fn now(&self) -> i64 {
        (self.inner.clock)()
    }

    /// The journal's random id, made once.
    #[must_use]
    pub fn id(&self) -> &str {
        self.inner.store.id()
    }

    /// Whether the last commit left the journal usable.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.inner.healthy.load(Ordering::Acquire) && !self.inner.fenced.is_cancelled()
    }

    /// Keeps everyone who opened this journal before from writing; a leader does so before it serves.
    /// `lease` is the uid of the Lease that it holds, `token` the Lease's count of transitions.
    pub async fn raise_fence(&self, lease: &str, token: i64) -> Result<(), JournalError> {
        match self.inner.store.raise_fence(lease, token).await {
            Ok(Fence::Raised(number)) => {
                tracing::info!(lease, token, number, "fence raised");
                Ok(())
            }
            Ok(Fence::Refused { highest }) => {
                Err(JournalError::FenceRefused { lease: lease.to_owned(), token, highest })
            }
            Err(error) => {
                if error == StoreError::Fenced {
                    self.inner.fenced.cancel();
                }
                Err(error.into())
            }
        }
    }

    /// Resolves once another leader has raised the fence: nothing is written by this handle any more.
    pub async fn fenced(&self) {
        self.inner.fenced.cancelled().await;
    }

    /// Transactions ever committed.
    pub async fn commits(&self) -> Result<u64, JournalError> {
        Ok(self.inner.store.commits().await?)
    }

    /// The run's state, folded from verified records. None: the journal holds no row of it.
    pub async fn state(&self, uid: &str) -> Result<Option<Arc<RunState>>, JournalError> {
        Ok(self.folded(uid).await?.map(|folded| folded.state))
    }

    /// What the run's records take, in bytes; without what the database adds. 0: the journal holds no row of it.
    pub async fn bytes(&self, uid: &str) -> Result<u64, JournalError> {
        Ok(self.folded(uid).await?.map_or(0, |folded| folded.bytes))
    }

    /// Where the run's chain ends.
    pub async fn head(&self, uid: &str) -> Result<Option<Head>, JournalError> {
        Ok(self.run_head(uid).await?.map(|head| head.chain))
    }

    /// The hash of one record, as it is stored.
    pub async fn hash_at(&self, uid: &str, seq: u64) -> Result<Option<Digest>, JournalError> {
        let row = self.inner.store.events(uid, seq, seq).await?.pop();
        Ok(row.and_then(|row| Digest::try_from(row.hash.as_slice()).ok()))
    }

    /// The run's head with epoch, session and pod.
    pub async fn run_head(&self, uid: &str) -> Result<Option<RunHead>, JournalError> {
        match self.inner.memory.get(uid) {
            Some(folded) => Ok(Some(folded.head)),
            None => self.stored_head(uid).await,
        }
    }

    /// Appends the operator's events if the run's head is still `expected_seq` (0: no row yet). All or nothing.
    pub async fn append(
        &self,
        run: &ObjectId,
        expected_seq: u64,
        events: Vec<Event>,
    ) -> Result<Arc<RunState>, JournalError> {
        let before = self.folded(&run.uid).await?;
        let found = before.as_ref().map_or(0, |folded| folded.head.chain.seq);
        let moved = |found| JournalError::Moved { run: run.uid.clone(), expected: expected_seq, found };
        if found != expected_seq {
            return Err(moved(found));
        }
        if events.is_empty() {
            return Ok(before.map(|folded| folded.state).unwrap_or_default());
        }
        let prepared = prepare(run, before.as_ref(), events, None, (self.inner.clock)())?;
        let state = Arc::clone(&prepared.folded.state);
        match self.submit(prepared).await? {
            Outcome::Refused(head) => Err(moved(head.map_or(0, |head| head.chain.seq))),
            Outcome::Done | Outcome::Session(_) | Outcome::More => Ok(state),
        }
    }

    /// Makes older streams of the epoch powerless. Answers the number that the newest one must carry.
    pub async fn raise_session(&self, uid: &str, epoch: u64) -> Result<u64, JournalError> {
        let change = Change::RaiseSession { run: uid.to_owned(), epoch };
        match self.write(change, None).await? {
            Outcome::Session(session) => Ok(session),
            Outcome::Done | Outcome::More | Outcome::Refused(_) => {
                Err(JournalError::SessionReplaced { run: uid.to_owned(), epoch, session: 0 })
            }
        }
    }

    /// Runs that have not ended, in the order they were accepted.
    pub async fn live_runs(&self) -> Result<Vec<ObjectId>, JournalError> {
        let heads = self.inner.store.open_heads().await?;
        Ok(heads.into_iter().filter(|head| !head.ended).map(|head| head.run).collect())
    }

    /// Runs that have not ended, and those whose pod may live yet.
    pub async fn open_runs(&self) -> Result<Vec<ObjectId>, JournalError> {
        Ok(self.inner.store.open_heads().await?.into_iter().map(|head| head.run).collect())
    }

    /// Whether the journal holds the run and its end is not among its records.
    #[must_use]
    pub fn is_open(&self, uid: &str) -> bool {
        self.inner.memory.is_open(uid)
    }

    /// The run whose live epoch has this pod.
    #[must_use]
    pub fn run_of_pod(&self, namespace: &str, pod_name: &str) -> Option<ObjectId> {
        self.inner.memory.run_of_pod(namespace, pod_name)
    }

    /// Every append announces its run. A listener that lags must look at all runs again.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<ObjectId> {
        self.inner.changes.subscribe()
    }

    /// Verified records from `from_seq` to the head.
    pub async fn records(&self, uid: &str, from_seq: u64) -> Result<Vec<SealedRecord>, JournalError> {
        let Some(head) = self.stored_head(uid).await? else {
            return Ok(Vec::new());
        };
        let records = self.verified(&head, from_seq, head.chain.seq).await?;
        if !records.is_empty() {
            check_end(&head, &records).map_err(|damage| damaged(uid, damage))?;
        }
        Ok(records)
    }

    /// Writes what is queued, closes the file and gives back its lock. Every handle is closed with it.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.inner.queue.closed().await;
        // The writer closes the store last; closing is idempotent and waits for connections in use.
        self.inner.store.close().await;
    }

    async fn folded(&self, uid: &str) -> Result<Option<Folded>, JournalError> {
        if let Some(folded) = self.inner.memory.get(uid) {
            return Ok(Some(folded));
        }
        let Some(head) = self.stored_head(uid).await? else {
            return Ok(None);
        };
        let records = self.verified(&head, 1, head.chain.seq).await?;
        check_end(&head, &records).map_err(|damage| damaged(uid, damage))?;
        let state = RunState::replay(records.iter().map(|sealed| &sealed.record));
        let state = state.map_err(|error| damaged(uid, error.into()))?;
        let bytes = records.iter().map(|sealed| sealed.bytes.len() as u64).sum();
        let folded = Folded { state: Arc::new(state), head, bytes };
        self.inner.memory.put(folded.clone());
        Ok(Some(folded))
    }

    /// Records `first..=last`, checked against the hash before them and the one beside each.
    async fn verified(&self, head: &RunHead, first: u64, last: u64) -> Result<Vec<SealedRecord>, JournalError> {
        let uid = &head.run.uid;
        let first = first.max(1);
        let rows = self.inner.store.events(uid, first - 1, last).await;
        let mut rows = rows.map_err(|error| error.of_run(uid))?;
        let anchor = if first == 1 {
            Head::empty()
        } else {
            let before = (!rows.is_empty()).then(|| rows.remove(0)).filter(|row| row.seq == first - 1);
            let hash = before.map(|row| row.hash).and_then(|hash| hash.as_slice().try_into().ok());
            let hash = hash.ok_or_else(|| damaged(uid, Damage::Hash { seq: first - 1 }))?;
            Head { seq: first - 1, hash, at: 0 }
        };
        open_rows(anchor, &rows).map_err(|damage| damaged(uid, damage))
    }

    async fn submit(&self, prepared: Prepared) -> Result<Outcome, JournalError> {
        self.write(Change::Append(Box::new(prepared.append)), Some(prepared.folded)).await
    }

    async fn stored_head(&self, uid: &str) -> Result<Option<RunHead>, JournalError> {
        self.inner.store.head(uid).await.map_err(|error| error.of_run(uid))
    }

    async fn write(&self, change: Change, folded: Option<Folded>) -> Result<Outcome, JournalError> {
        let (reply, answer) = oneshot::channel();
        let run = change.run().to_owned();
        let write = Write { change, waiter: Waiter { folded, reply } };
        self.inner.queue.send(write).await.map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?.map_err(|error| error.of_run(&run))
    }
}

fn damaged(uid: &str, damage: Damage) -> JournalError {
    JournalError::Damaged { run: uid.to_owned(), damage }
}
