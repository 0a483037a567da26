//! Plays scheduler and kubelet: starts the runner's process for each pod, reports its address and its end, stops it
//! when the pod is deleted. What breaks a pod breaks it here.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::api::{Api, Key, now};
use super::world::SUBJECT;

/// A process that was asked to end is killed after this time.
const GRACE: Duration = Duration::from_secs(5);
/// Longer than a permit, a call's time-out and the margin of the quarantine together.
pub const FROZEN: Duration = Duration::from_millis(13_500);
/// Less than a permit is valid, and long enough for another pod to be there.
pub const PAUSED: Duration = Duration::from_secs(3);

pub struct Kubelet {
    api: Arc<Api>,
    folder: PathBuf,
    pods: Mutex<Vec<Pod>>,
}

/// One pod's processes.
#[derive(Clone)]
struct Pod {
    key: Key,
    uid: String,
    is_run: bool,
    pids: Vec<i32>,
    /// Its container is started again after its next end.
    restarts: bool,
}

impl Kubelet {
    pub fn new(api: Arc<Api>, folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { api, folder, pods: Mutex::default() })
    }

    /// Follows the pods of the API server for good.
    pub async fn work(self: Arc<Self>) {
        let mut newest = self.api.newest.subscribe();
        loop {
            newest.borrow_and_update();
            for pod in self.api.list("pods", None).1 {
                self.clone().see(&pod);
            }
            if newest.changed().await.is_err() {
                return;
            }
        }
    }

    pub fn runner_lives(&self) -> bool {
        self.newest_runner().is_some()
    }

    /// Whether any process of any pod is left.
    pub fn is_idle(&self) -> bool {
        self.pods.lock().iter().all(|pod| pod.pids.is_empty())
    }

    pub fn kill_runner(&self) {
        if let Some(pod) = self.newest_runner() {
            signal(&pod, Signal::SIGKILL);
        }
    }

    pub fn restart_container(&self) {
        let mut pods = self.pods.lock();
        if let Some(pod) = pods.iter_mut().rev().find(|pod| pod.is_run && !pod.pids.is_empty()) {
            pod.restarts = true;
            signal(pod, Signal::SIGKILL);
        }
    }

    /// The node is cut off: the object goes, and the process goes on after a time.
    pub fn freeze_runner(&self, time: Duration) {
        let Some(pod) = self.newest_runner() else { return };
        signal(&pod, Signal::SIGSTOP);
        self.api.vanish(&pod.key);
        tokio::spawn(async move {
            sleep(time).await;
            signal(&pod, Signal::SIGCONT);
        });
    }

    pub fn forget_pod(&self) {
        if let Some(pod) = self.newest_runner() {
            self.api.vanish(&pod.key);
        }
    }

    /// A second process in the newest runner's pod, from its start to its end.
    pub async fn start_second(&self) {
        let Some(pod) = self.newest_runner() else { return };
        let Ok(object) = self.api.get(&pod.key) else { return };
        let mut child = self.start(&object, &pod);
        let _alive = child.stdin.take();
        let ended = timeout(GRACE, child.wait()).await;
        if ended.is_err() {
            child.kill().await.unwrap();
        }
        self.reap(&pod);
        assert!(ended.is_ok(), "a second instance was not sent away");
    }

    fn newest_runner(&self) -> Option<Pod> {
        self.pods.lock().iter().rev().find(|pod| pod.is_run && !pod.pids.is_empty()).cloned()
    }

    fn see(self: Arc<Self>, object: &Value) {
        let uid = object["metadata"]["uid"].as_str().unwrap().to_owned();
        let mut pods = self.pods.lock();
        if pods.iter().any(|pod| pod.uid == uid) {
            return;
        }
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let key = Key::new("pods", text("/metadata/namespace"), text("/metadata/name"));
        let is_run = variables(object).any(|(name, value)| name == "BELAY_MODE" && value == "run");
        let pod = Pod { key, uid, is_run, pids: Vec::new(), restarts: false };
        pods.push(pod.clone());
        drop(pods);
        let object = object.clone();
        tokio::spawn(async move { self.live(object, pod).await });
    }

    /// One pod from its first process to its end.
    async fn live(self: Arc<Self>, object: Value, pod: Pod) {
        loop {
            let mut child = self.start(&object, &pod);
            // Waiting would close it, and the process ends with it.
            let _alive = child.stdin.take();
            self.report(&pod, &json!({"running": {"startedAt": now()}}), "Running");
            let code = self.wait(&mut child, &pod).await;
            self.reap(&pod);
            let again = {
                let mut pods = self.pods.lock();
                let held = pods.iter_mut().find(|held| held.uid == pod.uid).unwrap();
                std::mem::take(&mut held.restarts)
            };
            if again {
                continue;
            }
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            let reason = if code == 0 { "Completed" } else { "Error" };
            self.report(&pod, &json!({"terminated": {"exitCode": code, "reason": reason}}), phase);
            break;
        }
        // The object stays until someone deletes it.
        let mut newest = self.api.newest.subscribe();
        loop {
            newest.borrow_and_update();
            let Ok(object) = self.api.get(&pod.key) else { return };
            if object["metadata"]["deletionTimestamp"].is_string() {
                return self.api.vanish(&pod.key);
            }
            if newest.changed().await.is_err() {
                return;
            }
        }
    }

    fn start(&self, object: &Value, pod: &Pod) -> Child {
        let mounts = self.folder.join(&pod.uid);
        std::fs::create_dir_all(mounts.join("credentials")).unwrap();
        std::fs::write(mounts.join("token"), format!("{}/{}/{}", pod.key.namespace, pod.key.name, pod.uid)).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("runner.log")).unwrap();
        // Nothing here is asked over https but the operator, and reading the system's authorities takes long.
        let authorities = mounts.join("authorities");
        std::fs::write(&authorities, variables(object).find(|(name, _)| name == "BELAY_OPERATOR_CA_PEM").unwrap().1)
            .unwrap();
        let child = Command::new(SUBJECT)
            .arg("runner")
            .env_clear()
            .envs(variables(object))
            .env("SSL_CERT_FILE", &authorities)
            .env("HOSTNAME", &pod.key.name)
            .env("SUBJECT_MOUNTS", &mounts)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        self.pods.lock().iter_mut().find(|held| held.uid == pod.uid).unwrap().pids.push(pid);
        child
    }

    /// The exit code of the process, which is asked to end once the pod is deleted.
    async fn wait(&self, child: &mut Child, pod: &Pod) -> i32 {
        let deleted = async {
            let mut newest = self.api.newest.subscribe();
            loop {
                newest.borrow_and_update();
                match self.api.get(&pod.key) {
                    Ok(object) if object["metadata"]["deletionTimestamp"].is_string() => return,
                    Ok(_) | Err(_) => {}
                }
                let _ = newest.changed().await;
            }
        };
        let status = tokio::select! {
            status = child.wait() => status.unwrap(),
            () = deleted => {
                if let Some(held) = self.pods.lock().iter().find(|held| held.uid == pod.uid) {
                    signal(held, Signal::SIGTERM);
                }
                if let Ok(status) = timeout(GRACE, child.wait()).await { status.unwrap() } else {
                    child.kill().await.unwrap();
                    child.wait().await.unwrap()
                }
            }
        };
        status.code().unwrap_or(137)
    }

    /// A process of the pod has ended.
    fn reap(&self, pod: &Pod) {
        let mut pods = self.pods.lock();
        let held = pods.iter_mut().find(|held| held.uid == pod.uid).unwrap();
        held.pids.retain(|pid| kill(Pid::from_raw(*pid), None).is_ok());
    }

    /// What the kubelet says; a pod that vanished has nobody to say it of.
    fn report(&self, pod: &Pod, state: &Value, phase: &str) {
        let same = |object: &Value| object["metadata"]["uid"] == pod.uid.as_str();
        if !self.api.get(&pod.key).is_ok_and(|object| same(&object)) {
            return;
        }
        self.api.modify(&pod.key, |object| {
            object["status"] = json!({
                "phase": phase,
                "podIP": "127.0.0.1",
                "podIPs": [{"ip": "127.0.0.1"}],
                "containerStatuses": [{
                    "name": "runner", "image": "i", "imageID": "", "ready": phase == "Running", "restartCount": 0,
                    "state": state,
                }],
            });
        });
    }
}

fn signal(pod: &Pod, signal: Signal) {
    for pid in &pod.pids {
        // One that has ended meanwhile needs no signal.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

fn variables(pod: &Value) -> impl Iterator<Item = (String, String)> {
    let list = pod["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list.into_iter().map(move |variable| (text(&variable["name"]), text(&variable["value"])))
}
