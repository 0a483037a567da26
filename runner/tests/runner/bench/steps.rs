//! What a step costs in each wire format, beside a bare loop over the official Python client on the same server:
//! `e2e/bench/run models` prints it, and takes formats and numbers of steps to print no others. Operator and journal are
//! played within the runner's process, and count.

use std::path::PathBuf;
use std::process::Command;

use belay_protocol::event::Outcome;

use super::{Used, asked_for, cpu_seconds, measured, peak_kilobytes, said, say};
use crate::answers::Format;
use crate::asking::run_plan;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::Server;
use crate::plans::{plan, tool};

const FORMATS: [Format; 3] = [Format::Chat, Format::Responses, Format::Messages];
const STEPS: [u16; 2] = [50, 500];

/// A server that asks for one call a step, and is content with the last.
async fn server(format: Format, steps: u16) -> Server {
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

/// The rows that `words` ask for: of the formats among them, and with the numbers of steps; of all where none is named.
fn rows(words: &str) -> Vec<(Format, u16)> {
    let words: Vec<&str> = words.split_whitespace().collect();
    let formats: Vec<Format> = FORMATS.into_iter().filter(|format| words.contains(&named(*format))).collect();
    let steps: Vec<u16> = words.iter().filter_map(|word| word.parse().ok()).filter(|steps| *steps > 0).collect();
    assert_eq!(
        formats.len() + steps.len(),
        words.len(),
        "{words:?}: say chat, responses, messages, or a number of steps"
    );
    let formats = if formats.is_empty() { FORMATS.to_vec() } else { formats };
    let steps = if steps.is_empty() { STEPS.to_vec() } else { steps };
    formats.iter().flat_map(|format| steps.iter().map(|steps| (*format, *steps))).collect()
}

/// The run itself, in a process of its own: of a format, with a model and a tool server.
#[tokio::test]
#[ignore = "a part of e2e/bench/run models"]
async fn one_run() {
    let Some(what) = asked_for() else { return };
    let [format, model, mcp] = &what[..] else { panic!("{what:?}") };
    let format = FORMATS.into_iter().find(|it| named(*it) == format).unwrap();
    let plan = plan(format.model(model), vec![tool(mcp, &["echo"])]);
    let before = cpu_seconds();
    let journal = run_plan(plan, &[]).await;
    let used = Used { cpu_seconds: cpu_seconds() - before, peak_kilobytes: peak_kilobytes() };
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    say(&used);
}

fn ours(format: Format, server: &Server, mcp: &FakeMcp) -> Used {
    measured("bench::steps::one_run", &[named(format), &server.url("/v1"), &mcp.url()])
}

fn theirs(format: Format, server: &Server) -> Used {
    let venv = std::env::var_os("BELAY_GRADERS").expect("run this with e2e/bench/run models");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/bench/bare.py");
    // Anthropic's client adds the version itself.
    let url = server.url(if format == Format::Messages { "" } else { "/v1" });
    said(Command::new(PathBuf::from(venv).join("bin/python")).arg(script).args([named(format), &url]))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "e2e/bench/run models"]
async fn what_a_step_costs() {
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let rows = rows(&std::env::var("BENCH_ROWS").unwrap_or_default());
    println!("format     steps   CPU a step   peak       sent      bare Python loop: CPU a step   peak       sent");
    for (format, steps) in rows {
        let (our_server, their_server) = (server(format, steps).await, server(format, steps).await);
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
        let asked = [&our_server, &their_server].map(|server| server.received().len());
        assert_eq!(asked, [usize::from(steps); 2]);
    }
}
