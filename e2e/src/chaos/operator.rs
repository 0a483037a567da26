//! The installed operator, to be restarted, taken away and brought back, and the folder of its journal on the node.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::node::{self, Process, SmallVolume};
use crate::Kubectl;

const SELECTOR: &str = "--selector=app.kubernetes.io/name=belay-operator";
const DEPLOYMENT: &str = "deployment/belay-operator";

/// kubectl in the operator's namespace.
#[must_use]
pub fn kubectl() -> Kubectl {
    Kubectl::new().with(&["--namespace", "belay-system"])
}

/// Waits until the Deployment is as it should be.
pub fn wait_ready() -> Result<()> {
    kubectl().run(&["rollout", "status", DEPLOYMENT, "--timeout=90s"]).map(drop)
}

/// Deletes its pod and does not wait.
pub fn delete_pod(how: &[&str]) -> Result<()> {
    kubectl().run(&[&["delete", "pods", SELECTOR, "--wait=false"], how].concat()).map(drop)
}

/// What an upgrade does.
pub fn rollout_restart() -> Result<()> {
    kubectl().run(&["rollout", "restart", DEPLOYMENT])?;
    wait_ready()
}

/// A second operator comes and waits; then the first goes, and the second has to take over.
pub fn hand_over() -> Result<()> {
    let first = pods()?;
    kubectl().run(&["scale", DEPLOYMENT, "--replicas=2"])?;
    let two = || Ok(pods()?.into_iter().filter(is_running).count() == 2);
    let came = node::until("a second operator runs", two);
    for pod in &first {
        kubectl().run(&["delete", "pod", name(pod), "--wait=false"])?;
    }
    kubectl().run(&["scale", DEPLOYMENT, "--replicas=1"])?;
    wait_ready()?;
    came
}

/// Ends it, and returns once it has truly gone. It comes back with the guard's [`Away::back`], or when that is dropped.
pub fn away() -> Result<Away> {
    kubectl().run(&["scale", DEPLOYMENT, "--replicas=0"])?;
    let away = Away { back: false };
    kubectl().run(&["wait", "--for=delete", "pods", SELECTOR, "--timeout=60s"])?;
    Ok(away)
}

/// While it lives, no operator does.
pub struct Away {
    back: bool,
}

impl Away {
    pub fn back(mut self) -> Result<()> {
        self.back = true;
        kubectl().run(&["scale", DEPLOYMENT, "--replicas=1"])?;
        wait_ready()
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if !self.back {
            // A test that fails must not leave the cluster without an operator.
            let _ = kubectl().run(&["scale", DEPLOYMENT, "--replicas=1"]);
        }
    }
}

/// Its process on this node.
pub fn process() -> Result<Process> {
    let pods = pods()?;
    let [pod] = &pods[..] else { anyhow::bail!("{} operators instead of one", pods.len()) };
    Process::of_pod(pod, "belay-operator")
}

/// Kills the process with -9 and waits until another one serves.
pub fn kill() -> Result<()> {
    let process = process()?;
    process.signal("KILL")?;
    node::until("another operator process runs", || Ok(self::process().is_ok_and(|now| now != process)))?;
    wait_ready()
}

/// The journal's folder on this node.
pub fn volume() -> Result<PathBuf> {
    node::needed_for("reaching the operator's volume")?;
    let claim = kubectl().get("pvc", "belay-journal")?;
    let volume = claim.pointer("/spec/volumeName").and_then(Value::as_str).context("the claim is not bound")?;
    let volume = kubectl().get("pv", volume)?;
    let path = ["/spec/hostPath/path", "/spec/local/path"].into_iter().find_map(|at| volume.pointer(at)?.as_str());
    let path = PathBuf::from(path.context("the volume is not a folder of the node")?);
    ensure!(path.is_dir(), "{} is not on this machine", path.display());
    Ok(path)
}

/// The operator goes on with its journal on a small volume, until this is dropped.
pub struct OnSmallVolume {
    pub volume: SmallVolume,
}

impl OnSmallVolume {
    pub fn start(spare_mebibytes: u64) -> Result<Self> {
        let folder = volume()?;
        let gone = away()?;
        let small = Self { volume: SmallVolume::over(&folder, spare_mebibytes)? };
        gone.back()?;
        Ok(small)
    }
}

impl Drop for OnSmallVolume {
    fn drop(&mut self) {
        let put_back = || {
            let gone = away()?;
            self.volume.put_back()?;
            gone.back()
        };
        if let Err(error) = put_back() {
            eprintln!("the journal was not put back to its own volume: {error:#}");
        }
    }
}

fn pods() -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&kubectl().run(&["get", "pods", SELECTOR, "-o", "json"])?)?;
    let pods = list.pointer("/items").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(pods.into_iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).collect())
}

fn name(pod: &Value) -> &str {
    pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn is_running(pod: &Value) -> bool {
    pod.pointer("/status/containerStatuses/0/state/running").is_some()
}
