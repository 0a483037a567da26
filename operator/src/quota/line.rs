//! The requests of all runs to one Model: who waits, who was let go, and what holds the others back. Pure; time comes
//! in as what has passed since the process's start.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::minute::Minute;
use super::{Attempt, Ended, Rates, Request};

/// The longest that a refusal of the provider holds the others back, whatever it asks for.
const PAUSE_MAX: Duration = Duration::from_mins(5);
/// After a refusal that names no time: doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_DOUBLINGS_MAX: u32 = 5;

#[derive(Debug, Default)]
pub struct Line {
    waiting: VecDeque<Waiting>,
    /// By run: each has one request at a time.
    under_way: BTreeMap<String, UnderWay>,
    minute: Minute,
    refused: Option<Refused>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    since: Duration,
}

#[derive(Debug)]
struct UnderWay {
    request: Request,
    since: Duration,
    /// A newer stream of the run took the turn over.
    taken_over: bool,
}

/// What the provider's last refusal left behind.
#[derive(Clone, Copy, Debug)]
struct Refused {
    at: Duration,
    until: Duration,
    /// Refusals since a request was answered.
    times: u32,
    /// How many may be under way: one after the pause, doubling with each answer.
    most: usize,
}

/// What holds the first of the line back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// The provider asked for patience.
    Refusal,
    ConcurrentRequests,
    RequestsPerMinute,
    TokensPerMinute,
}

impl Line {
    /// Joins the end of the line. One that was let go before, and asks again since it did not hear so, need not wait.
    pub fn join(&mut self, request: Request, now: Duration) -> Joined {
        if let Some(under) = self.under_way.get_mut(&request.run).filter(|under| under.request.of == request.of) {
            under.taken_over = true;
            return Joined::LetGoBefore;
        }
        self.leave(&request.run);
        self.waiting.push_back(Waiting { request, since: now });
        Joined::Waits
    }

    /// Lets the first one go, if nothing holds it back.
    pub fn next(&mut self, rates: Rates, now: Duration) -> Option<String> {
        self.tidy(now);
        if self.opens_at(rates, now)? > now {
            return None;
        }
        let Waiting { request, .. } = self.waiting.pop_front()?;
        self.minute.add(now, 1, request.reserved_tokens);
        let run = request.run.clone();
        self.under_way.insert(run.clone(), UnderWay { request, since: now, taken_over: false });
        Some(run)
    }

    /// When time alone lets the first one go; nothing where nobody waits, or a request has to end before.
    pub fn opens_at(&self, rates: Rates, now: Duration) -> Option<Duration> {
        let first = self.waiting.front()?;
        if self.under_way.len() >= self.most(rates) {
            // One whose runner is lost ends by itself.
            return self.under_way.values().map(UnderWay::over_at).min();
        }
        let pause = self.refused.map_or(now, |refused| refused.until.max(now));
        Some(self.minute.fits_at(rates, first.request.reserved_tokens, pause))
    }

    /// What holds the first one back at present.
    pub fn held_by(&self, rates: Rates, now: Duration) -> Option<HeldBy> {
        let first = self.waiting.front()?;
        if self.refused.is_some_and(|refused| refused.until > now || self.under_way.len() >= refused.most) {
            return Some(HeldBy::Refusal);
        }
        if self.under_way.len() >= self.most(rates) {
            return Some(HeldBy::ConcurrentRequests);
        }
        let requests = Rates { tokens_per_minute: None, ..rates };
        if self.minute.fits_at(requests, 0, now) > now {
            return Some(HeldBy::RequestsPerMinute);
        }
        (self.minute.fits_at(rates, first.request.reserved_tokens, now) > now).then_some(HeldBy::TokensPerMinute)
    }

    /// A request that was let go is over: that attempt, or whichever it is.
    pub fn end(&mut self, run: &str, of: Option<Attempt>, ended: Ended, now: Duration) {
        let meant = |under: &UnderWay| of.is_none_or(|of| of == under.request.of);
        if !self.under_way.get(run).is_some_and(meant) {
            return;
        }
        let Some(UnderWay { request, since, .. }) = self.under_way.remove(run) else { return };
        match ended {
            Ended::Answered { tokens } => {
                if let Some(tokens) = tokens {
                    self.minute.give_back(since, 0, request.reserved_tokens.saturating_sub(tokens));
                    self.minute.add(now, 0, tokens.saturating_sub(request.reserved_tokens));
                }
                self.answered(now);
            }
            Ended::Refused { retry_after } => self.refuse(since, retry_after, now),
            Ended::Failed => {}
            Ended::NeverSent => self.minute.give_back(since, 1, request.reserved_tokens),
        }
    }

    /// Whoever was let go is gone before asking: the turn is free, unless a newer stream of the run took it over.
    pub fn take_back(&mut self, run: &str, of: Attempt, now: Duration) {
        if self.under_way.get(run).is_some_and(|under| !under.taken_over) {
            self.end(run, Some(of), Ended::NeverSent, now);
        }
    }

    /// The run waits no more.
    pub fn leave(&mut self, run: &str) {
        self.waiting.retain(|waiting| waiting.request.run != run);
    }

    /// Since when the run waits.
    pub fn waits_since(&self, run: &str) -> Option<Duration> {
        self.waiting.iter().find(|waiting| waiting.request.run == run).map(|waiting| waiting.since)
    }

    /// Whether nothing needs to be remembered.
    pub fn is_idle(&mut self, now: Duration) -> bool {
        self.tidy(now);
        self.waiting.is_empty() && self.under_way.is_empty() && self.minute.is_empty() && self.refused.is_none()
    }

    fn most(&self, rates: Rates) -> usize {
        let slow = self.refused.map_or(usize::MAX, |refused| refused.most);
        rates.concurrent_requests.unwrap_or(usize::MAX).min(slow)
    }

    fn tidy(&mut self, now: Duration) {
        self.minute.forget_before(now);
        self.under_way.retain(|_, under| under.over_at() > now);
        // Whoever was refused and asks no more leaves nothing behind for ever.
        if self.refused.is_some_and(|refused| refused.until + PAUSE_MAX <= now) {
            self.refused = None;
        }
    }

    fn answered(&mut self, now: Duration) {
        let wanted = self.under_way.len() + self.waiting.len();
        if let Some(refused) = self.refused.as_mut().filter(|refused| refused.until <= now) {
            refused.times = 0;
            refused.most = refused.most.saturating_mul(2);
            if refused.most > wanted {
                self.refused = None;
            }
        }
    }

    /// Those that were under way together are refused together: that is one refusal.
    fn refuse(&mut self, since: Duration, retry_after: Option<Duration>, now: Duration) {
        let before = self.refused;
        let times = match before {
            Some(before) if since < before.at => before.times,
            Some(before) => before.times.saturating_add(1),
            None => 1,
        };
        let pause =
            retry_after.unwrap_or_else(|| PAUSE_FIRST * (1 << times.saturating_sub(1).min(PAUSE_DOUBLINGS_MAX)));
        let until = (now + pause.min(PAUSE_MAX)).max(before.map_or(now, |before| before.until));
        let at = before.filter(|before| since < before.at).map_or(now, |before| before.at);
        self.refused = Some(Refused { at, until, times, most: 1 });
    }
}

impl UnderWay {
    /// By then it has ended, whatever became of its runner.
    fn over_at(&self) -> Duration {
        self.since + self.request.over_within
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    Waits,
    LetGoBefore,
}
