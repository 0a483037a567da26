//! How answers of people are taken. An Approval is sealed before its decisions are journaled, so that a Deny lands
//! before the seal and wins, or is refused; and nothing is sealed before the admission rules were seen to be in force.

use belay_crds::{AgentRun, Approval, ApprovalOutcome};
use belay_protocol::elicitation::MISFITS_MAX;
use belay_protocol::event::{Answer, Ask, AskPurpose, DenyReason, EndReason, EpochEnd, Event, Verdict};
use belay_protocol::fold::{CallState, OpenAsk, RunState};
use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::AgentRuns;
use super::asks::REFUSED_AGAIN;
use super::ending::Ending;
use super::follow::SOON;
use super::observe::Sight;
use super::questions::out_of_date;
use crate::approval::{self, Settled, Tally};
use crate::controller::Failure;
use crate::guard::{Vouched, Why};

/// What a look at the guard found that began when this version of the Approval had been seen.
struct Looked {
    version: String,
    found: Result<Vouched, Why>,
}

impl AgentRuns {
    /// 1. Read from quorum. 2. See that the guard stood, since the question was put and now; at once with the reading, where
    ///    that finds nothing else than what was seen before. 3. Seal that very version. 4. Journal what it says. A crash in
    ///    between finds it sealed.
    pub(super) async fn settle(&self, run: &AgentRun, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| Some((state, state.asks.get(name)?)));
        let Some((state, open)) = open else { return Ok(Action::requeue(SOON)) };
        let early = Box::pin(self.look_early(sight, open));
        let (found, early) = tokio::join!(self.fetch_approval(&sight.id.namespace, name), early);
        let found = found?.filter(|found| found.uid() == open.uid);
        if let Some(why) = out_of_date(state, &open.ask) {
            if let Some(found) = found {
                self.seal(found, &open.ask, ApprovalOutcome::Withdrawn).await?;
            }
            return self.withdraw(sight, name, why).await;
        }
        let overdue = expires(open.ask.purpose) && self.is_over(state, &open.ask);
        let Some(found) = found else {
            if overdue {
                return self.take(sight, state, &open.ask, Answer::Expired {}).await;
            }
            return self.withdraw(sight, name, "the Approval before this one was deleted".to_owned()).await;
        };
        if overdue {
            self.seal(found, &open.ask, ApprovalOutcome::Expired).await?;
            return self.take(sight, state, &open.ask, Answer::Expired {}).await;
        }
        if approval::tally(&found, open.ask.digest) == Tally::Open && !found.is_sealed() {
            return Ok(Action::requeue(SOON));
        }
        if let Some(action) = self.distrust(run, sight, open, &found, early).await? {
            return Ok(action);
        }
        let settled = match approval::settled(&found, open.ask.digest) {
            Settled::Answer(Answer::Allowed { .. } | Answer::Answered { .. }) if self.is_over(state, &open.ask) => {
                Settled::Answer(Answer::Expired {})
            }
            settled => settled,
        };
        let sealed = self.seal(found, &open.ask, settled.outcome()).await?;
        let answer = match settled {
            Settled::Answer(answer) => answer,
            Settled::Misfit(why) => Answer::Misfit { why },
            Settled::Nothing(why) => return self.withdraw(sight, name, why).await,
        };
        // Seldom taken, and long: apart, so that every other pass stays small.
        let given = if matches!(answer, Answer::Allowed { .. }) {
            Box::pin(self.given(sight, state, &open.ask, &sealed)).await
        } else {
            Vec::new()
        };
        let mut events = consequences(state, &open.ask, answer.clone(), sight);
        events.extend(given.iter().cloned());
        self.append(sight, events).await?;
        // Before the runner hears of it: the next call may come at once, and is asked about unless its grant is there.
        Box::pin(self.announce_given(run, sight, &sealed, &given)).await;
        Ok(self.told(sight, state, &open.ask, &answer))
    }

    /// A look at the guard that begins once decisions were seen, beside the read from quorum.
    async fn look_early(&self, sight: &Sight, open: &OpenAsk) -> Option<Looked> {
        let stamp = open.ask.guard.as_ref()?;
        let seen = self.world.approval(&sight.id.namespace, &open.ask.name)?;
        let decided = seen.uid() == open.uid && approval::tally(&seen, open.ask.digest) != Tally::Open;
        let version = seen.resource_version().filter(|_| decided)?;
        Some(Looked { version, found: self.guard.vouch(&seen, stamp).await })
    }

    /// What to do instead of believing the decisions: they were perhaps made while nobody checked them.
    async fn distrust(
        &self,
        run: &AgentRun,
        sight: &Sight,
        open: &OpenAsk,
        found: &Approval,
        early: Option<Looked>,
    ) -> Result<Option<Action>, Failure> {
        let (ask, name) = (&open.ask, &open.ask.name);
        let Some(stamp) = &ask.guard else {
            let why = "it was put before the operator watched its admission rules".to_owned();
            self.seal(found.clone(), ask, ApprovalOutcome::Withdrawn).await?;
            return self.withdraw(sight, name, why).await.map(Some);
        };
        // A decision that came after it began is not vouched for by that look.
        let early = early.filter(|early| found.resource_version().as_ref() == Some(&early.version));
        let looked = match early {
            Some(early) => early.found,
            None => self.guard.vouch(found, stamp).await,
        };
        match looked {
            Ok(vouched) if vouched.covers(found) => Ok(None),
            Ok(_) => Ok(Some(Action::requeue(SOON))),
            Err(why) if why.asks_anew() => {
                tracing::error!(namespace = sight.id.namespace, approval = name, %why, "decisions are not honoured");
                self.seal(found.clone(), ask, ApprovalOutcome::Withdrawn).await?;
                self.withdraw(sight, name, why.to_string()).await.map(Some)
            }
            Err(why) => {
                let Some(state) = sight.state.as_deref() else { return Ok(Some(Action::requeue(SOON))) };
                let words = format!("decisions on Approval {name} do not count for now: {why}");
                tracing::warn!(namespace = sight.id.namespace, approval = name, %why, "decisions are not honoured yet");
                self.nobody_is_asked(run, sight, state, ask, &words).await.map(|_| Some(Action::requeue(REFUSED_AGAIN)))
            }
        }
    }

    async fn seal(&self, approval: Approval, ask: &Ask, outcome: ApprovalOutcome) -> Result<Approval, Failure> {
        approval::seal(&self.writes, approval, ask.digest, outcome).await
    }

    /// `GIVEN` follows the decisions, one write for each.
    pub(super) async fn count(&self, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| state.asks.get(name));
        let found = self.fetch_approval(&sight.id.namespace, name).await?;
        let (Some(open), Some(found)) = (open, found) else { return Ok(Action::requeue(SOON)) };
        approval::count(&self.writes, &found, open.ask.digest).await?;
        Ok(Action::requeue(SOON))
    }

    /// No decision on what a run asked counts any more once it has ended: none is taken.
    pub(super) async fn close_asks(&self, sight: &Sight, state: &RunState) -> Result<(), Failure> {
        for (name, open) in &state.asks {
            let found = self.fetch_approval(&sight.id.namespace, name).await?;
            if let Some(found) = found.filter(|found| open.uid.is_some() && found.uid() == open.uid) {
                match self.seal(found, &open.ask, ApprovalOutcome::Withdrawn).await {
                    Ok(_) | Err(Failure::Gone) => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok(())
    }

    async fn take(&self, sight: &Sight, state: &RunState, ask: &Ask, answer: Answer) -> Result<Action, Failure> {
        self.append(sight, consequences(state, ask, answer.clone(), sight)).await?;
        Ok(self.told(sight, state, ask, &answer))
    }

    /// The runner hears of what was journaled.
    fn told(&self, sight: &Sight, state: &RunState, ask: &Ask, answer: &Answer) -> Action {
        let (namespace, run, approval) = (&sight.id.namespace, &sight.id.name, &ask.name);
        let shown = match answer {
            // What people tell a server is the journal's business, not the log's.
            Answer::Answered { by, .. } => format!("Answered by {by:?}"),
            other => format!("{other:?}"),
        };
        tracing::info!(%namespace, %run, %approval, answer = shown, "people decided");
        let another_pod = match answer {
            Answer::Happened { .. } | Answer::Retry { .. } | Answer::End { .. } | Answer::Answered { .. } => true,
            Answer::Denied { .. } | Answer::Expired {} => ask.purpose == AskPurpose::Question,
            Answer::Misfit { .. } => is_last_misfit(state, ask),
            Answer::Allowed { .. } | Answer::Withdrawn { .. } => false,
        };
        // Without a stream there is nobody to tell: the next runner finds it in the journal.
        let _ = if another_pod {
            self.sessions.bye(&sight.id.uid, "people decided: the run goes on in another pod")
        } else {
            self.sessions.look(&sight.id.uid)
        };
        Action::requeue(SOON)
    }

    pub(super) async fn withdraw(&self, sight: &Sight, name: &str, why: String) -> Result<Action, Failure> {
        tracing::warn!(namespace = sight.id.namespace, run = sight.id.name, approval = name, why, "asked anew");
        let settled = Event::AskSettled { name: name.to_owned(), answer: Answer::Withdrawn { why } };
        self.append(sight, vec![settled]).await?;
        Ok(Action::requeue(SOON))
    }
}

/// The answer, and what follows at once: the run's end, that of an epoch whose runner waits, or a call's denial.
fn consequences(state: &RunState, ask: &Ask, answer: Answer, sight: &Sight) -> Vec<Event> {
    let settled = |answer: Answer| Event::AskSettled { name: ask.name.clone(), answer };
    let denied = |reason: DenyReason, message: String| Event::CallDecided {
        call_id: ask.call_id.clone(),
        attempt: ask.attempt,
        verdict: Verdict::Denied { reason, message },
        judged: None,
    };
    // The runner that waits knows nothing of the answer: the next one reads it.
    let over = || {
        let active_milliseconds = u64::try_from(sight.active_for.as_millis()).unwrap_or(u64::MAX);
        let live = state.live_epoch().map(|epoch| epoch.number);
        live.map(|epoch| Event::EpochEnded { epoch, cause: EpochEnd::Released, active_milliseconds })
    };
    match answer {
        Answer::End { ref by, ref reason } => {
            let words = format!("{by} ended the run{}", because(reason));
            let ending = Ending::failed(EndReason::UnknownEffect, EpochEnd::Released, words).naming_unknowns(state);
            let mut events = vec![settled(answer)];
            events.extend(ending.events(Some(state), sight.active_for));
            events
        }
        Answer::Happened { .. } | Answer::Retry { .. } | Answer::Answered { .. } => {
            std::iter::once(settled(answer)).chain(over()).collect()
        }
        Answer::Denied { ref reason, .. } if ask.purpose == AskPurpose::Question => {
            let denied =
                denied(DenyReason::Refused, unanswered(state, ask, &format!("they declined{}", because(reason))));
            [settled(answer), denied].into_iter().chain(over()).collect()
        }
        Answer::Expired {} if ask.purpose == AskPurpose::Question => {
            let denied = denied(DenyReason::Expired, unanswered(state, ask, "nobody answered in time"));
            [settled(answer), denied].into_iter().chain(over()).collect()
        }
        Answer::Misfit { ref why } if is_last_misfit(state, ask) => {
            let why = format!("{MISFITS_MAX} times what they answered could not be sent, the last time since {why}");
            let denied = denied(DenyReason::Refused, unanswered(state, ask, &why));
            [settled(answer), denied].into_iter().chain(over()).collect()
        }
        Answer::Denied { ref reason, .. } => {
            let words = format!("a person who may decide said no{}", because(reason));
            vec![settled(answer), denied(DenyReason::Refused, words)]
        }
        Answer::Expired {} => {
            let words = "people were asked, and not enough of them said yes in time".to_owned();
            // It can have been proposed anew since; then the verdict on that says so.
            let asked = matches!(state.calls.get(&ask.call_id), Some(CallState::Asked { .. }));
            let denied = asked.then(|| denied(DenyReason::Expired, words));
            std::iter::once(settled(answer)).chain(denied).collect()
        }
        Answer::Allowed { .. } | Answer::Withdrawn { .. } | Answer::Misfit { .. } => vec![settled(answer)],
    }
}

/// Whether a question of that kind runs out by itself. One about an Unknown stands for as long as the run waits.
fn expires(purpose: AskPurpose) -> bool {
    match purpose {
        AskPurpose::Call | AskPurpose::Question => true,
        AskPurpose::Unknown => false,
    }
}

/// Whether people have answered as often as they may what cannot be sent.
fn is_last_misfit(state: &RunState, ask: &Ask) -> bool {
    match state.calls.get(&ask.call_id) {
        Some(CallState::InputRequired { misfits, .. }) => misfits.saturating_add(1) >= MISFITS_MAX,
        _ => false, // the journal refuses the answer then
    }
}

/// For the model: its call has no result, since its server was not told what it wanted to know.
fn unanswered(state: &RunState, ask: &Ask, why: &str) -> String {
    let required = match state.calls.get(&ask.call_id) {
        Some(CallState::InputRequired { required, .. }) => Some(required),
        _ => None, // the journal refuses the answer then
    };
    let said = required.and_then(|required| required.said.as_deref());
    let said = said.map_or_else(String::new, |said| format!(". Told that nobody answers, the server said: {said}"));
    format!("its server asked people for input, and {why}{said}")
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}
