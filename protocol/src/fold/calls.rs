//! Calls: proposed, decided, sent, and what became of them; and what people are asked about them.

use std::sync::Arc;

use super::{Approved, AskedSince, CallState, IllegalEvent, OpenAsk, RunState, Settlement, out_of_order, wrong_call};
use crate::CALL_ATTEMPTS_MAX;
use crate::event::{Answer, Ask, AskPurpose, ProposedCall, Verdict};
use crate::judgement::Judged;

impl RunState {
    pub(super) fn propose(&mut self, call_id: &str, attempt: u32, call: &ProposedCall) -> Result<(), IllegalEvent> {
        self.move_call("CallProposed", call_id, |now| match now {
            CallState::Due { attempt: due }
            | CallState::Later { attempt: due, .. }
            | CallState::Asked { attempt: due, .. }
                if *due == attempt =>
            {
                Some(CallState::Proposed { attempt, call: Arc::new(call.clone()) })
            }
            CallState::Due { .. }
            | CallState::Asked { .. }
            | CallState::Later { .. }
            | CallState::Proposed { .. }
            | CallState::Permitted { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
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
        let denies = matches!(verdict, Verdict::Denied { .. });
        let since = self.asked_since(call_id, attempt, at);
        self.move_call("CallDecided", call_id, |now| {
            let call = match now {
                CallState::Proposed { attempt: proposed, call } if *proposed == attempt => call,
                // What people said no to, or nobody said yes to in time.
                CallState::Asked { attempt: asked, call, .. }
                | CallState::InputRequired { attempt: asked, call, .. }
                    if *asked == attempt && denies =>
                {
                    call
                }
                CallState::Proposed { .. }
                | CallState::Asked { .. }
                | CallState::Later { .. }
                | CallState::Due { .. }
                | CallState::Permitted { .. }
                | CallState::Unknown { .. }
                | CallState::InputRequired { .. }
                | CallState::Delegated { .. }
                | CallState::Settled(_) => return None,
            };
            match verdict {
                Verdict::Allowed { digest } => (*digest == call.digest && may_act).then(|| CallState::Permitted {
                    attempt,
                    call: Arc::clone(call),
                    at,
                }),
                Verdict::Denied { .. } => Some(CallState::Settled(Settlement::Denied)),
                Verdict::Asked { requirements } => {
                    let (call, requirements) = (Arc::clone(call), requirements.clone());
                    Some(CallState::Asked { attempt, call, at: since.at, requirements })
                }
                Verdict::Later { .. } => Some(CallState::Later { attempt, call: Arc::clone(call) }),
            }
        })?;
        if matches!(verdict, Verdict::Asked { .. }) {
            self.asked_since.insert(call_id.to_owned(), since);
        }
        Ok(())
    }

    /// Whoever decides about the call later, should its end be unknown, answers for these policies.
    pub(super) fn note_judged(&mut self, call_id: &str, judged: Option<&Judged>) {
        if let Some(judged) = judged {
            self.ran_under.insert(call_id.to_owned(), judged.with_a_say().map(str::to_owned).collect());
        }
    }

    /// Asked again about the same attempt, people have had that time already.
    fn asked_since(&self, call_id: &str, attempt: u32, at: i64) -> AskedSince {
        let before = self.asked_since.get(call_id).filter(|since| since.attempt == attempt);
        before.copied().unwrap_or(AskedSince { attempt, at })
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
            CallState::Due { attempt: held }
            | CallState::Later { attempt: held, .. }
            | CallState::Permitted { attempt: held, .. }
                if *held == attempt =>
            {
                Some(CallState::Settled(Settlement::NotSent))
            }
            CallState::Due { .. }
            | CallState::Asked { .. }
            | CallState::Later { .. }
            | CallState::Permitted { .. }
            | CallState::Proposed { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
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
        let unanswered = attempt.saturating_sub(self.rounds(call_id));
        self.move_permitted("CallInterrupted", call_id, attempt, |_, _| {
            if unanswered < CALL_ATTEMPTS_MAX {
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
        let fits = match (ask.purpose, self.calls.get(&ask.call_id)) {
            (AskPurpose::Unknown, Some(CallState::Unknown { attempt, .. })) => *attempt == ask.attempt,
            (AskPurpose::Call, Some(CallState::Asked { attempt, call, requirements, .. })) => {
                *attempt == ask.attempt && ask.call == Some(call.digest) && ask.requirements == *requirements
            }
            (AskPurpose::Question, Some(CallState::InputRequired { attempt, .. })) => {
                let open = self.open_question(&ask.call_id).map(|(number, _)| number);
                *attempt == ask.attempt && open.is_some() && ask.question == open
            }
            (AskPurpose::Unknown | AskPurpose::Call | AskPurpose::Question, _) => false,
        };
        if !fits {
            return Err(wrong_call("AskOpened", &ask.call_id, "there is nothing to ask about that attempt"));
        }
        self.asks.insert(ask.name.clone(), OpenAsk { ask: ask.clone(), uid: None });
        Ok(())
    }

    pub(super) fn post(&mut self, name: &str, uid: &str) -> Result<(), IllegalEvent> {
        let open = self.asks.get_mut(name).filter(|open| open.uid.is_none());
        open.ok_or(out_of_order("AskPosted", "no such question waits for its Approval"))?.uid = Some(uid.to_owned());
        Ok(())
    }

    pub(super) fn settle_ask(&mut self, name: &str, answer: &Answer, at: i64) -> Result<(), IllegalEvent> {
        let open = self.asks.get(name).ok_or(out_of_order("AskSettled", "no such question is open"))?;
        // What nobody was ever shown can still run out.
        let spoken = !matches!(answer, Answer::Withdrawn { .. } | Answer::Expired {});
        if open.uid.is_none() && spoken {
            return Err(out_of_order("AskSettled", "the Approval was never made"));
        }
        let ask = open.ask.clone();
        let answers_it = match answer {
            Answer::Happened { .. } | Answer::Retry { .. } | Answer::End { .. } => ask.purpose == AskPurpose::Unknown,
            Answer::Allowed { .. } => ask.purpose == AskPurpose::Call,
            Answer::Denied { .. } | Answer::Expired {} => {
                matches!(ask.purpose, AskPurpose::Call | AskPurpose::Question)
            }
            Answer::Answered { .. } | Answer::Misfit { .. } => ask.purpose == AskPurpose::Question,
            Answer::Withdrawn { .. } => true,
        };
        if !answers_it {
            return Err(out_of_order("AskSettled", "that is no answer to such a question"));
        }
        let answered = match answer {
            Answer::Answered { content, by } => self.note_answer(&ask, content.as_ref(), by, at),
            _ => None, // every other answer is about the call as it stands
        };
        self.move_call("AskSettled", &ask.call_id, |now| answered.or_else(|| settled(now, &ask, answer)))?;
        if let (Answer::Allowed { by }, Some(call)) = (answer, ask.call) {
            let Ask { attempt, requirements, expires_at, .. } = ask;
            let approved = Approved { attempt, call, requirements, expires_at, by: by.clone() };
            self.approved.insert(ask.call_id, approved);
        }
        self.asks.remove(name);
        if spoken {
            self.come_forward();
        }
        Ok(())
    }

    pub(super) fn move_permitted(
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
            | CallState::Asked { .. }
            | CallState::Later { .. }
            | CallState::Proposed { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
            | CallState::Settled(_) => None,
        })
    }

    pub(super) fn move_call(
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

/// What an answer makes of the call that it is about.
fn settled(now: &CallState, ask: &Ask, answer: &Answer) -> Option<CallState> {
    let attempt = ask.attempt;
    match answer {
        Answer::Happened { .. } => Some(CallState::Settled(Settlement::Reported)),
        Answer::Retry { .. } => Some(CallState::Due { attempt: attempt + 1 }),
        Answer::End { .. } => Some(now.clone()),
        Answer::Withdrawn { why } => Some(with_note(now, why)),
        Answer::Misfit { why } => Some(with_misfit(with_note(now, why))),
        // The verdict follows that settles the call.
        Answer::Denied { .. } | Answer::Expired {} if ask.purpose == AskPurpose::Question => Some(now.clone()),
        // It does not answer the question that is open.
        Answer::Answered { .. } => None,
        // The call is proposed again, and finds its approval; a no is followed by the verdict that settles it.
        Answer::Allowed { .. } | Answer::Denied { .. } | Answer::Expired {} => match now {
            CallState::Asked { attempt: asked, call, .. } if *asked == attempt && ask.call == Some(call.digest) => {
                let allowed = matches!(answer, Answer::Allowed { .. });
                Some(if allowed { CallState::Due { attempt } } else { now.clone() })
            }
            CallState::Asked { .. }
            | CallState::Later { .. }
            | CallState::Due { .. }
            | CallState::Proposed { .. }
            | CallState::Permitted { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Delegated { .. }
            | CallState::Settled(_) => None,
        },
    }
}

/// What is told to people with the next question; the first words stay, and it never grows without bound.
fn with_note(call: &CallState, why: &str) -> CallState {
    let mut noted = call.clone();
    if let CallState::Unknown { message, .. } = &mut noted {
        let first = message.split(NOTE).next().unwrap_or_default();
        *message = format!("{first}{NOTE}{why}");
    }
    if let CallState::InputRequired { note, .. } = &mut noted {
        *note = Some(why.to_owned());
    }
    noted
}

fn with_misfit(mut call: CallState) -> CallState {
    if let CallState::InputRequired { misfits, .. } = &mut call {
        *misfits = misfits.saturating_add(1);
    }
    call
}

const NOTE: &str = "; asked again: ";
