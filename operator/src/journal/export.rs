//! Reads one run out of a journal that another process has open: no lock, nothing written, one snapshot.

use std::path::{Path, PathBuf};
use std::time::Duration;

use belay_protocol::chain::Head;
use belay_protocol::export;
use belay_protocol::plan::ObjectId;
use rusqlite::{Connection, OpenFlags};

use super::chain::{check_end, open_rows};
use super::error::Damage;
use super::sqlite::{SCHEMA_VERSION, is_corrupt, read_events, read_head, read_heads_named};
use super::store::RunHead;

const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("there is no journal at {}: run this in the operator's pod, or say --data-dir", .0.display())]
    Missing(PathBuf),
    #[error(
        "the journal has tables of version {found}, this build reads {SCHEMA_VERSION}: use the operator's own build"
    )]
    Schema { found: i64 },
    #[error(
        "the journal holds no run {0}: name it NAMESPACE/NAME or by its uid; rows go some time after their AgentRun"
    )]
    UnknownRun(String),
    #[error("{run} names {} runs of the journal, deleted ones included: say which by uid: {}", uids.len(), uids.join(", "))]
    Ambiguous { run: String, uids: Vec<String> },
    #[error("the journal of run {run} is damaged: {damage}")]
    Damaged { run: String, damage: Damage },
    #[error("reading {}: {source}", path.display())]
    Read { path: PathBuf, source: rusqlite::Error },
}

/// The export of `run`, `NAMESPACE/NAME` or a uid, verified before it is given away. Blocks its thread.
pub fn export(path: &Path, run: &str) -> Result<Vec<u8>, ExportError> {
    if !path.exists() {
        return Err(ExportError::Missing(path.to_owned()));
    }
    let failed = |source| ExportError::Read { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // All that follows sees the journal as of here, whatever the operator writes meanwhile.
    let snapshot = connection.transaction().map_err(failed)?;
    let sql = "SELECT journal_id, schema_version FROM meta";
    let (journal, found): (String, i64) =
        snapshot.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
    if found != SCHEMA_VERSION {
        return Err(ExportError::Schema { found });
    }
    let head = one_of(find(&snapshot, run).map_err(failed)?, run)?;
    let damaged = |damage| ExportError::Damaged { run: name(&head.run), damage };
    let rows = read_events(&snapshot, &head.run.uid, 1, head.chain.seq).map_err(|error| {
        if is_corrupt(&error) { damaged(Damage::Database(error.to_string())) } else { failed(error) }
    })?;
    let records = open_rows(Head::empty(), &rows).map_err(damaged)?;
    check_end(&head, &records).map_err(damaged)?;
    Ok(export::write(&journal, &head.run, &records))
}

fn find(connection: &Connection, run: &str) -> Result<Vec<RunHead>, rusqlite::Error> {
    match run.split_once('/') {
        Some((namespace, name)) => read_heads_named(connection, namespace, name),
        None => Ok(read_head(connection, run)?.into_iter().collect()),
    }
}

fn one_of(mut heads: Vec<RunHead>, run: &str) -> Result<RunHead, ExportError> {
    match (heads.pop(), heads.is_empty()) {
        (None, _) => Err(ExportError::UnknownRun(run.to_owned())),
        (Some(head), true) => Ok(head),
        (Some(newest), false) => {
            let uids = heads.into_iter().chain([newest]).map(|head| head.run.uid).collect();
            Err(ExportError::Ambiguous { run: run.to_owned(), uids })
        }
    }
}

fn name(run: &ObjectId) -> String {
    format!("{}/{} ({})", run.namespace, run.name, run.uid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use belay_protocol::event::Event;

    use super::*;
    use crate::journal::Journal;
    use crate::journal::fixture::write_runs;

    #[tokio::test]
    async fn a_run_is_exported_beside_the_operator_that_writes_and_verifies_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let journal = Journal::open(&path).await.unwrap();
        write_runs(&journal).await;
        for run in ["ns/done", "in-flight-uid", "ns/unknown", "ns/refused"] {
            let verified = export::verify(&export(&path, run).unwrap()).unwrap();
            let uid = &verified.header.run.uid;
            assert_eq!(verified.header.journal, journal.id());
            assert_eq!(Some(verified.head.hash), journal.head(uid).await.unwrap().map(|head| head.hash));
            assert_eq!(Some(verified.state), journal.state(uid).await.unwrap());
        }
        let seq = journal.head("in-flight-uid").await.unwrap().unwrap().seq;
        let run = ObjectId { namespace: "ns".into(), name: "in-flight".into(), uid: "in-flight-uid".into() };
        journal.append(&run, seq, vec![Event::CancelRequested {}]).await.expect("exporting blocks nobody");
    }

    #[tokio::test]
    async fn what_cannot_be_exported_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        assert!(matches!(export(&path, "ns/a"), Err(ExportError::Missing(_))));
        assert!(!path.exists(), "nothing is made by looking");
        let journal = Journal::open(&path).await.unwrap();
        write_runs(&journal).await;
        assert!(matches!(export(&path, "ns/nobody"), Err(ExportError::UnknownRun(_))));
        let again = ObjectId { namespace: "ns".into(), name: "refused".into(), uid: "again-uid".into() };
        let end = journal.records("refused-uid", 1).await.unwrap().remove(0).record.event;
        journal.append(&again, 0, vec![end]).await.unwrap();
        let error = export(&path, "ns/refused").unwrap_err();
        assert!(error.to_string().ends_with("by uid: refused-uid, again-uid"), "{error}");
    }
}
