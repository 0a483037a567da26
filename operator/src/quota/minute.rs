//! What was asked of a Model within the last minute, by whole seconds: bounded however much is asked. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::Rates;

/// A second stays for a minute after its end, so that no sixty seconds ever hold more than the limit.
const STAYS_SECONDS: u64 = 61;

/// Oldest first. Time counts from the process's start.
#[derive(Debug, Default)]
pub struct Minute(VecDeque<Second>);

#[derive(Clone, Copy, Debug)]
struct Second {
    at: u64,
    requests: u64,
    tokens: u64,
}

impl Minute {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn forget_before(&mut self, now: Duration) {
        while self.0.front().is_some_and(|oldest| oldest.at + STAYS_SECONDS <= now.as_secs()) {
            self.0.pop_front();
        }
    }

    pub fn add(&mut self, now: Duration, requests: u64, tokens: u64) {
        let at = now.as_secs();
        match self.0.back_mut() {
            Some(newest) if newest.at >= at => {
                newest.requests = newest.requests.saturating_add(requests);
                newest.tokens = newest.tokens.saturating_add(tokens);
            }
            Some(_) | None => self.0.push_back(Second { at, requests, tokens }),
        }
    }

    /// Gives back what was added at `then` and not used after all, while it still counts.
    pub fn give_back(&mut self, then: Duration, requests: u64, tokens: u64) {
        if let Some(second) = self.0.iter_mut().find(|second| second.at == then.as_secs()) {
            second.requests = second.requests.saturating_sub(requests);
            second.tokens = second.tokens.saturating_sub(tokens);
        }
    }

    /// When a request of so many tokens fits: `now`, or a later second. One that is larger than the limit fits where
    /// nothing else counts.
    pub fn fits_at(&self, rates: Rates, tokens: u64, now: Duration) -> Duration {
        let mut requests: u64 = self.0.iter().map(|second| second.requests).sum();
        let mut used = self.0.iter().fold(0_u64, |sum, second| sum.saturating_add(second.tokens));
        let fits = |requests: u64, used: u64| {
            rates.requests_per_minute.is_none_or(|most| requests < most)
                && rates
                    .tokens_per_minute
                    .is_none_or(|most| used == 0 || (used < most && used.saturating_add(tokens) <= most))
        };
        let mut at = now;
        for second in &self.0 {
            if fits(requests, used) {
                break;
            }
            requests -= second.requests;
            used = used.saturating_sub(second.tokens);
            at = Duration::from_secs(second.at + STAYS_SECONDS).max(now);
        }
        at
    }
}
