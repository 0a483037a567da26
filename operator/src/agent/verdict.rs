//! Whether an Agent is ready, and in which words it is not. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::conditions::{PEER_ADDRESS_VERIFIED, Statement, Truth};
use belay_crds::reason::AgentReason;
use belay_crds::{Agent, AgentTool, Model, OnDrift, Tool};
use belay_protocol::output::OutputSchema;
use kube::ResourceExt;

use crate::approval_policy::{JUDGES_MAX, Named, Usable, usable};
use crate::namespaces::Service;
use crate::readiness::Verdict;
use crate::references::{missing, not_ready};
use crate::service::AddressCheck;
use crate::tool::drift::{drifted_of, is_drifted, why_left_out};

/// Stands for every operation of a Tool.
pub const EVERY_OPERATION: &str = "*";
/// Names that a message lists before it says how many more there are.
const NAMES_MAX: usize = 12;

/// What the Agent's references found; `tools` in the order of `spec.tools`.
pub struct Found {
    pub model: Option<Arc<Model>>,
    /// Those of the Model's fallbacks that are there: what is missing the Model says itself.
    pub fallbacks: Vec<Arc<Model>>,
    pub tools: Vec<Option<Arc<Tool>>>,
    /// Of the Agent, its tools and the credentials that go with them.
    pub policies: Vec<Named>,
    /// A Tool that more policies judge than may, and how many.
    pub overburdened: Option<(String, usize)>,
    /// A URL that no run may request, in words.
    pub astray: Option<String>,
    /// Place in `spec.tools` and name of an Agent whose runs cost what nobody knows.
    pub unpriced: Option<(usize, String)>,
}

/// Judges in a fixed order: namespace, suspension, destinations, model, prices, output, tools, operations, policies.
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
    if let Some(astray) = &found.astray {
        return Verdict::stalled(AgentReason::DestinationNotAllowed, format!("Agent {name}: {astray}"));
    }
    if let Some(verdict) = judge_model(agent, &namespace, found) {
        return verdict;
    }
    if let Some(Err(error)) = agent.spec.output_schema.as_ref().map(OutputSchema::compile) {
        let message = format!("Agent {name}: spec.outputSchema cannot be kept: {error}");
        return Verdict::stalled(AgentReason::OutputSchemaInvalid, message);
    }
    for (index, (listed, tool)) in agent.spec.tools.iter().zip(&found.tools).enumerate() {
        let subject = format!("Agent {name}: spec.tools[{index}]");
        if let Some(verdict) = judge_tool(&subject, &namespace, listed, tool.as_deref()) {
            return verdict;
        }
    }
    judge_policies(agent, &namespace, found).unwrap_or_else(|| Verdict::ready(AgentReason::Ready, reach(agent, found)))
}

