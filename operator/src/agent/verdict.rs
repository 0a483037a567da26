//! Whether an Agent is ready, and in which words it is not. Pure.

use std::sync::Arc;

use belay_crds::conditions::{PEER_ADDRESS_VERIFIED, Statement, Truth};
use belay_crds::reason::AgentReason;
use belay_crds::{Agent, AgentTool, Model, Tool};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::readiness::Verdict;
use crate::references::{missing, not_ready};
use crate::service::AddressCheck;

/// Stands for every operation of a Tool.
pub const EVERY_OPERATION: &str = "*";
/// Names that a message lists before it says how many more there are.
const NAMES_MAX: usize = 12;

/// What the Agent's references found; `tools` in the order of `spec.tools`.
pub struct Found {
    pub model: Option<Arc<Model>>,
    pub tools: Vec<Option<Arc<Tool>>>,
}

/// Judges in a fixed order: namespace, suspension, model, prices, tools, operations.
pub fn judge(agent: &Agent, service: Service, found: &Found) -> Verdict<AgentReason> {
    let namespace = agent.namespace().unwrap_or_default();
    let name = agent.name_any();
    if let Some(complaint) = service.complaint(&namespace) {
        return Verdict::stalled(AgentReason::NamespaceNotEnabled, complaint);
    }
    if agent.spec.suspend == Some(true) {
        let message = format!("Agent {name}: spec.suspend is true: no permit and no new pod; its runs wait");
        return Verdict::waiting(AgentReason::Suspended, message);
    }
    if let Some(verdict) = judge_model(agent, &namespace, found.model.as_deref()) {
        return verdict;
    }
    for (index, (listed, tool)) in agent.spec.tools.iter().zip(&found.tools).enumerate() {
        let subject = format!("Agent {name}: spec.tools[{index}]");
        if let Some(verdict) = judge_tool(&subject, &namespace, listed, tool.as_deref()) {
            return verdict;
        }
    }
    Verdict::ready(AgentReason::Ready, reach(agent))
}

/// Says on every Agent whether the installation checks where its runners connect from.
pub fn addresses(check: AddressCheck) -> Statement<'static> {
    let (truth, reason, message) = match check {
        AddressCheck::Required => (Truth::True, "Verified", "a runner's stream must come from its pod's own address"),
        AddressCheck::Off => (
            Truth::False,
            "VerificationOff",
            "the installation sets verifyPeerAddress to false: a runner's token alone says who it is",
        ),
    };
    Statement { type_: PEER_ADDRESS_VERIFIED, truth, reason, message }
}

fn judge_model(agent: &Agent, namespace: &str, model: Option<&Model>) -> Option<Verdict<AgentReason>> {
    let subject = format!("Agent {}: spec.modelRef", agent.name_any());
    let Some(model) = model else {
        let message = missing(&subject, "Model", &agent.spec.model_ref.name, namespace);
        return Some(Verdict::waiting(AgentReason::ModelMissing, message));
    };
    let budget = agent.spec.limits.as_ref().and_then(|limits| limits.cost_usd);
    if budget.is_some() && model.spec.prices_usd.is_none() {
        let (agent, model) = (agent.name_any(), model.name_any());
        let message = format!(
            "Agent {agent}: spec.limits.costUSD cannot be kept: Model \"{model}\" has no spec.pricesUSD; set it or \
             remove the limit"
        );
        return Some(Verdict::stalled(AgentReason::PricesMissing, message));
    }
    let status = model.status.as_ref().map_or(&[][..], |status| &status.conditions);
    not_ready(&subject, "Model", model, status).map(|message| Verdict::waiting(AgentReason::ModelNotReady, message))
}

fn judge_tool(subject: &str, namespace: &str, listed: &AgentTool, tool: Option<&Tool>) -> Option<Verdict<AgentReason>> {
    let Some(tool) = tool else {
        return Some(Verdict::waiting(AgentReason::ToolMissing, missing(subject, "Tool", &listed.name, namespace)));
    };
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    if let Some(message) = not_ready(subject, "Tool", tool, status) {
        return Some(Verdict::waiting(AgentReason::ToolNotReady, message));
    }
    let offered = tool.status.as_ref().map_or(&[][..], |status| &status.operations);
    let offers = |operation: &String| operation == EVERY_OPERATION || offered.iter().any(|o| o.name == *operation);
    let absent: Vec<&str> = listed.operations.iter().filter(|o| !offers(o)).map(String::as_str).collect();
    (!absent.is_empty()).then(|| {
        let offered: Vec<&str> = offered.iter().map(|operation| operation.name.as_str()).collect();
        let message = format!(
            "{subject}.operations lists {}, which Tool \"{}\" does not offer; it offers {}",
            some(&absent),
            listed.name,
            some(&offered)
        );
        Verdict::stalled(AgentReason::OperationMissing, message)
    })
}

