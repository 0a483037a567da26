//! kubectl, run as a process: what the tests see is what a person sees.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Runs kubectl with the arguments given here before each call's own.
#[derive(Clone, Debug, Default)]
pub struct Kubectl {
    arguments: Vec<String>,
}

/// What a command printed and whether it succeeded.
#[derive(Clone, Debug)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    /// What was printed on stdout, where it is no text.
    pub bytes: Vec<u8>,
    pub stderr: String,
}

impl Kubectl {
    /// kubectl as the cluster's administrator.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with more arguments in front.
    #[must_use]
    pub fn with(&self, arguments: &[&str]) -> Self {
        let mut more = self.clone();
        more.arguments.extend(arguments.iter().map(ToString::to_string));
        more
    }

    /// The same in the name of `user`, by impersonation.
    #[must_use]
    pub fn as_user(&self, user: &str) -> Self {
        self.with(&["--as", user, "--as-group", "system:authenticated"])
    }

    /// Runs and returns what was printed, whatever the exit code.
    pub fn output(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        run(Command::new("kubectl").args(&self.arguments).args(arguments), input)
    }

    /// Runs and fails with kubectl's own words where it does.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments, None)?;
        ensure!(output.success, "kubectl {}: {}", arguments.join(" "), output.stderr.trim());
        Ok(output.stdout)
    }

    /// Server-side apply of `yaml`, as GitOps tools do it.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let output = self.output(&["apply", "--server-side", "-f", "-"], Some(yaml))?;
        ensure!(output.success, "apply: {}", output.stderr.trim());
        Ok(output.stdout)
    }

    /// Applies what must be refused and returns the refusal's words.
    pub fn refusal(&self, yaml: &str) -> Result<String> {
        let output = self.output(&["apply", "--server-side", "-f", "-"], Some(yaml))?;
        if output.success {
            bail!("this was accepted, but must be refused:\n{yaml}");
        }
        Ok(output.stderr)
    }

    /// The object as JSON.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.run(&["get", kind, name, "-o", "json"])?;
        serde_json::from_str(&text).context("kubectl printed something else than JSON")
    }
}

/// The CLI of this workspace, from the folder that `e2e/cluster-tests` names in `BELAY_BIN`.
pub fn belay(arguments: &[&str]) -> Result<Output> {
    let folder = std::env::var("BELAY_BIN").context("BELAY_BIN is not set: run the tests with `make test-cluster`")?;
    run(Command::new(format!("{folder}/belay")).args(arguments), None)
}

/// The same in the name of `user`, by impersonation.
pub fn belay_as(user: &str, arguments: &[&str]) -> Result<Output> {
    let folder = std::env::var("BELAY_BIN").context("BELAY_BIN is not set: run the tests with `make test-cluster`")?;
    let masked = [("as", user.into()), ("as-groups", vec!["system:authenticated"].into())];
    let file = kubeconfig_with("/users/0/user", masked)?;
    run(Command::new(format!("{folder}/belay")).args(arguments).env("KUBECONFIG", file.path()), None)
}

/// The kubeconfig in use with these fields of the object at `place`, whole in a file of its own.
fn kubeconfig_with<const N: usize>(place: &str, fields: [(&str, Value); N]) -> Result<tempfile::NamedTempFile> {
    let config = Kubectl::new().run(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"])?;
    let mut config: Value = serde_json::from_str(&config)?;
    let object = config.pointer_mut(place).and_then(Value::as_object_mut);
    let object = object.with_context(|| format!("the kubeconfig has no {place}"))?;
    object.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    Ok(file)
}

/// Runs a shell's commands as a person would who works in that namespace, with `kubectl` and `belay` on the path.
pub fn shell(namespace: &str, commands: &str, environment: &[(&str, &str)]) -> Result<Output> {
    let folder = std::env::var("BELAY_BIN").context("BELAY_BIN is not set: run the tests with `make test-cluster`")?;
    let file = kubeconfig_with("/contexts/0/context", [("namespace", namespace.into())])?;
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", commands]).env("KUBECONFIG", file.path()).env("PATH", path);
    run(command.envs(environment.iter().copied()), None)
}

pub(crate) fn run(command: &mut Command, input: Option<&str>) -> Result<Output> {
    ensure!(
        std::env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG is not set: `make test-cluster` starts a cluster and sets it"
    );
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let pipe = child.stdin.take();
    // Written beside the reading: a long input and a long answer would each wait for the other.
    let output = std::thread::scope(|scope| {
        if let (Some(input), Some(mut pipe)) = (input, pipe) {
            // A command that ends without reading all of it says why on stderr.
            scope.spawn(move || pipe.write_all(input.as_bytes()));
        }
        child.wait_with_output()
    })?;
    Ok(Output {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        bytes: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
