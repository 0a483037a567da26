//! Measures what design section 13 sets bars for, on the embedded cluster: API writes a run, runner CPU a step
//! and resident memory, beside a Python loop on the same model server; what surviving costs; and how soon a decision is
//! acted on. An argument, `runs`, `decisions`, `pending`, `together` or `survival` (`losses`, `waiting`, `finished`),
//! measures that part alone.

mod decisions;
mod pending;
mod survival;
mod together;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use belay_e2e::TempNamespace;
use belay_e2e::kubectl::belay;
use serde_json::{Value, json};

const STEPS: usize = 50;
const PAIRS: usize = 10;
const RUN_MAX: Duration = Duration::from_mins(3);
const OPERATOR: &str = "system:serviceaccount:belay-system:belay-operator";
/// Linux counts CPU time of processes in hundredths of a second.
const TICKS_A_SECOND: f64 = 100.0;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => {
            runs()?;
            decisions::print()?;
            together::print()?;
            survival::print()?;
            pending::print()
        }
        Some("runs") => runs(),
        Some("decisions") => decisions::print(),
        Some("pending") => pending::print(),
        Some("together") => together::print(),
        Some("survival") => survival::print(),
        Some("losses") => survival::losses(),
        Some("waiting") => survival::waiting(),
        Some("finished") => survival::finished(),
        Some(other) => {
            anyhow::bail!(
                "{other} is no part: say runs, decisions, pending, together, survival, losses, waiting, finished, or nothing"
            )
        }
    }
}

fn runs() -> Result<()> {
    let (few, many) = (writes_of_a_run(3)?, writes_of_a_run(STEPS)?);
    println!("API writes of a run         {few} at 3 steps, {many} at {STEPS} steps   (bar: at most 8, slope 0)");
    let (median, most) = start_latency()?;
    println!(
        "apply to first request      +{median} ms median, +{most} ms at most of {PAIRS}, over a bare pod   (bar: +60 ms, +200 ms)"
    );
    let namespace = TempNamespace::enabled("bench-cpu")?;
    let server = model_server(&namespace)?;
    let loops = python_loop(&server)?;
    let runner = runner(&namespace)?;
    let (ours, theirs) = (runner.cpu_seconds / steps(), loops.cpu_seconds / steps());
    println!(
        "runner CPU a step           {:.2} ms   pydantic-ai {:.2} ms   1/{:.0}   (bar: 1/25)",
        ours * 1e3,
        theirs * 1e3,
        theirs / ours
    );
    println!(
        "resident memory             {:.1} MB   pydantic-ai {:.1} MB   (bar: 12 MB)",
        megabytes(runner.peak_kilobytes),
        megabytes(loops.peak_kilobytes)
    );
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // a few dozen steps
fn steps() -> f64 {
    STEPS as f64
}

#[allow(clippy::cast_precision_loss)] // a figure for people
fn megabytes(kilobytes: u64) -> f64 {
    kilobytes as f64 / 1024.0
}

/// What a run takes longer to its first answered model request than a bare pod of the same image to be seen
/// Running, both created by one call: median and most, in milliseconds.
fn start_latency() -> Result<(i64, i64)> {
    let namespace = TempNamespace::enabled("bench-start")?;
    // The second turn keeps the pod, and with it its log, until it was read.
    let turns = "[{toolCalls: [{tool: nowhere, operation: x}]}, {delayMilliseconds: 8000, text: done}]";
    namespace.kubectl.apply(&format!(
        "{{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {{name: m}}, spec: {{api: Scripted, model: s, scripted: {{turns: {turns}}}}}}}\n---\n\
         {{apiVersion: belay.dev/v1alpha1, kind: Agent, metadata: {{name: a}}, spec: {{modelRef: {{name: m}}}}}}\n"
    ))?;
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"])?;
    let image = std::env::var("BELAY_RUNNER_IMAGE").context("BELAY_RUNNER_IMAGE is the image of bare pods")?;
    let mut differences = (0..PAIRS).map(|pair| one_pair(&namespace, &image, pair)).collect::<Result<Vec<i64>>>()?;
    differences.sort_unstable();
    let at = |index: usize| differences.get(index).copied().context("no pair was measured");
    Ok((at(PAIRS / 2)?, at(PAIRS - 1)?))
}

fn one_pair(namespace: &TempNamespace, image: &str, pair: usize) -> Result<i64> {
    let run = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": format!("r{pair}")},
        "spec": {"agentRef": {"name": "a"}, "input": "go"}});
    // A runner that finds no operator stays and tries again.
    let name = format!("bare{pair}");
    let bare = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "runner", "image": image, "imagePullPolicy": "Never",
            "env": [{"name": "BELAY_OPERATOR_ADDR", "value": "https://nowhere:1"}, {"name": "BELAY_OPERATOR_CA_PEM", "value": "none"}],
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
    namespace.kubectl.output(&["create", "-f", "-"], Some(&format!("{run}\n---\n{bare}\n")))?;
    let running = ["wait", "--for=jsonpath={.status.phase}=Running", &format!("pod/{name}"), "--timeout=30s"];
    namespace.kubectl.run(&running)?;
    let bare_seen = jiff::Timestamp::now().as_millisecond();
    let pod = namespace.wait_until("agentrun", &format!("r{pair}"), RUN_MAX, |run| {
        let running = run.pointer("/status/phase") == Some(&json!("Running"));
        running.then(|| run.pointer("/status/podRef/name")?.as_str().map(str::to_owned))?
    })?;
    let ours = first_line(namespace, &pod, "step 1  model")?;
    namespace.kubectl.run(&["delete", "pod", &name, "--grace-period=0", "--force"])?;
    Ok(ours - bare_seen)
}

