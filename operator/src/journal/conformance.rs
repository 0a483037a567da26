//! What every store must do, whichever database lies behind it: SQLite, and the model that the simulation runs on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::sync::Arc;

use belay_protocol::chain::Head;
use belay_protocol::event::{DeathProof, EndReason, EpochEnd, Event, Limit, Outcome as RunOutcome, RunEnd};
use belay_protocol::plan::ObjectId;
use rstest::rstest;

use super::chain::open_rows;
use super::model::{Disk, ModelStore};
use super::reserve::with_suffix;
use super::sqlite::SqliteStore;
use super::store::{Append, BatchKey, BatchSpan, Change, Fence, Outcome, RunHead, Store, StoreError};

const RESERVE: u64 = 64 * 1024;

/// The stores that are held to it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Sqlite,
    Model,
}

/// A database that can be left and come back to.
enum Place {
    Sqlite(tempfile::TempDir),
    Model(Disk),
}

impl Kind {
    fn place(self) -> Place {
        match self {
            Self::Sqlite => Place::Sqlite(tempfile::tempdir().unwrap()),
            Self::Model => Place::Model(Disk::default()),
        }
    }
}

impl Place {
    async fn open(&self) -> Arc<dyn Store> {
        let id = format!("{:032x}", rand::random::<u128>());
        match self {
            Self::Sqlite(folder) => Arc::new(SqliteStore::open(&file(folder), id, RESERVE).await.unwrap()),
            Self::Model(disk) => Arc::new(ModelStore::open(disk, &id)),
        }
    }

    /// A second store over the same rows, as another process would open it whom no lock keeps out.
    async fn open_beside(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(folder) => {
                Arc::new(SqliteStore::open_locked(&file(folder), "unused".into(), RESERVE, None).await.unwrap())
            }
            Self::Model(disk) => Arc::new(ModelStore::open(disk, "unused")),
        }
    }

    /// The power goes out under whoever has it open, and comes back.
    fn cut_power(self) -> Self {
        match self {
            Self::Sqlite(folder) => {
                // The files as they lie there: nobody closes anything.
                let left = tempfile::tempdir().unwrap();
                for suffix in ["", "-wal"] {
                    let path = with_suffix(&file(&folder), suffix);
                    std::fs::copy(&path, left.path().join(path.file_name().unwrap())).unwrap();
                }
                Self::Sqlite(left)
            }
            Self::Model(disk) => {
                disk.cut_power();
                Self::Model(disk)
            }
        }
    }
}

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("journal.db")
}

fn run(name: &str) -> ObjectId {
    ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") }
}

fn first(name: &str) -> RunHead {
    RunHead {
        run: run(name),
        chain: Head::empty(),
        epoch: 1,
        batch: 0,
        session: 0,
        instance: None,
        pod_name: Some(format!("belay-run-{name}")),
        ended: false,
    }
}

/// An append of `count` records behind `before`.
fn behind(before: &RunHead, count: usize, batch: Option<BatchKey>) -> Append {
    let mut chain = before.chain;
    let mut records = Vec::new();
    for at in 0..count {
        let sealed = chain.seal(Event::CancelRequested {}, i64::try_from(at).unwrap()).unwrap();
        chain = sealed.head();
        records.push(sealed);
    }
    let held = batch.map_or(before.batch, |batch| batch.n);
    Append { expected: before.chain, records, next: RunHead { chain, batch: held, ..before.clone() }, batch }
}

fn append_of(append: Append) -> Change {
    Change::Append(Box::new(append))
}

async fn commit_one(store: &dyn Store, change: Change) -> Outcome {
    store.commit(&[change]).await.unwrap().remove(0)
}

#[rstest]
#[tokio::test]
async fn what_was_committed_reads_back_and_survives_a_reopen(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let append = behind(&first("a"), 3, None);
    assert_eq!(commit_one(&*store, append_of(append.clone())).await, Outcome::Done);
    let (id, commits) = (store.id().to_owned(), store.commits().await.unwrap());
    store.close().await;
    let store = place.open().await;
    assert_eq!((store.id(), store.commits().await.unwrap()), (id.as_str(), commits));
    assert_eq!(store.head("a-uid").await.unwrap(), Some(append.next.clone()));
    let rows = store.events("a-uid", 1, 3).await.unwrap();
    assert_eq!(open_rows(Head::empty(), &rows).unwrap(), append.records);
    assert_eq!(store.events("a-uid", 2, 2).await.unwrap(), rows[1..2]);
}

