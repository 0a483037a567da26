//! The first step of an epoch: asks every tool's server what it offers, and keeps what the plan accepted. A server that
//! says later that its list changed is asked again before the next call to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use belay_protocol::event::{FailureReason, ListedOperation, Listing};
use belay_protocol::plan::PlanOperation;
use belay_protocol::{Event, LISTINGS_PER_EPOCH_MAX};
use futures::future::join_all;
use tokio::time::Instant;

use super::flights::SharedServer;
use super::next::Due;
use super::{Agent, Halt, milliseconds_since};
use crate::models::OfferedTool;
use crate::tools::{Definition, ListError, ToolServer};

/// A server whose pod has just started may not listen yet, and one connection may break at any time.
const PAUSES_MILLISECONDS: [u64; 2] = [500, 2000];

/// A server whose list came back the same is not asked again at once: longer each time that it does, up to so long.
const IDLE_PAUSE: Duration = Duration::from_secs(5);
const IDLE_PAUSE_MOST: Duration = Duration::from_mins(1);

/// How often in a row a server's list came back the same, and when it did last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    times: u32,
    since: Instant,
}

impl Idle {
    fn again(before: Option<Self>, now: Instant) -> Self {
        Self { times: before.map_or(0, |idle| idle.times).saturating_add(1), since: now }
    }

    fn is_over(self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= IDLE_PAUSE.saturating_mul(self.times).min(IDLE_PAUSE_MOST)
    }
}

struct Listed {
    tool: String,
    result: Result<Vec<Definition>, ListError>,
    milliseconds: u64,
}

