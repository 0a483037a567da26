//! The journal over SQLite: what it promises to controllers and to the run service.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::chain::SealedRecord;
use belay_protocol::event::{EndReason, EpochEnd, Event, ListedOperation, Listing, Outcome as RunOutcome, RunEnd};
use belay_protocol::fold::{IllegalEvent, RunState};
use belay_protocol::plan::ObjectId;
use rusqlite::Connection;

use super::error::OpenError;
use super::sqlite::{SCHEMA_VERSION, SqliteStore};
use super::store::{BatchSpan, Change, Fence, Outcome, RunHead, Store, StoreError, StoredEvent};
use super::{Audience, Batch, BatchKey, Damage, Journal, JournalError, Settings, Taken};
use crate::gate::tests::plan_of;

fn accepted(run: &ObjectId) -> Vec<Event> {
    let plan = plan_of(run);
    vec![
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
        Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{}", run.name) },
    ]
}

fn run(name: &str) -> ObjectId {
    ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") }
}

fn claimed() -> Event {
    Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() }
}

fn listed(operations: usize) -> Event {
    let definition = belay_protocol::Digest::zero();
    let operation = |i| ListedOperation { name: format!("op{i}"), definition };
    Event::ToolsListed { tool: "files".into(), listing: Listing::Listed((0..operations).map(operation).collect()) }
}

fn ended() -> Event {
    let end = RunEnd { outcome: RunOutcome::Cancelled, reason: EndReason::Cancelled, message: String::new() };
    Event::RunEnded { end }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("journal.db")
}

/// A journal with one claimed run, in a folder that is deleted at the end.
async fn with_claimed_run() -> (tempfile::TempDir, Journal, ObjectId) {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&file(folder.path())).await.unwrap();
    let run = run("a");
    let state = journal.append(&run, 0, accepted(&run)).await.unwrap();
    journal.append(&run, state.seq, vec![claimed()]).await.unwrap();
    (folder, journal, run)
}

#[allow(clippy::unnecessary_wraps)] // the shape of a decision
fn as_they_are(_: &RunState, events: &[Event]) -> Result<Vec<Event>, IllegalEvent> {
    Ok(events.to_vec())
}

