//! `belay can-i approve POLICY`, or `tool/NAME`: asks the API server; `kubectl auth can-i` says no for a virtual group even to who may.

use std::fmt::Debug;
use std::process::ExitCode;

use belay_crds::{ApprovalPolicy, DECIDE_GROUP, Tool, visible};
use belay_protocol::judgement::DEFAULT_POLICY;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::Resource;
use kube::api::{Api, ListParams, PostParams};
use serde::de::DeserializeOwned;

use crate::Target;
use crate::exit::{CliError, FAILED};

/// Names that a message lists before it says how many more there are.
const NAMES_MAX: usize = 12;

/// What people decide for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Policy,
    Tool,
}

impl On {
    fn resource(self) -> &'static str {
        match self {
            Self::Policy => "approvalpolicies",
            Self::Tool => "tools",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Policy => "ApprovalPolicy",
            Self::Tool => "Tool",
        }
    }
}

pub async fn can_i(target: &Target, verb: &str, on: &str) -> Result<ExitCode, CliError> {
    let (on, name) = meant(on);
    look_for(target, on, name).await?;
    let resource = on.resource();
    if may(target, verb, resource, name).await? {
        println!("yes");
        return Ok(ExitCode::SUCCESS);
    }
    println!("no: it needs the verb {verb} on {resource}.decide.belay.dev {name} in {}", target.namespace);
    Ok(ExitCode::from(FAILED))
}

/// What is named: a Tool, or a policy.
fn meant(on: &str) -> (On, &str) {
    on.strip_prefix("tool/").map_or((On::Policy, on), |name| (On::Tool, name))
}

/// Refuses a name that nothing has: RBAC grants verbs on any. Whoever may not list them is told that nobody looked.
async fn look_for(target: &Target, on: On, name: &str) -> Result<(), CliError> {
    let there = match on {
        On::Policy if name == DEFAULT_POLICY => return Ok(()),
        On::Policy => names::<ApprovalPolicy>(target).await,
        On::Tool => names::<Tool>(target).await,
    };
    match there {
        Ok(there) if there.iter().any(|one| one == name) => Ok(()),
        Ok(there) => Err(CliError::Failed(absent(on, name, &target.namespace, there))),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            eprintln!("belay: whether {} {} is there you may not see: {}", on.kind(), visible(name), status.message);
            Ok(())
        }
        Err(error) => Err(CliError::api(format!("listing {}", on.resource()), error)),
    }
}

async fn names<K>(target: &Target) -> Result<Vec<String>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(target.client.clone(), &target.namespace);
    let found = api.list_metadata(&ListParams::default()).await?;
    Ok(found.items.iter().map(kube::ResourceExt::name_any).collect())
}

fn absent(on: On, name: &str, namespace: &str, mut there: Vec<String>) -> String {
    if on == On::Policy {
        there.push(format!("{DEFAULT_POLICY} (built in)"));
    }
    let shown: Vec<String> = there.iter().take(NAMES_MAX).map(|name| visible(name)).collect();
    let there = match there.len().saturating_sub(NAMES_MAX) {
        _ if shown.is_empty() => "there is none".to_owned(),
        0 => format!("there is {}", shown.join(", ")),
        more => format!("there is {} and {more} more", shown.join(", ")),
    };
    let kind = on.kind();
    format!(
        "{kind} {} is not in namespace {namespace}: {there}. can-i takes the name of an ApprovalPolicy, or tool/NAME",
        visible(name)
    )
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
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::place::Place;

    /// An API server that holds ApprovalPolicies and Tools of these names, or lets nobody list any.
    fn server(names: Option<&[&str]>) -> Target {
        let (code, body) = if let Some(names) = names {
            let items: Vec<_> = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
            let kind = "PartialObjectMetadataList";
            (200, json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items}))
        } else {
            let (reason, message) = ("Forbidden", "ada cannot list resource");
            (403, json!({"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": 403}))
        };
        let service = tower::service_fn(move |_request: http::Request<kube::client::Body>| {
            let body = kube::client::Body::from(serde_json::to_vec(&body).unwrap());
            let answer = http::Response::builder().status(code).body(body).unwrap();
            std::future::ready(Ok::<_, tower::BoxError>(answer))
        });
        Target { client: kube::Client::new(service, "team"), namespace: "team".to_owned(), place: Place::default() }
    }

    #[test]
    fn a_policy_is_meant_unless_a_tool_is_named() {
        assert_eq!(meant("careful"), (On::Policy, "careful"));
        assert_eq!(meant("tool/github"), (On::Tool, "github"));
    }

    #[rstest]
    #[case::there("careful", Some(&["careful"][..]))]
    #[case::built_in("default", Some(&[][..]))]
    #[case::a_tool("tool/github", Some(&["github"][..]))]
    #[case::nobody_may_look("careful", None)]
    #[tokio::test]
    async fn what_is_there_or_cannot_be_seen_is_asked_about(#[case] on: &str, #[case] names: Option<&[&str]>) {
        let (on, name) = meant(on);
        look_for(&server(names), on, name).await.unwrap();
    }

    #[rstest]
    #[case::mistyped(
        "carefull",
        &["careful"],
        "ApprovalPolicy carefull is not in namespace team: there is careful, default (built in)"
    )]
    #[case::no_policy("x", &[], "ApprovalPolicy x is not in namespace team: there is default (built in)")]
    #[case::no_built_in_tool("tool/default", &[], "Tool default is not in namespace team: there is none")]
    #[tokio::test]
    async fn a_name_that_nothing_has_is_refused_with_those_that_there_are(
        #[case] on: &str,
        #[case] names: &[&str],
        #[case] words: &str,
    ) {
        let (on, name) = meant(on);
        let error = look_for(&server(Some(names)), on, name).await.unwrap_err();
        let hint = "can-i takes the name of an ApprovalPolicy, or tool/NAME";
        assert_eq!(error.to_string(), format!("{words}. {hint}"));
    }

    #[test]
    fn no_more_than_a_dozen_names_are_shown() {
        let many = (0..20).map(|number| format!("p{number:02}")).collect();
        let words = absent(On::Tool, "x", "team", many);
        assert!(words.contains("p11 and 8 more") && !words.contains("p12"), "{words}");
    }
}
