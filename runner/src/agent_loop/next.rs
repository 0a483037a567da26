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
    /// A request of an earlier epoch, whose answer nobody has.
    GiveUpRequest {
        step: u32,
        attempt: u32,
    },
    /// Propose this call, and send it if that is permitted.
    Call {
        call_id: String,
        attempt: u32,
    },
    /// A call that an earlier epoch may have sent.
    GiveUpCall {
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
        ModelState::InFlight { step, attempt, .. } => Next::GiveUpRequest { step, attempt },
        ModelState::Done => Next::Wait,
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
        CallState::Requested => Next::Call { call_id, attempt: 1 },
        CallState::Returned { attempt } => Next::Call { call_id, attempt: *attempt },
        // Whatever this process proposes is decided before it looks again: these are of another one.
        CallState::Proposed { attempt, .. } | CallState::Permitted { attempt, .. } => {
            Next::GiveUpCall { call_id, attempt: *attempt }
        }
        CallState::Settled(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_protocol::event::{Failure, FailureReason};
    use belay_protocol::fold::Settlement;

    fn with_calls(calls: &[(&str, CallState)]) -> RunState {
        let calls = calls.iter().map(|(id, call)| ((*id).to_owned(), call.clone())).collect();
        RunState { steps: 1, calls, ..RunState::default() }
    }

    #[test]
    fn calls_are_taken_in_the_order_of_the_response() {
        let state = with_calls(&[
            ("c2", CallState::Settled(Settlement::Observed)),
            ("c9", CallState::Returned { attempt: 2 }),
            ("c10", CallState::Requested),
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
    fn what_an_earlier_epoch_left_in_flight_is_given_up_first() {
        let permitted = CallState::Permitted { attempt: 1, tool: "t".to_owned(), operation: "o".to_owned() };
        let state = with_calls(&[("c1", permitted)]);
        assert_eq!(next(&state, true), Next::GiveUpCall { call_id: "c1".to_owned(), attempt: 1 });
        let model = ModelState::InFlight { step: 2, attempt: 1, reserved_tokens: 0 };
        let state = RunState { model, ..RunState::default() };
        assert_eq!(next(&state, false), Next::GiveUpRequest { step: 2, attempt: 1 });
    }
}
