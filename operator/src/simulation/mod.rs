//! One run in a world where everything may go wrong, step by step, chosen by a seed: production's journal over the model
//! of a disk, its fold, gate and decisions, against simulated processes, pods, people and clocks. No thread, no socket,
//! no real time.
//!
//! `BELAY_SEEDS=5000` tries more seeds, `BELAY_SEED=7` one alone, with its steps printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod children;
mod disk;
mod operator;
mod runner;
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use belay_crds::AgentRun;
use belay_protocol::event::{Answer, Approver, Ask, AskPurpose, Event};
use belay_protocol::plan::{Effects, Limits, PlanAgent, PlanOperation, PlanTool};
use belay_protocol::subagent::{OPERATION, destination};
use belay_protocol::{PERMIT_VALID_MILLISECONDS, Plan, RunState};

use self::children::Made;
use self::operator::Memory;
use self::runner::{Phase, Process};
use crate::fixtures::{CREATED_AT, plan, run};
use crate::journal::Journal;
use crate::journal::model::{Disk, Syncing};

/// The call that needs people's yes.
const ASKED: &str = "c4";
/// The call that a run of another Agent carries out.
const DELEGATED: &str = "c7";

/// A generator that is the same everywhere and for ever (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

/// Which rule of production is taken away, to see that its absence is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    Quarantine,
    EpochCheck,
    /// The disk acknowledges what it never wrote.
    Sync,
}

/// A pod as the API server shows it; its process may tell another story.
#[derive(Clone, Debug)]
struct Pod {
    name: String,
    process: Option<usize>,
    reported_ended: bool,
    deleting: bool,
}

#[derive(Clone, Debug)]
struct Approval {
    uid: String,
    purpose: AskPurpose,
    answer: Option<Answer>,
}

/// A call that left a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    call_id: String,
    attempt: u32,
    epoch: u64,
    /// Records that the journal held by then.
    after: usize,
}

/// One thing that goes wrong, at a chosen point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    RunnerDies,
    OperatorDies,
    BothDie,
    PodDeleted,
    /// The object vanishes, the process goes on.
    PodForcedAway,
    /// The object vanishes, the process stands still and comes back at the end.
    NodeCutOff,
    ConnectionReset,
    /// The next batch never arrives.
    BatchLost,
    /// The next batch is committed, and the answer to it lost.
    AnswerLost,
    /// The next pod is refused by the API server.
    PodRefused,
    /// The machine of the operator goes down in the next commit.
    PowerCut,
    /// The next sync fails; whether the rows reached the disk is open.
    SyncFails,
    ApprovalVanishes,
    ClockSet,
    /// The next pod of a child dies.
    ChildDies,
    /// Making the child is refused.
    ChildRefused,
    /// It is made, and the answer to that is lost.
    ChildAnswerLost,
    /// Somebody deletes the child.
    ChildVanishes,
}

struct World {
    rng: Rng,
    /// What is to go wrong with the next exchange of that kind.
    pending: Option<Fault>,
    without: Without,
    run: AgentRun,
    /// Milliseconds that really passed: what monotonic clocks and clocks of nodes show.
    now: u64,
    /// How far the operator's wall clock is off.
    skew: i64,
    runtime: tokio::runtime::Runtime,
    disk: Disk,
    /// The operator's; another one after each crash.
    journal: Journal,
    leaders: i64,
    /// What the journal answered with, and held when it was last read: after every crash.
    records: Vec<(u64, Event)>,
    state: Arc<RunState>,
    memory: Memory,
    pods: Vec<Pod>,
    processes: Vec<Process>,
    approvals: BTreeMap<String, Approval>,
    made: Vec<Made>,
    sent: Vec<Sent>,
    published: u64,
    faults: bool,
    steps: Vec<String>,
}

/// The fixture's plan with an operation that may be repeated, one that may not, and one that is another Agent.
fn the_plan() -> Plan {
    let mut plan = plan();
    let mut put = plan.tools[0].operations[0].clone();
    put.name = "put".to_owned();
    put.model_name = "github__put".to_owned();
    put.effects = Effects::Idempotent;
    plan.tools[0].operations.push(put);
    plan.tools.push(helper(&plan));
    plan.limits.tokens = Some(100_000);
    plan
}

