//! What the journal takes beside bare `fdatasync` on the same disk, as a table for `docs/bench.md`:
//! `cargo run --release -p belay-operator --example journal_bench -- FOLDER`. Every run goes through steps of a
//! model answer with one permitted call and its result, each batch sent when the one before was answered.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use belay_operator::gate::{Circumstances, Room, Standing, Word, Words, decide};
use belay_operator::journal::{Batch, BatchKey, Journal};
use belay_protocol::Digest;
use belay_protocol::call::CallBinding;
use belay_protocol::cost::Usage;
use belay_protocol::event::{Event, Finish, Item, ListedOperation, Listing, ModelResponse, ProposedCall, ToolResult};
use belay_protocol::judgement::{Judged, Judgement};
use belay_protocol::plan::{ObjectId, Plan};
use serde_json::json;

const LEVELS: [usize; 4] = [1, 8, 64, 256];
/// A shared disk is another one a second later: journal and bare syncs take turns, each so long, and medians count.
const TURNS: usize = 7;
const LONG: Duration = Duration::from_millis(700);
/// A page, as the least that a database writes.
const BLOCK: u32 = 4096;
/// Where SQLite's log starts over, so that its blocks are there already when it is written again.
const LOG: u32 = 4 << 20;
/// A usual answer of a model or tool, in bytes.
const TEXT: usize = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).context("which folder? its disk is measured")?.into();
    std::fs::create_dir_all(&folder)?;
    println!(
        "| runs | bare fdatasync/s | commits/s | ratio | KiB/commit | as many bytes synced/s | ratio | batches/s \
         | events/s | answer, median | p99 | CPU/batch |"
    );
    println!("|{}", " ---: |".repeat(12));
    for runs in LEVELS {
        print_level(&folder, runs).await?;
    }
    Ok(())
}

async fn print_level(folder: &Path, runs: usize) -> anyhow::Result<()> {
    let path = folder.join(format!("journal-{runs}.sqlite"));
    let journal = Journal::open(&path).await?;
    let mut runners = Vec::new();
    for number in 0..runs {
        runners.push(Runner::start(journal.clone(), number).await?);
    }
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let bare = bare_syncs(folder, BLOCK)?;
        let level = measure(&journal, &mut runners).await?;
        let alike = bare_syncs(folder, level.commit_bytes)?;
        turns.push(Turn { bare, alike, level });
    }
    journal.close().await;
    for suffix in ["", ".lock", ".reserve"] {
        std::fs::remove_file(folder.join(format!("journal-{runs}.sqlite{suffix}")))?;
    }
    let median = |of: fn(&Turn) -> f64| median(turns.iter().map(of).collect());
    println!(
        "| {runs} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.1} ms | {:.1} ms | {:.0} µs |",
        median(|turn| turn.bare),
        median(|turn| turn.level.commits),
        median(|turn| turn.level.commits / turn.bare),
        median(|turn| f64::from(turn.level.commit_bytes) / 1024.0),
        median(|turn| turn.alike),
        median(|turn| turn.level.commits / turn.alike),
        median(|turn| turn.level.batches),
        median(|turn| turn.level.events),
        median(|turn| milliseconds(turn.level.median)),
        median(|turn| milliseconds(turn.level.p99)),
        median(|turn| turn.level.processor_microseconds),
    );
    Ok(())
}

