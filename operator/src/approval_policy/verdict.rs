//! Whether a policy is good, and in which words it is not. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::conditions::{NAMES_KNOWN, Statement, Truth};
use belay_crds::reason::PolicyReason;
use belay_crds::{ApprovalPolicy, ApprovalPolicyStatus, LastGood, Tool};
use belay_policy::{Engine, Fault, Trial, trials};
use kube::ResourceExt;

use super::usable::as_it_is;
use crate::namespaces::Service;
use crate::policy::DEADLINE;
use crate::readiness::{Standing, Verdict};

/// Faults and failed tests that a message holds before it says how many more there are.
const LISTED_MAX: usize = 3;

/// What rules and tests came to.
pub type Findings = Result<Vec<Trial>, Trouble>;

/// Why the rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    Faults(Vec<Fault>),
    /// A call was judged by them, and it took too long.
    Overran,
    /// They could not be looked at.
    Gone(String),
}

/// Parses every rule and tries every test. Blocks.
pub fn examine(policy: &ApprovalPolicy) -> Findings {
    let engine = Engine::compile(&as_it_is(policy)).map_err(Trouble::Faults)?;
    trials(&engine, &policy.spec.tests).map_err(Trouble::Gone)
}

/// Judges in a fixed order: namespace, rules, tests.
pub fn judge(policy: &ApprovalPolicy, service: Service, findings: &Findings) -> Verdict<PolicyReason> {
    let name = policy.name_any();
    if let Some(complaint) = service.complaint(&policy.namespace().unwrap_or_default()) {
        return Verdict::stalled(PolicyReason::NamespaceNotEnabled, complaint);
    }
    match findings {
        Err(Trouble::Faults(faults)) => {
            let message = format!("ApprovalPolicy {name}: spec.{}", listed(faults));
            Verdict::stalled(PolicyReason::RuleInvalid, message)
        }
        Err(Trouble::Overran) => {
            let message = format!(
                "ApprovalPolicy {name}: spec.rules took longer than {} ms for one call: calls that it judges are held; \
                 look through fewer arguments, then cancel the runs that wait",
                DEADLINE.as_millis()
            );
            Verdict::stalled(PolicyReason::Overran, message)
        }
        Err(Trouble::Gone(why)) => Verdict::waiting(PolicyReason::RuleInvalid, format!("ApprovalPolicy {name}: {why}")),
        Ok(tried) => {
            let failed: Vec<&Trial> = tried.iter().filter(|trial| !trial.passed()).collect();
            if failed.is_empty() {
                let (rules, tests) = (policy.spec.rules.len(), tried.len());
                return Verdict::ready(PolicyReason::Ready, format!("{rules} rules, {tests} tests passed"));
            }
            let message = format!("ApprovalPolicy {name}: spec.{}", listed(&failed));
            Verdict::stalled(PolicyReason::TestFailed, message)
        }
    }
}

pub(super) fn listed(lines: &[impl ToString]) -> String {
    let shown: Vec<String> = lines.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    match lines.len().saturating_sub(LISTED_MAX) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// The status besides its conditions. A generation that is good is kept, whole, for when a later one is not.
pub fn record(policy: &ApprovalPolicy, findings: &Findings, verdict: &Verdict<PolicyReason>) -> ApprovalPolicyStatus {
    let mut status = policy.status.clone().unwrap_or_default();
    status.observed_generation = policy.metadata.generation;
    status.rules = i32::try_from(policy.spec.rules.len()).ok();
    status.tests = findings.as_ref().ok().map(|tried| {
        let passed = tried.iter().filter(|trial| trial.passed()).count();
        format!("{passed}/{}", tried.len())
    });
    if verdict.standing == Standing::Ready {
        let generation = policy.metadata.generation.unwrap_or_default();
        status.last_good = Some(LastGood { generation, spec: policy.spec.clone() });
    }
    status
}

/// Tools and operations that rules name and nothing bears: most often a slip, and then a rule that never matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    message: Option<String>,
}

/// `tools` are those that the rules name and that exist.
pub fn names(policy: &ApprovalPolicy, tools: &[Arc<Tool>]) -> Names {
    let mut unknown = BTreeSet::new();
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        let place = format!("rules[{index}] {}", rule.name);
        let named = |name: &String| tools.iter().find(|tool| tool.name_any() == *name);
        unknown.extend(
            rule.tools
                .iter()
                .filter(|name| named(name).is_none())
                .map(|name| format!("{place}: there is no Tool \"{name}\"")),
        );
        // Operations of any Tool, or of one that was not listed yet, cannot be told from a slip.
        let known: Vec<_> = rule.tools.iter().filter_map(named).collect();
        let all_listed = !known.is_empty()
            && known.len() == rule.tools.len()
            && known.iter().all(|tool| tool.status.as_ref().is_some_and(|status| status.operation_count.is_some()));
        if all_listed {
            let offers = |operation: &&String| known.iter().any(|tool| offers(tool, operation));
            let absent = rule.operations.iter().filter(|operation| !offers(operation));
            unknown.extend(
                absent.map(|operation| format!("{place}: no Tool that it names offers the operation {operation}")),
            );
        }
    }
    let unknown: Vec<String> = unknown.into_iter().collect();
    Names { message: (!unknown.is_empty()).then(|| listed(&unknown)) }
}

