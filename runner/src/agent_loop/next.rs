//! What is to be done next, read from the run's state and from what this process was told to wait with. Pure.

use std::collections::BTreeSet;

use belay_protocol::RunState;
use belay_protocol::fold::{CallState, ModelState, call_number};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask every tool's server what it offers.
    List,
    Ask {
        step: u32,
        attempt: u32,
    },
    /// Propose these calls, in this order, and send what is permitted.
    Propose(Vec<Due>),
    /// Calls are under way: one of them ends first.
    Busy,
    /// Nothing is left to do here: the operator has the next word.
    Wait,
}

/// One attempt of a call that is to be proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub call_id: String,
    pub attempt: u32,
}

/// The next step of a run; `listed`: this process has asked the tools' servers; `parked`: calls that it was told to
/// wait with.
pub fn next(state: &RunState, listed: bool, parked: &BTreeSet<String>) -> Next {
    let failed = state.failure.as_ref().is_some_and(|failure| !failure.retrying);
    if state.end.is_some() || failed {
        return Next::Wait;
    }
    let ask = match state.model {
        // The operator closed what an earlier epoch left in flight before this one began.
        ModelState::InFlight { .. } | ModelState::Done => return Next::Wait,
        ModelState::Idle | ModelState::Failed { .. } if !listed => return Next::List,
        ModelState::Idle => Next::Ask { step: state.steps + 1, attempt: 1 },
        ModelState::Failed { step, attempt } => Next::Ask { step, attempt: attempt + 1 },
    };
    // The operator holds all of it up: its end is another epoch's beginning.
    if state.drifted().next().is_some() {
        return if state.calls_in_flight().next().is_some() { Next::Busy } else { Next::Wait };
    }
    let due = due(state, parked);
    if !due.is_empty() {
        Next::Propose(due)
    } else if state.calls_in_flight().next().is_some() {
        Next::Busy
    } else if state.is_settled() {
        ask
    } else {
        Next::Wait
    }
}

/// Calls worth proposing now, in the order of the response. Nothing while people are asked what became of one.
fn due(state: &RunState, parked: &BTreeSet<String>) -> Vec<Due> {
    if state.calls.values().any(|call| matches!(call, CallState::Unknown { .. })) {
        return Vec::new();
    }
    let mut due: Vec<Due> = (state.calls.iter())
        .filter(|(call_id, _)| !parked.contains(*call_id))
        .filter_map(|(call_id, call)| {
            let attempt = match call {
                CallState::Due { attempt } | CallState::Asked { attempt, .. } => *attempt,
                CallState::Later { attempt, call } => state.has_room(call_id, call).then_some(*attempt)?,
                // Whatever this process proposes is decided before it looks again.
                CallState::Proposed { .. }
                | CallState::Permitted { .. }
                | CallState::Unknown { .. }
                | CallState::InputRequired { .. }
                | CallState::Delegated { .. }
                | CallState::Settled(_) => return None,
            };
            Some(Due { call_id: call_id.clone(), attempt })
        })
        .collect();
    due.sort_by_key(|due| call_number(&due.call_id));
    due
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

    fn call() -> Arc<ProposedCall> {
        Arc::new(ProposedCall {
            tool: "t".to_owned(),
            operation: "o".to_owned(),
            args: serde_json::json!({}),
            definition: Digest::zero(),
            digest: Digest::zero(),
        })
    }

    fn asked() -> CallState {
        CallState::Asked { attempt: 1, call: call(), at: 0, requirements: Vec::new() }
    }

    fn looked(state: &RunState, listed: bool) -> Next {
        next(state, listed, &BTreeSet::new())
    }

    fn propose(calls: &[(&str, u32)]) -> Next {
        Next::Propose(calls.iter().map(|(id, attempt)| Due { call_id: (*id).to_owned(), attempt: *attempt }).collect())
    }

    #[test]
    fn calls_are_proposed_together_in_the_order_of_the_response() {
        let state = with_calls(&[
            ("c2", CallState::Settled(Settlement::Observed)),
            ("c9", CallState::Due { attempt: 2 }),
            ("c10", CallState::Due { attempt: 1 }),
        ]);
        assert_eq!(looked(&state, true), propose(&[("c9", 2), ("c10", 1)]));
    }

    #[test]
    fn a_call_that_was_told_to_wait_is_proposed_again_when_it_is_woken_and_has_room() {
        let later = CallState::Later { attempt: 1, call: call() };
        let permitted = CallState::Permitted { attempt: 1, call: call(), at: 0 };
        let parked = BTreeSet::from(["c2".to_owned()]);
        let state = with_calls(&[("c1", permitted), ("c2", later.clone())]);
        assert_eq!(next(&state, true, &parked), Next::Busy);
        assert_eq!(looked(&state, true), Next::Busy, "the one before it is under way");
        let state = with_calls(&[("c1", CallState::Settled(Settlement::Observed)), ("c2", later)]);
        assert_eq!(next(&state, true, &parked), Next::Wait);
        assert_eq!(looked(&state, true), propose(&[("c2", 1)]));
    }

    #[test]
    fn a_call_that_people_are_asked_about_waits_and_holds_up_no_other() {
        let parked = BTreeSet::from(["c1".to_owned()]);
        let state = with_calls(&[("c1", asked()), ("c2", CallState::Due { attempt: 1 })]);
        assert_eq!(next(&state, true, &parked), propose(&[("c2", 1)]));
        let state = with_calls(&[("c1", asked()), ("c2", CallState::Settled(Settlement::Observed))]);
        assert_eq!(next(&state, true, &parked), Next::Wait);
        assert_eq!(looked(&state, true), propose(&[("c1", 1)]));
    }

    #[test]
    fn the_model_is_asked_once_every_call_is_settled() {
        let state = with_calls(&[("c1", CallState::Settled(Settlement::Denied))]);
        assert_eq!(looked(&state, true), Next::Ask { step: 2, attempt: 1 });
        assert_eq!(looked(&state, false), Next::List);
    }

    #[test]
    fn a_failed_attempt_is_followed_by_the_next_one_unless_it_was_the_last() {
        let failure = |retrying| {
            Some(Failure {
                reason: FailureReason::RateLimited,
                message: String::new(),
                retrying,
                retry_after_seconds: None,
            })
        };
        let model = ModelState::Failed { step: 3, attempt: 1 };
        let state = RunState { model, failure: failure(true), ..RunState::default() };
        assert_eq!(looked(&state, true), Next::Ask { step: 3, attempt: 2 });
        let state = RunState { failure: failure(false), ..state };
        assert_eq!(looked(&state, true), Next::Wait);
    }

    #[test]
    fn nothing_is_done_while_a_person_is_asked_what_became_of_a_call() {
        let unknown = CallState::Unknown { attempt: 1, call: call(), at: 0, message: String::new() };
        let state = with_calls(&[("c1", unknown), ("c2", CallState::Due { attempt: 1 })]);
        assert_eq!(looked(&state, true), Next::Wait);
    }
}
