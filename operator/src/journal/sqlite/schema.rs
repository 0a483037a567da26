//! The shape of the tables, one step of SQL for each version that was ever released.

use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Executor as _, Row as _};

/// Step n makes version n out of version n - 1. A released step never changes.
const STEPS: [&str; 2] = [include_str!("schema/1.sql"), include_str!("schema/2.sql")];
/// What this build reads and writes.
pub(in crate::journal) const SCHEMA_VERSION: i64 = 2;

pub(super) enum Brought {
    UpToDate,
    /// Written by a later build; nothing was changed.
    Newer {
        found: i64,
    },
}

/// Makes the tables, or brings those of an earlier version to this one, in one transaction.
pub(super) async fn bring_up(writer: &SqlitePool, fresh_id: &str) -> Result<Brought, sqlx::Error> {
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let found = version(&mut tx).await?;
    if !(0..=SCHEMA_VERSION).contains(&found) {
        return Ok(Brought::Newer { found });
    }
    if found == SCHEMA_VERSION {
        return Ok(Brought::UpToDate);
    }
    for step in STEPS.into_iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute(sqlx::raw_sql(step)).await?;
    }
    let write = if found == 0 {
        sqlx::query("INSERT INTO meta (only, journal_id, commits, schema_version) VALUES (1, ?, 0, ?)").bind(fresh_id)
    } else {
        sqlx::query("UPDATE meta SET schema_version = ?")
    };
    write.bind(SCHEMA_VERSION).execute(&mut *tx).await?;
    tx.commit().await?;
    if found > 0 {
        tracing::info!(from = found, to = SCHEMA_VERSION, "journal brought to this version's tables");
    }
    Ok(Brought::UpToDate)
}

/// 0: the file is new.
async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let table = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta'");
    if table.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    sqlx::query("SELECT schema_version FROM meta").fetch_one(&mut *connection).await?.try_get(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_its_step() {
        assert_eq!(i64::try_from(STEPS.len()), Ok(SCHEMA_VERSION));
    }
}
