//! How people are asked about what a Tool's server offers otherwise than it was accepted, and how their answer is taken.
//! Each question stands in status before its Approval is made, and counts on the one uid that status holds. What is read
//! from a cache that lags is written with its version, so that it is a lost race and read again.

use std::time::Duration;

use belay_crds::{Acceptance, Approval, ApprovalOutcome, DriftQuestion, DriftRefusal, Tool, ToolStatus};
use belay_protocol::Digest;
use belay_protocol::event::Answer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use super::offer::{Terms, approval, kept, request, stamp, words};
use super::{Tools, drift, unrest};
use crate::approval::{self, Settled, Tally};
use crate::clock::from_milliseconds;
use crate::controller::Failure;
use crate::pod_template::random_suffix;

/// How long people have; then it is asked anew.
const EXPIRES_AFTER_MILLISECONDS: i64 = 7 * 24 * 60 * 60 * 1000;
/// Quota, admission rules and the like change without telling.
const REFUSED_AGAIN: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_millis(200);
const SUFFIX_LENGTH: usize = 8;
const NONCE_LENGTH: usize = 32;
/// Leaves room for a suffix in an object's name.
const TOOL_NAME_CHARACTERS: usize = 200;

/// What came of a look at the question.
#[derive(Debug, Default)]
pub struct Asked {
    pub again: Option<Duration>,
    /// Why people cannot be asked, or their answer not be taken.
    pub unasked: Option<String>,
}

impl Asked {
    fn soon() -> Self {
        Self { again: Some(SOON), unasked: None }
    }

    fn not(why: String) -> Self {
        Self { again: Some(REFUSED_AGAIN), unasked: Some(why) }
    }
}

impl Tools {
    /// 1. A question about what is not so any more is closed. 2. One step of the question that there is: put it into
    ///    status, make its Approval, count, or take the answer. `status` is what will be written after it.
    pub(super) async fn settle(&self, tool: &Tool, status: &mut ToolStatus) -> Result<Asked, Failure> {
        let same_server = drift::was_accepted(status, &tool.spec);
        if !same_server {
            status.drift = None; // Another server: what it offers is accepted once it is listed.
        }
        let before = tool.status.as_ref().and_then(|status| status.drift.as_ref()?.question.as_ref());
        let stays = status.drift.as_ref().and_then(|drift| drift.question.as_ref());
        if let Some(old) = before.filter(|old| Some(*old) != stays) {
            self.close(tool, old).await?;
            if same_server {
                unrest::note(status, self.clock.now());
            }
        }
        let Some(drift) = &mut status.drift else { return Ok(Asked::default()) };
        // An edit of the Tool asks again.
        if drift.refused.as_ref().is_some_and(|no| Some(no.generation) == tool.metadata.generation) {
            return Ok(Asked::default());
        }
        drift.refused = None;
        let Some(question) = drift.question.clone() else { return self.draft(tool, status).await };
        match &question.uid {
            None if before == Some(&question) => self.post(tool, status, &question).await,
            None => Ok(Asked::soon()),
            Some(_) => self.look(tool, status, &question).await,
        }
    }

    /// The question goes into status, with the rules that guard it; its Approval is made in the next pass. Not at once
    /// where the server does not come to rest: an Approval stays as long as its Tool.
    async fn draft(&self, tool: &Tool, status: &mut ToolStatus) -> Result<Asked, Failure> {
        if let Some(asked) = status.unrest.as_ref().and_then(|unrest| unrest::quiet(unrest, self.clock.now())) {
            return Ok(asked);
        }
        let nonce = random_suffix(&mut rand::rng(), NONCE_LENGTH);
        let expires_at = Time(from_milliseconds(self.clock.milliseconds().saturating_add(EXPIRES_AFTER_MILLISECONDS)));
        let terms = Terms { nonce: &nonce, expires_at: &expires_at };
        let Some((request, digest)) = request(tool, status, &terms)? else { return Ok(Asked::default()) };
        let suffix = random_suffix(&mut rand::rng(), SUFFIX_LENGTH);
        let start: String = tool.name_any().chars().take(TOOL_NAME_CHARACTERS).collect();
        let name = format!("{}-drift-{suffix}", start.trim_end_matches(['.', '-']));
        let guard = match self.guard.stamp(&approval(tool, &name, request)).await {
            Ok(stamp) => kept(stamp),
            Err(why) => return Ok(Asked::not(format!("nobody can be asked: {why}"))),
        };
        if let Some(drift) = &mut status.drift {
            let digest = digest.to_string();
            drift.question = Some(DriftQuestion { approval: name, uid: None, nonce, digest, expires_at, guard });
        }
        Ok(Asked::soon())
    }

