//! Questions of a run to people. Journaled before the Approval is made, and counted on the one uid that the journal
//! holds; sealed before they are taken, so that a Deny lands before the seal and wins, or is refused.

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, Approval, ApprovalStatus, WaitingOn};
use belay_protocol::event::{Answer, Ask, AskPurpose, EndReason, EpochEnd, Event};
use belay_protocol::fold::{CallState, OpenAsk, RunState};
use belay_protocol::plan::ObjectId;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::AgentRuns;
use super::ending::Ending;
use super::follow::SOON;
use super::observe::Sight;
use super::plan::{Approved, AskSeen, Follow, Wait};
use super::status::Stand;
use crate::approval::{self, Question, Settled};
use crate::controller::Failure;
use crate::pod_template::random_suffix;

const SUFFIX_LENGTH: usize = 8;
const NONCE_LENGTH: usize = 32;
/// Quota and the like change without telling.
const REFUSED_AGAIN: Duration = Duration::from_secs(15);
/// Leaves room for call id and suffix in an object's name.
const RUN_NAME_CHARACTERS: usize = 200;

impl AgentRuns {
    /// What is seen of the Approvals of open questions. A cache that lacks one is believed only after the API
    /// server agreed.
    pub(super) async fn asks(&self, id: &ObjectId, state: &RunState) -> Result<Vec<AskSeen>, Failure> {
        let mut asks = Vec::new();
        for open in state.asks.values() {
            let seen = match &open.uid {
                None => Approved::Unposted,
                Some(uid) => self.approved(id, open, uid).await?,
            };
            asks.push(AskSeen { name: open.ask.name.clone(), seen });
        }
        Ok(asks)
    }

    async fn approved(&self, id: &ObjectId, open: &OpenAsk, uid: &str) -> Result<Approved, Failure> {
        let ours = |approval: &Approval| approval.uid().as_deref() == Some(uid);
        let cached = self.world.approval(&id.namespace, &open.ask.name).filter(|approval| ours(approval));
        let found = match cached {
            Some(approval) => Some(approval),
            None => self.fetch_approval(&id.namespace, &open.ask.name).await?.filter(ours).map(std::sync::Arc::new),
        };
        let Some(found) = found else { return Ok(Approved::Gone) };
        let sealed = found.status.as_ref().is_some_and(|status| status.sealed == Some(true));
        let in_time = self.clock.milliseconds() < open.ask.expires_at;
        let decided = in_time && approval::is_decided(&found, open.ask.digest);
        Ok(if sealed || decided { Approved::Decided } else { Approved::Open })
    }

    /// Journals the question; the Approval is made in the next pass.
    pub(super) async fn ask(&self, sight: &Sight, call_id: &str) -> Result<Action, Failure> {
        let Some(state) = sight.state.as_deref() else { return Ok(Action::await_change()) };
        let Some(CallState::Unknown { attempt, at, .. }) = state.calls.get(call_id) else {
            return Ok(Action::requeue(SOON));
        };
        let suffix = random_suffix(&mut rand::rng(), SUFFIX_LENGTH);
        let run: String = sight.id.name.chars().take(RUN_NAME_CHARACTERS).collect();
        let run = run.trim_end_matches(['.', '-']);
        let mut ask = Ask {
            name: format!("{run}-{call_id}-{suffix}"),
            purpose: AskPurpose::Unknown,
            call_id: call_id.to_owned(),
            attempt: *attempt,
            nonce: random_suffix(&mut rand::rng(), NONCE_LENGTH),
            // Asked anew, it expires when it would have expired.
            expires_at: at.saturating_add(i64::from(sight.limits.wait_seconds).saturating_mul(1000)),
            digest: belay_protocol::Digest::zero(),
        };
        let Some(question) = question(state, &ask) else { return Ok(Action::requeue(SOON)) };
        ask.digest = approval::request(&question)?.1;
        self.append(sight, vec![Event::AskOpened { ask }]).await?;
        Ok(Action::requeue(SOON))
    }

