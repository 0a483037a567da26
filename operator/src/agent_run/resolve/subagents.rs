//! Agents that tools stand for, and what a run has from those above it: frozen into plans. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use belay_crds::{Agent, Tool};
use belay_protocol::call::model_name;
use belay_protocol::plan::{OnDrift, PlanAgent, PlanOperation, PlanTool};
use belay_protocol::subagent::{OPERATION, destination};
use kube::ResourceExt;

use super::{effects, limits, policy_names};
use crate::agent_run::lineage::Above;
use crate::approval_policy::Named;
use crate::references;
use crate::tool::subagent;
use crate::world::World;

/// An Agent that a tool stands for.
pub struct Subagent {
    pub agent: Arc<Agent>,
    /// Whether every Model that it may ask has prices.
    pub priced: bool,
}

/// No run may do more than the one that called it: whatever judges that one's calls judges those of the child too.
pub(super) fn of_those_above(world: &World, namespace: &str, above: &Above) -> Vec<Named> {
    let one = |name: &String| Named {
        subject: format!("AgentRun {}, whose call is carried out,", above.parent.run.name),
        name: name.clone(),
        policy: world.policy(namespace, name),
    };
    above.policies.iter().map(one).collect()
}

pub(super) fn gather_subagents(
    world: &World,
    tools: &[Arc<Tool>],
    namespace: &str,
) -> Result<BTreeMap<String, Subagent>, String> {
    let mut subagents = BTreeMap::new();
    for tool in tools {
        let Some(named) = &tool.spec.agent else { continue };
        let subject = format!("Tool {}: spec.agent.agentRef", tool.name_any());
        let missing = || references::missing(&subject, "Agent", &named.agent_ref.name, namespace);
        let agent = world.agent(namespace, &named.agent_ref.name).ok_or_else(missing)?;
        let priced = is_priced(world, &agent);
        subagents.insert(tool.name_any(), Subagent { agent, priced });
    }
    Ok(subagents)
}

/// Whether every Model that the Agent may ask is there and has prices.
#[must_use]
pub fn is_priced(world: &World, agent: &Agent) -> bool {
    let models = world.models_of(agent);
    !models.is_empty() && models.iter().all(|model| model.spec.prices_usd.is_some())
}

/// Its definition is what the Tool says of it: there is no server that could say anything else.
pub(super) fn freeze_subagent(
    tool: &Tool,
    found: Option<&Subagent>,
    taken: &mut BTreeSet<String>,
) -> Result<PlanTool, String> {
    let name = tool.name_any();
    let (Some(named), Some(Subagent { agent, priced })) = (&tool.spec.agent, found) else {
        return Err(format!("Tool {name}: spec.agent.agentRef names no Agent that is there"));
    };
    let agent = PlanAgent {
        name: agent.name_any(),
        description: subagent::description(named),
        limits: limits(agent.spec.limits.as_ref(), named.limits.as_ref()),
        priced: *priced,
    };
    let definition = agent.definition().map_err(|error| format!("Tool {name}: spec.agent.description: {error}"))?;
    let model_name = model_name(&name, OPERATION, taken);
    taken.insert(model_name.clone());
    let (effects, operation) = (effects(tool, OPERATION), OPERATION.to_owned());
    Ok(PlanTool {
        uid: tool.uid().unwrap_or_default(),
        url: destination(&agent.name),
        ca: None,
        http: None,
        credential: None,
        call_timeout_seconds: 0,
        operations: vec![PlanOperation { name: operation, model_name, definition, effects, gone: false }],
        policies: policy_names(&tool.spec.policy_refs),
        on_drift: OnDrift::default(),
        agent: Some(agent),
        name,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_crds::{Limits as CrdLimits, NameRef};
    use belay_protocol::plan::ObjectId;

    use super::super::{Parts, freeze};
    use super::*;
    use crate::fixtures::{agent, model, run, tool};

    /// Agent `lead`, whose Tool `helper` stands for an Agent of that name.
    fn leading(tool_limits: Option<CrdLimits>) -> Parts {
        let mut helper = tool("helper", &[]);
        (helper.spec.mcp, helper.status) = (None, None);
        let agent_ref = NameRef::new("helper");
        helper.spec.agent = Some(belay_crds::ToolAgent { agent_ref, description: None, limits: tool_limits });
        let mut subagent = agent("helper", "writer", &[]);
        subagent.spec.limits = Some(CrdLimits { steps: Some(9), tokens: Some(500), ..CrdLimits::default() });
        let lead = agent("lead", "writer", &[("helper", &["run"])]);
        let subagent = Subagent { agent: Arc::new(subagent), priced: false };
        Parts {
            agent: Arc::new(lead),
            model: Arc::new(model("writer", None)),
            fallbacks: vec![],
            tools: vec![Arc::new(helper)],
            credentials: vec![],
            policies: vec![],
            private_hosts: vec![],
            subagents: BTreeMap::from([("helper".into(), subagent)]),
            above: None,
        }
    }

    #[test]
    fn a_tool_that_stands_for_an_agent_is_frozen_with_the_tighter_of_both_limits() {
        let tighter = CrdLimits { tokens: Some(100), wait_seconds: Some(60), ..CrdLimits::default() };
        let plan = freeze(&run("r", "lead"), &leading(Some(tighter))).unwrap();
        let helper = plan.tool("helper").unwrap();
        let agent = helper.agent.as_ref().unwrap();
        assert_eq!((agent.limits.steps, agent.limits.tokens, agent.limits.wait_seconds), (9, Some(100), 60));
        assert_eq!((helper.url.as_str(), helper.operations[0].model_name.as_str()), ("agent/helper", "helper__run"));
        assert_eq!(helper.operations[0].definition, agent.definition().unwrap(), "as its runner will list it");
        assert!(plan.urls().all(|url| !url.contains("helper")), "nobody requests it");
        assert!(!agent.priced);
        let mut without = leading(None);
        without.subagents.clear();
        assert!(freeze(&run("r", "lead"), &without).unwrap_err().contains("spec.agent.agentRef"));
    }

    #[test]
    fn a_child_comes_under_its_own_policies_and_those_of_every_agent_above() {
        let own = |names: &[String]| {
            let mut parts = leading(None);
            let mut lead = (*parts.agent).clone();
            lead.spec.policy_refs = vec![NameRef::new("own"), NameRef::new("both")];
            parts.agent = Arc::new(lead);
            let up = ObjectId { namespace: "triage".into(), name: "up".into(), uid: "uid-up".into() };
            let parent = belay_protocol::plan::PlanParent { run: up, call_id: "c1".into(), depth: 1 };
            parts.above = Some(Above { parent, policies: names.to_vec() });
            freeze(&run("r", "lead"), &parts)
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let plan = own(&names(&["above", "both"])).unwrap();
        assert_eq!(plan.policies_of("helper").into_iter().collect::<Vec<_>>(), ["above", "both", "own"]);
        assert_eq!((plan.agent_policies, plan.inherited_policies), (names(&["both", "own"]), names(&["above"])));
        assert_eq!(plan.parent.unwrap().depth, 1);
        let many: Vec<String> = (0..7).map(|n| format!("above-{n}")).collect();
        let words = own(&many).unwrap_err();
        assert!(words.starts_with("9 policies would judge a call of Tool helper"), "{words}");
    }
}
