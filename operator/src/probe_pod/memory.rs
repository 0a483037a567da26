//! What probes found, and when to ask again. Pure: time comes in.

use std::collections::HashMap;
use std::time::Duration;

use belay_protocol::Digest;
use belay_protocol::probe::ProbeReport;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Report;

/// While the answer is not a good one: again after 5 s, then at doubling intervals up to 10 min.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
const AGAIN_MOST: Duration = Duration::from_mins(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Reported(ProbeReport),
    /// No report; why, in words.
    Failed(String),
}

/// What to do about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A probe starts.
    Start,
    /// One is under way and will wake the object.
    Wait,
    /// Its status holds a good answer.
    Rest,
    /// This is known; ask again after the time, if any.
    Use { report: Report, again: Option<Duration> },
}

/// What the object's status already tells, and how long a good answer is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// It holds a good answer to this very question.
    pub is_ready: bool,
    /// None: until the question changes, or a run doubts it.
    pub good_for: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Entry {
    fingerprint: Digest,
    state: State,
    /// When the newest probe was started.
    began: Timestamp,
    /// Answers in a row that were not good.
    failures: u32,
}

#[derive(Clone, Debug)]
enum State {
    Running,
    Done { outcome: Outcome, at: Instant },
    Doubted,
}

/// Under which the one answer is remembered that belongs to no object.
pub const NETWORK: &str = "network";

/// By uid of the object.
#[derive(Default)]
pub struct Memory(HashMap<String, Entry>);

impl Memory {
    pub fn step(&self, uid: &str, fingerprint: Digest, known: Known, now: Instant) -> Step {
        let Some(entry) = self.0.get(uid) else {
            return if known.is_ready { Step::Rest } else { Step::Start };
        };
        if entry.fingerprint != fingerprint {
            return Step::Start;
        }
        match &entry.state {
            State::Running => Step::Wait,
            State::Doubted => Step::Start,
            State::Done { outcome, at } => {
                let good_for = if is_good(outcome) { known.good_for } else { Some(pause(entry.failures)) };
                let Some(good_for) = good_for else { return Step::Use { report: report(outcome), again: None } };
                match (*at + good_for).checked_duration_since(now) {
                    Some(left) if !left.is_zero() => Step::Use { report: report(outcome), again: Some(left) },
                    Some(_) | None => Step::Start,
                }
            }
        }
    }

    pub fn start(&mut self, uid: &str, fingerprint: Digest, began: Timestamp) {
        let failures = self.0.get(uid).filter(|e| e.fingerprint == fingerprint).map_or(0, |entry| entry.failures);
        self.0.insert(uid.to_owned(), Entry { fingerprint, state: State::Running, began, failures });
    }

    /// Forgets objects that are there no more.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|uid, _| uid == NETWORK || is_there(uid));
    }

    /// Takes an answer, unless the question has changed since it was asked.
    pub fn finish(&mut self, uid: &str, fingerprint: Digest, outcome: Outcome, now: Instant) {
        let Some(entry) = self.0.get_mut(uid).filter(|entry| entry.fingerprint == fingerprint) else { return };
        entry.failures = if is_good(&outcome) { 0 } else { entry.failures.saturating_add(1) };
        entry.state = State::Done { outcome, at: now };
    }

    /// When the probe was started whose answer is known.
    pub fn began(&self, uid: &str) -> Option<Timestamp> {
        let entry = self.0.get(uid)?;
        matches!(entry.state, State::Done { .. }).then_some(entry.began)
    }

    /// The next look asks anew; but a run that doubts makes nobody hurry whose answers are not good anyway.
    pub fn doubt(&mut self, uid: &str) {
        match self.0.get_mut(uid) {
            Some(Entry { state: State::Running, .. }) => {}
            Some(Entry { state: State::Done { outcome, .. }, .. }) if !is_good(outcome) => {}
            Some(entry) => entry.state = State::Doubted,
            None => {
                let entry = Entry {
                    fingerprint: Digest::zero(),
                    state: State::Doubted,
                    began: Timestamp::UNIX_EPOCH,
                    failures: 0,
                };
                self.0.insert(uid.to_owned(), entry);
            }
        }
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    AGAIN_FIRST.saturating_mul(1 << doublings).min(AGAIN_MOST)
}

fn report(outcome: &Outcome) -> Report {
    match outcome {
        Outcome::Reported(report) => Ok(report.clone()),
        Outcome::Failed(why) => Err(why.clone()),
    }
}

