//! Shows a run while it happens: its phases, and the runner's own line for each step, from pod to pod.

use std::time::Duration;

use belay_crds::{AgentRun, RUN_UID_LABEL};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams};
use kube_runtime::{WatchStreamExt, watcher};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Target;
use crate::exit::CliError;
use crate::get;

const TICK: Duration = Duration::from_millis(100);
/// What the last lines of a pod's log may take to arrive.
const LAST_LINES: Duration = Duration::from_secs(2);
/// A pod's log can be read once its container has started: how often to ask, at first and later.
const LOG_RETRY: Duration = Duration::from_millis(150);
const LOG_RETRY_MOST: Duration = Duration::from_secs(2);
/// The status of a run does not tell of each new pod: how often to look for one while no log is being read.
const NEXT_POD: Duration = Duration::from_secs(1);

/// What there is to see of a run.
pub enum Sight<'a> {
    /// Its phase, and what it waits for; each time that this changes.
    Standing(&'a str),
    /// A line of its runner.
    Step(&'a str),
}

/// Prints phases and steps until the run has ended, and returns it as it ended.
pub async fn to_the_end(target: &Target, name: &str) -> Result<AgentRun, CliError> {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    // A hidden spinner hides its lines as well: where nobody looks at a terminal they go straight out.
    let say = |line: &str| if spinner.is_hidden() { println!("{line}") } else { spinner.println(line) };
    let show = |sight: Sight<'_>| match sight {
        Sight::Standing(standing) => {
            say(standing);
            spinner.set_message(standing.to_owned());
        }
        Sight::Step(line) => say(&format!("  {line}")),
    };
    let ended = follow(target, name, show).await;
    spinner.finish_and_clear();
    ended
}

/// Shows the run until it has ended, and returns it as it ended.
pub async fn follow(target: &Target, name: &str, show: impl Fn(Sight<'_>)) -> Result<AgentRun, CliError> {
    let runs: Api<AgentRun> = Api::namespaced(target.client.clone(), &target.namespace);
    let selector = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(runs, selector).default_backoff());
    let (lines, mut steps) = mpsc::channel(64);
    let mut logs =
        Logs { pods: Api::namespaced(target.client.clone(), &target.namespace), lines, read: vec![], reader: None };
    let mut ticks = tokio::time::interval(NEXT_POD);
    let mut newest: Option<AgentRun> = None;
    let mut shown = String::new();
    loop {
        tokio::select! {
            Some(line) = steps.recv() => show(Sight::Step(&line)),
            _ = ticks.tick() => {
                if let Some(run) = &newest {
                    logs.look(run).await;
                }
            }
            change = changes.next() => {
                let run = match change {
                    Some(Ok(watcher::Event::Apply(run) | watcher::Event::InitApply(run))) => run,
                    Some(Ok(watcher::Event::Delete(_))) => return Err(deleted(target, name)),
                    // The watch comes again by itself.
                    Some(Ok(watcher::Event::Init | watcher::Event::InitDone) | Err(_)) | None => continue,
                };
                let standing = get::standing(&run);
                if standing != shown {
                    show(Sight::Standing(&standing));
                    shown = standing;
                }
                logs.look(&run).await;
                if get::is_ended(&run) {
                    logs.finish(&run, &mut steps, &show).await;
                    return Ok(run);
                }
                newest = Some(run);
            }
        }
    }
}

fn deleted(target: &Target, name: &str) -> CliError {
    CliError::NotFound { kind: "AgentRun", name: name.to_owned(), namespace: target.namespace.clone() }
}

/// The logs of a run's pods, one after the other.
struct Logs {
    pods: Api<Pod>,
    lines: mpsc::Sender<String>,
    /// Names of the pods whose log was or is being read.
    read: Vec<String>,
    reader: Option<JoinHandle<()>>,
}

