//! What all runs of a Model share: `Model.spec.rateLimits`, and the patience that its provider asked of one of them.
//! Requests that are over it wait in the order in which they came. In memory alone: after a restart the counts begin
//! empty. Knows no streams; a [`Place`] in the line says when its turn has come.

mod line;
mod minute;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use belay_crds::ModelRateLimits;
use belay_protocol::event::{Event, FailureReason};
use belay_protocol::fold::{ModelState, RunState};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::line::HeldBy;
use self::line::{Joined, Line};

/// How long a request may take beyond its own time-out before it is taken for lost.
const OVER_MARGIN: Duration = Duration::from_mins(1);
/// How long a request waits before its run says so.
pub const LONG_WAIT: Duration = Duration::from_secs(10);
const FOREVER: Duration = Duration::from_hours(24);

/// A Model by namespace and name: as with every limit that people may change, the object's present spec counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelName {
    pub namespace: String,
    pub name: String,
}

/// Limits of one Model; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub concurrent_requests: Option<usize>,
}

impl From<&ModelRateLimits> for Rates {
    fn from(limits: &ModelRateLimits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute.and_then(|most| u64::try_from(most).ok()),
            tokens_per_minute: limits.tokens_per_minute.and_then(|most| u64::try_from(most).ok()),
            concurrent_requests: limits.concurrent_requests.and_then(|most| usize::try_from(most).ok()),
        }
    }
}

/// The limits of a Model as they are now.
pub type RatesNow = Arc<dyn Fn(&ModelName) -> Rates + Send + Sync>;

/// One attempt to ask a Model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The run's uid.
    pub run: String,
    pub of: Attempt,
    pub reserved_tokens: u64,
    /// It has ended by then, whatever became of its runner.
    pub over_within: Duration,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// `tokens`: input and output together, where the provider says so.
    Answered {
        tokens: Option<u64>,
    },
    /// The provider asked for patience; for how long, where it said so.
    Refused {
        retry_after: Option<Duration>,
    },
    Failed,
    NeverSent,
}

/// Lines of all Models. Clones share them.
#[derive(Clone)]
pub struct Quotas(Arc<Inner>);

struct Inner {
    lines: Mutex<Lines>,
    rates: RatesNow,
    started: Instant,
    /// Somebody joined, or an end was noted: the next turn may come at another time.
    changed: Notify,
}

#[derive(Default)]
struct Lines {
    of: HashMap<ModelName, Line>,
    /// Which line a run waits in, or its request came from.
    runs: HashMap<String, ModelName>,
    /// Who is told that the run's turn has come.
    calls: HashMap<String, oneshot::Sender<()>>,
}

/// What is said to a request.
pub enum Turn {
    Now,
    Waits(Place),
}

/// A place in a line. Dropped, it is free again, and so is a turn that nobody took.
pub struct Place {
    quotas: Quotas,
    run: String,
    of: Attempt,
    called: oneshot::Receiver<()>,
    state: PlaceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlaceState {
    Waits,
    Called,
    Used,
}

/// One attempt to ask a Model, among those of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub step: u32,
    pub attempt: u32,
}

/// What a run waits for that has waited for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    pub model: String,
    pub held_by: Option<HeldBy>,
    pub time: Duration,
}

impl Place {
    /// Returns when the turn has come: from then on the request counts as under way.
    pub async fn called(&mut self) {
        match (&mut self.called).await {
            Ok(()) => self.state = PlaceState::Called,
            // A newer stream of the run stands in its place, and this one is about to end.
            Err(_) => std::future::pending().await,
        }
    }

    #[must_use]
    pub fn is_called(&self) -> bool {
        self.state == PlaceState::Called
    }

    /// The request is made.
    pub fn go(mut self) {
        self.state = PlaceState::Used;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.called.close();
        match self.state {
            PlaceState::Used => {}
            PlaceState::Called => self.quotas.take_back(&self.run, self.of),
            PlaceState::Waits if self.called.try_recv().is_ok() => self.quotas.take_back(&self.run, self.of),
            PlaceState::Waits => self.quotas.leave(&self.run),
        }
    }
}

impl Default for Quotas {
    /// Without limits.
    fn default() -> Self {
        Self::new(Arc::new(|_| Rates::default()))
    }
}

