//! `belay doctor`: looks at what an installation needs and prints one line a finding with what to do.

use std::process::ExitCode;

use belay_crds::ENABLED_LABEL;
use belay_crds::admission::{APPROVALS, Difference, RESTORE, Rules};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams};

use crate::Target;
use crate::exit::{CliError, FAILED};

const OPERATOR_NAMESPACE: &str = "belay-system";
/// What the operator is bound to in each namespace that opted in.
const NAMESPACE_BINDING: &str = "belay-operator";
const KINDS: [&str; 9] = [
    "models",
    "credentials",
    "tools",
    "approvalpolicies",
    "agents",
    "agentruns",
    "approvals",
    "approvalgrants",
    "readgrants",
];

enum Finding {
    Good(String),
    Bad { what: String, remedy: String },
}

pub async fn doctor(target: &Target) -> Result<ExitCode, CliError> {
    let mut findings = Vec::new();
    kinds(target, &mut findings).await?;
    admission(target, &mut findings).await?;
    operator(target, &mut findings).await?;
    namespaces(target, &mut findings).await?;
    let mut bad = 0;
    for finding in findings {
        match finding {
            Finding::Good(what) => println!("ok    {what}"),
            Finding::Bad { what, remedy } => {
                bad += 1;
                println!("BAD   {what}\n      {remedy}");
            }
        }
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn kinds(target: &Target, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let api: Api<CustomResourceDefinition> = Api::all(target.client.clone());
    for kind in KINDS {
        let name = format!("{kind}.belay.dev");
        let found = api.get_opt(&name).await.map_err(|e| CliError::api(format!("reading CRD {name}"), e))?;
        findings.push(match found {
            Some(_) => Finding::Good(format!("kind {name} is installed")),
            None => bad(
                format!("kind {name} is missing"),
                "apply manifests/crds, or install the chart with crds.install=true",
            ),
        });
    }
    Ok(())
}

async fn admission(target: &Target, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(target.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(target.client.clone());
    let rules = Rules::shipped(OPERATOR_NAMESPACE).map_err(|e| CliError::Failed(e.to_string()))?;
    for name in rules.names() {
        let policy = policies.get_opt(name).await.map_err(|e| CliError::api(format!("reading policy {name}"), e))?;
        let binding = bindings.get_opt(name).await.map_err(|e| CliError::api(format!("reading binding {name}"), e))?;
        let wrong = [rules.policy(name, policy.as_ref()), rules.binding(name, binding.as_ref())];
        findings.push(rule(name, &wrong.into_iter().flatten().collect::<Vec<_>>()));
    }
    Ok(())
}

/// One rule, by what is wrong with its policy and its binding.
fn rule(name: &str, wrong: &[Difference]) -> Finding {
    if wrong.is_empty() {
        return Finding::Good(format!("admission policy {name} is bound, as it was shipped"));
    }
    let what = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let since = if name == APPROVALS { "; decisions that people made without it are asked for anew" } else { "" };
    let remedy = format!("no approval is honoured until: {RESTORE}, or helm upgrade{since}");
    bad(what, &remedy)
}

async fn operator(target: &Target, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let deployments: Api<Deployment> = Api::namespaced(target.client.clone(), OPERATOR_NAMESPACE);
    let found = deployments
        .get_opt("belay-operator")
        .await
        .map_err(|e| CliError::api("reading the operator's Deployment", e))?;
    let look = "kubectl -n belay-system describe pods; kubectl -n belay-system logs deploy/belay-operator";
    findings.push(match found {
        None => bad(
            format!("no Deployment belay-operator in {OPERATOR_NAMESPACE}"),
            "kubectl apply --server-side -k manifests",
        ),
        Some(deployment) => match deployment.status.and_then(|status| status.ready_replicas) {
            Some(1..) => Finding::Good("the operator is ready".into()),
            Some(_) | None => bad("the operator is not ready".into(), look),
        },
    });
    Ok(())
}

async fn namespaces(target: &Target, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let api: Api<Namespace> = Api::all(target.client.clone());
    let enabled = ListParams::default().labels(&format!("{ENABLED_LABEL}=true"));
    let list = api.list(&enabled).await.map_err(|e| CliError::api("listing namespaces", e))?;
    if list.items.is_empty() {
        findings.push(bad("no namespace has opted in".into(), "belay namespace enable NAME"));
    }
    for namespace in list.items {
        let name = namespace.metadata.name.unwrap_or_default();
        let bindings: Api<RoleBinding> = Api::namespaced(target.client.clone(), &name);
        let bound = bindings
            .get_opt(NAMESPACE_BINDING)
            .await
            .map_err(|e| CliError::api(format!("reading RoleBindings of {name}"), e))?;
        findings.push(match bound {
            Some(_) => Finding::Good(format!("namespace {name} is enabled")),
            None => bad(
                format!("namespace {name} has the label but not the RoleBinding"),
                &format!("belay namespace enable {name}"),
            ),
        });
    }
    Ok(())
}

fn bad(what: String, remedy: &str) -> Finding {
    Finding::Bad { what, remedy: remedy.to_owned() }
}
