//! The reference monitor: decides what a runner proposes, by the frozen plan and the run's state alone. Pure;
//! the journal records proposal and decision together.

mod calls;
mod ends;

#[cfg(test)]
mod tests;

use belay_protocol::event::Event;
use belay_protocol::fold::{IllegalEvent, RunState};
use belay_protocol::{Digest, Record};

/// What stands outside the plan and the journal when a batch is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Running,
    /// `Agent.spec.suspend`: nothing more is permitted.
    Suspended,
}

/// The events to journal for a batch: the runner's own, each followed by what the operator says to it.
///
/// # Errors
/// The first event that cannot follow; then nothing of the batch may be journaled.
pub fn decide(state: &RunState, events: Vec<Event>, standing: Standing) -> Result<Vec<Event>, IllegalEvent> {
    let mut run = state.clone();
    let mut decided = Vec::with_capacity(events.len() * 2);
    for event in events {
        // A request that the budget refuses never becomes a request in flight.
        let refusal = match &event {
            Event::ModelRequested { reserved_tokens, .. } => ends::before_request(&run, *reserved_tokens),
            _ => None,
        };
        if let Some(refusal) = refusal {
            for event in refusal {
                take(&mut run, &mut decided, event)?;
            }
            break;
        }
        let answer = match &event {
            Event::CallProposed { call_id, attempt, call } => {
                let verdict = calls::judge(&run, call, standing);
                Some(Event::CallDecided { call_id: call_id.clone(), attempt: *attempt, verdict })
            }
            _ => None,
        };
        let end = ends::after(&run, &event);
        take(&mut run, &mut decided, event)?;
        for event in answer.into_iter().chain(end) {
            take(&mut run, &mut decided, event)?;
        }
        if run.end.is_some() {
            break;
        }
    }
    Ok(decided)
}

fn take(run: &mut RunState, decided: &mut Vec<Event>, event: Event) -> Result<(), IllegalEvent> {
    let record = Record { seq: run.seq + 1, at: run.updated_at, event };
    run.apply(&record)?;
    decided.push(record.event);
    Ok(())
}

/// Whether a model request of this batch may go: the run has not ended, is not being cancelled or suspended.
#[must_use]
pub fn may_request(state: &RunState, standing: Standing) -> bool {
    state.end.is_none() && !state.cancel_requested && standing == Standing::Running
}

/// A permit for a model request names no bytes: the runner builds the request from the journal itself.
pub const MODEL_PERMIT: Digest = Digest::zero();
