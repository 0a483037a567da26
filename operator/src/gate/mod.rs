//! The reference monitor: decides what a runner proposes, by the frozen plan, the run's state and what policies
//! said. Pure; the journal records proposal and decision together.

mod calls;
mod children;
mod closing;
mod ends;
mod grants;
mod law;

pub use closing::{ModelRequest, close};
pub use grants::is_good;
pub use law::{Law, Word, Words};

#[cfg(test)]
pub(crate) mod tests;

use belay_protocol::Record;
use belay_protocol::event::{Event, LaterReason};
use belay_protocol::fold::{CallState, IllegalEvent, RunState};

/// What stands outside the plan and the journal when a batch is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Running,
    /// `Agent.spec.suspend`: nothing is permitted for now.
    Suspended,
}

/// What the installation still lets the run write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    #[default]
    Left,
    /// The batch would take the run's records over this many bytes.
    Used { bytes_max: u64 },
}

/// What a decision depends on besides the run's state.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    pub standing: Standing,
    pub room: Room,
    /// What policies said of each proposal of the batch.
    pub words: &'a Words,
    /// Milliseconds since the Unix epoch, never before the newest record's.
    pub now: i64,
}

/// The events to journal for a batch: the runner's own, each followed by what the operator says to it. Without room
/// what the batch reports is taken, what it asks for is not, and the run ends.
///
/// # Errors
/// The first event that cannot follow; then nothing of the batch may be journaled.
pub fn decide(
    state: &RunState,
    events: Vec<Event>,
    circumstances: &Circumstances<'_>,
) -> Result<Vec<Event>, IllegalEvent> {
    let mut run = state.clone();
    let mut decided = Vec::with_capacity(events.len() * 2);
    for event in events {
        if circumstances.room != Room::Left && asks(&event) {
            break;
        }
        // A request that the budget refuses never becomes a request in flight.
        let refusal = match &event {
            Event::ModelRequested { reserved_tokens, .. } => ends::before_request(&run, *reserved_tokens),
            _ => None,
        };
        if let Some(refusal) = refusal {
            for event in conclude(&run, refusal) {
                take(&mut run, &mut decided, event)?;
            }
            break;
        }
        let answer = verdict(&run, &event, circumstances);
        let end = ends::after(&run, &event);
        take(&mut run, &mut decided, event)?;
        if let Some(verdict) = answer {
            take(&mut run, &mut decided, verdict.clone())?;
            if let Some(opened) = children::open(&run, &verdict) {
                take(&mut run, &mut decided, opened)?;
            }
        }
        for event in end.map(|end| conclude(&run, end)).unwrap_or_default() {
            take(&mut run, &mut decided, event)?;
        }
        if run.end.is_some() {
            break;
        }
    }
    if run.end.is_none() {
        for event in ends::without_room(&run, circumstances.room).map(|end| conclude(&run, end)).unwrap_or_default() {
            take(&mut run, &mut decided, event)?;
        }
    }
    Ok(decided)
}

/// Whether the runner wants leave to do something.
fn asks(event: &Event) -> bool {
    matches!(event, Event::ModelRequested { .. } | Event::CallProposed { .. })
}

/// An end with what has to come before it: a runner that was taken over ends its run in the middle of a call, and
/// nothing that a run leaves open could be closed after its end.
fn conclude(run: &RunState, end: Vec<Event>) -> Vec<Event> {
    let mut events = close(run, ModelRequest::Given, "the run ended before this one's end was known");
    events.extend(end);
    events
}

fn take(run: &mut RunState, decided: &mut Vec<Event>, event: Event) -> Result<(), IllegalEvent> {
    let record = Record { seq: run.seq + 1, at: run.updated_at, event };
    run.apply(&record)?;
    decided.push(record.event);
    Ok(())
}

fn verdict(run: &RunState, event: &Event, circumstances: &Circumstances<'_>) -> Option<Event> {
    let Event::CallProposed { call_id, attempt, call } = event else { return None };
    let proposal = calls::Proposal { call_id, attempt: *attempt, call };
    let (verdict, judged) = calls::judge(run, &proposal, circumstances);
    Some(Event::CallDecided { call_id: call_id.clone(), attempt: *attempt, verdict, judged: judged.map(Box::new) })
}

/// What holds every permit of the run up: its Agent is suspended, an earlier epoch may still act, a tool's server offers
/// an operation otherwise than it was accepted, or people are asked what became of a call.
#[must_use]
pub fn held(run: &RunState, standing: Standing) -> Option<LaterReason> {
    let asked = run.calls.values().any(|call| matches!(call, CallState::Unknown { .. }));
    match standing {
        Standing::Suspended => Some(LaterReason::Suspended),
        Standing::Running if !run.undead.is_empty() => Some(LaterReason::EarlierEpoch),
        Standing::Running if run.drifted().next().is_some() => Some(LaterReason::DefinitionDrifted),
        Standing::Running => asked.then_some(LaterReason::UnknownCall),
    }
}
