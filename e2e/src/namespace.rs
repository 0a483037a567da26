//! A namespace that one test makes and takes away.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::kubectl::{Kubectl, belay};

/// Deleted when dropped, unless `BELAY_KEEP` is set.
pub struct TempNamespace {
    pub name: String,
    pub kubectl: Kubectl,
}

/// How often a condition is looked at. The API server answers in milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl TempNamespace {
    /// A namespace under `restricted` Pod Security that Belay serves.
    pub fn enabled(prefix: &str) -> Result<Self> {
        let namespace = Self::plain(prefix)?;
        let output = belay(&["namespace", "enable", &namespace.name])?;
        ensure!(output.success, "belay namespace enable: {}", output.stderr);
        Ok(namespace)
    }

    /// A namespace that has not opted in.
    pub fn plain(prefix: &str) -> Result<Self> {
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() % 100_000_000_000;
        let name = format!("{prefix}-{stamp}");
        let admin = Kubectl::new();
        admin.run(&["create", "namespace", &name])?;
        admin.run(&["label", "namespace", &name, "pod-security.kubernetes.io/enforce=restricted"])?;
        let kubectl = admin.with(&["--namespace", &name]);
        Ok(Self { name, kubectl })
    }

    /// The file of `manifests/`, applied here.
    pub fn apply_manifest(&self, path: &str) -> Result<()> {
        let file = format!("{}/../manifests/{path}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        self.kubectl.apply(&text).map(drop)
    }

    /// Waits until `look` finds what it wants in the object, or fails with the object as it then is.
    pub fn wait_until<T>(
        &self,
        kind: &str,
        name: &str,
        timeout: Duration,
        look: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let object = self.kubectl.get(kind, name)?;
            if let Some(found) = look(&object) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!("{kind}/{name} is not as expected after {timeout:?}: {object:#}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits for the end of a run and returns the object.
    pub fn run_to_the_end(&self, run: &str, timeout: Duration) -> Result<Value> {
        self.wait_until("agentrun", run, timeout, |object| {
            condition(object, "Finished").filter(|c| c["status"] == "True").map(|_| object.clone())
        })
    }

    /// Waits until `Ready` of the object has this status and reason.
    pub fn wait_ready(&self, kind: &str, name: &str, status: &str, reason: &str) -> Result<Value> {
        self.wait_until(kind, name, Duration::from_mins(1), |object| {
            let ready = condition(object, "Ready")?;
            (ready["status"] == status && ready["reason"] == reason).then(|| object.clone())
        })
    }
}

impl Drop for TempNamespace {
    fn drop(&mut self) {
        if std::env::var_os("BELAY_KEEP").is_none() {
            // Nothing to be done about a failure here: the cluster goes away with the tests.
            let _ = Kubectl::new().run(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

/// The condition of that type, if the object has one.
#[must_use]
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == type_)
}
