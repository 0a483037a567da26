//! The reference monitor: decides what a runner proposes, by the frozen plan and the run's state alone. Pure;
//! the journal records proposal and decision together.

mod calls;
mod closing;
mod ends;

pub use closing::{ModelRequest, close};

#[cfg(test)]
pub(crate) mod tests;

use belay_protocol::Record;
use belay_protocol::event::Event;
use belay_protocol::fold::{CallState, IllegalEvent, RunState};

/// What stands outside the plan and the journal when a batch is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Running,
    /// `Agent.spec.suspend`: nothing is permitted for now. Proposals are journaled and decided later.
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
        let answer = if waits(&run, standing) { None } else { verdict(&run, &event) };
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

/// The verdicts on proposals that were journaled undecided, once nothing holds them up any more. `events` are
/// those that the proposals were journaled with.
#[must_use]
pub fn decide_late(state: &RunState, events: &[Event], standing: Standing) -> Vec<Event> {
    let mut run = state.clone();
    let mut decided = Vec::new();
    if waits(&run, standing) || run.end.is_some() {
        return decided;
    }
    for event in events.iter().filter(|event| is_open(state, event)) {
        // Each is open, so its verdict can follow; one that could not would be no permit.
        if let Some(verdict) = verdict(&run, event)
            && take(&mut run, &mut decided, verdict).is_err()
        {
            break;
        }
    }
    decided
}

fn verdict(run: &RunState, event: &Event) -> Option<Event> {
    let Event::CallProposed { call_id, attempt, call } = event else { return None };
    let verdict = calls::judge(run, call);
    Some(Event::CallDecided { call_id: call_id.clone(), attempt: *attempt, verdict })
}

/// Proposals are held while the Agent is suspended, while an earlier epoch may still act on a permit, and while
/// people are asked what became of a call. A run that is being cancelled is told no instead.
#[must_use]
pub fn waits(run: &RunState, standing: Standing) -> bool {
    let suspended = match standing {
        Standing::Running => false,
        Standing::Suspended => true,
    };
    let asked = run.calls.values().any(|call| matches!(call, CallState::Unknown { .. }));
    (suspended || asked || !run.undead.is_empty()) && !run.cancel_requested
}

fn is_open(state: &RunState, event: &Event) -> bool {
    let Event::CallProposed { call_id, attempt, .. } = event else { return false };
    matches!(state.calls.get(call_id), Some(CallState::Proposed { attempt: open, .. }) if open == attempt)
}