    /// Makes the Approval, never applies it; one of that name is ours, since nobody else may create any.
    pub(super) async fn post(&self, run: &AgentRun, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| Some((state, state.asks.get(name)?)));
        let Some((state, OpenAsk { ask, .. })) = open else { return Ok(Action::requeue(SOON)) };
        let built = question(state, ask).map(|question| approval::request(&question)).transpose()?;
        let Some((request, _)) = built.filter(|(_, digest)| *digest == ask.digest) else {
            let why = "the question cannot be put as it was journaled".to_owned();
            return self.withdraw(sight, name, why).await;
        };
        let approvals: Api<Approval> = Api::namespaced(self.writes.client(), &sight.id.namespace);
        let made = match approvals.create(&PostParams::default(), &approval::approval(run, ask, request)).await {
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                self.fetch_approval(&sight.id.namespace, name).await?
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
                let wait = Wait {
                    on: WaitingOn::new("approval", name),
                    reason: RunReason::EffectUnknown,
                    message: format!(
                        "Approval {name} cannot be created, so that nobody can be asked: {}",
                        status.message
                    ),
                };
                self.publish(run, sight, &Stand::following(Follow::Waiting(wait), state)).await?;
                return Ok(Action::requeue(REFUSED_AGAIN));
            }
            made => Some(made.map_err(Failure::api("creating the Approval"))?),
        };
        if let Some(uid) = made.and_then(|made| made.uid()) {
            self.append(sight, vec![Event::AskPosted { name: name.to_owned(), uid }]).await?;
            tracing::info!(namespace = sight.id.namespace, run = sight.id.name, approval = name, "people are asked");
        }
        Ok(Action::requeue(SOON))
    }

    /// 1. Read from quorum. 2. Seal that very version. 3. Journal what it says. A crash in between finds it sealed.
    pub(super) async fn settle(&self, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| Some((state, state.asks.get(name)?)));
        let Some((state, open)) = open else { return Ok(Action::requeue(SOON)) };
        let found = self.fetch_approval(&sight.id.namespace, name).await?;
        let Some(found) = found.filter(|found| found.uid() == open.uid) else {
            return self.withdraw(sight, name, "the Approval before this one was deleted".to_owned()).await;
        };
        let digest = open.ask.digest;
        let sealed = if found.status.as_ref().is_some_and(|status| status.sealed == Some(true)) {
            found
        } else {
            let status = ApprovalStatus { sealed: Some(true), given: Some(approval::given(&found, digest)) };
            self.writes.apply_status(&found, &status).await?
        };
        let answer = match approval::settled(&sealed, digest) {
            Settled::Answer(answer) => answer,
            Settled::Nothing(why) => return self.withdraw(sight, name, why).await,
        };
        tracing::info!(namespace = sight.id.namespace, run = sight.id.name, approval = name, ?answer, "people decided");
        self.append(sight, consequences(state, name, answer, sight)).await?;
        // A runner that waits here does not hear of decisions: the next one finds them in the journal.
        let _ = self.sessions.bye(&sight.id.uid, "people decided: the run goes on in another pod");
        Ok(Action::requeue(SOON))
    }

    async fn withdraw(&self, sight: &Sight, name: &str, why: String) -> Result<Action, Failure> {
        tracing::warn!(namespace = sight.id.namespace, run = sight.id.name, approval = name, why, "asked anew");
        let settled = Event::AskSettled { name: name.to_owned(), answer: Answer::Withdrawn { why } };
        self.append(sight, vec![settled]).await?;
        Ok(Action::requeue(SOON))
    }

    async fn fetch_approval(&self, namespace: &str, name: &str) -> Result<Option<Approval>, Failure> {
        let approvals: Api<Approval> = Api::namespaced(self.writes.client(), namespace);
        approvals.get_opt(name).await.map_err(Failure::api("reading the Approval"))
    }
}

/// The answer, and what follows at once: the run's end, or that of an epoch whose runner waits.
fn consequences(state: &RunState, name: &str, answer: Answer, sight: &Sight) -> Vec<Event> {
    let end = match &answer {
        Answer::End { by, reason } => Some(format!("{by} ended the run{}", because(reason))),
        Answer::Happened { .. } | Answer::Retry { .. } | Answer::Withdrawn { .. } => None,
    };
    let mut events = vec![Event::AskSettled { name: name.to_owned(), answer }];
    let live = state.live_epoch().map(|epoch| epoch.number);
    match (end, live) {
        (Some(words), _) => {
            let ending = Ending::failed(EndReason::UnknownEffect, EpochEnd::Released, words).naming_unknowns(state);
            events.extend(ending.events(Some(state), sight.active_for));
        }
        (None, Some(epoch)) => {
            let active_milliseconds = u64::try_from(sight.active_for.as_millis()).unwrap_or(u64::MAX);
            events.push(Event::EpochEnded { epoch, cause: EpochEnd::Released, active_milliseconds });
        }
        (None, None) => {}
    }
    events
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn question<'a>(state: &'a RunState, ask: &'a Ask) -> Option<Question<'a>> {
    let (plan, call) = (state.plan.as_deref()?, state.calls.get(&ask.call_id)?);
    match call {
        CallState::Unknown { attempt, call, at, message } if *attempt == ask.attempt => Some(Question {
            plan,
            call_id: &ask.call_id,
            attempt: *attempt,
            call,
            sent_at: *at,
            expires_at: ask.expires_at,
            message,
            nonce: &ask.nonce,
        }),
        CallState::Unknown { .. }
        | CallState::Due { .. }
        | CallState::Proposed { .. }
        | CallState::Permitted { .. }
        | CallState::Settled(_) => None,
    }
}
