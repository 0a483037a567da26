//! Shows a run while it happens: its phases, and the runner's own line for each step.

use std::time::Duration;

use belay_crds::AgentRun;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use kube_runtime::{WatchStreamExt, watcher};

use crate::Target;
use crate::exit::CliError;
use crate::get;

const TICK: Duration = Duration::from_millis(100);
/// What the last lines of an ended run's log may take to arrive.
const LAST_LINES: Duration = Duration::from_secs(2);
/// A pod's log can be read once its container has started.
const LOG_RETRY: Duration = Duration::from_millis(150);
const LOG_TRIES: usize = 400;

/// Prints phases and steps until the run has ended, and returns it as it ended.
pub async fn to_the_end(target: &Target, name: &str) -> Result<AgentRun, CliError> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    // A hidden spinner hides its lines as well: where nobody looks at a terminal they go straight out.
    let say = |line: &str| if spinner.is_hidden() { println!("{line}") } else { spinner.println(line) };
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    let selector = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(runs, selector).default_backoff().touched_objects());
    let (lines, mut steps) = tokio::sync::mpsc::channel::<String>(64);
    let mut reader = None;
    let mut shown = String::new();
    loop {
        tokio::select! {
            Some(line) = steps.recv() => say(&line),
            change = changes.next() => {
                let Some(Ok(run)) = change else { continue };
                let standing = get::standing(&run);
                if standing != shown {
                    say(&standing);
                    spinner.set_message(standing.clone());
                    shown = standing;
                }
                if reader.is_none() && let Some(pod) = get::pod_name(&run) {
                    reader = Some(tokio::spawn(read_steps(target.client.clone(), target.namespace.clone(), pod, lines.clone())));
                }
                if get::is_ended(&run) {
                    drop(lines);
                    finish_reading(reader, &mut steps, say).await;
                    spinner.finish_and_clear();
                    return Ok(run);
                }
            }
        }
    }
}

/// The pod's log may end a moment after the run; its last lines are worth a wait.
async fn finish_reading(
    reader: Option<tokio::task::JoinHandle<()>>,
    steps: &mut tokio::sync::mpsc::Receiver<String>,
    say: impl Fn(&str),
) {
    let Some(reader) = reader else { return };
    let rest = async {
        while let Some(line) = steps.recv().await {
            say(&line);
        }
    };
    if tokio::time::timeout(LAST_LINES, rest).await.is_err() {
        reader.abort();
    }
}

/// Sends each line of the runner's log. A pod that is gone already has no log: the status tells the end.
async fn read_steps(client: kube::Client, namespace: String, pod: String, lines: tokio::sync::mpsc::Sender<String>) {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let parameters = LogParams { follow: true, container: Some("runner".into()), ..LogParams::default() };
    let mut tries = 0;
    let log = loop {
        match pods.log_stream(&pod, &parameters).await {
            Ok(log) => break log,
            // The container has not started; a pod that is gone is a 404.
            Err(kube::Error::Api(status)) if status.code == 400 && tries < LOG_TRIES => tries += 1,
            Err(_) => return,
        }
        tokio::time::sleep(LOG_RETRY).await;
    };
    let mut log = log.lines();
    while let Ok(Some(line)) = log.try_next().await {
        if lines.send(format!("  {line}")).await.is_err() {
            return;
        }
    }
}
