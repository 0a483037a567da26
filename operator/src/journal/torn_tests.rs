//! A power cut in the middle of a write: the log of a real database, cut and bent anywhere, must open to what was
//! acknowledged by then, and go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use belay_protocol::event::{Event, ListedOperation, Listing};
use belay_protocol::plan::ObjectId;
use rstest::rstest;

use super::reserve::with_suffix;
use super::{Journal, JournalError, Settings};
use crate::gate::tests::plan_of;

/// <https://www.sqlite.org/fileformat2.html#walformat>: a header, then frames of a header and a page each.
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const COMMITS: usize = 12;

/// A database as a power cut could leave it, with what had been acknowledged when the log was that long.
struct Written {
    folder: tempfile::TempDir,
    database: Vec<u8>,
    log: Vec<u8>,
    /// Length of the log after each acknowledged append, and how many records each run had then.
    acknowledged: Vec<(usize, [u64; 2])>,
    frame: usize,
}

fn runs() -> [ObjectId; 2] {
    ["a", "b"].map(|name| ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") })
}

fn path(folder: &Path) -> PathBuf {
    folder.join("journal.db")
}

/// Hundreds are opened: setting aside mebibytes for each takes longer than all the rest.
async fn open(path: &Path) -> Result<Journal, JournalError> {
    Journal::open_with(path, Settings { reserve_bytes: 4096, ..Settings::default() }).await
}

/// Records of different size, from one page to several.
fn listed(size: usize) -> Event {
    let operation = |i| ListedOperation { name: format!("op{i}"), definition: belay_protocol::Digest::zero() };
    Event::ToolsListed { tool: "files".into(), listing: Listing::Listed((0..size).map(operation).collect()) }
}

impl Written {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = path(folder.path());
        let journal = open(&path).await.unwrap();
        for run in runs() {
            let plan = plan_of(&run);
            let accepted = vec![
                Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
                Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{}", run.name) },
                Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
            ];
            journal.append(&run, 0, accepted).await.unwrap();
        }
        journal.close().await;
        let journal = open(&path).await.unwrap();
        let log = with_suffix(&path, "-wal");
        let length = || usize::try_from(std::fs::metadata(&log).map_or(0, |log| log.len())).unwrap();
        let mut records = [3, 3];
        let mut acknowledged = vec![(0, records)];
        for commit in 0..COMMITS {
            let which = commit % 2;
            let events = vec![listed(commit * 9), Event::CancelRequested {}];
            journal.append(&runs()[which], records[which], events).await.unwrap();
            records[which] += 2;
            acknowledged.push((length(), records));
        }
        let (database, log) = (std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap());
        let page = usize::from(u16::from_be_bytes([database[16], database[17]]));
        let written = Self { folder, database, log, acknowledged, frame: FRAME_HEADER + page };
        assert!(written.frames() > COMMITS, "not a log that was checkpointed meanwhile");
        journal.close().await;
        written
    }

    fn frames(&self) -> usize {
        (self.log.len() - WAL_HEADER) / self.frame
    }

    /// Opens what is left with this log, checks it against what must be there, and goes on with it.
    async fn opens_with(&self, log: &[u8], intact: usize, what: &str) {
        let place = self.folder.path().join("left");
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        let path = path(&place);
        std::fs::write(&path, &self.database).unwrap();
        std::fs::write(with_suffix(&path, "-wal"), log).unwrap();
        let (_, expected) = self.acknowledged.iter().rev().find(|(length, _)| *length <= intact).unwrap();
        let journal = open(&path).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        for (run, expected) in runs().iter().zip(expected) {
            // Reading verifies chain and fold.
            let state = journal.state(&run.uid).await.unwrap_or_else(|error| panic!("{what}: {error}")).unwrap();
            let records = journal.records(&run.uid, 1).await.unwrap();
            assert_eq!((state.seq, records.len() as u64), (*expected, *expected), "{what}: run {}", run.name);
            journal.append(run, state.seq, vec![Event::CancelRequested {}]).await.unwrap();
        }
        journal.close().await;
        let journal = open(&path).await.unwrap();
        for (run, expected) in runs().iter().zip(expected) {
            assert_eq!(journal.records(&run.uid, 1).await.unwrap().len() as u64, expected + 1, "{what}");
        }
        journal.close().await;
    }
}

#[rstest]
#[case::at_frame_borders(&[0])]
#[case::inside_frame_headers(&[1, 23])]
#[case::inside_pages(&[24, 4119])]
#[tokio::test]
async fn a_log_cut_anywhere_opens_to_all_that_was_acknowledged_by_then(#[case] offsets: &[usize]) {
    let written = Written::new().await;
    for frame in 0..=written.frames() {
        for offset in offsets {
            let cut = WAL_HEADER + frame * written.frame + offset;
            if cut <= written.log.len() {
                written.opens_with(&written.log[..cut], cut, &format!("cut in frame {frame} at {offset}")).await;
            }
        }
    }
    for cut in [0, 1, WAL_HEADER - 1] {
        written.opens_with(&written.log[..cut], 0, &format!("cut in the header at {cut}")).await;
    }
}

#[tokio::test]
async fn a_log_with_bent_last_frames_opens_to_what_came_before_them() {
    let written = Written::new().await;
    let last = written.frames();
    for frame in last - 6..last {
        let start = WAL_HEADER + frame * written.frame;
        // Page number, size after commit, salt, checksum, and the page from its first byte to its last. The
        // checksums run on, so that nothing after a bent frame counts either.
        for at in [3, 7, 8, 23, 24, 1000, written.frame - 1] {
            for bit in [0, 7] {
                let mut log = written.log.clone();
                log[start + at] ^= 1 << bit;
                written.opens_with(&log, start, &format!("bit {bit} of byte {at} in frame {frame} of {last}")).await;
            }
        }
    }
}

#[tokio::test]
async fn frames_of_an_older_log_behind_the_end_do_not_come_back() {
    let written = Written::new().await;
    // The log starts over at its beginning: what is left of the former round lies behind, whole but of another salt.
    let cut = WAL_HEADER + written.frame * 5;
    let mut log = written.log.clone();
    for frame in 5..written.frames() {
        let salt = WAL_HEADER + frame * written.frame + 8;
        log[salt] ^= 0xff;
    }
    written.opens_with(&log, cut, "frames of another round").await;
}
