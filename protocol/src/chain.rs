//! The hash chain of a run: every record's hash covers its bytes and the record before it.

use crate::digest::{Digest, DigestError, canonical};
use crate::event::{Event, Record};

/// Where a run's chain ends: the next record follows this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub seq: u64,
    pub hash: Digest,
    /// Time of the newest record; a clock that steps back does not take the journal with it.
    pub at: i64,
}

/// A record with the bytes that are stored, sent and hashed.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedRecord {
    pub record: Record,
    pub bytes: Vec<u8>,
    pub hash: Digest,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    #[error("record {expected} is missing: found {found}")]
    Gap { expected: u64, found: u64 },
    #[error("record {seq} was changed: its hash is {found}, the journal says {stored}")]
    Changed { seq: u64, found: Digest, stored: Digest },
    #[error("record {seq} cannot be read: {message}")]
    Unreadable { seq: u64, message: String },
}

impl Head {
    /// The head of a run that has no record yet.
    #[must_use]
    pub const fn empty() -> Self {
        Self { seq: 0, hash: Digest::zero(), at: 0 }
    }

    /// The record that puts `event` behind this head, taken at `now` (milliseconds since the Unix epoch).
    pub fn seal(&self, event: Event, now: i64) -> Result<SealedRecord, DigestError> {
        let record = Record { seq: self.seq + 1, at: now.max(self.at), event };
        let bytes = canonical(&record)?;
        let hash = Digest::chained(self.hash, &bytes);
        Ok(SealedRecord { record, bytes, hash })
    }

    /// Reads stored bytes as the record behind this head. `stored` is the hash kept beside them, if any.
    pub fn open(&self, bytes: &[u8], stored: Option<Digest>) -> Result<SealedRecord, ChainError> {
        let expected = self.seq + 1;
        let hash = Digest::chained(self.hash, bytes);
        if let Some(stored) = stored.filter(|stored| *stored != hash) {
            return Err(ChainError::Changed { seq: expected, found: hash, stored });
        }
        let record: Record = serde_json::from_slice(bytes)
            .map_err(|e| ChainError::Unreadable { seq: expected, message: e.to_string() })?;
        if record.seq != expected {
            return Err(ChainError::Gap { expected, found: record.seq });
        }
        Ok(SealedRecord { record, bytes: bytes.to_vec(), hash })
    }
}

impl SealedRecord {
    /// The head once this record is in.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { seq: self.record.seq, hash: self.hash, at: self.record.at }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sealed(head: Head, now: i64) -> SealedRecord {
        head.seal(Event::CancelRequested {}, now).unwrap()
    }

    #[test]
    fn a_chain_reads_back_and_time_never_goes_back() {
        let first = sealed(Head::empty(), 5000);
        let second = sealed(first.head(), 4000);
        assert_eq!(second.record.at, 5000);
        assert_eq!(first.head().open(&second.bytes, Some(second.hash)).unwrap(), second);
    }

    #[test]
    fn a_flipped_bit_a_gap_and_another_order_are_noticed() {
        let first = sealed(Head::empty(), 1);
        let second = sealed(first.head(), 2);
        let mut bent = second.bytes.clone();
        if let Some(byte) = bent.last_mut() {
            *byte ^= 1;
        }
        assert!(matches!(first.head().open(&bent, Some(second.hash)), Err(ChainError::Changed { seq: 2, .. })));
        let skipped = Head::empty().open(&second.bytes, None);
        assert_eq!(skipped, Err(ChainError::Gap { expected: 1, found: 2 }));
    }
}
