//! The first step of an epoch: asks every tool's server what it offers, and keeps what the plan accepted.

use std::time::Duration;

use belay_protocol::Event;
use belay_protocol::event::{ListedOperation, Listing};
use futures::future::join_all;
use tokio::time::Instant;

use super::{Agent, Halt, milliseconds_since};
use crate::models::OfferedTool;
use crate::tools::{Definition, ListError, ToolServer};

/// A server whose pod has just started may not listen yet, and one connection may break at any time.
const PAUSES_MILLISECONDS: [u64; 2] = [500, 2000];

struct Listed {
    tool: String,
    result: Result<Vec<Definition>, ListError>,
    milliseconds: u64,
}

impl Agent {
    pub(super) async fn list(&mut self) -> Result<(), Halt> {
        let listings = join_all(self.servers.iter().map(|(tool, server)| async move {
            let start = Instant::now();
            let result = list_patiently(server.lock().await.as_mut()).await;
            Listed { tool: tool.clone(), result, milliseconds: milliseconds_since(start) }
        }));
        let listings = tokio::select! {
            listings = listings => listings,
            () = self.operator.stopped() => return Ok(()),
        };
        let mut offered = Vec::new();
        let mut failure = None;
        for Listed { tool, result, milliseconds } in listings {
            match result {
                Ok(mut definitions) => {
                    definitions.retain(|definition| self.redactor.is_clean(&definition.name));
                    self.log.listed(&tool, definitions.len(), milliseconds);
                    let listing = Listing::Listed(definitions.iter().map(listed_operation).collect());
                    self.record(Event::ToolsListed { tool: tool.clone(), listing })?;
                    offered.extend(self.accepted(&tool, definitions));
                }
                Err(error) => {
                    self.log.listing_failed(&tool, error.reason, milliseconds);
                    failure.get_or_insert((tool, error));
                }
            }
        }
        // Nothing may follow a failure: the run ends with it.
        if let Some((tool, error)) = failure {
            self.record(Event::ToolsListed { tool, listing: Listing::Failed(error.into_failure()) })?;
        }
        self.offered = Some(offered);
        Ok(())
    }

    /// What of a listing the plan accepted: the same names with the same definitions.
    fn accepted(&self, tool: &str, definitions: Vec<Definition>) -> Vec<OfferedTool> {
        let Some(tool) = self.plan.tool(tool) else { return Vec::new() };
        let offer = |definition: Definition| {
            let operation = tool.operation(&definition.name)?;
            (!operation.gone && operation.definition == definition.digest).then(|| OfferedTool {
                name: operation.model_name.clone(),
                description: self.redactor.redact(&definition.description).into_owned(),
                input_schema: self.redactor.redact_json(definition.input_schema),
            })
        };
        definitions.into_iter().filter_map(offer).collect()
    }
}

async fn list_patiently(server: &mut dyn ToolServer) -> Result<Vec<Definition>, ListError> {
    for pause in PAUSES_MILLISECONDS {
        match server.list().await {
            Err(error) if error.is_transient() => {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            result => return result,
        }
    }
    server.list().await
}

fn listed_operation(definition: &Definition) -> ListedOperation {
    ListedOperation { name: definition.name.clone(), definition: definition.digest }
}
