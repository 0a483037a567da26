//! An Agent as a tool: the operator starts a run for each call, and no runner sends anything.

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::event::{FailureReason, NotSentReason};
use belay_protocol::plan::PlanAgent;
use belay_protocol::subagent::{OPERATION, input_schema};

use super::{Call, Definition, ListError, Outcome, ToolServer};
use crate::permit::Permit;

pub struct Subagent(PlanAgent);

impl Subagent {
    #[must_use]
    pub fn new(agent: PlanAgent) -> Self {
        Self(agent)
    }
}

#[async_trait]
impl ToolServer for Subagent {
    /// What the plan says: there is nobody to ask.
    async fn list(&mut self) -> Result<Vec<Definition>, ListError> {
        let Self(agent) = self;
        let digest = agent.definition().map_err(|error| ListError {
            reason: FailureReason::DefinitionsInvalid,
            message: format!("Agent {} cannot be offered as a tool: {error}", agent.name),
        })?;
        let (name, description, input_schema) = (OPERATION.to_owned(), agent.description.clone(), input_schema());
        Ok(vec![Definition { name, description, input_schema, digest }])
    }

    async fn prepare(&mut self) -> Result<(), ListError> {
        Ok(())
    }

    /// No operator permits a runner to do so.
    async fn call(&mut self, _: &Call, _: Permit, _: Duration) -> Outcome {
        let message = format!("a run of Agent {} is started by the operator alone", self.0.name);
        Outcome::NotSent { reason: NotSentReason::DestinationNotAllowed, message }
    }
}