    /// Makes the Approval, never applies it; one of that name is ours, since nobody else may create any.
    async fn post(&self, tool: &Tool, status: &mut ToolStatus, question: &DriftQuestion) -> Result<Asked, Failure> {
        let built = request(tool, status, &Terms::from(question))?;
        let Some((request, _)) = built.filter(|(_, digest)| digest.to_string() == question.digest) else {
            return Ok(anew(tool, status, "the question cannot be put as it was written down"));
        };
        let namespace = tool.namespace().unwrap_or_default();
        let approvals: Api<Approval> = Api::namespaced(self.writes.client(), &namespace);
        let made = approvals.create(&PostParams::default(), &approval(tool, &question.approval, request)).await;
        let made = match made {
            Err(kube::Error::Api(refused)) if refused.code == 409 && refused.reason == "AlreadyExists" => {
                self.fetch(tool, question).await?
            }
            Err(kube::Error::Api(refused)) if matches!(refused.code, 403 | 404 | 422) => {
                let name = &question.approval;
                return Ok(Asked::not(format!("Approval {name} cannot be created: {}", refused.message)));
            }
            made => Some(made.map_err(Failure::api("creating the Approval"))?),
        };
        if let Some((made, uid)) = made.and_then(|made| made.uid().map(|uid| (made, uid))) {
            if let Some(question) = status.drift.as_mut().and_then(|drift| drift.question.as_mut()) {
                question.uid = Some(uid);
            }
            self.writes.announce_question(&made, tool, &words(&tool.name_any(), question)).await;
            tracing::info!(namespace, tool = tool.name_any(), approval = question.approval, "people are asked");
        }
        Ok(Asked::soon())
    }

    /// 1. Read it, from quorum where something is to be taken. 2. See that the guard stood, since the question was put and
    ///    now. 3. Seal that very version. 4. Take what it says. A crash in between finds it sealed.
    async fn look(&self, tool: &Tool, status: &mut ToolStatus, question: &DriftQuestion) -> Result<Asked, Failure> {
        let Ok(digest) = question.digest.parse::<Digest>() else {
            return Ok(anew(tool, status, "its digest cannot be read"));
        };
        let left = question.expires_at.0.as_millisecond().saturating_sub(self.clock.milliseconds());
        let ours = |approval: &Approval| approval.uid() == question.uid;
        let open =
            |approval: &Approval| left > 0 && !approval.is_sealed() && approval::tally(approval, digest) == Tally::Open;
        let cached = self.world.approval(&tool.namespace().unwrap_or_default(), &question.approval);
        let found = match cached.filter(|cached| ours(cached) && open(cached)) {
            Some(cached) => Some((*cached).clone()),
            None => self.fetch(tool, question).await?.filter(ours),
        };
        let Some(found) = found else {
            return Ok(anew(tool, status, "the Approval before this one was deleted"));
        };
        if open(&found) {
            approval::count(&self.writes, &found, digest).await?;
            let left = Duration::from_millis(u64::try_from(left).unwrap_or_default());
            return Ok(Asked { again: Some(left.saturating_add(SOON)), unasked: None });
        }
        if left <= 0 {
            approval::seal(&self.writes, found, digest, ApprovalOutcome::Expired).await?;
            return Ok(anew(tool, status, "nobody decided in time"));
        }
        match self.guard.vouch(&found, &stamp(&question.guard)).await {
            Ok(vouched) if vouched.covers(&found) => {}
            Ok(_) => return Ok(Asked::soon()),
            Err(why) if why.asks_anew() => {
                approval::seal(&self.writes, found, digest, ApprovalOutcome::Withdrawn).await?;
                return Ok(anew(tool, status, &format!("decisions are not honoured: {why}")));
            }
            Err(why) => {
                let name = &question.approval;
                return Ok(Asked::not(format!("decisions on Approval {name} do not count for now: {why}")));
            }
        }
        let settled = approval::settled(&found, digest);
        approval::seal(&self.writes, found, digest, settled.outcome()).await?;
        Ok(self.taken(tool, status, question, settled))
    }

