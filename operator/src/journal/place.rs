//! Where a journal may lie: on a local file system, under a lock that one process holds for its life.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{
    AFS_SUPER_MAGIC, CODA_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, NCP_SUPER_MAGIC, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC,
    statfs,
};

use super::error::OpenError;
use super::reserve::with_suffix;

/// Missing from nix: linux/magic.h and fs/smb/client.
const CEPH: FsType = FsType(0x00c3_6400);
const CIFS: FsType = FsType(0xff53_4d42);
const SMB2: FsType = FsType(0xfe53_4d42);
const V9FS: FsType = FsType(0x0102_1997);

/// The lock; given back when dropped, or by the kernel when the process dies.
pub(super) type Lock = Flock<File>;

/// Locks the database at `path`, after a look at what it lies on.
pub(super) fn take(path: &Path) -> Result<Lock, OpenError> {
    let unusable = |message: String| OpenError::Unusable { path: path.to_owned(), message };
    let not_open = |at: &Path, e: std::io::Error| match e.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly { path: path.to_owned() },
        ErrorKind::StorageFull => OpenError::Full { path: path.to_owned() },
        _ => unusable(format!("{}: {e}", at.display())), // foreign, non-exhaustive enum
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(|e| not_open(folder, e))?;
    let kind = statfs(folder).map_err(|e| unusable(e.to_string()))?.filesystem_type();
    if let Some(kind) = network(kind) {
        return Err(OpenError::NetworkFilesystem { path: path.to_owned(), kind });
    }
    let lock_path = with_suffix(path, ".lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let file = file.map_err(|e| not_open(&lock_path, e))?;
    // SQLite would open it to read alone, and fail at the first commit.
    if path.exists() {
        OpenOptions::new().append(true).open(path).map_err(|e| not_open(path, e))?;
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| OpenError::Locked { path: path.to_owned() })
}

/// The file system's name where it is a network one, or one in user space of which nothing is known.
fn network(kind: FsType) -> Option<&'static str> {
    let networks = [
        (NFS_SUPER_MAGIC, "NFS"),
        (CIFS, "CIFS"),
        (SMB2, "SMB2"),
        (SMB_SUPER_MAGIC, "SMB"),
        (CEPH, "CephFS"),
        (V9FS, "9p"),
        (FUSE_SUPER_MAGIC, "FUSE"),
        (AFS_SUPER_MAGIC, "AFS"),
        (CODA_SUPER_MAGIC, "Coda"),
        (NCP_SUPER_MAGIC, "NCP"),
    ];
    networks.into_iter().find_map(|(magic, name)| (magic == kind).then_some(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::unwrap_in_result)]
    use super::*;
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC};

    #[test]
    fn network_file_systems_are_told_from_local_ones() {
        assert_eq!(network(NFS_SUPER_MAGIC), Some("NFS"));
        assert_eq!(network(CEPH), Some("CephFS"));
        assert_eq!(network(EXT4_SUPER_MAGIC), None);
        assert_eq!(network(XFS_SUPER_MAGIC), None);
    }

    #[test]
    fn the_second_to_ask_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let first = take(&path).unwrap();
        assert!(matches!(take(&path), Err(OpenError::Locked { .. })));
        drop(first);
        assert!(take(&path).is_ok());
    }
}
