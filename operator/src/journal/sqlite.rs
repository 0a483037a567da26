//! The journal's rows in one SQLite file: WAL, fsynced at every commit. Knows SQL, and no event.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::Digest;
use belay_protocol::chain::Head;
use belay_protocol::plan::ObjectId;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Executor as _, Row as _};

use super::error::OpenError;
use super::place::{self, Lock};
use super::store::{Append, BatchKey, BatchSpan, Change, Outcome, RunHead, Store, StoreError, StoredEvent};

/// The shape of the tables that this build writes.
pub(super) const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");
/// Readers beside the one writer.
const READERS: u32 = 2;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct SqliteStore {
    path: PathBuf,
    id: String,
    pools: RwLock<Pools>,
    lock: Mutex<Option<Lock>>,
}

#[derive(Clone)]
struct Pools {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens or makes the file at `path`; `fresh_id` becomes the journal's id if it is new.
    pub(super) async fn open(path: &Path, fresh_id: String) -> Result<Self, OpenError> {
        let lock = place::take(path)?;
        let unusable = |e: sqlx::Error| OpenError::Unusable { path: path.to_owned(), message: e.to_string() };
        let pools = Pools::open(path).await.map_err(unusable)?;
        let found = schema_version(&pools.writer).await.map_err(unusable)?;
        match found {
            None => create(&pools.writer, &fresh_id).await.map_err(unusable)?,
            Some(SCHEMA_VERSION) => {}
            Some(found) => {
                pools.close().await;
                return Err(OpenError::NewerSchema { path: path.to_owned(), found, known: SCHEMA_VERSION });
            }
        }
        let row = sqlx::query("SELECT journal_id FROM meta").fetch_one(&pools.writer).await.map_err(unusable)?;
        let id = row.try_get(0).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), id, pools: RwLock::new(pools), lock: Mutex::new(Some(lock)) })
    }

    fn pools(&self) -> Pools {
        self.pools.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
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
        let writer = pool(1).connect_with(options.clone()).await?;
        let readers = pool(READERS).connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self { writer, readers })
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

async fn schema_version(writer: &SqlitePool) -> Result<Option<i64>, sqlx::Error> {
    let table = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta'");
    if table.fetch_optional(writer).await?.is_none() {
        return Ok(None);
    }
    sqlx::query("SELECT schema_version FROM meta").fetch_one(writer).await?.try_get(0).map(Some)
}