fn offers(tool: &Tool, operation: &str) -> bool {
    tool.status.as_ref().is_some_and(|status| status.operations.iter().any(|it| it.name == operation))
}

impl Names {
    /// It warns and changes nothing: a Tool may come later.
    pub fn statement(&self) -> Statement<'_> {
        match &self.message {
            Some(message) => Statement { type_: NAMES_KNOWN, truth: Truth::False, reason: "NothingBearsThem", message },
            None => Statement {
                type_: NAMES_KNOWN,
                truth: Truth::True,
                reason: "Known",
                message: "every Tool and operation that the rules name is there",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::fixtures::{policy, tool};

    fn judged(policy: &ApprovalPolicy) -> (Verdict<PolicyReason>, ApprovalPolicyStatus) {
        let findings = examine(policy);
        let verdict = judge(policy, Service::Enabled, &findings);
        let status = record(policy, &findings, &verdict);
        (verdict, status)
    }

    const GOOD: &str = "{rules: [{name: reads, effects: [None], action: Allow}], \
                        tests: [{call: {tool: t, operation: o, effects: None}, expect: Allow}, \
                        {call: {tool: t, operation: o}, expect: Ask}]}";

    #[test]
    fn a_policy_whose_tests_pass_is_ready_and_kept() {
        let good = policy("careful", GOOD);
        let (verdict, status) = judged(&good);
        assert_eq!((verdict.standing, verdict.reason), (Standing::Ready, PolicyReason::Ready));
        assert_eq!((status.rules, status.tests.as_deref()), (Some(1), Some("2/2")));
        assert_eq!(status.last_good, Some(LastGood { generation: 1, spec: good.spec }));
    }

    #[test]
    fn a_test_that_fails_is_named_and_the_last_good_generation_stays() {
        let mut bad = policy("careful", &GOOD.replace("expect: Ask", "expect: Deny"));
        let good = policy("careful", GOOD).spec;
        bad.status = Some(ApprovalPolicyStatus {
            last_good: Some(LastGood { generation: 7, spec: good.clone() }),
            ..ApprovalPolicyStatus::default()
        });
        let (verdict, status) = judged(&bad);
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, PolicyReason::TestFailed));
        assert_eq!(verdict.message, "ApprovalPolicy careful: spec.tests[1] t/o: expected Deny, got Ask by otherwise");
        assert_eq!(
            (status.tests.as_deref(), status.last_good),
            (Some("1/2"), Some(LastGood { generation: 7, spec: good }))
        );
    }

    #[test]
    fn a_rule_that_cannot_be_used_is_named_and_nothing_is_kept_of_it() {
        let (verdict, status) = judged(&policy("careful", "{rules: [{name: r, action: Deny, when: arg.x}]}"));
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, PolicyReason::RuleInvalid));
        assert!(
            verdict.message.starts_with("ApprovalPolicy careful: spec.rules[0] r: when: unknown name arg"),
            "{}",
            verdict.message
        );
        assert_eq!((status.tests, status.last_good), (None, None));
    }

    #[test]
    fn a_policy_that_overran_is_stalled() {
        let verdict = judge(&policy("careful", GOOD), Service::Enabled, &Err(Trouble::Overran));
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, PolicyReason::Overran));
    }

    #[test]
    fn a_namespace_that_is_not_served_comes_before_everything() {
        let verdict = judge(&policy("careful", GOOD), Service::NotEnabled, &Err(Trouble::Overran));
        assert_eq!(verdict.reason, PolicyReason::NamespaceNotEnabled);
    }

    #[test]
    fn names_that_nothing_bears_are_a_warning() {
        let rules = "{rules: [{name: a, tools: [github, gone], action: Deny}, \
                     {name: b, tools: [github], operations: [list, lsit], action: Deny}, \
                     {name: c, operations: [anything], action: Deny}]}";
        let mut github = tool("github", &["list"]);
        github.status.as_mut().unwrap().operation_count = Some(1);
        let found = names(&policy("careful", rules), &[Arc::new(github)]);
        let said = found.statement();
        assert_eq!((said.truth, said.reason), (Truth::False, "NothingBearsThem"));
        assert_eq!(
            said.message,
            "rules[0] a: there is no Tool \"gone\"; rules[1] b: no Tool that it names offers the operation lsit"
        );
        // A Tool that was not listed yet may offer anything.
        let unlisted = names(&policy("careful", rules), &[Arc::new(tool("github", &[]))]);
        assert_eq!(unlisted.statement().message, "rules[0] a: there is no Tool \"gone\"");
        assert_eq!(names(&policy("careful", "{}"), &[]).statement().truth, Truth::True);
    }
}
