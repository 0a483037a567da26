//! Which calls of one response may be under way together. Operator and runner read it alike: the one to permit, the
//! other to know what is worth proposing again.

use super::{CallState, RunState};
use crate::event::ProposedCall;
use crate::plan::Effects;

impl RunState {
    /// Whether this call could go just now beside its siblings.
    ///
    /// Calls of one response go in its order. One that may change something goes alone, so that a crash leaves one
    /// Unknown and not several, and what follows sees what it did. Calls that only read go together, one to a tool:
    /// a tool's server is one conversation. A call that people are asked about, or that another run carries out,
    /// holds up no other.
    #[must_use]
    pub fn has_room(&self, call_id: &str, call: &ProposedCall) -> bool {
        let reads = self.reads(call);
        let beside = self.calls_in_flight().all(|(_, _, other)| reads && self.reads(other) && other.tool != call.tool);
        let first = !self.calls.iter().any(|(id, call)| {
            let holds_up = match call {
                CallState::Due { .. } | CallState::Proposed { .. } => true,
                CallState::Later { call, .. } => !(reads && self.reads(call)),
                CallState::Asked { .. }
                | CallState::Permitted { .. }
                | CallState::Unknown { .. }
                | CallState::InputRequired { .. }
                | CallState::Delegated { .. }
                | CallState::Settled(_) => false,
            };
            holds_up && call_number(id) < call_number(call_id)
        });
        beside && first
    }

    fn reads(&self, call: &ProposedCall) -> bool {
        let effects = self.plan.as_ref().map(|plan| plan.effects(&call.tool, &call.operation));
        effects == Some(Effects::None)
    }
}

/// Ids count up: `c2` comes before `c10`.
#[must_use]
pub fn call_number(call_id: &str) -> u32 {
    call_id.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(u32::MAX)
}
