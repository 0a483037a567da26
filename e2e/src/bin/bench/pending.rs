//! Thousands of questions that wait for people in one namespace: how long listing them takes, what the operator keeps of
//! them, and how soon one among them is acted on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use belay_e2e::TempNamespace;
use belay_e2e::chaos::operator;
use belay_e2e::counter::start;
use belay_e2e::kubectl::belay;
use belay_e2e::stage::{approval, requirements};

use super::decisions::{ask, decide, prepare};
use super::{OPERATOR, RUN_MAX, megabytes};

/// kubectl holds itself back: several at a time.
const WORKERS: usize = 10;
const MINUTE: Duration = Duration::from_mins(1);

/// Prints every figure of this file.
pub fn print() -> Result<()> {
    let many: usize = std::env::var("BENCH_PENDING").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let namespace = TempNamespace::enabled("bench-pending")?;
    start(&namespace)?;
    prepare(&namespace)?;
    let before = operator::process()?;
    let empty = before.resident_kilobytes()?;
    std::thread::scope(|scope| {
        let namespace = &namespace;
        let part = move |worker: usize| create(namespace, (worker..many).step_by(WORKERS));
        let parts: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || part(worker))).collect();
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow::anyhow!("a worker failed"))?)
    })?;
    let asked = Instant::now();
    let listed = belay(&["-n", &namespace.name, "approvals"])?;
    let took = asked.elapsed();
    ensure!(listed.success, "{}", listed.stderr);
    let rows = listed.stdout.lines().skip(1).count();
    ensure!(rows == many, "belay approvals lists {rows} of {many}");
    println!("belay approvals, {many} pending             {} ms", took.as_millis());

    decided(&namespace, "among", 0, many)?;
    ensure!(operator::process()? == before, "the operator was started anew");
    let full = before.resident_kilobytes()?;
    println!(
        "operator's memory, {many} pending           {:.1} MB, {:.1} MB before",
        megabytes(full),
        megabytes(empty)
    );
    operator::rollout_restart()?;
    std::thread::sleep(MINUTE);
    let restarted = operator::process()?.resident_kilobytes()?;
    println!("the same, a minute after a restart       {:.1} MB", megabytes(restarted));
    decided(&namespace, "after", 1, many)
}

/// One more question, which a person says yes to, and what it was about is done.
fn decided(namespace: &TempNamespace, name: &str, before: usize, many: usize) -> Result<()> {
    let approval = ask(namespace, name)?;
    let decided = decide(namespace, &approval, before)?;
    namespace.run_to_the_end(name, RUN_MAX)?;
    println!("decision to call, {many} more pending        {} ms", decided.arrived);
    Ok(())
}

/// Questions as the operator makes them, of runs that it does not know.
fn create(namespace: &TempNamespace, numbers: impl Iterator<Item = usize>) -> Result<()> {
    let all: Vec<String> = numbers.map(|n| approval(&format!("p{n}"), &requirements()).to_string()).collect();
    let operator = namespace.kubectl.with(&["--as", OPERATOR]);
    let created = operator.output(&["create", "-f", "-"], Some(&all.join("\n---\n")))?;
    let words: String = created.stderr.chars().take(500).collect();
    ensure!(created.success, "{words}");
    Ok(())
}
