//! The end that the operator gives a run: its words, and the events that carry it out. Pure.

use belay_protocol::event::{EndReason, EpochEnd, Event, Limit, Outcome, RunEnd};
use belay_protocol::fold::{CallState, Epoch, RunState};

use crate::pod_view::Exit;

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

    /// `how` follows the pod's name.
    #[must_use]
    pub fn pod_lost(epoch: &Epoch, how: &str) -> Self {
        Self::failed(EndReason::PodLost, EpochEnd::PodLost, format!("pod {} {how}", epoch.pod_name))
    }

    /// A pod whose container ended; `when` says how far the run was.
    #[must_use]
    pub fn pod_ended(epoch: &Epoch, exit: &Exit, when: &str) -> Self {
        let (reason, cause, how) = match exit {
            Exit::Clean => (EndReason::RunnerCrashed, EpochEnd::Exited, "ended by itself".to_owned()),
            Exit::Crashed { why } => (EndReason::RunnerCrashed, EpochEnd::Exited, format!("ended with {why}")),
            Exit::Evicted { why } => (EndReason::PodLost, EpochEnd::PodLost, format!("was taken away ({why})")),
        };
        Self::failed(reason, cause, format!("pod {} {how} {when}", epoch.pod_name))
    }

    #[must_use]
    pub fn out_of_time(limit: Option<Limit>, reason: EndReason, message: String) -> Self {
        Self { limit, ..Self::failed(reason, EpochEnd::DeadlineExceeded, message) }
    }

    /// Lists the calls that may have happened and may not.
    #[must_use]
    pub fn naming_unknowns(mut self, state: &RunState) -> Self {
        let calls: Vec<String> = state.calls_in_flight().map(|(id, _)| describe(state, id)).collect();
        if !calls.is_empty() {
            self.end.message = format!("{}; calls whose end is unknown: {}", self.end.message, calls.join(", "));
        }
        self
    }

    /// Calls in flight become Unknown, the epoch ends, the run ends.
    #[must_use]
    pub fn events(self, state: Option<&RunState>) -> Vec<Event> {
        let mut events = Vec::new();
        if let Some(state) = state {
            events.extend(state.calls_in_flight().map(|(call_id, attempt)| Event::CallUnknown {
                call_id: call_id.to_owned(),
                attempt,
                message: "the run ended before this call's end was known".to_owned(),
            }));
            let epoch = state.live_epoch().map(|epoch| epoch.number);
            events.extend(epoch.map(|epoch| Event::EpochEnded { epoch, cause: self.epoch }));
            events.extend(self.limit.map(|limit| Event::LimitReached { limit }));
        }
        events.push(Event::RunEnded { end: self.end });
        events
    }
}

fn describe(state: &RunState, call_id: &str) -> String {
    match state.calls.get(call_id) {
        Some(CallState::Permitted { tool, operation, .. }) => format!("{call_id} ({tool}/{operation})"),
        Some(
            CallState::Requested | CallState::Proposed { .. } | CallState::Returned { .. } | CallState::Settled(_),
        )
        | None => call_id.to_owned(),
    }
}
