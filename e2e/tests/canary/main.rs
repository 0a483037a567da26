//! Random secrets in every kind of credential on a real cluster: servers and a model give them back in every way, some are
//! changed in mid-run, and afterwards no piece of one is anywhere but in its Secret and with those that were sent it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod places;
mod search;
mod stage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use belay_e2e::kubectl::belay;
use belay_e2e::namespace::condition;
use belay_e2e::{Kubectl, TempNamespace};
use serde_json::Value;

use crate::places::{Watch, Watched};
use crate::search::{find, pieces};
use crate::stage::{KEY, LEAKS_OF_HTTP, LEAKS_OF_MCP, Seen, credentials, random, seen};

const TWO_MINUTES: Duration = Duration::from_mins(2);
/// Those that are changed, and by which name the servers know them.
const CHANGED: [(&str, &str); 3] = [("bearer", "bearer"), ("model", "model"), ("oauth", "client")];

/// A process with this in its environment, which the watch has to see.
struct Marked(Child);

impl Marked {
    fn new(mark: &str) -> Self {
        Self(Command::new("sleep").arg("600").env("MARK", mark).spawn().unwrap())
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_piece_of_a_secret_is_anywhere_but_in_its_secret_also_when_it_is_changed_in_mid_run() {
    let began = SystemTime::now();
    let watch = Watch::start().unwrap();
    let namespace = TempNamespace::enabled("canary").unwrap();
    let first: BTreeMap<_, _> = credentials().map(|(name, ..)| (name, random())).into();
    let then = CHANGED.map(|(name, _)| (name, random()));
    // No secret: the search has to find it wherever a secret could be.
    let mark = random();
    let _marked = Marked::new(&mark);
    for (name, value) in &first {
        stage::keep(&namespace, name, value).unwrap();
    }
    stage::set(&namespace).unwrap();

    let run = run_through_a_change(&namespace, &mark, &then);

    let (leaky, elsewhere) = (seen(&namespace, "leaky").unwrap(), seen(&namespace, "elsewhere").unwrap());
    assert_sent(&leaky, &elsewhere, &first, &then);
    let tokens = leaky.secrets["oauth"].iter().cloned();
    let secrets: Vec<String> =
        first.into_values().chain(then.into_iter().map(|(_, value)| value)).chain(tokens).collect();

    let folder = tempfile::tempdir().unwrap();
    let watched = watch.stop().unwrap();
    assert_no_core(&watched);
    let texts = gather(&namespace, &run, watched, folder.path());
    let words = pieces(&secrets);
    for text in &texts {
        let hits = find(&words, text).unwrap();
        assert!(hits.is_empty(), "in {}: {hits:?}", text.display());
    }
    let files = places::files_since(began).unwrap();
    for file in &files {
        let hits = outside_of_secrets(&secrets, &words, file);
        assert!(hits.is_empty(), "in {}: {hits:?}", file.display());
    }
    assert_found_where_it_stands(&mark, &texts, &files);
}

/// A run whose model goes on until it, the servers and the token endpoint were sent the new values.
fn run_through_a_change(namespace: &TempNamespace, mark: &str, then: &[(&str, String)]) -> Value {
    let started = belay(&["-n", &namespace.name, "run", "a", "--name", "r", "--input", mark]).unwrap();
    assert!(started.success, "{}", started.stderr);
    let deadline = Instant::now() + TWO_MINUTES;
    // It has called everything, and said what it knows.
    while seen(namespace, "leaky").unwrap().turns < 4 {
        assert!(Instant::now() < deadline, "{:#}", namespace.kubectl.get("agentrun", "r").unwrap());
        std::thread::sleep(Duration::from_millis(200));
    }
    for (name, value) in then {
        stage::keep(namespace, name, value).unwrap();
    }
    let pod = namespace.kubectl.get("agentrun", "r").unwrap()["status"]["podRef"].clone();
    let mut looks = 0;
    loop {
        let run = namespace.kubectl.get("agentrun", "r").unwrap();
        if condition(&run, "Finished").is_some_and(|finished| finished["status"] == "True") {
            assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
            assert_eq!(run["status"]["podRef"]["uid"], pod["uid"], "without a restart: {run:#}");
            return run;
        }
        assert!(Instant::now() < deadline, "{run:#}");
        // The kubelet looks at a pod that changed, and at its Secrets, now and not within a minute.
        let (pod, note) = (pod["name"].as_str().unwrap(), format!("test.belay.dev/look={looks}"));
        let _ = namespace.kubectl.output(&["annotate", "--overwrite", "pod", pod, &note], None);
        looks += 1;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// That there was something to leak: every server was sent its secrets, the new after the old, and gave them back in every
/// way; and nobody was sent another's.
fn assert_sent(leaky: &Seen, elsewhere: &Seen, first: &BTreeMap<&str, String>, then: &[(&str, String)]) {
    let both = |name: &str| -> Vec<String> {
        let new = then.iter().find(|(changed, _)| *changed == name).map(|(_, value)| value.clone());
        std::iter::once(first[name].clone()).chain(new).collect()
    };
    for (kind, name) in
        [("bearer", "bearer"), ("header", "header"), ("query", "query"), ("model", "model"), ("client", "oauth")]
    {
        assert_eq!(leaky.secrets[kind], both(name), "{kind}");
    }
    // One of a probe, of the run, and of the run after the change.
    assert!(leaky.secrets["oauth"].len() >= 3, "{leaky:?}");
    assert_eq!(elsewhere.secrets, BTreeMap::from([("basic".to_owned(), both("basic"))]));
    assert_eq!((&leaky.strays, &elsewhere.strays), (&vec![], &vec![]), "redirects are not followed");
    let mcp = ["bearer", "header", "oauth"].map(|kind| (leaky, kind, LEAKS_OF_MCP.as_slice()));
    let http = [(leaky, "query", LEAKS_OF_HTTP.as_slice()), (elsewhere, "basic", LEAKS_OF_HTTP.as_slice())];
    for (server, kind, leaks) in mcp.into_iter().chain(http) {
        for leak in leaks {
            assert!(server.called.contains(&format!("{kind}/{leak}")), "{kind}/{leak}: {:?}", server.called);
        }
    }
}

/// No process of Belay leaves its memory on the node when it breaks.
fn assert_no_core(watched: &Watched) {
    for program in ["/belay-runner", "/belay-operator"] {
        let of_it = || watched.cores.iter().filter(|((command, _), _)| command.starts_with(program));
        assert!(of_it().count() > 0, "no process {program} was seen");
        assert!(of_it().all(|(_, core)| core == "0 0 bytes"), "{:#?}", watched.cores);
    }
}

/// Everything that can be asked for or was seen, as files.
fn gather(namespace: &TempNamespace, run: &Value, mut watched: Watched, folder: &Path) -> Vec<PathBuf> {
    let printed = |arguments: &[&str]| {
        let output = belay(&[&["-n", &namespace.name], arguments].concat()).unwrap();
        assert!(output.success, "{}", output.stderr);
        output.stdout + &output.stderr
    };
    let journal = printed(&["journal", "export", "r"]);
    for name in credentials().map(|(name, ..)| name) {
        assert!(journal.contains(&format!("[credential {name} redacted]")), "nothing of {name} came back");
    }
    let trace = printed(&["trace", "r", "-o", "json"]);
    assert!(trace.contains("execute_tool oauth/forms"), "{trace}");
    let metrics = "/api/v1/namespaces/belay-system/services/belay-operator:8080/proxy/metrics";
    let metrics = Kubectl::new().run(&["get", "--raw", metrics]).unwrap();
    assert!(metrics.contains("belay_"), "{metrics}");
    let logs = watched.logs().unwrap();
    let pod = run["status"]["podRef"]["name"].as_str().unwrap();
    let said_by = |name: &str| -> Vec<&str> {
        let is_its = |folder: &str| folder.split('_').nth(1).is_some_and(|pod| pod.starts_with(name));
        logs.iter().filter(|(folder, _)| is_its(folder)).map(|(_, text)| std::str::from_utf8(text).unwrap()).collect()
    };
    assert!(said_by(pod).concat().contains("bearer/text"), "no log of the run's pod {pod}");
    assert!(said_by("belay-run-probe-").len() >= credentials().len(), "logs of probe pods");
    assert!(!said_by("belay-operator-").concat().is_empty(), "the operator's log");
    let runner = format!("HOSTNAME={pod}");
    let processes: Vec<u8> = watched.processes.into_iter().flat_map(|text| [text, vec![b'\n']].concat()).collect();
    assert!(String::from_utf8_lossy(&processes).contains(&runner), "the runner's environment was not seen");
    let texts = [
        ("journal", journal.into_bytes()),
        ("trace", trace.into_bytes()),
        ("waterfall", printed(&["trace", "r"]).into_bytes()),
        ("metrics", metrics.into_bytes()),
        ("logs", logs.into_iter().flat_map(|(_, text)| text).collect()),
        ("processes", processes),
        ("asked", stage::asked(namespace).unwrap().into_bytes()),
    ];
    let mut files = vec![folder.join("etcd")];
    places::dump_etcd(&folder.join("etcd")).unwrap();
    for (name, text) in texts {
        fs::write(folder.join(name), text).unwrap();
        files.push(folder.join(name));
    }
    files
}

/// Pieces that stand elsewhere in a file than where etcd keeps the Secrets themselves.
fn outside_of_secrets(secrets: &[String], words: &str, file: &Path) -> Vec<search::Hit> {
    let hits = find(words, file).unwrap();
    if hits.is_empty() {
        return hits;
    }
    let whole: Vec<u64> = find(&secrets.join("\n"), file).unwrap().iter().map(|hit| hit.offset).collect();
    let length = random().len();
    let held = places::within_secrets(file, &whole, KEY, length).unwrap();
    let is_held = |offset: u64| held.iter().any(|&at| (at..at + length as u64).contains(&offset));
    hits.into_iter().filter(|hit| !is_held(hit.offset)).collect()
}

/// What is no secret and was told to the run is found, or nothing would be.
fn assert_found_where_it_stands(mark: &str, texts: &[PathBuf], files: &[PathBuf]) {
    let words = pieces(&[mark.to_owned()]);
    let holds = |file: &PathBuf| !find(&words, file).unwrap().is_empty();
    for name in ["etcd", "journal", "processes", "asked"] {
        assert!(texts.iter().any(|text| text.ends_with(name) && holds(text)), "the mark is not in {name}");
    }
    for name in ["/etcd/member/snap/db", "/etcd/member/wal/", "/journal.sqlite"] {
        let there = |file: &&PathBuf| file.to_string_lossy().contains(name);
        assert!(files.iter().filter(there).any(holds), "the mark is not in any file {name}");
    }
}