    fn taken(&self, tool: &Tool, status: &mut ToolStatus, question: &DriftQuestion, settled: Settled) -> Asked {
        let (namespace, name, approval) = (tool.namespace(), tool.name_any(), question.approval.clone());
        match settled {
            Settled::Answer(Answer::Allowed { by }) => {
                let by: Vec<String> = by.into_iter().map(|approver| approver.by).collect();
                tracing::info!(namespace, tool = name, approval, ?by, "definitions accepted");
                status.unrest = None;
                drift::accept(status, Acceptance { approval, by, at: Time(self.clock.now()) });
                // There may be more than one question holds.
                self.probes.again(&tool.uid().unwrap_or_default());
                Asked::soon()
            }
            Settled::Answer(Answer::Denied { by, reason }) => {
                tracing::info!(namespace, tool = name, approval, by, "definitions refused");
                status.unrest = None;
                if let Some(drift) = &mut status.drift {
                    let generation = tool.metadata.generation.unwrap_or_default();
                    drift.question = None;
                    drift.refused = Some(DriftRefusal { by, reason, approval, generation });
                }
                Asked::default()
            }
            Settled::Answer(
                Answer::Happened { .. }
                | Answer::Retry { .. }
                | Answer::Answered { .. }
                | Answer::End { .. }
                | Answer::Withdrawn { .. }
                | Answer::Misfit { .. }
                | Answer::Expired {},
            ) => anew(tool, status, "that is no answer to such a question"),
            Settled::Nothing(why) | Settled::Misfit(why) => anew(tool, status, &why),
        }
    }

    /// Nobody decides any more about what is not so any more.
    async fn close(&self, tool: &Tool, question: &DriftQuestion) -> Result<(), Failure> {
        let Ok(digest) = question.digest.parse::<Digest>() else { return Ok(()) };
        let found = self.fetch(tool, question).await?;
        // Made a moment ago, perhaps: its name is random, and nobody else may make one.
        match found.filter(|found| question.uid.is_none() || found.uid() == question.uid) {
            Some(found) => match approval::seal(&self.writes, found, digest, ApprovalOutcome::Withdrawn).await {
                Ok(_) | Err(Failure::Gone) => Ok(()),
                Err(failure) => Err(failure),
            },
            None => Ok(()),
        }
    }

    async fn fetch(&self, tool: &Tool, question: &DriftQuestion) -> Result<Option<Approval>, Failure> {
        let namespace = tool.namespace().unwrap_or_default();
        let approvals: Api<Approval> = Api::namespaced(self.writes.client(), &namespace);
        approvals.get_opt(&question.approval).await.map_err(Failure::api("reading the Approval"))
    }
}

/// With a new name, nonce and time.
fn anew(tool: &Tool, status: &mut ToolStatus, why: &str) -> Asked {
    tracing::warn!(namespace = tool.namespace(), tool = tool.name_any(), why, "people are asked anew");
    if let Some(drift) = &mut status.drift {
        drift.question = None;
    }
    Asked::soon()
}
