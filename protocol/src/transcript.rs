//! The conversation as the model sees it: a second fold over the same events, kept by the runner alone.

use std::collections::BTreeMap;

use crate::CALL_ATTEMPTS_MAX;
use crate::cost::Usage;
use crate::event::{Answer, Event, Item, Verdict};

/// What was said so far, in order. The plan's instructions and input come before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    turns: Vec<Turn>,
    /// The model that is asked, where it is not the plan's first.
    fallback: Option<String>,
    /// Call ids by the name of the question about them.
    asked: BTreeMap<String, String>,
    /// How many attempts of a call of the newest turn ended with questions of its server.
    rounds: BTreeMap<String, u32>,
}

/// One answer of the model and what came back for each of its calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The model that answered, where it is not the plan's first: what only a provider understands goes back to
    /// the model that said it.
    pub fallback: Option<String>,
    pub items: Vec<Item>,
    /// What its server counted of it.
    pub usage: Usage,
    /// By call id; complete before the next turn.
    pub results: BTreeMap<String, CallResult>,
    /// What the model is told of an answer that does not fit the plan's `output_schema`.
    pub misfit: Option<String>,
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
                let items = response.items.clone();
                self.rounds.clear();
                let (fallback, misfit, usage) = (self.fallback.clone(), response.misfit.clone(), response.usage);
                self.turns.push(Turn { fallback, items, usage, results: BTreeMap::new(), misfit });
            }
            Event::ModelReplaced { by, .. } => self.fallback = Some(by.clone()),
            Event::CallObserved { call_id, result, .. } => {
                self.settle(call_id, result.is_error, result.content.clone());
            }
            Event::CallNotSent { call_id, attempt, message, .. } => {
                self.settle(call_id, true, format!("not sent{}: {message}", self.again(call_id, *attempt)));
            }
            Event::ChildEnded { call_id, end, .. } => {
                self.settle(call_id, end.result.is_error, end.result.content.clone());
            }
            Event::CallInputRequired { call_id, .. } => {
                let rounds = self.rounds.entry(call_id.clone()).or_default();
                *rounds = rounds.saturating_add(1);
            }
            Event::CallInterrupted { call_id, attempt, message }
                if self.sent(call_id, *attempt) >= CALL_ATTEMPTS_MAX =>
            {
                let attempt = self.sent(call_id, *attempt);
                self.settle(call_id, true, format!("no answer came in {attempt} attempts: {message}"));
            }
            Event::AskOpened { ask } => {
                self.asked.insert(ask.name.clone(), ask.call_id.clone());
            }
            Event::AskSettled { name, answer } => {
                if let (Some(call_id), Answer::Happened { result, .. }) = (self.asked.remove(name), answer) {
                    self.settle(&call_id, false, result.clone());
                }
            }
            Event::CallDecided { call_id, attempt, verdict: Verdict::Denied { message, .. }, .. } => {
                self.settle(call_id, true, format!("denied{}: {message}", self.again(call_id, *attempt)));
            }
            Event::CallDecided {
                verdict: Verdict::Allowed { .. } | Verdict::Asked { .. } | Verdict::Later { .. },
                ..
            }
            | Event::RunAccepted { .. }
            | Event::EpochOpened { .. }
            | Event::InstanceClaimed { .. }
            | Event::ToolsListed { .. }
            | Event::ModelRequested { .. }
            | Event::ModelFailed { .. }
            | Event::CallProposed { .. }
            | Event::PermitReturned { .. }
            | Event::CallUnknown { .. }
            | Event::CallInterrupted { .. }
            | Event::ChildOpened { .. }
            | Event::ChildPosted { .. }
            | Event::AskPosted { .. }
            | Event::DefinitionsAccepted { .. }
            | Event::GrantOpened { .. }
            | Event::GrantRefused { .. }
            | Event::GrantPosted { .. }
            | Event::GrantRevoked { .. }
            | Event::EpochDead { .. }
            | Event::LimitReached { .. }
            | Event::CancelRequested {}
            | Event::EpochEnded { .. }
            | Event::RunEnded { .. } => {}
        }
    }

    /// Passes every result through `shown`: that of a run which carried out a call was written elsewhere, by a process that
    /// knew other credentials.
    pub fn rewrite_results(&mut self, shown: impl Fn(&str) -> String) {
        for result in self.turns.iter_mut().flat_map(|turn| turn.results.values_mut()) {
            result.content = shown(&result.content);
        }
    }

    fn settle(&mut self, call_id: &str, is_error: bool, content: String) {
        if let Some(turn) = self.turns.last_mut() {
            turn.results.insert(call_id.to_owned(), CallResult { is_error, content });
        }
    }

    /// Attempts without those that ended with questions.
    fn sent(&self, call_id: &str, attempt: u32) -> u32 {
        attempt.saturating_sub(self.rounds.get(call_id).copied().unwrap_or_default())
    }

    /// The model is never told that something was not done while an earlier attempt may have done it.
    fn again(&self, call_id: &str, attempt: u32) -> &'static str {
        match (attempt, self.sent(call_id, attempt)) {
            (..=1, _) => "",
            (_, 2..) => " again (whether an earlier attempt took effect is not known)",
            (_, ..=1) => " again (its server had asked for input before it would do it)",
        }
    }
}
