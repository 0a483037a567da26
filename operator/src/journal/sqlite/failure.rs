//! What SQLite's result codes mean to a journal.

use std::path::Path;

use crate::journal::error::OpenError;
use crate::journal::reserve::is_full;
use crate::journal::store::StoreError;

/// Primary result codes: <https://www.sqlite.org/rescode.html>.
enum Code {
    ReadOnly,
    IoError,
    Corrupt,
    Full,
    CannotOpen,
    Other,
}

fn code(error: &sqlx::Error) -> Code {
    let database = match error {
        sqlx::Error::Database(database) => database,
        // A value that no build of ours wrote there.
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => return Code::Corrupt,
        _ => return Code::Other, // foreign, non-exhaustive enum
    };
    match database.code().and_then(|code| code.parse::<i64>().ok()).map(|code| code & 0xff) {
        Some(8) => Code::ReadOnly,
        Some(10) => Code::IoError,
        Some(11 | 26) => Code::Corrupt,
        Some(13) => Code::Full,
        Some(14) => Code::CannotOpen,
        Some(_) | None => Code::Other,
    }
}

/// Whether the database contradicts itself where it was read.
pub(in crate::journal) fn is_corrupt(error: &sqlx::Error) -> bool {
    matches!(code(error), Code::Corrupt)
}

#[allow(clippy::needless_pass_by_value)] // for map_err
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    if matches!(error, sqlx::Error::PoolClosed) {
        return StoreError::Closed;
    }
    match code(&error) {
        Code::Full => StoreError::Full,
        Code::Corrupt => StoreError::Corrupt(error.to_string()),
        // Unknown means: assume the worst.
        Code::ReadOnly | Code::IoError | Code::CannotOpen | Code::Other => StoreError::Io(error.to_string()),
    }
}

pub(super) fn open_error(path: &Path, error: &sqlx::Error) -> OpenError {
    let (path, message) = (path.to_owned(), error.to_string());
    match code(error) {
        Code::Corrupt => OpenError::Corrupt { path, message },
        Code::ReadOnly => OpenError::ReadOnly { path },
        Code::Full => OpenError::Full { path },
        // Without space SQLite cannot make its index either, which it calls an I/O error.
        Code::IoError | Code::CannotOpen if is_full(&path) => OpenError::Full { path },
        Code::IoError | Code::CannotOpen | Code::Other => OpenError::Unusable { path, message },
    }
}
