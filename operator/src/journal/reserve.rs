//! Space that the journal holds back on its volume, so that a run can still be cancelled and ended when the
//! volume is full. Knows bytes and one file, no events.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

/// What opening a database takes: its index in shared memory and a page of the log.
const OPENING_BYTES: u64 = 512 * 1024;

/// A file without content beside the database. It is gone while its space is in use.
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: AtomicBool,
}

impl Reserve {
    /// Takes over what an earlier process left, or sets it aside anew. Where there is not even the space to
    /// open the database, an old reserve is given up first.
    pub(super) fn beside(database: &Path, bytes: u64) -> Self {
        let reserve = Self { path: with_suffix(database, ".reserve"), bytes, held: AtomicBool::new(false) };
        if !reserve.path.exists() {
            reserve.restore();
        } else if reserve.free() < OPENING_BYTES {
            reserve.held.store(true, Ordering::Release);
            reserve.give_up();
        } else {
            reserve.allocate();
        }
        reserve
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Sets the space aside again once there is twice as much: what was just given up is no reason to.
    pub(super) fn restore(&self) {
        if !self.is_held() && self.free() >= self.bytes.saturating_mul(2) {
            self.allocate();
        }
    }

    /// Answers whether there was something to give up.
    pub(super) fn give_up(&self) -> bool {
        if !self.held.swap(false, Ordering::AcqRel) {
            return false;
        }
        match std::fs::remove_file(&self.path) {
            Ok(()) => tracing::error!(
                path = %self.path.display(),
                "the journal's volume is full: its reserve is given up, only cancels and ends are taken; enlarge the volume"
            ),
            Err(error) => tracing::error!(path = %self.path.display(), %error, "the journal's reserve stays"),
        }
        true
    }

    /// Gives up the reserve where hardly anything else is left.
    pub(super) fn give_up_if_short(&self) {
        if self.free() < OPENING_BYTES {
            self.give_up();
        }
    }

    fn allocate(&self) {
        match self.try_allocate() {
            Ok(()) => {
                self.held.store(true, Ordering::Release);
                tracing::debug!(path = %self.path.display(), bytes = self.bytes, "reserve set aside");
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the journal's reserve could not be set aside");
                // Half of it would only take space from whoever frees some.
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }

    fn try_allocate(&self) -> io::Result<()> {
        let file: File = OpenOptions::new().create(true).truncate(false).write(true).open(&self.path)?;
        let bytes = i64::try_from(self.bytes).map_err(io::Error::other)?;
        file.set_len(self.bytes)?;
        Ok(posix_fallocate(&file, 0, bytes)?)
    }

    fn free(&self) -> u64 {
        free_bytes(&self.path)
    }
}

/// Bytes that may still be written beside `path`. 0 where that cannot be found out.
pub(super) fn free_bytes(path: &Path) -> u64 {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    statvfs(folder).map_or(0, |space| space.blocks_available() * space.fragment_size())
}

/// What the volume of `path` holds, used or not. 0 where that cannot be found out.
pub(super) fn volume_bytes(path: &Path) -> u64 {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    statvfs(folder).map_or(0, |space| space.blocks() * space.fragment_size())
}

/// Whether the volume of `path` has no room to open a database on.
pub(super) fn is_full(path: &Path) -> bool {
    free_bytes(path) < OPENING_BYTES
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const BYTES: u64 = 64 * 1024;

    #[test]
    fn the_space_is_really_taken_and_really_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("journal.db");
        let reserve = Reserve::beside(&database, BYTES);
        assert!(reserve.is_held());
        let on_disk = || std::fs::metadata(with_suffix(&database, ".reserve")).map(|file| file.blocks() * 512);
        assert!(on_disk().unwrap() >= BYTES);
        assert!(reserve.give_up() && !reserve.give_up());
        assert!(on_disk().is_err());
        reserve.restore();
        assert!(reserve.is_held() && on_disk().unwrap() >= BYTES);
    }

    #[test]
    fn more_than_the_volume_has_is_never_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("journal.db");
        let reserve = Reserve::beside(&database, 1 << 60);
        assert!(!reserve.is_held());
        assert!(!with_suffix(&database, ".reserve").exists());
    }
}
