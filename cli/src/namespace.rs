//! `belay namespace enable|disable NS`: the label that the operator watches and the RoleBinding that gives it
//! rights over pods there. Both are made with the user's own rights.

use std::process::ExitCode;

use belay_crds::{AgentRun, ENABLED_LABEL};
use clap::Subcommand;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::exit::CliError;
use crate::{Target, get};

const BINDING: &str = "belay-operator";
const CLUSTER_ROLE: &str = "belay-namespace";
/// Runs that a warning names.
const NAMED_MAX: usize = 10;

#[derive(Subcommand)]
pub enum NamespaceCommand {
    /// Let the operator run pods in this namespace
    Enable {
        name: String,
        /// Where the operator is installed
        #[arg(long, default_value = "belay-system")]
        operator_namespace: String,
    },
    /// Take that back; runs there stay Pending, and the pods of those under way are on their own
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
    warn_of_runs(target, name).await;
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

/// Who may not look at runs may take the label away all the same.
async fn warn_of_runs(target: &Target, namespace: &str) {
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), namespace);
    match runs.list(&ListParams::default()).await {
        Ok(runs) => {
            if let Some(warning) = warning(namespace, &runs.items) {
                eprintln!("belay: {warning}");
            }
        }
        Err(error) => eprintln!("belay: cannot see whether runs are under way in namespace {namespace}: {error}"),
    }
}

fn warning(namespace: &str, runs: &[AgentRun]) -> Option<String> {
    let mut under_way: Vec<String> =
        runs.iter().filter(|run| !get::is_ended(run)).filter_map(|run| run.metadata.name.clone()).collect();
    under_way.sort();
    let count = under_way.len();
    if count == 0 {
        return None;
    }
    let more = count.saturating_sub(NAMED_MAX);
    under_way.truncate(NAMED_MAX);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    Some(format!(
        "{count} runs of namespace {namespace} have not ended: {}{more}. Their runners go on, but nobody replaces or \
         removes their pods until the namespace is enabled again; to end one: belay -n {namespace} cancel NAME",
        under_way.join(", ")
    ))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(name: &str, phase: &str) -> AgentRun {
        serde_json::from_value(json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": name},
            "spec": {"agentRef": {"name": "a"}, "input": "go"},
            "status": {"phase": phase, "conditions": []},
        }))
        .unwrap()
    }

    #[test]
    fn runs_under_way_are_named_before_their_namespace_is_disabled() {
        assert_eq!(warning("team", &[run("done", "Succeeded"), run("gone", "Cancelled")]), None);
        let said = warning("team", &[run("b", "Waiting"), run("done", "Failed"), run("a", "Running")]).unwrap();
        assert!(said.starts_with("2 runs of namespace team have not ended: a, b. Their runners go on"), "{said}");
        let many: Vec<AgentRun> = (10..25).map(|at| run(&format!("run-{at}"), "Pending")).collect();
        let said = warning("team", &many).unwrap();
        assert!(said.contains("run-19 and 5 more.") && !said.contains("run-20"), "{said}");
    }
}
