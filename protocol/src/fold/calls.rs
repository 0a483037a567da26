//! Calls: proposed, decided, sent, and what became of them; and what people are asked about them.

use std::sync::Arc;

use super::{CallState, IllegalEvent, OpenAsk, RunState, Settlement, out_of_order, wrong_call};
use crate::CALL_ATTEMPTS_MAX;
use crate::event::{Answer, Ask, ProposedCall, Verdict};

impl RunState {
    pub(super) fn propose(&mut self, call_id: &str, attempt: u32, call: &ProposedCall) -> Result<(), IllegalEvent> {
        self.move_call("CallProposed", call_id, |now| match now {
            CallState::Due { attempt: due } if *due == attempt => {
                Some(CallState::Proposed { attempt, call: Arc::new(call.clone()) })
            }
            CallState::Due { .. }
            | CallState::Proposed { .. }
            | CallState::Permitted { .. }
            | CallState::Unknown { .. }
            | CallState::Settled(_) => None,
        })
    }

    pub(super) fn decide(
        &mut self,
        call_id: &str,
        attempt: u32,
        verdict: &Verdict,
        at: i64,
    ) -> Result<(), IllegalEvent> {
        let may_act = self.undead.is_empty();
        self.move_call("CallDecided", call_id, |now| {
            let CallState::Proposed { attempt: proposed, call } = now else { return None };
            match verdict {
                Verdict::Allowed { digest } => (*proposed == attempt && *digest == call.digest && may_act)
                    .then(|| CallState::Permitted { attempt, call: Arc::clone(call), at }),
                Verdict::Denied { .. } => (*proposed == attempt).then_some(CallState::Settled(Settlement::Denied)),
            }
        })
    }

    pub(super) fn return_permit(&mut self, call_id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        self.move_permitted("PermitReturned", call_id, attempt, |_, _| CallState::Due { attempt })
    }

    pub(super) fn observe(&mut self, call_id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        self.move_permitted("CallObserved", call_id, attempt, |_, _| CallState::Settled(Settlement::Observed))?;
        self.come_forward();
        Ok(())
    }

    pub(super) fn settle_unsent(&mut self, call_id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        self.move_call("CallNotSent", call_id, |now| match now {
            CallState::Due { attempt: held } | CallState::Permitted { attempt: held, .. } if *held == attempt => {
                Some(CallState::Settled(Settlement::NotSent))
            }
            CallState::Due { .. }
            | CallState::Permitted { .. }
            | CallState::Proposed { .. }
            | CallState::Unknown { .. }
            | CallState::Settled(_) => None,
        })
    }

    pub(super) fn lose(&mut self, call_id: &str, attempt: u32, message: &str) -> Result<(), IllegalEvent> {
        self.move_permitted("CallUnknown", call_id, attempt, |call, at| CallState::Unknown {
            attempt,
            call: Arc::clone(call),
            at,
            message: message.to_owned(),
        })
    }

    /// Only a call that may be sent again; and not for ever.
    pub(super) fn interrupt(&mut self, call_id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        let call = match self.calls.get(call_id) {
            Some(CallState::Permitted { call, .. }) => Some(call),
            _ => None, // move_permitted says what is wrong with every other state
        };
        let repeats = call.zip(self.plan.as_ref());
        let repeats = repeats.is_none_or(|(call, plan)| plan.effects(&call.tool, &call.operation).may_repeat());
        if !repeats {
            return Err(wrong_call("CallInterrupted", call_id, "sending it again may do it twice"));
        }
        self.move_permitted("CallInterrupted", call_id, attempt, |_, _| {
            if attempt < CALL_ATTEMPTS_MAX {
                CallState::Due { attempt: attempt + 1 }
            } else {
                CallState::Settled(Settlement::Unanswered)
            }
        })
    }

    pub(super) fn ask(&mut self, ask: &Ask) -> Result<(), IllegalEvent> {
        let asked = self.asks.values().any(|open| open.ask.call_id == ask.call_id);
        if asked || self.asks.contains_key(&ask.name) {
            return Err(out_of_order("AskOpened", "it is asked already"));
        }
        match self.calls.get(&ask.call_id) {
            Some(CallState::Unknown { attempt, .. }) if *attempt == ask.attempt => {
                self.asks.insert(ask.name.clone(), OpenAsk { ask: ask.clone(), uid: None });
                Ok(())
            }
            _ => Err(wrong_call("AskOpened", &ask.call_id, "what became of that attempt is not unknown")),
        }
    }

    pub(super) fn post(&mut self, name: &str, uid: &str) -> Result<(), IllegalEvent> {
        let open = self.asks.get_mut(name).filter(|open| open.uid.is_none());
        open.ok_or(out_of_order("AskPosted", "no such question waits for its Approval"))?.uid = Some(uid.to_owned());
        Ok(())
    }

    pub(super) fn settle_ask(&mut self, name: &str, answer: &Answer) -> Result<(), IllegalEvent> {
        let open = self.asks.get(name).ok_or(out_of_order("AskSettled", "no such question is open"))?;
        let withdrawn = matches!(answer, Answer::Withdrawn { .. });
        if open.uid.is_none() && !withdrawn {
            return Err(out_of_order("AskSettled", "the Approval was never made"));
        }
        let (call_id, attempt) = (open.ask.call_id.clone(), open.ask.attempt);
        self.move_call("AskSettled", &call_id, |now| match answer {
            Answer::Happened { .. } => Some(CallState::Settled(Settlement::Reported)),
            Answer::Retry { .. } => Some(CallState::Due { attempt: attempt + 1 }),
            Answer::End { .. } => Some(now.clone()),
            Answer::Withdrawn { why } => Some(with_note(now, why)),
        })?;
        self.asks.remove(name);
        if !withdrawn {
            self.come_forward();
        }
        Ok(())
    }

    fn move_permitted(
        &mut self,
        event: &'static str,
        call_id: &str,
        attempt: u32,
        next: impl FnOnce(&Arc<ProposedCall>, i64) -> CallState,
    ) -> Result<(), IllegalEvent> {
        self.move_call(event, call_id, |now| match now {
            CallState::Permitted { attempt: permitted, call, at } if *permitted == attempt => Some(next(call, *at)),
            CallState::Permitted { .. }
            | CallState::Due { .. }
            | CallState::Proposed { .. }
            | CallState::Unknown { .. }
            | CallState::Settled(_) => None,
        })
    }

    fn move_call(
        &mut self,
        event: &'static str,
        call_id: &str,
        next: impl FnOnce(&CallState) -> Option<CallState>,
    ) -> Result<(), IllegalEvent> {
        let call = self.calls.get_mut(call_id).ok_or_else(|| wrong_call(event, call_id, "no such call"))?;
        *call =
            next(call).ok_or_else(|| wrong_call(event, call_id, "its state, attempt or digest does not allow that"))?;
        Ok(())
    }
}

/// What is told to people with the next question; the first words stay, and it never grows without bound.
fn with_note(call: &CallState, why: &str) -> CallState {
    let mut noted = call.clone();
    if let CallState::Unknown { message, .. } = &mut noted {
        let first = message.split(NOTE).next().unwrap_or_default();
        *message = format!("{first}{NOTE}{why}");
    }
    noted
}

const NOTE: &str = "; asked again: ";
