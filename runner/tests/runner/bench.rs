//! What a step costs in each wire format, beside a bare loop over the official Python client on the same server:
//! `e2e/bench/run models` prints it. Operator and journal are played within the runner's process, and count.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use belay_protocol::event::Outcome;
use serde::{Deserialize, Serialize};

use crate::answers::Format;
use crate::asking::run_plan;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::Server;
use crate::plans::{plan, tool};

/// What a process says of itself.
#[derive(Debug, Deserialize, Serialize)]
struct Used {
    cpu_seconds: f64,
    peak_kilobytes: u64,
}

/// A server that asks for one call a step, and is content with the last.
async fn server(format: Format, steps: usize) -> Server {
    let call = |step| format.asks(&[(&format!("call_{step}"), "server__echo", r#"{"text":"a"}"#)]);
    let answers = (1..steps).map(call).chain([format.says("done")]);
    Server::start(answers.collect()).await
}

/// Bytes that its clients sent.
fn bytes(server: &Server) -> usize {
    server.received().iter().map(|request| request.body.len()).sum()
}

fn named(format: Format) -> &'static str {
    match format {
        Format::Chat => "chat",
        Format::Responses => "responses",
        Format::Messages => "messages",
    }
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

/// The run itself, in a process of its own: `BENCH_RUN` is format, model and tool server.
#[tokio::test]
#[ignore = "a part of e2e/bench/run models"]
async fn one_run() {
    let Ok(what) = std::env::var("BENCH_RUN") else { return };
    let [format, model, mcp] = what.split(' ').collect::<Vec<_>>()[..] else { panic!("{what}") };
    let format =
        [Format::Chat, Format::Responses, Format::Messages].into_iter().find(|it| named(*it) == format).unwrap();
    let plan = plan(format.model(model), vec![tool(mcp, &["echo"])]);
    let before = cpu_seconds();
    let journal = run_plan(plan, &[]).await;
    let used = Used { cpu_seconds: cpu_seconds() - before, peak_kilobytes: peak_kilobytes() };
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    println!("\nused {}", serde_json::to_string(&used).unwrap());
}

fn ours(format: Format, server: &Server, mcp: &FakeMcp) -> Used {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "bench::one_run", "--ignored", "--nocapture"]);
    child.env("BENCH_RUN", format!("{} {} {}", named(format), server.url("/v1"), mcp.url()));
    said(&mut child)
}

fn theirs(format: Format, server: &Server) -> Used {
    let venv = std::env::var_os("BELAY_GRADERS").expect("run this with e2e/bench/run models");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/bench/bare.py");
    // Anthropic's client adds the version itself.
    let url = server.url(if format == Format::Messages { "" } else { "/v1" });
    said(Command::new(PathBuf::from(venv).join("bin/python")).arg(script).args([named(format), &url]))
}

fn said(command: &mut Command) -> Used {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().find_map(|line| line.strip_prefix("used ")).expect("its figures")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "e2e/bench/run models"]
async fn what_a_step_costs() {
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    println!("format     steps   CPU a step   peak       sent      bare Python loop: CPU a step   peak       sent");
    for format in [Format::Chat, Format::Responses, Format::Messages] {
        for steps in [50_u16, 500] {
            let (our_server, their_server) =
                (server(format, usize::from(steps)).await, server(format, usize::from(steps)).await);
            let (ours, theirs) =
                tokio::task::block_in_place(|| (ours(format, &our_server, &mcp), theirs(format, &their_server)));
            let row = |used: &Used, server: &Server| {
                let milliseconds = used.cpu_seconds * 1e3 / f64::from(steps);
                let (peak, sent) = (used.peak_kilobytes / 1024, bytes(server) / 1000);
                format!("{milliseconds:>7.2} ms   {peak:>4} MB   {sent:>5} kB")
            };
            println!(
                "{:<10} {steps:>5}   {}                    {}",
                named(format),
                row(&ours, &our_server),
                row(&theirs, &their_server)
            );
            assert_eq!(
                (our_server.received().len(), their_server.received().len()),
                (usize::from(steps), usize::from(steps))
            );
        }
    }
}
