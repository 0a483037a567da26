//! The conversation as the model sees it: a second fold over the same events, kept by the runner alone.

use std::collections::BTreeMap;

use crate::event::{Event, Item, Verdict};

/// What was said so far, in order. The plan's instructions and input come before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    turns: Vec<Turn>,
}

/// One answer of the model and what came back for each of its calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub items: Vec<Item>,
    /// By call id; complete before the next turn.
    pub results: BTreeMap<String, CallResult>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallResult {
    pub is_error: bool,
    pub content: String,
}

impl Transcript {
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Takes in one event; those that say nothing to the model change nothing.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::ModelResponded { response, .. } => {
                self.turns.push(Turn { items: response.items.clone(), results: BTreeMap::new() });
            }
            Event::CallObserved { call_id, result, .. } => {
                self.settle(call_id, result.is_error, result.content.clone());
            }
            Event::CallNotSent { call_id, message, .. } => self.settle(call_id, true, format!("not sent: {message}")),
            Event::CallUnknown { call_id, message, .. } => {
                self.settle(call_id, true, format!("whether this call took effect is unknown: {message}"));
            }
            Event::CallDecided { call_id, verdict: Verdict::Denied { message, .. }, .. } => {
                self.settle(call_id, true, format!("denied: {message}"));
            }
            Event::CallDecided { verdict: Verdict::Allowed { .. }, .. }
            | Event::RunAccepted { .. }
            | Event::EpochOpened { .. }
            | Event::InstanceClaimed { .. }
            | Event::ToolsListed { .. }
            | Event::ModelRequested { .. }
            | Event::ModelFailed { .. }
            | Event::CallProposed { .. }
            | Event::PermitReturned { .. }
            | Event::LimitReached { .. }
            | Event::CancelRequested {}
            | Event::EpochEnded { .. }
            | Event::RunEnded { .. } => {}
        }
    }

    fn settle(&mut self, call_id: &str, is_error: bool, content: String) {
        if let Some(turn) = self.turns.last_mut() {
            turn.results.insert(call_id.to_owned(), CallResult { is_error, content });
        }
    }
}