#[rstest]
#[tokio::test]
async fn an_append_behind_a_head_that_moved_changes_nothing_and_tells_the_head(
    #[values(Kind::Sqlite, Kind::Model)] kind: Kind,
) {
    let place = kind.place();
    let store = place.open().await;
    let start = first("a");
    let (one, other) = (behind(&start, 1, None), behind(&start, 2, None));
    // Both at once: the first of them wins within the same transaction.
    let outcomes = store.commit(&[append_of(one.clone()), append_of(other)]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Done, Outcome::Refused(Some(Box::new(one.next.clone())))]);
    let mut stale = behind(&one.next, 1, None);
    stale.expected.hash = belay_protocol::Digest::of(b"a fork");
    assert_eq!(commit_one(&*store, append_of(stale)).await, Outcome::Refused(Some(Box::new(one.next.clone()))));
    assert_eq!(store.events("a-uid", 1, 9).await.unwrap().len(), 1);
    let nowhere = behind(&RunHead { chain: one.next.chain, ..first("b") }, 1, None);
    assert_eq!(commit_one(&*store, append_of(nowhere)).await, Outcome::Refused(None));
}

#[rstest]
#[tokio::test]
async fn one_refused_append_does_not_keep_others_of_the_group_out(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let taken = behind(&first("a"), 1, None);
    let group = [taken.clone(), taken, behind(&first("b"), 1, None)].map(append_of);
    let outcomes = store.commit(&group).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Done, Outcome::Refused(Some(_)), Outcome::Done]), "{outcomes:?}");
    assert_eq!(store.commits().await.unwrap(), 1, "one transaction for all");
}

#[rstest]
#[tokio::test]
async fn a_batch_needs_the_newest_session_and_epoch(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let opened = behind(&first("a"), 1, None);
    commit_one(&*store, append_of(opened.clone())).await;
    let raise = || Change::RaiseSession { run: "a-uid".into(), epoch: 1 };
    assert_eq!(commit_one(&*store, raise()).await, Outcome::Session(1));
    assert_eq!(commit_one(&*store, raise()).await, Outcome::Session(2));
    let batch = |epoch, session| Some(BatchKey { epoch, session, n: 1 });
    for stale in [batch(1, 1), batch(2, 2)] {
        let outcome = commit_one(&*store, append_of(behind(&opened.next, 2, stale))).await;
        assert!(matches!(&outcome, Outcome::Refused(Some(head)) if head.session == 2), "{outcome:?}");
    }
    assert_eq!(store.batch("a-uid", 1, 1).await.unwrap(), None);
    let outcome = commit_one(&*store, append_of(behind(&opened.next, 2, batch(1, 2)))).await;
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(store.batch("a-uid", 1, 1).await.unwrap(), Some(BatchSpan { first_seq: 2, last_seq: 3 }));
    let head = store.head("a-uid").await.unwrap().unwrap();
    assert_eq!((head.batch, head.session), (1, 2), "an append keeps the session");
}

#[rstest]
#[tokio::test]
async fn no_session_is_raised_for_another_epoch_or_without_a_pod(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let gone = RunHead { pod_name: None, ..first("a") };
    commit_one(&*store, append_of(behind(&gone, 1, None))).await;
    for epoch in [1, 2] {
        let outcome = commit_one(&*store, Change::RaiseSession { run: "a-uid".into(), epoch }).await;
        assert!(matches!(outcome, Outcome::Refused(Some(_))), "{outcome:?}");
    }
}

#[rstest]
#[tokio::test]
async fn open_heads_are_those_that_go_on_or_whose_pod_may_live(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    for (name, ended, pod) in [("on", false, None), ("over", true, None), ("leaving", true, Some("pod"))] {
        let head = RunHead { ended, pod_name: pod.map(str::to_owned), ..first(name) };
        commit_one(&*store, append_of(behind(&head, 1, None))).await;
    }
    let open: Vec<String> = store.open_heads().await.unwrap().into_iter().map(|head| head.run.name).collect();
    assert_eq!(open, ["on", "leaving"]);
}

