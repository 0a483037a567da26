//! The statements of one write transaction, and rows read back as values.

use belay_protocol::Digest;
use belay_protocol::chain::{Head, SealedRecord};
use belay_protocol::plan::ObjectId;
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension as _, Params, Row, ToSql, params};

use crate::journal::store::{Append, BatchSpan, Change, Fence, Outcome, RunHead, StoredEvent};

/// The most rows that forgetting removes in one transaction: it holds up every other run.
const FORGET_ROWS: i64 = 512;

pub(super) fn apply(tx: &Connection, change: &Change) -> Result<Outcome, Error> {
    match change {
        Change::Append(append) => add(tx, append),
        Change::RaiseSession { run, epoch } => {
            let sql = "UPDATE heads SET session = session + 1 \
                       WHERE run = ? AND epoch = ? AND pod_name IS NOT NULL RETURNING session";
            let mut raise = tx.prepare_cached(sql)?;
            let session = raise.query_row(params![run, stored(*epoch)], |row| number(row, "session")).optional()?;
            session.map_or_else(|| refused(tx, run), |session| Ok(Outcome::Session(session)))
        }
        Change::MarkDeleted { run, at } => {
            let sql = "UPDATE heads SET deleted_at = ? WHERE run = ? AND ended = 1 AND deleted_at IS NULL";
            execute(tx, sql, params![at, run])?;
            Ok(Outcome::Done)
        }
        Change::Forget { run } => forget(tx, run),
    }
}

/// Some rows of a run, the oldest first, and its head with the last of them. What is cut off in between is
/// gone on with: the mark on the head stays until then.
fn forget(tx: &Connection, run: &str) -> Result<Outcome, Error> {
    let some = "DELETE FROM events WHERE run = ? AND seq < (SELECT MIN(seq) FROM events WHERE run = ?) + ?";
    let gone = execute(tx, some, params![run, run, FORGET_ROWS])?;
    let mut rest = tx.prepare_cached("SELECT 1 FROM events WHERE run = ? LIMIT 1")?;
    let outcome = if gone > 0 && rest.exists([run])? {
        Outcome::More
    } else {
        execute(tx, "DELETE FROM heads WHERE run = ?", [run])?;
        Outcome::Done
    };
    // Does nothing to a file of version 1, which uses its free pages again but never gives them back.
    tx.execute_batch("PRAGMA incremental_vacuum(1024)")?;
    Ok(outcome)
}

/// Number of the fence that stands. 0: none was ever raised.
pub(super) fn fence(connection: &Connection) -> Result<u64, Error> {
    let sql = "SELECT COALESCE(MAX(number), 0) AS number FROM fences";
    connection.prepare_cached(sql)?.query_row([], |row| number(row, "number"))
}

/// The next commit's number is taken, and `fence` still stands. One statement, since every commit waits for it.
pub(super) fn count_commit(tx: &Connection, fence: u64) -> Result<bool, Error> {
    let sql = "UPDATE meta SET commits = commits + 1 WHERE (SELECT COALESCE(MAX(number), 0) FROM fences) = ?";
    Ok(execute(tx, sql, [stored(fence)])? == 1)
}

/// Raises the fence for the holder of `lease`. Within one Lease numbers must not go back, and a Lease that
/// another one replaced never comes again.
pub(super) fn raise(tx: &Connection, lease: &str, token: i64) -> Result<Fence, Error> {
    let stands = fence(tx)?;
    let mut known = tx.prepare_cached("SELECT number, token FROM fences WHERE lease = ?")?;
    let known = known.query_row([lease], |row| Ok((number(row, "number")?, row.get::<_, i64>("token")?)));
    if let Some((held, highest)) = known.optional()?
        && (held != stands || token < highest)
    {
        return Ok(Fence::Refused { highest });
    }
    let sql = "INSERT INTO fences (number, lease, token) VALUES (?, ?, ?) \
               ON CONFLICT (lease) DO UPDATE SET number = excluded.number, token = excluded.token";
    execute(tx, sql, params![stored(stands + 1), lease, token])?;
    Ok(Fence::Raised(stands + 1))
}

