//! `belay can-i approve POLICY`: asks the API server; `kubectl auth can-i` says no for a virtual group even to who may.

use std::process::ExitCode;

use belay_crds::DECIDE_GROUP;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use crate::Target;
use crate::exit::{CliError, FAILED};

pub async fn can_i(target: &Target, verb: &str, policy: &str) -> Result<ExitCode, CliError> {
    if may(target, verb, policy).await? {
        println!("yes");
        return Ok(ExitCode::SUCCESS);
    }
    println!("no: it needs the verb {verb} on approvalpolicies.decide.belay.dev {policy} in {}", target.namespace);
    Ok(ExitCode::from(FAILED))
}

/// Whether RBAC grants the user `verb` on that policy.
pub async fn may(target: &Target, verb: &str, policy: &str) -> Result<bool, CliError> {
    let attributes = ResourceAttributes {
        group: Some(DECIDE_GROUP.to_owned()),
        resource: Some("approvalpolicies".to_owned()),
        name: Some(policy.to_owned()),
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
