//! What a journal asks of a database: conditional appends that are durable on return, and reading them back.
//! Knows rows and heads; what events mean is the journal's business.

use async_trait::async_trait;
use belay_protocol::chain::{Head, SealedRecord};
use belay_protocol::event::Event;
use belay_protocol::plan::ObjectId;

/// The one row a run that every append is checked against and moves on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunHead {
    pub run: ObjectId,
    pub chain: Head,
    /// Newest epoch, 0 before the first; with the number of the last batch that it holds.
    pub epoch: u64,
    pub batch: u64,
    /// Raised by each Hello.
    pub session: u64,
    pub instance: Option<String>,
    /// The pod of an epoch that has not ended.
    pub pod_name: Option<String>,
    pub ended: bool,
}

/// One write. Several are committed together; each is taken or refused by itself.
#[derive(Clone, Debug)]
pub enum Change {
    Append(Box<Append>),
    /// A Hello: later batches must carry the raised number.
    RaiseSession {
        run: String,
        epoch: u64,
    },
    /// The AgentRun of a run that has ended is gone since `at`; its rows may go later.
    MarkDeleted {
        run: String,
        at: i64,
    },
    /// Removes rows of a run, until none is left.
    Forget {
        run: String,
    },
}

impl Change {
    /// The uid of the run that it changes.
    #[must_use]
    pub fn run(&self) -> &str {
        match self {
            Self::Append(append) => &append.next.run.uid,
            Self::RaiseSession { run, .. } | Self::MarkDeleted { run, .. } | Self::Forget { run } => run,
        }
    }

    /// Whether a full volume must still take it: a runner hears of the end on a session, and nothing that a
    /// run may still spend space on begins here.
    #[must_use]
    pub fn is_vital(&self) -> bool {
        match self {
            Self::Append(append) => {
                append.batch.is_none() && append.records.iter().all(|sealed| ends(&sealed.record.event))
            }
            Self::RaiseSession { .. } => true,
            Self::MarkDeleted { .. } | Self::Forget { .. } => false,
        }
    }
}

/// Whether the operator closes something by the event, or writes down that it is to be closed.
fn ends(event: &Event) -> bool {
    match event {
        Event::CancelRequested {}
        | Event::LimitReached { .. }
        | Event::ModelFailed { .. }
        | Event::CallUnknown { .. }
        | Event::CallInterrupted { .. }
        | Event::AskSettled { .. }
        | Event::GrantRevoked { .. }
        | Event::EpochEnded { .. }
        | Event::EpochDead { .. }
        | Event::RunEnded { .. } => true,
        Event::RunAccepted { .. }
        | Event::EpochOpened { .. }
        | Event::InstanceClaimed { .. }
        | Event::ToolsListed { .. }
        | Event::ModelRequested { .. }
        | Event::ModelResponded { .. }
        | Event::ModelReplaced { .. }
        | Event::CallProposed { .. }
        | Event::CallDecided { .. }
        | Event::PermitReturned { .. }
        | Event::CallObserved { .. }
        | Event::CallNotSent { .. }
        | Event::CallInputRequired { .. }
        | Event::ChildOpened { .. }
        | Event::ChildPosted { .. }
        | Event::ChildEnded { .. }
        | Event::AskOpened { .. }
        | Event::AskPosted { .. }
        | Event::GrantOpened { .. }
        | Event::GrantRefused { .. }
        | Event::GrantPosted { .. }
        | Event::DefinitionsAccepted { .. } => false,
    }
}

/// Records behind a head that must still be there.
#[derive(Clone, Debug)]
pub struct Append {
    pub expected: Head,
    pub records: Vec<SealedRecord>,
    /// The head once the records are in. Its session is kept as stored.
    pub next: RunHead,
    pub batch: Option<BatchKey>,
}

/// A runner's batch: only the newest session of the newest epoch may add one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchKey {
    pub epoch: u64,
    pub session: u64,
    pub n: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Session(u64),
    /// Of a run to be forgotten, rows are left: ask again.
    More,
    /// The head, the session or the epoch is another one; nothing was changed. None: no such run.
    Refused(Option<Box<RunHead>>),
}

/// What became of raising the fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    Raised(u64),
    /// The Lease was replaced by another, or its number is behind `highest`.
    Refused {
        highest: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    pub seq: u64,
    pub bytes: Vec<u8>,
    pub hash: Vec<u8>,
}

/// Records that one batch put in, the operator's included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpan {
    pub first_seq: u64,
    pub last_seq: u64,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// No space: nothing of the transaction was written, and the database goes on.
    #[error("no space left")]
    Full,
    /// What is stored contradicts itself where it was touched: nothing of the transaction was written.
    #[error("{0}")]
    Corrupt(String),
    /// Another leader raised the fence: this store never writes again.
    #[error("another operator leads")]
    Fenced,
    /// Whether the transaction is in is not known. Nothing more may be written before `reopen`.
    #[error("{0}")]
    Io(String),
    #[error("closed")]
    Closed,
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The journal's random id, made once.
    fn id(&self) -> &str;
    /// Takes all changes in order in one durable transaction. One caller at a time.
    async fn commit(&self, changes: &[Change]) -> Result<Vec<Outcome>, StoreError>;
    /// Keeps every store that was opened before from writing, from now on and for good; only then may a
    /// leader serve. `lease` is the uid of the Lease that it holds, `token` how often that changed hands.
    async fn raise_fence(&self, lease: &str, token: i64) -> Result<Fence, StoreError>;
    async fn head(&self, run: &str) -> Result<Option<RunHead>, StoreError>;
    /// Heads of runs that have not ended or whose pod may live, oldest run first.
    async fn open_heads(&self) -> Result<Vec<RunHead>, StoreError>;
    /// Rows of a run with `first <= seq <= last`, in order.
    async fn events(&self, run: &str, first: u64, last: u64) -> Result<Vec<StoredEvent>, StoreError>;
    /// None: no such batch, or one that put nothing in.
    async fn batch(&self, run: &str, epoch: u64, n: u64) -> Result<Option<BatchSpan>, StoreError>;
    /// Runs whose AgentRun is not known to be deleted, oldest first.
    async fn kept(&self) -> Result<Vec<ObjectId>, StoreError>;
    /// Uids of up to `limit` runs that were marked as deleted at `at` or before.
    async fn deleted_before(&self, at: i64, limit: u32) -> Result<Vec<String>, StoreError>;
    /// Transactions ever committed.
    async fn commits(&self) -> Result<u64, StoreError>;
    /// Drops every connection and recovers from what the disk holds.
    async fn reopen(&self) -> Result<(), StoreError>;
    async fn close(&self);
}
