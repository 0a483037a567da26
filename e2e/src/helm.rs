//! Helm, by its own library: `e2e/helm/helm` with the chart of this repository, or another.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::kubectl::{Output, run};

/// Works on one chart. Which cluster: KUBECONFIG's, unless told.
#[derive(Clone, Debug, Default)]
pub struct Helm {
    environment: Vec<(&'static str, String)>,
}

impl Helm {
    /// On this repository's chart.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same on another cluster.
    #[must_use]
    pub fn on(kubeconfig: &str) -> Self {
        Self { environment: vec![("KUBECONFIG", kubeconfig.to_owned())] }
    }

    /// The same with the chart in `folder`.
    #[must_use]
    pub fn with_chart(&self, folder: &Path) -> Self {
        let mut other = self.clone();
        other.environment.push(("CHART", folder.display().to_string()));
        other
    }

    /// Runs and returns what was printed, whatever the exit code.
    pub fn output(&self, command: &str, values: &Value) -> Result<Output> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/helm");
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        run(Command::new(script).arg(command).arg(values.to_string()).envs(environment), None)
    }

    /// Runs and fails with Helm's own words where it does.
    pub fn run(&self, command: &str, values: &Value) -> Result<String> {
        let output = self.output(command, values)?;
        ensure!(output.success, "helm {command} {values}: {}", output.stderr.trim());
        Ok(output.stdout)
    }
}
