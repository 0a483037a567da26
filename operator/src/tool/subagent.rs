//! A Tool that stands for an Agent: Ready while that is there. Nobody is asked what it offers. Whether the Agent is Ready does
//! not matter here: an Agent may call itself, and a run of one that is not Ready waits like any other.

use belay_crds::reason::ToolReason;
use belay_crds::{Tool, ToolAgent, ToolOperation, ToolStatus};
use belay_protocol::digest::canonical;
use belay_protocol::subagent::{OPERATION, definition, input_schema};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::readiness::Verdict;
use crate::references::missing;

/// What models are told of the Agent.
#[must_use]
pub fn description(named: &ToolAgent) -> String {
    let given = named.description.clone();
    given.unwrap_or_else(|| belay_protocol::subagent::description(&named.agent_ref.name))
}

/// The Agent's one operation.
#[must_use]
pub fn operation(named: &ToolAgent) -> Option<ToolOperation> {
    let description = description(named);
    let digest = definition(&named.agent_ref.name, &description).ok()?;
    // Canonical bytes are JSON, and JSON is UTF-8.
    let schema = canonical(&input_schema()).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Some(ToolOperation { name: OPERATION.to_owned(), digest: digest.to_string(), description, input_schema: schema })
}

/// What status says but for its conditions, and what those say. `there`: the Agent is.
#[must_use]
pub fn judge(tool: &Tool, named: &ToolAgent, service: Service, there: bool) -> (ToolStatus, Verdict<ToolReason>) {
    let namespace = tool.namespace().unwrap_or_default();
    let (subject, agent) = (format!("Tool {}: spec.agent.agentRef", tool.name_any()), &named.agent_ref.name);
    let operations: Vec<ToolOperation> = operation(named).into_iter().collect();
    let verdict = match service.complaint(&namespace) {
        Some(complaint) => Verdict::stalled(ToolReason::NamespaceNotEnabled, complaint),
        None if !there => Verdict::waiting(ToolReason::AgentMissing, missing(&subject, "Agent", agent, &namespace)),
        None => Verdict::ready(ToolReason::Ready, format!("each call is a run of Agent {agent}")),
    };
    let before = tool.status.clone().unwrap_or_default();
    let status = ToolStatus {
        operation_count: i32::try_from(operations.len()).ok(),
        operations,
        conditions: before.conditions,
        observed_generation: tool.metadata.generation,
        ..ToolStatus::default()
    };
    (status, verdict)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_crds::NameRef;

    use super::*;
    use crate::fixtures::tool;
    use crate::readiness::Standing;

    fn subagent(description: Option<&str>) -> Tool {
        let mut tool = tool("helper", &[]);
        let agent_ref = NameRef::new("helper");
        tool.spec.mcp = None;
        tool.spec.agent = Some(ToolAgent { agent_ref, description: description.map(str::to_owned), limits: None });
        tool
    }

    #[test]
    fn a_tool_is_ready_while_its_agent_is_there_and_offers_one_operation() {
        let table = [
            (Service::Enabled, true, Standing::Ready, ToolReason::Ready),
            (Service::Enabled, false, Standing::Waiting, ToolReason::AgentMissing),
            (Service::NotEnabled, true, Standing::Stalled, ToolReason::NamespaceNotEnabled),
        ];
        for (service, there, standing, reason) in table {
            let tool = subagent(None);
            let (status, verdict) = judge(&tool, tool.spec.agent.as_ref().unwrap(), service, there);
            assert_eq!((verdict.standing, verdict.reason), (standing, reason), "{}", verdict.message);
            assert_eq!((status.operations[0].name.as_str(), status.operation_count), ("run", Some(1)));
            assert!(status.operations[0].input_schema.as_ref().unwrap().contains("input"));
        }
    }

    #[test]
    fn what_status_says_is_what_runs_are_planned_with() {
        for description in [None, Some("Finds what is wrong.")] {
            let tool = subagent(description);
            let offered = operation(tool.spec.agent.as_ref().unwrap()).unwrap();
            let agent = belay_protocol::plan::PlanAgent {
                name: "helper".into(),
                description: offered.description.clone(),
                limits: crate::fixtures::plan().limits,
                priced: true,
            };
            assert_eq!(offered.digest, agent.definition().unwrap().to_string());
            assert_eq!(description.is_some(), offered.description == "Finds what is wrong.");
        }
    }
}
