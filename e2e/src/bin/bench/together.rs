//! A hundred runs at once on one Model: as fast as they come, and held to its `rateLimits`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use belay_e2e::TempNamespace;
use serde_json::{Value, json};

const RUNS: usize = 100;
const THINKS_MILLISECONDS: u64 = 500;
const AT_ONCE: u64 = 5;
const ALL_MAX: Duration = Duration::from_mins(10);

/// Prints every figure of this file. Wants an operator that lets a namespace run as many (`BELAY_MAX_RUNS_PER_NAMESPACE`).
pub fn print() -> Result<()> {
    let free = all_done(&json!({}))?;
    println!("{RUNS} runs at once on one Model    {:.1} s until all have ended", free.as_secs_f64());
    let held = all_done(&json!({"concurrentRequests": AT_ONCE}))?;
    let least = Duration::from_millis(THINKS_MILLISECONDS * RUNS as u64 / AT_ONCE);
    println!(
        "the same, {AT_ONCE} requests at a time    {:.1} s until all have ended, of which the model takes {:.1} s",
        held.as_secs_f64(),
        least.as_secs_f64()
    );
    ensure!(held >= least, "more than {AT_ONCE} requests were under way at a time");
    Ok(())
}

fn all_done(limits: &Value) -> Result<Duration> {
    let namespace = TempNamespace::enabled("bench-together")?;
    let model = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"},
        "spec": {"api": "Scripted", "model": "s", "rateLimits": limits,
            "scripted": {"turns": [{"text": "done", "delayMilliseconds": THINKS_MILLISECONDS}]}}});
    let agent = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "m"}}});
    namespace.kubectl.apply(&format!("{model}\n---\n{agent}\n"))?;
    namespace.wait_ready("agent", "a", "True", "Ready")?;
    let run = |number: usize| {
        json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": format!("r{number}")},
            "spec": {"agentRef": {"name": "a"}, "input": "go"}})
        .to_string()
    };
    let runs: Vec<String> = (0..RUNS).map(run).collect();
    let began = Instant::now();
    let created = namespace.kubectl.output(&["create", "-f", "-"], Some(&runs.join("\n---\n")))?;
    ensure!(created.success, "{}", created.stderr);
    let timeout = format!("--timeout={}s", ALL_MAX.as_secs());
    namespace.kubectl.run(&["wait", "--for=condition=Finished", "agentruns", "--all", &timeout])?;
    let took = began.elapsed();
    let phases = namespace.kubectl.run(&["get", "agentruns", "-o", "jsonpath={.items[*].status.phase}"])?;
    let well = phases.split(' ').filter(|phase| *phase == "Succeeded").count();
    ensure!(well == RUNS, "{well} of {RUNS} runs succeeded");
    Ok(took)
}
