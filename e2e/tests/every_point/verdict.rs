//! What came of a disturbed run, against the undisturbed one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use belay_e2e::chaos::effects;
use belay_protocol::Event;
use belay_protocol::export::verify;
use belay_protocol::transcript::{Transcript, Turn};
use serde_json::Value;

use super::world::Outcome;

/// What is the same of every run that is right, whatever happened to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Essence {
    phase: Value,
    output: Value,
    transcript: Vec<Turn>,
    /// How often each operation had its effect: calls with one key have it once.
    effects: BTreeMap<(String, Option<String>), usize>,
}

/// What was found about a run besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Questions to people what became of a call.
    pub unknowns: usize,
}

/// Holds `outcome` against what must be true of every run, and against the undisturbed one's essence.
pub fn judge(outcome: &Outcome, undisturbed: Option<&Essence>) -> Result<(Essence, Account)> {
    let text = std::str::from_utf8(&outcome.export)?;
    let verified =
        verify(&outcome.export).map_err(|fault| anyhow::anyhow!("the journal does not verify: {fault:?}"))?;
    let events = effects::events(text)?;
    effects::compare(effects::permits(&events), &outcome.calls)?;
    let events: Vec<Event> = events.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    let history = || events.iter().map(Event::name).collect::<Vec<_>>().join(" ");
    let essence = essence(outcome, &events);
    if let Some(undisturbed) = undisturbed {
        ensure!(
            &essence == undisturbed,
            "another end than undisturbed\nstatus: {}\n{essence:#?}\nundisturbed: {undisturbed:#?}\njournal: {}",
            outcome.status,
            history()
        );
    }
    repeats(&events, &outcome.model_steps).with_context(history)?;
    ensure!(verified.state.asks.is_empty() && verified.state.end.is_some(), "questions are left open: {}", history());
    let head = outcome.status["journal"]["seq"].as_u64().unwrap_or_default();
    ensure!(head <= verified.head.seq, "status names record {head}, the journal ends at {}", verified.head.seq);
    let asked = events.iter().filter(|event| matches!(event, Event::AskOpened { .. })).count();
    Ok((essence, Account { unknowns: asked }))
}

fn essence(outcome: &Outcome, events: &[Event]) -> Essence {
    let mut transcript = Transcript::default();
    for event in events {
        transcript.apply(event);
    }
    let mut once = BTreeSet::new();
    let mut effects = BTreeMap::new();
    for call in &outcome.calls {
        let repeated = call.key.as_ref().is_some_and(|key| !once.insert(key.clone()));
        *effects.entry((call.name.clone(), call.id.clone())).or_default() += usize::from(!repeated);
    }
    Essence {
        phase: outcome.status["phase"].clone(),
        output: outcome.status["output"].clone(),
        transcript: transcript.turns().to_vec(),
        effects,
    }
}

/// Each request that arrived was journaled before, so that none was sent once its answer was recorded: after a
/// recorded answer the fold takes no request for that step any more.
fn repeats(events: &[Event], arrived: &[u32]) -> Result<()> {
    let mut journaled: BTreeMap<u32, usize> = BTreeMap::new();
    for event in events {
        if let Event::ModelRequested { step, .. } = event {
            *journaled.entry(*step).or_default() += 1;
        }
    }
    let mut counted: BTreeMap<u32, usize> = BTreeMap::new();
    for step in arrived {
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