async fn batch(
    journal: &Journal,
    run: &ObjectId,
    session: u64,
    n: u64,
    events: Vec<Event>,
) -> Result<Taken, JournalError> {
    let batch = Batch { key: BatchKey { epoch: 1, session, n }, events };
    journal.append_batch(&run.uid, batch, as_they_are).await
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_reopen() {
    let (folder, journal, run) = with_claimed_run().await;
    let session = journal.raise_session(&run.uid, 1).await.unwrap();
    let taken = batch(&journal, &run, session, 1, vec![listed(1)]).await.unwrap();
    let head = journal.run_head(&run.uid).await.unwrap();
    journal.close().await;
    let journal = Journal::open(&file(folder.path())).await.unwrap();
    assert_eq!(journal.state(&run.uid).await.unwrap(), Some(taken.state));
    assert_eq!(journal.run_head(&run.uid).await.unwrap(), head);
    assert_eq!(journal.live_runs().await.unwrap(), std::slice::from_ref(&run));
    assert_eq!(journal.run_of_pod("ns", "belay-run-a"), Some(run));
}

#[tokio::test]
async fn two_appends_behind_one_head_become_one() {
    let (_folder, journal, run) = with_claimed_run().await;
    let cancel = || journal.append(&run, 3, vec![Event::CancelRequested {}]);
    let (one, other) = tokio::join!(cancel(), cancel());
    let moved =
        |result: &Result<_, JournalError>| matches!(result, Err(JournalError::Moved { expected: 3, found: 4, .. }));
    assert!(one.is_ok() != other.is_ok() && (moved(&one) || moved(&other)), "{one:?} {other:?}");
    assert_eq!(journal.head(&run.uid).await.unwrap().unwrap().seq, 4);
}

#[tokio::test]
async fn an_append_with_one_illegal_event_writes_none_of_its_events() {
    let (_folder, journal, run) = with_claimed_run().await;
    let result = journal.append(&run, 3, vec![Event::CancelRequested {}, claimed()]).await;
    assert!(matches!(result, Err(JournalError::Illegal(_))), "{result:?}");
    assert_eq!(journal.records(&run.uid, 1).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_plan_of_another_run_is_refused() {
    let (_folder, journal, run) = with_claimed_run().await;
    let other = ObjectId { uid: "recreated".into(), ..run.clone() };
    let result = journal.append(&other, 0, accepted(&run)).await;
    assert!(matches!(result, Err(JournalError::OtherRun { .. })), "{result:?}");
}

#[tokio::test]
async fn a_batch_is_taken_once_and_recalled_with_its_records() {
    let (_folder, journal, run) = with_claimed_run().await;
    let session = journal.raise_session(&run.uid, 1).await.unwrap();
    let first = batch(&journal, &run, session, 1, vec![listed(1)]).await.unwrap();
    batch(&journal, &run, session, 2, vec![listed(2)]).await.unwrap();
    let session = journal.raise_session(&run.uid, 1).await.unwrap();
    let again = batch(&journal, &run, session, 1, vec![listed(1)]).await.unwrap();
    assert_eq!(again.records, first.records);
    assert_eq!(again.state.seq, 5, "the state is the newest");
    let other = batch(&journal, &run, session, 2, vec![listed(7)]).await;
    assert!(matches!(other, Err(JournalError::BatchDiffers { n: 2, .. })), "{other:?}");
    for _ in 0..2 {
        assert_eq!(batch(&journal, &run, session, 3, vec![]).await.unwrap().records, [], "nothing is taken once too");
    }
    let more = batch(&journal, &run, session, 3, vec![listed(3)]).await;
    assert!(matches!(more, Err(JournalError::BatchDiffers { n: 3, .. })), "{more:?}");
    let ahead = batch(&journal, &run, session, 5, vec![listed(1)]).await;
    assert!(matches!(ahead, Err(JournalError::BatchOutOfOrder { expected: 4, found: 5, .. })), "{ahead:?}");
}

#[tokio::test]
async fn an_older_session_adds_nothing() {
    let (_folder, journal, run) = with_claimed_run().await;
    let old = journal.raise_session(&run.uid, 1).await.unwrap();
    let new = journal.raise_session(&run.uid, 1).await.unwrap();
    assert_eq!((old, new), (1, 2));
    let result = batch(&journal, &run, old, 1, vec![listed(1)]).await;
    assert!(matches!(result, Err(JournalError::SessionReplaced { session: 1, .. })), "{result:?}");
    batch(&journal, &run, new, 1, vec![listed(1)]).await.unwrap();
}

#[tokio::test]
async fn an_epoch_that_is_over_adds_nothing_although_no_newer_stream_came() {
    let (_folder, journal, run) = with_claimed_run().await;
    let session = journal.raise_session(&run.uid, 1).await.unwrap();
    let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::PodLost, active_milliseconds: 0 };
    let next = Event::EpochOpened { epoch: 2, pod_name: "belay-run-next".into() };
    journal.append(&run, 3, vec![over, next]).await.unwrap();
    let result = batch(&journal, &run, session, 1, vec![listed(1)]).await;
    assert!(matches!(result, Err(JournalError::SessionReplaced { epoch: 1, .. })), "{result:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_decided_anew_when_the_controller_was_faster() {
    let (_folder, journal, run) = with_claimed_run().await;
    let session = journal.raise_session(&run.uid, 1).await.unwrap();
    let decided = AtomicU32::new(0);
    let (interfering, of) = (journal.clone(), run.clone());
    let decide = |state: &RunState, events: &[Event]| {
        if decided.fetch_add(1, Ordering::SeqCst) == 0 {
            let append = interfering.append(&of, state.seq, vec![Event::CancelRequested {}]);
            futures::executor::block_on(append).unwrap();
        } else {
            assert!(state.cancel_requested, "the second decision sees what came in between");
        }
        Ok(events.to_vec())
    };
    let batch = Batch { key: BatchKey { epoch: 1, session, n: 1 }, events: vec![listed(1)] };
    let run_uid = run.uid.clone();
    // The interfering append waits for the writer: the decision must not sit on the only worker.
    let taken = journal.append_batch(&run_uid, batch, |s, e| tokio::task::block_in_place(|| decide(s, e)));
    assert_eq!(taken.await.unwrap().state.seq, 5);
    assert_eq!(decided.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_pod_is_known_while_its_epoch_lives() {
    let (_folder, journal, run) = with_claimed_run().await;
    assert_eq!(journal.run_of_pod("ns", "belay-run-a"), Some(run.clone()));
    assert_eq!(journal.run_of_pod("elsewhere", "belay-run-a"), None);
    journal.append(&run, 3, vec![ended()]).await.unwrap();
    assert_eq!(journal.run_of_pod("ns", "belay-run-a"), Some(run.clone()), "its runner is still to hear of the end");
    assert_eq!(journal.live_runs().await.unwrap(), []);
    let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::Completed, active_milliseconds: 0 };
    journal.append(&run, 4, vec![over]).await.unwrap();
    assert_eq!(journal.run_of_pod("ns", "belay-run-a"), None);
    assert_eq!(journal.state(&run.uid).await.unwrap().unwrap().seq, 5, "an ended run is read from its rows");
}

#[tokio::test]
async fn only_a_run_that_has_ended_is_forgotten() {
    let (_folder, journal, run) = with_claimed_run().await;
    assert!(matches!(journal.forget(&run.uid).await, Err(JournalError::NotEnded { .. })));
    journal.append(&run, 3, vec![ended()]).await.unwrap();
    journal.forget(&run.uid).await.unwrap();
    assert_eq!(journal.state(&run.uid).await.unwrap(), None);
    assert_eq!(journal.run_of_pod("ns", "belay-run-a"), None);
    journal.forget(&run.uid).await.unwrap();
}

#[tokio::test]
async fn every_append_is_announced() {
    let (_folder, journal, run) = with_claimed_run().await;
    let mut changes = journal.changes();
    journal.append(&run, 3, vec![Event::CancelRequested {}]).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), run);
}

#[tokio::test]
async fn records_are_read_from_anywhere_and_end_at_the_head() {
    let (_folder, journal, run) = with_claimed_run().await;
    let all = journal.records(&run.uid, 1).await.unwrap();
    assert_eq!(journal.records(&run.uid, 3).await.unwrap(), all[2..]);
    assert_eq!(journal.records(&run.uid, 4).await.unwrap(), []);
    assert_eq!(journal.records("nobody", 1).await.unwrap(), []);
}

/// Changes the file behind the journal's back.
fn tamper(folder: &Path, sql: &str) {
    assert!(Connection::open(file(folder)).unwrap().execute(sql, []).unwrap() > 0);
}

#[tokio::test]
async fn a_changed_a_missing_and_a_cut_off_record_are_noticed_and_named_and_other_runs_go_on() {
    type Check = fn(&Damage) -> bool;
    let cases: [(&'static str, Check); 3] = [
        (
            "UPDATE events SET bytes = CAST(replace(bytes, 'belay-run-a', 'belay-run-b') AS BLOB) WHERE run = 'a-uid' AND seq = 2",
            |d| matches!(d, Damage::Chain(belay_protocol::chain::ChainError::Changed { seq: 2, .. })),
        ),
        ("DELETE FROM events WHERE run = 'a-uid' AND seq = 2", |d| matches!(d, Damage::Chain(_))),
        ("DELETE FROM events WHERE run = 'a-uid' AND seq = 3", |d| matches!(d, Damage::Head { head: 3, last: 2 })),
    ];
    for (sql, check) in cases {
        let (folder, journal, hurt) = with_claimed_run().await;
        let well = run("b");
        journal.append(&well, 0, accepted(&well)).await.unwrap();
        journal.close().await;
        tamper(folder.path(), sql);
        let journal = Journal::open(&file(folder.path())).await.unwrap();
        let error = journal.state(&hurt.uid).await.unwrap_err();
        assert!(
            matches!(&error, JournalError::Damaged { run, damage } if *run == hurt.uid && check(damage)),
            "{error}"
        );
        assert!(journal.append(&hurt, 3, vec![ended()]).await.is_err(), "nothing is built on it");
        assert!(journal.append(&well, 2, vec![claimed()]).await.is_ok());
    }
}

#[tokio::test]
async fn a_second_journal_over_one_file_is_refused_until_the_first_is_closed() {
    let (folder, journal, _) = with_claimed_run().await;
    let second = Journal::open(&file(folder.path())).await.map(drop);
    assert!(matches!(second, Err(JournalError::Open(OpenError::Locked { .. }))), "{second:?}");
    journal.close().await;
    Journal::open(&file(folder.path())).await.unwrap();
}

#[tokio::test]
async fn a_file_of_a_newer_schema_is_refused_in_words() {
    let (folder, journal, _) = with_claimed_run().await;
    journal.close().await;
    tamper(folder.path(), "UPDATE meta SET schema_version = 99");
    let error = Journal::open(&file(folder.path())).await.map(drop).unwrap_err();
    assert!(
        matches!(error, JournalError::Open(OpenError::NewerSchema { found: 99, known: SCHEMA_VERSION, .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_closed_journal_takes_nothing() {
    let (_folder, journal, run) = with_claimed_run().await;
    journal.close().await;
    let result = journal.append(&run, 3, vec![ended()]).await;
    assert!(matches!(result, Err(JournalError::Closed)), "{result:?}");
}

/// What comes while a transaction is written goes into the next one.
#[tokio::test]
async fn appends_of_many_runs_share_transactions() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = faulty(folder.path(), vec![Fault::Late]).await;
    let runs: Vec<ObjectId> = (0..100).map(|i| run(&format!("r{i}"))).collect();
    let appends = runs.iter().map(|run| journal.append(run, 0, accepted(run)));
    for appended in futures::future::join_all(appends).await {
        appended.unwrap();
    }
    assert!(journal.commits().await.unwrap() < 50, "{}", journal.commits().await.unwrap());
    assert_eq!(journal.live_runs().await.unwrap().len(), 100);
}

/// A store whose next commits fail in a way that was written down beforehand.
struct Faulty {
    inner: SqliteStore,
    script: std::sync::Mutex<Vec<Fault>>,
    reopened: AtomicU32,
    groups_refused: AtomicU32,
}

enum Fault {
    /// The error is told, and nothing was written.
    Lost(StoreError),
    /// The error is told although everything was written.
    Written(StoreError),
    /// Full for a group, not for one change alone.
    FullForGroups,
    /// Written, after a while.
    Late,
}

#[async_trait]
impl Store for Faulty {
    fn id(&self) -> &str {
        self.inner.id()
    }
    async fn commit(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        let fault = self.script.lock().unwrap().pop();
        match fault {
            Some(Fault::Lost(error)) => Err(error),
            Some(Fault::Written(error)) => self.inner.commit(changes).await.and(Err(error)),
            Some(Fault::FullForGroups) if changes.len() > 1 => {
                self.groups_refused.fetch_add(1, Ordering::SeqCst);
                Err(StoreError::Full)
            }
            Some(Fault::Late) => {
                // The writer's own thread: nobody else waits.
                std::thread::sleep(std::time::Duration::from_millis(300));
                self.inner.commit(changes).await
            }
            None | Some(Fault::FullForGroups) => self.inner.commit(changes).await,
        }
    }
    async fn head(&self, run: &str) -> Result<Option<RunHead>, StoreError> {
        self.inner.head(run).await
    }
    async fn open_heads(&self) -> Result<Vec<RunHead>, StoreError> {
        self.inner.open_heads().await
    }
    async fn events(&self, run: &str, first: u64, last: u64) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.events(run, first, last).await
    }
    async fn batch(&self, run: &str, epoch: u64, n: u64) -> Result<Option<BatchSpan>, StoreError> {
        self.inner.batch(run, epoch, n).await
    }
    async fn raise_fence(&self, lease: &str, token: i64) -> Result<Fence, StoreError> {
        self.inner.raise_fence(lease, token).await
    }
    async fn kept(&self) -> Result<Vec<ObjectId>, StoreError> {
        self.inner.kept().await
    }
    async fn deleted_before(&self, at: i64, limit: u32) -> Result<Vec<String>, StoreError> {
        self.inner.deleted_before(at, limit).await
    }
    async fn commits(&self) -> Result<u64, StoreError> {
        self.inner.commits().await
    }
    async fn reopen(&self) -> Result<(), StoreError> {
        self.reopened.fetch_add(1, Ordering::SeqCst);
        self.inner.reopen().await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

async fn faulty(folder: &Path, script: Vec<Fault>) -> (Journal, Arc<Faulty>) {
    let inner = SqliteStore::open(&file(folder), "id".into(), 64 * 1024).await.unwrap();
    let script = std::sync::Mutex::new(script);
    let store = Faulty { inner, script, reopened: AtomicU32::new(0), groups_refused: AtomicU32::new(0) };
    let store = Arc::new(store);
    (Journal::over(store.clone(), || 1, Duration::from_mins(1), None).await.unwrap(), store)
}

#[tokio::test]
async fn after_a_failed_sync_the_file_is_opened_anew_and_says_what_became_of_the_append() {
    for (fault, seq) in
        [(Fault::Lost(StoreError::Io("EIO".into())), None), (Fault::Written(StoreError::Io("EIO".into())), Some(2))]
    {
        let folder = tempfile::tempdir().unwrap();
        let (journal, store) = faulty(folder.path(), vec![fault]).await;
        let run = run("a");
        let result = journal.append(&run, 0, accepted(&run)).await;
        assert!(matches!(result, Err(JournalError::Unavailable(_))), "{result:?}");
        assert_eq!(store.reopened.load(Ordering::SeqCst), 1);
        assert!(journal.is_healthy());
        assert_eq!(journal.head(&run.uid).await.unwrap().map(|head| head.seq), seq);
        let next = if seq.is_some() { vec![claimed()] } else { accepted(&run) };
        journal.append(&run, seq.unwrap_or(0), next).await.unwrap();
    }
}

/// Names of runs with the numbers of the records that it heard of.
#[derive(Default)]
struct Heard(std::sync::Mutex<Vec<(String, u64)>>);

impl Audience for Heard {
    fn appended(&self, run: &ObjectId, records: &[SealedRecord]) {
        self.0.lock().unwrap().extend(records.iter().map(|sealed| (run.name.clone(), sealed.record.seq)));
    }
}

#[tokio::test]
async fn who_listens_hears_of_what_is_durable_in_order_and_of_nothing_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, store) = faulty(folder.path(), vec![]).await;
    let heard = Arc::new(Heard::default());
    let (a, b) = (run("a"), run("b"));
    journal.append(&a, 0, accepted(&a)).await.unwrap();
    journal.tell(heard.clone());
    store.script.lock().unwrap().push(Fault::Lost(StoreError::Full));
    assert!(journal.append(&b, 0, accepted(&b)).await.is_err());
    journal.append(&a, 2, vec![claimed()]).await.unwrap();
    assert!(journal.append(&a, 2, vec![claimed()]).await.is_err(), "behind the head");
    journal.append(&b, 0, accepted(&b)).await.unwrap();
    let expected = [("a", 3), ("b", 1), ("b", 2)].map(|(name, seq)| (name.to_owned(), seq));
    assert_eq!(*heard.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_full_disk_is_said_in_words_and_the_journal_goes_on_without_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, store) = faulty(folder.path(), vec![Fault::Lost(StoreError::Full)]).await;
    let run = run("a");
    let result = journal.append(&run, 0, accepted(&run)).await;
    assert!(matches!(result, Err(JournalError::Full)), "{result:?}");
    assert_eq!(store.reopened.load(Ordering::SeqCst), 0);
    journal.append(&run, 0, accepted(&run)).await.unwrap();
}

#[tokio::test]
async fn a_group_that_does_not_fit_is_tried_run_by_run() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, store) = faulty(folder.path(), vec![]).await;
    let (a, b) = (run("a"), run("b"));
    for run in [&a, &b] {
        journal.append(run, 0, accepted(run)).await.unwrap();
    }
    store.script.lock().unwrap().push(Fault::FullForGroups);
    // Both states are in memory and there is one worker: both are queued before the writer wakes.
    let (one, other) = tokio::join!(journal.append(&a, 2, vec![claimed()]), journal.append(&b, 2, vec![claimed()]));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    assert_eq!(store.groups_refused.load(Ordering::SeqCst), 1, "they came as one group");
}

#[tokio::test]
async fn a_journal_that_was_fenced_says_so_and_takes_nothing_more() {
    let (folder, journal, run) = with_claimed_run().await;
    journal.raise_fence("lease", 1).await.unwrap();
    let refused = journal.raise_fence("lease", 0).await;
    assert!(matches!(refused, Err(JournalError::FenceRefused { highest: 1, .. })), "{refused:?}");
    assert!(journal.is_healthy(), "a refusal harms nothing");
    let new = SqliteStore::open_locked(&file(folder.path()), "id".into(), 64 * 1024, None).await.unwrap();
    assert_eq!(new.raise_fence("lease", 2).await, Ok(Fence::Raised(2)));
    for _ in 0..2 {
        let result = journal.append(&run, 3, vec![ended()]).await;
        assert!(matches!(result, Err(JournalError::Fenced)), "{result:?}");
    }
    journal.fenced().await;
    assert!(!journal.is_healthy());
    assert_eq!(new.head(&run.uid).await.unwrap().map(|head| head.chain.seq), Some(3));
}

#[tokio::test]
async fn rows_of_a_deleted_run_stay_for_their_time_and_go_then() {
    static NOW: AtomicI64 = AtomicI64::new(1_000);
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&file(folder.path()), "id".into(), 64 * 1024).await.unwrap();
    let journal =
        Journal::over(Arc::new(store), || NOW.load(Ordering::SeqCst), Duration::from_mins(1), None).await.unwrap();
    let (gone, kept) = (run("gone"), run("kept"));
    for run in [&gone, &kept] {
        journal.append(run, 0, accepted(run)).await.unwrap();
    }
    assert!(matches!(journal.mark_deleted(&gone.uid).await, Err(JournalError::NotEnded { .. })));
    journal.append(&gone, 2, vec![ended()]).await.unwrap();
    journal.mark_deleted(&gone.uid).await.unwrap();
    journal.mark_deleted("nobody").await.unwrap();
    assert_eq!(journal.kept_runs().await.unwrap(), std::slice::from_ref(&kept));
    NOW.store(60_999, Ordering::SeqCst);
    assert_eq!(journal.forget_expired().await.unwrap(), 0);
    assert_eq!(journal.records(&gone.uid, 1).await.unwrap().len(), 3);
    NOW.store(61_000, Ordering::SeqCst);
    assert_eq!(journal.forget_expired().await.unwrap(), 1);
    assert_eq!(journal.records(&gone.uid, 1).await.unwrap(), []);
    assert_eq!(journal.records(&kept.uid, 1).await.unwrap().len(), 2);
}

#[tokio::test]
async fn without_a_retention_time_rows_go_with_their_agentrun() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { retention: Duration::ZERO, ..Settings::default() };
    let journal = Journal::open_with(&file(folder.path()), settings).await.unwrap();
    let run = run("a");
    journal.append(&run, 0, vec![ended()]).await.unwrap();
    journal.mark_deleted(&run.uid).await.unwrap();
    assert_eq!(journal.records(&run.uid, 1).await.unwrap(), []);
}

#[tokio::test]
async fn a_file_gives_back_the_space_of_what_was_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&file(folder.path())).await.unwrap();
    for i in 0..20 {
        let run = run(&format!("r{i}"));
        let mut plan = plan_of(&run);
        plan.input = "x".repeat(100_000);
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        journal.append(&run, 0, vec![accepted, ended()]).await.unwrap();
        journal.forget(&run.uid).await.unwrap();
    }
    journal.close().await;
    let bytes = std::fs::metadata(file(folder.path())).unwrap().len();
    assert!(bytes < 200_000, "{bytes}");
}
