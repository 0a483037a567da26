//! Questions of a run to people: what is seen of them, and how one is put. Journaled before the Approval is made, and
//! counted on the one uid that the journal holds. How answers are taken is in `settle`.

use std::sync::Arc;
use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, Approval, WaitingOn};
use belay_protocol::event::{Ask, AskPurpose, Event};
use belay_protocol::fold::{OpenAsk, RunState};
use belay_protocol::plan::ObjectId;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::AgentRuns;
use super::follow::SOON;
use super::observe::Sight;
use super::plan::{Approved, AskSeen, Follow, Wait};
use super::questions::{Draft, draft, out_of_date, question, words};
use super::status::Stand;
use crate::approval::{self, Tally};
use crate::controller::Failure;
use crate::pod_template::random_suffix;

const SUFFIX_LENGTH: usize = 8;
const NONCE_LENGTH: usize = 32;
/// Quota, admission rules and the like change without telling.
pub(super) const REFUSED_AGAIN: Duration = Duration::from_secs(15);
/// Leaves room for call id and suffix in an object's name.
const RUN_NAME_CHARACTERS: usize = 200;

impl AgentRuns {
    /// What is seen of the Approvals of open questions. A cache that lacks one is believed only after the API
    /// server agreed.
    pub(super) async fn asks(&self, id: &ObjectId, state: &RunState) -> Result<Vec<AskSeen>, Failure> {
        let mut asks = Vec::new();
        for open in state.asks.values() {
            let seen = match &open.uid {
                _ if out_of_date(state, &open.ask).is_some() => Approved::OutOfDate,
                _ if self.is_over(state, &open.ask) && open.ask.purpose == AskPurpose::Call => Approved::Overdue,
                // The pod that waits is let go with it, as with an answer.
                _ if self.is_over(state, &open.ask) && open.ask.purpose == AskPurpose::Question => Approved::Answered,
                None => Approved::Unposted,
                Some(uid) => self.approved(id, state, open, uid).await?,
            };
            asks.push(AskSeen { name: open.ask.name.clone(), seen });
        }
        Ok(asks)
    }

    async fn approved(&self, id: &ObjectId, state: &RunState, open: &OpenAsk, uid: &str) -> Result<Approved, Failure> {
        let ours = |approval: &Approval| approval.uid().as_deref() == Some(uid);
        let cached = self.world.approval(&id.namespace, &open.ask.name).filter(|approval| ours(approval));
        let found = match cached {
            Some(approval) => Some(approval),
            None => self.fetch_approval(&id.namespace, &open.ask.name).await?.filter(ours).map(Arc::new),
        };
        let Some(found) = found else { return Ok(Approved::Gone) };
        let tally = if self.is_over(state, &open.ask) { Tally::Open } else { approval::tally(&found, open.ask.digest) };
        Ok(match (open.ask.purpose, tally) {
            (AskPurpose::Call, Tally::Yes) => Approved::Allowed,
            (AskPurpose::Question, Tally::Yes | Tally::No) => Approved::Answered,
            (AskPurpose::Question, Tally::Open) if found.is_sealed() => Approved::Answered,
            (AskPurpose::Unknown, Tally::Yes) | (_, Tally::No) => Approved::Decided,
            (AskPurpose::Call | AskPurpose::Unknown, Tally::Open) if found.is_sealed() => Approved::Decided,
            (AskPurpose::Call | AskPurpose::Unknown | AskPurpose::Question, Tally::Open) => {
                let given = approval::given(&found, open.ask.digest);
                let shown = found.status.as_ref().and_then(|status| status.given.as_ref());
                let told = shown == Some(&given) || found.spec.decisions.is_empty();
                if told { Approved::Open } else { Approved::Uncounted }
            }
        })
    }

    /// Neither a clock that was set back nor one that is slow gives people more time.
    pub(super) fn is_over(&self, state: &RunState, ask: &Ask) -> bool {
        self.clock.milliseconds().max(state.updated_at) >= ask.expires_at
    }

