//! Files that no operator wrote like that: each is a clear error that names the file or the run, and what to do;
//! runs beside a damaged one go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use belay_protocol::Digest;
use belay_protocol::event::{EndReason, Event, Outcome, RunEnd};
use belay_protocol::plan::ObjectId;
use rstest::rstest;
use rusqlite::Connection;

use super::error::OpenError;
use super::{Damage, Journal, JournalError};
use crate::gate::tests::plan_of;

fn run(name: &str) -> ObjectId {
    ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") }
}

fn ended() -> Event {
    let end = RunEnd { outcome: Outcome::Cancelled, reason: EndReason::Cancelled, message: String::new() };
    Event::RunEnded { end }
}

/// A closed journal with two runs of many pages each.
async fn written(folder: &Path) -> PathBuf {
    let path = folder.join("journal.db");
    let journal = Journal::open(&path).await.unwrap();
    for name in ["hurt", "well"] {
        let run = run(name);
        let mut plan = plan_of(&run);
        plan.input = format!("input of {name} ").repeat(10_000);
        let accepted = vec![
            Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
            Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{name}") },
        ];
        journal.append(&run, 0, accepted).await.unwrap();
    }
    journal.close().await;
    path
}

/// Opens the journal and expects that run `hurt` is damaged, and nothing else is.
async fn only_one_is_damaged(path: &Path) -> Damage {
    let journal = Journal::open(path).await.expect("a journal opens though one of its runs is damaged");
    let (hurt, well) = (run("hurt"), run("well"));
    // At once, so that one transaction may hold both.
    let cancel = || vec![Event::CancelRequested {}];
    let (bad, good) = tokio::join!(journal.append(&hurt, 2, cancel()), journal.append(&well, 2, cancel()));
    good.unwrap();
    let error = bad.unwrap_err();
    assert!(error.to_string().contains("hurt-uid"), "{error}");
    let JournalError::Damaged { run, damage } = error else { panic!("{error}") };
    assert_eq!(run, hurt.uid);
    let live: Vec<String> = journal.live_runs().await.unwrap().into_iter().map(|run| run.name).collect();
    assert!(live.contains(&"well".to_owned()), "{live:?}");
    journal.append(&well, 3, vec![ended()]).await.unwrap();
    assert_eq!(journal.records("well-uid", 1).await.unwrap().len(), 4);
    assert!(journal.is_healthy());
    journal.close().await;
    damage
}

fn execute(path: &Path, sql: &str) {
    assert_eq!(Connection::open(path).unwrap().execute(sql, []).unwrap(), 1);
}

#[tokio::test]
async fn an_event_of_a_kind_that_is_not_known_damages_its_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path()).await;
    let journal = Journal::open(&path).await.unwrap();
    let head = journal.head("hurt-uid").await.unwrap().unwrap();
    journal.close().await;
    // As a later version would have written it: chained, and behind the head.
    let bytes = format!(r#"{{"at":{},"event":{{"kind":"Teleported"}},"seq":3}}"#, head.at).into_bytes();
    let hash = Digest::chained(head.hash, &bytes);
    let connection = Connection::open(&path).unwrap();
    let insert = "INSERT INTO events (run, seq, epoch, bytes, hash) VALUES ('hurt-uid', 3, 1, ?, ?)";
    connection.execute(insert, (bytes, hash.as_bytes())).unwrap();
    connection.execute("UPDATE heads SET seq = 3, hash = ? WHERE run = 'hurt-uid'", [hash.as_bytes()]).unwrap();
    drop(connection);
    let journal = Journal::open(&path).await.unwrap();
    let error = journal.state("hurt-uid").await.unwrap_err().to_string();
    assert!(error.contains("hurt-uid") && error.contains("unknown variant `Teleported`"), "{error}");
    let result = journal.append(&run("hurt"), 3, vec![ended()]).await;
    assert!(matches!(result, Err(JournalError::Damaged { .. })), "{result:?}");
    journal.append(&run("well"), 2, vec![ended()]).await.unwrap();
}

#[tokio::test]
async fn a_page_that_was_overwritten_damages_the_run_that_lay_there_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path()).await;
    let mut bytes = std::fs::read(&path).unwrap();
    let page = 4096;
    let needle = b"input of hurt input of hurt";
    let theirs: Vec<usize> =
        (0..bytes.len() / page).filter(|at| bytes[at * page..][..page].windows(27).any(|w| w == needle)).collect();
    assert!(theirs.len() > 20, "{theirs:?}");
    bytes[theirs[10] * page..][..page].fill(0);
    std::fs::write(&path, bytes).unwrap();
    only_one_is_damaged(&path).await;
}

#[rstest]
#[case::hash_of_another_length("UPDATE heads SET hash = x'00' WHERE run = 'hurt-uid'")]
#[case::negative_number("UPDATE heads SET epoch = -1 WHERE run = 'hurt-uid'")]
#[tokio::test]
async fn a_head_that_cannot_be_read_damages_its_run_alone(#[case] sql: &'static str) {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path()).await;
    execute(&path, sql);
    assert!(matches!(only_one_is_damaged(&path).await, Damage::Database(_)));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    std::fs::write(&path, "this is not a database, whatever it may be; ".repeat(200)).unwrap();
    let error = Journal::open(&path).await.map(drop).unwrap_err();
    assert!(matches!(&error, JournalError::Open(OpenError::Corrupt { path: named, .. }) if *named == path), "{error}");
    assert!(error.to_string().contains("restore an earlier copy"), "{error}");
}

#[rstest]
#[case::within_the_first_page(2000)]
#[case::after_a_few_pages(5 * 4096)]
#[case::inside_a_page(7 * 4096 + 100)]
#[tokio::test]
async fn a_file_that_was_cut_off_is_named_with_what_to_do(#[case] length: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path()).await;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
    let error = Journal::open(&path).await.map(drop).unwrap_err();
    assert!(matches!(&error, JournalError::Open(OpenError::Corrupt { path: named, .. }) if *named == path), "{error}");
}

#[tokio::test]
async fn a_file_with_no_bytes_left_is_a_new_journal_and_its_id_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path()).await;
    let journal = Journal::open(&path).await.unwrap();
    let before = journal.id().to_owned();
    journal.close().await;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let journal = Journal::open(&path).await.unwrap();
    assert_ne!(journal.id(), before, "the status of every run under way names the old one");
}

#[tokio::test]
async fn one_damaged_run_keeps_nobody_from_starting() {
    use crate::agent_run::queue::{Lobby, QueueLimits};
    use crate::rollback::{Finding, heed};
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path()).await;
    execute(&path, "UPDATE events SET bytes = x'00' WHERE run = 'hurt-uid' AND seq = 2");
    let journal = Journal::open(&path).await.unwrap();
    let lobby = Lobby::new(QueueLimits { installation: 5, namespace: 5, starting: 5 });
    crate::agent_run::resume_slots(&journal, &lobby).await.unwrap();
    heed(&journal, &Finding::Behind { by: 1 }).await.unwrap();
}