fn helper(plan: &Plan) -> PlanTool {
    let limits = Limits { tokens: Some(1_000), ..plan.limits };
    let agent = PlanAgent { name: "helper".to_owned(), description: String::new(), limits, priced: false };
    let operation = PlanOperation {
        name: OPERATION.to_owned(),
        model_name: "helper__run".to_owned(),
        definition: agent.definition().unwrap(),
        effects: Effects::default(),
        gone: false,
    };
    PlanTool {
        name: "helper".to_owned(),
        uid: "uid-helper".to_owned(),
        url: destination(&agent.name),
        operations: vec![operation],
        agent: Some(agent),
        ..plan.tools[0].clone()
    }
}

impl World {
    fn new(seed: u64, without: Without) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let disk = Disk::default();
        let journal = runtime.block_on(Journal::on_disk(&disk, disk::wall));
        let mut world = Self {
            rng: Rng(seed),
            pending: None,
            without,
            run: run("nightly", "triage"),
            now: 0,
            skew: 0,
            runtime,
            disk,
            journal,
            leaders: 0,
            records: Vec::new(),
            state: Arc::default(),
            memory: Memory::default(),
            pods: Vec::new(),
            processes: Vec::new(),
            approvals: BTreeMap::new(),
            made: Vec::new(),
            sent: Vec::new(),
            published: 0,
            faults: true,
            steps: Vec::new(),
        };
        let plan = the_plan();
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        assert!(world.append(vec![accepted]));
        world
    }

    fn wall(&self) -> i64 {
        CREATED_AT + i64::try_from(self.now).unwrap() + self.skew
    }

    fn note(&mut self, step: impl Into<String>) {
        self.steps.push(step.into());
    }

    /// Something happens.
    fn step(&mut self) {
        match self.rng.below(if self.faults { 70 } else { 45 }) {
            0..=11 => self.operate(),
            12..=31 => self.run_some_process(),
            32..=38 => {
                self.pods_move();
                self.a_child_moves();
            }
            39..=40 => self.people_speak(),
            41..=43 => self.pass(200),
            44 => self.pass(2_000),
            45 if self.rng.chance(3) => self.crash_operator(),
            46 if self.rng.chance(2) => self.kill_a_process(),
            47 if self.rng.chance(6) => self.pending = Some(Fault::PowerCut),
            48 if self.rng.chance(2) => self.freeze_or_thaw(),
            49 if self.rng.chance(6) => self.pending = Some(Fault::SyncFails),
            50 => self.force_delete_a_pod(),
            51 => self.delete_a_pod(),
            52 => self.skew += i64::try_from(self.rng.below(7_200_000)).unwrap() - 3_600_000,
            53 if self.rng.chance(40) => {
                self.note("spec.cancel");
                self.run.spec.cancel = Some(true);
            }
            54 => self.vanish_something(),
            55 => self.pass(15_000),
            56 | 57 => self.freeze_and_force_delete(),
            _ => self.pass(150),
        }
        self.check();
    }

    /// Makes this go wrong, now or with the next exchange of its kind.
    fn strike(&mut self, fault: Fault) {
        self.note(format!("{fault:?}"));
        match fault {
            Fault::RunnerDies => self.processes.iter_mut().for_each(|process| process.alive = false),
            Fault::OperatorDies => self.crash_operator(),
            Fault::BothDie => {
                self.processes.iter_mut().for_each(|process| process.alive = false);
                self.crash_operator();
            }
            Fault::PodDeleted => self.delete_a_pod(),
            Fault::PodForcedAway => self.force_delete_a_pod(),
            Fault::NodeCutOff => self.freeze_and_force_delete(),
            Fault::ConnectionReset => self.processes.iter_mut().for_each(|process| process.connected = false),
            Fault::BatchLost
            | Fault::AnswerLost
            | Fault::PodRefused
            | Fault::PowerCut
            | Fault::SyncFails
            | Fault::ChildDies
            | Fault::ChildRefused
            | Fault::ChildAnswerLost => self.pending = Some(fault),
            Fault::ChildVanishes => self.vanish_a_child(),
            Fault::ApprovalVanishes => drop(self.approvals.pop_first()),
            Fault::ClockSet => self.skew += 3_600_000,
        }
    }

    fn strikes(&mut self, fault: Fault) -> bool {
        self.pending.take_if(|pending| *pending == fault).is_some()
    }

    fn pass(&mut self, most: u64) {
        self.now += 1 + self.rng.below(most);
    }

    fn some_process(&mut self) -> Option<usize> {
        let alive: Vec<usize> = (0..self.processes.len()).filter(|at| self.processes[*at].alive).collect();
        let count = u64::try_from(alive.len()).unwrap();
        (count > 0).then(|| alive[usize::try_from(self.rng.below(count)).unwrap()])
    }

    fn kill_a_process(&mut self) {
        // A frozen one is on a node that nobody reaches.
        if let Some(at) = self.some_process().filter(|at| !self.processes[*at].frozen) {
            self.note(format!("process {at} dies"));
            self.processes[at].alive = false;
        }
    }

    fn freeze_or_thaw(&mut self) {
        // One whose pod nobody sees any more stays as it is until the end.
        let seen = |at: &usize, pods: &[Pod]| pods.iter().any(|pod| pod.process == Some(*at));
        if let Some(at) = self.some_process().filter(|at| seen(at, &self.pods)) {
            self.processes[at].frozen = !self.processes[at].frozen;
            self.note(format!("process {at} frozen: {}", self.processes[at].frozen));
        }
    }

    /// A node that is cut off: nobody hears of its process, which is there all the same.
    fn freeze_and_force_delete(&mut self) {
        if let Some(process) = self.pods.last().and_then(|pod| pod.process) {
            self.processes[process].frozen = true;
            self.force_delete_a_pod();
        }
    }

    /// The object goes; whatever runs goes on.
    fn force_delete_a_pod(&mut self) {
        if let Some(pod) = self.pods.pop() {
            self.note(format!("{} is deleted by force", pod.name));
        }
    }

    fn delete_a_pod(&mut self) {
        if let Some(pod) = self.pods.last_mut() {
            pod.deleting = true;
            let name = pod.name.clone();
            self.note(format!("{name} is deleted"));
        }
    }

    fn vanish_something(&mut self) {
        if !self.made.is_empty() && self.rng.chance(8) {
            self.vanish_a_child();
        }
        if self.rng.chance(4)
            && let Some((name, _)) = self.approvals.pop_first()
        {
            self.note(format!("approval {name} vanishes"));
        }
    }

    /// The kubelet: starts processes, ends those of deleted pods, and reports what ended.
    fn pods_move(&mut self) {
        for at in 0..self.pods.len() {
            let pod = self.pods[at].clone();
            match pod.process {
                None if !pod.deleting => {
                    self.pods[at].process = Some(self.processes.len());
                    self.note(format!("process {} starts in {}", self.processes.len(), pod.name));
                    self.processes.push(Process::new(pod.name));
                }
                None => self.pods[at].reported_ended = true,
                Some(process) => {
                    if pod.deleting {
                        self.processes[process].alive = false;
                    }
                    self.pods[at].reported_ended |= !self.processes[process].alive;
                }
            }
        }
        // A deleted pod goes once its end was reported, and was there to be seen.
        if self.rng.chance(3) {
            self.pods.retain(|pod| !(pod.deleting && pod.reported_ended));
        }
    }

    fn people_speak(&mut self) {
        let choice = self.rng.below(8);
        if let Some(approval) = self.approvals.values_mut().find(|approval| approval.answer.is_none()) {
            let by = || "ada".to_owned();
            approval.answer = Some(match (approval.purpose, choice) {
                (AskPurpose::Call, 0..=5) => {
                    Answer::Allowed { by: vec![Approver { policy: "careful".to_owned(), by: by() }] }
                }
                (AskPurpose::Question, 0..=3) => Answer::Answered {
                    content: Some("{}".to_owned()),
                    by: vec![Approver { policy: "careful".to_owned(), by: by() }],
                },
                (AskPurpose::Question, 4) => Answer::Misfit { why: "no JSON".to_owned() },
                (AskPurpose::Question, 5) => Answer::Expired {},
                (AskPurpose::Call | AskPurpose::Question, _) => Answer::Denied { by: by(), reason: String::new() },
                (AskPurpose::Unknown, 0..=4) => Answer::Retry { by: by() },
                (AskPurpose::Unknown, 5 | 6) => Answer::Happened { result: "done".to_owned(), by: by() },
                (AskPurpose::Unknown, _) => Answer::End { by: by(), reason: String::new() },
            });
        }
    }

    /// What has to hold after every step.
    fn check(&mut self) {
        let valid = u64::from(PERMIT_VALID_MILLISECONDS);
        let usable = |process: &Process| match process.phase {
            Phase::Holding { proposed_at, .. } => self.now < proposed_at + valid,
            _ => false,
        };
        let mut epochs: Vec<u64> =
            self.processes.iter().filter(|p| p.alive && usable(p)).filter_map(|p| p.epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        assert!(epochs.len() < 2, "I1: epochs {epochs:?} hold permits at one time");
        for (at, one) in self.sent.iter().enumerate() {
            let permitted = self.records.iter().any(|(_, event)| {
                matches!(event, Event::CallDecided { call_id, attempt, verdict: belay_protocol::event::Verdict::Allowed { .. }, .. }
                    if *call_id == one.call_id && *attempt == one.attempt)
            });
            assert!(permitted, "I2: {one:?} was sent without a durable permit");
            let dead = (self.records.iter().take(one.after))
                .any(|(_, event)| matches!(event, Event::EpochDead { epoch, .. } if *epoch == one.epoch));
            assert!(!dead, "I1: {one:?} was sent by an epoch that counts as dead");
            let again = self.sent[at + 1..].iter().any(|o| (&o.call_id, o.attempt) == (&one.call_id, one.attempt));
            assert!(!again, "I2: {one:?} was sent twice");
            assert!(one.call_id != ASKED || self.was_allowed(one), "I3: {one:?} was sent and nobody allowed it");
        }
        assert!(self.published <= self.state.seq, "I8: status was ahead of the journal");
        self.published = self.state.seq;
        let gap_free = self.records.iter().zip(1..).all(|((seq, _), due)| *seq == due);
        assert!(gap_free, "I10: a watcher sees a gap");
        self.check_children();
    }

    /// Whether people had said yes to that very attempt when it was sent, or answered the question that the attempt
    /// before it came back with.
    fn was_allowed(&self, sent: &Sent) -> bool {
        let before = &self.records[..sent.after];
        let asks = before.iter().filter_map(|(_, event)| match event {
            Event::AskOpened { ask } if ask.call_id == sent.call_id => Some(ask),
            _ => None,
        });
        let allowed = |ask: &Ask| {
            before.iter().any(|(_, event)| match event {
                Event::AskSettled { name, answer: Answer::Allowed { .. } } => {
                    *name == ask.name && ask.attempt == sent.attempt
                }
                Event::AskSettled { name, answer: Answer::Answered { .. } } => {
                    *name == ask.name && ask.attempt + 1 == sent.attempt
                }
                _ => false,
            })
        };
        asks.into_iter().any(allowed)
    }

    /// What has to hold at the end, when nothing more goes wrong: the run ends, or waits for people who are asked.
    fn settle(&mut self) {
        self.faults = false;
        self.note("no more faults");
        for _ in 0..self.rng.below(2) * 600 {
            self.step();
        }
        for process in &mut self.processes {
            process.frozen = false;
        }
        for _ in 0..6_000 {
            self.step();
            self.now += 20;
            if self.state.end.is_some() {
                break;
            }
        }
        assert!(self.state.end.is_some(), "the run neither ends nor says why: {:?}", self.state);
        let end = self.state.end.clone();
        for _ in 0..50 {
            self.step();
        }
        for _ in 0..2_000 {
            if self.children_are_over() {
                break;
            }
            self.step();
        }
        assert!(self.children_are_over(), "a child outlives its parent");
        assert_eq!(self.state.end, end, "I6: terminal is terminal");
        let (state, records) = (Arc::clone(&self.state), self.records.clone());
        self.power_cut();
        assert!(self.state == state && self.records == records, "I4: the disk holds all of it, and it replays");
    }
}