impl Logs {
    /// Begins with the next pod's log, if none is being read.
    async fn look(&mut self, run: &AgentRun) {
        if self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) {
            return;
        }
        self.reader = None;
        let next = self.names(run).await.into_iter().find(|pod| !self.read.contains(pod));
        if let Some(pod) = next {
            self.read.push(pod.clone());
            self.reader = Some(tokio::spawn(read_steps(self.pods.clone(), pod, self.lines.clone())));
        }
    }

    /// The run's pods, oldest first. Who may not list pods sees the one that status names.
    async fn names(&self, run: &AgentRun) -> Vec<String> {
        let uid = run.uid().unwrap_or_default();
        let ours = ListParams::default().labels(&format!("{RUN_UID_LABEL}={uid}"));
        let mut pods = self.pods.list(&ours).await.map(|list| list.items).unwrap_or_default();
        pods.sort_by_key(|pod| (pod.creation_timestamp().map(|time| time.0), pod.name_any()));
        let mut names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
        names.extend(get::pod_name(run).filter(|named| !names.contains(named)));
        names
    }

    /// A pod's log may end a moment after the run; its last lines are worth a wait.
    async fn finish(&mut self, run: &AgentRun, steps: &mut mpsc::Receiver<String>, show: &impl Fn(Sight<'_>)) {
        while let Some(mut reader) = self.reader.take() {
            let late = tokio::time::sleep(LAST_LINES);
            tokio::pin!(late);
            loop {
                tokio::select! {
                    biased;
                    Some(line) = steps.recv() => show(Sight::Step(&line)),
                    _ = &mut reader => break,
                    () = &mut late => {
                        reader.abort();
                        break;
                    }
                }
            }
            self.look(run).await;
        }
        while let Ok(line) = steps.try_recv() {
            show(Sight::Step(&line));
        }
    }
}

/// Sends each line of the runner's log. A pod that is gone already has no log: the status tells the end.
async fn read_steps(pods: Api<Pod>, pod: String, lines: mpsc::Sender<String>) {
    let parameters = LogParams { follow: true, container: Some("runner".into()), ..LogParams::default() };
    let mut pause = LOG_RETRY;
    let log = loop {
        match pods.log_stream(&pod, &parameters).await {
            Ok(log) => break log,
            // The container has not started; a pod that is gone is a 404, and whoever waits ends with the run.
            Err(kube::Error::Api(status)) if status.code == 400 => {}
            Err(_) => return,
        }
        tokio::time::sleep(pause).await;
        pause = (pause + LOG_RETRY).min(LOG_RETRY_MOST);
    };
    let mut log = log.lines();
    while let Ok(Some(line)) = log.try_next().await {
        if lines.send(line).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;
    use crate::place::Place;

    fn run(phase: &str) -> Value {
        json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun",
            "metadata": {"name": "nightly", "namespace": "team", "uid": "u", "resourceVersion": "1"},
            "spec": {"agentRef": {"name": "triage"}, "input": "go"},
            "status": {"phase": phase, "conditions": [], "podRef": {"name": "belay-run-b"}},
        })
    }

    fn pod(name: &str, created: &str) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": created}})
    }

    fn answer(path: &str, query: &str) -> (u16, String) {
        let list = |items: Value| json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string();
        match path.rsplit('/').next().unwrap_or_default() {
            "agentruns" if query.contains("watch=true") => {
                (200, format!("{}\n", json!({"type": "MODIFIED", "object": run("Succeeded")})))
            }
            "agentruns" => (200, list(json!([run("Pending")]))),
            "pods" => {
                assert!(query.contains("belay.dev%2Frun-uid%3Du"), "{query}");
                let (late, early) =
                    (pod("belay-run-b", "2026-11-23T10:00:05Z"), pod("belay-run-a", "2026-11-23T10:00:00Z"));
                (200, list(json!([late, early])))
            }
            "log" if path.contains("belay-run-a") => (200, "step 1 of a\n".to_owned()),
            "log" => (200, "step 2 of b\nrun     Succeeded\n".to_owned()),
            other => panic!("unexpected {other}"),
        }
    }

    #[tokio::test]
    async fn a_run_is_followed_from_pending_over_all_its_pods_to_its_end() {
        let server = service_fn(|request: Request<Body>| async move {
            let (code, body) = answer(request.uri().path(), request.uri().query().unwrap_or_default());
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap())
        });
        let target =
            Target { client: kube::Client::new(server, "team"), namespace: "team".to_owned(), place: Place::default() };
        let seen = Mutex::new(Vec::new());
        let show = |sight: Sight<'_>| {
            seen.lock().unwrap().push(match sight {
                Sight::Standing(words) | Sight::Step(words) => words.to_owned(),
            });
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), follow(&target, "nightly", show)).await.unwrap();
        assert!(get::is_ended(&ended.unwrap()));
        let seen = seen.into_inner().unwrap();
        let steps: Vec<&str> = seen.iter().map(String::as_str).filter(|line| !line.starts_with("nightly")).collect();
        assert_eq!(steps, ["step 1 of a", "step 2 of b", "run     Succeeded"]);
        assert_eq!(seen.first().map(String::as_str), Some("nightly  Pending"));
    }
}