/// When the pod's first line with these words was written, in milliseconds since the Unix epoch.
fn first_line(namespace: &TempNamespace, pod: &str, words: &str) -> Result<i64> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let log = namespace.kubectl.output(&["logs", "--timestamps", pod], None)?.stdout;
        if let Some((at, _)) = log.lines().find(|line| line.contains(words)).and_then(|line| line.split_once(' ')) {
            return Ok(at.parse::<jiff::Timestamp>()?.as_millisecond());
        }
        ensure!(Instant::now() < deadline, "pod {pod} logged no line with '{words}'");
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Used {
    cpu_seconds: f64,
    peak_kilobytes: u64,
}

/// Writes of the operator in a namespace in which one run of so many steps happened, from the audit log.
fn writes_of_a_run(steps: usize) -> Result<usize> {
    let namespace = TempNamespace::enabled("bench-writes")?;
    everything(&namespace)?;
    let call = json!({"toolCalls": [{"tool": "everything", "operation": "echo", "args": {"message": "x"}}]});
    let mut turns = vec![call; steps - 1];
    turns.push(json!({"text": "done"}));
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns": turns}}});
    start(&namespace, &model)?;
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "--selector=belay.dev/run-uid", "--timeout=60s"])?;
    Ok(audit_entries()?.iter().filter(|entry| is_write_for_the_run(entry, &namespace.name)).count())
}

fn audit_entries() -> Result<Vec<Value>> {
    audit_entries_with(OPERATOR)
}

/// Of the API server's audit log, the entries in which these words stand.
fn audit_entries_with(words: &str) -> Result<Vec<Value>> {
    let log = std::env::var("BELAY_AUDIT_LOG").context("BELAY_AUDIT_LOG names the API server's audit log")?;
    let text = std::fs::read_to_string(&log).with_context(|| format!("reading {log}"))?;
    let found = text.lines().filter(|line| line.contains(words));
    Ok(found.filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Status of the kinds that a run needs, and probes, are not the run's own.
fn is_write_for_the_run(entry: &Value, namespace: &str) -> bool {
    let text = |at: &str| entry.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let name = text("/objectRef/name");
    text("/user/username") == OPERATOR
        && text("/objectRef/namespace") == namespace
        && match text("/objectRef/resource") {
            "agentruns" => true,
            "pods" => !name.starts_with("belay-run-probe-"),
            "events" => name.starts_with("r."),
            _ => false,
        }
}

fn everything(namespace: &TempNamespace) -> Result<()> {
    namespace.apply_manifest("demo/server.yaml")?;
    namespace.kubectl.run(&["rollout", "status", "deployment/everything", "--timeout=120s"])?;
    namespace.kubectl.apply("{apiVersion: belay.dev/v1alpha1, kind: Tool, metadata: {name: everything}, spec: {mcp: {url: 'http://everything:3001/mcp'}, effects: {default: None}}}")?;
    Ok(())
}

/// Runs an Agent with this Model to its end.
fn start(namespace: &TempNamespace, model: &Value) -> Result<()> {
    let agent = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}, "tools": [{"name": "everything", "operations": ["echo"]}], "limits": {"steps": 200}}});
    namespace.kubectl.apply(&format!("{model}\n---\n{agent}\n"))?;
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "agent/a", "--timeout=60s"])?;
    let output = belay(&["-n", &namespace.name, "run", "a", "--name", "r", "--input", "Echo."])?;
    ensure!(output.success, "{}", output.stderr);
    let run = namespace.run_to_the_end("r", RUN_MAX)?;
    ensure!(run.pointer("/status/phase") == Some(&json!("Succeeded")), "the run did not succeed: {run:#}");
    Ok(())
}

