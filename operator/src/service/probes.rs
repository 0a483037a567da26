//! Probe pods that somebody waits for: each is given one task and asked for one report.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use belay_protocol::PROTOCOL_VERSION;
use belay_protocol::probe::{ProbeReport, ProbeTask};
use belay_protocol::wire::probe_message::Body as In;
use belay_protocol::wire::probe_order::Body as Out;
use belay_protocol::wire::{ProbeDone, ProbeMessage, ProbeOrder};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::HELLO_TIMEOUT;
use super::authenticate::Caller;

/// The longest that a probe may take: its pod's deadline is shorter.
const REPORT_TIMEOUT: Duration = Duration::from_mins(3);
/// The most operations of one report, and characters of one name and description.
const OPERATIONS_MAX: usize = 1024;
const NAME_CHARACTERS_MAX: usize = 256;
const DESCRIPTION_CHARACTERS_MAX: usize = 4096;

/// Awaited probe pods; clones share them.
#[derive(Clone, Default)]
pub struct Probes {
    awaited: Arc<Mutex<HashMap<PodKey, Awaited>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PodKey {
    namespace: String,
    name: String,
}

struct Awaited {
    task: ProbeTask,
    report: oneshot::Sender<ProbeReport>,
}

impl Probes {
    /// What this pod will report. The receiver fails once the pod is forgotten or expected anew.
    #[must_use]
    pub fn expect(&self, namespace: &str, pod_name: &str, task: ProbeTask) -> oneshot::Receiver<ProbeReport> {
        let (report, reported) = oneshot::channel();
        self.lock().insert(key(namespace, pod_name), Awaited { task, report });
        reported
    }

    pub fn forget(&self, namespace: &str, pod_name: &str) {
        self.lock().remove(&key(namespace, pod_name));
    }

    fn task(&self, key: &PodKey) -> Option<ProbeTask> {
        self.lock().get(key).map(|awaited| awaited.task.clone())
    }

