//! `belay can-i approve POLICY`, or `tool/NAME`: asks the API server; `kubectl auth can-i` says no for a virtual group even to who may.

use std::process::ExitCode;

use belay_crds::DECIDE_GROUP;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use crate::Target;
use crate::exit::{CliError, FAILED};

pub async fn can_i(target: &Target, verb: &str, on: &str) -> Result<ExitCode, CliError> {
    let (resource, name) = meant(on);
    if may(target, verb, resource, name).await? {
        println!("yes");
        return Ok(ExitCode::SUCCESS);
    }
    println!("no: it needs the verb {verb} on {resource}.decide.belay.dev {name} in {}", target.namespace);
    Ok(ExitCode::from(FAILED))
}

/// What is named: a Tool, or a policy.
fn meant(on: &str) -> (&'static str, &str) {
    on.strip_prefix("tool/").map_or(("approvalpolicies", on), |name| ("tools", name))
}

/// Whether RBAC grants the user `verb` on that policy or Tool.
pub async fn may(target: &Target, verb: &str, resource: &str, name: &str) -> Result<bool, CliError> {
    let attributes = ResourceAttributes {
        group: Some(DECIDE_GROUP.to_owned()),
        resource: Some(resource.to_owned()),
        name: Some(name.to_owned()),
        namespace: Some(target.namespace.clone()),
        verb: Some(verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(target.client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|e| CliError::api("asking the server what you may do", e))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_meant_unless_a_tool_is_named() {
        assert_eq!(meant("careful"), ("approvalpolicies", "careful"));
        assert_eq!(meant("tool/github"), ("tools", "github"));
    }
}
