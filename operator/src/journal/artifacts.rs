//! What results hold besides the text that is shown, kept by digest, a folder for each run: beside the journal, on its
//! volume (docs/decisions/0018). Knows bytes and digests, no events.

mod ledger;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use belay_protocol::{ARTIFACT_BYTES_MAX, Digest, RUN_ARTIFACT_BYTES_MAX};
use tokio::sync::{Mutex, OwnedMutexGuard};

use self::ledger::{Ledger, RUN_ARTIFACTS_MAX};
use super::reserve::{free_bytes, volume_bytes};

const FOLDER: &str = "artifacts";
/// A file that is not whole yet.
const PART: &str = "part";
/// Artifacts of all runs take no more than this part of the volume: one in so many bytes.
const PART_OF_VOLUME: u64 = 4;

/// Why something is not kept, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("an artifact of {bytes} bytes is larger than the {ARTIFACT_BYTES_MAX} that are kept")]
    TooLarge { bytes: usize },
    #[error(
        "this run keeps {used} bytes of artifacts already, and {RUN_ARTIFACT_BYTES_MAX} are as much as one run may"
    )]
    RunFull { used: u64 },
    #[error("this run keeps {RUN_ARTIFACTS_MAX} artifacts already, as many as one run may")]
    RunCrowded,
    #[error(
        "artifacts of all runs take {used} bytes, and {most} are as much as they may: delete AgentRuns, or enlarge the \
         journal's volume"
    )]
    ShareFull { used: u64, most: u64 },
    #[error("the journal's volume has no room for artifacts: enlarge it")]
    VolumeFull,
    #[error("{0} is not what was kept under that digest")]
    Damaged(Digest),
    #[error("artifacts cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// Where artifacts are kept.
#[async_trait]
pub trait ArtifactStore: Send + Sync {
    /// Keeps `bytes`, whose digest it is, for the run. Durable on return; what is there already is not written again.
    async fn keep(&self, run: &str, digest: Digest, bytes: Vec<u8>) -> Result<(), ArtifactError>;
    async fn holds(&self, run: &str, digest: Digest) -> Result<bool, ArtifactError>;
    /// None: it is not kept, or not any more.
    async fn fetch(&self, run: &str, digest: Digest) -> Result<Option<Vec<u8>>, ArtifactError>;
    /// Removes all of the run.
    async fn forget(&self, run: &str) -> Result<(), ArtifactError>;
    /// Runs of which something is kept.
    async fn runs(&self) -> Result<Vec<String>, ArtifactError>;
}

/// A folder on the journal's volume.
#[derive(Clone)]
pub(super) struct Folder {
    root: PathBuf,
    /// So much of the volume is the journal's: artifacts leave it free.
    spare_bytes: u64,
    part_of_volume: u64,
    /// One at a time: what there is is counted before more is written. None: not counted yet, or in doubt.
    ledger: Arc<Mutex<Option<Ledger>>>,
}

impl Folder {
    pub(super) fn beside(database: &Path, spare_bytes: u64) -> Self {
        let root = database.with_file_name(FOLDER);
        Self { root, spare_bytes, part_of_volume: PART_OF_VOLUME, ledger: Arc::default() }
    }

    /// Held until the work is done, also where nobody waits for it any more.
    async fn counted(&self) -> OwnedMutexGuard<Option<Ledger>> {
        Arc::clone(&self.ledger).lock_owned().await
    }