#[rstest]
#[tokio::test]
async fn forgetting_a_run_leaves_nothing_of_it_and_all_of_the_others(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    for name in ["a", "b"] {
        let opened = behind(&first(name), 1, None);
        commit_one(&*store, append_of(opened.clone())).await;
        let batch = Some(BatchKey { epoch: 1, session: 0, n: 1 });
        commit_one(&*store, append_of(behind(&opened.next, 1, batch))).await;
    }
    assert_eq!(commit_one(&*store, Change::Forget { run: "a-uid".into() }).await, Outcome::Done);
    assert_eq!(store.head("a-uid").await.unwrap(), None);
    assert_eq!(store.events("a-uid", 0, 9).await.unwrap(), []);
    assert_eq!(store.batch("a-uid", 1, 1).await.unwrap(), None);
    assert_eq!(store.events("b-uid", 0, 9).await.unwrap().len(), 2);
}

#[rstest]
#[tokio::test]
async fn a_store_that_was_reopened_goes_on_with_all_that_was_acknowledged(
    #[values(Kind::Sqlite, Kind::Model)] kind: Kind,
) {
    let place = kind.place();
    let store = place.open().await;
    let opened = behind(&first("a"), 2, None);
    commit_one(&*store, append_of(opened.clone())).await;
    store.reopen().await.unwrap();
    assert_eq!(store.head("a-uid").await.unwrap(), Some(opened.next.clone()));
    assert_eq!(commit_one(&*store, append_of(behind(&opened.next, 1, None))).await, Outcome::Done);
    assert_eq!(store.events("a-uid", 1, 9).await.unwrap().len(), 3);
}

#[rstest]
#[tokio::test]
async fn what_was_acknowledged_outlives_a_power_cut(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    assert_eq!(store.raise_fence("lease", 4).await, Ok(Fence::Raised(1)));
    let opened = behind(&first("a"), 2, None);
    commit_one(&*store, append_of(opened.clone())).await;
    let raise = Change::RaiseSession { run: "a-uid".into(), epoch: 1 };
    assert_eq!(commit_one(&*store, raise).await, Outcome::Session(1));
    let batch = behind(&opened.next, 3, Some(BatchKey { epoch: 1, session: 1, n: 1 }));
    assert_eq!(commit_one(&*store, append_of(batch.clone())).await, Outcome::Done);
    let (id, commits) = (store.id().to_owned(), store.commits().await.unwrap());
    let place = place.cut_power();
    let store = place.open().await;
    assert_eq!((store.id(), store.commits().await.unwrap()), (id.as_str(), commits));
    let head = RunHead { session: 1, ..batch.next.clone() };
    assert_eq!(store.head("a-uid").await.unwrap(), Some(head));
    assert_eq!(store.events("a-uid", 1, 9).await.unwrap().len(), 5);
    assert_eq!(store.batch("a-uid", 1, 1).await.unwrap(), Some(BatchSpan { first_seq: 3, last_seq: 5 }));
    assert_eq!(store.raise_fence("lease", 3).await, Ok(Fence::Refused { highest: 4 }));
    assert_eq!(commit_one(&*store, append_of(behind(&batch.next, 1, None))).await, Outcome::Done);
}

#[rstest]
#[tokio::test]
async fn whoever_opened_before_the_fence_was_raised_never_writes_again(
    #[values(Kind::Sqlite, Kind::Model)] kind: Kind,
) {
    let place = kind.place();
    let old = place.open().await;
    assert_eq!(old.raise_fence("lease", 1).await, Ok(Fence::Raised(1)));
    let opened = behind(&first("a"), 1, None);
    commit_one(&*old, append_of(opened.clone())).await;
    let new = place.open_beside().await;
    commit_one(&*old, append_of(behind(&first("b"), 1, None))).await;
    assert_eq!(new.raise_fence("lease", 2).await, Ok(Fence::Raised(2)));
    let late = || [append_of(behind(&opened.next, 1, None))];
    assert_eq!(old.commit(&late()).await, Err(StoreError::Fenced));
    old.reopen().await.unwrap();
    assert_eq!(old.commit(&late()).await, Err(StoreError::Fenced), "opening anew is no way around");
    assert_eq!(old.raise_fence("lease", 3).await, Err(StoreError::Fenced), "it may hold old states");
    assert_eq!(commit_one(&*new, late()[0].clone()).await, Outcome::Done);
    assert_eq!(new.events("a-uid", 1, 9).await.unwrap().len(), 2);
}

