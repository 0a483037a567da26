//! The connections to one file: the one that writes, under a lock, and a few that read, lent to one job each.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Error, OpenFlags, TransactionBehavior};
use tokio::sync::Semaphore;

use super::failure::failed;
use super::rows;
use crate::journal::store::StoreError;

/// Readers beside the one writer.
const READERS: u32 = 2;
/// How long another process that has the file open is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the log grows before it is copied into the file: pages that many commits changed are copied once.
const LOG_PAGES: u32 = 4000;
/// Every statement of a connection, each under its own text.
const STATEMENTS: usize = 32;

/// Opens the file to write, or makes it: WAL, fsynced at every commit.
pub(super) fn open_writer(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // Only a file without content can be told to give pages back later.
    let is_new = std::fs::metadata(path).map_or(true, |file| file.len() == 0);
    let connection = open(path, flags)?;
    if is_new {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    Ok(connection)
}

fn open_reader(path: &Path) -> Result<Connection, Error> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.pragma_update(None, "query_only", "ON")?;
    Ok(connection)
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    Ok(connection)
}

/// The connection that writes. Whoever uses it blocks its thread until the disk has answered.
pub(super) struct WriteConnection {
    inner: Mutex<Pen>,
}

struct Pen {
    /// None: closed.
    connection: Option<Connection>,
    /// Number of the fence under which is written: the one that stood at opening, or this store's own.
    fence: u64,
}

impl WriteConnection {
    pub(super) fn new(connection: Connection) -> Result<Self, Error> {
        let fence = rows::fence(&connection)?;
        Ok(Self { inner: Mutex::new(Pen { connection: Some(connection), fence }) })
    }

    /// One durable transaction that is counted, unless another leader raised the fence since. `write` is told the
    /// fence that stands, and may raise it.
    pub(super) fn transact<T>(
        &self,
        write: impl FnOnce(&Connection, &mut u64) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let mut pen = self.lock();
        let mut fence = pen.fence;
        let connection = pen.connection.as_mut().ok_or(StoreError::Closed)?;
        // Rolled back when dropped.
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        if !rows::count_commit(&tx, fence).map_err(failed)? {
            return Err(StoreError::Fenced);
        }
        let written = write(&tx, &mut fence).map_err(failed)?;
        tx.commit().map_err(failed)?;
        pen.fence = fence;
        Ok(written)
    }

    pub(super) fn close(&self) {
        drop(self.lock().connection.take());
    }

    pub(super) fn replace(&self, connection: Connection) {
        self.lock().connection = Some(connection);
    }

    fn lock(&self) -> MutexGuard<'_, Pen> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections that read, opened when they are first needed.
pub(super) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    /// None: closed.
    idle: Arc<Mutex<Option<Vec<Connection>>>>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Self {
        let permits = Arc::new(Semaphore::new(READERS as usize));
        Self { path: path.to_owned(), permits, idle: Arc::new(Mutex::new(Some(Vec::new()))) }
    }

    /// Runs `read` where blocking harms nobody.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (path, idle) = (self.path.clone(), Arc::clone(&self.idle));
        let job = move || {
            // Given back last, so that whoever holds all permits knows that no connection is out.
            let _permit = permit;
            let kept = lock(&idle).as_mut().ok_or(StoreError::Closed)?.pop();
            let connection = kept.map_or_else(|| open_reader(&path), Ok).map_err(failed)?;
            let result = read(&connection).map_err(failed);
            if let Some(idle) = lock(&idle).as_mut() {
                idle.push(connection);
            }
            result
        };
        // A runtime that shuts down runs no more jobs.
        tokio::task::spawn_blocking(job).await.map_err(|_| StoreError::Closed)?
    }

    /// Waits for those in use and closes all; nothing is read until [`Readers::open`].
    pub(super) async fn close(&self) {
        // Never fails: the semaphore is never closed.
        let all = self.permits.acquire_many(READERS).await;
        drop(lock(&self.idle).take());
        drop(all);
    }

    pub(super) fn open(&self) {
        lock(&self.idle).get_or_insert_default();
    }
}

fn lock(idle: &Mutex<Option<Vec<Connection>>>) -> MutexGuard<'_, Option<Vec<Connection>>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
