//! Runs that wait or go on: what status says of them, and when to look again.

use std::sync::Arc;
use std::time::Duration;

use belay_crds::{AgentRun, Phase};
use belay_protocol::event::Event;
use belay_protocol::fold::RunState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::controller::Action;
use tokio::time::Instant;

use super::AgentRuns;
use super::adopt::DOUBT_EVERY;
use super::drift::DriftSeen;
use super::observe::Sight;
use super::plan::{BACK_AFTER, CANCEL_GRACE, Follow, LAST_WORDS_MAX, SILENT_MAX, Wait, quarantine, waiting_since};
use super::status::{Facts, Stand, Witness, fold, is_news};
use crate::controller::Failure;
use crate::pod_view::PodView;
use crate::quota::LONG_WAIT;

/// What was just journaled is acted on at once, in the next pass.
pub(super) const SOON: Duration = Duration::from_millis(20);
/// Looks that nothing else asks for.
const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// So that a deadline is over when it is looked at.
const MOMENT: Duration = Duration::from_millis(50);

impl AgentRuns {
    /// It holds no slot while it cannot start.
    pub(super) async fn wait(&self, run: &AgentRun, sight: &Sight, wait: Wait) -> Result<Action, Failure> {
        if sight.state.is_none() {
            self.leave_lobby(&sight.id.uid).await;
        }
        self.publish(run, sight, &Stand::pending(wait)).await?;
        Ok(Action::requeue(self.wait_left(run, sight).min(LOOK_AGAIN)))
    }

    /// 1. A runner that said Hello makes place for the next pod; a run that waits without one holds no slot. 2. Status, if it
    ///    has news or progress is due. 3. Come back at the next deadline.
    pub(super) async fn follow(&self, run: &AgentRun, sight: &Sight, follow: Follow) -> Result<Action, Failure> {
        let Some(state) = sight.state.as_deref() else { return Ok(Action::await_change()) };
        self.clear_old_pods(sight).await?;
        Box::pin(self.doubt_tools(sight, state)).await;
        let claimed = state.live_epoch().is_some_and(|epoch| epoch.claim.is_some());
        if claimed && self.lobby.started(&sight.id.uid) {
            self.wake_next().await;
        }
        if state.live_epoch().is_none() && matches!(follow, Follow::Waiting(_)) {
            self.leave_lobby(&sight.id.uid).await;
        }
        let cancelling = follow == Follow::Cancelling;
        let pause = match &follow {
            Follow::Backoff(pause) => Some(*pause),
            Follow::Starting | Follow::Waiting(_) | Follow::Running | Follow::Held { .. } | Follow::Cancelling => None,
        };
        let stand = Stand::following(follow, state).after(sight.memory.last_words.as_deref());
        self.publish(run, sight, &stand).await?;

        let mut next = if claimed {
            active_left(sight, state).min(self.refresh_left(&sight.id.uid))
        } else {
            self.wait_left(run, sight)
        };
        if state.live_epoch().is_some() && !claimed {
            next = next.min(SILENT_MAX);
        }
        let waiting = matches!(stand.phase, Phase::Waiting);
        // One that is over waits for a call that is under way, whose end is told.
        for open in state.asks.values().filter(|open| !self.is_over(state, &open.ask)) {
            next = next.min(self.until(open.ask.expires_at, 0));
        }
        if claimed && waiting {
            next = next.min(left(self.times.wait_grace, sight.memory.idle_since));
        }
        if let Some(pause) = pause {
            next = next.min(pause);
        }
        for undead in &sight.undead {
            next = next.min(quarantine(state, self.times).saturating_sub(undead.waited) + MOMENT);
        }
        next = match *sight.drift {
            DriftSeen::Unseen { .. } => next.min(left(DOUBT_EVERY, sight.memory.doubted_at)),
            DriftSeen::Back { .. } => next.min(left(BACK_AFTER, sight.memory.resting_since)),
            DriftSeen::None | DriftSeen::Waits { .. } | DriftSeen::Accepted { .. } => next,
        };
        if let Some(waits) = sight.model_wait.as_ref().filter(|waits| waits.time < LONG_WAIT) {
            next = next.min(LONG_WAIT.saturating_sub(waits.time) + MOMENT);
        }
        if cancelling {
            next = next.min(left(CANCEL_GRACE, sight.memory.cancelling_since));
        }
        if matches!(sight.pod, PodView::Ended(_)) {
            next = next.min(LAST_WORDS_MAX);
        }
        Ok(Action::requeue(next.clamp(Duration::from_millis(200), LOOK_AGAIN)))
    }

