//! The node under the embedded cluster, which is this machine: processes of pods, a small volume, the API server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Kubectl, kubectl};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_mins(1);

/// Fails in words where the node is another machine.
pub fn needed_for(what: &str) -> Result<()> {
    let current = std::env::var("CLUSTER").is_ok_and(|cluster| cluster == "current");
    ensure!(!current, "{what} needs root on the node: run it on the embedded cluster, without CLUSTER=current");
    Ok(())
}

/// Where the embedded cluster keeps what it needs while it runs.
pub fn run_folder() -> Result<PathBuf> {
    needed_for("reaching the cluster's own files")?;
    let kubeconfig = PathBuf::from(std::env::var_os("KUBECONFIG").context("KUBECONFIG is not set")?);
    Ok(kubeconfig.parent().context("KUBECONFIG names no file in a folder")?.to_owned())
}

/// Waits until `is` holds.
pub fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is()? {
        ensure!(Instant::now() < deadline, "it did not come to pass in {PATIENCE:?} that {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// A process of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
}

impl Process {
    /// The one of that name (`comm`) among the pod's.
    pub fn of_pod(pod: &Value, name: &str) -> Result<Self> {
        needed_for("reaching a pod's processes")?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).context("a pod without uid")?;
        let found = std::fs::read_dir("/proc")?.filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_its = std::fs::read_to_string(path.join("cgroup")).ok()?.contains(uid);
            let comm = std::fs::read_to_string(path.join("comm")).ok()?;
            (is_its && comm.trim() == name).then(|| path.file_name()?.to_str()?.parse().ok())?
        });
        let pid = found.into_iter().next().with_context(|| format!("pod {uid} has no process {name} here"))?;
        Ok(Self { pid })
    }

    pub fn signal(&self, signal: &str) -> Result<()> {
        run(Command::new("kill").args([&format!("-{signal}"), &self.pid.to_string()]))
    }

    #[must_use]
    pub fn is_gone(&self) -> bool {
        !Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    /// What of its memory is in RAM now.
    pub fn resident_kilobytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without memory")?;
        Ok(resident.trim().trim_end_matches(" kB").parse()?)
    }

    /// The runtime's process that watches this one.
    pub fn parent(&self) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
        Ok(Self { pid: parent.trim().parse()? })
    }

    /// Stops it, and the runtime's process that could end it, until [`Frozen::thaw`].
    pub fn freeze(self) -> Result<Frozen> {
        let shim = self.parent()?;
        shim.signal("STOP")?;
        let frozen = Frozen { process: self, shim };
        frozen.process.signal("STOP")?;
        Ok(frozen)
    }
}

/// A process that lost its time. Goes on when dropped.
pub struct Frozen {
    process: Process,
    shim: Process,
}

impl Frozen {
    /// The process goes on; its runtime, which would end it at once, does not yet.
    pub fn thaw(&self) -> Result<&Process> {
        self.process.signal("CONT")?;
        Ok(&self.process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Nothing to be done about a failure: one of them is gone.
        let _ = self.process.signal("CONT");
        let _ = self.shim.signal("CONT");
    }
}

/// A small file system in memory over a folder, with what lay in the folder.
pub struct SmallVolume {
    folder: PathBuf,
}

impl SmallVolume {
    pub fn over(folder: &Path, spare_mebibytes: u64) -> Result<Self> {
        needed_for("a small volume")?;
        let used: u64 = files(folder)?.iter().map(|file| file.metadata().map_or(0, |meta| meta.len())).sum();
        let aside = tempfile::tempdir()?;
        copy(folder, aside.path())?;
        let options = format!("size={},mode=2777,gid=65532", used + spare_mebibytes * 1024 * 1024);
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "belay-chaos"]).arg(folder))?;
        let volume = Self { folder: folder.to_owned() };
        copy(aside.path(), folder)?;
        Ok(volume)
    }

    /// Takes all the space that is left.
    pub fn fill(&self) -> Result<()> {
        let filled = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(self.filler()).output()?;
        let words = String::from_utf8_lossy(&filled.stderr);
        ensure!(words.contains("No space left"), "dd ended otherwise than on a full volume: {words}");
        Ok(())
    }

    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.folder.join("filler"))?)
    }

    fn filler(&self) -> String {
        format!("of={}", self.folder.join("filler").display())
    }

    /// Takes it away; what it holds lies in the folder then. Nobody may use it at that moment.
    pub fn put_back(&self) -> Result<()> {
        let aside = tempfile::tempdir()?;
        let filler = self.folder.join("filler");
        if filler.exists() {
            std::fs::remove_file(filler)?;
        }
        copy(&self.folder, aside.path())?;
        run(Command::new("umount").arg(&self.folder))?;
        empty(&self.folder)?;
        copy(aside.path(), &self.folder)
    }
}

/// Copies the files of a folder with their owners.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--archive", "--no-target-directory"]).args([from, to]))
}

/// Deletes what a folder holds: beside the journal there may be artifacts.
pub fn empty(folder: &Path) -> Result<()> {
    files(folder)?.iter().try_for_each(|held| {
        let is_folder = held.symlink_metadata()?.is_dir();
        let gone = if is_folder { std::fs::remove_dir_all(held) } else { std::fs::remove_file(held) };
        Ok(gone?)
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?)
}

/// The API server, killed and gone until [`NoApiServer::back`], or until dropped.
pub struct NoApiServer {
    arguments: Vec<String>,
    run: PathBuf,
    back: bool,
}

impl NoApiServer {
    pub fn kill() -> Result<Self> {
        needed_for("killing the API server")?;
        let run = run_folder()?;
        let noted = run.join("pids/kube-apiserver.pid");
        let pid = std::fs::read_to_string(&noted).with_context(|| format!("reading {}", noted.display()))?;
        let process = Process { pid: pid.trim().parse()? };
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).context("the API server does not run")?;
        let words = String::from_utf8(line)?;
        let arguments: Vec<String> = words.split_terminator('\0').map(str::to_owned).collect();
        ensure!(
            arguments.first().is_some_and(|word| word.ends_with("kube-apiserver")),
            "{} names another process",
            noted.display()
        );
        process.signal("KILL")?;
        let away = Self { arguments, run, back: false };
        until("the API server is gone", || {
            Ok(std::fs::read(format!("/proc/{}/cmdline", process.pid)).map_or(true, |l| l.is_empty()))
        })?;
        Ok(away)
    }

    /// Starts it as it was started, and waits until it is ready.
    pub fn back(mut self) -> Result<()> {
        self.start()?;
        until("the API server is ready", || Ok(Kubectl::new().output(&["get", "--raw", "/readyz"], None)?.success))
    }

    fn start(&mut self) -> Result<()> {
        self.back = true;
        let log =
            std::fs::OpenOptions::new().append(true).create(true).open(self.run.join("logs/kube-apiserver.log"))?;
        // In a session of its own, so that it outlives this test.
        let child = Command::new("setsid")
            .args(&self.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        std::fs::write(self.run.join("pids/kube-apiserver.pid"), format!("{}\n", child.id()))?;
        Ok(())
    }
}

impl Drop for NoApiServer {
    fn drop(&mut self) {
        if !self.back
            && let Err(error) = self.start()
        {
            eprintln!("the API server was not started again: {error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = kubectl::run(command, None)?;
    if !output.success {
        bail!("{}: {}", command.get_program().display(), output.stderr.trim());
    }
    Ok(())
}
