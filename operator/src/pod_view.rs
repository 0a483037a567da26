//! What a Pod object says about the process in it. Pure; shared by runs and probes.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};

use crate::pod_template::CONTAINER;

/// The state of a pod, as far as the cache knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodView {
    /// The pods of its namespace cannot be seen.
    Unseen,
    /// No such pod.
    Absent,
    /// Another pod has that name.
    Foreign,
    /// It cannot start; `why` in Kubernetes' own words.
    Blocked {
        why: String,
    },
    /// Scheduled, or about to be.
    Starting,
    Running {
        since: Timestamp,
    },
    /// Someone deleted it; its container has not ended yet.
    Leaving,
    /// Its node is gone, or nobody confirms a deletion that is long due.
    Lost {
        why: String,
    },
    Ended(Exit),
}

/// How a pod's container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with status 0.
    Clean,
    Crashed {
        why: String,
    },
    /// Someone deleted the pod, and it ended because of that.
    Stopped,
    /// The kubelet or the node took the pod away.
    Evicted {
        why: String,
    },
}

/// Waiting reasons that do not pass by themselves within moments.
const BLOCKING: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "ImageInspectError",
];

/// Why the taint manager deletes pods: their node no longer answers, so that nobody will confirm it.
const NODE_LOST: &str = "DeletionByTaintManager";

/// Reads the pod's status.
#[must_use]
pub fn view(pod: &Pod) -> PodView {
    let status = pod.status.clone().unwrap_or_default();
    // Clusters add containers of their own; theirs say nothing of the runner.
    let container = status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER);
    let container = container.and_then(|container| container.state.clone()).unwrap_or_default();
    if let Some(terminated) = &container.terminated {
        return PodView::Ended(exit(pod, terminated));
    }
    // Without the container's end it is not the kubelet that speaks: its node may be cut off, and the process live.
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        let reason = status.reason.as_deref().unwrap_or("the pod failed without saying how its container ended");
        return PodView::Lost { why: joined(reason, status.message.as_deref()) };
    }
    if pod.metadata.deletion_timestamp.is_some() {
        let evicted = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
        let gone = evicted.filter(|condition| condition.reason.as_deref() == Some(NODE_LOST));
        return gone.map_or(PodView::Leaving, |condition| PodView::Lost {
            why: joined(NODE_LOST, condition.message.as_deref()),
        });
    }
    if let Some(running) = container.running {
        let since = running.started_at.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        return PodView::Running { since };
    }
    if let Some(waiting) = container.waiting {
        let reason = waiting.reason.unwrap_or_default();
        if BLOCKING.contains(&reason.as_str()) {
            return PodView::Blocked { why: joined(&reason, waiting.message.as_deref()) };
        }
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    match unscheduled {
        Some(condition) => {
            let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
            PodView::Blocked { why: joined(reason, condition.message.as_deref()) }
        }
        None => PodView::Starting,
    }
}

fn exit(pod: &Pod, terminated: &ContainerStateTerminated) -> Exit {
    let status = pod.status.as_ref();
    let reason = status.filter(|status| status.phase.as_deref() == Some("Failed")).and_then(|status| {
        let reason = status.reason.as_deref()?;
        Some(joined(reason, status.message.as_deref()))
    });
    if let Some(why) = reason {
        return Exit::Evicted { why };
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Exit::Stopped;
    }
    if terminated.exit_code == 0 {
        return Exit::Clean;
    }
    let reason = terminated.reason.as_deref().unwrap_or("Error");
    Exit::Crashed { why: format!("{reason}, exit code {}", terminated.exit_code) }
}

fn joined(reason: &str, message: Option<&str>) -> String {
    match message {
        Some(message) if !message.is_empty() => format!("{reason}: {message}"),
        Some(_) | None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "belay-run-x"}, "status": status})).unwrap()
    }

    fn container(state: &Value) -> Value {
        json!({"phase": "Pending", "containerStatuses": [{
            "name": "runner", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}]})
    }

    #[test]
    fn each_state_of_a_pod_has_one_reading() {
        let mut evicted = container(&json!({"terminated": {"exitCode": 137}}));
        (evicted["phase"], evicted["reason"]) = (json!("Failed"), json!("Evicted"));
        evicted["message"] = json!("low on memory");
        // What the garbage collector of pods writes for a node that is gone: its container may still run.
        let mut orphaned = container(&json!({"running": {}}));
        (orphaned["phase"], orphaned["reason"]) = (json!("Failed"), json!("DeletionByPodGC"));
        let table = [
            (json!({"phase": "Pending"}), PodView::Starting),
            (container(&json!({"waiting": {"reason": "ContainerCreating"}})), PodView::Starting),
            (
                container(&json!({"waiting": {"reason": "ErrImageNeverPull", "message": "no image"}})),
                PodView::Blocked { why: "ErrImageNeverPull: no image".to_owned() },
            ),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
                    "reason": "Unschedulable", "message": "0/1 nodes: Insufficient memory."}]}),
                PodView::Blocked { why: "Unschedulable: 0/1 nodes: Insufficient memory.".to_owned() },
            ),
            (
                container(&json!({"running": {"startedAt": "1970-01-01T00:00:05Z"}})),
                PodView::Running { since: Timestamp::from_second(5).unwrap() },
            ),
            (
                container(&json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
                PodView::Ended(Exit::Crashed { why: "OOMKilled, exit code 137".to_owned() }),
            ),
            (container(&json!({"terminated": {"exitCode": 0}})), PodView::Ended(Exit::Clean)),
            (
                json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}),
                PodView::Lost { why: "Evicted: low on memory".to_owned() },
            ),
            (evicted, PodView::Ended(Exit::Evicted { why: "Evicted: low on memory".to_owned() })),
            (orphaned, PodView::Lost { why: "DeletionByPodGC".to_owned() }),
            (
                json!({"phase": "Running", "containerStatuses": [
                    {"name": "mesh", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"terminated": {"exitCode": 0}}},
                    {"name": "runner", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                        "state": {"running": {"startedAt": "1970-01-01T00:00:05Z"}}}]}),
                PodView::Running { since: Timestamp::from_second(5).unwrap() },
            ),
        ];
        for (status, expected) in table {
            assert_eq!(view(&pod(&status)), expected);
        }
    }

    #[test]
    fn a_deleted_pod_is_leaving_until_its_container_has_ended() {
        let mut leaving = pod(&container(&json!({"running": {}})));
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-23T10:00:00Z")).unwrap();
        assert_eq!(view(&leaving), PodView::Leaving);
        leaving.status = serde_json::from_value(container(&json!({"terminated": {"exitCode": 143}}))).unwrap();
        assert_eq!(view(&leaving), PodView::Ended(Exit::Stopped));
    }
}