    fn deliver(&self, key: &PodKey, report: ProbeReport) {
        if let Some(awaited) = self.lock().remove(key) {
            // Whoever asked may have stopped waiting.
            let _ = awaited.report.send(report);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodKey, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(namespace: &str, name: &str) -> PodKey {
    PodKey { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// One stream of a probe pod.
pub(super) struct Stream {
    pub probes: Probes,
    pub caller: Caller,
    pub incoming: Streaming<ProbeMessage>,
    pub outgoing: mpsc::Sender<Result<ProbeOrder, Status>>,
    pub shutdown: CancellationToken,
}

impl Stream {
    pub(super) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        let drained = || Err(Status::unavailable("the operator goes away: come again"));
        let ended = shutdown.run_until_cancelled(self.serve()).await.unwrap_or_else(drained);
        if let Err(status) = ended {
            let pod = &self.caller.pod;
            let (code, message) = (status.code(), status.message());
            tracing::warn!(namespace = pod.namespace, pod = pod.name, ?code, message, "probe cut off");
            // The peer may be gone before us.
            let _ = self.outgoing.try_send(Err(status));
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let pod = key(&self.caller.pod.namespace, &self.caller.pod.name);
        match self.next(HELLO_TIMEOUT).await? {
            In::Hello(hello) if hello.protocol_version == PROTOCOL_VERSION => {}
            In::Hello(_) => {
                return Err(Status::failed_precondition("another protocol version: use images of one release"));
            }
            In::Report(_) => return Err(Status::invalid_argument("a stream begins with Hello")),
        }
        let task = self.probes.task(&pod).ok_or_else(|| Status::permission_denied("nobody waits for this pod"))?;
        self.caller.origin.admit();
        let bytes = serde_json::to_vec(&task).map_err(|e| Status::internal(e.to_string()))?;
        self.send(Out::Task(bytes)).await?;
        match self.next(REPORT_TIMEOUT).await? {
            In::Report(bytes) => self.probes.deliver(&pod, parse(&task, &bytes)?),
            In::Hello(_) => return Err(Status::invalid_argument("a second Hello on one stream")),
        }
        self.send(Out::Done(ProbeDone {})).await
    }

    async fn next(&mut self, within: Duration) -> Result<In, Status> {
        let late = |_| Status::deadline_exceeded("the probe said nothing in time");
        let message = tokio::time::timeout(within, self.incoming.message()).await.map_err(late)??;
        let body = message.ok_or_else(|| Status::cancelled("the probe left before its report"))?.body;
        body.ok_or_else(|| Status::invalid_argument("a message without a body"))
    }

    async fn send(&self, body: Out) -> Result<(), Status> {
        let sent = self.outgoing.send(Ok(ProbeOrder { body: Some(body) })).await;
        sent.map_err(|_| Status::cancelled("the probe left"))
    }
}

/// A report that answers its task, within bounds.
fn parse(task: &ProbeTask, bytes: &[u8]) -> Result<ProbeReport, Status> {
    let report: ProbeReport =
        serde_json::from_slice(bytes).map_err(|e| Status::invalid_argument(format!("no report: {e}")))?;
    match (task, &report) {
        (ProbeTask::Credential { .. }, ProbeReport::Credential(_))
        | (ProbeTask::Network { .. }, ProbeReport::Network(_))
        | (ProbeTask::Tool { .. }, ProbeReport::Tool(Err(_))) => {}
        (ProbeTask::Tool { .. }, ProbeReport::Tool(Ok(operations))) => {
            let bounded = |text: &str, most: usize| text.chars().count() <= most;
            let fits = operations.len() <= OPERATIONS_MAX
                && operations.iter().all(|o| {
                    bounded(&o.name, NAME_CHARACTERS_MAX)
                        && bounded(&o.description, DESCRIPTION_CHARACTERS_MAX)
                        && bounded(o.unusable.as_deref().unwrap_or_default(), DESCRIPTION_CHARACTERS_MAX)
                });
            if !fits {
                return Err(Status::invalid_argument("a report with more or longer operations than are taken"));
            }
        }
        (ProbeTask::Credential { .. }, ProbeReport::Tool(_) | ProbeReport::Network(_))
        | (ProbeTask::Tool { .. }, ProbeReport::Credential(_) | ProbeReport::Network(_))
        | (ProbeTask::Network { .. }, ProbeReport::Credential(_) | ProbeReport::Tool(_)) => {
            return Err(Status::invalid_argument("a report of another kind than was asked for"));
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use belay_protocol::probe::Presence;

    fn task() -> ProbeTask {
        ProbeTask::Credential { name: "key".into() }
    }

    #[test]
    fn a_report_reaches_whoever_waits_and_only_once() {
        let probes = Probes::default();
        let mut reported = probes.expect("ns", "pod", task());
        assert_eq!(probes.task(&key("ns", "pod")), Some(task()));
        probes.deliver(&key("ns", "pod"), ProbeReport::Credential(Presence::Present));
        assert_eq!(reported.try_recv().unwrap(), ProbeReport::Credential(Presence::Present));
        assert_eq!(probes.task(&key("ns", "pod")), None);
    }

    #[test]
    fn a_forgotten_pod_is_waited_for_no_more() {
        let probes = Probes::default();
        let mut reported = probes.expect("ns", "pod", task());
        probes.forget("ns", "pod");
        assert_eq!(reported.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn a_report_must_answer_its_task() {
        let report = serde_json::to_vec(&ProbeReport::Tool(Ok(Vec::new()))).unwrap();
        assert_eq!(parse(&task(), &report).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert!(parse(&task(), b"{").is_err());
        let report = serde_json::to_vec(&ProbeReport::Credential(Presence::Empty)).unwrap();
        assert_eq!(parse(&task(), &report).unwrap(), ProbeReport::Credential(Presence::Empty));
    }
}
