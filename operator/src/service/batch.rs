//! A batch on the wire and what answers it. Pure: reads bytes into events, and records into decisions.

use belay_protocol::chain::SealedRecord;
use belay_protocol::event::{RunEnd, Verdict};
use belay_protocol::fold::{CallState, ModelState, RunState};
use belay_protocol::wire::decision::Verdict as Said;
use belay_protocol::wire::{Ack, Again, Asked, Batch, Decision, Later, Permit};
use belay_protocol::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Digest, Event, PERMIT_VALID_MILLISECONDS};

/// Why a batch is garbage. Whoever sends such a thing is cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BatchError {
    #[error("a batch without events")]
    Empty,
    #[error("{0} events in one batch: at most {BATCH_EVENTS_MAX}")]
    TooMany(usize),
    #[error("{0} bytes in one batch: at most {BATCH_BYTES_MAX}")]
    TooLarge(usize),
    #[error("event {index} cannot be read: {source}")]
    Unreadable { index: usize, source: serde_json::Error },
    #[error("only the operator writes {0}")]
    NotTheRunners(&'static str),
}

/// The events of a batch, all of them a runner's own.
pub(super) fn parse(batch: &Batch) -> Result<Vec<Event>, BatchError> {
    if batch.events.is_empty() {
        return Err(BatchError::Empty);
    }
    if batch.events.len() > BATCH_EVENTS_MAX {
        return Err(BatchError::TooMany(batch.events.len()));
    }
    let bytes = batch.events.iter().map(Vec::len).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(BatchError::TooLarge(bytes));
    }
    let read = |(index, bytes): (usize, &Vec<u8>)| {
        let event: Event = serde_json::from_slice(bytes).map_err(|source| BatchError::Unreadable { index, source })?;
        if event.is_runners() { Ok(event) } else { Err(BatchError::NotTheRunners(event.name())) }
    };
    batch.events.iter().enumerate().map(read).collect()
}

/// Whether the batch asks for leave to ask the model: such an answer waits while the Agent is suspended.
pub(super) fn asks(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::ModelRequested { .. }))
}

/// The answer to batch `n`: what is said to each model request of it, and the verdicts that `records` hold, as
/// far as they still stand in `state`.
pub(super) fn ack(n: u64, state: &RunState, asked: &[Event], records: &[SealedRecord]) -> Ack {
    let (seq, hash) = records.last().map_or((0, Digest::zero()), |last| (last.record.seq, last.hash));
    // A request that a limit refused is in no record; it is answered all the same.
    let requests = asked.iter().filter_map(|event| request_decision(state, event));
    let verdicts = records.iter().filter_map(|sealed| call_decision(state, &sealed.record.event));
    Ack { n, seq, hash: hash.as_bytes().to_vec(), decisions: requests.chain(verdicts).collect() }
}

fn request_decision(state: &RunState, event: &Event) -> Option<Decision> {
    let Event::ModelRequested { step, attempt, .. } = event else { return None };
    Some(said(format!("m{step}"), *attempt, model_verdict(state, *step, *attempt)))
}

fn call_decision(state: &RunState, event: &Event) -> Option<Decision> {
    let Event::CallDecided { call_id, attempt, verdict, .. } = event else { return None };
    Some(said(call_id.clone(), *attempt, call_verdict(state, call_id, *attempt, verdict)))
}

fn model_verdict(state: &RunState, step: u32, attempt: u32) -> Said {
    let in_flight =
        matches!(state.model, ModelState::InFlight { step: s, attempt: a, .. } if (s, a) == (step, attempt));
    match (&state.end, state.cancel_requested) {
        (Some(end), _) => Said::Denied(end_words(end)),
        (None, true) => Said::Denied("the run is being cancelled".to_owned()),
        // A model request is bound to no bytes: the journal holds the digest of what is sent.
        (None, false) if in_flight => permit(&[]),
        (None, false) => Said::Denied("this request was answered before".to_owned()),
    }
}

/// A permit that was used or given back is not handed out again.
fn call_verdict(state: &RunState, call_id: &str, attempt: u32, verdict: &Verdict) -> Said {
    let out = matches!(state.calls.get(call_id), Some(CallState::Permitted { attempt: a, .. }) if *a == attempt);
    let delegated = matches!(state.calls.get(call_id), Some(CallState::Delegated { attempt: a, .. }) if *a == attempt);
    match verdict {
        Verdict::Allowed { digest } if out => permit(digest.as_bytes()),
        // A run of another Agent carries it out. What comes of it another pod hears, as with what people are asked.
        Verdict::Allowed { .. } if delegated => Said::Asked(Asked {}),
        Verdict::Allowed { .. } => Said::Denied("this permit was used or given back".to_owned()),
        Verdict::Denied { message, .. } => Said::Denied(message.clone()),
        Verdict::Asked { .. } => Said::Asked(Asked {}),
        Verdict::Later { .. } => Said::Later(Later {}),
    }
}

/// The newest no to that call.
pub(super) fn denial(records: &[SealedRecord], call_id: &str) -> Option<Decision> {
    records.iter().rev().find_map(|sealed| match &sealed.record.event {
        Event::CallDecided { call_id: id, attempt, verdict: Verdict::Denied { message, .. }, .. } if id == call_id => {
            Some(later_word(call_id, *attempt, Some(message)))
        }
        _ => None, // nothing else is a no
    })
}

/// What is said later about a call that the runner waits with.
pub(super) fn later_word(call_id: &str, attempt: u32, denied: Option<&str>) -> Decision {
    let verdict = denied.map_or(Said::Again(Again {}), |message| Said::Denied(message.to_owned()));
    said(call_id.to_owned(), attempt, verdict)
}

fn permit(digest: &[u8]) -> Said {
    Said::Permit(Permit { digest: digest.to_vec(), valid_milliseconds: PERMIT_VALID_MILLISECONDS })
}

fn said(subject: String, attempt: u32, verdict: Said) -> Decision {
    Decision { subject, attempt, verdict: Some(verdict) }
}

/// An end as the runner's log shows it.
pub(super) fn end_words(end: &RunEnd) -> String {
    let words = format!("{:?} ({:?})", end.outcome, end.reason);
    if end.message.is_empty() { words } else { format!("{words}: {}", end.message) }
}
