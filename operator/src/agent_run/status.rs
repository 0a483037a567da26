//! The status of a run: a function of its journal's fold and of what it waits for. Pure.

use belay_crds::conditions::{FINISHED, READY, RECONCILING, STALLED, Statement, Truth, find, set_condition};
use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, AgentRunStatus, JournalRef, Phase, PodRef, RunUsage, Usd, WaitingOn};
use belay_protocol::event::{EndReason, Outcome, RunEnd};
use belay_protocol::fold::RunState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Follow, JournalHead, Wait};
use crate::clock::from_milliseconds;
use crate::readiness::{Flip, Verdict};
use crate::writes::cut;

/// What of the output status shows; the journal holds all of it.
pub const OUTPUT_BYTES_MAX: usize = 4096;

/// Where a run stands, in the API's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    pub phase: Phase,
    pub waiting_on: Option<WaitingOn>,
    pub reason: RunReason,
    pub message: String,
}

impl Stand {
    /// A run that has not been accepted, or has no pod that runs.
    #[must_use]
    pub fn pending(wait: Wait) -> Self {
        Self { phase: Phase::Pending, waiting_on: Some(wait.on), reason: wait.reason, message: wait.message }
    }

    #[must_use]
    pub fn following(follow: Follow, state: &RunState) -> Self {
        let started = state.started_at.is_some();
        let running = || (Phase::Running, None, RunReason::Running, "its runner is at work".to_owned());
        let restarting = || {
            let words = format!("{} runners were lost since the run last came any further", state.restarts);
            (Phase::Running, None, RunReason::Restarting, words)
        };
        let (phase, waiting_on, reason, message) = match follow {
            Follow::Starting | Follow::Backoff(_) if started && state.restarts > 1 => restarting(),
            // From one pod to the next it runs on: a status for each would only be noise.
            Follow::Starting | Follow::Backoff(_) if started => running(),
            Follow::Starting | Follow::Backoff(_) => {
                (Phase::Pending, None, RunReason::PodStarting, "its pod starts".to_owned())
            }
            Follow::Waiting(wait) => {
                let phase = if started { Phase::Waiting } else { Phase::Pending };
                (phase, Some(wait.on), wait.reason, wait.message)
            }
            Follow::Running => running(),
            Follow::Held { reason, message } => (Phase::Running, None, reason, message),
            Follow::Cancelling => (
                Phase::Running,
                None,
                RunReason::Cancelling,
                "the run is being cancelled: calls in flight end".to_owned(),
            ),
        };
        Self { phase, waiting_on, reason, message }
    }

    /// Tells of a runner at work how the one before it was lost: after the words "its pod". An Event for each would be
    /// more writes than a lost pod may cost, so this comes with the next refresh of the figures.
    #[must_use]
    pub fn after(self, last_words: Option<&str>) -> Self {
        match last_words {
            Some(words) if self.reason == RunReason::Running => {
                Self { message: format!("{}; the pod before it {words}", self.message), ..self }
            }
            Some(_) | None => self,
        }
    }

    #[must_use]
    pub fn ended(end: &RunEnd) -> Self {
        let phase = match end.outcome {
            Outcome::Succeeded => Phase::Succeeded,
            Outcome::Failed => Phase::Failed,
            Outcome::Cancelled => Phase::Cancelled,
        };
        let message = match end.message.as_str() {
            "" => "the model has given its last answer".to_owned(),
            words => words.to_owned(),
        };
        Self { phase, waiting_on: None, reason: reason_of(end.reason), message }
    }

    /// As one verdict, for the Event.
    #[must_use]
    pub fn verdict(&self) -> Verdict<RunReason> {
        match self.phase {
            Phase::Pending | Phase::Running | Phase::Waiting => Verdict::waiting(self.reason, &self.message),
            Phase::Succeeded | Phase::Cancelled => Verdict::ready(self.reason, &self.message),
            Phase::Failed => Verdict::stalled(self.reason, &self.message),
        }
    }
}

/// Where the journal stands that status names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness<'a> {
    pub journal_id: &'a str,
    pub head: JournalHead,
}

/// What folds into a status.
pub struct Facts<'a> {
    pub run: &'a AgentRun,
    pub state: Option<&'a RunState>,
    pub witness: Option<Witness<'a>>,
    pub pod_uid: Option<String>,
    pub stand: &'a Stand,
    pub now: Time,
}

/// The whole status, and whether someone should hear of it.
#[must_use]
pub fn fold(facts: &Facts<'_>) -> (AgentRunStatus, Flip) {
    let before = facts.run.status.clone().unwrap_or_default();
    let mut status = AgentRunStatus {
        phase: Some(facts.stand.phase),
        waiting_on: facts.stand.waiting_on.clone(),
        observed_generation: facts.run.metadata.generation,
        ..before
    };
    if let Some(state) = facts.state {
        take_state(&mut status, state, facts.pod_uid.as_deref());
    }
    if let Some(witness) = &facts.witness {
        status.journal = Some(JournalRef {
            id: witness.journal_id.to_owned(),
            seq: i64::try_from(witness.head.seq).unwrap_or(i64::MAX),
            hash: witness.head.hash.clone(),
        });
    }
    if facts.stand.phase.is_terminal() && status.completion_time.is_none() {
        let at = facts.state.filter(|state| state.end.is_some()).map(|state| Time(from_milliseconds(state.updated_at)));
        status.completion_time = Some(at.unwrap_or_else(|| facts.now.clone()));
    }
    let flip = conditions(&mut status, facts);
    (status, flip)
}

