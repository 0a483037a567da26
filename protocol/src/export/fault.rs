//! What is wrong with an export, where, and what that means.

use std::fmt;

use crate::chain::ChainError;
use crate::digest::{Digest, DigestError};
use crate::fold::IllegalEvent;
use crate::plan::ObjectId;

/// Where in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counts from 1.
    pub line: usize,
    /// Unknown while the header is unread.
    pub run: Option<ObjectId>,
    /// The record that should have been there.
    pub seq: Option<u64>,
}

/// The first line that is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {wrong}")]
pub struct Fault {
    pub place: Box<Place>,
    #[source]
    pub wrong: Wrong,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("this is no header of a journal export ({0}): is it the right file?")]
    Header(String),
    #[error(
        "the export has format {found}, this build reads {}: use the belay that goes with it",
        super::EXPORT_VERSION
    )]
    Version { found: u32 },
    #[error("not a line of an export ({0}): the file was edited or damaged here")]
    Line(String),
    #[error("the file breaks off after {records} whole records: export the run again")]
    Truncated { records: u64 },
    #[error("record {found} stands where record {expected} is due: a line was taken out, added or moved")]
    Gap { expected: u64, found: u64 },
    #[error("{0}: this line, or one before it, is not what the journal held")]
    Chain(#[from] ChainError),
    #[error("{0}: no operator writes this order, so the records were not all its own")]
    Illegal(#[from] IllegalEvent),
    #[error("the plan is of run {}/{} ({}): header and records are of two runs", found.namespace, found.name, found.uid)]
    OtherRun { found: ObjectId },
    #[error("the plan's digest is {computed}, the record says {stated}: the plan is not the one that was accepted")]
    PlanDigest { stated: Digest, computed: Digest },
    #[error(
        "call {call_id} was permitted as {stated}, by plan and arguments it is {computed}: the permit was for another call"
    )]
    CallDigest { call_id: String, stated: Digest, computed: Digest },
    #[error("call {call_id} was permitted, and the plan does not list {operation}: the gate would have denied it")]
    NotInPlan { call_id: String, operation: String },
    #[error("the last line says record {stated}, the file ends at record {found}: records were taken out or added")]
    Head { stated: u64, found: u64 },
    #[error("the export holds no record")]
    Empty,
    #[error("every record is whole, and the digest over the file is another: the header or the line ends were edited")]
    FileDigest,
    #[error("the file goes on after its last line: something was added")]
    AfterEnd,
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Place {
    pub(super) fn fault(self, wrong: Wrong) -> Fault {
        Fault { place: Box::new(self), wrong }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        match (&self.run, self.seq) {
            (Some(run), Some(seq)) => write!(f, " (record {seq} of run {}/{}, {})", run.namespace, run.name, run.uid),
            (Some(run), None) => write!(f, " (run {}/{}, {})", run.namespace, run.name, run.uid),
            (None, _) => Ok(()),
        }
    }
}
