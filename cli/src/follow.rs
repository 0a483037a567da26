//! Shows a run while it happens: its phases, and the runner's own line for each step.

use std::time::Duration;

use belay_crds::{AgentRun, Phase};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use kube_runtime::{WatchStreamExt, watcher};

use crate::Target;
use crate::exit::CliError;
use crate::get;

const TICK: Duration = Duration::from_millis(100);

/// Prints phases and steps until the run has ended, and returns it as it ended.
pub async fn to_the_end(target: &Target, name: &str) -> Result<AgentRun, CliError> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    let selector = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(runs, selector).default_backoff().touched_objects());
    let (lines, mut steps) = tokio::sync::mpsc::channel(64);
    let mut reader = None;
    let mut shown = String::new();
    loop {
        tokio::select! {
            Some(line) = steps.recv() => spinner.println(line),
            change = changes.next() => {
                let Some(Ok(run)) = change else { continue };
                let standing = get::standing(&run);
                if standing != shown {
                    spinner.println(standing.clone());
                    spinner.set_message(standing.clone());
                    shown = standing;
                }
                if reader.is_none() && get::phase(&run) != Phase::Pending && let Some(pod) = get::pod_name(&run) {
                    reader = Some(tokio::spawn(read_steps(target.client.clone(), target.namespace.clone(), pod, lines.clone())));
                }
                if get::is_ended(&run) {
                    drop(lines);
                    finish_reading(reader, &mut steps, &spinner).await;
                    spinner.finish_and_clear();
                    return Ok(run);
                }
            }
        }
    }
}

/// The pod's log may end a moment after the run; its last lines are worth a second.
async fn finish_reading(
    reader: Option<tokio::task::JoinHandle<()>>,
    steps: &mut tokio::sync::mpsc::Receiver<String>,
    spinner: &ProgressBar,
) {
    let Some(reader) = reader else { return };
    let rest = async {
        while let Some(line) = steps.recv().await {
            spinner.println(line);
        }
    };
    if tokio::time::timeout(Duration::from_secs(1), rest).await.is_err() {
        reader.abort();
    }
}

/// Sends each line of the runner's log. A pod that is gone already has no log: the status tells the end.
async fn read_steps(client: kube::Client, namespace: String, pod: String, lines: tokio::sync::mpsc::Sender<String>) {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let parameters = LogParams { follow: true, container: Some("runner".into()), ..LogParams::default() };
    let Ok(log) = pods.log_stream(&pod, &parameters).await else { return };
    let mut log = log.lines();
    while let Ok(Some(line)) = log.try_next().await {
        if lines.send(format!("  {line}")).await.is_err() {
            return;
        }
    }
}
