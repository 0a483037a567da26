//! `belay cancel RUN`: sets `spec.cancel`, which stays true.

use std::process::ExitCode;

use belay_crds::AgentRun;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::exit::CliError;
use crate::{Target, get};

pub async fn cancel(target: &Target, name: &str) -> Result<ExitCode, CliError> {
    let run = get::fetch(target, name).await?;
    if get::is_ended(&run) {
        println!("{}: nothing to cancel", get::standing(&run));
        return Ok(ExitCode::SUCCESS);
    }
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    runs.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"cancel": true}})))
        .await
        .map_err(|e| CliError::api(format!("cancelling AgentRun {name}"), e))?;
    println!("agentrun.belay.dev/{name} is being cancelled");
    Ok(ExitCode::SUCCESS)
}
