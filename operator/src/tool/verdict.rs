//! What a pass found out about a Tool's server, and in which words it could not be listed. Pure.

use belay_crds::reason::ToolReason;
use belay_crds::{LEFT_OUT_MAX, LeftOutOperation, Tool, ToolOperation};
use belay_protocol::event::{Failure, FailureReason};
use belay_protocol::probe::{OperationDefinition, ProbeReport, bounded};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::probe_pod::Step;
use crate::readiness::Verdict;
use crate::references::CredentialState;
use crate::writes::cut;

/// What status holds of a name; the schema takes no more.
const OPERATION_NAME_MAX: usize = 128;
const OPERATIONS_MAX: usize = 1024;
/// What the schema takes of a reason.
const LEFT_OUT_BYTES_MAX: usize = 512;

/// What a pass found before it judged.
pub enum Found {
    NotServed(Service),
    /// Its URL leads where no probe may go, in words.
    Astray(String),
    /// The Credential that the Tool names is missing or not ready.
    Credential(CredentialState),
    Probe(Step),
}

/// What a pass came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Judged {
    /// What the server offers now, and what is there and cannot be offered.
    Listed { operations: Vec<ToolOperation>, left_out: Vec<LeftOutOperation> },
    /// A probe pod is asking, or status holds what one found.
    Asking(Verdict<ToolReason>),
    /// It cannot be listed.
    Not(Verdict<ToolReason>),
}

pub fn judge(tool: &Tool, found: Found) -> Judged {
    let subject = format!("Tool {}: spec.{}", tool.name_any(), tool.spec.kind());
    Judged::Not(match found {
        Found::NotServed(service) => {
            let complaint = service.complaint(&tool.namespace().unwrap_or_default()).unwrap_or_default();
            Verdict::stalled(ToolReason::NamespaceNotEnabled, complaint)
        }
        Found::Astray(message) => Verdict::stalled(ToolReason::DestinationNotAllowed, message),
        Found::Credential(CredentialState::Missing(message)) => {
            Verdict::waiting(ToolReason::CredentialMissing, message)
        }
        Found::Credential(CredentialState::NotReady(message)) => {
            Verdict::waiting(ToolReason::CredentialNotReady, message)
        }
        Found::Credential(CredentialState::None | CredentialState::Ready)
        | Found::Probe(Step::Start | Step::Wait | Step::Rest) => {
            let message = match &tool.spec.http {
                Some(_) => "a probe pod is reading what describes the operations".to_owned(),
                None => format!("a probe pod is asking {} for its operations", tool.spec.url()),
            };
            return Judged::Asking(Verdict::unknown(ToolReason::NotProbed, message));
        }
        Found::Probe(Step::Use { report: Err(why), .. }) => {
            Verdict::waiting(ToolReason::ProbeFailed, format!("{subject} is not known: {why}"))
        }
        Found::Probe(Step::Use { report: Ok(ProbeReport::Credential(_) | ProbeReport::Network(_)), .. }) => {
            Verdict::waiting(ToolReason::ProbeFailed, "the probe pod answered another question")
        }
        Found::Probe(Step::Use { report: Ok(ProbeReport::Tool(Err(failure))), .. }) => {
            Verdict::waiting(reason(&failure), failure.message)
        }
        Found::Probe(Step::Use { report: Ok(ProbeReport::Tool(Ok(listed))), .. }) => {
            return sorted(listed);
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
        FailureReason::DocumentMissing => ToolReason::DocumentMissing,
        FailureReason::DefinitionsInvalid => ToolReason::DefinitionsInvalid,
        FailureReason::CaBundleUnusable => ToolReason::CaBundleUnusable,
        FailureReason::DestinationNotAllowed => ToolReason::DestinationNotAllowed,
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
fn sorted(mut listed: Vec<OperationDefinition>) -> Judged {
    for operation in listed.iter_mut().filter(|operation| operation.unusable.is_some()) {
        let shown = belay_crds::visible(&operation.name);
        cut(&shown, OPERATION_NAME_MAX).clone_into(&mut operation.name);
    }
    listed.retain(|operation| !operation.name.is_empty() && operation.name.chars().count() <= OPERATION_NAME_MAX);
    let (mut operations, mut left_out) = (Vec::new(), Vec::new());
    for OperationDefinition { name, digest, description, input_schema, unusable } in bounded(listed) {
        match unusable {
            None if operations.len() < OPERATIONS_MAX => {
                operations.push(ToolOperation { name, digest: digest.to_string(), description, input_schema });
            }
            Some(reason) if left_out.len() < LEFT_OUT_MAX => {
                let reason = cut(&belay_crds::visible(&reason), LEFT_OUT_BYTES_MAX).to_owned();
                left_out.push(LeftOutOperation { name, reason });
            }
            None | Some(_) => {}
        }
    }
    Judged::Listed { operations, left_out }
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
            unusable: name.starts_with('!').then(|| "its schema refers to itself\u{202e}".to_owned()),
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
            Judged::Listed { operations, .. } => unreachable!("{operations:?}"),
        }
    }

    #[test]
    fn what_the_server_lists_is_sorted_bounded_and_each_name_once() {
        let long = "x".repeat(129);
        let found = listed(&["b", "a", "b", "!c", "!\u{1b}[2J", &long, ""]);
        let Judged::Listed { operations, left_out } = judge(&tool("t", &[]), found) else {
            unreachable!("it was listed")
        };
        let reason = belay_crds::visible("its schema refers to itself\u{202e}");
        let out = |name: &str| LeftOutOperation { name: name.into(), reason: reason.clone() };
        assert_eq!(left_out, [out("!\\u{1b}[2J"), out("!c")], "nobody may call them");
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
            (failed(FailureReason::DestinationNotAllowed), ToolReason::DestinationNotAllowed),
            (failed(FailureReason::Malformed), ToolReason::ServerFailed),
            (failed(FailureReason::DocumentMissing), ToolReason::DocumentMissing),
            (failed(FailureReason::DefinitionsInvalid), ToolReason::DefinitionsInvalid),
            (failed(FailureReason::CaBundleUnusable), ToolReason::CaBundleUnusable),
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
