//! A store that is nothing but the rules: rows in memory on a disk that forgets, at a power cut, what was not synced.
//! Held to SQLite by the conformance suite; what the simulation runs on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::plan::ObjectId;

use super::Journal;
use super::store::{Append, BatchSpan, Change, Fence, Outcome, RunHead, Store, StoreError, StoredEvent};

/// The most rows that forgetting removes in one transaction.
const FORGET_ROWS: usize = 512;

/// What survives the processes that write to it. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    id: String,
    /// What a power cut leaves.
    durable: Rows,
    /// What can be read: `durable`, and what was written since the last sync.
    written: Rows,
    next_sync: Syncing,
}

/// What becomes of the next sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Syncing {
    #[default]
    Works,
    /// It says that all is well, and nothing is: the disk that a store must not be built on.
    Lies,
    /// An error, after the rows reached the disk.
    FailsLate,
    /// An error, before any did.
    FailsEarly,
}

/// Rows are shared between the copies of a database: a transaction copies pointers.
#[derive(Clone, Default)]
struct Rows {
    runs: BTreeMap<String, RunRows>,
    made: u64,
    fences: BTreeMap<String, Raised>,
    commits: u64,
}

#[derive(Clone)]
struct RunRows {
    /// Its place among all runs.
    made: u64,
    head: RunHead,
    deleted_at: Option<i64>,
    events: Vec<Arc<StoredEvent>>,
    batches: BTreeMap<(u64, u64), BatchSpan>,
}

#[derive(Clone, Copy)]
struct Raised {
    number: u64,
    token: i64,
}

impl Disk {
    /// Everything that was not synced is gone.
    pub(crate) fn cut_power(&self) {
        let mut disk = self.lock();
        disk.written = disk.durable.clone();
    }

    /// What the sync after the next write does; later ones work.
    pub(crate) fn next_sync(&self, sync: Syncing) {
        self.lock().next_sync = sync;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Rows are written, then synced: only then may anybody hear of them.
    fn write(&mut self, rows: Rows) -> Result<(), StoreError> {
        self.written = rows;
        let failed = || Err(StoreError::Io("the sync failed".into()));
        match std::mem::take(&mut self.next_sync) {
            Syncing::Works => {
                self.durable = self.written.clone();
                Ok(())
            }
            Syncing::Lies => Ok(()),
            Syncing::FailsLate => {
                self.durable = self.written.clone();
                failed()
            }
            Syncing::FailsEarly => failed(),
        }
    }
}

impl Journal {
    /// A journal as another process opens it, over what is on `disk`.
    pub(crate) async fn on_disk(disk: &Disk, clock: fn() -> i64) -> Self {
        let store = Arc::new(ModelStore::open(disk, "model"));
        Self::over(store, clock, Duration::ZERO, None).await.unwrap()
    }
}

/// One process's store over a disk.
pub(crate) struct ModelStore {
    disk: Disk,
    id: String,
    fence: AtomicU64,
}

impl ModelStore {
    /// `fresh_id` becomes the journal's id if the disk is new.
    pub(crate) fn open(disk: &Disk, fresh_id: &str) -> Self {
        let mut inner = disk.lock();
        if inner.id.is_empty() {
            fresh_id.clone_into(&mut inner.id);
        }
        let (id, fence) = (inner.id.clone(), inner.written.fence());
        drop(inner);
        Self { disk: disk.clone(), id, fence: AtomicU64::new(fence) }
    }

    fn read<T>(&self, read: impl FnOnce(&Rows) -> T) -> T {
        read(&self.disk.lock().written)
    }

    /// A transaction that is counted, unless another leader raised the fence since.
    fn transact<T>(&self, change: impl FnOnce(&mut Rows) -> T) -> Result<T, StoreError> {
        let mut disk = self.disk.lock();
        let mut rows = disk.written.clone();
        if rows.fence() != self.fence.load(Ordering::Acquire) {
            return Err(StoreError::Fenced);
        }
        rows.commits += 1;
        let result = change(&mut rows);
        disk.write(rows)?;
        Ok(result)
    }
}

impl Rows {
    fn fence(&self) -> u64 {
        self.fences.values().map(|raised| raised.number).max().unwrap_or(0)
    }