    /// Journals the question, and which rules guard it; the Approval is made in the next pass.
    pub(super) async fn ask(&self, run: &AgentRun, sight: &Sight, call_id: &str) -> Result<Action, Failure> {
        let Some(state) = sight.state.as_deref() else { return Ok(Action::await_change()) };
        let drafted = draft(state, call_id, sight.limits.wait_seconds);
        let Some(Draft { purpose, attempt, call, question: number, requirements, expires_at }) = drafted else {
            return Ok(Action::requeue(SOON));
        };
        let suffix = random_suffix(&mut rand::rng(), SUFFIX_LENGTH);
        let start: String = sight.id.name.chars().take(RUN_NAME_CHARACTERS).collect();
        let start = start.trim_end_matches(['.', '-']);
        let mut ask = Ask {
            name: format!("{start}-{call_id}-{suffix}"),
            purpose,
            call_id: call_id.to_owned(),
            attempt,
            nonce: random_suffix(&mut rand::rng(), NONCE_LENGTH),
            expires_at,
            digest: belay_protocol::Digest::zero(),
            call,
            question: number,
            requirements,
            guard: None,
        };
        let Some(question) = question(state, &ask) else { return Ok(Action::requeue(SOON)) };
        let (request, digest) = approval::request(&question)?;
        ask.digest = digest;
        match self.guard.stamp(&approval::approval(run, &ask, request)).await {
            Ok(stamp) => ask.guard = Some(stamp),
            Err(why) => {
                return self.nobody_is_asked(run, sight, state, &ask, &format!("nobody can be asked: {why}")).await;
            }
        }
        self.append(sight, vec![Event::AskOpened { ask }]).await?;
        Ok(Action::requeue(SOON))
    }

    /// Makes the Approval, never applies it; one of that name is ours, since nobody else may create any.
    pub(super) async fn post(&self, run: &AgentRun, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| Some((state, state.asks.get(name)?)));
        let Some((state, OpenAsk { ask, .. })) = open else { return Ok(Action::requeue(SOON)) };
        let built = question(state, ask).map(|question| approval::request(&question)).transpose()?;
        let Some((request, _)) = built.filter(|(_, digest)| *digest == ask.digest) else {
            // A call that was proposed meanwhile shows in the next pass what became of it.
            let why = "the question cannot be put as it was journaled".to_owned();
            return self.withdraw(sight, name, why).await;
        };
        let approvals: Api<Approval> = Api::namespaced(self.writes.client(), &sight.id.namespace);
        let made = match approvals.create(&PostParams::default(), &approval::approval(run, ask, request)).await {
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                self.fetch_approval(&sight.id.namespace, name).await?
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
                let why = format!("Approval {name} cannot be created, so that nobody can be asked: {}", status.message);
                return self.nobody_is_asked(run, sight, state, ask, &why).await;
            }
            made => Some(made.map_err(Failure::api("creating the Approval"))?),
        };
        if let Some((made, uid)) = made.and_then(|made| made.uid().map(|uid| (made, uid))) {
            self.append(sight, vec![Event::AskPosted { name: name.to_owned(), uid }]).await?;
            self.writes.announce_question(&made, run, &words(state, ask)).await;
            tracing::info!(namespace = sight.id.namespace, run = sight.id.name, approval = name, "people are asked");
        }
        Ok(Action::requeue(SOON))
    }

    /// The run waits, and says for what; it is tried again.
    pub(super) async fn nobody_is_asked(
        &self,
        run: &AgentRun,
        sight: &Sight,
        state: &RunState,
        ask: &Ask,
        why: &str,
    ) -> Result<Action, Failure> {
        let wait =
            Wait { on: WaitingOn::new("approval", &ask.name), reason: reason(ask.purpose), message: why.to_owned() };
        self.publish(run, sight, &Stand::following(Follow::Waiting(wait), state)).await?;
        Ok(Action::requeue(REFUSED_AGAIN))
    }

    pub(super) async fn fetch_approval(&self, namespace: &str, name: &str) -> Result<Option<Approval>, Failure> {
        let approvals: Api<Approval> = Api::namespaced(self.writes.client(), namespace);
        approvals.get_opt(name).await.map_err(Failure::api("reading the Approval"))
    }
}

/// Why a run waits with that question open.
#[must_use]
pub(super) fn reason(purpose: AskPurpose) -> RunReason {
    match purpose {
        AskPurpose::Unknown => RunReason::EffectUnknown,
        AskPurpose::Call => RunReason::ApprovalPending,
        AskPurpose::Question => RunReason::AnswerPending,
    }
}