fn is_good(outcome: &Outcome) -> bool {
    use belay_protocol::probe::{Passage, Presence};
    match outcome {
        Outcome::Reported(ProbeReport::Credential(presence)) => *presence == Presence::Present,
        Outcome::Reported(ProbeReport::Tool(listing)) => listing.is_ok(),
        Outcome::Reported(ProbeReport::Network(passage)) => matches!(passage, Passage::Open | Passage::Blocked),
        Outcome::Failed(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use belay_protocol::probe::Presence;

    const UID: &str = "uid";
    const READY: Known = Known { is_ready: true, good_for: None };
    const UNREADY: Known = Known { is_ready: false, good_for: None };

    fn print(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn found(presence: Presence) -> Outcome {
        Outcome::Reported(ProbeReport::Credential(presence))
    }

    #[test]
    fn what_is_ready_rests_and_what_is_not_is_asked_for_once() {
        let mut memory = Memory::default();
        let now = Instant::now();
        assert_eq!(memory.step(UID, print("a"), READY, now), Step::Rest);
        assert_eq!(memory.step(UID, print("a"), UNREADY, now), Step::Start);
        memory.start(UID, print("a"), Timestamp::UNIX_EPOCH);
        assert_eq!(memory.step(UID, print("a"), UNREADY, now), Step::Wait);
    }

    #[test]
    fn an_answer_that_is_not_good_is_asked_for_again_at_doubling_intervals() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for seconds in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            memory.start(UID, print("a"), Timestamp::UNIX_EPOCH);
            memory.finish(UID, print("a"), found(Presence::Missing), now);
            let again = Some(Duration::from_secs(seconds));
            let report = Ok(ProbeReport::Credential(Presence::Missing));
            assert_eq!(memory.step(UID, print("a"), UNREADY, now), Step::Use { report, again });
            assert_eq!(memory.step(UID, print("a"), UNREADY, now + Duration::from_secs(seconds)), Step::Start);
        }
    }

    #[test]
    fn a_good_answer_holds_until_the_question_changes_or_a_run_doubts_it() {
        let mut memory = Memory::default();
        let now = Instant::now();
        memory.start(UID, print("a"), Timestamp::UNIX_EPOCH);
        memory.finish(UID, print("a"), found(Presence::Present), now);
        let report = Ok(ProbeReport::Credential(Presence::Present));
        let later = now + Duration::from_hours(24);
        assert_eq!(memory.step(UID, print("a"), UNREADY, later), Step::Use { report, again: None });
        assert_eq!(memory.step(UID, print("b"), UNREADY, now), Step::Start);
        memory.doubt(UID);
        assert_eq!(memory.step(UID, print("a"), READY, now), Step::Start);
    }

    #[test]
    fn a_run_that_doubts_does_not_shorten_the_pause_after_an_answer_that_is_not_good() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for _ in 0..3 {
            memory.start(UID, print("a"), Timestamp::UNIX_EPOCH);
            memory.finish(UID, print("a"), found(Presence::Missing), now);
        }
        memory.doubt(UID);
        let again = Some(Duration::from_secs(20));
        let report = Ok(ProbeReport::Credential(Presence::Missing));
        assert_eq!(memory.step(UID, print("a"), UNREADY, now), Step::Use { report, again });
    }

    #[test]
    fn what_is_gone_is_forgotten_and_the_network_is_not() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for uid in [UID, "gone", NETWORK] {
            memory.start(uid, print("a"), Timestamp::UNIX_EPOCH);
        }
        memory.doubt("gone as well");
        memory.keep(|uid| uid == UID);
        assert_eq!(memory.0.len(), 2);
        for uid in [UID, NETWORK] {
            assert_eq!(memory.step(uid, print("a"), UNREADY, now), Step::Wait, "{uid}");
        }
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_dropped() {
        let mut memory = Memory::default();
        let now = Instant::now();
        memory.start(UID, print("a"), Timestamp::UNIX_EPOCH);
        memory.start(UID, print("b"), Timestamp::UNIX_EPOCH);
        memory.finish(UID, print("a"), found(Presence::Present), now);
        assert_eq!(memory.step(UID, print("b"), UNREADY, now), Step::Wait);
    }

    #[test]
    fn a_good_answer_that_is_not_good_enough_is_asked_for_again_after_a_time() {
        let mut memory = Memory::default();
        let (now, hour) = (Instant::now(), Duration::from_hours(1));
        memory.start(UID, print("a"), Timestamp::from_second(5).unwrap());
        assert_eq!(memory.began(UID), None, "its answer is not known yet");
        memory.finish(UID, print("a"), found(Presence::Present), now);
        assert_eq!(memory.began(UID), Timestamp::from_second(5).ok());
        let known = Known { is_ready: false, good_for: Some(hour) };
        let report = Ok(ProbeReport::Credential(Presence::Present));
        assert_eq!(memory.step(UID, print("a"), known, now), Step::Use { report, again: Some(hour) });
        assert_eq!(memory.step(UID, print("a"), known, now + hour), Step::Start);
    }
}
