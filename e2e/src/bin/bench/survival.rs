//! What losing pods, waiting and a long history cost: times from the journal, writes from the audit log, memory of
//! the operator's process.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use belay_e2e::TempNamespace;
use belay_e2e::chaos::{effects, node, operator};
use belay_e2e::counter::{agent, arrived, call, start};
use belay_e2e::kubectl::belay;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{OPERATOR, RUN_MAX, audit_entries};

const LOSSES: usize = 10;
const AT_REST: usize = 20;
const MINUTE: Duration = Duration::from_mins(1);

/// Prints every figure of this file.
pub fn print() -> Result<()> {
    losses()?;
    waiting()?;
    finished()
}

/// Runs that lose a pod.
pub fn losses() -> Result<()> {
    let (mut whole, mut known) = (Vec::new(), Vec::new());
    let namespace = TempNamespace::enabled("bench-loss")?;
    start(&namespace)?;
    for n in 0..LOSSES {
        let (from_delete, from_end) = one_loss(&namespace, &format!("r{n}"))?;
        whole.push(from_delete);
        known.push(from_end);
    }
    let (median, most) = spread(whole)?;
    println!("loss of a pod to next model request    {median} ms median, {most} ms at most of {LOSSES}   (bar: 5 s)");
    let (median, most) = spread(known)?;
    println!("the same, from the epoch's end         {median} ms median, {most} ms at most");
    let writes = writes_of_a_lost_run()?;
    let sum: usize = writes.values().sum();
    println!("API writes with a lost pod and an Unknown  {sum}: {writes:?}   (protocol section 8: at most 15)");
    Ok(())
}

pub(super) fn spread(mut milliseconds: Vec<i64>) -> Result<(i64, i64)> {
    milliseconds.sort_unstable();
    let median = milliseconds.get(milliseconds.len() / 2).copied();
    median.zip(milliseconds.last().copied()).context("nothing was measured")
}

/// From the forced deletion of a pod whose runner waits for the model, and from the record of its epoch's end, to
/// the record of the next request.
fn one_loss(namespace: &TempNamespace, name: &str) -> Result<(i64, i64)> {
    agent(namespace, name, &json!([{"text": "done", "delayMilliseconds": 8000}]))?;
    let begun = belay(&["-n", &namespace.name, "run", name, "--name", name, "--input", "go"])?;
    ensure!(begun.success, "{}", begun.stderr);
    let pod = namespace.wait_until("agentrun", name, RUN_MAX, |run| {
        let running = run.pointer("/status/phase") == Some(&json!("Running"));
        running.then(|| run.pointer("/status/podRef/name")?.as_str().map(str::to_owned))?
    })?;
    node::until("the model is asked", || Ok(requests(&journal(namespace, name)?).len() == 1))?;
    let deleted = Timestamp::now().as_millisecond();
    namespace.kubectl.run(&["delete", "pod", &pod, "--grace-period=0", "--force", "--wait=false"])?;
    node::until("the model is asked again", || Ok(requests(&journal(namespace, name)?).len() == 2))?;
    let records = journal(namespace, name)?;
    let again = requests(&records).last().copied().context("no request")?;
    let end = records.iter().find(|record| record.pointer("/event/kind") == Some(&json!("EpochEnded")));
    let end = end.and_then(|record| record.pointer("/at")?.as_i64()).context("no epoch ended")?;
    Ok((again - deleted, again - end))
}

pub(super) fn journal(namespace: &TempNamespace, run: &str) -> Result<Vec<Value>> {
    effects::records(&effects::verified_export(namespace, run)?)
}

fn requests(records: &[Value]) -> Vec<i64> {
    let asked = records.iter().filter(|record| record.pointer("/event/kind") == Some(&json!("ModelRequested")));
    asked.filter_map(|record| record.pointer("/at")?.as_i64()).collect()
}

/// The operator's writes for a run that loses its pod during a call and has a person say that it happened.
fn writes_of_a_lost_run() -> Result<BTreeMap<String, usize>> {
    let namespace = TempNamespace::enabled("bench-lost")?;
    start(&namespace)?;
    agent(&namespace, "r", &json!([{"toolCalls": [call("add", "a", Duration::from_secs(20))]}, {"text": "done"}]))?;
    let begun = belay(&["-n", &namespace.name, "run", "r", "--name", "r", "--input", "go"])?;
    ensure!(begun.success, "{}", begun.stderr);
    node::until("the call arrives", || Ok(arrived(&namespace)?.len() == 1))?;
    let lost = ["delete", "pods", "--selector=belay.dev/run=r", "--grace-period=1"];
    namespace.kubectl.run(&lost)?;
    let approval = namespace.wait_until("agentrun", "r", RUN_MAX, |run| {
        let asks = run.pointer("/status/waitingOn/kind") == Some(&json!("approval"));
        asks.then(|| run.pointer("/status/waitingOn/name")?.as_str().map(str::to_owned))?
    })?;
    // Until its pod was let go: that is a wait as people's are.
    no_pods(&namespace)?;
    let resolved = belay(&["-n", &namespace.name, "resolve", &approval, "--yes", "--happened", "seen"])?;
    ensure!(resolved.success, "{}", resolved.stderr);
    namespace.run_to_the_end("r", RUN_MAX)?;
    no_pods(&namespace)?;
    let mut writes = BTreeMap::new();
    for entry in audit_entries()?.iter().filter(|entry| is_the_operators(entry, &namespace.name)) {
        let text = |at: &str| entry.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let probe = text("/objectRef/name").starts_with("belay-run-probe-");
        let resource = text("/objectRef/resource");
        let about_the_run = resource != "events" || text("/objectRef/name").starts_with("r.");
        if !probe && about_the_run && ["agentruns", "pods", "approvals", "events"].contains(&resource) {
            let subresource = entry.pointer("/objectRef/subresource").and_then(Value::as_str).unwrap_or("object");
            *writes.entry(format!("{} {resource} {subresource}", text("/verb"))).or_default() += 1;
        }
    }
    Ok(writes)
}

