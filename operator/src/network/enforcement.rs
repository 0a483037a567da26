//! Whether the cluster enforces NetworkPolicies at all. A probe pod behind the usual policy tries the operator's other port,
//! which that policy forbids and which answers otherwise: one pod for the installation, not one for each Agent.

use std::time::Duration;

use belay_crds::NETWORK_LABEL;
use belay_crds::conditions::{NETWORK_ENFORCED, Statement, Truth};
use belay_protocol::probe::{Passage, ProbeReport, ProbeTask};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use crate::probe_pod::{Known, Question, Step, Subject};
use crate::writes::owner_of;

/// A network changes seldom, and nobody tells when it does.
pub const KNOWN: Known = Known { is_ready: false, good_for: Some(Duration::from_hours(1)) };

/// Where the probe tries to get, asked in that namespace. It goes when the namespace does.
#[must_use]
pub fn question(namespace: &Namespace, address: &str) -> Question {
    Question {
        subject: Subject::Network,
        namespace: namespace.name_any(),
        owner: owner_of(namespace),
        task: ProbeTask::Network { address: address.to_owned() },
        mounts: Vec::new(),
        documents: Vec::new(),
        version: String::new(),
    }
}

/// What Agents say. None: what they say already, while a probe looks.
#[must_use]
pub fn statement(step: Option<&Step>) -> Option<Statement<'_>> {
    let say = |truth, reason, message| Some(Statement { type_: NETWORK_ENFORCED, truth, reason, message });
    match step {
        None => say(
            Truth::Unknown,
            "NotProbed",
            "runners do not reach the operator by its Service (BELAY_RUNNER_OPERATOR_ADDRESS): there is nothing to try",
        ),
        Some(Step::Start | Step::Wait | Step::Rest) => None,
        Some(Step::Use { report: Ok(ProbeReport::Network(Passage::Blocked)), .. }) => {
            say(Truth::True, "Enforced", "a probe pod did not get where its NetworkPolicy forbids to go")
        }
        Some(Step::Use { report: Ok(ProbeReport::Network(Passage::Open)), .. }) => say(
            Truth::False,
            "NotEnforced",
            "a probe pod got where its NetworkPolicy forbids to go: this cluster's network enforces none; only the \
             runner's own checks hold; see docs/network.md",
        ),
        Some(Step::Use { report: Ok(ProbeReport::Network(Passage::NotFound)), .. }) => {
            say(Truth::Unknown, "ProbeFailed", "the probe pod could not resolve the name of the operator's Service")
        }
        Some(Step::Use { report: Ok(ProbeReport::Network(Passage::Refused)), .. }) => say(
            Truth::Unknown,
            "ProbeFailed",
            "the probe pod was refused the connection, as by a port where nobody listens: does the operator's Service \
             have a ready pod? A network whose rules refuse, and do not drop, looks the same",
        ),
        Some(Step::Use { report: Ok(ProbeReport::Credential(_) | ProbeReport::Tool(_)), .. }) => {
            say(Truth::Unknown, "ProbeFailed", "the probe pod answered another question")
        }
        Some(Step::Use { report: Err(why), .. }) => say(Truth::Unknown, "ProbeFailed", why),
    }
}

/// The reason that policies of others give, and no probe.
pub const WIDENED: &str = "Widened";
/// Names of policies that a condition has room for.
const NAMED_MAX: usize = 5;

/// That these NetworkPolicies of others widen Belay's, in words. None: there are none.
#[must_use]
pub fn widened(policies: &[String]) -> Option<String> {
    let named = policies.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    let more = match policies.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!policies.is_empty()).then(|| {
        format!(
            "NetworkPolicies {named}{more} of this namespace select runner or probe pods too, and let them reach, or be \
             reached by, more than Belay's do: policies are a union. Have their podSelector leave out pods with the label \
             {NETWORK_LABEL}; until then only the runner's own checks hold"
        )
    })
}

/// What Agents say of that.
#[must_use]
pub fn not_held(words: &str) -> Statement<'_> {
    Statement { type_: NETWORK_ENFORCED, truth: Truth::False, reason: WIDENED, message: words }
}

/// What Agents say until the first probe has found out.
pub const UNKNOWN: Statement<'static> = Statement {
    type_: NETWORK_ENFORCED,
    truth: Truth::Unknown,
    reason: "NotProbed",
    message: "a probe pod is finding out whether NetworkPolicies are enforced",
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn agents_name_the_policies_that_widen_theirs() {
        let names: Vec<String> = (1..=7).map(|number| format!("p{number}")).collect();
        assert_eq!(widened(&[]), None);
        let one = widened(&["p1".to_owned()]).unwrap();
        assert!(one.starts_with("NetworkPolicies p1 of this namespace select runner or probe pods too"), "{one}");
        assert!(widened(&names).unwrap().contains("NetworkPolicies p1, p2, p3, p4, p5 and 2 more of this"));
        assert_eq!((not_held(&one).truth, not_held(&one).reason), (Truth::False, "Widened"));
    }

    #[test]
    fn agents_say_what_the_probe_found_and_nothing_else_meanwhile() {
        let found = |report| Step::Use { report, again: None };
        let table = [
            (Some(found(Ok(ProbeReport::Network(Passage::Blocked)))), Some((Truth::True, "Enforced"))),
            (Some(found(Ok(ProbeReport::Network(Passage::Open)))), Some((Truth::False, "NotEnforced"))),
            (Some(found(Ok(ProbeReport::Network(Passage::NotFound)))), Some((Truth::Unknown, "ProbeFailed"))),
            (Some(found(Ok(ProbeReport::Network(Passage::Refused)))), Some((Truth::Unknown, "ProbeFailed"))),
            (Some(found(Err("no image".to_owned()))), Some((Truth::Unknown, "ProbeFailed"))),
            (Some(found(Ok(ProbeReport::Tool(Ok(vec![]))))), Some((Truth::Unknown, "ProbeFailed"))),
            (Some(Step::Wait), None),
            (Some(Step::Start), None),
            (None, Some((Truth::Unknown, "NotProbed"))),
        ];
        for (step, expected) in table {
            let said = statement(step.as_ref());
            assert_eq!(said.map(|said| (said.truth, said.reason)), expected, "{step:?}");
        }
    }
}
