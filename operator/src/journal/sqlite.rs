//! The journal's rows in one SQLite file: WAL, fsynced at every commit. Knows SQL, and no event.

mod failure;
mod rows;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::plan::ObjectId;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, Sqlite, Transaction};

pub(super) use self::failure::is_corrupt;
use self::failure::{failed, open_error};
use self::rows::{apply, head_of, number, raise, stored};
pub(super) use self::rows::{read_events, read_heads};
pub(super) use self::schema::SCHEMA_VERSION;
use self::schema::{Brought, bring_up};
use super::error::OpenError;
use super::place::{self, Lock};
use super::reserve::Reserve;
use super::store::{BatchSpan, Change, Fence, Outcome, RunHead, Store, StoreError, StoredEvent};

/// Readers beside the one writer.
const READERS: u32 = 2;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct SqliteStore {
    path: PathBuf,
    id: String,
    pools: RwLock<Pools>,
    /// Number of the fence under which this store writes: the one that stood when it was opened, or its own.
    fence: AtomicU64,
    reserve: Reserve,
    lock: Mutex<Option<Lock>>,
}

#[derive(Clone)]
struct Pools {
    writer: SqlitePool,
    readers: SqlitePool,
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
        let reserve = Reserve::beside(path, reserve_bytes);
        let unusable = |error: sqlx::Error| open_error(path, &error);
        let pools = Pools::open(path).await.map_err(unusable)?;
        match bring_up(&pools.writer, &fresh_id).await.map_err(unusable)? {
            Brought::UpToDate => {}
            Brought::Newer { found } => {
                pools.close().await;
                return Err(OpenError::NewerSchema { path: path.to_owned(), found, known: SCHEMA_VERSION });
            }
        }
        let row = sqlx::query("SELECT journal_id FROM meta").fetch_one(&pools.writer).await.map_err(unusable)?;
        let id = row.try_get(0).map_err(unusable)?;
        let fence = rows::fence(&mut *pools.writer.acquire().await.map_err(unusable)?).await.map_err(unusable)?;
        Ok(Self {
            path: path.to_owned(),
            id,
            pools: RwLock::new(pools),
            fence: AtomicU64::new(fence),
            reserve,
            lock: Mutex::new(lock),
        })
    }

    fn pools(&self) -> Pools {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn transact(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        let mut writer = self.pools().writer.acquire().await.map_err(failed)?;
        let result = write(&mut writer, self.fence.load(Ordering::Acquire), changes).await;
        give_back(writer, result).await
    }

    async fn try_raise(&self, lease: &str, token: i64) -> Result<Fence, StoreError> {
        let mut writer = self.pools().writer.acquire().await.map_err(failed)?;
        let result = write_fence(&mut writer, self.fence.load(Ordering::Acquire), lease, token).await;
        let outcome = give_back(writer, result).await?;
        match outcome {
            Fence::Raised(number) => self.fence.store(number, Ordering::Release),
            Fence::Refused { .. } => {}
        }
        Ok(outcome)
    }
}

async fn write(writer: &mut SqliteConnection, fence: u64, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
    let mut tx = begin(writer, fence).await?;
    let mut outcomes = Vec::with_capacity(changes.len());
    for change in changes {
        outcomes.push(apply(&mut tx, change).await.map_err(failed)?);
    }
    tx.commit().await.map_err(failed)?;
    Ok(outcomes)
}

async fn write_fence(writer: &mut SqliteConnection, fence: u64, lease: &str, token: i64) -> Result<Fence, StoreError> {
    let mut tx = begin(writer, fence).await?;
    let outcome = raise(&mut tx, lease, token).await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(outcome)
}

/// A transaction that writes and is counted, unless another leader raised the fence since.
async fn begin(writer: &mut SqliteConnection, fence: u64) -> Result<Transaction<'_, Sqlite>, StoreError> {
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    if rows::count_commit(&mut tx, fence).await.map_err(failed)? { Ok(tx) } else { Err(StoreError::Fenced) }
}

/// Where space runs out SQLite rolls back by itself; sqlx does not notice and would not begin again on that
/// connection.
async fn give_back<T>(writer: PoolConnection<Sqlite>, result: Result<T, StoreError>) -> Result<T, StoreError> {
    if result.is_err() {
        // What closing says about a failed transaction adds nothing to the error that is there.
        let _ = writer.close().await;
    }
    result
}