async fn create(writer: &SqlitePool, id: &str) -> Result<(), sqlx::Error> {
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    tx.execute(sqlx::raw_sql(SCHEMA)).await?;
    sqlx::query("INSERT INTO meta (only, journal_id, commits, schema_version) VALUES (1, ?, 0, ?)")
        .bind(id)
        .bind(SCHEMA_VERSION)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

#[async_trait]
impl Store for SqliteStore {
    fn id(&self) -> &str {
        &self.id
    }

    async fn commit(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.pools().writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let mut outcomes = Vec::with_capacity(changes.len());
        for change in changes {
            outcomes.push(apply(&mut tx, change).await.map_err(failed)?);
        }
        sqlx::query("UPDATE meta SET commits = commits + 1").execute(&mut *tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(outcomes)
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, StoreError> {
        let query = sqlx::query("SELECT * FROM heads WHERE run = ?").bind(run);
        let row = query.fetch_optional(&self.pools().readers).await.map_err(failed)?;
        row.as_ref().map(head_of).transpose().map_err(failed)
    }

    async fn open_heads(&self) -> Result<Vec<RunHead>, StoreError> {
        let query = sqlx::query("SELECT * FROM heads WHERE ended = 0 OR pod_name IS NOT NULL ORDER BY rowid");
        let rows = query.fetch_all(&self.pools().readers).await.map_err(failed)?;
        rows.iter().map(head_of).collect::<Result<_, _>>().map_err(failed)
    }

    async fn events(&self, run: &str, first: u64, last: u64) -> Result<Vec<StoredEvent>, StoreError> {
        let query =
            sqlx::query("SELECT seq, bytes, hash FROM events WHERE run = ? AND seq BETWEEN ? AND ? ORDER BY seq");
        let query = query.bind(run).bind(stored(first)).bind(stored(last));
        let rows = query.fetch_all(&self.pools().readers).await.map_err(failed)?;
        let event = |row: &SqliteRow| {
            Ok(StoredEvent { seq: number(row, "seq")?, bytes: row.try_get("bytes")?, hash: row.try_get("hash")? })
        };
        rows.iter().map(event).collect::<Result<_, _>>().map_err(failed)
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

async fn apply(tx: &mut SqliteConnection, change: &Change) -> Result<Outcome, sqlx::Error> {
    match change {
        Change::Append(append) => add(tx, append).await,
        Change::RaiseSession { run, epoch } => {
            let raised = sqlx::query(
                "UPDATE heads SET session = session + 1 WHERE run = ? AND epoch = ? AND pod_name IS NOT NULL RETURNING session",
            );
            let row = raised.bind(run).bind(stored(*epoch)).fetch_optional(&mut *tx).await?;
            match row {
                Some(row) => Ok(Outcome::Session(number(&row, "session")?)),
                None => refused(tx, run).await,
            }
        }
        Change::Forget { run } => {
            for table in [
                "DELETE FROM events WHERE run = ?",
                "DELETE FROM batches WHERE run = ?",
                "DELETE FROM heads WHERE run = ?",
            ] {
                sqlx::query(table).bind(run).execute(&mut *tx).await?;
            }
            Ok(Outcome::Done)
        }
    }
}

/// The head moves first: where it is another one, nothing else is written.
async fn add(tx: &mut SqliteConnection, append: &Append) -> Result<Outcome, sqlx::Error> {
    if !move_head(tx, append).await? {
        return refused(tx, &append.next.run.uid).await;
    }
    let run = &append.next.run.uid;
    for sealed in &append.records {
        sqlx::query("INSERT INTO events (run, seq, epoch, batch, bytes, hash) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(run)
            .bind(stored(sealed.record.seq))
            .bind(stored(append.next.epoch))
            .bind(append.batch.map(|batch| stored(batch.n)))
            .bind(&sealed.bytes)
            .bind(sealed.hash.as_bytes())
            .execute(&mut *tx)
            .await?;
    }
    if let Some(BatchKey { epoch, n, .. }) = append.batch {
        sqlx::query("INSERT INTO batches (run, epoch, n, first_seq, last_seq) VALUES (?, ?, ?, ?, ?)")
            .bind(run)
            .bind(stored(epoch))
            .bind(stored(n))
            .bind(stored(append.expected.seq + 1))
            .bind(stored(append.next.chain.seq))
            .execute(&mut *tx)
            .await?;
    }
    Ok(Outcome::Done)
}

async fn move_head(tx: &mut SqliteConnection, append: &Append) -> Result<bool, sqlx::Error> {
    let next = &append.next;
    let query = if append.expected.seq == 0 {
        sqlx::query(
            "INSERT INTO heads (namespace, name, seq, hash, at, epoch, batch, instance, pod_name, ended, session, run) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?) ON CONFLICT DO NOTHING",
        )
    } else {
        sqlx::query(
            "UPDATE heads SET namespace = ?, name = ?, seq = ?, hash = ?, at = ?, epoch = ?, batch = ?, instance = ?, \
             pod_name = ?, ended = ? WHERE run = ? AND seq = ? AND hash = ? AND (? IS NULL OR (epoch = ? AND session = ?))",
        )
    };
    let query = query
        .bind(&next.run.namespace)
        .bind(&next.run.name)
        .bind(stored(next.chain.seq))
        .bind(next.chain.hash.as_bytes())
        .bind(next.chain.at)
        .bind(stored(next.epoch))
        .bind(stored(next.batch))
        .bind(next.instance.as_deref())
        .bind(next.pod_name.as_deref())
        .bind(next.ended)
        .bind(&next.run.uid);
    let query = if append.expected.seq == 0 {
        query
    } else {
        query
            .bind(stored(append.expected.seq))
            .bind(append.expected.hash.as_bytes())
            .bind(append.batch.map(|batch| stored(batch.n)))
            .bind(append.batch.map(|batch| stored(batch.epoch)))
            .bind(append.batch.map(|batch| stored(batch.session)))
    };
    Ok(query.execute(&mut *tx).await?.rows_affected() == 1)
}

async fn refused(tx: &mut SqliteConnection, run: &str) -> Result<Outcome, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM heads WHERE run = ?").bind(run).fetch_optional(&mut *tx).await?;
    Ok(Outcome::Refused(row.as_ref().map(head_of).transpose()?.map(Box::new)))
}

fn head_of(row: &SqliteRow) -> Result<RunHead, sqlx::Error> {
    let hash: Vec<u8> = row.try_get("hash")?;
    let hash = Digest::try_from(hash.as_slice()).map_err(|e| sqlx::Error::Decode(e.into()))?;
    Ok(RunHead {
        run: ObjectId { namespace: row.try_get("namespace")?, name: row.try_get("name")?, uid: row.try_get("run")? },
        chain: Head { seq: number(row, "seq")?, hash, at: row.try_get("at")? },
        epoch: number(row, "epoch")?,
        batch: number(row, "batch")?,
        session: number(row, "session")?,
        instance: row.try_get("instance")?,
        pod_name: row.try_get("pod_name")?,
        ended: row.try_get("ended")?,
    })
}

fn number(row: &SqliteRow, column: &'static str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|e| sqlx::Error::Decode(e.into()))
}

/// SQLite's integers are signed; ours count from 0 and never get near 2^63.
fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Primary result codes: <https://www.sqlite.org/rescode.html>.
#[allow(clippy::needless_pass_by_value)] // for map_err
fn failed(error: sqlx::Error) -> StoreError {
    const FULL: i64 = 13;
    match &error {
        sqlx::Error::PoolClosed => StoreError::Closed,
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse::<i64>().ok());
            if code.is_some_and(|code| code & 0xff == FULL) {
                StoreError::Full
            } else {
                StoreError::Io(error.to_string())
            }
        }
        _ => StoreError::Io(error.to_string()), // foreign, non-exhaustive enum: unknown means assume the worst
    }
}
