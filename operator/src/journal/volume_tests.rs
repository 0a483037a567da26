//! The journal on a volume that is full or cannot be written: a small file system in memory, mounted in a mount
//! namespace of the test's own. Needs `unshare`, and either root or user namespaces; without them it fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use belay_protocol::event::{EndReason, EpochEnd, Event, ListedOperation, Listing, Outcome, RunEnd};
use belay_protocol::plan::ObjectId;

use super::error::OpenError;
use super::{Batch, BatchKey, Journal, JournalError, Settings};
use crate::gate::tests::plan_of;

/// Where the part of a test finds the volume; unset in the part that mounts it.
const VOLUME: &str = "BELAY_TEST_VOLUME";
const RESERVE: u64 = 1024 * 1024;

/// Runs the test `name` once more as a process that sees a volume of four mebibytes. True: this is that process.
fn on_a_small_volume(name: &str) -> bool {
    if std::env::var_os(VOLUME).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = r#"mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" --exact --nocapture "$3""#;
    unshare.args(["sh", "-c", script, "sh"]).arg(folder.path()).arg(std::env::current_exe().unwrap()).arg(name);
    let output = unshare.env(VOLUME, folder.path()).output().expect("unshare (util-linux) is needed");
    let said = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "needs root or user namespaces\n{said}\n{why}");
    false
}

fn volume() -> PathBuf {
    std::env::var_os(VOLUME).unwrap().into()
}

async fn open(path: &Path) -> Result<Journal, JournalError> {
    Journal::open_with(path, Settings { reserve_bytes: RESERVE, ..Settings::default() }).await
}

/// Writes until nothing more fits. Answers the file to delete.
fn fill() -> PathBuf {
    let path = volume().join("filler");
    let mut file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
    while file.write(&[7; 1024]).is_ok_and(|written| written > 0) {}
    path
}

fn run(name: &str) -> ObjectId {
    ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") }
}

fn accepted(run: &ObjectId) -> Vec<Event> {
    let plan = plan_of(run);
    vec![
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
        Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{}", run.name) },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
    ]
}

fn listed() -> Event {
    let operation = |i| ListedOperation { name: format!("op{i}"), definition: belay_protocol::Digest::zero() };
    Event::ToolsListed { tool: "files".into(), listing: Listing::Listed((0..200).map(operation).collect()) }
}

async fn batch(journal: &Journal, run: &ObjectId, n: u64) -> Result<(), JournalError> {
    let batch = Batch { key: BatchKey { epoch: 1, session: 1, n }, events: vec![listed()] };
    journal.append_batch(&run.uid, batch, |_, events| Ok(events.to_vec())).await.map(drop)
}

/// Sends batches until the journal is full; answers the number of the one that was refused.
async fn until_full(journal: &Journal, run: &ObjectId) -> u64 {
    let mut n = journal.run_head(&run.uid).await.unwrap().unwrap().batch + 1;
    loop {
        match batch(journal, run, n).await {
            Ok(()) => n += 1,
            Err(JournalError::Full) => return n,
            Err(error) => panic!("batch {n}: {error}"),
        }
        assert!(n < 2000, "the volume never fills up");
    }
}

#[tokio::test]
async fn on_a_full_volume_runs_are_cancelled_and_ended_and_with_space_again_they_go_on() {
    if !on_a_small_volume(
        "journal::volume_tests::on_a_full_volume_runs_are_cancelled_and_ended_and_with_space_again_they_go_on",
    ) {
        return;
    }
    let path = volume().join("journal.db");
    let journal = open(&path).await.unwrap();
    let (one, other) = (run("one"), run("other"));
    for run in [&one, &other] {
        journal.append(run, 0, accepted(run)).await.unwrap();
        journal.raise_session(&run.uid, 1).await.unwrap();
    }
    let filler = fill();
    let refused = until_full(&journal, &one).await;
    assert!(!volume().join("journal.db.reserve").exists(), "the reserve was given up");

    let head = journal.head(&one.uid).await.unwrap().unwrap().seq;
    let end = RunEnd { outcome: Outcome::Cancelled, reason: EndReason::Cancelled, message: String::new() };
    journal.append(&one, head, vec![Event::CancelRequested {}]).await.expect("a cancel goes in");
    journal.raise_session(&other.uid, 1).await.expect("a runner may come to hear of it");
    assert!(matches!(journal.append(&run("new"), 0, accepted(&run("new"))).await, Err(JournalError::Full)));
    let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::Cancelled, active_milliseconds: 0 };
    journal.append(&one, head + 1, vec![over, Event::RunEnded { end }]).await.expect("so does the end");
    assert!(journal.is_healthy());
    journal.close().await;

    // Still full: another process takes cancels as well.
    let journal = open(&path).await.unwrap();
    journal.append(&other, 3, vec![Event::CancelRequested {}]).await.expect("after a restart too");
    assert!(matches!(batch(&journal, &other, 1).await, Err(JournalError::SessionReplaced { .. })));
    assert!(matches!(journal.append(&run("new"), 0, accepted(&run("new"))).await, Err(JournalError::Full)));

    std::fs::remove_file(filler).unwrap();
    let new = run("new");
    journal.append(&new, 0, accepted(&new)).await.expect("without a restart");
    assert!(volume().join("journal.db.reserve").exists(), "and the reserve is back");
    assert_eq!(journal.records(&one.uid, 1).await.unwrap().len(), 3 + usize::try_from(refused - 1).unwrap() + 3);
    journal.close().await;
}

#[tokio::test]
async fn a_volume_that_is_full_before_the_journal_was_made_is_named() {
    if !on_a_small_volume("journal::volume_tests::a_volume_that_is_full_before_the_journal_was_made_is_named") {
        return;
    }
    fill();
    let path = volume().join("journal.db");
    let error = open(&path).await.map(drop).unwrap_err();
    assert!(matches!(&error, JournalError::Open(OpenError::Full { path: named }) if *named == path), "{error}");
    assert!(error.to_string().contains("enlarge"), "{error}");
}

#[tokio::test]
async fn a_volume_that_became_read_only_is_named() {
    if !on_a_small_volume("journal::volume_tests::a_volume_that_became_read_only_is_named") {
        return;
    }
    let path = volume().join("journal.db");
    open(&path).await.unwrap().close().await;
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(volume()).status().unwrap();
    assert!(remounted.success());
    for path in [path, volume().join("new/journal.db")] {
        let error = open(&path).await.map(drop).unwrap_err();
        assert!(matches!(&error, JournalError::Open(OpenError::ReadOnly { path: named }) if *named == path), "{error}");
        assert!(error.to_string().contains("writable"), "{error}");
    }
}
