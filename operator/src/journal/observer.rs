//! Who stands by at commits, which production has nobody for, and who hears of them.

use async_trait::async_trait;
use belay_protocol::chain::SealedRecord;
use belay_protocol::plan::ObjectId;

use super::store::Change;

/// Hears of every append once it is durable, in the order of each run. It is called by the one that writes: it must not
/// wait for anything.
pub trait Audience: Send + Sync + 'static {
    fn appended(&self, run: &ObjectId, records: &[SealedRecord]);
}

/// Stands by at every transaction, which waits for it: before it is begun, and once it is durable or failed.
#[async_trait]
pub trait CommitObserver: Send + Sync + 'static {
    async fn before(&self, changes: &[&'static str]);
    async fn after(&self, changes: &[&'static str]);
}

/// What a transaction writes, in order: the events of appends, and the other changes by their own names.
pub(super) fn names(changes: &[Change]) -> Vec<&'static str> {
    let of = |change: &Change| match change {
        Change::Append(append) => append.records.iter().map(|sealed| sealed.record.event.name()).collect(),
        Change::RaiseSession { .. } => vec!["RaiseSession"],
        Change::MarkDeleted { .. } => vec!["MarkDeleted"],
        Change::Forget { .. } => vec!["Forget"],
    };
    changes.iter().flat_map(of).collect()
}