fn take_state(status: &mut AgentRunStatus, state: &RunState, pod_uid: Option<&str>) {
    status.plan_digest = state.plan_digest.map(|digest| digest.to_string());
    status.model = state.plan.as_ref().map(|plan| plan.model_after(state.models_given_up).model.clone());
    if let Some(epoch) = &state.epoch {
        let uid = epoch.claim.as_ref().map(|claim| claim.pod_uid.as_str()).or(pod_uid).map(str::to_owned);
        let uid =
            uid.or_else(|| status.pod_ref.take().filter(|pod| pod.name == epoch.pod_name).and_then(|pod| pod.uid));
        status.pod_ref = Some(PodRef { name: epoch.pod_name.clone(), uid });
    }
    status.start_time = state.started_at.map(|at| Time(from_milliseconds(at)));
    status.usage = usage(state);
    if state.end.is_some() {
        let output = state.output.as_deref();
        status.output = output.map(|text| cut(text, OUTPUT_BYTES_MAX).to_owned());
        status.output_truncated = output.filter(|text| text.len() > OUTPUT_BYTES_MAX).map(|_| true);
    }
}

/// What nobody reported is absent: the sum too where some answer came without its numbers. A run without an answer used
/// nothing that is known.
fn usage(state: &RunState) -> Option<RunUsage> {
    if state.steps == 0 {
        return None;
    }
    let count = |tokens: Option<u64>| tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
    let known = !state.uncounted;
    let priced = state.plan.as_ref().is_some_and(|plan| plan.is_priced());
    Some(RunUsage {
        steps: i32::try_from(state.steps).unwrap_or(i32::MAX),
        input_tokens: count(state.usage.input_tokens),
        cached_input_tokens: count(state.usage.cached_input_tokens),
        output_tokens: count(state.usage.output_tokens),
        total_tokens: known.then(|| i64::try_from(state.usage.total()).unwrap_or(i64::MAX)),
        cost_usd: (priced && known).then(|| Usd::from_micro(state.cost.micro_usd())),
    })
}

/// Running and Waiting: Ready False, Reconciling True. Succeeded and Cancelled: Ready True. Failed: Stalled True.
fn conditions(status: &mut AgentRunStatus, facts: &Facts<'_>) -> Flip {
    let stand = facts.stand;
    let generation = facts.run.metadata.generation;
    let verdict = stand.verdict();
    let ready = verdict.write(&mut status.conditions, generation, &facts.now);
    let finished = if stand.phase.is_terminal() { Truth::True } else { Truth::False };
    // Reason and message of an open end are those of the way there; the status is what tools wait for.
    let message = if finished == Truth::True { stand.message.as_str() } else { "" };
    // `kubectl wait` asks for the outcome; why it came to that is Ready's reason.
    let reason = if finished == Truth::True { outcome_word(stand.phase) } else { stand.reason.as_str() };
    let say = Statement { type_: FINISHED, truth: finished, reason, message };
    let finished = set_condition(&mut status.conditions, &say, generation, facts.now.clone());
    Flip::of(ready == Flip::Flipped || finished)
}

fn outcome_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Waiting => "Waiting",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::Cancelled => "Cancelled",
    }
}

/// Whether a status says anything new, beyond figures and words on a run at work that are refreshed by time alone.
#[must_use]
pub fn is_news(before: &AgentRunStatus, after: &AgentRunStatus) -> bool {
    let told = |status: &AgentRunStatus| {
        let mut conditions: Vec<_> = [READY, RECONCILING, STALLED, FINISHED]
            .iter()
            .filter_map(|type_| find(&status.conditions, type_))
            .map(|c| {
                // Each step may wait its turn: told as it comes, that would be writes for each step.
                let at_work = [RunReason::Running, RunReason::RateLimited].iter().any(|one| c.reason == one.as_str());
                let (reason, message) =
                    if at_work { (RunReason::Running.as_str(), "") } else { (c.reason.as_str(), c.message.as_str()) };
                (c.type_.clone(), c.status.clone(), reason.to_owned(), message.to_owned())
            })
            .collect();
        conditions.sort();
        (status.phase, status.waiting_on.clone(), status.plan_digest.clone(), status.start_time.clone(), conditions)
    };
    told(before) != told(after)
}

/// The journal's reasons in the API's words.
#[must_use]
pub fn reason_of(reason: EndReason) -> RunReason {
    match reason {
        EndReason::Completed => RunReason::Completed,
        EndReason::Cancelled => RunReason::Cancelled,
        EndReason::StepsExceeded => RunReason::StepsExceeded,
        EndReason::TokensExceeded => RunReason::TokensExceeded,
        EndReason::CostExceeded => RunReason::CostExceeded,
        EndReason::JournalExceeded => RunReason::JournalExceeded,
        EndReason::DeadlineExceeded => RunReason::DeadlineExceeded,
        EndReason::WaitExceeded => RunReason::WaitExceeded,
        EndReason::ModelFailed => RunReason::ModelFailed,
        EndReason::ModelIncomplete => RunReason::ModelIncomplete,
        EndReason::OutputInvalid => RunReason::OutputInvalid,
        EndReason::ToolUnavailable => RunReason::ToolUnavailable,
        EndReason::CredentialUnavailable => RunReason::CredentialUnavailable,
        EndReason::PodLost => RunReason::PodLost,
        EndReason::RunnerCrashed => RunReason::RunnerCrashed,
        EndReason::RunnerSilent => RunReason::RunnerSilent,
        EndReason::JournalLost => RunReason::JournalLost,
        EndReason::UnknownEffect => RunReason::EndedByApprover,
    }
}