/// aimock in a pod: so many calls of echo, then an answer. Returns its base URL from here.
fn model_server(namespace: &TempNamespace) -> Result<String> {
    let call = |turn: usize| {
        json!({"match": {"turnIndex": turn}, "response": {"toolCalls":
            [{"id": format!("call_{turn}"), "name": "everything__echo", "arguments": {"message": "x"}}]}})
    };
    let mut fixtures: Vec<Value> = (0..STEPS - 1).map(call).collect();
    fixtures.push(json!({"match": {"turnIndex": STEPS - 1}, "response": {"content": "done"}}));
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixtures"},
        "data": {"fixtures.json": json!({"fixtures": fixtures}).to_string()}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "aimock", "labels": {"app": "aimock"}}, "spec": {
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "localhost/belay-peer-aimock:1.43.0", "imagePullPolicy": "Never",
            "readinessProbe": {"tcpSocket": {"port": 4010}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "fixtures", "mountPath": "/fixtures/fixtures.json", "subPath": "fixtures.json"}]}],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "fixtures", "configMap": {"name": "fixtures"}}]}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "aimock"},
        "spec": {"selector": {"app": "aimock"}, "ports": [{"port": 4010}]}});
    namespace.kubectl.apply(&format!("{config}\n---\n{pod}\n---\n{service}\n"))?;
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "pod/aimock", "--timeout=60s"])?;
    let address = namespace.kubectl.run(&["get", "pod", "aimock", "-o", "jsonpath={.status.podIP}"])?;
    Ok(format!("http://{address}:4010/v1"))
}

fn python_loop(server: &str) -> Result<Used> {
    let command = std::env::var("BELAY_LOOP").context("BELAY_LOOP is the Python loop to compare with")?;
    let mut words = command.split(' ');
    let program = words.next().context("BELAY_LOOP is empty")?;
    let output = Command::new(program).args(words).arg(server).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let used: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(used.get("output") == Some(&json!("done")), "the loop ended elsewhere: {used}");
    let cpu_seconds = used.get("cpu_seconds").and_then(Value::as_f64).context("no CPU time")?;
    let peak_kilobytes = used.get("peak_kilobytes").and_then(Value::as_u64).context("no memory")?;
    Ok(Used { cpu_seconds, peak_kilobytes })
}

/// The runner's process on this machine, watched from its start to its end.
fn runner(namespace: &TempNamespace) -> Result<Used> {
    everything(namespace)?;
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "ChatCompletions", "model": "gpt-test", "baseURL": "http://aimock:4010/v1"}});
    // Probe pods run the same program: the Tool's has come and gone once the Tool is Ready.
    namespace.kubectl.run(&["wait", "--for=condition=Ready", "tool/everything", "--timeout=60s"])?;
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "--selector=belay.dev/probe", "--timeout=60s"])?;
    let watch = std::thread::spawn(watch_runner);
    start(namespace, &model)?;
    watch.join().map_err(|_| anyhow::anyhow!("the watcher of the runner failed"))?
}

fn watch_runner() -> Result<Used> {
    let deadline = Instant::now() + RUN_MAX;
    let process = loop {
        if let Some(process) = find_runner() {
            break process;
        }
        ensure!(Instant::now() < deadline, "no process belay-runner was seen");
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut used = Used { cpu_seconds: 0.0, peak_kilobytes: 0 };
    while let Some(now) = look_at(&process) {
        used = now;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(used)
}

fn find_runner() -> Option<PathBuf> {
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    processes
        .into_iter()
        .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "belay-runner"))
}

/// None once the process is gone, or a zombie without memory.
fn look_at(process: &Path) -> Option<Used> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime and stime: fields 14 and 15 of proc(5), of which two stand before the parenthesis.
    let ticks: f64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak_kilobytes = peak.trim().trim_end_matches(" kB").parse().ok()?;
    Some(Used { cpu_seconds: ticks / TICKS_A_SECOND, peak_kilobytes })
}
