//! Runs that carry out the call of the run: AgentRuns that the operator made, each with a journal of its own beside that of
//! its parent, which is read as production reads it. What a child does in between is played: it asks its model once.

use std::sync::Arc;
use std::time::Duration;

use belay_crds::AgentRun;
use belay_protocol::cost::Usage;
use belay_protocol::event::{DeathProof, EndReason, EpochEnd, Event, Finish, Item, ModelResponse, Outcome, RunEnd};
use belay_protocol::fold::{ModelState, OpenChild};
use belay_protocol::{Digest, Plan, RunState};

use super::{DELEGATED, Fault, World};
use crate::agent_run::Ending;
use crate::agent_run::child_end;
use crate::agent_run::children::{ChildSeen, ChildState, build_child, end_events};
use crate::agent_run::lineage::{Lineage, lineage};
use crate::agent_run::resolve::id_of;
use crate::fixtures::plan;
use crate::gate::{ModelRequest, close};
use crate::journal::JournalError;

/// An AgentRun that the operator made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    run: AgentRun,
    /// Until somebody deletes it.
    there: bool,
}

impl World {
    fn child_journal(&self, uid: &str) -> Option<Arc<RunState>> {
        self.runtime.block_on(self.journal.state(uid)).unwrap()
    }

    pub(super) fn children_seen(&self) -> Vec<ChildSeen> {
        let see = |(name, open): (&String, &OpenChild)| {
            let seen = match &open.uid {
                None => ChildState::Unposted,
                Some(uid) => match self.child_journal(uid) {
                    Some(child) if child.end.is_some() => ChildState::Over,
                    None if !self.is_there(uid) => ChildState::Over,
                    Some(_) | None => ChildState::AtWork,
                },
            };
            ChildSeen { name: name.clone(), seen }
        };
        self.state.children.iter().map(see).collect()
    }

    fn is_there(&self, uid: &str) -> bool {
        self.made.iter().any(|made| made.there && id_of(&made.run).uid == uid)
    }

    /// Makes it, or finds the one that was made before a crash; its answer may be lost.
    pub(super) fn post_child(&mut self, name: String) {
        if self.strikes(Fault::ChildRefused) || (self.faults && self.rng.chance(5)) {
            return self.note("the child is refused");
        }
        let there = |made: &&Made| made.there && made.run.metadata.name.as_ref() == Some(&name);
        let found = self.made.iter().find(there).map(|made| id_of(&made.run).uid);
        let uid = found.unwrap_or_else(|| {
            let uid = format!("uid-{}", self.rng.next());
            let mut run = build_child(&self.run, &self.state, &self.state.children[&name]).unwrap();
            run.metadata.uid = Some(uid.clone());
            self.made.push(Made { run, there: true });
            uid
        });
        if self.strikes(Fault::ChildAnswerLost) || (self.faults && self.rng.chance(5)) {
            return self.note("the child is made, and nobody hears of it");
        }
        self.append(vec![Event::ChildPosted { name, uid }]);
    }

    pub(super) fn settle_child(&mut self, name: &str) {
        let open = self.state.children[name].clone();
        let end = match self.child_journal(open.uid.as_deref().unwrap()) {
            None => child_end::gone(&open),
            Some(child) => child_end::ended(&open, &child, child.end.as_ref().unwrap()),
        };
        let (events, seq) = (end_events(&self.state, &open, end, 1), self.state.seq);
        let released = events.iter().any(|event| matches!(event, Event::EpochEnded { .. }));
        if !self.append(events.clone()) {
            return;
        }
        if released {
            self.pods.iter_mut().for_each(|pod| pod.deleting = true);
        }
        for seq in [seq, self.state.seq] {
            let id = id_of(&self.run);
            let again = self.runtime.block_on(self.journal.append(&id, seq, events.clone()));
            assert!(
                matches!(again, Err(JournalError::Moved { .. } | JournalError::Illegal(_))),
                "it ends twice: {again:?}"
            );
        }
    }

    /// Somebody deletes one.
    pub(super) fn vanish_a_child(&mut self) {
        if let Some(made) = self.made.iter_mut().find(|made| made.there) {
            made.there = false;
            self.note("a child is deleted");
        }
    }

