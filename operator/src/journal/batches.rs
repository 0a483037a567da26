//! Batches of runners: each is decided on and taken in once, and answered with what was recorded then.

use std::sync::Arc;

use belay_protocol::chain::SealedRecord;
use belay_protocol::event::Event;
use belay_protocol::fold::{IllegalEvent, RunState};

use super::chain::prepare;
use super::memory::Folded;
use super::store::{BatchKey, Outcome, RunHead};
use super::{Journal, JournalError};

/// How often a batch is decided anew because the controller appended in between.
const DECISIONS_MAX: usize = 8;

/// A runner's events, for one session of one epoch.
#[derive(Clone, Debug)]
pub struct Batch {
    pub key: BatchKey,
    pub events: Vec<Event>,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The run as it is now, which may be further than the batch.
    pub state: Arc<RunState>,
    /// The records that the batch put in, the operator's included, as they were then.
    pub records: Vec<SealedRecord>,
}

impl Journal {
    /// Takes a runner's batch. `decide` says what is journaled for it, over the state it goes behind; it may
    /// be asked again if the run moved on meanwhile. A batch that is already held is not decided again.
    pub async fn append_batch(
        &self,
        uid: &str,
        batch: Batch,
        decide: impl Fn(&RunState, &[Event]) -> Result<Vec<Event>, IllegalEvent> + Send,
    ) -> Result<Taken, JournalError> {
        let key = batch.key;
        let mut seen = 0;
        for _ in 0..DECISIONS_MAX {
            let before = self.folded(uid).await?.ok_or_else(|| JournalError::UnknownRun(uid.to_owned()))?;
            seen = before.head.chain.seq;
            refuse_replaced(&before.head, key)?;
            if key.n <= before.head.batch {
                return self.recall(before, batch).await;
            }
            if key.n != before.head.batch + 1 {
                let expected = before.head.batch + 1;
                return Err(JournalError::BatchOutOfOrder {
                    run: uid.into(),
                    epoch: key.epoch,
                    expected,
                    found: key.n,
                });
            }
            let events = decide(&before.state, &batch.events)?;
            let prepared = prepare(&before.head.run, Some(&before), events, Some(key), (self.inner.clock)())?;
            let taken = Taken { state: Arc::clone(&prepared.folded.state), records: prepared.append.records.clone() };
            match self.submit(prepared).await? {
                Outcome::Done | Outcome::Session(_) | Outcome::More => return Ok(taken),
                Outcome::Refused(Some(head)) => refuse_replaced(&head, key)?,
                Outcome::Refused(None) => return Err(JournalError::UnknownRun(uid.to_owned())),
            }
        }
        let found = self.run_head(uid).await?.map_or(0, |head| head.chain.seq);
        Err(JournalError::Moved { run: uid.to_owned(), expected: seen, found })
    }

    /// The records of a batch that is held. The runner's events among them must be the ones that came now.
    async fn recall(&self, now: Folded, batch: Batch) -> Result<Taken, JournalError> {
        let BatchKey { epoch, n, .. } = batch.key;
        let uid = &now.head.run.uid;
        let differs = || JournalError::BatchDiffers { run: uid.clone(), epoch, n };
        let span = self.inner.store.batch(uid, epoch, n).await.map_err(|error| error.of_run(uid))?;
        let records = match span {
            Some(span) => self.verified(&now.head, span.first_seq, span.last_seq).await?,
            // Where anything was sent, something was recorded.
            None if batch.events.is_empty() => Vec::new(),
            None => return Err(differs()),
        };
        let mut recorded = records.iter().map(|sealed| &sealed.record.event).filter(|event| event.is_runners());
        // What follows an end of the run within its batch was never taken in.
        let mut sent = batch.events.iter();
        if recorded.by_ref().any(|event| sent.next() != Some(event)) {
            return Err(differs());
        }
        Ok(Taken { state: now.state, records })
    }
}

fn refuse_replaced(head: &RunHead, key: BatchKey) -> Result<(), JournalError> {
    if (head.epoch, head.session) == (key.epoch, key.session) {
        return Ok(());
    }
    Err(JournalError::SessionReplaced { run: head.run.uid.clone(), epoch: key.epoch, session: key.session })
}
