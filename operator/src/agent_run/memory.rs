//! What this process remembers of a run besides journal and API server. All of it may be lost: a restart only
//! waits a little longer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use belay_crds::JournalRef;
use belay_protocol::RunState;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Progress is refreshed after 10 s, then at doubling intervals up to 5 min.
const REFRESH_FIRST: Duration = Duration::from_secs(10);
const REFRESH_MOST: Duration = Duration::from_mins(5);

/// One run's memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub pod: Option<MadePod>,
    pub cancelling_since: Option<Instant>,
    pub pod_ended_since: Option<Instant>,
    /// Since when no epoch lives, and since when a live one only waits.
    pub resting_since: Option<Instant>,
    pub idle_since: Option<Instant>,
    /// Ended epochs that may still act, and since when this process watches them.
    pub undead_since: BTreeMap<u64, Instant>,
    active: Option<Active>,
    /// The newest witness of status that was found in the journal.
    pub witness: Option<JournalRef>,
    /// When Tools were last doubted of which this run's runner saw other definitions.
    pub doubted_at: Option<Instant>,
    /// How the newest runner was lost.
    pub last_words: Option<String>,
    refresh: Option<Refresh>,
}

/// The pod that this process created or found under the journaled name.
#[derive(Clone, Debug, PartialEq)]
pub struct MadePod {
    pub epoch: u64,
    pub uid: String,
    pub at: Instant,
}

/// The time of a claimed epoch: what had passed by the wall clock when this process first saw it, and from then
/// on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Active {
    epoch: u64,
    before: Duration,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Refresh {
    due: Instant,
    interval: Duration,
}

impl Memory {
    /// How long the live epoch has been claimed; `now` is the wall clock's. A clock that is set forward or back
    /// while this process looks changes nothing.
    pub fn active_for(&mut self, state: Option<&RunState>, now: i64) -> Duration {
        let epoch = state.and_then(RunState::live_epoch);
        let Some((epoch, claim)) = epoch.and_then(|epoch| Some((epoch.number, epoch.claim.as_ref()?))) else {
            self.active = None;
            return Duration::ZERO;
        };
        let active = self.active.filter(|active| active.epoch == epoch).unwrap_or_else(|| {
            let before = u64::try_from(now.saturating_sub(claim.at)).unwrap_or_default();
            Active { epoch, before: Duration::from_millis(before), since: Instant::now() }
        });
        self.active = Some(active);
        active.before + active.since.elapsed()
    }

    /// When the progress columns are due; the first time counts from now.
    pub fn refresh_due(&mut self, now: Instant) -> Instant {
        self.refresh.get_or_insert(Refresh { due: now + REFRESH_FIRST, interval: REFRESH_FIRST }).due
    }

    /// They were looked at: the next time is twice as far.
    pub fn refreshed(&mut self, now: Instant) {
        let interval = self.refresh.map_or(REFRESH_FIRST, |refresh| refresh.interval.saturating_mul(2));
        let interval = interval.min(REFRESH_MOST);
        self.refresh = Some(Refresh { due: now + interval, interval });
    }
}

/// Memories by run uid. Cheap to clone.
#[derive(Clone, Default)]
pub struct Memories(Arc<Mutex<HashMap<String, Memory>>>);

impl Memories {
    #[must_use]
    pub fn get(&self, uid: &str) -> Memory {
        self.0.lock().get(uid).cloned().unwrap_or_default()
    }

    /// Changes the run's memory and answers what `change` does.
    pub fn change<T>(&self, uid: &str, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(self.0.lock().entry(uid.to_owned()).or_default())
    }

    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_does_not_change_how_long_a_run_was_active() {
        let state = crate::fixtures::in_flight();
        let claimed = state.live_epoch().unwrap().claim.as_ref().unwrap().at;
        let mut memory = Memory::default();
        assert_eq!(memory.active_for(Some(&state), claimed + 2_000), Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        for set in [claimed - 86_400_000, claimed + 86_400_000] {
            assert_eq!(memory.active_for(Some(&state), set), Duration::from_secs(5));
        }
        assert_eq!(memory.active_for(None, 0), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_refreshed_after_ten_seconds_then_at_doubling_intervals_up_to_five_minutes() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let mut waits = Vec::new();
        let mut now = start;
        for _ in 0..7 {
            let due = memory.refresh_due(now);
            waits.push(due.duration_since(now).as_secs());
            now = due;
            memory.refreshed(now);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    }
}
