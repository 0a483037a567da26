//! Calls whose server wants to know something of people first, and what they answered.

use std::sync::Arc;

use super::{Approved, CallState, IllegalEvent, RunState, wrong_call};
use crate::elicitation::{InputRequired, Inputs, Round, digest_with};
use crate::event::{Approver, Ask};

impl RunState {
    /// A permitted call was answered, and not with a result: no effect is waited for.
    pub(super) fn require_input(
        &mut self,
        call_id: &str,
        attempt: u32,
        required: &InputRequired,
        at: i64,
    ) -> Result<(), IllegalEvent> {
        if required.questions.is_empty() {
            return Err(wrong_call("CallInputRequired", call_id, "it asks nothing"));
        }
        let none = Inputs::default();
        let before = self.inputs.get(call_id).unwrap_or(&none);
        if required.check().and_then(|()| required.fits(before)).is_err() {
            return Err(wrong_call("CallInputRequired", call_id, "it asks too much, or what people cannot be shown"));
        }
        self.move_permitted("CallInputRequired", call_id, attempt, |call, _| CallState::InputRequired {
            attempt,
            call: Arc::clone(call),
            at,
            required: Arc::new(required.clone()),
            answers: Vec::new(),
            note: None,
            misfits: 0,
        })?;
        self.come_forward();
        Ok(())
    }

    /// How many attempts of the call ended with questions: those were answered, and count against no limit of attempts.
    pub(super) fn rounds(&self, call_id: &str) -> u32 {
        let rounds = self.inputs.get(call_id).map_or(0, |inputs| inputs.rounds.len());
        u32::try_from(rounds).unwrap_or(u32::MAX)
    }

    /// The question about the call that is to be put to people now: which one, and what it is.
    #[must_use]
    pub fn open_question(&self, call_id: &str) -> Option<(u32, &crate::elicitation::Inquiry)> {
        let Some(CallState::InputRequired { required, answers, .. }) = self.calls.get(call_id) else { return None };
        let asked = required.questions.get(answers.len())?;
        Some((u32::try_from(answers.len()).ok()?, &asked.inquiry))
    }

    /// One more answer is there; with the last one the call is due again. Where people had to say yes to the call, those
    /// who answered have said yes to it with these answers, and to nothing else.
    pub(super) fn note_answer(
        &mut self,
        ask: &Ask,
        content: Option<&String>,
        by: &[Approver],
        answered_at: i64,
    ) -> Option<CallState> {
        let (plan, now) = (self.plan.clone()?, self.calls.get(&ask.call_id)?.clone());
        let CallState::InputRequired { attempt, call, at, required, mut answers, misfits, .. } = now else {
            return None;
        };
        if attempt != ask.attempt || ask.question != u32::try_from(answers.len()).ok() {
            return None;
        }
        answers.push(content.cloned());
        if answers.len() < required.questions.len() {
            return Some(CallState::InputRequired { attempt, call, at, required, answers, note: None, misfits });
        }
        let inputs = self.inputs.entry(ask.call_id.clone()).or_default();
        inputs.rounds.push(Round { required: (*required).clone(), answers });
        let digest = digest_with(&plan, &call, inputs);
        let before = self.approved.get(&ask.call_id).filter(|approved| approved.attempt == attempt);
        if let (Some(before), Some(call)) = (before, digest) {
            let requirements = before.requirements.clone();
            // A yes is no older than any of its policies lets a yes be.
            let seconds = requirements.iter().map(|one| one.expires_after_seconds).min().unwrap_or_default();
            let expires_at = ask.expires_at.min(answered_at.saturating_add(i64::from(seconds) * 1000));
            let approved = Approved { attempt: attempt + 1, call, requirements, expires_at, by: by.to_vec() };
            self.approved.insert(ask.call_id.clone(), approved);
        }
        Some(CallState::Due { attempt: attempt + 1 })
    }
}
