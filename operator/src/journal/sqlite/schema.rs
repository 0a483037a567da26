//! The shape of the tables, one step of SQL for each version that was ever released.

use rusqlite::{Connection, Error, OptionalExtension as _, TransactionBehavior};

/// Step n makes version n out of version n - 1. A released step never changes.
const STEPS: [&str; 3] = [include_str!("schema/1.sql"), include_str!("schema/2.sql"), include_str!("schema/3.sql")];
/// What this build reads and writes.
pub(in crate::journal) const SCHEMA_VERSION: i64 = 3;

pub(super) enum Brought {
    UpToDate,
    /// Written by a later build; nothing was changed.
    Newer {
        found: i64,
    },
}

/// Makes the tables, or brings those of an earlier version to this one, in one transaction.
pub(super) fn bring_up(writer: &mut Connection, fresh_id: &str) -> Result<Brought, Error> {
    let tx = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&tx)?;
    if !(0..=SCHEMA_VERSION).contains(&found) {
        return Ok(Brought::Newer { found });
    }
    if found == SCHEMA_VERSION {
        return Ok(Brought::UpToDate);
    }
    for step in STEPS.into_iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(step)?;
    }
    if found == 0 {
        let sql = "INSERT INTO meta (only, journal_id, commits, schema_version) VALUES (1, ?, 0, ?)";
        tx.execute(sql, (fresh_id, SCHEMA_VERSION))?;
    } else {
        tx.execute("UPDATE meta SET schema_version = ?", [SCHEMA_VERSION])?;
    }
    tx.commit()?;
    if found > 0 {
        tracing::info!(from = found, to = SCHEMA_VERSION, "journal brought to this version's tables");
    }
    Ok(Brought::UpToDate)
}

/// 0: the file is new.
fn version(connection: &Connection) -> Result<i64, Error> {
    let table = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta'";
    if connection.query_row(table, [], |_| Ok(())).optional()?.is_none() {
        return Ok(0);
    }
    connection.query_row("SELECT schema_version FROM meta", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_its_step() {
        assert_eq!(i64::try_from(STEPS.len()), Ok(SCHEMA_VERSION));
    }
}
