//! What the journal takes beside bare `fdatasync` on the same disk, as a table for `docs/bench.md`:
//! `cargo run --release -p belay-operator --example journal_bench -- FOLDER`. Every run goes through steps of a
//! model answer with one permitted call and its result, each batch sent when the one before was answered.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use belay_operator::gate::{Standing, decide};
use belay_operator::journal::{Batch, BatchKey, Journal};
use belay_protocol::Digest;
use belay_protocol::call::CallBinding;
use belay_protocol::cost::Usage;
use belay_protocol::event::{Event, Finish, Item, ListedOperation, Listing, ModelResponse, ProposedCall, ToolResult};
use belay_protocol::plan::{ObjectId, Plan};
use serde_json::json;

const LEVELS: [usize; 4] = [1, 8, 64, 256];
const LONG: Duration = Duration::from_secs(4);
/// What one commit of a small batch writes to the log.
const BLOCK: [u8; 4096] = [7; 4096];
/// A usual answer of a model or tool, in bytes.
const TEXT: usize = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).context("which folder? its disk is measured")?.into();
    std::fs::create_dir_all(&folder)?;
    println!("| runs | bare fdatasync/s | commits/s | ratio | batches/s | events/s | answer, median | p99 |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for runs in LEVELS {
        // Right before each level: a shared disk is another one a minute later.
        let syncs = bare_syncs(&folder)?;
        let level = measure(&folder, runs).await?;
        println!(
            "| {runs} | {syncs:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.1} ms | {:.1} ms |",
            level.commits,
            level.commits / syncs,
            level.batches,
            level.events,
            milliseconds(level.median),
            milliseconds(level.p99)
        );
    }
    Ok(())
}