#[rstest]
#[tokio::test]
async fn a_fence_is_raised_by_a_newer_holder_or_a_newer_lease_only(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let refused = |highest| Ok(Fence::Refused { highest });
    assert_eq!(store.raise_fence("first", 5).await, Ok(Fence::Raised(1)));
    assert_eq!(store.raise_fence("first", 4).await, refused(5));
    assert_eq!(store.raise_fence("first", 5).await, Ok(Fence::Raised(2)), "the same leader, started again");
    assert_eq!(store.raise_fence("second", 0).await, Ok(Fence::Raised(3)), "the first was deleted");
    assert_eq!(store.raise_fence("first", 6).await, refused(5), "a lease that was replaced leads no more");
    assert_eq!(store.raise_fence("second", 1).await, Ok(Fence::Raised(4)));
    assert_eq!(commit_one(&*store, append_of(behind(&first("a"), 1, None))).await, Outcome::Done);
    store.close().await;
    let store = place.open().await;
    assert_eq!(store.raise_fence("second", 0).await, refused(1), "that is kept");
}

#[rstest]
#[tokio::test]
async fn a_run_of_many_rows_is_forgotten_in_steps_and_a_step_cut_off_is_gone_on_with(
    #[values(Kind::Sqlite, Kind::Model)] kind: Kind,
) {
    let place = kind.place();
    let store = place.open().await;
    let opened = behind(&first("a"), 1, None);
    commit_one(&*store, append_of(opened.clone())).await;
    let over = RunHead { ended: true, pod_name: None, ..opened.next.clone() };
    let last = Append {
        next: RunHead { chain: behind(&over, 1000, None).next.chain, ..over.clone() },
        ..behind(&over, 1000, None)
    };
    commit_one(&*store, append_of(last)).await;
    commit_one(&*store, append_of(behind(&first("b"), 1, None))).await;
    let forget = || Change::Forget { run: "a-uid".into() };
    assert_eq!(commit_one(&*store, Change::MarkDeleted { run: "a-uid".into(), at: 7 }).await, Outcome::Done);
    assert_eq!(commit_one(&*store, forget()).await, Outcome::More);
    store.close().await;
    let store = place.open().await;
    assert_eq!(store.deleted_before(7, 9).await.unwrap(), ["a-uid"]);
    assert_eq!(commit_one(&*store, forget()).await, Outcome::Done);
    assert_eq!(store.deleted_before(7, 9).await.unwrap(), [""; 0]);
    assert_eq!(store.head("a-uid").await.unwrap(), None);
    assert_eq!(store.events("b-uid", 1, 9).await.unwrap().len(), 1);
}

#[rstest]
#[tokio::test]
async fn only_an_ended_run_is_marked_as_deleted_and_the_first_mark_counts(
    #[values(Kind::Sqlite, Kind::Model)] kind: Kind,
) {
    let place = kind.place();
    let store = place.open().await;
    let ended = RunHead { ended: true, ..first("over") };
    for head in [first("on"), ended] {
        commit_one(&*store, append_of(behind(&head, 1, None))).await;
    }
    for (uid, at) in [("on-uid", 5), ("over-uid", 5), ("over-uid", 9), ("nobody", 5)] {
        commit_one(&*store, Change::MarkDeleted { run: uid.into(), at }).await;
    }
    assert_eq!(store.deleted_before(4, 9).await.unwrap(), [""; 0]);
    assert_eq!(store.deleted_before(5, 9).await.unwrap(), ["over-uid"]);
    assert_eq!(store.kept().await.unwrap(), [run("on")]);
}

