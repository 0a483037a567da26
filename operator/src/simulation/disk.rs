//! The operator's journal in the simulation: production's own, over the model of a disk.

use std::cell::Cell;
use std::sync::Arc;

use belay_protocol::RunState;
use belay_protocol::event::Event;
use belay_protocol::fold::IllegalEvent;
use belay_protocol::plan::ObjectId;

use super::runner::words;
use super::{Fault, Syncing, Without, World};
use crate::agent_run::resolve::id_of;
use crate::gate::{self, Circumstances, Room, Standing};
use crate::journal::{Batch, BatchKey, Journal, JournalError};

thread_local! {
    /// The wall clock of the world that this thread plays.
    static WALL: Cell<i64> = const { Cell::new(0) };
}

pub(super) fn wall() -> i64 {
    WALL.get()
}

/// The run after a commit, and the records that it added.
type Grown = (Arc<RunState>, Vec<(u64, Event)>);

/// What became of a runner's batch.
#[derive(Debug)]
pub(super) enum Taken {
    Yes,
    /// The stream breaks; the runner comes again.
    Cut,
    /// The runner is let go.
    Refused(String),
}

impl World {
    fn id(&self) -> ObjectId {
        id_of(&self.run)
    }

    /// One append of the operator, behind what it knows: all of it, or nothing. False: the disk failed, or the machine;
    /// what it holds was read anew.
    #[expect(clippy::needless_pass_by_value, reason = "as production's journal takes them")]
    pub(super) fn append(&mut self, events: Vec<Event>) -> bool {
        let (id, seq) = (self.id(), self.state.seq);
        let struck = self.before_commit();
        let answer = self.runtime.block_on(self.journal.append(&id, seq, events.clone()));
        let taken = answer.as_ref().ok().map(|state| (Arc::clone(state), (seq + 1..).zip(events.clone()).collect()));
        self.after_commit(struck, taken);
        match answer {
            Ok(_) => true,
            Err(JournalError::Unavailable(_)) => false,
            Err(error) => panic!("the journal refuses {events:?}: {error}"),
        }
    }

    /// A batch of a runner, decided by the gate, as the run service has it taken.
    pub(super) fn take_batch(&mut self, key: BatchKey, events: Vec<Event>) -> Taken {
        if self.without == Without::EpochCheck {
            let decided = decide(&self.state, events, self.wall());
            return match decided.map(|decided| self.append(decided)) {
                Ok(true) => Taken::Yes,
                Ok(false) => Taken::Cut,
                Err(error) => Taken::Refused(error.to_string()),
            };
        }
        let uid = self.id().uid;
        let struck = self.before_commit();
        let batch = Batch { key, events };
        let wall = self.wall();
        let decide = |state: &RunState, events: &[Event]| decide(state, events.to_vec(), wall);
        let answer = self.runtime.block_on(self.journal.append_batch(&uid, batch, decide));
        let taken = answer.as_ref().ok().map(|taken| {
            let records = taken.records.iter().map(|sealed| (sealed.record.seq, sealed.record.event.clone()));
            (Arc::clone(&taken.state), records.collect())
        });
        self.after_commit(struck, taken);
        match answer {
            Ok(_) => Taken::Yes,
            Err(JournalError::Unavailable(_) | JournalError::SessionReplaced { .. }) => Taken::Cut,
            Err(error) => Taken::Refused(error.to_string()),
        }
    }

    /// None: the epoch is not that of the journal, or the disk failed.
    pub(super) fn raise_session(&mut self, epoch: u64) -> Option<u64> {
        let uid = self.id().uid;
        let struck = self.before_commit();
        let session = self.runtime.block_on(self.journal.raise_session(&uid, epoch)).ok();
        self.after_commit(struck, None);
        session
    }

    /// The machine goes down: the operator, and what its disk had not synced.
    pub(super) fn power_cut(&mut self) {
        self.note("the power goes out");
        self.disk.cut_power();
        self.crash_operator();
    }

    /// A process that knows nothing reads what the disk holds, and keeps any older one from writing.
    pub(super) fn open_journal(&mut self) {
        self.leaders += 1;
        self.journal = self.runtime.block_on(Journal::on_disk(&self.disk, wall));
        let raised = self.runtime.block_on(self.journal.raise_fence("lease", self.leaders));
        assert!(raised.is_ok(), "{raised:?}");
        self.read();
    }

    pub(super) fn before_commit(&mut self) -> Option<Fault> {
        WALL.set(self.wall());
        if self.without == Without::Sync {
            self.disk.next_sync(Syncing::Lies);
        }
        let late = self.rng.chance(2);
        let struck = self.pending.take_if(|fault| matches!(fault, Fault::PowerCut | Fault::SyncFails));
        if struck.is_some() && self.without != Without::Sync {
            self.disk.next_sync(if late { Syncing::FailsLate } else { Syncing::FailsEarly });
        }
        struck
    }

    /// `taken`: the state and the records that the journal answered with.
    pub(super) fn after_commit(&mut self, struck: Option<Fault>, taken: Option<Grown>) {
        // A commit that was never tried leaves nothing behind for the next one.
        self.disk.next_sync(Syncing::Works);
        match struck {
            Some(Fault::PowerCut) => self.power_cut(),
            Some(fault) => {
                self.note(format!("{fault:?}"));
                self.read();
            }
            None => {
                if let Some((state, records)) = taken {
                    // A batch that is already held is answered with records that are known.
                    let known = u64::try_from(self.records.len()).unwrap();
                    self.records.extend(records.into_iter().filter(|(seq, _)| *seq > known));
                    self.state = state;
                }
            }
        }
        assert_eq!(self.state.seq, u64::try_from(self.records.len()).unwrap(), "state and records part");
    }

    /// All that the journal holds, as somebody reads it who knows nothing of it.
    fn read(&mut self) {
        let uid = self.id().uid;
        let records = self.runtime.block_on(self.journal.records(&uid, 1)).unwrap();
        self.records = records.into_iter().map(|sealed| (sealed.record.seq, sealed.record.event)).collect();
        self.state = self.runtime.block_on(self.journal.state(&uid)).unwrap().unwrap_or_default();
    }
}

fn decide(state: &RunState, events: Vec<Event>, wall: i64) -> Result<Vec<Event>, IllegalEvent> {
    let words = words(&events);
    let now = wall.max(state.updated_at);
    gate::decide(state, events, &Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now })
}
