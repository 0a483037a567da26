//! What SQLite's result codes mean to a journal: <https://www.sqlite.org/rescode.html>.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use crate::journal::error::OpenError;
use crate::journal::reserve::is_full;
use crate::journal::store::StoreError;

fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        // A value that no build of ours wrote there.
        Error::FromSqlConversionFailure(..) | Error::IntegralValueOutOfRange(..) | Error::InvalidColumnType(..) => {
            Some(ErrorCode::DatabaseCorrupt)
        }
        _ => error.sqlite_error_code(), // foreign, non-exhaustive enum
    }
}

/// Whether the database contradicts itself where it was read.
pub(in crate::journal) fn is_corrupt(error: &Error) -> bool {
    matches!(code(error), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

#[allow(clippy::needless_pass_by_value)] // for map_err
pub(super) fn failed(error: Error) -> StoreError {
    match code(&error) {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(error.to_string()),
        // Foreign, non-exhaustive enum. Unknown means: assume the worst.
        _ => StoreError::Io(error.to_string()),
    }
}

pub(super) fn open_error(path: &Path, error: &Error) -> OpenError {
    let (path, message) = (path.to_owned(), error.to_string());
    match code(error) {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Corrupt { path, message },
        Some(ErrorCode::ReadOnly) => OpenError::ReadOnly { path },
        Some(ErrorCode::DiskFull) => OpenError::Full { path },
        // Without space SQLite cannot make its index either, which it calls an I/O error.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if is_full(&path) => OpenError::Full { path },
        _ => OpenError::Unusable { path, message }, // foreign, non-exhaustive enum
    }
}
