//! What a pass found out about a Tool's server, and in which words it could not be listed. Pure.

use belay_crds::reason::ToolReason;
use belay_crds::{Tool, ToolOperation};
use belay_protocol::event::{Failure, FailureReason};
use belay_protocol::probe::{OperationDefinition, ProbeReport, bounded};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::probe_pod::Step;
use crate::readiness::Verdict;
use crate::references::CredentialState;

/// What status holds of a name; the schema takes no more.
const OPERATION_NAME_MAX: usize = 128;
const OPERATIONS_MAX: usize = 1024;

/// What a pass found before it judged.
pub enum Found {
    NotServed(Service),
    /// The Credential that the Tool names is missing or not ready.
    Credential(CredentialState),
    Probe(Step),
}

/// What a pass came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Judged {
    /// What the server offers now.
    Listed(Vec<ToolOperation>),
    /// A probe pod is asking, or status holds what one found.
    Asking(Verdict<ToolReason>),
    /// It cannot be listed.
    Not(Verdict<ToolReason>),
}

pub fn judge(tool: &Tool, found: Found) -> Judged {
    let subject = format!("Tool {}: spec.mcp.url", tool.name_any());
    Judged::Not(match found {
        Found::NotServed(service) => {
            let complaint = service.complaint(&tool.namespace().unwrap_or_default()).unwrap_or_default();
            Verdict::stalled(ToolReason::NamespaceNotEnabled, complaint)
        }
        Found::Credential(CredentialState::Missing(message)) => {
            Verdict::waiting(ToolReason::CredentialMissing, message)
        }
        Found::Credential(CredentialState::NotReady(message)) => {
            Verdict::waiting(ToolReason::CredentialNotReady, message)
        }
        Found::Credential(CredentialState::None | CredentialState::Ready)
        | Found::Probe(Step::Start | Step::Wait | Step::Rest) => {
            let message = format!("a probe pod is asking {} for its operations", tool.spec.mcp.url);
            return Judged::Asking(Verdict::unknown(ToolReason::NotProbed, message));
        }
        Found::Probe(Step::Use { report: Err(why), .. }) => {
            Verdict::waiting(ToolReason::ProbeFailed, format!("{subject} is not known: {why}"))
        }
        Found::Probe(Step::Use { report: Ok(ProbeReport::Credential(_)), .. }) => {
            Verdict::waiting(ToolReason::ProbeFailed, "the probe pod answered another question")
        }
        Found::Probe(Step::Use { report: Ok(ProbeReport::Tool(Err(failure))), .. }) => {
            Verdict::waiting(reason(&failure), failure.message)
        }
        Found::Probe(Step::Use { report: Ok(ProbeReport::Tool(Ok(listed))), .. }) => {
            return Judged::Listed(operations(listed));
        }
    })
}

fn reason(failure: &Failure) -> ToolReason {
    match failure.reason {
        FailureReason::Unreachable | FailureReason::TimedOut => ToolReason::Unreachable,
        FailureReason::Unauthorized => ToolReason::Unauthorized,
        FailureReason::CredentialMissing
        | FailureReason::CredentialEmpty
        | FailureReason::CredentialTooLarge
        | FailureReason::HostNotAllowed => ToolReason::CredentialNotReady,
        FailureReason::RateLimited
        | FailureReason::ServerError
        | FailureReason::BadRequest
        | FailureReason::Truncated
        | FailureReason::Malformed
        | FailureReason::TooLarge
        | FailureReason::ScriptExhausted
        | FailureReason::Scripted
        | FailureReason::ContextExceeded
        | FailureReason::Interrupted
        | FailureReason::Withheld => ToolReason::ServerFailed,
    }
}

/// What a server says is bounded before it reaches status. A name that no Agent could list is left out.
fn operations(mut listed: Vec<OperationDefinition>) -> Vec<ToolOperation> {
    listed.retain(|operation| !operation.name.is_empty() && operation.name.chars().count() <= OPERATION_NAME_MAX);
    let kept = bounded(listed).into_iter().take(OPERATIONS_MAX);
    kept.map(|OperationDefinition { name, digest, description, input_schema }| ToolOperation {
        name,
        digest: digest.to_string(),
        description,
        input_schema,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_protocol::Digest;

    use super::*;
    use crate::fixtures::tool;
    use crate::readiness::Standing;

    fn listed(names: &[&str]) -> Found {
        let definition = |name: &&str| OperationDefinition {
            name: (*name).to_owned(),
            digest: Digest::of(name.as_bytes()),
            description: "é".repeat(3000),
            input_schema: Some("{}".to_owned()),
        };
        let report = Ok(ProbeReport::Tool(Ok(names.iter().map(definition).collect())));
        Found::Probe(Step::Use { report, again: None })
    }

    fn failed(reason: FailureReason) -> Found {
        let failure =
            Failure { reason, message: "Tool t: http://x/mcp".into(), retrying: false, retry_after_seconds: None };
        Found::Probe(Step::Use { report: Ok(ProbeReport::Tool(Err(failure))), again: None })
    }

    fn verdict_of(judged: Judged) -> Verdict<ToolReason> {
        match judged {
            Judged::Not(verdict) | Judged::Asking(verdict) => verdict,
            Judged::Listed(operations) => unreachable!("{operations:?}"),
        }
    }

    #[test]
    fn what_the_server_lists_is_sorted_bounded_and_each_name_once() {
        let long = "x".repeat(129);
        let Judged::Listed(operations) = judge(&tool("t", &[]), listed(&["b", "a", "b", &long, ""])) else {
            unreachable!("it was listed")
        };
        assert_eq!(operations.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(operations.iter().all(|o| o.description.len() <= 4096 && o.input_schema.as_deref() == Some("{}")));
    }

    #[test]
    fn each_failure_has_a_reason_and_keeps_the_runners_words() {
        let table = [
            (failed(FailureReason::Unreachable), ToolReason::Unreachable),
            (failed(FailureReason::TimedOut), ToolReason::Unreachable),
            (failed(FailureReason::Unauthorized), ToolReason::Unauthorized),
            (failed(FailureReason::HostNotAllowed), ToolReason::CredentialNotReady),
            (failed(FailureReason::Malformed), ToolReason::ServerFailed),
        ];
        for (found, reason) in table {
            let verdict = verdict_of(judge(&tool("t", &[]), found));
            assert_eq!((verdict.standing, verdict.reason), (Standing::Waiting, reason));
            assert_eq!(verdict.message, "Tool t: http://x/mcp");
        }
    }

    #[test]
    fn a_credential_that_is_missing_is_not_probed_with() {
        let found = Found::Credential(CredentialState::Missing("names Credential \"k\"".into()));
        assert_eq!(verdict_of(judge(&tool("t", &[]), found)).reason, ToolReason::CredentialMissing);
    }
}
