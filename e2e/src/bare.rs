//! The second API server, without nodes and with nothing in it: what an installation makes and leaves shows there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{Helm, Kubectl};

/// How to reach the server that `e2e/cluster/apiserver up` started.
pub struct BareServer {
    pub kubeconfig: String,
    pub kubectl: Kubectl,
    pub helm: Helm,
}

/// Controllers delete children, claims and namespaces a moment after their parents.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl BareServer {
    /// From `BELAY_BARE_KUBECONFIG`, which `e2e/cluster-tests` sets.
    pub fn new() -> Result<Self> {
        let kubeconfig = std::env::var("BELAY_BARE_KUBECONFIG")
            .context("BELAY_BARE_KUBECONFIG is not set: it is what `e2e/cluster/apiserver up` prints")?;
        let kubectl = Kubectl::new().with(&["--kubeconfig", &kubeconfig]);
        let helm = Helm::on(&kubeconfig);
        Ok(Self { kubeconfig, kubectl, helm })
    }

    /// Every object of every resource that the server serves, as `Kind namespace/name`.
    pub fn everything(&self) -> Result<BTreeSet<String>> {
        let kinds = self.kubectl.run(&["api-resources", "--verbs=list", "--output=name"])?;
        let kinds: BTreeSet<&str> = kinds.lines().collect();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(",");
        let listed = self.kubectl.run(&["get", &kinds, "--all-namespaces", "--output=json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        let objects = listed.get("items").and_then(Value::as_array).context("kubectl get printed no list")?;
        Ok(objects.iter().map(name_of).collect())
    }

    /// Waits until the server holds `expected` and nothing else; fails with what is too much and what is missing.
    pub fn settles_at(&self, expected: &BTreeSet<String>) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            // A listing may fail while kinds are being taken away.
            let found = self.everything();
            if found.as_ref().is_ok_and(|found| found == expected) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let found = found?;
                let left: Vec<_> = found.difference(expected).collect();
                let missing: Vec<_> = expected.difference(&found).collect();
                bail!("left: {left:?}, missing: {missing:?}");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until `attempt` succeeds: a fresh policy, kind or right counts a moment after it was written.
    pub fn soon<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + SETTLE;
        loop {
            match attempt() {
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
                result => return result,
            }
        }
    }
}

fn name_of(object: &Value) -> String {
    let word = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}/{}", word("/kind"), word("/metadata/namespace"), word("/metadata/name"))
}
