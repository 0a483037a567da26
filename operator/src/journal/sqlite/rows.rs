//! The statements of one write transaction, and rows read back as values.

use belay_protocol::Digest;
use belay_protocol::chain::Head;
use belay_protocol::plan::ObjectId;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteExecutor, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};

use crate::journal::store::{Append, BatchKey, Change, Fence, Outcome, RunHead, StoredEvent};

/// Events of one statement: batches of usual size take one, and few statements are kept prepared.
const INSERT_ROWS: usize = 8;
/// The most rows that forgetting removes in one transaction: it holds up every other run.
const FORGET_ROWS: i64 = 512;

pub(super) async fn apply(tx: &mut SqliteConnection, change: &Change) -> Result<Outcome, sqlx::Error> {
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
        Change::MarkDeleted { run, at } => {
            let marked =
                sqlx::query("UPDATE heads SET deleted_at = ? WHERE run = ? AND ended = 1 AND deleted_at IS NULL");
            marked.bind(at).bind(run).execute(&mut *tx).await?;
            Ok(Outcome::Done)
        }
        Change::Forget { run } => forget(tx, run).await,
    }
}

/// Some rows of a run, the oldest first, and its head with the last of them. What is cut off in between is
/// gone on with: the mark on the head stays until then.
async fn forget(tx: &mut SqliteConnection, run: &str) -> Result<Outcome, sqlx::Error> {
    let some =
        sqlx::query("DELETE FROM events WHERE run = ? AND seq < (SELECT MIN(seq) FROM events WHERE run = ?) + ?");
    let gone = some.bind(run).bind(run).bind(FORGET_ROWS).execute(&mut *tx).await?.rows_affected();
    let rest = sqlx::query("SELECT 1 FROM events WHERE run = ? LIMIT 1").bind(run);
    let outcome = if gone > 0 && rest.fetch_optional(&mut *tx).await?.is_some() {
        Outcome::More
    } else {
        for table in ["DELETE FROM batches WHERE run = ?", "DELETE FROM heads WHERE run = ?"] {
            sqlx::query(table).bind(run).execute(&mut *tx).await?;
        }
        Outcome::Done
    };
    // Does nothing to a file of version 1, which uses its free pages again but never gives them back.
    sqlx::query("PRAGMA incremental_vacuum(1024)").execute(&mut *tx).await?;
    Ok(outcome)
}

/// Number of the fence that stands. 0: none was ever raised.
pub(super) async fn fence(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let row = sqlx::query("SELECT COALESCE(MAX(number), 0) AS number FROM fences").fetch_one(&mut *connection).await?;
    number(&row, "number")
}

/// The next commit's number is taken, and `fence` still stands. One statement, since every commit waits for it.
pub(super) async fn count_commit(tx: &mut SqliteConnection, fence: u64) -> Result<bool, sqlx::Error> {
    let count =
        sqlx::query("UPDATE meta SET commits = commits + 1 WHERE (SELECT COALESCE(MAX(number), 0) FROM fences) = ?");
    Ok(count.bind(stored(fence)).execute(&mut *tx).await?.rows_affected() == 1)
}

/// Raises the fence for the holder of `lease`. Within one Lease numbers must not go back, and a Lease that
/// another one replaced never comes again.
pub(super) async fn raise(tx: &mut SqliteConnection, lease: &str, token: i64) -> Result<Fence, sqlx::Error> {
    let stands = fence(tx).await?;
    let known = sqlx::query("SELECT number, token FROM fences WHERE lease = ?").bind(lease);
    if let Some(row) = known.fetch_optional(&mut *tx).await? {
        let highest: i64 = row.try_get("token")?;
        if number(&row, "number")? != stands || token < highest {
            return Ok(Fence::Refused { highest });
        }
    }
    sqlx::query(
        "INSERT INTO fences (number, lease, token) VALUES (?, ?, ?) \
         ON CONFLICT (lease) DO UPDATE SET number = excluded.number, token = excluded.token",
    )
    .bind(stored(stands + 1))
    .bind(lease)
    .bind(token)
    .execute(&mut *tx)
    .await?;
    Ok(Fence::Raised(stands + 1))
}

/// The head moves first: where it is another one, nothing else is written.
async fn add(tx: &mut SqliteConnection, append: &Append) -> Result<Outcome, sqlx::Error> {
    if !move_head(tx, append).await? {
        return refused(tx, &append.next.run.uid).await;
    }
    let run = &append.next.run.uid;
    for records in append.records.chunks(INSERT_ROWS) {
        let mut insert = QueryBuilder::new("INSERT INTO events (run, seq, epoch, batch, bytes, hash) ");
        insert.push_values(records, |mut row, sealed| {
            row.push_bind(run)
                .push_bind(stored(sealed.record.seq))
                .push_bind(stored(append.next.epoch))
                .push_bind(append.batch.map(|batch| stored(batch.n)))
                .push_bind(&sealed.bytes)
                .push_bind(sealed.hash.as_bytes());
        });
        insert.build().execute(&mut *tx).await?;
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

/// Rows of a run with `first <= seq <= last`, in order.
pub(in crate::journal) async fn read_events(
    from: impl SqliteExecutor<'_>,
    run: &str,
    first: u64,
    last: u64,
) -> Result<Vec<StoredEvent>, sqlx::Error> {
    let query = sqlx::query("SELECT seq, bytes, hash FROM events WHERE run = ? AND seq BETWEEN ? AND ? ORDER BY seq");
    let rows = query.bind(run).bind(stored(first)).bind(stored(last)).fetch_all(from).await?;
    let event = |row: &SqliteRow| {
        Ok(StoredEvent { seq: number(row, "seq")?, bytes: row.try_get("bytes")?, hash: row.try_get("hash")? })
    };
    rows.iter().map(event).collect()
}

/// The heads that `query` selects, whole rows.
pub(in crate::journal) async fn read_heads(
    from: impl SqliteExecutor<'_>,
    query: Query<'_, Sqlite, SqliteArguments>,
) -> Result<Vec<RunHead>, sqlx::Error> {
    query.fetch_all(from).await?.iter().map(head_of).collect()
}

pub(super) fn head_of(row: &SqliteRow) -> Result<RunHead, sqlx::Error> {
    let hash: Vec<u8> = row.try_get("hash")?;
    let hash = Digest::try_from(hash.as_slice()).map_err(|e| sqlx::Error::Decode(e.into()))?;
    Ok(RunHead {
        run: run_of(row)?,
        chain: Head { seq: number(row, "seq")?, hash, at: row.try_get("at")? },
        epoch: number(row, "epoch")?,
        batch: number(row, "batch")?,
        session: number(row, "session")?,
        instance: row.try_get("instance")?,
        pod_name: row.try_get("pod_name")?,
        ended: row.try_get("ended")?,
    })
}

pub(super) fn run_of(row: &SqliteRow) -> Result<ObjectId, sqlx::Error> {
    Ok(ObjectId { namespace: row.try_get("namespace")?, name: row.try_get("name")?, uid: row.try_get("run")? })
}

pub(super) fn number(row: &SqliteRow, column: &'static str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|e| sqlx::Error::Decode(e.into()))
}

/// SQLite's integers are signed; ours count from 0 and never get near 2^63.
pub(super) fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