/// What the agent may do, in words: there is no policy yet that would ask.
fn reach(agent: &Agent) -> String {
    if agent.spec.tools.is_empty() {
        return "it lists no tool: it can answer, and call nothing".to_owned();
    }
    let tools: Vec<String> = agent.spec.tools.iter().map(|t| format!("{}: {}", t.name, some(&t.operations))).collect();
    let note = "every listed operation is allowed without asking until ApprovalPolicy exists";
    format!("it may call {}; {note}", tools.join("; "))
}

fn some(names: &[impl AsRef<str>]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{agent, model, not_ready, ready, tool};
    use crate::readiness::Standing;

    fn found(model: Option<Model>, tools: Vec<Option<Tool>>) -> Found {
        Found { model: model.map(Arc::new), tools: tools.into_iter().map(|tool| tool.map(Arc::new)).collect() }
    }

    #[test]
    fn an_agent_is_ready_when_model_tools_and_operations_are_there() {
        let listed = agent("triage", "writer", &[("github", &["list_issues"])]);
        let writer = || Some(ready(model("writer", None)));
        let github = || Some(ready(tool("github", &["list_issues", "set_labels"])));
        let table = [
            (found(writer(), vec![github()]), Standing::Ready, AgentReason::Ready),
            (found(None, vec![github()]), Standing::Waiting, AgentReason::ModelMissing),
            (found(Some(model("writer", None)), vec![github()]), Standing::Waiting, AgentReason::ModelNotReady),
            (found(writer(), vec![None]), Standing::Waiting, AgentReason::ToolMissing),
            (
                found(writer(), vec![Some(not_ready(tool("github", &[]), "Unreachable", "refused"))]),
                Standing::Waiting,
                AgentReason::ToolNotReady,
            ),
            (
                found(writer(), vec![Some(ready(tool("github", &["x"])))]),
                Standing::Stalled,
                AgentReason::OperationMissing,
            ),
        ];
        for (found, standing, reason) in table {
            let verdict = judge(&listed, Service::Enabled, &found);
            assert_eq!((verdict.standing, verdict.reason), (standing, reason), "{}", verdict.message);
        }
    }

    #[test]
    fn an_installation_that_checks_no_addresses_says_so() {
        assert_eq!(addresses(AddressCheck::Required).truth, Truth::True);
        let off = addresses(AddressCheck::Off);
        assert_eq!(off.truth, Truth::False);
        assert!(off.message.contains("verifyPeerAddress"), "{}", off.message);
    }

    #[test]
    fn a_budget_needs_prices() {
        let mut priced = agent("triage", "writer", &[]);
        priced.spec.limits = Some(belay_crds::Limits { cost_usd: "2.00".parse().ok(), ..Default::default() });
        let verdict = judge(&priced, Service::Enabled, &found(Some(ready(model("writer", None))), vec![]));
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, AgentReason::PricesMissing));
        assert!(verdict.message.contains("Model \"writer\" has no spec.pricesUSD"), "{}", verdict.message);
    }

    #[test]
    fn suspension_comes_before_everything_but_the_namespace() {
        let mut agent = agent("triage", "gone", &[]);
        agent.spec.suspend = Some(true);
        let none = found(None, vec![]);
        assert_eq!(judge(&agent, Service::Enabled, &none).reason, AgentReason::Suspended);
        assert_eq!(judge(&agent, Service::NotEnabled, &none).reason, AgentReason::NamespaceNotEnabled);
    }

    #[test]
    fn a_ready_agent_says_what_it_may_do_without_asking() {
        let agent = agent("triage", "writer", &[("github", &["list_issues"]), ("files", &["*"])]);
        let all = found(
            Some(ready(model("writer", None))),
            vec![Some(ready(tool("github", &["list_issues"]))), Some(ready(tool("files", &["read"])))],
        );
        assert_eq!(
            judge(&agent, Service::Enabled, &all).message,
            "it may call github: list_issues; files: *; every listed operation is allowed without asking until \
             ApprovalPolicy exists"
        );
    }

    #[test]
    fn a_missing_operation_is_named_beside_those_that_are_there() {
        let agent = agent("triage", "writer", &[("github", &["delete_repo"])]);
        let all = found(Some(ready(model("writer", None))), vec![Some(ready(tool("github", &["list_issues"])))]);
        assert_eq!(
            judge(&agent, Service::Enabled, &all).message,
            "Agent triage: spec.tools[0].operations lists delete_repo, which Tool \"github\" does not offer; it \
             offers list_issues"
        );
    }
}
