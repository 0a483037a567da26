//! What a run and its Tools tell each other about definitions: a run that saw another one has its Tool look again, and
//! takes over what people accepted since. A run's own listing never changes what is accepted.

use std::time::Duration;

use belay_protocol::event::Event;
use belay_protocol::fold::RunState;
use kube::runtime::controller::Action;
use tokio::time::Instant;

use super::AgentRuns;
use super::drift::{DriftSeen, is_behind};
use super::follow::SOON;
use super::observe::Sight;
use crate::controller::Failure;

/// How often one run doubts a Tool whose server it saw later than its Tool did.
pub(super) const DOUBT_EVERY: Duration = Duration::from_secs(30);

impl AgentRuns {
    /// The run goes by what is accepted now; its next epoch lists again.
    pub(super) async fn adopt(&self, sight: &Sight, tool: &str) -> Result<Action, Failure> {
        if let DriftSeen::Accepted { tool: seen, operations, approval } = &*sight.drift
            && seen == tool
        {
            let (operations, approval) = (operations.clone(), approval.clone());
            tracing::info!(
                namespace = sight.id.namespace,
                run = sight.id.name,
                tool,
                ?approval,
                "definitions taken over"
            );
            let accepted = Event::DefinitionsAccepted { tool: seen.clone(), operations, approval };
            self.append(sight, vec![accepted]).await?;
        }
        Ok(Action::requeue(SOON))
    }

    /// A runner saw a server otherwise than it was accepted, and later than the server's Tool did: a probe looks again,
    /// and what it finds is what people are asked about.
    pub(super) async fn doubt_tools(&self, sight: &Sight, state: &RunState) {
        if state.differs.is_empty() {
            return;
        }
        let namespace = &sight.id.namespace;
        let behind: Vec<_> = state
            .differing()
            .filter(|planned| {
                self.world.tool(namespace, &planned.name).is_some_and(|tool| is_behind(state, planned, &tool))
            })
            .collect();
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_none_or(|at| now.duration_since(at) >= DOUBT_EVERY);
        if behind.is_empty() || !due(sight.memory.doubted_at) {
            return;
        }
        self.memories.change(&sight.id.uid, |memory| memory.doubted_at = Some(now));
        for planned in behind {
            self.probes.again(&planned.uid);
            self.queues.tools.push(namespace, &planned.name).await;
        }
    }
}
