//! What an epoch leaves behind when it ends: each call that may be on the wire, and a model request without its
//! answer. Pure.

use belay_protocol::event::{Event, Failure, FailureReason};
use belay_protocol::fold::{ModelState, RunState};

/// Whether the runner ever got leave for the request that it announced last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRequest {
    /// It did, or nobody can tell: what it may have used counts as spent.
    Given,
    Withheld,
}

/// The events that close what is in flight. A call that may be sent again is due again; what became of any
/// other is not known.
#[must_use]
pub fn close(state: &RunState, request: ModelRequest, message: &str) -> Vec<Event> {
    let calls = state.calls_in_flight().map(|(call_id, attempt, call)| {
        let (call_id, message) = (call_id.to_owned(), message.to_owned());
        let repeats = state.plan.as_ref().is_some_and(|plan| plan.effects(&call.tool, &call.operation).may_repeat());
        if repeats {
            Event::CallInterrupted { call_id, attempt, message }
        } else {
            Event::CallUnknown { call_id, attempt, message }
        }
    });
    let request = match state.model {
        ModelState::InFlight { step, attempt, .. } => {
            let reason = match request {
                ModelRequest::Given => FailureReason::Interrupted,
                ModelRequest::Withheld => FailureReason::Withheld,
            };
            let failure = Failure { reason, message: message.to_owned(), retrying: true, retry_after_seconds: None };
            Some(Event::ModelFailed { step, attempt, failure, reported: None })
        }
        ModelState::Idle | ModelState::Failed { .. } | ModelState::Done => None,
    };
    // A claimed epoch alone can have a request in flight, and only while it lives may its failure be recorded.
    let lives = state.end.is_none() && state.live_epoch().is_some_and(|epoch| epoch.claim.is_some());
    calls.chain(request.filter(|_| lives)).collect()
}
