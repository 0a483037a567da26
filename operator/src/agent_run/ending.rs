//! The end that the operator gives a run: its words, and the events that carry it out. Pure.

use std::time::Duration;

use belay_protocol::event::{EndReason, EpochEnd, Event, Limit, Outcome, ProposedCall, RunEnd};
use belay_protocol::fold::RunState;

use crate::gate::{ModelRequest, close};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub limit: Option<Limit>,
    pub epoch: EpochEnd,
    pub end: RunEnd,
}

impl Ending {
    #[must_use]
    pub fn failed(reason: EndReason, epoch: EpochEnd, message: String) -> Self {
        Self { limit: None, epoch, end: RunEnd { outcome: Outcome::Failed, reason, message } }
    }

    #[must_use]
    pub fn cancelled(message: &str) -> Self {
        let end = RunEnd { outcome: Outcome::Cancelled, reason: EndReason::Cancelled, message: message.to_owned() };
        Self { limit: None, epoch: EpochEnd::Cancelled, end }
    }

    #[must_use]
    pub fn out_of_time(limit: Option<Limit>, reason: EndReason, message: String) -> Self {
        Self { limit, ..Self::failed(reason, EpochEnd::DeadlineExceeded, message) }
    }

    /// Lists the calls that may have happened and may not.
    #[must_use]
    pub fn naming_unknowns(mut self, state: &RunState) -> Self {
        let name = |(id, call): (&str, &ProposedCall)| format!("{id} ({}/{})", call.tool, call.operation);
        let calls: Vec<String> = state.calls_unknown().map(name).collect();
        if !calls.is_empty() {
            self.end.message = format!("{}; calls whose end is unknown: {}", self.end.message, calls.join(", "));
        }
        self
    }

    /// What is in flight is closed, the epoch ends, the run ends. `active`: how long the epoch was claimed.
    #[must_use]
    pub fn events(self, state: Option<&RunState>, active: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(state) = state {
            events.extend(close(state, ModelRequest::Given, "the run ended before this one's end was known"));
            let active_milliseconds = u64::try_from(active.as_millis()).unwrap_or(u64::MAX);
            let epoch = state.live_epoch().map(|epoch| epoch.number);
            events.extend(epoch.map(|epoch| Event::EpochEnded { epoch, cause: self.epoch, active_milliseconds }));
            events.extend(self.limit.map(|limit| Event::LimitReached { limit }));
        }
        events.push(Event::RunEnded { end: self.end });
        events
    }
}
