//! Approvals in the terminal: what is asked, shown from the very bytes that a decision signs.

mod resolve;
mod visible;

use std::process::ExitCode;

use belay_crds::{Approval, ApprovalPurpose, ApprovalRequest};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use kube::api::{Api, ListParams};

pub use self::resolve::{ResolveArguments, resolve};
use self::visible::visible;
use crate::exit::CliError;
use crate::{Target, table};

/// `belay approvals`: what waits for people in this namespace.
pub async fn list(target: &Target) -> Result<ExitCode, CliError> {
    let approvals = api(target).list(&ListParams::default()).await;
    let approvals = approvals.map_err(|e| CliError::api("listing Approvals", e))?.items;
    let open: Vec<&Approval> = approvals.iter().filter(|approval| !is_sealed(approval)).collect();
    if open.is_empty() {
        println!("nothing waits for a decision in namespace {}", target.namespace);
        return Ok(ExitCode::SUCCESS);
    }
    let row = |approval: &&Approval| {
        let request = &approval.spec.request;
        vec![
            approval.metadata.name.clone().unwrap_or_default(),
            request.run.name.clone(),
            format!("{:?}", request.purpose),
            visible(&request.tool),
            visible(&request.operation),
            policies(request).join(","),
            request.expires_at.0.to_string(),
        ]
    };
    let header = ["NAME", "RUN", "PURPOSE", "TOOL", "OPERATION", "NEEDS", "EXPIRES"];
    table::print(&header, open.iter().map(row).collect());
    Ok(ExitCode::SUCCESS)
}

/// `belay show NAME`: the whole question.
pub async fn show(target: &Target, name: &str) -> Result<ExitCode, CliError> {
    let approval = fetch(target, name).await?;
    print!("{}", rendered(name, &approval.spec.request));
    for decision in &approval.spec.decisions {
        let reason = decision.reason.as_deref().map(|reason| format!(": {}", visible(reason))).unwrap_or_default();
        println!("{:?} by {} for {}{reason}", decision.verdict, visible(&decision.by), decision.policy);
    }
    if is_sealed(&approval) {
        println!("sealed: it takes no more decisions");
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(target: &Target, name: &str) -> Result<Approval, CliError> {
    let found = api(target).get_opt(name).await.map_err(|e| CliError::api(format!("reading Approval {name}"), e))?;
    found.ok_or_else(|| CliError::NotFound {
        kind: "Approval",
        name: name.to_owned(),
        namespace: target.namespace.clone(),
    })
}

fn api(target: &Target) -> Api<Approval> {
    Api::namespaced(target.client.clone(), &target.namespace)
}

fn is_sealed(approval: &Approval) -> bool {
    approval.status.as_ref().is_some_and(|status| status.sealed == Some(true))
}

fn policies(request: &ApprovalRequest) -> Vec<String> {
    request.requirements.iter().map(|one| one.policy.clone()).collect()
}

/// The digest of what is shown; a stored one that differs was not made over it.
fn checked_digest(name: &str, request: &ApprovalRequest) -> Result<Digest, CliError> {
    let whole = serde_json::to_value(request).ok().and_then(|value| request_digest(&value).ok());
    whole.filter(|digest| digest.to_string() == request.digest).ok_or_else(|| {
        CliError::Failed(format!(
            "Approval {name}: spec.request.digest is not the one over its request, so nobody can say what a decision \
             would sign. Use the belay of the operator's version; if it is, tell whoever runs the cluster"
        ))
    })
}

/// Everything that a decision is about; what a model or a server wrote is made visible, never cut.
fn rendered(name: &str, request: &ApprovalRequest) -> String {
    let question = match request.purpose {
        ApprovalPurpose::Unknown => "Did this call take effect? Nobody here can tell: look where it went.",
    };
    let line = |label: &str, value: &str| format!("  {label:<12} {value}\n");
    let mut text = format!("Approval {name}: {question}\n");
    text += &line("run", &visible(&request.run.name));
    text += &line("requested by", &visible(&request.requested_by));
    text += &line("call", &format!("{}, attempt {}", request.call_id, request.attempt));
    text += &line("operation", &format!("{}/{}", visible(&request.tool), visible(&request.operation)));
    text += &line("sent to", &visible(&request.destination));
    if let Some(credential) = &request.credential {
        text += &line("with", &format!("Credential {}", visible(credential)));
    }
    if let Some(at) = &request.sent_at {
        text += &line("sent about", &at.0.to_string());
    }
    text += &line("known", &visible(&request.message));
    text += &line("expires", &request.expires_at.0.to_string());
    text += &line("needs", &format!("approve on policy {}", policies(request).join(", ")));
    text += &line("digest", &request.digest);
    let cut =
        if request.arguments_truncated == Some(true) { " (the beginning: the journal has all of them)" } else { "" };
    let rows: Vec<String> = pretty(&request.arguments).lines().map(|row| format!("    {}", visible(row))).collect();
    format!("{text}  arguments{cut}:\n{}\n", rows.join("\n"))
}

/// Over several lines; what is not whole JSON is shown as it is.
fn pretty(arguments: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(arguments).ok();
    value.and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| arguments.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn request() -> ApprovalRequest {
        let mut value = serde_json::json!({
            "purpose": "Unknown", "run": {"name": "nightly", "uid": "u"}, "callId": "c1", "attempt": 1,
            "tool": "github", "operation": "delete_repo", "definition": "sha256:d",
            "arguments": "{\"name\":\"a\u{202e}b\\u001b[2J\"}", "destination": "http://github/mcp",
            "credential": "github-token", "callDigest": "sha256:c", "sentAt": "2026-11-23T10:00:00Z",
            "message": "its pod was lost", "requirements": [{"policy": "default", "quorum": 1}],
            "requestedBy": "ada", "expiresAt": "2026-11-30T10:00:00Z", "nonce": "n",
        });
        value["digest"] = serde_json::json!(request_digest(&value).unwrap().to_string());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_whole_question_is_shown_and_nothing_in_it_reaches_the_terminal_raw() {
        let text = rendered("nightly-c1-x", &request());
        for words in ["github/delete_repo", "http://github/mcp", "Credential github-token", "its pod was lost"] {
            assert!(text.contains(words), "{text}");
        }
        assert!(text.contains("a\\u{202e}b"), "{text}");
        assert!(!text.contains('\u{202e}') && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn a_request_that_was_changed_cannot_be_signed() {
        assert!(checked_digest("a", &request()).is_ok());
        let changed = ApprovalRequest { arguments: "{}".to_owned(), ..request() };
        assert!(checked_digest("a", &changed).is_err());
    }
}