    /// From now on nothing more is permitted; what is in flight has the grace time.
    pub(super) async fn request_cancel(&self, run: &AgentRun, sight: &Sight) -> Result<Action, Failure> {
        self.append(sight, vec![Event::CancelRequested {}]).await?;
        let told = self.sessions.cancel(&sight.id.uid, CANCEL_GRACE);
        tracing::info!(namespace = sight.id.namespace, name = sight.id.name, told, "cancel requested");
        let sight = self.observe(run).await?;
        if let Some(state) = sight.state.as_deref() {
            self.wake_children(&sight.id.namespace, state).await;
        }
        self.follow(run, &sight, Follow::Cancelling).await
    }

    /// Writes status if it says anything new, or if progress is due and moved.
    pub(super) async fn publish(&self, run: &AgentRun, sight: &Sight, stand: &Stand) -> Result<(), Failure> {
        let state = sight.state.as_deref();
        let head = if state.is_some() { self.journal_head(run).await? } else { None };
        let facts = Facts {
            run,
            state,
            witness: head.map(|head| Witness { journal_id: self.journal.id(), head }),
            pod_uid: sight.made_pod().map(|pod| pod.uid.clone()),
            stand,
            now: Time(self.clock.now()),
        };
        let (status, flip) = fold(&facts);
        let before = run.status.clone().unwrap_or_default();
        let now = Instant::now();
        let due = self.memories.change(&sight.id.uid, |memory| memory.refresh_due(now) <= now);
        if due {
            self.memories.change(&sight.id.uid, |memory| memory.refreshed(now));
        }
        let progressed = due && (before.usage != status.usage || before.conditions != status.conditions);
        if !is_news(&before, &status) && !progressed {
            return Ok(());
        }
        self.writes.apply_status(run, &status).await?;
        self.writes.announce(run, flip, &stand.verdict()).await;
        self.count_grants(sight).await;
        Ok(())
    }

    /// Appends behind the head that was looked at; one that moved meanwhile is a lost race.
    pub(super) async fn append(&self, sight: &Sight, events: Vec<Event>) -> Result<Arc<RunState>, Failure> {
        let seq = sight.state.as_ref().map_or(0, |state| state.seq);
        let written = events.clone();
        let state =
            self.journal.append(&sight.id, seq, events).await.map_err(Failure::journal("writing the journal"))?;
        self.quotas.note(&sight.id.uid, &written);
        Ok(state)
    }

    fn wait_left(&self, run: &AgentRun, sight: &Sight) -> Duration {
        // No deadline ends that wait.
        if sight.state.as_deref().is_some_and(RunState::has_child_at_work) {
            return LOOK_AGAIN;
        }
        self.until(waiting_since(run, sight.state.as_deref()), u64::from(sight.limits.wait_seconds))
    }

    /// What is left of `seconds` that began at `since` (milliseconds since the Unix epoch), and a moment.
    fn until(&self, since: i64, seconds: u64) -> Duration {
        left_until(self.clock.milliseconds(), since, seconds) + MOMENT
    }

    fn refresh_left(&self, uid: &str) -> Duration {
        let now = Instant::now();
        self.memories.change(uid, |memory| memory.refresh_due(now)).saturating_duration_since(now)
    }
}

/// What is left of `time` that began at `since`; all of it where that is not known yet.
fn left(time: Duration, since: Option<Instant>) -> Duration {
    time.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed())) + MOMENT
}

/// What is left of the run's active time.
fn active_left(sight: &Sight, state: &RunState) -> Duration {
    let limit = Duration::from_secs(u64::from(sight.limits.active_seconds));
    limit.saturating_sub(Duration::from_millis(state.active_milliseconds) + sight.active_for) + MOMENT
}

/// How long from `now` to `seconds` after `since`, which may lie ahead; both in milliseconds since the Unix epoch.
fn left_until(now: i64, since: i64, seconds: u64) -> Duration {
    let seconds = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
    let left = since.saturating_add(seconds).saturating_sub(now);
    Duration::from_millis(u64::try_from(left).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_lies_ahead_is_waited_for_and_not_polled() {
        let tomorrow = 86_400_000;
        assert_eq!(left_until(0, tomorrow, 0), Duration::from_hours(24), "when an Approval expires");
        assert_eq!(left_until(5_000, 0, 60), Duration::from_secs(55), "what is left of a wait");
        assert_eq!(left_until(tomorrow, 0, 60), Duration::ZERO);
        assert_eq!(left_until(0, i64::MAX, u64::MAX).as_secs(), 9_223_372_036_854_775);
    }
}