    fn apply(&mut self, change: &Change) -> Outcome {
        match change {
            Change::Append(append) => self.append(append),
            Change::RaiseSession { run, epoch } => match self.runs.get_mut(run) {
                Some(rows) if rows.head.epoch == *epoch && rows.head.pod_name.is_some() => {
                    rows.head.session += 1;
                    Outcome::Session(rows.head.session)
                }
                rows => Outcome::Refused(rows.map(|rows| Box::new(rows.head.clone()))),
            },
            Change::MarkDeleted { run, at } => {
                if let Some(rows) = self.runs.get_mut(run).filter(|rows| rows.head.ended) {
                    rows.deleted_at.get_or_insert(*at);
                }
                Outcome::Done
            }
            Change::Forget { run } => {
                let Some(rows) = self.runs.get_mut(run) else { return Outcome::Done };
                rows.events.drain(..FORGET_ROWS.min(rows.events.len()));
                if rows.events.is_empty() {
                    self.runs.remove(run);
                    return Outcome::Done;
                }
                Outcome::More
            }
        }
    }

    fn append(&mut self, append: &Append) -> Outcome {
        let uid = &append.next.run.uid;
        let known = self.runs.get(uid);
        let refused = || Outcome::Refused(known.map(|rows| Box::new(rows.head.clone())));
        let fits = match known {
            None => append.expected.seq == 0,
            Some(rows) => {
                let head = &rows.head;
                let session =
                    append.batch.is_none_or(|b| (b.epoch, b.session) == (head.epoch, head.session) && b.n > head.batch);
                let behind = (append.expected.seq, append.expected.hash) == (head.chain.seq, head.chain.hash);
                append.expected.seq > 0 && behind && session
            }
        };
        if !fits {
            return refused();
        }
        if known.is_none() {
            self.made += 1;
        }
        let fresh = RunRows {
            made: self.made,
            head: RunHead { session: 0, ..append.next.clone() },
            deleted_at: None,
            events: Vec::new(),
            batches: BTreeMap::new(),
        };
        let rows = self.runs.entry(uid.clone()).or_insert(fresh);
        rows.head = RunHead { session: rows.head.session, ..append.next.clone() };
        let stored = append.records.iter().map(|sealed| StoredEvent {
            seq: sealed.record.seq,
            bytes: sealed.bytes.clone(),
            hash: sealed.hash.as_bytes().to_vec(),
        });
        rows.events.extend(stored.map(Arc::new));
        if let Some(batch) = append.batch {
            let span = BatchSpan { first_seq: append.expected.seq + 1, last_seq: append.next.chain.seq };
            rows.batches.insert((batch.epoch, batch.n), span);
        }
        Outcome::Done
    }

    fn raise(&mut self, lease: &str, token: i64) -> Fence {
        let stands = self.fence();
        if let Some(known) = self.fences.get(lease)
            && (known.number != stands || token < known.token)
        {
            return Fence::Refused { highest: known.token };
        }
        self.fences.insert(lease.to_owned(), Raised { number: stands + 1, token });
        Fence::Raised(stands + 1)
    }

    /// In the order in which they were made.
    fn in_order(&self) -> Vec<&RunRows> {
        let mut runs: Vec<&RunRows> = self.runs.values().collect();
        runs.sort_by_key(|rows| rows.made);
        runs
    }
}

#[async_trait]
impl Store for ModelStore {
    fn id(&self) -> &str {
        &self.id
    }

    async fn commit(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        self.transact(|rows| changes.iter().map(|change| rows.apply(change)).collect())
    }