    /// Some child comes a step further, where its parent's journal lets it.
    pub(super) fn a_child_moves(&mut self) {
        if self.made.is_empty() {
            return;
        }
        let count = u64::try_from(self.made.len()).unwrap();
        let Made { run, there } = self.made[usize::try_from(self.rng.below(count)).unwrap()].clone();
        let (id, parent) = (id_of(&run), run.spec.parent.clone().unwrap());
        let state = self.child_journal(&id.uid);
        let lineage = lineage(&run, &parent, Some(&self.state));
        let cancelled = if there { lineage.cut_off() } else { Some("the AgentRun was deleted") };
        let events = match (state.as_deref(), cancelled) {
            (Some(state), _) if state.end.is_some() => return,
            (None, _) if !there => return,
            (state, Some(why)) => Ending::cancelled(why).events(state, Duration::ZERO),
            (None, None) if lineage == Lineage::Unnamed => return,
            (None, None) => {
                let above = lineage.above().map(|above| above.parent.clone());
                let plan = Plan { run: id.clone(), parent: above, ..plan() };
                vec![Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) }]
            }
            (Some(state), None) => self.next_of_child(state),
        };
        let names: Vec<&str> = events.iter().map(Event::name).collect();
        self.note(format!("child {}: {names:?}", id.uid));
        let struck = self.before_commit();
        let taken = self.runtime.block_on(self.journal.append(&id, state.map_or(0, |state| state.seq), events));
        assert!(matches!(taken, Ok(_) | Err(JournalError::Unavailable(_))), "{taken:?}");
        self.after_commit(struck, None);
    }

    /// Its pods may die; then its next one asks again.
    fn next_of_child(&mut self, state: &RunState) -> Vec<Event> {
        let Some(epoch) = state.live_epoch() else {
            let epoch = state.epoch.as_ref().map_or(0, |epoch| epoch.number) + 1;
            return vec![Event::EpochOpened { epoch, pod_name: format!("belay-child-{epoch}") }];
        };
        let number = epoch.number;
        if epoch.claim.is_none() {
            return vec![Event::InstanceClaimed { epoch: number, instance: "i".into(), pod_uid: "u".into() }];
        }
        if self.strikes(Fault::ChildDies) || (self.faults && self.rng.chance(6)) {
            let mut events = close(state, ModelRequest::Given, "its pod is gone");
            events.push(Event::EpochEnded { epoch: number, cause: EpochEnd::Exited, active_milliseconds: 1 });
            events.push(Event::EpochDead { epoch: number, proof: DeathProof::Reported });
            return events;
        }
        let asked =
            |step, attempt| Event::ModelRequested { step, attempt, request: Digest::zero(), reserved_tokens: 3 };
        match state.model {
            ModelState::Idle => vec![asked(1, 1)],
            ModelState::Failed { step, attempt } => vec![asked(step, attempt + 1)],
            ModelState::InFlight { step, attempt, .. } => {
                let usage = Usage { input_tokens: Some(10), output_tokens: Some(2), ..Usage::default() };
                let response = ModelResponse::new(vec![Item::Text { text: "done".into() }], Finish::Stop, usage, 1);
                let end = RunEnd { outcome: Outcome::Succeeded, reason: EndReason::Completed, message: String::new() };
                vec![Event::ModelResponded { step, attempt, response }, Event::RunEnded { end }]
            }
            ModelState::Done => unreachable!("it ended with its answer"),
        }
    }

    /// Whatever was made, one run at most carries out the call; and its parent is charged with what it used, once.
    pub(super) fn check_children(&self) {
        let told = self.records.iter().filter_map(|(_, event)| match event {
            Event::ChildEnded { name, end, .. } => Some((name.clone(), end.tokens)),
            _ => None,
        });
        let told: Vec<(String, u64)> = told.collect();
        assert_eq!(
            self.state.children_spent.tokens,
            told.iter().map(|(_, tokens)| tokens).sum::<u64>(),
            "charged otherwise"
        );
        let begun = self.begun();
        assert!(begun.len() < 2, "{DELEGATED} is carried out by {} runs", begun.len());
        if let (Some((_, tokens)), Some(child)) = (told.first(), begun.first()) {
            assert_eq!(*tokens, child.tokens_spent(), "what the child used is charged");
        }
    }

    /// Children that did anything.
    pub(super) fn begun(&self) -> Vec<Arc<RunState>> {
        let journals = self.made.iter().filter_map(|made| self.child_journal(&id_of(&made.run).uid));
        journals.filter(|state| state.plan.is_some()).collect()
    }

    pub(super) fn deleted_a_child(&self) -> bool {
        self.made.iter().any(|made| !made.there)
    }

    pub(super) fn children_are_over(&self) -> bool {
        self.begun().iter().all(|state| state.end.is_some())
    }
}
