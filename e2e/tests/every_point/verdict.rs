//! What came of a disturbed run, against the undisturbed one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use belay_e2e::chaos::effects;
use belay_protocol::Event;
use belay_protocol::cost::Usage;
use belay_protocol::export::{Verified, verify};
use belay_protocol::transcript::{Transcript, Turn};
use serde_json::Value;

use super::world::{Outcome, Ran};

/// What is the same of every run that is right, whatever happened to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Essence {
    run: Course,
    children: Vec<Course>,
    /// How often each operation had its effect: calls with one key have it once.
    effects: BTreeMap<(String, Option<String>), usize>,
}

/// Of one run.
#[derive(Clone, Debug, PartialEq)]
struct Course {
    phase: Value,
    output: Value,
    transcript: Vec<Turn>,
}

/// What was found about a run besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Questions to people what became of a call.
    pub unknowns: usize,
}

/// A run as its journal tells it.
struct Told<'a> {
    ran: &'a Ran,
    verified: Verified,
    permits: Vec<effects::Permitted>,
    events: Vec<Event>,
}

impl Essence {
    /// Of the run, and of those that it started.
    pub fn outputs(&self) -> Vec<&Value> {
        std::iter::once(&self.run).chain(&self.children).map(|course| &course.output).collect()
    }
}

/// Holds `outcome` against what must be true of every run, and against the undisturbed one's essence.
pub fn judge(outcome: &Outcome, undisturbed: Option<&Essence>) -> Result<(Essence, Account)> {
    let run = Told::read(&outcome.run)?;
    let children = outcome.children.iter().map(Told::read).collect::<Result<Vec<_>>>()?;
    let all = || std::iter::once(&run).chain(&children);
    let history = || all().map(Told::history).collect::<Vec<_>>().join("\n");
    effects::compare(all().flat_map(|told| told.permits.clone()).collect(), &outcome.calls)?;
    let essence =
        Essence { run: run.course(), children: children.iter().map(Told::course).collect(), effects: had(outcome) };
    if let Some(undisturbed) = undisturbed {
        ensure!(
            &essence == undisturbed,
            "another end than undisturbed\nstatus: {}\n{essence:#?}\nundisturbed: {undisturbed:#?}\njournal: {}",
            outcome.run.status,
            history()
        );
    }
    for told in all() {
        told.repeats(&outcome.model_steps).and_then(|()| told.is_at_rest()).with_context(history)?;
    }
    run.started(&children).with_context(history)?;
    let asked = all().flat_map(|told| &told.events).filter(|event| matches!(event, Event::AskOpened { .. })).count();
    Ok((essence, Account { unknowns: asked }))
}

fn had(outcome: &Outcome) -> BTreeMap<(String, Option<String>), usize> {
    let mut once = BTreeSet::new();
    let mut effects = BTreeMap::new();
    for call in &outcome.calls {
        let repeated = call.key.as_ref().is_some_and(|key| !once.insert(key.clone()));
        *effects.entry((call.name.clone(), call.id.clone())).or_default() += usize::from(!repeated);
    }
    effects
}

impl<'a> Told<'a> {
    fn read(ran: &'a Ran) -> Result<Self> {
        let verified = verify(&ran.export)
            .map_err(|fault| anyhow::anyhow!("the journal of {} does not verify: {fault:?}", ran.name))?;
        let events = effects::events(std::str::from_utf8(&ran.export)?)?;
        let permits = effects::permits(&events);
        let events = events.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
        Ok(Self { ran, verified, permits, events })
    }

    fn history(&self) -> String {
        let names: Vec<&str> = self.events.iter().map(Event::name).collect();
        format!("{}: {}", self.ran.name, names.join(" "))
    }

    fn course(&self) -> Course {
        let mut transcript = Transcript::default();
        for event in &self.events {
            transcript.apply(event);
        }
        let text = |field: &str| self.ran.status[field].clone();
        // An answer that broke off behind its last word is taken, without the counts that come after it.
        let uncounted = |turn: &Turn| Turn { usage: Usage::default(), ..turn.clone() };
        let transcript = transcript.turns().iter().map(uncounted).collect();
        Course { phase: text("phase"), output: text("output"), transcript }
    }

    /// Each request that arrived was journaled before, so that none was sent once its answer was recorded: after a
    /// recorded answer the fold takes no request for that step any more.
    fn repeats(&self, arrived: &[(String, u32)]) -> Result<()> {
        let model = self.verified.state.plan.as_ref().map(|plan| plan.model.model.as_str());
        let mut journaled: BTreeMap<u32, usize> = BTreeMap::new();
        for event in &self.events {
            if let Event::ModelRequested { step, .. } = event {
                *journaled.entry(*step).or_default() += 1;
            }
        }
        let mut counted: BTreeMap<u32, usize> = BTreeMap::new();
        for (_, step) in arrived.iter().filter(|(asked, _)| Some(asked.as_str()) == model) {
            *counted.entry(*step).or_default() += 1;
        }
        for (step, times) in counted {
            let permitted = journaled.get(&step).copied().unwrap_or_default();
            ensure!(
                times <= permitted,
                "the request of step {step} arrived {times} times and was journaled {permitted} times"
            );
        }
        Ok(())
    }

    fn is_at_rest(&self) -> Result<()> {
        let (state, name) = (&self.verified.state, &self.ran.name);
        ensure!(state.asks.is_empty() && state.end.is_some(), "questions of {name} are left open");
        let set_aside = (state.tokens_set_aside(), state.cost_set_aside());
        ensure!(state.children.is_empty() && set_aside == (0, 0), "{name} holds back {set_aside:?} for its children");
        let head = self.ran.status["journal"]["seq"].as_u64().unwrap_or_default();
        let last = self.verified.head.seq;
        ensure!(head <= last, "status of {name} names record {head}, its journal ends at {last}");
        Ok(())
    }

    /// Tokens that it used, or all that it might where an answer came without their number.
    fn used(&self) -> u64 {
        let state = &self.verified.state;
        let share = state.plan.as_ref().and_then(|plan| plan.limits.tokens).filter(|_| state.uncounted);
        state.tokens_spent().max(share.unwrap_or_default())
    }

    /// Each AgentRun but this one is of a call of this one, which was opened, made and ended once and charged with what it
    /// used.
    fn started(&self, children: &[Told<'_>]) -> Result<()> {
        let mut steps: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for event in &self.events {
            let child = match event {
                Event::ChildOpened { child, .. } => &child.name,
                Event::ChildPosted { name, .. } | Event::ChildEnded { name, .. } => name,
                _ => continue, // nothing about children
            };
            steps.entry(child).or_default().push(event.name());
        }
        let made: Vec<&str> = children.iter().map(|child| child.ran.name.as_str()).collect();
        ensure!(steps.keys().copied().eq(made.iter().copied()), "opened {steps:?}, and made {made:?}");
        let once = ["ChildOpened", "ChildPosted", "ChildEnded"];
        ensure!(steps.values().all(|steps| *steps == once), "not each of these was started once: {steps:?}");
        let (used, charged) = (children.iter().map(Told::used).sum::<u64>(), self.verified.state.children_spent.tokens);
        ensure!(charged == used, "{charged} tokens were charged, and {used} used");
        Ok(())
    }
}
