//! How much is kept, of each run and of all: read from the disk once, and counted from then on.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use belay_protocol::RUN_ARTIFACT_BYTES_MAX;

use super::{ArtifactError, PART};

/// The most files of one run: each takes an inode.
pub(super) const RUN_ARTIFACTS_MAX: u32 = 1024;
/// What the smallest file takes of a volume.
pub(super) const FILE_BYTES: u64 = 4096;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    bytes: u64,
    runs: HashMap<String, Share>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    bytes: u64,
    files: u32,
}

impl Ledger {
    /// Counts what lies in `root`, and removes what never became whole.
    pub fn scan(root: &Path) -> io::Result<Self> {
        let mut ledger = Self::default();
        for run in runs(root)? {
            for entry in fs::read_dir(root.join(&run))? {
                let entry = entry?;
                if entry.path().extension() == Some(OsStr::new(PART)) {
                    fs::remove_file(entry.path())?;
                } else {
                    ledger.added(&run, entry.metadata()?.len());
                }
            }
        }
        Ok(ledger)
    }

    /// Whether so many more bytes of the run fit, where those of all runs may come to `most`.
    pub fn admits(&self, run: &str, size: u64, most: u64) -> Result<(), ArtifactError> {
        let share = self.runs.get(run).copied().unwrap_or_default();
        if share.files >= RUN_ARTIFACTS_MAX {
            return Err(ArtifactError::RunCrowded);
        }
        if share.bytes.saturating_add(charge(size)) > RUN_ARTIFACT_BYTES_MAX {
            return Err(ArtifactError::RunFull { used: share.bytes });
        }
        if self.bytes.saturating_add(charge(size)) > most {
            return Err(ArtifactError::ShareFull { used: self.bytes, most });
        }
        Ok(())
    }

    pub fn added(&mut self, run: &str, size: u64) {
        let share = self.runs.entry(run.to_owned()).or_default();
        share.bytes += charge(size);
        share.files += 1;
        self.bytes += charge(size);
    }

    pub fn removed(&mut self, run: &str, size: u64) {
        if let Some(share) = self.runs.get_mut(run) {
            share.bytes = share.bytes.saturating_sub(charge(size));
            share.files = share.files.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(charge(size));
        }
    }

    pub fn forgotten(&mut self, run: &str) {
        let share = self.runs.remove(run).unwrap_or_default();
        self.bytes = self.bytes.saturating_sub(share.bytes);
    }
}

fn charge(size: u64) -> u64 {
    size.max(FILE_BYTES)
}

/// The folders in `root`, each named like its run.
pub(super) fn runs(root: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            runs.extend(entry.file_name().into_string());
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn small_files_are_charged_as_what_they_take_and_their_number_is_bounded() {
        let mut ledger = Ledger::default();
        for _ in 0..RUN_ARTIFACTS_MAX {
            ledger.admits("a", 1, u64::MAX).unwrap();
            ledger.added("a", 1);
        }
        assert_eq!(ledger.bytes, u64::from(RUN_ARTIFACTS_MAX) * FILE_BYTES);
        assert!(matches!(ledger.admits("a", 1, u64::MAX), Err(ArtifactError::RunCrowded)));
        ledger.removed("a", 1);
        ledger.admits("a", 1, u64::MAX).unwrap();
    }

    #[test]
    fn what_all_runs_keep_is_bounded_together_and_room_again_once_one_is_forgotten() {
        let mut ledger = Ledger::default();
        ledger.added("a", 60_000);
        ledger.added("b", 30_000);
        ledger.admits("c", 10_000, 100_000).unwrap();
        let refused = ledger.admits("c", 10_001, 100_000);
        assert!(matches!(refused, Err(ArtifactError::ShareFull { used: 90_000, most: 100_000 })), "{refused:?}");
        ledger.forgotten("a");
        ledger.admits("c", 70_000, 100_000).unwrap();
    }

    #[test]
    fn what_an_earlier_process_left_is_counted_and_what_is_not_whole_goes() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("a/one"), vec![0; 5000]).unwrap();
        fs::write(root.path().join("a/two.part"), b"half").unwrap();
        let ledger = Ledger::scan(root.path()).unwrap();
        assert_eq!((ledger.bytes, ledger.runs["a"].files), (5000, 1));
        assert!(!root.path().join("a/two.part").exists());
    }
}
