//! `belay logs RUN`: the runner's line for each step, never arguments or results. With `-f` from pod to pod, until the
//! run ends.

use std::process::ExitCode;

use belay_crds::AgentRun;
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};

use crate::exit::CliError;
use crate::follow::{self, Sight};
use crate::{Target, get};

pub async fn logs(target: &Target, name: &str, follow: bool) -> Result<ExitCode, CliError> {
    let run = get::fetch(target, name).await?;
    if follow && !get::is_ended(&run) {
        // How it stands goes beside the lines of its runner, not among them.
        follow::follow(target, name, |sight| match sight {
            Sight::Standing(standing) => eprintln!("{standing}"),
            Sight::Step(line) => println!("{line}"),
        })
        .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(pod) = get::pod_name(&run) else {
        println!("{}", get::standing(&run));
        return Ok(ExitCode::SUCCESS);
    };
    let pods: Api<Pod> = Api::namespaced(target.client.clone(), &target.namespace);
    let parameters = LogParams { container: Some("runner".into()), ..LogParams::default() };
    match pods.log_stream(&pod, &parameters).await {
        Ok(log) => {
            let mut lines = log.lines();
            while let Some(line) =
                lines.try_next().await.map_err(|e| CliError::Usage(format!("the log broke off: {e}")))?
            {
                println!("{line}");
            }
        }
        Err(kube::Error::Api(status)) if status.code == 404 => print_without_pod(target, &run),
        Err(error) => return Err(CliError::api(format!("reading the log of pod {pod}"), error)),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_without_pod(target: &Target, run: &AgentRun) {
    let is = if get::is_ended(run) { "ended with" } else { "stands at" };
    let trace = format!("{} trace {}", target.place.belay(), run.metadata.name.as_deref().unwrap_or_default());
    eprintln!("belay: the run's pod is gone, and its log with it ({trace} shows every step); what the run {is}:");
    get::print_end(run);
}
