//! The journal's rows in one SQLite file: WAL, fsynced at every commit. Knows SQL, and no event.

mod connections;
mod failure;
mod rows;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use belay_protocol::plan::ObjectId;
use rusqlite::Error;

use self::connections::{Readers, WriteConnection, open_writer};
pub(super) use self::failure::is_corrupt;
use self::failure::{failed, open_error};
pub(super) use self::rows::{read_events, read_head, read_heads_named};
pub(super) use self::schema::SCHEMA_VERSION;
use self::schema::{Brought, bring_up};
use super::error::OpenError;
use super::place::{self, Lock};
use super::reserve::Reserve;
use super::store::{BatchSpan, Change, Fence, Outcome, RunHead, Store, StoreError, StoredEvent};

pub(super) struct SqliteStore {
    path: PathBuf,
    id: String,
    writer: Arc<WriteConnection>,
    readers: Readers,
    reserve: Reserve,
    lock: Mutex<Option<Lock>>,
}

impl SqliteStore {
    /// Opens or makes the file at `path`; `fresh_id` becomes the journal's id if it is new.
    pub(super) async fn open(path: &Path, fresh_id: String, reserve_bytes: u64) -> Result<Self, OpenError> {
        let lock = place::take(path)?;
        Self::open_locked(path, fresh_id, reserve_bytes, Some(lock)).await
    }

    /// As `open`, where the caller answers for who else may write.
    pub(super) async fn open_locked(
        path: &Path,
        fresh_id: String,
        reserve_bytes: u64,
        lock: Option<Lock>,
    ) -> Result<Self, OpenError> {
        let at = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(at, &fresh_id, reserve_bytes, lock)).await;
        opened.unwrap_or_else(|e| Err(OpenError::Unusable { path: path.to_owned(), message: e.to_string() }))
    }

    fn open_blocking(path: PathBuf, fresh_id: &str, reserve_bytes: u64, lock: Option<Lock>) -> Result<Self, OpenError> {
        let reserve = Reserve::beside(&path, reserve_bytes);
        let unusable = |error: Error| open_error(&path, &error);
        let mut connection = open_writer(&path).map_err(unusable)?;
        match bring_up(&mut connection, fresh_id).map_err(unusable)? {
            Brought::UpToDate => {}
            Brought::Newer { found } => return Err(OpenError::NewerSchema { path, found, known: SCHEMA_VERSION }),
        }
        let id = connection.query_row("SELECT journal_id FROM meta", [], |row| row.get(0)).map_err(unusable)?;
        let writer = Arc::new(WriteConnection::new(connection).map_err(unusable)?);
        let readers = Readers::new(&path);
        Ok(Self { path, id, writer, readers, reserve, lock: Mutex::new(lock) })
    }

    fn transact(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        self.writer.transact(|tx, _| changes.iter().map(|change| rows::apply(tx, change)).collect())
    }

    async fn try_raise(&self, lease: &str, token: i64) -> Result<Fence, StoreError> {
        let (writer, lease) = (Arc::clone(&self.writer), lease.to_owned());
        let raise = move || {
            writer.transact(|tx, stands| {
                let outcome = rows::raise(tx, &lease, token)?;
                match outcome {
                    Fence::Raised(number) => *stands = number,
                    Fence::Refused { .. } => {}
                }
                Ok(outcome)
            })
        };
        tokio::task::spawn_blocking(raise).await.map_err(|_| StoreError::Closed)?
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn id(&self) -> &str {
        &self.id
    }

    /// Blocks its thread until the disk has answered.
    async fn commit(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        self.reserve.restore();
        let vital = changes.iter().all(Change::is_vital);
        if !vital && !self.reserve.is_held() {
            return Err(StoreError::Full);
        }
        match self.transact(changes) {
            Err(StoreError::Full) if self.reserve.give_up() && vital => self.transact(changes),
            result => result,
        }
    }

    async fn raise_fence(&self, lease: &str, token: i64) -> Result<Fence, StoreError> {
        match self.try_raise(lease, token).await {
            Err(StoreError::Full) if self.reserve.give_up() => self.try_raise(lease, token).await,
            result => result,
        }
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, StoreError> {
        let run = run.to_owned();
        self.readers.read(move |from| read_head(from, &run)).await
    }

    async fn open_heads(&self) -> Result<Vec<RunHead>, StoreError> {
        self.readers.read(rows::read_open_heads).await
    }

    async fn kept(&self) -> Result<Vec<ObjectId>, StoreError> {
        self.readers.read(rows::read_kept).await
    }

    async fn deleted_before(&self, at: i64, limit: u32) -> Result<Vec<String>, StoreError> {
        self.readers.read(move |from| rows::read_deleted(from, at, limit)).await
    }

    async fn events(&self, run: &str, first: u64, last: u64) -> Result<Vec<StoredEvent>, StoreError> {
        let run = run.to_owned();
        self.readers.read(move |from| read_events(from, &run, first, last)).await
    }

    async fn batch(&self, run: &str, epoch: u64, n: u64) -> Result<Option<BatchSpan>, StoreError> {
        let run = run.to_owned();
        self.readers.read(move |from| rows::read_batch(from, &run, epoch, n)).await
    }

    async fn commits(&self) -> Result<u64, StoreError> {
        self.readers.read(rows::read_commits).await
    }

    /// Blocks its thread as a commit does.
    async fn reopen(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.writer.close();
        self.reserve.give_up_if_short();
        let connection = open_writer(&self.path).map_err(failed)?;
        // What a failed fsync left in the WAL may live in the page cache alone: write all of it to the file
        // anew, so that everything that can be read from here on is on the disk.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)?;
        self.writer.replace(connection);
        self.readers.open();
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close();
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