/// The head moves first: where it is another one, nothing else is written.
fn add(tx: &Connection, append: &Append) -> Result<Outcome, Error> {
    let run = &append.next.run.uid;
    if !move_head(tx, append)? {
        return refused(tx, run);
    }
    let mut insert =
        tx.prepare_cached("INSERT INTO events (run, seq, epoch, batch, bytes, hash) VALUES (?, ?, ?, ?, ?, ?)")?;
    let (epoch, batch) = (stored(append.next.epoch), append.batch.map(|batch| stored(batch.n)));
    for SealedRecord { record, bytes, hash } in &append.records {
        insert.execute(params![run, stored(record.seq), epoch, batch, bytes, hash.as_bytes()])?;
    }
    Ok(Outcome::Done)
}

fn move_head(tx: &Connection, append: &Append) -> Result<bool, Error> {
    let (next, expected) = (&append.next, &append.expected);
    let (seq, epoch, batch) = (stored(next.chain.seq), stored(next.epoch), stored(next.batch));
    let hash = next.chain.hash.as_bytes();
    let moved: [&dyn ToSql; 11] = [
        &next.run.namespace,
        &next.run.name,
        &seq,
        &hash,
        &next.chain.at,
        &epoch,
        &batch,
        &next.instance,
        &next.pod_name,
        &next.ended,
        &next.run.uid,
    ];
    if expected.seq == 0 {
        let sql = "INSERT INTO heads (namespace, name, seq, hash, at, epoch, batch, instance, pod_name, ended, session, run) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, ?11) ON CONFLICT DO NOTHING";
        return Ok(execute(tx, sql, moved)? == 1);
    }
    let sql = "UPDATE heads SET namespace = ?1, name = ?2, seq = ?3, hash = ?4, at = ?5, epoch = ?6, batch = ?7, \
               instance = ?8, pod_name = ?9, ended = ?10 \
               WHERE run = ?11 AND seq = ?12 AND hash = ?13 AND (?14 IS NULL OR (epoch = ?14 AND session = ?15 AND batch < ?7))";
    let (behind, stands) = (stored(expected.seq), expected.hash.as_bytes());
    let of_epoch = append.batch.map(|batch| stored(batch.epoch));
    let of_session = append.batch.map(|batch| stored(batch.session));
    let where_it_is: [&dyn ToSql; 4] = [&behind, &stands, &of_epoch, &of_session];
    Ok(execute(tx, sql, rusqlite::params_from_iter(moved.into_iter().chain(where_it_is)))? == 1)
}

fn refused(tx: &Connection, run: &str) -> Result<Outcome, Error> {
    Ok(Outcome::Refused(read_head(tx, run)?.map(Box::new)))
}

/// Executes a statement that is kept prepared. Answers how many rows it changed.
fn execute(tx: &Connection, sql: &str, values: impl Params) -> Result<usize, Error> {
    tx.prepare_cached(sql)?.execute(values)
}

/// Rows of a run with `first <= seq <= last`, in order.
pub(in crate::journal) fn read_events(
    from: &Connection,
    run: &str,
    first: u64,
    last: u64,
) -> Result<Vec<StoredEvent>, Error> {
    let sql = "SELECT seq, bytes, hash FROM events WHERE run = ? AND seq BETWEEN ? AND ? ORDER BY seq";
    let mut query = from.prepare_cached(sql)?;
    let event =
        |row: &Row<'_>| Ok(StoredEvent { seq: number(row, "seq")?, bytes: row.get("bytes")?, hash: row.get("hash")? });
    query.query_map(params![run, stored(first), stored(last)], event)?.collect()
}

pub(in crate::journal) fn read_head(from: &Connection, run: &str) -> Result<Option<RunHead>, Error> {
    from.prepare_cached("SELECT * FROM heads WHERE run = ?")?.query_row([run], head_of).optional()
}

