//! Runs that wait for definitions: in which words, and what ends that. Pure.

use std::time::Duration;

use belay_crds::WaitingOn;
use belay_crds::reason::RunReason;

use super::{Observed, Wait};
use crate::agent_run::drift::DriftSeen;
use crate::world::TOOL;

/// How long a run rests before it lists a server again that is said to be back: one that offers now this and now that
/// would cost pod after pod.
pub const BACK_AFTER: Duration = Duration::from_secs(30);

impl Observed<'_> {
    /// Why the run waits for a definition.
    pub(super) fn drift_wait(&self) -> Option<Wait> {
        let (tool, message) = match &self.drift {
            DriftSeen::None => return None,
            DriftSeen::Waits { tool, why } => (tool, why.clone()),
            DriftSeen::Unseen { tool } => (
                tool,
                format!(
                    "Tool {tool} does not offer an operation as it was accepted: a probe pod is asking its server, and then \
                     people are asked"
                ),
            ),
            DriftSeen::Accepted { tool, .. } => {
                let message = match &self.status_doubt {
                    Some(why) => {
                        format!("whether people accepted what Tool {tool} offers is not certain for now: {why}")
                    }
                    None => format!("what Tool {tool} offers is accepted by now: the run goes on in another pod"),
                };
                (tool, message)
            }
            DriftSeen::Back { tool } => {
                (tool, format!("Tool {tool} offers again what was accepted: the run goes on in another pod"))
            }
        };
        Some(Wait { on: WaitingOn::new(TOOL, tool), reason: RunReason::DefinitionDrifted, message })
    }

    /// Whether a pod that waits for a definition waits for nothing any more: the next one lists anew.
    pub(super) fn drift_is_over(&self) -> bool {
        match self.drift {
            DriftSeen::Accepted { .. } | DriftSeen::Back { .. } => true,
            DriftSeen::None | DriftSeen::Waits { .. } | DriftSeen::Unseen { .. } => false,
        }
    }

    /// Whether a run that rests may start the pod that lists again.
    pub(super) fn may_list_again(&self) -> bool {
        matches!(self.drift, DriftSeen::Back { .. }) && self.resting_for >= BACK_AFTER
    }
}