    /// None: no run has such a uid, and nothing that it spells is a path of ours.
    fn of_run(&self, run: &str) -> Option<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (!run.is_empty() && run.bytes().all(plain)).then(|| self.root.join(run))
    }

    /// Where anything goes wrong on the disk, everything is counted anew.
    fn write(
        &self,
        counted: &mut Option<Ledger>,
        run: &str,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<(), ArtifactError> {
        let folder = self.of_run(run).ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        let mut ledger = match counted.take() {
            Some(ledger) => ledger,
            None => Ledger::scan(&self.root)?,
        };
        let path = folder.join(digest.short(64));
        let written = match fs::read(&path) {
            Ok(found) if Digest::of(&found) == digest => Ok(()),
            found => {
                if let Ok(damaged) = found {
                    fs::remove_file(&path)?;
                    ledger.removed(run, damaged.len() as u64);
                }
                self.add(&mut ledger, run, &path, bytes)
            }
        };
        if matches!(written, Err(ArtifactError::Io(_))) {
            return written;
        }
        *counted = Some(ledger);
        written?;
        // Also where it was there: whoever wrote it may have come no further.
        for folder in [Some(folder.as_path()), Some(self.root.as_path()), self.root.parent()].into_iter().flatten() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn add(&self, ledger: &mut Ledger, run: &str, path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
        let size = bytes.len() as u64;
        ledger.admits(run, size, volume_bytes(&self.root) / self.part_of_volume)?;
        if free_bytes(&self.root) < size.saturating_add(self.spare_bytes) {
            return Err(ArtifactError::VolumeFull);
        }
        fs::create_dir_all(self.root.join(run))?;
        let part = path.with_extension(PART);
        let written = write_whole(&part, bytes).and_then(|()| fs::rename(&part, path));
        if let Err(error) = written {
            // What is left of it goes when everything is counted the next time.
            let _ = fs::remove_file(&part);
            return Err(if error.kind() == ErrorKind::StorageFull { ArtifactError::VolumeFull } else { error.into() });
        }
        ledger.added(run, size);
        Ok(())
    }

    fn remove(&self, counted: &mut Option<Ledger>, run: &str) -> Result<(), ArtifactError> {
        let Some(folder) = self.of_run(run) else { return Ok(()) };
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                *counted = None;
                Err(error.into())
            }
            Ok(()) | Err(_) => {
                if let Some(ledger) = counted {
                    ledger.forgotten(run);
                }
                Ok(())
            }
        }
    }

    fn read(&self, run: &str, digest: Digest) -> Result<Option<Vec<u8>>, ArtifactError> {
        let Some(folder) = self.of_run(run) else { return Ok(None) };
        match fs::read(folder.join(digest.short(64))) {
            Ok(bytes) if Digest::of(&bytes) == digest => Ok(Some(bytes)),
            Ok(_) => Err(ArtifactError::Damaged(digest)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl ArtifactStore for Folder {
    async fn keep(&self, run: &str, digest: Digest, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        if bytes.len() > ARTIFACT_BYTES_MAX {
            return Err(ArtifactError::TooLarge { bytes: bytes.len() });
        }
        let (folder, run, mut counted) = (self.clone(), run.to_owned(), self.counted().await);
        blocking(move || folder.write(&mut counted, &run, digest, &bytes)).await
    }

    async fn holds(&self, run: &str, digest: Digest) -> Result<bool, ArtifactError> {
        let path = self.of_run(run).map(|folder| folder.join(digest.short(64)));
        blocking(move || Ok(path.is_some_and(|path| path.exists()))).await
    }

    async fn fetch(&self, run: &str, digest: Digest) -> Result<Option<Vec<u8>>, ArtifactError> {
        let (folder, run) = (self.clone(), run.to_owned());
        blocking(move || folder.read(&run, digest)).await
    }

    async fn forget(&self, run: &str) -> Result<(), ArtifactError> {
        let (folder, run, mut counted) = (self.clone(), run.to_owned(), self.counted().await);
        blocking(move || folder.remove(&mut counted, &run)).await
    }

    async fn runs(&self) -> Result<Vec<String>, ArtifactError> {
        let root = self.root.clone();
        blocking(move || Ok(ledger::runs(&root)?)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::beside(&place.path().join("journal.db"), 0);
        (place, folder)
    }

    #[tokio::test]
    async fn what_was_kept_is_there_for_its_run_alone_until_that_is_forgotten() {
        let (_place, folder) = folder();
        let digest = Digest::of(b"picture");
        folder.keep("a-uid", digest, b"picture".to_vec()).await.unwrap();
        folder.keep("a-uid", digest, b"picture".to_vec()).await.unwrap();
        assert_eq!(folder.fetch("a-uid", digest).await.unwrap().as_deref(), Some(&b"picture"[..]));
        assert!(folder.holds("a-uid", digest).await.unwrap() && !folder.holds("b-uid", digest).await.unwrap());
        assert_eq!(folder.fetch("b-uid", digest).await.unwrap(), None);
        folder.forget("a-uid").await.unwrap();
        folder.forget("a-uid").await.unwrap();
        assert_eq!(folder.fetch("a-uid", digest).await.unwrap(), None);
    }

    #[tokio::test]
    async fn one_artifact_one_run_and_the_volume_are_bounded() {
        let (place, folder) = folder();
        let large = vec![0; ARTIFACT_BYTES_MAX + 1];
        let refused = folder.keep("a-uid", Digest::of(&large), large).await;
        assert!(matches!(refused, Err(ArtifactError::TooLarge { .. })), "{refused:?}");
        fs::create_dir_all(place.path().join("artifacts/a-uid")).unwrap();
        let file = File::create(place.path().join("artifacts/a-uid/held")).unwrap();
        file.set_len(RUN_ARTIFACT_BYTES_MAX - ledger::FILE_BYTES).unwrap();
        folder.keep("a-uid", Digest::of(b"abc"), b"abc".to_vec()).await.unwrap();
        let refused = folder.keep("a-uid", Digest::of(b"d"), b"d".to_vec()).await;
        assert!(matches!(refused, Err(ArtifactError::RunFull { .. })), "{refused:?}");
        folder.keep("b-uid", Digest::of(b"d"), b"d".to_vec()).await.unwrap();
        folder.forget("a-uid").await.unwrap();
        folder.keep("a-uid", Digest::of(b"d"), b"d".to_vec()).await.unwrap();
        let small = Folder { part_of_volume: u64::MAX, ..folder.clone() };
        let refused = small.keep("c-uid", Digest::of(b"d"), b"d".to_vec()).await;
        let used = 2 * ledger::FILE_BYTES;
        assert!(matches!(refused, Err(ArtifactError::ShareFull { used: u, most: 0 }) if u == used), "{refused:?}");
        let short = Folder { spare_bytes: 1 << 60, ..folder };
        let refused = short.keep("b-uid", Digest::of(b"e"), b"e".to_vec()).await;
        assert!(matches!(refused, Err(ArtifactError::VolumeFull)), "what is left is the journal's: {refused:?}");
    }

    #[tokio::test]
    async fn what_was_changed_on_the_disk_is_not_handed_out() {
        let (place, folder) = folder();
        let digest = Digest::of(b"picture");
        folder.keep("a-uid", digest, b"picture".to_vec()).await.unwrap();
        fs::write(place.path().join("artifacts/a-uid").join(digest.short(64)), b"Picture").unwrap();
        let refused = folder.fetch("a-uid", digest).await;
        assert!(matches!(refused, Err(ArtifactError::Damaged(_))), "{refused:?}");
        folder.keep("a-uid", digest, b"picture".to_vec()).await.unwrap();
        assert_eq!(
            folder.fetch("a-uid", digest).await.unwrap().as_deref(),
            Some(&b"picture"[..]),
            "sent again, it is whole"
        );
    }

    #[tokio::test]
    async fn a_uid_that_spells_a_path_leads_nowhere() {
        let (place, folder) = folder();
        fs::create_dir_all(place.path().join("artifacts")).unwrap();
        fs::write(place.path().join("journal.db"), b"rows").unwrap();
        // Nothing outside: where the rule is broken, this deletes what they name.
        let whole = place.path().join("elsewhere").display().to_string();
        for uid in ["..", "", "a/b", ".", &whole] {
            assert!(folder.keep(uid, Digest::of(b"x"), b"x".to_vec()).await.is_err(), "{uid}");
            assert_eq!(folder.fetch(uid, Digest::of(b"x")).await.unwrap(), None);
            folder.forget(uid).await.unwrap();
        }
        assert!(place.path().join("journal.db").exists());
    }
}