impl Quotas {
    #[must_use]
    pub fn new(rates: RatesNow) -> Self {
        let (lines, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { lines, rates, started: Instant::now(), changed }))
    }

    /// Lets waiting requests go as time passes, until `shutdown`.
    pub async fn keep(self, shutdown: CancellationToken) {
        loop {
            let next = self.0.started + self.look().unwrap_or(self.now() + FOREVER);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Limits may have changed: whoever may go now goes.
    pub fn limits_changed(&self) {
        self.0.changed.notify_one();
    }

    /// The run wants to ask the Model that its plan names now.
    #[must_use]
    pub fn ask(&self, state: &RunState) -> Turn {
        let Some((model, request)) = wanted(state) else { return Turn::Now };
        let (run, of, now) = (request.run.clone(), request.of, self.now());
        let (call, called) = oneshot::channel();
        let mut lines = self.0.lines.lock();
        lines.runs.insert(run.clone(), model.clone());
        if lines.of.entry(model.clone()).or_default().join(request, now) == Joined::LetGoBefore {
            return Turn::Now;
        }
        lines.calls.insert(run.clone(), call);
        lines.serve(&model, (self.0.rates)(&model), now);
        drop(lines);
        self.0.changed.notify_one();
        let mut place = Place { quotas: self.clone(), run, of, called, state: PlaceState::Waits };
        if place.called.try_recv().is_ok() {
            place.go();
            return Turn::Now;
        }
        Turn::Waits(place)
    }

    /// Takes in what became of a run's requests.
    pub fn note(&self, run: &str, events: impl IntoIterator<Item = impl std::borrow::Borrow<Event>>) {
        for event in events {
            if let Some((of, ended)) = ended(event.borrow()) {
                self.end(run, of, ended);
            }
        }
    }

    /// The run is over, and whatever it asked.
    pub fn over(&self, run: &str) {
        self.end(run, None, Ended::Failed);
    }

    /// What the run waits for, if it does.
    #[must_use]
    pub fn waits(&self, run: &str) -> Option<Waits> {
        let (lines, now) = (self.0.lines.lock(), self.now());
        let model = lines.runs.get(run)?;
        let line = lines.of.get(model)?;
        let time = now.saturating_sub(line.waits_since(run)?);
        Some(Waits { model: model.name.clone(), held_by: line.held_by((self.0.rates)(model), now), time })
    }

    /// `of`: that attempt, or whichever is under way.
    fn end(&self, run: &str, of: Option<Attempt>, ended: Ended) {
        self.free(run, |line, now| line.end(run, of, ended, now));
    }

    fn take_back(&self, run: &str, of: Attempt) {
        self.free(run, |line, now| line.take_back(run, of, now));
    }

    /// Frees something in the run's line, and lets go whoever may go then.
    fn free(&self, run: &str, free: impl FnOnce(&mut Line, Duration)) {
        let (mut lines, now) = (self.0.lines.lock(), self.now());
        let Some(model) = lines.runs.get(run).cloned() else { return };
        if let Some(line) = lines.of.get_mut(&model) {
            free(line, now);
        }
        lines.serve(&model, (self.0.rates)(&model), now);
        drop(lines);
        self.0.changed.notify_one();
    }

    fn leave(&self, run: &str) {
        let mut lines = self.0.lines.lock();
        // A newer stream of the run may stand in its place.
        if lines.calls.get(run).is_none_or(|call| !call.is_closed()) {
            return;
        }
        lines.calls.remove(run);
        if let Some(model) = lines.runs.get(run).cloned()
            && let Some(line) = lines.of.get_mut(&model)
        {
            line.leave(run);
        }
        drop(lines);
        self.0.changed.notify_one();
    }

    /// Lets go whoever may go, and says when the next look is due.
    fn look(&self) -> Option<Duration> {
        let (mut lines, now) = (self.0.lines.lock(), self.now());
        let models: Vec<ModelName> = lines.of.keys().cloned().collect();
        let next = models.iter().filter_map(|model| lines.serve(model, (self.0.rates)(model), now)).min();
        lines.tidy(now);
        next
    }

    fn now(&self) -> Duration {
        self.0.started.elapsed()
    }
}

impl Lines {
    /// Lets go whoever of the Model's line may go; when the next one may.
    fn serve(&mut self, model: &ModelName, rates: Rates, now: Duration) -> Option<Duration> {
        let line = self.of.get_mut(model)?;
        while let Some(run) = line.next(rates, now) {
            let told = self.calls.remove(&run).is_some_and(|call| call.send(()).is_ok());
            if !told {
                line.end(&run, None, Ended::NeverSent, now);
            }
        }
        line.opens_at(rates, now)
    }

    fn tidy(&mut self, now: Duration) {
        self.of.retain(|_, line| !line.is_idle(now));
        self.runs.retain(|_, model| self.of.contains_key(model));
    }
}

/// The request that the run is about to make, and of which Model.
fn wanted(state: &RunState) -> Option<(ModelName, Request)> {
    let plan = state.plan.as_ref()?;
    let ModelState::InFlight { step, attempt, reserved_tokens } = state.model else { return None };
    let model = plan.model_after(state.models_given_up);
    let over_within = Duration::from_secs(u64::from(model.timeouts.total_seconds)) + OVER_MARGIN;
    let of = Attempt { step, attempt };
    let request = Request { run: plan.run.uid.clone(), of, reserved_tokens, over_within };
    Some((ModelName { namespace: plan.run.namespace.clone(), name: model.name.clone() }, request))
}

/// What an event says of a run's request, and of which; of whichever is under way where the run itself goes no further.
fn ended(event: &Event) -> Option<(Option<Attempt>, Ended)> {
    match event {
        Event::ModelResponded { step, attempt, response } => {
            let usage = &response.usage;
            let tokens = usage.input_tokens.zip(usage.output_tokens).map(|_| usage.total());
            Some((Some(Attempt { step: *step, attempt: *attempt }), Ended::Answered { tokens }))
        }
        Event::ModelFailed { step, attempt, failure, .. } => {
            let retry_after = failure.retry_after_seconds.map(Duration::from_secs);
            let ended = match failure.reason {
                FailureReason::Withheld => Ended::NeverSent,
                FailureReason::RateLimited => Ended::Refused { retry_after },
                _ if retry_after.is_some() => Ended::Refused { retry_after },
                _ => Ended::Failed, // whatever else went wrong is the run's own matter
            };
            Some((Some(Attempt { step: *step, attempt: *attempt }), ended))
        }
        Event::EpochEnded { .. } | Event::RunEnded { .. } => Some((None, Ended::Failed)),
        _ => None, // nothing else is about a request
    }
}