fn bare_syncs(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("bare");
    let mut file = File::create(&path)?;
    let (start, mut syncs) = (Instant::now(), 0.0);
    while start.elapsed() < LONG {
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        syncs += 1.0;
    }
    let rate = syncs / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// Rates a second, and how long batches waited for their answer.
struct Level {
    commits: f64,
    batches: f64,
    events: f64,
    median: Duration,
    p99: Duration,
}

async fn measure(folder: &Path, runs: usize) -> anyhow::Result<Level> {
    let path = folder.join(format!("journal-{runs}.sqlite"));
    let journal = Journal::open(&path).await?;
    let mut started = Vec::new();
    for number in 0..runs {
        started.push(Runner::start(journal.clone(), number).await?);
    }
    let (commits, start) = (journal.commits().await?, Instant::now());
    let tasks: Vec<_> = started.into_iter().map(|runner| tokio::spawn(runner.steps(start + LONG))).collect();
    let (mut waits, mut events) = (Vec::new(), 0_u32);
    for task in tasks {
        let done = task.await??;
        waits.extend(done.waits);
        events += done.events;
    }
    let seconds = start.elapsed().as_secs_f64();
    let commits = journal.commits().await? - commits;
    journal.close().await;
    for suffix in ["", ".lock", ".reserve"] {
        std::fs::remove_file(folder.join(format!("journal-{runs}.sqlite{suffix}")))?;
    }
    waits.sort_unstable();
    let at = |percent: usize| waits.get(waits.len() * percent / 100).copied().unwrap_or_default();
    Ok(Level {
        commits: f64::from(u32::try_from(commits)?) / seconds,
        batches: f64::from(u32::try_from(waits.len())?) / seconds,
        events: f64::from(events) / seconds,
        median: at(50),
        p99: at(99),
    })
}

/// One run as its runner drives it.
struct Runner {
    journal: Journal,
    plan: Plan,
    session: u64,
    batches: u64,
    done: Done,
}

#[derive(Default)]
struct Done {
    waits: Vec<Duration>,
    events: u32,
}

impl Runner {
    async fn start(journal: Journal, number: usize) -> anyhow::Result<Self> {
        let plan = plan(number)?;
        let accepted = vec![
            Event::RunAccepted { plan_digest: plan.digest()?, plan: Box::new(plan.clone()) },
            Event::EpochOpened { epoch: 1, pod_name: format!("pod-{number}") },
            Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
        ];
        journal.append(&plan.run, 0, accepted).await?;
        let session = journal.raise_session(&plan.run.uid, 1).await?;
        let mut runner = Self { journal, plan, session, batches: 0, done: Done::default() };
        let operation = ListedOperation { name: "read".into(), definition: definition() };
        let listed = Event::ToolsListed { tool: "files".into(), listing: Listing::Listed(vec![operation]) };
        runner.say(vec![listed, request(1)]).await?;
        runner.done = Done::default();
        Ok(runner)
    }

    async fn steps(mut self, until: Instant) -> anyhow::Result<Done> {
        let mut step = 1;
        while Instant::now() < until {
            let call_id = format!("c{step}");
            self.say(vec![response(step, &call_id), self.proposal(&call_id)?]).await?;
            step += 1;
            self.say(vec![observed(&call_id), request(step)]).await?;
        }
        Ok(self.done)
    }

    async fn say(&mut self, events: Vec<Event>) -> anyhow::Result<()> {
        self.batches += 1;
        let batch = Batch { key: BatchKey { epoch: 1, session: self.session, n: self.batches }, events };
        let asked = Instant::now();
        let gate = |state: &_, events: &[Event]| decide(state, events.to_vec(), Standing::Running);
        let taken = self.journal.append_batch(&self.plan.run.uid, batch, gate).await?;
        self.done.waits.push(asked.elapsed());
        self.done.events += u32::try_from(taken.records.len())?;
        Ok(())
    }

    fn proposal(&self, call_id: &str) -> anyhow::Result<Event> {
        let args = json!({"path": "README.md"});
        let tool = self.plan.tool("files").context("the plan has a tool")?;
        let digest = CallBinding::new(&self.plan, tool, definition(), "read", &args).digest()?;
        let call =
            ProposedCall { tool: "files".into(), operation: "read".into(), args, definition: definition(), digest };
        Ok(Event::CallProposed { call_id: call_id.into(), attempt: 1, call })
    }
}

fn plan(number: usize) -> anyhow::Result<Plan> {
    let run = ObjectId { namespace: "bench".into(), name: format!("run-{number}"), uid: format!("uid-{number}") };
    let plan = json!({
        "version": 1, "run": run, "agent": {"namespace": "bench", "name": "agent", "uid": "agent-uid"},
        "agentGeneration": 1, "input": "go",
        "model": {"name": "m", "api": "Scripted", "model": "m", "timeouts":
            {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
        "tools": [{"name": "files", "uid": "files-uid", "url": "http://files/mcp", "callTimeoutSeconds": 5,
            "operations": [{"name": "read", "modelName": "files__read", "definition": definition()}]}],
        "limits": {"steps": 1_000_000, "activeSeconds": 3600, "waitSeconds": 3600},
    });
    Ok(serde_json::from_value(plan)?)
}

fn definition() -> Digest {
    Digest::of(b"definition")
}

fn request(step: u32) -> Event {
    Event::ModelRequested { step, attempt: 1, request: Digest::zero(), reserved_tokens: 10 }
}

fn response(step: u32, call_id: &str) -> Event {
    let call = Item::ToolCall {
        call_id: call_id.into(),
        provider_id: "x".into(),
        name: "files__read".into(),
        arguments: r#"{"path":"README.md"}"#.into(),
    };
    let items = vec![Item::Text { text: "t".repeat(TEXT) }, call];
    let response = ModelResponse {
        items,
        finish: Finish::ToolCalls,
        usage: Usage::default(),
        response_id: None,
        model: None,
        milliseconds: 1,
    };
    Event::ModelResponded { step, attempt: 1, response }
}

fn observed(call_id: &str) -> Event {
    let result = ToolResult { is_error: false, content: "r".repeat(TEXT), truncated_from_bytes: None };
    Event::CallObserved { call_id: call_id.into(), attempt: 1, result, milliseconds: 1 }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
