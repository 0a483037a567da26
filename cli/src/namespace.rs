//! `belay namespace enable|disable NS`: the label that the operator watches and the RoleBinding that gives it
//! rights over pods there. Both are made with the user's own rights.

use std::process::ExitCode;

use belay_crds::ENABLED_LABEL;
use clap::Subcommand;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::Target;
use crate::exit::CliError;

const BINDING: &str = "belay-operator";
const CLUSTER_ROLE: &str = "belay-namespace";

#[derive(Subcommand)]
pub enum NamespaceCommand {
    /// Let the operator run pods in this namespace
    Enable {
        name: String,
        /// Where the operator is installed
        #[arg(long, default_value = "belay-system")]
        operator_namespace: String,
    },
    /// Take that back; runs there stay Pending
    Disable { name: String },
}

pub async fn namespace(target: &Target, command: NamespaceCommand) -> Result<ExitCode, CliError> {
    match command {
        NamespaceCommand::Enable { name, operator_namespace } => enable(target, &name, &operator_namespace).await,
        NamespaceCommand::Disable { name } => disable(target, &name).await,
    }
}

async fn enable(target: &Target, name: &str, operator_namespace: &str) -> Result<ExitCode, CliError> {
    let bindings: Api<RoleBinding> = Api::namespaced(target.client.clone(), name);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": BINDING, "labels": {"app.kubernetes.io/part-of": "belay"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": CLUSTER_ROLE},
        "subjects": [{"kind": "ServiceAccount", "name": "belay-operator", "namespace": operator_namespace}],
    });
    bindings
        .patch(BINDING, &PatchParams::apply("belay-cli").force(), &Patch::Apply(&binding))
        .await
        .map_err(|e| CliError::api(format!("binding {CLUSTER_ROLE} in namespace {name}"), e))?;
    label(target, name, Some("true")).await?;
    println!("namespace/{name} enabled: Belay may run pods there");
    Ok(ExitCode::SUCCESS)
}

async fn disable(target: &Target, name: &str) -> Result<ExitCode, CliError> {
    label(target, name, None).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(target.client.clone(), name);
    match bindings.delete(BINDING, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(CliError::api(format!("removing RoleBinding {BINDING} in namespace {name}"), error)),
    }
    println!("namespace/{name} disabled");
    Ok(ExitCode::SUCCESS)
}

async fn label(target: &Target, name: &str, value: Option<&str>) -> Result<(), CliError> {
    let namespaces: Api<Namespace> = Api::all(target.client.clone());
    let patch = json!({"metadata": {"labels": {ENABLED_LABEL: value}}});
    namespaces
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(|e| CliError::api(format!("labelling namespace {name}"), e))?;
    Ok(())
}