    async fn raise_fence(&self, lease: &str, token: i64) -> Result<Fence, StoreError> {
        let outcome = self.transact(|rows| rows.raise(lease, token))?;
        match outcome {
            Fence::Raised(number) => self.fence.store(number, Ordering::Release),
            Fence::Refused { .. } => {}
        }
        Ok(outcome)
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, StoreError> {
        Ok(self.read(|rows| rows.runs.get(run).map(|rows| rows.head.clone())))
    }

    async fn open_heads(&self) -> Result<Vec<RunHead>, StoreError> {
        let open = |rows: &&RunRows| !rows.head.ended || rows.head.pod_name.is_some();
        Ok(self.read(|rows| rows.in_order().into_iter().filter(open).map(|rows| rows.head.clone()).collect()))
    }

    async fn events(&self, run: &str, first: u64, last: u64) -> Result<Vec<StoredEvent>, StoreError> {
        Ok(self.read(|rows| {
            let events = rows.runs.get(run).into_iter().flat_map(|rows| &rows.events);
            events.filter(|event| (first..=last).contains(&event.seq)).map(|event| StoredEvent::clone(event)).collect()
        }))
    }

    async fn batch(&self, run: &str, epoch: u64, n: u64) -> Result<Option<BatchSpan>, StoreError> {
        let span = self.read(|rows| rows.runs.get(run)?.batches.get(&(epoch, n)).copied());
        // One that put nothing in has no rows.
        Ok(span.filter(|span| span.first_seq <= span.last_seq))
    }

    async fn kept(&self) -> Result<Vec<ObjectId>, StoreError> {
        let kept = |rows: &&RunRows| rows.deleted_at.is_none();
        Ok(self.read(|rows| rows.in_order().into_iter().filter(kept).map(|rows| rows.head.run.clone()).collect()))
    }

    async fn deleted_before(&self, at: i64, limit: u32) -> Result<Vec<String>, StoreError> {
        let mut deleted: Vec<(i64, String)> = self.read(|rows| {
            let marked = |(uid, rows): (&String, &RunRows)| Some((rows.deleted_at?, uid.clone()));
            rows.runs.iter().filter_map(marked).filter(|(marked, _)| *marked <= at).collect()
        });
        deleted.sort();
        Ok(deleted.into_iter().take(limit as usize).map(|(_, uid)| uid).collect())
    }

    async fn commits(&self) -> Result<u64, StoreError> {
        Ok(self.read(|rows| rows.commits))
    }

    /// What a failed sync left unsynced may be anywhere: only what the disk holds counts from here on.
    async fn reopen(&self) -> Result<(), StoreError> {
        self.disk.cut_power();
        Ok(())
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use belay_protocol::event::Event;
    use rstest::rstest;

    use super::*;
    use crate::gate::tests::plan_of;
    use crate::journal::JournalError;

    fn run() -> ObjectId {
        ObjectId { namespace: "ns".into(), name: "a".into(), uid: "a-uid".into() }
    }

    async fn journal_on(disk: &Disk) -> Journal {
        let journal = Journal::on_disk(disk, || 0).await;
        let plan = plan_of(&run());
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        journal.append(&run(), 0, vec![accepted]).await.unwrap();
        journal
    }

    /// The trait asks for it of every store; here it is what makes the journal keep its word.
    #[rstest]
    #[case::after_the_rows_reached_the_disk(Syncing::FailsLate, 2)]
    #[case::before_they_did(Syncing::FailsEarly, 1)]
    #[tokio::test]
    async fn a_write_whose_sync_failed_is_not_acknowledged(#[case] sync: Syncing, #[case] seq: u64) {
        let disk = Disk::default();
        let journal = journal_on(&disk).await;
        disk.next_sync(sync);
        let answer = journal.append(&run(), 1, vec![Event::CancelRequested {}]).await;
        assert!(matches!(answer, Err(JournalError::Unavailable(_))), "{answer:?}");
        assert_eq!(journal.state("a-uid").await.unwrap().unwrap().seq, seq, "what the disk holds is read anew");
        disk.cut_power();
        assert_eq!(journal.append(&run(), seq, vec![Event::CancelRequested {}]).await.unwrap().seq, seq + 1);
    }

    #[tokio::test]
    async fn what_was_never_synced_is_gone_after_a_power_cut_and_only_that() {
        let disk = Disk::default();
        let journal = journal_on(&disk).await;
        disk.next_sync(Syncing::Lies);
        journal.append(&run(), 1, vec![Event::CancelRequested {}]).await.unwrap();
        let store = ModelStore::open(&disk, "other");
        assert_eq!(store.events("a-uid", 1, 9).await.unwrap().len(), 2);
        disk.cut_power();
        assert_eq!(store.events("a-uid", 1, 9).await.unwrap().len(), 1);
        assert_eq!(store.id(), "model");
    }
}
