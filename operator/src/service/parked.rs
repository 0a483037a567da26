//! Calls that a runner was told to wait with, and when to tell it more about them. Pure.

use std::collections::BTreeMap;

use belay_protocol::chain::SealedRecord;
use belay_protocol::event::{Event, LaterReason, Verdict};
use belay_protocol::fold::{CallState, RunState, Settlement};

use crate::gate::{Standing, held};

/// How many looks a call waits whose policy could not be evaluated in time.
const STALLED_LOOKS: u32 = 10;

/// By call id and attempt.
#[derive(Debug, Default)]
pub(super) struct Parked(BTreeMap<(String, u32), Waits>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// For people.
    Asked,
    /// Until nothing holds up the whole run any more.
    Held,
    /// For other calls of this runner. It proposes by itself once one comes back from its tool, but not where one
    /// ends without having been sent.
    Siblings,
    /// A policy is tried again after so many looks.
    Policy(u32),
}

/// What a look came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub call_id: String,
    pub attempt: u32,
    pub what: Tell,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tell {
    Again,
    /// The verdict is in the journal.
    Denied,
}

impl Parked {
    /// A runner that comes back may have missed anything about the calls of the newest response.
    pub fn returning(state: &RunState) -> Self {
        let waits = |(call_id, call): (&String, &CallState)| match call {
            CallState::Due { attempt } | CallState::Later { attempt, .. } => {
                Some(((call_id.clone(), *attempt), Waits::Held))
            }
            CallState::Asked { attempt, .. } => Some(((call_id.clone(), *attempt), Waits::Asked)),
            // Its attempt is not in the state; the first is the one that people were asked about.
            CallState::Settled(Settlement::Denied) => Some(((call_id.clone(), 1), Waits::Asked)),
            CallState::Proposed { .. }
            | CallState::Permitted { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
            | CallState::Settled(_) => None,
        };
        Self(state.calls.iter().filter_map(waits).collect())
    }

    /// A new runner goes by its Welcome, and waits for people where an earlier one had asked them.
    pub fn welcomed(state: &RunState) -> Self {
        let waits = |(call_id, call): (&String, &CallState)| match call {
            CallState::Asked { attempt, .. } => Some(((call_id.clone(), *attempt), Waits::Asked)),
            CallState::Due { .. }
            | CallState::Later { .. }
            | CallState::Proposed { .. }
            | CallState::Permitted { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
            | CallState::Settled(_) => None,
        };
        Self(state.calls.iter().filter_map(waits).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in the verdicts that the runner is being told.
    pub fn note(&mut self, records: &[SealedRecord]) {
        for sealed in records {
            let Event::CallDecided { call_id, attempt, verdict, .. } = &sealed.record.event else { continue };
            let waits = match verdict {
                Verdict::Allowed { .. } | Verdict::Denied { .. } => None,
                Verdict::Asked { .. } => Some(Waits::Asked),
                Verdict::Later { reason } => Some(match reason {
                    LaterReason::Suspended
                    | LaterReason::EarlierEpoch
                    | LaterReason::UnknownCall
                    | LaterReason::DefinitionDrifted => Waits::Held,
                    LaterReason::CallsUnderWay => Waits::Siblings,
                    LaterReason::PolicyStalled => Waits::Policy(STALLED_LOOKS),
                }),
            };
            let key = (call_id.clone(), *attempt);
            match waits {
                Some(waits) => drop(self.0.insert(key, waits)),
                None => drop(self.0.remove(&key)),
            }
        }
    }

    /// What the runner is to be told now; each call once, until it is told to wait again.
    pub fn look(&mut self, state: &RunState, standing: Standing) -> Vec<Told> {
        let mut told = Vec::new();
        self.0.retain(|(call_id, attempt), waits| {
            let what = match state.calls.get(call_id) {
                Some(CallState::Due { attempt: due } | CallState::Later { attempt: due, .. }) if due == attempt => {
                    match waits {
                        // People said yes: what else holds the call up is said when it is proposed.
                        Waits::Asked | Waits::Policy(0) => Tell::Again,
                        Waits::Held if held(state, standing).is_none() => Tell::Again,
                        Waits::Siblings if has_room(state, call_id) => Tell::Again,
                        Waits::Policy(looks) => {
                            *looks -= 1;
                            return true;
                        }
                        Waits::Held | Waits::Siblings => return true,
                    }
                }
                Some(CallState::Asked { attempt: asked, .. }) if asked == attempt => return true,
                Some(CallState::Settled(Settlement::Denied)) => Tell::Denied,
                // It went on without being told.
                Some(
                    CallState::Due { .. }
                    | CallState::Later { .. }
                    | CallState::Asked { .. }
                    | CallState::Proposed { .. }
                    | CallState::Permitted { .. }
                    | CallState::Unknown { .. }
                    | CallState::InputRequired { .. }
                    | CallState::Delegated { .. }
                    | CallState::Settled(_),
                )
                | None => return false,
            };
            told.push(Told { call_id: call_id.clone(), attempt: *attempt, what });
            false
        });
        told
    }
}

fn has_room(state: &RunState, call_id: &str) -> bool {
    match state.calls.get(call_id) {
        Some(CallState::Later { call, .. }) => state.has_room(call_id, call),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use belay_protocol::Digest;
    use belay_protocol::event::ProposedCall;

    use super::*;

    fn with_call(call: CallState) -> RunState {
        RunState { calls: BTreeMap::from([("c1".to_owned(), call)]), ..RunState::default() }
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

    #[test]
    fn a_call_that_waits_for_another_is_told_to_go_when_that_one_ends_unsent() {
        let later = |attempt| CallState::Later { attempt, call: call() };
        let both = |first| RunState {
            calls: BTreeMap::from([("c1".to_owned(), first), ("c2".to_owned(), later(1))]),
            ..RunState::default()
        };
        let mut parked = Parked(BTreeMap::from([(("c2".to_owned(), 1), Waits::Siblings)]));
        assert_eq!(parked.look(&both(later(1)), Standing::Running), []);
        let told = parked.look(&both(CallState::Settled(Settlement::Denied)), Standing::Running);
        assert_eq!(told, [Told { call_id: "c2".to_owned(), attempt: 1, what: Tell::Again }]);
        assert!(parked.is_empty());
    }

    #[test]
    fn a_new_runner_is_woken_when_people_allow_what_an_earlier_one_had_asked() {
        let asked = CallState::Asked { attempt: 1, call: call(), at: 0, requirements: Vec::new() };
        let mut parked = Parked::welcomed(&with_call(asked.clone()));
        assert_eq!(parked.look(&with_call(asked), Standing::Running), []);
        let told = parked.look(&with_call(CallState::Due { attempt: 1 }), Standing::Running);
        assert_eq!(told, [Told { call_id: "c1".to_owned(), attempt: 1, what: Tell::Again }]);
        assert!(Parked::welcomed(&with_call(CallState::Due { attempt: 1 })).is_empty(), "its Welcome says so");
    }
}
