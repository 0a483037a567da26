//! How soon a decision is acted on: from the moment the API server had answered it to the moment the call arrived at its
//! server, while the runner's pod is there; and to the next epoch, and the call, where it is gone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use belay_e2e::TempNamespace;
use belay_e2e::counter::{arrivals, call, start};
use belay_e2e::kubectl::belay;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::survival::{journal, no_pods, spread};
use super::{RUN_MAX, audit_entries_with};

const ALIVE: usize = 20;
const GONE: usize = 5;

/// Prints every figure of this file.
pub fn print() -> Result<()> {
    let namespace = TempNamespace::enabled("bench-decisions")?;
    start(&namespace)?;
    prepare(&namespace)?;
    let mut sent = Vec::new();
    for n in 0..ALIVE {
        let name = format!("alive{n}");
        let approval = ask(&namespace, &name)?;
        sent.push(decide(&namespace, &approval, n)?.arrived);
        namespace.run_to_the_end(&name, RUN_MAX)?;
    }
    let (median, most) = spread(sent)?;
    println!(
        "decision to call, pod alive            {median} ms median, {most} ms at most of {ALIVE}   (bar: 50 ms median)"
    );
    let (mut woken, mut sent) = (Vec::new(), Vec::new());
    for n in 0..GONE {
        let name = format!("gone{n}");
        let approval = ask(&namespace, &name)?;
        no_pods(&namespace)?;
        let decided = decide(&namespace, &approval, ALIVE + n)?;
        woken.push(last_epoch(&namespace, &name)? - decided.at);
        sent.push(decided.arrived);
        namespace.run_to_the_end(&name, RUN_MAX)?;
    }
    let (median, most) = spread(woken)?;
    println!("decision to next epoch, pod gone       {median} ms median, {most} ms at most of {GONE}   (bar: 2 s)");
    let (median, most) = spread(sent)?;
    println!("the same, to the call                  {median} ms median, {most} ms at most");
    Ok(())
}

/// An Agent whose every call is asked about.
pub(super) fn prepare(namespace: &TempNamespace) -> Result<()> {
    let policy = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "asks"},
        "spec": {"otherwise": "Ask"}});
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "Scripted", "model": "s", "scripted": {"turns":
            [{"toolCalls": [call("add", "a", Duration::ZERO)]}, {"text": "done"}]}}});
    let agent = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}, "policyRefs": [{"name": "asks"}],
            "tools": [{"name": "counter", "operations": ["add"]}]}});
    namespace.kubectl.apply(&format!("{policy}\n---\n{model}\n---\n{agent}\n"))?;
    namespace.wait_ready("agent", "a", "True", "Ready").map(drop)
}

/// Starts a run, and returns the Approval that it waits for.
pub(super) fn ask(namespace: &TempNamespace, name: &str) -> Result<String> {
    let begun = belay(&["-n", &namespace.name, "run", "a", "--name", name, "--input", "go"])?;
    ensure!(begun.success, "{}", begun.stderr);
    namespace.wait_until("agentrun", name, RUN_MAX, |run| {
        let asks = run.pointer("/status/waitingOn/kind") == Some(&json!("approval"));
        asks.then(|| run.pointer("/status/waitingOn/name")?.as_str().map(str::to_owned))?
    })
}

pub(super) struct Decided {
    /// When the API server had answered it, in milliseconds since the Unix epoch.
    at: i64,
    /// How long after that the call arrived, in milliseconds.
    pub(super) arrived: i64,
}

/// Says yes, and waits for the call, of which so many came before.
pub(super) fn decide(namespace: &TempNamespace, approval: &str, before: usize) -> Result<Decided> {
    let approved = belay(&["-n", &namespace.name, "approve", approval, "--yes"])?;
    ensure!(approved.success, "{}", approved.stderr);
    let deadline = std::time::Instant::now() + RUN_MAX;
    let arrived = loop {
        if let Some(at) = arrivals(namespace)?.get(before) {
            break *at;
        }
        ensure!(std::time::Instant::now() < deadline, "the call of {approval} never arrived");
        std::thread::sleep(Duration::from_millis(50));
    };
    let entries = audit_entries_with(approval)?;
    let decision = entries.iter().rev().find(|entry| {
        entry.pointer("/verb") == Some(&json!("patch"))
            && entry.pointer("/objectRef/subresource").is_none()
            && entry.pointer("/responseStatus/code") == Some(&json!(200))
    });
    let at = decision
        .and_then(|entry| entry.pointer("/stageTimestamp")?.as_str())
        .context("no decision in the audit log")?;
    let at = at.parse::<Timestamp>()?.as_millisecond();
    Ok(Decided { at, arrived: arrived - at })
}

/// When the newest epoch was opened, in milliseconds since the Unix epoch.
fn last_epoch(namespace: &TempNamespace, run: &str) -> Result<i64> {
    let opened = |record: &Value| {
        let is_open = record.pointer("/event/kind") == Some(&json!("EpochOpened"));
        is_open.then(|| record.pointer("/at")?.as_i64())?
    };
    journal(namespace, run)?.iter().filter_map(opened).next_back().context("no epoch was opened")
}