pub(super) fn no_pods(namespace: &TempNamespace) -> Result<()> {
    namespace.kubectl.run(&["wait", "--for=delete", "pods", "--selector=belay.dev/run-uid", "--timeout=120s"]).map(drop)
}

/// The guard's dry runs write nothing.
fn is_the_operators(entry: &Value, namespace: &str) -> bool {
    let dry = entry.pointer("/requestURI").and_then(Value::as_str).is_some_and(|uri| uri.contains("dryRun="));
    !dry && entry.pointer("/user/username") == Some(&json!(OPERATOR))
        && entry.pointer("/objectRef/namespace") == Some(&json!(namespace))
}

/// Runs that wait for a person, without pods: writes in a minute, and the operator's memory with more of them.
pub fn waiting() -> Result<()> {
    let namespace = TempNamespace::enabled("bench-wait")?;
    start(&namespace)?;
    agent(&namespace, "a", &json!([{"toolCalls": [call("drop", "x", Duration::ZERO)]}, {"text": "done"}]))?;
    await_runs(&namespace, 0..AT_REST)?;
    let count = |namespace: &str| -> Result<usize> {
        Ok(audit_entries()?.iter().filter(|entry| is_the_operators(entry, namespace)).count())
    };
    let before = count(&namespace.name)?;
    // The minute is what is measured.
    std::thread::sleep(MINUTE);
    let writes = count(&namespace.name)? - before;
    println!("API writes a minute at rest, {AT_REST} waiting runs   {writes}   (bar: 0 besides the Lease)");
    let many = std::env::var("BENCH_WAITING").ok().and_then(|count| count.parse().ok()).unwrap_or(1000);
    await_runs(&namespace, AT_REST..many)?;
    let now = operator::process()?.resident_kilobytes()?;
    println!("operator's memory, {many} waiting runs   {:.1} MB", super::megabytes(now));
    operator::rollout_restart()?;
    std::thread::sleep(MINUTE);
    let restarted = operator::process()?.resident_kilobytes()?;
    println!("the same, a minute after a restart   {:.1} MB", super::megabytes(restarted));
    Ok(())
}

fn await_runs(namespace: &TempNamespace, numbers: std::ops::Range<usize>) -> Result<()> {
    let run = |n: usize| {
        json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": format!("w{n}")},
            "spec": {"agentRef": {"name": "a"}, "input": "go"}})
    };
    let runs: Vec<String> = numbers.clone().map(|n| run(n).to_string()).collect();
    namespace.kubectl.apply(&runs.join("\n---\n"))?;
    for n in numbers {
        namespace.wait_until("agentrun", &format!("w{n}"), Duration::from_mins(20), |run| {
            (run.pointer("/status/phase") == Some(&json!("Waiting"))).then_some(())
        })?;
    }
    no_pods(namespace)
}

/// The operator's memory with so many finished AgentRuns, a minute after it listed them.
pub fn finished() -> Result<()> {
    let many: usize = std::env::var("BENCH_FINISHED").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let namespace = TempNamespace::enabled("bench-finished")?;
    agent(&namespace, "a", &json!([{"text": "done"}]))?;
    let suspend = json!({"spec": {"suspend": true}}).to_string();
    namespace.kubectl.run(&["patch", "agents.belay.dev", "a", "--type=merge", "-p", &suspend])?;
    let gone = operator::away()?;
    // kubectl holds itself back: several at a time.
    std::thread::scope(|scope| {
        let workers = 10;
        let namespace = &namespace;
        let part = move |worker: usize| finish(namespace, (worker..many).step_by(workers));
        let parts: Vec<_> = (0..workers).map(|worker| scope.spawn(move || part(worker))).collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow::anyhow!("a worker failed"))?)
    })?;
    gone.back()?;
    std::thread::sleep(MINUTE);
    let kilobytes = operator::process()?.resident_kilobytes()?;
    println!("operator's memory, {many} finished runs   {:.1} MB   (bar: 60 MB)", super::megabytes(kilobytes));
    Ok(())
}

/// AgentRuns as they look at their end, with an input and an output of 2 KiB each.
fn finish(namespace: &TempNamespace, numbers: impl Iterator<Item = usize>) -> Result<()> {
    let now = Timestamp::now().to_string();
    let condition = |of: &str, status: &str| json!({"type": of, "status": status, "reason": "Succeeded", "message": "", "lastTransitionTime": now, "observedGeneration": 1});
    let text = "x".repeat(2048);
    let objects: Vec<String> = numbers
        .map(|n| {
            json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": format!("f{n}")},
                "spec": {"agentRef": {"name": "a"}, "input": text},
                "status": {"phase": "Succeeded", "output": text, "observedGeneration": 1, "startTime": now, "completionTime": now,
                    "conditions": [condition("Finished", "True"), condition("Ready", "True")]}})
            .to_string()
        })
        .collect();
    let all = objects.join("\n---\n");
    namespace.kubectl.apply(&all)?;
    // Admission lets nobody but the operator write it.
    let operator = namespace.kubectl.with(&["--as", OPERATOR]);
    let applied = operator.output(&["apply", "--server-side", "--subresource=status", "-f", "-"], Some(&all))?;
    let words: String = applied.stderr.chars().take(500).collect();
    ensure!(applied.success, "{words}");
    Ok(())
}