struct Turn {
    bare: f64,
    /// Syncs of as many bytes as a commit wrote.
    alike: f64,
    level: Level,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Syncs a second, each of `bytes` behind those before, over and over through a file of a log's size.
fn bare_syncs(folder: &Path, bytes: u32) -> anyhow::Result<f64> {
    let path = folder.join("bare");
    let file = File::create(&path)?;
    let block = vec![7; usize::try_from(bytes)?];
    // Blocks that are there: making a file longer would cost a commit of the file system with every sync.
    for at in (0..LOG.max(bytes)).step_by(usize::try_from(bytes)?) {
        file.write_all_at(&block, at.into())?;
    }
    file.sync_all()?;
    let (start, mut syncs, mut at) = (Instant::now(), 0.0, 0);
    while start.elapsed() < LONG {
        file.write_all_at(&block, at.into())?;
        file.sync_data()?;
        at = if at + bytes < LOG { at + bytes } else { 0 };
        syncs += 1.0;
    }
    let rate = syncs / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

/// Rates a second, and how long batches waited for their answer.
struct Level {
    commits: f64,
    commit_bytes: u32,
    batches: f64,
    events: f64,
    median: Duration,
    p99: Duration,
    /// Of the whole process for each batch: what runs' own side of this bench takes is among it.
    processor_microseconds: f64,
}

/// What was used up so far.
struct Meter {
    at: Instant,
    commits: u64,
    processor: Duration,
    written_bytes: u64,
}

impl Meter {
    async fn read(journal: &Journal) -> anyhow::Result<Self> {
        let commits = journal.commits().await?;
        Ok(Self { at: Instant::now(), commits, processor: processor_time()?, written_bytes: written_bytes()? })
    }
}

fn written_bytes() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: ")).context("wchar in /proc/self/io")?;
    Ok(written.trim().parse()?)
}

/// All threads of this process, in user space and in the kernel.
fn processor_time() -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let schedstat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += schedstat.split(' ').next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

async fn measure(journal: &Journal, runners: &mut Vec<Runner>) -> anyhow::Result<Level> {
    let before = Meter::read(journal).await?;
    let until = before.at + LONG;
    let tasks: Vec<_> = runners.drain(..).map(|runner| tokio::spawn(runner.steps(until))).collect();
    let (mut waits, mut events) = (Vec::new(), 0_u32);
    for task in tasks {
        let mut runner = task.await??;
        let done = std::mem::take(&mut runner.done);
        waits.extend(done.waits);
        events += done.events;
        runners.push(runner);
    }
    let after = Meter::read(journal).await?;
    let seconds = (after.at - before.at).as_secs_f64();
    let commits = after.commits - before.commits;
    waits.sort_unstable();
    let at = |percent: usize| waits.get(waits.len() * percent / 100).copied().unwrap_or_default();
    let batches = f64::from(u32::try_from(waits.len())?);
    Ok(Level {
        commits: f64::from(u32::try_from(commits)?) / seconds,
        commit_bytes: u32::try_from((after.written_bytes - before.written_bytes) / commits.max(1))?,
        batches: batches / seconds,
        events: f64::from(events) / seconds,
        median: at(50),
        p99: at(99),
        processor_microseconds: after.processor.saturating_sub(before.processor).as_secs_f64() * 1e6 / batches,
    })
}

/// One run as its runner drives it.
struct Runner {
    journal: Journal,
    plan: Plan,
    session: u64,
    batches: u64,
    step: u32,
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
        let mut runner = Self { journal, plan, session, batches: 0, step: 1, done: Done::default() };
        let operation = ListedOperation { name: "read".into(), definition: definition() };
        let listed = Event::ToolsListed { tool: "files".into(), listing: Listing::Listed(vec![operation]) };
        runner.say(vec![listed, request(1)]).await?;
        runner.done = Done::default();
        Ok(runner)
    }

    async fn steps(mut self, until: Instant) -> anyhow::Result<Self> {
        while Instant::now() < until {
            let call_id = format!("c{}", self.step);
            self.say(vec![response(self.step, &call_id), self.proposal(&call_id)?]).await?;
            self.step += 1;
            self.say(vec![observed(&call_id), request(self.step)]).await?;
        }
        Ok(self)
    }

    async fn say(&mut self, events: Vec<Event>) -> anyhow::Result<()> {
        self.batches += 1;
        let asked = Instant::now();
        let allowed = || Word::Judged(Judged { judgement: Judgement::Allow, opinions: Vec::new(), grants: Vec::new() });
        let proposals = events.iter().filter_map(|event| match event {
            Event::CallProposed { call_id, attempt, .. } => Some(((call_id.clone(), *attempt), allowed())),
            _ => None, // nothing else needs leave of a policy
        });
        let words: Words = proposals.collect();
        let batch = Batch { key: BatchKey { epoch: 1, session: self.session, n: self.batches }, events };
        let gate = |state: &_, events: &[Event]| {
            decide(
                state,
                events.to_vec(),
                &Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now: 0 },
            )
        };
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
    let response = ModelResponse::new(items, Finish::ToolCalls, Usage::default(), 1);
    Event::ModelResponded { step, attempt: 1, response }
}

fn observed(call_id: &str) -> Event {
    let result =
        ToolResult { is_error: false, content: "r".repeat(TEXT), truncated_from_bytes: None, artifacts: Vec::new() };
    Event::CallObserved { call_id: call_id.into(), attempt: 1, result, milliseconds: 1 }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
