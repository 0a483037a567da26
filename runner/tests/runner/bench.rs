//! What things cost, for the tables of `docs/bench.md`: `e2e/bench/run models` and `e2e/bench/run megabytes` print them. What
//! is measured runs in a process of its own, beside whatever it talks to.

mod megabytes;
mod steps;

use std::fs;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// What a process says of itself.
#[derive(Debug, Deserialize, Serialize)]
struct Used {
    cpu_seconds: f64,
    peak_kilobytes: u64,
}

/// Time on a processor of every thread that is there.
fn cpu_seconds() -> f64 {
    let on_cpu = |task: fs::DirEntry| -> Option<f64> {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    fs::read_dir("/proc/self/task").unwrap().filter_map(|task| on_cpu(task.unwrap())).sum::<f64>() / 1e9
}

fn peak_kilobytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What it measures, if this process was started for one of the measurements.
fn asked_for() -> Option<Vec<String>> {
    let what = std::env::var("BENCH_RUN").ok()?;
    Some(what.split(' ').map(str::to_owned).collect())
}

/// The end of that process.
fn say(used: &Used) {
    println!("\nused {}", serde_json::to_string(used).unwrap());
}

/// A measurement in a process of its own, which reads there what it is asked for.
fn measured(test: &str, what: &[&str]) -> Used {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--ignored", "--nocapture"]).env("BENCH_RUN", what.join(" "));
    said(&mut child)
}

fn said(command: &mut Command) -> Used {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().find_map(|line| line.strip_prefix("used ")).expect("its figures")).unwrap()
}