impl Agent {
    pub(super) async fn list(&mut self) -> Result<(), Halt> {
        let listings = join_all(self.servers.iter().map(|(tool, server)| ask(tool, server)));
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

    /// Asks the servers of these calls again that may offer something else by now. Which could not be asked, and why: no
    /// call goes to them.
    pub(super) async fn list_again(&mut self, due: &[Due]) -> Result<BTreeMap<String, ListError>, Halt> {
        let mut unlisted = self.given_up.clone();
        let changed = self.changed(due);
        if changed.is_empty() {
            return Ok(unlisted);
        }
        let listings = join_all(changed.iter().map(|(tool, server)| ask(tool, server)));
        let listings = tokio::select! {
            listings = listings => listings,
            () = self.operator.stopped() => return Ok(unlisted),
        };
        for Listed { tool, result, milliseconds } in listings {
            let relisted = match result {
                Ok(definitions) => self.relist(&tool, definitions, milliseconds)?,
                Err(error) => Err(error),
            };
            if let Err(error) = relisted {
                self.log.relisting_failed(self.progress.state().steps, &tool, error.reason, milliseconds);
                unlisted.insert(tool, error);
            }
        }
        Ok(unlisted)
    }

    /// One that is busy with a call gets no other meanwhile, and is asked before that.
    fn changed(&self, due: &[Due]) -> Vec<(String, SharedServer)> {
        let meant = |due: &Due| {
            let name = self.progress.requested(&due.call_id)?.name;
            Some(self.meant(&name)?.0.name.clone())
        };
        let tools: BTreeSet<String> = due.iter().filter_map(meant).collect();
        let now = Instant::now();
        let rests = |tool: &String| self.idle.get(tool).is_some_and(|idle| !idle.is_over(now));
        let tools = tools.into_iter().filter(|tool| !self.given_up.contains_key(tool) && !rests(tool));
        let servers = tools.filter_map(|tool| self.servers.get_key_value(&tool));
        let changed = servers.filter(|(_, server)| server.try_lock().is_ok_and(|server| server.has_changed()));
        changed.map(|(tool, server)| (tool.clone(), SharedServer::clone(server))).collect()
    }

    /// Reports what differs. The journal takes so many reports in one epoch: then the server is given up for this one.
    fn relist(
        &mut self,
        tool: &str,
        mut definitions: Vec<Definition>,
        milliseconds: u64,
    ) -> Result<Result<(), ListError>, Halt> {
        definitions.retain(|definition| self.redactor.is_clean(&definition.name));
        if !self.is_news(tool, &definitions) {
            let idle = Idle::again(self.idle.get(tool).copied(), Instant::now());
            self.idle.insert(tool.to_owned(), idle);
            return Ok(Ok(()));
        }
        self.idle.remove(tool);
        let reported = self.progress.state().listed.get(tool).copied().unwrap_or_default();
        if reported >= LISTINGS_PER_EPOCH_MAX {
            let error = restless(tool, reported);
            self.given_up.insert(tool.to_owned(), error.clone());
            return Ok(Err(error));
        }
        self.log.relisted(self.progress.state().steps, tool, definitions.len(), milliseconds);
        let listing = Listing::Listed(definitions.iter().map(listed_operation).collect());
        self.record(Event::ToolsListed { tool: tool.to_owned(), listing })?;
        let accepted = self.accepted(tool, definitions);
        let plan = &self.plan;
        let of_tool = |offered: &OfferedTool| plan.by_model_name(&offered.name).is_some_and(|(of, _)| of.name == tool);
        if let Some(offered) = &mut self.offered {
            // In the same place, so that requests to the model go on beginning alike.
            let at = offered.iter().position(of_tool).unwrap_or(offered.len());
            offered.retain(|one| !of_tool(one));
            offered.splice(at..at, accepted);
        }
        Ok(Ok(()))
    }

    /// Whether an operation of the plan is offered otherwise than this process has reported.
    fn is_news(&self, tool: &str, definitions: &[Definition]) -> bool {
        let state = self.progress.state();
        let differs = |operation: &PlanOperation| {
            let offered = definitions.iter().find(|one| one.name == operation.name).map(|one| one.digest);
            offered != state.offered(tool, &operation.name)
        };
        self.plan.tool(tool).is_some_and(|planned| planned.operations.iter().any(differs))
    }

    /// What of a listing the plan accepted: the same names with the same definitions. In the plan's order, whatever the
    /// server's is: requests to the model go on beginning alike.
    fn accepted(&self, tool: &str, definitions: Vec<Definition>) -> Vec<OfferedTool> {
        let Some(tool) = self.plan.tool(tool) else { return Vec::new() };
        let mut listed: BTreeMap<String, Definition> =
            definitions.into_iter().map(|definition| (definition.name.clone(), definition)).collect();
        let offer = |operation: &PlanOperation| {
            let definition = listed.remove(&operation.name)?;
            (!operation.gone && operation.definition == definition.digest).then(|| OfferedTool {
                name: operation.model_name.clone(),
                description: self.redactor.redact(&definition.description).into_owned(),
                input_schema: self.redactor.redact_json(definition.input_schema),
            })
        };
        tool.operations.iter().filter_map(offer).collect()
    }
}

async fn ask(tool: &str, server: &SharedServer) -> Listed {
    let start = Instant::now();
    let result = list_patiently(server.lock().await.as_mut()).await;
    Listed { tool: tool.to_owned(), result, milliseconds: milliseconds_since(start) }
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

fn restless(tool: &str, reported: u32) -> ListError {
    let message = format!(
        "Tool {tool}: its server changed operations of this run {reported} times in one pod, and no call goes to it any \
         more: see that it offers the same all the time"
    );
    ListError { reason: FailureReason::Malformed, message }
}

fn listed_operation(definition: &Definition) -> ListedOperation {
    ListedOperation { name: definition.name.clone(), definition: definition.digest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_whose_list_stays_the_same_is_asked_ever_less_often_and_never_less_than_once_a_minute() {
        let now = Instant::now();
        let mut idle = Idle::again(None, now);
        for pause in [5, 10, 15] {
            assert!(
                !idle.is_over(now + Duration::from_secs(pause - 1)) && idle.is_over(now + Duration::from_secs(pause))
            );
            idle = Idle::again(Some(idle), now);
        }
        idle.times = u32::MAX;
        assert!(!idle.is_over(now + Duration::from_secs(59)) && idle.is_over(now + Duration::from_mins(1)));
    }
}