/// Every head that is named so, oldest run first: deleted runs may have had the name too.
pub(in crate::journal) fn read_heads_named(
    from: &Connection,
    namespace: &str,
    name: &str,
) -> Result<Vec<RunHead>, Error> {
    let mut query = from.prepare_cached("SELECT * FROM heads WHERE namespace = ? AND name = ? ORDER BY rowid")?;
    query.query_map([namespace, name], head_of)?.collect()
}

/// As [`crate::journal::store::Store::open_heads`]. One that cannot be read is its run's damage; whoever asks for
/// that run is told.
pub(super) fn read_open_heads(from: &Connection) -> Result<Vec<RunHead>, Error> {
    let sql = "SELECT * FROM heads WHERE ended = 0 OR pod_name IS NOT NULL ORDER BY rowid";
    let mut query = from.prepare_cached(sql)?;
    let mut rows = query.query([])?;
    let mut heads = Vec::new();
    while let Some(row) = rows.next()? {
        match head_of(row) {
            Ok(head) => heads.push(head),
            Err(error) => tracing::error!(%error, "damaged head"),
        }
    }
    Ok(heads)
}

pub(super) fn read_kept(from: &Connection) -> Result<Vec<ObjectId>, Error> {
    let sql = "SELECT namespace, name, run FROM heads WHERE deleted_at IS NULL ORDER BY rowid";
    from.prepare_cached(sql)?.query_map([], run_of)?.collect()
}

pub(super) fn read_deleted(from: &Connection, at: i64, limit: u32) -> Result<Vec<String>, Error> {
    let sql = "SELECT run FROM heads WHERE deleted_at <= ? ORDER BY deleted_at LIMIT ?";
    from.prepare_cached(sql)?.query_map(params![at, limit], |row| row.get(0))?.collect()
}

/// Looks through the run's rows: only a batch that comes again is asked for.
pub(super) fn read_batch(from: &Connection, run: &str, epoch: u64, n: u64) -> Result<Option<BatchSpan>, Error> {
    let sql = "SELECT MIN(seq) AS first, MAX(seq) AS last FROM events WHERE run = ? AND epoch = ? AND batch = ? \
               HAVING MIN(seq) IS NOT NULL";
    let span = |row: &Row<'_>| Ok(BatchSpan { first_seq: number(row, "first")?, last_seq: number(row, "last")? });
    from.prepare_cached(sql)?.query_row(params![run, stored(epoch), stored(n)], span).optional()
}

pub(super) fn read_commits(from: &Connection) -> Result<u64, Error> {
    from.prepare_cached("SELECT commits FROM meta")?.query_row([], |row| number(row, "commits"))
}

fn head_of(row: &Row<'_>) -> Result<RunHead, Error> {
    let hash: Vec<u8> = row.get("hash")?;
    let hash = Digest::try_from(hash.as_slice()).map_err(|e| unreadable(row, "hash", Type::Blob, e))?;
    Ok(RunHead {
        run: run_of(row)?,
        chain: Head { seq: number(row, "seq")?, hash, at: row.get("at")? },
        epoch: number(row, "epoch")?,
        batch: number(row, "batch")?,
        session: number(row, "session")?,
        instance: row.get("instance")?,
        pod_name: row.get("pod_name")?,
        ended: row.get("ended")?,
    })
}

fn run_of(row: &Row<'_>) -> Result<ObjectId, Error> {
    Ok(ObjectId { namespace: row.get("namespace")?, name: row.get("name")?, uid: row.get("run")? })
}

fn number(row: &Row<'_>, column: &'static str) -> Result<u64, Error> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|e| unreadable(row, column, Type::Integer, e))
}

fn unreadable(
    row: &Row<'_>,
    column: &str,
    found: Type,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    let index = row.as_ref().column_index(column).unwrap_or_default();
    Error::FromSqlConversionFailure(index, found, Box::new(error))
}

/// SQLite's integers are signed; ours count from 0 and never get near 2^63.
fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