impl Pools {
    async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(ACQUIRE_TIMEOUT)
            // No query of ours is worth a log line with its text; errors come back as values.
            .pragma("trusted_schema", "OFF");
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        // Only a file without content can be told to give pages back later.
        let is_new = std::fs::metadata(path).map_or(true, |file| file.len() == 0);
        let to_write =
            if is_new { options.clone().auto_vacuum(SqliteAutoVacuum::Incremental) } else { options.clone() };
        let writer = pool(1).connect_with(to_write).await?;
        let readers = pool(READERS).connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self { writer, readers })
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn id(&self) -> &str {
        &self.id
    }

    async fn commit(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        self.reserve.restore();
        let vital = changes.iter().all(Change::is_vital);
        if !vital && !self.reserve.is_held() {
            return Err(StoreError::Full);
        }
        match self.transact(changes).await {
            Err(StoreError::Full) if self.reserve.give_up() && vital => self.transact(changes).await,
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
        let query = sqlx::query("SELECT * FROM heads WHERE run = ?").bind(run);
        let row = query.fetch_optional(&self.pools().readers).await.map_err(failed)?;
        row.as_ref().map(head_of).transpose().map_err(failed)
    }

    async fn open_heads(&self) -> Result<Vec<RunHead>, StoreError> {
        let query = sqlx::query("SELECT * FROM heads WHERE ended = 0 OR pod_name IS NOT NULL ORDER BY rowid");
        let rows = query.fetch_all(&self.pools().readers).await.map_err(failed)?;
        // One row that cannot be read is its run's damage; whoever asks for that run is told.
        let readable = |row: &SqliteRow| head_of(row).inspect_err(|error| tracing::error!(%error, "damaged head"));
        Ok(rows.iter().filter_map(|row| readable(row).ok()).collect())
    }

    async fn kept(&self) -> Result<Vec<ObjectId>, StoreError> {
        let query = sqlx::query("SELECT namespace, name, run FROM heads WHERE deleted_at IS NULL ORDER BY rowid");
        let rows = query.fetch_all(&self.pools().readers).await.map_err(failed)?;
        rows.iter().map(rows::run_of).collect::<Result<_, _>>().map_err(failed)
    }

    async fn deleted_before(&self, at: i64, limit: u32) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query("SELECT run FROM heads WHERE deleted_at <= ? ORDER BY deleted_at LIMIT ?");
        let rows = query.bind(at).bind(limit).fetch_all(&self.pools().readers).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
    }

    async fn events(&self, run: &str, first: u64, last: u64) -> Result<Vec<StoredEvent>, StoreError> {
        let rows = read_events(&self.pools().readers, run, first, last).await;
        rows.map_err(failed)
    }

    async fn batch(&self, run: &str, epoch: u64, n: u64) -> Result<Option<BatchSpan>, StoreError> {
        let query = sqlx::query("SELECT first_seq, last_seq FROM batches WHERE run = ? AND epoch = ? AND n = ?");
        let query = query.bind(run).bind(stored(epoch)).bind(stored(n));
        let row = query.fetch_optional(&self.pools().readers).await.map_err(failed)?;
        let span = |row: &SqliteRow| {
            Ok(BatchSpan { first_seq: number(row, "first_seq")?, last_seq: number(row, "last_seq")? })
        };
        row.as_ref().map(span).transpose().map_err(failed)
    }

    async fn commits(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT commits FROM meta").fetch_one(&self.pools().readers).await.map_err(failed)?;
        number(&row, "commits").map_err(failed)
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.pools().close().await;
        self.reserve.give_up_if_short();
        let pools = Pools::open(&self.path).await.map_err(failed)?;
        // What a failed fsync left in the WAL may live in the page cache alone: write all of it to the file
        // anew, so that everything that can be read from here on is on the disk.
        let checkpoint = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&pools.writer).await;
        if let Err(error) = checkpoint {
            pools.close().await;
            return Err(failed(error));
        }
        *self.pools.write().unwrap_or_else(PoisonError::into_inner) = pools;
        Ok(())
    }

    async fn close(&self) {
        self.pools().close().await;
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