fn judge_policies(agent: &Agent, namespace: &str, found: &Found) -> Option<Verdict<AgentReason>> {
    for Named { subject, name, policy } in &found.policies {
        let Some(policy) = policy else {
            let message = missing(subject, "ApprovalPolicy", name, namespace);
            return Some(Verdict::waiting(AgentReason::PolicyMissing, message));
        };
        if let Usable::Not { why } = usable(policy) {
            let message = format!("{subject} names what cannot be used: {why}");
            return Some(Verdict::waiting(AgentReason::PolicyNotReady, message));
        }
    }
    let (tool, judges) = found.overburdened.as_ref()?;
    let message = format!(
        "Agent {}: {judges} policies would judge a call of Tool \"{tool}\", counting its own, the Tool's and the \
         Credential's: a call can be put to at most {JUDGES_MAX}; put rules together",
        agent.name_any()
    );
    Some(Verdict::stalled(AgentReason::PoliciesTooMany, message))
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

fn judge_model(agent: &Agent, namespace: &str, found: &Found) -> Option<Verdict<AgentReason>> {
    let subject = format!("Agent {}: spec.modelRef", agent.name_any());
    let Some(model) = found.model.as_deref() else {
        let message = missing(&subject, "Model", &agent.spec.model_ref.name, namespace);
        return Some(Verdict::waiting(AgentReason::ModelMissing, message));
    };
    let budget = agent.spec.limits.as_ref().and_then(|limits| limits.cost_usd);
    let unpriced = std::iter::once(model).chain(found.fallbacks.iter().map(|model| &**model));
    let unpriced = unpriced.into_iter().find(|model| model.spec.prices_usd.is_none());
    if let Some(model) = unpriced.filter(|_| budget.is_some()) {
        let (agent, model) = (agent.name_any(), model.name_any());
        let message = format!(
            "Agent {agent}: spec.limits.costUSD cannot be kept: Model \"{model}\" has no spec.pricesUSD; set it or \
             remove the limit"
        );
        return Some(Verdict::stalled(AgentReason::PricesMissing, message));
    }
    if let Some((index, subagent)) = found.unpriced.as_ref().filter(|_| budget.is_some()) {
        let message = format!(
            "Agent {}: spec.limits.costUSD cannot be kept: spec.tools[{index}] starts runs of Agent {subagent}, whose Model has \
             no spec.pricesUSD; set it or remove the limit",
            agent.name_any()
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
    if let Some(message) = not_ready(subject, "Tool", tool, status).filter(|_| !is_drifted(tool)) {
        return Some(Verdict::waiting(AgentReason::ToolNotReady, message));
    }
    if let Some(message) = held(subject, listed, tool) {
        return Some(Verdict::waiting(AgentReason::ToolDrifted, message));
    }
    let offered = tool.status.as_ref().map_or(&[][..], |status| &status.operations);
    let offers = |operation: &String| operation == EVERY_OPERATION || offered.iter().any(|o| o.name == *operation);
    let absent: Vec<&str> = listed.operations.iter().filter(|o| !offers(o)).map(String::as_str).collect();
    (!absent.is_empty()).then(|| {
        let offered: Vec<&str> = offered.iter().map(|operation| operation.name.as_str()).collect();
        let why = absent.iter().find_map(|name| Some(format!(" ({name}: {})", why_left_out(tool, name)?)));
        let message = format!(
            "{subject}.operations lists {}, which Tool \"{}\" does not offer{}; it offers {}",
            some(&absent),
            listed.name,
            why.unwrap_or_default(),
            some(&offered)
        );
        Verdict::stalled(AgentReason::OperationMissing, message)
    })
}

/// What a run would wait for at once, whose Agent says to wait.
fn held(subject: &str, listed: &AgentTool, tool: &Tool) -> Option<String> {
    let drifted = drifted_of(tool, &listed.operations);
    let waits = listed.on_drift.unwrap_or_default() == OnDrift::Wait;
    (waits && !drifted.is_empty()).then(|| {
        format!(
            "{subject}.operations lists {}, which Tool \"{name}\" does not offer as it was accepted: belay tool accept \
             {name} shows what differs and accepts it; onDrift: Continue goes on without",
            some(&drifted),
            name = listed.name
        )
    })
}

/// What the agent may do, in words, and which policies judge it by another generation than the one that is there.
fn reach(agent: &Agent, found: &Found) -> String {
    if agent.spec.tools.is_empty() {
        return "it lists no tool: it can answer, and call nothing".to_owned();
    }
    let tools: Vec<String> = agent.spec.tools.iter().map(|t| format!("{}: {}", t.name, some(&t.operations))).collect();
    let names: BTreeSet<&str> = found.policies.iter().map(|named| named.name.as_str()).collect();
    let judges = if names.is_empty() {
        "what only reads is allowed, everything else is asked: no policy is named".to_owned()
    } else {
        format!("judged by {}", some(&names.into_iter().collect::<Vec<_>>()))
    };
    let outdated = found.policies.iter().filter_map(|named| match usable(named.policy.as_deref()?) {
        Usable::LastGood { why, .. } => Some(why),
        Usable::AsItIs(_) | Usable::Not { .. } => None,
    });
    let without = agent.spec.tools.iter().zip(&found.tools).filter_map(|(listed, tool)| {
        let drifted = drifted_of(tool.as_deref()?, &listed.operations);
        (!drifted.is_empty()).then(|| format!("without {} of {}, which drifted", some(&drifted), listed.name))
    });
    let notes: BTreeSet<String> = outdated.chain(without).collect();
    let lines = [format!("it may call {}", tools.join("; ")), judges];
    lines.into_iter().chain(notes).collect::<Vec<_>>().join("; ")
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
    #![allow(clippy::indexing_slicing)]
    use belay_crds::ApprovalPolicy;

    use super::*;
    use crate::approval_policy::overburdened;
    use crate::fixtures::{agent, model, not_ready, policy, ready, tool};
    use crate::readiness::Standing;

    fn found(model: Option<Model>, tools: Vec<Option<Tool>>) -> Found {
        let tools = tools.into_iter().map(|tool| tool.map(Arc::new)).collect();
        let model = model.map(Arc::new);
        Found { model, fallbacks: vec![], tools, policies: vec![], overburdened: None, astray: None, unpriced: None }
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
    fn an_operation_that_is_left_out_is_missing_for_a_reason() {
        let mut github = ready(tool("github", &["list_issues"]));
        let reason = "its definition holds a value of Credential key".to_owned();
        let left_out = belay_crds::LeftOutOperation { name: "whoami".to_owned(), reason };
        github.status.get_or_insert_default().left_out = vec![left_out];
        let listed = agent("triage", "writer", &[("github", &["list_issues", "whoami"])]);
        let all = found(Some(ready(model("writer", None))), vec![Some(github)]);
        let verdict = judge(&listed, Service::Enabled, &all);
        assert_eq!(verdict.reason, AgentReason::OperationMissing);
        let words = "lists whoami, which Tool \"github\" does not offer (whoami: its definition holds a value of Credential \
                     key); it offers list_issues";
        assert!(verdict.message.ends_with(words), "{}", verdict.message);
    }

    /// Tool `github`, whose server changed `set_labels`, removed `drop` and added `force`.
    fn drifted() -> Tool {
        let mut github =
            not_ready(tool("github", &["drop", "list_issues", "set_labels"]), "Drifted", "set_labels changed");
        let operation = |name: &str, change| belay_crds::DriftedOperation {
            name: name.to_owned(),
            change,
            digest: None,
            description: String::new(),
            input_schema: None,
            diff: String::new(),
        };
        let operations = vec![
            operation("drop", belay_crds::Change::Removed),
            operation("force", belay_crds::Change::Added),
            operation("set_labels", belay_crds::Change::Changed),
        ];
        github.status.get_or_insert_default().drift =
            Some(belay_crds::ToolDrift { operations, ..belay_crds::ToolDrift::default() });
        github
    }

    #[test]
    fn an_agent_waits_for_a_drift_of_what_it_lists_and_for_no_other() {
        let (wait, go_on) = (None, Some(OnDrift::Continue));
        let table: [(&[&str], Option<OnDrift>, Standing, AgentReason); 7] = [
            (&["list_issues"], wait, Standing::Ready, AgentReason::Ready),
            (&["list_issues", "set_labels"], wait, Standing::Waiting, AgentReason::ToolDrifted),
            (&["drop"], wait, Standing::Waiting, AgentReason::ToolDrifted),
            (&["*"], wait, Standing::Waiting, AgentReason::ToolDrifted),
            (&["*"], go_on, Standing::Ready, AgentReason::Ready),
            (&["set_labels"], go_on, Standing::Ready, AgentReason::Ready),
            (&["force"], wait, Standing::Stalled, AgentReason::OperationMissing),
        ];
        for (operations, on_drift, standing, reason) in table {
            let mut agent = agent("triage", "writer", &[("github", operations)]);
            agent.spec.tools[0].on_drift = on_drift;
            let all = found(Some(ready(model("writer", None))), vec![Some(drifted())]);
            let verdict = judge(&agent, Service::Enabled, &all);
            assert_eq!((verdict.standing, verdict.reason), (standing, reason), "{operations:?}: {}", verdict.message);
            let told =
                verdict.message.contains("belay tool accept github") || verdict.message.contains("which drifted");
            assert_eq!(told, *operations != ["list_issues"] && reason != AgentReason::OperationMissing);
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
        let mut with_prices = model("writer", None);
        with_prices.spec.prices_usd = serde_json::from_value(serde_json::json!({"input": "1", "output": "1"})).ok();
        let calls_another = |unpriced| Found { unpriced, ..found(Some(ready(with_prices.clone())), vec![]) };
        let below = judge(&priced, Service::Enabled, &calls_another(Some((0, "helper".to_owned()))));
        assert_eq!((below.standing, below.reason), (Standing::Stalled, AgentReason::PricesMissing));
        assert!(below.message.contains("Agent helper"), "{}", below.message);
        assert_eq!(judge(&priced, Service::Enabled, &calls_another(None)).reason, AgentReason::Ready);
        assert!(verdict.message.contains("Model \"writer\" has no spec.pricesUSD"), "{}", verdict.message);
        let mut writer = ready(model("writer", None));
        writer.spec.prices_usd = serde_json::from_str(r#"{"input": "1", "output": "2"}"#).ok();
        let mut with_fallback = found(Some(writer), vec![]);
        assert_eq!(judge(&priced, Service::Enabled, &with_fallback).standing, Standing::Ready);
        with_fallback.fallbacks = vec![Arc::new(model("second", None))];
        let verdict = judge(&priced, Service::Enabled, &with_fallback);
        assert!(verdict.message.contains("Model \"second\" has no spec.pricesUSD"), "{}", verdict.message);
    }

    #[test]
    fn an_agent_that_would_go_where_no_run_may_is_not_ready() {
        let all = found(Some(ready(model("writer", None))), vec![]);
        let words = "Model writer: spec.baseURL leads where no run may go: 10.0.0.1 is a private address";
        let verdict =
            judge(&agent("triage", "writer", &[]), Service::Enabled, &Found { astray: Some(words.into()), ..all });
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, AgentReason::DestinationNotAllowed));
        assert_eq!(verdict.message, format!("Agent triage: {words}"));
    }

    #[test]
    fn an_output_that_cannot_be_checked_is_said() {
        let judged = |schema: serde_json::Value| {
            let mut agent = agent("triage", "writer", &[]);
            agent.spec.output_schema = Some(schema);
            judge(&agent, Service::Enabled, &found(Some(ready(model("writer", None))), vec![]))
        };
        assert_eq!(judged(serde_json::json!({"type": "object"})).standing, Standing::Ready);
        let verdict = judged(serde_json::json!({"type": "object", "required": 7}));
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, AgentReason::OutputSchemaInvalid));
        assert!(
            verdict.message.starts_with("Agent triage: spec.outputSchema cannot be kept: it is no"),
            "{}",
            verdict.message
        );
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
            "it may call github: list_issues; files: *; what only reads is allowed, everything else is asked: no \
             policy is named"
        );
    }

    /// An Agent without tools that comes under `policy`, if there is one.
    fn under(policy: Option<ApprovalPolicy>) -> Verdict<AgentReason> {
        let named = Named {
            subject: "Tool github: spec.policyRefs".into(),
            name: "careful".into(),
            policy: policy.map(Arc::new),
        };
        let found = Found {
            policies: vec![named],
            ..found(Some(ready(model("writer", None))), vec![Some(ready(tool("github", &["list_issues"])))])
        };
        judge(&agent("triage", "writer", &[("github", &["list_issues"])]), Service::Enabled, &found)
    }

    #[test]
    fn an_agent_is_not_ready_while_a_policy_is_missing_or_was_never_good() {
        let missing = under(None);
        assert_eq!((missing.standing, missing.reason), (Standing::Waiting, AgentReason::PolicyMissing));
        assert_eq!(
            missing.message,
            "Tool github: spec.policyRefs names ApprovalPolicy \"careful\", which does not exist in namespace triage"
        );
        let bad = under(Some(not_ready(policy("careful", "{}"), "RuleInvalid", "rules[0] r: no")));
        assert_eq!((bad.standing, bad.reason), (Standing::Waiting, AgentReason::PolicyNotReady));
        assert_eq!(
            bad.message,
            "Tool github: spec.policyRefs names what cannot be used: ApprovalPolicy \"careful\" is not Ready: \
             RuleInvalid: rules[0] r: no"
        );
    }

    #[test]
    fn an_agent_goes_on_with_the_last_good_generation_of_a_policy_and_says_so() {
        let mut bad = not_ready(policy("careful", "{}"), "TestFailed", "tests[0]");
        bad.metadata.generation = Some(2);
        let mut bad = not_ready(bad, "TestFailed", "tests[0]");
        let spec = belay_crds::ApprovalPolicySpec::default();
        bad.status.get_or_insert_default().last_good = Some(belay_crds::LastGood { generation: 1, spec });
        let verdict = under(Some(bad));
        assert_eq!(verdict.standing, Standing::Ready);
        assert_eq!(
            verdict.message,
            "it may call github: list_issues; judged by careful; ApprovalPolicy \"careful\" is not Ready: TestFailed: \
             tests[0]; its generation 1 goes on"
        );
        assert!(under(Some(ready(policy("careful", "{}")))).message.ends_with("judged by careful"));
    }

    #[test]
    fn more_policies_than_may_ask_about_one_call_stall_the_agent() {
        let mut busy = agent("triage", "writer", &[("github", &["list_issues"])]);
        let names = |from: u32, to: u32| (from..to).map(|n| belay_crds::NameRef::new(format!("p{n}"))).collect();
        busy.spec.policy_refs = names(0, 8);
        let mut github = tool("github", &["list_issues"]);
        github.spec.policy_refs = names(0, 8);
        assert_eq!(overburdened(&busy, &[Arc::new(github.clone())], &[]), None);
        github.spec.policy_refs = names(7, 9);
        let too_many = overburdened(&busy, &[Arc::new(github)], &[]);
        assert_eq!(too_many, Some(("github".to_owned(), 9)));
        let found = Found { overburdened: too_many, ..found(Some(ready(model("writer", None))), vec![]) };
        let verdict = judge(&agent("triage", "writer", &[]), Service::Enabled, &found);
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, AgentReason::PoliciesTooMany));
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