#[rstest]
#[tokio::test]
async fn a_batch_is_held_once_and_its_number_never_given_again(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let opened = behind(&first("a"), 1, None);
    commit_one(&*store, append_of(opened.clone())).await;
    let batch = |before: &RunHead, n| behind(before, 2, Some(BatchKey { epoch: 1, session: 0, n }));
    let one = batch(&opened.next, 1);
    // The same batch twice, as after an answer that was lost: within a group, and after it.
    let outcomes = store.commit(&[append_of(one.clone()), append_of(one.clone())]).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Done, Outcome::Refused(Some(_))]), "{outcomes:?}");
    store.reopen().await.unwrap();
    assert!(matches!(commit_one(&*store, append_of(one.clone())).await, Outcome::Refused(Some(_))));
    assert_eq!(store.batch("a-uid", 1, 1).await.unwrap(), Some(BatchSpan { first_seq: 2, last_seq: 3 }));
    let again = commit_one(&*store, append_of(batch(&one.next, 1))).await;
    assert!(matches!(again, Outcome::Refused(Some(_))), "behind the newest head too: {again:?}");
    assert_eq!(commit_one(&*store, append_of(batch(&one.next, 2))).await, Outcome::Done);
    assert_eq!(store.head("a-uid").await.unwrap().unwrap().batch, 2);
}

#[tokio::test]
async fn without_its_reserve_a_store_takes_ends_and_sessions_alone() {
    let folder = tempfile::tempdir().unwrap();
    // More than any volume has: it is never set aside, which is what a full volume looks like.
    let store = SqliteStore::open(&folder.path().join("journal.db"), "id".into(), 1 << 60).await.unwrap();
    let opened = behind(&first("a"), 1, None);
    assert_eq!(store.commit(&[append_of(opened.clone())]).await, Ok(vec![Outcome::Done]), "a cancel goes in");
    let batch = behind(&opened.next, 1, Some(BatchKey { epoch: 1, session: 0, n: 1 }));
    assert_eq!(store.commit(&[append_of(batch)]).await, Err(StoreError::Full));
    let epoch = Event::EpochOpened { epoch: 2, pod_name: "p".into() };
    let epoch = opened.next.chain.seal(epoch, 1).unwrap();
    let append = Append { records: vec![epoch], ..behind(&opened.next, 1, None) };
    assert_eq!(store.commit(&[append_of(append)]).await, Err(StoreError::Full));
    let session = Change::RaiseSession { run: "a-uid".into(), epoch: 1 };
    assert_eq!(store.commit(&[session]).await, Ok(vec![Outcome::Session(1)]));
    // All that closing a run in the middle of a call may take, in one append.
    let message = || "the run was cancelled".to_owned();
    let end = RunEnd { outcome: RunOutcome::Cancelled, reason: EndReason::Cancelled, message: message() };
    let mut chain = opened.next.chain;
    let closing = [
        Event::LimitReached { limit: Limit::ActiveSeconds },
        Event::CallInterrupted { call_id: "c1".into(), attempt: 1, message: message() },
        Event::CallUnknown { call_id: "c2".into(), attempt: 1, message: message() },
        Event::EpochEnded { epoch: 1, cause: EpochEnd::Cancelled, active_milliseconds: 1 },
        Event::EpochDead { epoch: 1, proof: DeathProof::Reported },
        Event::RunEnded { end },
    ];
    let records = closing.map(|event| {
        let sealed = chain.seal(event, 1).unwrap();
        chain = sealed.head();
        sealed
    });
    let next = RunHead { chain, ended: true, ..opened.next.clone() };
    let append = Append { expected: opened.next.chain, records: records.to_vec(), next, batch: None };
    assert_eq!(store.commit(&[append_of(append)]).await, Ok(vec![Outcome::Done]));
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_come_together_are_taken_one_after_another(#[values(Kind::Sqlite, Kind::Model)] kind: Kind) {
    let place = kind.place();
    let store = place.open().await;
    let opened = behind(&first("a"), 1, None);
    commit_one(&*store, append_of(opened.clone())).await;
    let tasks = (0..8).map(|count| {
        let (store, append) = (Arc::clone(&store), behind(&opened.next, count + 1, None));
        tokio::spawn(async move { commit_one(&*store, append_of(append)).await })
    });
    let outcomes = futures::future::join_all(tasks).await;
    let taken = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Outcome::Done))).count();
    assert_eq!(taken, 1, "{outcomes:?}");
    let head = store.head("a-uid").await.unwrap().unwrap();
    let rows = store.events("a-uid", 1, 99).await.unwrap();
    assert_eq!(rows.last().map(|row| row.seq), Some(head.chain.seq));
    assert_eq!(open_rows(Head::empty(), &rows).unwrap().last().map(|sealed| sealed.hash), Some(head.chain.hash));
}
