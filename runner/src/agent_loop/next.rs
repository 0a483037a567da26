//! What is to be done next, read from the run's state alone. Pure.

use belay_protocol::RunState;
use belay_protocol::fold::{CallState, ModelState};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask every tool's server what it offers.
    List,
    Ask {
        step: u32,
        attempt: u32,
    },
    /// Propose this call, and send it if that is permitted.
    Call {
        call_id: String,
        attempt: u32,
    },
    /// Nothing is left to do here: the operator has the next word.
    Wait,
}

/// The next step of a run; `listed`: this process has asked the tools' servers.
pub fn next(state: &RunState, listed: bool) -> Next {
    let failed = state.failure.as_ref().is_some_and(|failure| !failure.retrying);
    if state.end.is_some() || failed {
        return Next::Wait;
    }
    match state.model {
        // The operator closed what an earlier epoch left in flight before this one began.
        ModelState::InFlight { .. } | ModelState::Done => Next::Wait,
        ModelState::Idle | ModelState::Failed { .. } if !listed => Next::List,
        ModelState::Idle => next_call(state).unwrap_or(Next::Ask { step: state.steps + 1, attempt: 1 }),
        ModelState::Failed { step, attempt } => next_call(state).unwrap_or(Next::Ask { step, attempt: attempt + 1 }),
    }
}

/// The first call, in the order of the response, that has not come to its end.
fn next_call(state: &RunState) -> Option<Next> {
    let number = |call_id: &str| call_id.get(1..).and_then(|digits| digits.parse::<u32>().ok());
    let open = state.calls.iter().filter(|(_, call)| !matches!(call, CallState::Settled(_)));
    let (call_id, call) = open.min_by_key(|(call_id, _)| number(call_id))?;
    let call_id = call_id.clone();
    Some(match call {
        CallState::Due { attempt } => Next::Call { call_id, attempt: *attempt },
        // A person has the next word, or the operator has: whatever this process proposes is decided before it
        // looks again.
        CallState::Unknown { .. } | CallState::Proposed { .. } | CallState::Permitted { .. } => Next::Wait,
        CallState::Settled(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use belay_protocol::Digest;
    use belay_protocol::event::{Failure, FailureReason, ProposedCall};
    use belay_protocol::fold::Settlement;

    fn with_calls(calls: &[(&str, CallState)]) -> RunState {
        let calls = calls.iter().map(|(id, call)| ((*id).to_owned(), call.clone())).collect();
        RunState { steps: 1, calls, ..RunState::default() }
    }

    #[test]
    fn calls_are_taken_in_the_order_of_the_response() {
        let state = with_calls(&[
            ("c2", CallState::Settled(Settlement::Observed)),
            ("c9", CallState::Due { attempt: 2 }),
            ("c10", CallState::Due { attempt: 1 }),
        ]);
        assert_eq!(next(&state, true), Next::Call { call_id: "c9".to_owned(), attempt: 2 });
    }

    #[test]
    fn the_model_is_asked_once_every_call_is_settled() {
        let state = with_calls(&[("c1", CallState::Settled(Settlement::Denied))]);
        assert_eq!(next(&state, true), Next::Ask { step: 2, attempt: 1 });
        assert_eq!(next(&state, false), Next::List);
    }

    #[test]
    fn a_failed_attempt_is_followed_by_the_next_one_unless_it_was_the_last() {
        let failure = |retrying| Some(Failure { reason: FailureReason::RateLimited, message: String::new(), retrying });
        let model = ModelState::Failed { step: 3, attempt: 1 };
        let state = RunState { model, failure: failure(true), ..RunState::default() };
        assert_eq!(next(&state, true), Next::Ask { step: 3, attempt: 2 });
        let state = RunState { failure: failure(false), ..state };
        assert_eq!(next(&state, true), Next::Wait);
    }

    #[test]
    fn nothing_is_done_while_a_person_is_asked() {
        let call = ProposedCall {
            tool: "t".to_owned(),
            operation: "o".to_owned(),
            args: serde_json::json!({}),
            definition: Digest::zero(),
            digest: Digest::zero(),
        };
        let unknown = CallState::Unknown { attempt: 1, call: Arc::new(call), at: 0, message: String::new() };
        let state = with_calls(&[("c1", unknown), ("c2", CallState::Due { attempt: 1 })]);
        assert_eq!(next(&state, true), Next::Wait);
    }
}
