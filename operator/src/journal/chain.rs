//! From events to rows and back: seals what is appended behind a head, and verifies what is read. Pure.

use std::sync::Arc;

use belay_protocol::Digest;
use belay_protocol::chain::{Head, SealedRecord};
use belay_protocol::event::Event;
use belay_protocol::fold::RunState;
use belay_protocol::plan::ObjectId;

use super::error::{Damage, JournalError};
use super::memory::Folded;
use super::store::{Append, BatchKey, RunHead, StoredEvent};

/// A write and what will be known once it is in.
pub(super) struct Prepared {
    pub append: Append,
    pub folded: Folded,
}

/// Puts `events` behind what is known of `run`, if the fold allows them.
pub(super) fn prepare(
    run: &ObjectId,
    before: Option<&Folded>,
    events: Vec<Event>,
    batch: Option<BatchKey>,
    now: i64,
) -> Result<Prepared, JournalError> {
    let expected = before.map_or_else(Head::empty, |folded| folded.head.chain);
    let mut state = before.map_or_else(RunState::default, |folded| RunState::clone(&folded.state));
    let mut chain = expected;
    let mut records = Vec::with_capacity(events.len());
    let mut bytes = before.map_or(0, |folded| folded.bytes);
    for event in events {
        refuse_other_run(run, &event)?;
        let sealed = chain.seal(event, now)?;
        state.apply(&sealed.record)?;
        chain = sealed.head();
        bytes = bytes.saturating_add(sealed.bytes.len() as u64);
        records.push(sealed);
    }
    let head = head_after(run, before.map(|folded| &folded.head), &state, chain, batch);
    let append = Append { expected, records, next: head.clone(), batch };
    Ok(Prepared { append, folded: Folded { state: Arc::new(state), head, bytes } })
}

fn refuse_other_run(run: &ObjectId, event: &Event) -> Result<(), JournalError> {
    match event {
        Event::RunAccepted { plan, .. } if plan.run != *run => {
            Err(JournalError::OtherRun { expected: run.uid.clone(), found: plan.run.uid.clone() })
        }
        _ => Ok(()), // no other event names a run
    }
}

fn head_after(
    run: &ObjectId,
    before: Option<&RunHead>,
    state: &RunState,
    chain: Head,
    batch: Option<BatchKey>,
) -> RunHead {
    let epoch = state.epoch.as_ref().map_or(0, |epoch| epoch.number);
    let held = before.filter(|before| before.epoch == epoch).map_or(0, |before| before.batch);
    let live = state.live_epoch();
    RunHead {
        run: run.clone(),
        chain,
        epoch,
        batch: batch.map_or(held, |batch| batch.n),
        session: before.map_or(0, |before| before.session),
        instance: live.and_then(|epoch| epoch.claim.as_ref()).map(|claim| claim.instance.clone()),
        pod_name: live.map(|epoch| epoch.pod_name.clone()),
        ended: state.end.is_some(),
    }
}

/// The stored rows as the records behind `anchor`. Every hash must be the stored one.
pub(super) fn open_rows(anchor: Head, rows: &[StoredEvent]) -> Result<Vec<SealedRecord>, Damage> {
    let mut head = anchor;
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        let hash = Digest::try_from(row.hash.as_slice()).map_err(|_| Damage::Hash { seq: row.seq })?;
        let record = head.open(&row.bytes, Some(hash))?;
        head = record.head();
        records.push(record);
    }
    Ok(records)
}

/// Whether the rows end where the head says.
pub(super) fn check_end(head: &RunHead, records: &[SealedRecord]) -> Result<(), Damage> {
    let last = records.last().map_or_else(Head::empty, SealedRecord::head);
    if (last.seq, last.hash) == (head.chain.seq, head.chain.hash) {
        Ok(())
    } else {
        Err(Damage::Head { head: head.chain.seq, last: last.seq })
    }
}
