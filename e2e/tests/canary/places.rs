//! Everywhere that a secret could have been written to: etcd, the journal, logs, and the command lines and environments of
//! processes. What is there only for a moment is looked at all along.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_e2e::chaos::{node, operator};
use serde_json::{Value, json};

const LOOK_EVERY: Duration = Duration::from_millis(50);
const ETCD: &str = "127.0.0.1:23790";
/// How many keys are asked for at once.
const PAGE: usize = 500;

/// Looks at processes and at the logs of pods until it is told to stop.
pub struct Watch {
    over: Arc<AtomicBool>,
    looking: JoinHandle<Result<Watched>>,
}

#[derive(Default)]
pub struct Watched {
    /// What stood in `/proc/PID/cmdline` and `environ`.
    pub processes: HashSet<Vec<u8>>,
    /// How large a core each process of Belay may leave, by its command line and id: the line of `/proc/PID/limits` when it
    /// was looked at last.
    pub cores: BTreeMap<(String, PathBuf), String>,
    /// By the pod's folder. Open, so that a log can be read whole after it was deleted.
    logs: BTreeMap<PathBuf, File>,
}

impl Watch {
    pub fn start() -> Result<Self> {
        let folder = node::run_folder()?.join("pods");
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let looking = std::thread::spawn(move || {
            let mut watched = Watched::default();
            while !told.load(Ordering::Relaxed) {
                watched.look_at_processes()?;
                watched.look_at_logs(&folder)?;
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(watched)
        });
        Ok(Self { over, looking })
    }

    pub fn stop(self) -> Result<Watched> {
        self.over.store(true, Ordering::Relaxed);
        self.looking.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?
    }
}

impl Watched {
    fn look_at_processes(&mut self) -> Result<()> {
        for process in fs::read_dir("/proc")? {
            let folder = process?.path();
            // Processes end while they are looked at.
            let texts = ["cmdline", "environ"].map(|name| fs::read(folder.join(name)).unwrap_or_default());
            let [command, _environment] = &texts;
            self.look_at_core(&folder, command);
            self.processes.extend(texts.into_iter().filter(|text| !text.is_empty()));
        }
        Ok(())
    }

    fn look_at_core(&mut self, folder: &Path, command: &[u8]) {
        let command = String::from_utf8_lossy(command).replace('\0', " ");
        let is_ours = command.starts_with("/belay-runner") || command.starts_with("/belay-operator");
        if is_ours
            && let Ok(limits) = fs::read_to_string(folder.join("limits"))
            && let Some(core) = limits.lines().find_map(|line| line.strip_prefix("Max core file size"))
        {
            let core = core.split_whitespace().collect::<Vec<_>>().join(" ");
            self.cores.insert((command, folder.to_owned()), core);
        }
    }

    fn look_at_logs(&mut self, folder: &Path) -> Result<()> {
        for log in files_below(folder)? {
            if !self.logs.contains_key(&log)
                && let Ok(file) = File::open(&log)
            {
                self.logs.insert(log, file);
            }
        }
        Ok(())
    }

    /// Every log, by the name of its pod's folder (`NAMESPACE_NAME_UID`).
    pub fn logs(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        let read = |(path, file): (&PathBuf, &mut File)| {
            let pod = path.ancestors().nth(2).and_then(Path::file_name).context("a log outside of a pod's folder")?;
            let mut text = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut text)?;
            Ok((pod.to_string_lossy().into_owned(), text))
        };
        self.logs.iter_mut().map(read).collect()
    }
}

/// Files that were written since, of the journal, of etcd and of the logs of the cluster's parts.
pub fn files_since(began: SystemTime) -> Result<Vec<PathBuf>> {
    let run = node::run_folder()?;
    let mut files = files_below(&operator::volume()?)?;
    files.extend(files_below(&run.join("logs"))?);
    files.extend(files_below(&run.join("etcd"))?);
    let written = |file: &PathBuf| fs::metadata(file).and_then(|meta| meta.modified()).is_ok_and(|at| at >= began);
    Ok(files.into_iter().filter(written).collect())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(files) };
    for entry in entries {
        let path = entry?.path();
        // Links lead to what is here by another name.
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => files.extend(files_below(&path)?),
            Ok(meta) if meta.is_file() => files.push(path),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(files)
}

/// Every key and value of etcd but the Secrets.
pub fn dump_etcd(into: &Path) -> Result<()> {
    let mut dump = File::create(into)?;
    let mut from = b"\0".to_vec();
    loop {
        let page = range(&from)?;
        for entry in page.get("kvs").and_then(Value::as_array).into_iter().flatten() {
            let part = |name: &str| STANDARD.decode(entry.get(name).and_then(Value::as_str).unwrap_or_default());
            let (key, value) = (part("key")?, part("value")?);
            if !key.starts_with(b"/registry/secrets/") {
                dump.write_all(&[key.as_slice(), b"\n", &value, b"\n"].concat())?;
            }
            from = [key.as_slice(), b"\0"].concat();
        }
        if page.get("more").is_none() {
            return Ok(());
        }
    }
}

/// A page of what is behind `from`, by etcd's own gateway from JSON.
fn range(from: &[u8]) -> Result<Value> {
    let body = json!({"key": STANDARD.encode(from), "range_end": STANDARD.encode(b"\0"), "limit": PAGE}).to_string();
    let mut etcd = TcpStream::connect(ETCD).context("etcd of the embedded cluster is not there")?;
    // HTTP/1.0: the answer ends with the connection, and is in one piece.
    write!(etcd, "POST /v3/kv/range HTTP/1.0\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    etcd.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd did not answer in HTTP")?;
    ensure!(head.contains(" 200 "), "etcd answers {head}: {body}");
    Ok(serde_json::from_str(body)?)
}

/// Where a raw file of etcd holds the values as Secrets do: each behind the name of its key, in protobuf's writing of
/// `data`. What stands there has that length.
pub fn within_secrets(file: &Path, places: &[u64], key: &str, length: usize) -> Result<Vec<u64>> {
    let mark = [key.as_bytes(), &[0x12, u8::try_from(length)?]].concat();
    let mut file = File::open(file)?;
    let mut held = Vec::new();
    for &place in places {
        let Some(before) = place.checked_sub(mark.len() as u64) else { continue };
        let mut found = vec![0; mark.len()];
        file.seek(std::io::SeekFrom::Start(before))?;
        file.read_exact(&mut found)?;
        if found == mark {
            held.push(place);
        }
    }
    Ok(held)
}
