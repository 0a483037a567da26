//! What can go wrong with the journal, in words that say which run and which file.

use std::path::PathBuf;

use belay_protocol::chain::ChainError;
use belay_protocol::digest::DigestError;
use belay_protocol::fold::IllegalEvent;

use super::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("run {run} moved on to record {found} while {expected} was expected")]
    Moved { run: String, expected: u64, found: u64 },
    /// Another Hello came since, or the epoch is over.
    #[error("session {session} of epoch {epoch} of run {run} was replaced")]
    SessionReplaced { run: String, epoch: u64, session: u64 },
    #[error("run {run}, epoch {epoch}: batch {found} where {expected} was due")]
    BatchOutOfOrder { run: String, epoch: u64, expected: u64, found: u64 },
    #[error("run {run}, epoch {epoch}: batch {n} came again with other events")]
    BatchDiffers { run: String, epoch: u64, n: u64 },
    #[error("the journal holds no run {0}")]
    UnknownRun(String),
    #[error("the plan is of run {found}, not of {expected}")]
    OtherRun { expected: String, found: String },
    #[error("run {run} has not ended: its rows stay")]
    NotEnded { run: String },
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(
        "the journal of run {run} is damaged: {damage}; nothing is built on it. Restore an earlier copy of the \
         journal's file, or install the version of Belay that wrote it"
    )]
    Damaged { run: String, damage: Damage },
    #[error("the journal's volume is full: nothing was written; enlarge it. Cancelling still works")]
    Full,
    #[error("another operator leads since: this one writes no more and has to start anew")]
    Fenced,
    /// Within a Lease numbers never go back, and a Lease that was replaced never leads again.
    #[error(
        "the Lease {lease} at {token} is older than what led this journal before ({highest}): \
         if the cluster's state was restored to an earlier copy, delete the Lease, and the operator makes a new one"
    )]
    FenceRefused { lease: String, token: i64, highest: i64 },
    /// Whether the events are in is not known: read the run again.
    #[error("the journal failed and is opened anew: {0}")]
    Unavailable(String),
    #[error("the journal is closed")]
    Closed,
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// How stored rows contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Fold(#[from] IllegalEvent),
    #[error("its head is record {head}, its last row {last}")]
    Head { head: u64, last: u64 },
    #[error("row {seq} holds no hash")]
    Hash { seq: u64 },
    #[error("the database is malformed where its rows lie ({0})")]
    Database(String),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is locked by another operator: exactly one may write (replicas: 1, strategy Recreate)")]
    Locked { path: PathBuf },
    #[error("{path} lies on a network file system ({kind}): SQLite's locks do not hold there; use a block volume")]
    NetworkFilesystem { path: PathBuf, kind: &'static str },
    #[error(
        "{path} was written by another version of Belay (schema {found}, this build knows {known}): install a newer one"
    )]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{path} is damaged ({message}): restore an earlier copy of it, or move it away; \
         runs that were under way then end as JournalLost"
    )]
    Corrupt { path: PathBuf, message: String },
    #[error("{path} cannot be written: make the file, its folder and its volume writable for the operator")]
    ReadOnly { path: PathBuf },
    #[error("the volume of {path} is full: enlarge it, or free space on it")]
    Full { path: PathBuf },
    #[error("{path} cannot be used: {message}")]
    Unusable { path: PathBuf, message: String },
}

impl StoreError {
    /// The error of a read or write that touched this run alone.
    pub(super) fn of_run(self, run: &str) -> JournalError {
        match self {
            Self::Corrupt(message) => JournalError::Damaged { run: run.to_owned(), damage: Damage::Database(message) },
            Self::Full | Self::Fenced | Self::Io(_) | Self::Closed => self.into(),
        }
    }
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            StoreError::Fenced => Self::Fenced,
            StoreError::Corrupt(message) | StoreError::Io(message) => Self::Unavailable(message),
            StoreError::Closed => Self::Closed,
        }
    }
}
