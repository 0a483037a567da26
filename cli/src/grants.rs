//! `belay grants` and `belay revoke NAME`: what people allowed for the rest of a run, and how they take it back.

use std::process::ExitCode;

use belay_crds::{ApprovalGrant, GrantOver};
use jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};

use crate::exit::CliError;
use crate::{Target, table};
use belay_crds::visible;

const HEADER: [&str; 8] = ["NAME", "RUN", "POLICY", "OPERATION", "LEFT", "EXPIRES", "BY", "WHERE"];

pub async fn list(target: &Target) -> Result<ExitCode, CliError> {
    let found =
        api(target).list(&ListParams::default()).await.map_err(|e| CliError::api("listing ApprovalGrants", e))?;
    if found.items.is_empty() {
        println!("nothing is allowed for the rest of a run in namespace {}", target.namespace);
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    table::print(&HEADER, found.items.iter().map(|grant| row(grant, now)).collect());
    Ok(ExitCode::SUCCESS)
}

/// Deletes that very object: one that was made meanwhile under its name has another uid.
pub async fn revoke(target: &Target, name: &str) -> Result<ExitCode, CliError> {
    let found =
        api(target).get_opt(name).await.map_err(|e| CliError::api(format!("reading ApprovalGrant {name}"), e))?;
    let Some(found) = found else {
        let (name, namespace) = (name.to_owned(), target.namespace.clone());
        return Err(CliError::NotFound { kind: "ApprovalGrant", name, namespace });
    };
    let only = Preconditions { uid: found.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams::default().preconditions(only);
    api(target).delete(name, &params).await.map_err(|e| CliError::api(format!("deleting ApprovalGrant {name}"), e))?;
    println!(
        "approvalgrant.belay.dev/{name} is revoked: what run {} proposes from now on is asked again. A call that was \
         permitted before may still be sent",
        visible(&found.spec.run.name)
    );
    Ok(ExitCode::SUCCESS)
}

fn row(grant: &ApprovalGrant, now: Timestamp) -> Vec<String> {
    let spec = &grant.spec;
    let status = grant.status.as_ref();
    let left = status.and_then(|status| status.left).unwrap_or(spec.count);
    let expires = match status.and_then(|status| status.over) {
        Some(GrantOver::RunEnded) => "the run ended".to_owned(),
        Some(GrantOver::Revoked) => "revoked".to_owned(),
        None if spec.expires_at.0 <= now => "expired".to_owned(),
        None => spec.expires_at.0.to_string(),
    };
    vec![
        grant.metadata.name.clone().unwrap_or_default(),
        visible(&spec.run.name),
        visible(&spec.policy),
        visible(&format!("{}/{}", spec.tool, spec.operation)),
        format!("{left}/{}", spec.count),
        expires,
        visible(&spec.by.join(",")),
        visible(&spec.when),
    ]
}

fn api(target: &Target) -> Api<ApprovalGrant> {
    Api::namespaced(target.client.clone(), &target.namespace)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_what_is_left_of_what_for_whom_and_until_when() {
        let object = |status: &serde_json::Value| -> ApprovalGrant {
            let spec = json!({
                "run": {"name": "nightly", "uid": "u"}, "approval": "nightly-c1-x", "by": ["ada", "bob"],
                "policy": "careful", "tool": "github", "operation": "delete_repo", "definition": "sha256:d",
                "when": "args.a == '\u{202e}'", "count": 5, "seconds": 60, "expiresAt": "2026-11-30T10:00:00Z",
                "digest": "sha256:g",
            });
            let metadata = json!({"name": "nightly-c1-gx"});
            let object = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalGrant", "metadata": metadata, "spec": spec, "status": status});
            serde_json::from_value(object).unwrap()
        };
        let now: Timestamp = "2026-11-30T09:00:00Z".parse().unwrap();
        let cells = row(&object(&json!({"left": 3})), now);
        let expected = [
            "nightly-c1-gx",
            "nightly",
            "careful",
            "github/delete_repo",
            "3/5",
            "2026-11-30T10:00:00Z",
            "ada,bob",
            "args.a == '\\u{202e}'",
        ];
        assert_eq!(cells, expected);
        assert_eq!(cells.len(), HEADER.len());
        let late = row(&object(&json!({})), "2026-11-30T10:00:00Z".parse().unwrap());
        assert_eq!(late.get(4..6).unwrap(), ["5/5", "expired"]);
        let over = row(&object(&json!({"left": 3, "over": "RunEnded"})), now);
        assert_eq!(over.get(4..6).unwrap(), ["3/5", "the run ended"]);
    }
}
