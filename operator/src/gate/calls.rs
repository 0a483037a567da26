//! The verdict on one proposed call.

use belay_crds::ALLOWS_MAX;
use belay_protocol::call::CallBinding;
use belay_protocol::digest::canonical;
use belay_protocol::elicitation::Inputs;
use belay_protocol::event::{DenyReason, LaterReason, ProposedCall, Verdict};
use belay_protocol::fold::{Approved, RunState};
use belay_protocol::judgement::{Judged, Judgement, PolicyRequirement};

use super::children::share;
use super::grants::covering;
use super::law::covers;
use super::{Circumstances, Word, held};
use crate::approval::{self, ARGUMENTS_BYTES_MAX};

/// One attempt of a call, as its runner would send it.
pub struct Proposal<'a> {
    pub call_id: &'a str,
    pub attempt: u32,
    pub call: &'a ProposedCall,
}

/// Checks, in order: is the run going on and not waiting for a definition, does the Agent list the operation, is its
/// definition the accepted one, is the digest the one over exactly this call, may the run start a further one where the
/// tool is an Agent, what do policies, people and their grants say, and may it go just now. Whatever fails means no. People
/// are asked at once, also about a call that could not go yet.
pub fn judge(run: &RunState, proposal: &Proposal<'_>, circumstances: &Circumstances<'_>) -> (Verdict, Option<Judged>) {
    if run.cancel_requested || run.end.is_some() {
        return (deny(DenyReason::RunEnding, "the run is ending".into()), None);
    }
    // Before anything is asked or denied: it is proposed anew with what comes of it.
    if run.drifted().next().is_some() {
        return (later(LaterReason::DefinitionDrifted), None);
    }
    if let Err(denied) = listed(run, proposal) {
        return (denied, None);
    }
    let (mut judged, fits) = match circumstances.words.get(&(proposal.call_id.to_owned(), proposal.attempt)) {
        Some(Word::Judged(judged)) => (judged.clone(), &[][..]),
        Some(Word::Granted { judged, fits }) => (judged.clone(), fits.as_slice()),
        Some(Word::Stalled(_)) | None => return (later(LaterReason::PolicyStalled), None),
    };
    let mut grants = Vec::new();
    let verdict = match &judged.judgement {
        Judgement::Deny { policy, rule, reason } => {
            deny(DenyReason::Policy, policy_words(policy, rule.as_deref(), reason))
        }
        Judgement::Allow => when_it_can_go(run, proposal, circumstances),
        Judgement::Ask { requirements } => match approved(run, proposal, requirements) {
            // Answers to a server's questions are no arguments that a pattern looks at: people see them, or nobody said yes.
            None if run.inputs.contains_key(proposal.call_id) => asked(run, proposal, &judged, requirements),
            None => match covering(run, proposal.call, requirements, fits, circumstances.now) {
                None => asked(run, proposal, &judged, requirements),
                Some(names) => {
                    grants = names;
                    when_it_can_go(run, proposal, circumstances)
                }
            },
            Some(approved) if approved.expires_at <= circumstances.now => {
                deny(DenyReason::Expired, "people allowed it, and then it could not be sent in time".into())
            }
            Some(_) => when_it_can_go(run, proposal, circumstances),
        },
    };
    // Only what gets a permit uses any.
    if matches!(verdict, Verdict::Allowed { .. }) {
        judged.grants = grants;
    }
    (verdict, Some(judged))
}

/// People are asked about what they can be shown whole, and about nothing else; and only so many as could also answer its
/// server, which wants a yes of every other policy besides.
fn asked(run: &RunState, proposal: &Proposal<'_>, judged: &Judged, requirements: &[PolicyRequirement]) -> Verdict {
    let call = proposal.call;
    let answers = approval::answered_before(run.inputs.get(proposal.call_id), None);
    let answers: usize =
        answers.iter().map(|one| one.message.len() + one.content.as_ref().map_or(0, String::len)).sum();
    let bytes = canonical(&call.args).map_or(usize::MAX, |bytes| bytes.len().saturating_add(answers));
    let people = |one: &PolicyRequirement| one.quorum.saturating_add(u32::from(one.separation_of_duty));
    let yes: usize = requirements.iter().map(|one| usize::try_from(people(one)).unwrap_or(usize::MAX)).sum();
    let others = judged.with_a_say().filter(|name| requirements.iter().all(|one| one.policy != *name)).count();
    if bytes > ARGUMENTS_BYTES_MAX {
        let message = format!(
            "{}/{} needs people's yes, and {bytes} bytes of arguments and of earlier answers are more than the \
             {ARGUMENTS_BYTES_MAX} that they can be shown: call it with less at a time",
            call.tool, call.operation
        );
        deny(DenyReason::CannotBeAsked, message)
    } else if yes.saturating_add(others) > ALLOWS_MAX || requirements.is_empty() {
        let message = format!(
            "{}/{} needs {yes} people's yes, and where its server asks something one more of each of {others} other policies; \
             an Approval holds {ALLOWS_MAX}: lower the quorums of its policies",
            call.tool, call.operation
        );
        deny(DenyReason::CannotBeAsked, message)
    } else {
        Verdict::Asked { requirements: requirements.to_vec() }
    }
}

/// Why this call is none that the plan would send, if it is not.
fn listed(run: &RunState, proposal: &Proposal<'_>) -> Result<(), Verdict> {
    let call = proposal.call;
    let name = format!("{}/{}", call.tool, call.operation);
    let tool = run.plan.as_ref().and_then(|plan| Some((plan, plan.tool(&call.tool)?)));
    let listed = tool.and_then(|(plan, tool)| Some((plan, tool, tool.operation(&call.operation)?)));
    let Some((plan, tool, operation)) = listed else {
        let message = format!(
            "the Agent does not list {name}: use an operation that was offered, or add it to the Agent's spec.tools"
        );
        return Err(deny(DenyReason::NotListed, message));
    };
    let offered = run.offered(&call.tool, &call.operation);
    let unchanged = !operation.gone && offered == Some(operation.definition);
    if !unchanged || call.definition != operation.definition {
        let message = format!(
            "the server's definition of {name} is not the one that was accepted for this run: go on without it; \
             a run that starts after people accepted it (belay tool accept {}) may use it",
            call.tool
        );
        return Err(deny(DenyReason::DefinitionChanged, message));
    }
    let binding = CallBinding::new(plan, tool, call.definition, &call.operation, &call.args);
    if let Some(Err(why)) = tool.agent.as_ref().map(|agent| share(run, agent, &call.args)) {
        return Err(deny(DenyReason::NoChild, format!("{name} starts no run: {why}")));
    }
    let inputs = run.inputs.get(proposal.call_id).map_or(Ok(None), Inputs::digest);
    match inputs.and_then(|inputs| CallBinding { inputs, ..binding }.digest()) {
        Ok(digest) if digest == call.digest => Ok(()),
        Ok(_) => {
            let message = format!("the digest of {name} is not over what the plan would send");
            Err(deny(DenyReason::DigestMismatch, message))
        }
        Err(error) => Err(deny(DenyReason::DigestMismatch, format!("the arguments of {name}: {error}"))),
    }
}

/// What people allowed, if it is this very attempt and these very bytes, on terms that are still wanted.
fn approved<'a>(run: &'a RunState, proposal: &Proposal<'_>, wanted: &[PolicyRequirement]) -> Option<&'a Approved> {
    run.approved.get(proposal.call_id).filter(|approved| {
        approved.attempt == proposal.attempt
            && approved.call == proposal.call.digest
            && covers(&approved.requirements, wanted)
    })
}

/// A permit for what is allowed, once nothing holds it up.
fn when_it_can_go(run: &RunState, proposal: &Proposal<'_>, circumstances: &Circumstances<'_>) -> Verdict {
    match held(run, circumstances.standing) {
        Some(reason) => later(reason),
        None if !run.has_room(proposal.call_id, proposal.call) => later(LaterReason::CallsUnderWay),
        None => Verdict::Allowed { digest: proposal.call.digest },
    }
}

fn policy_words(policy: &str, rule: Option<&str>, reason: &str) -> String {
    let rule = rule.map_or_else(String::new, |rule| format!(", rule {rule}"));
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("ApprovalPolicy {policy}{rule} says no{reason}")
}

fn later(reason: LaterReason) -> Verdict {
    Verdict::Later { reason }
}

fn deny(reason: DenyReason, message: String) -> Verdict {
    Verdict::Denied { reason, message }
}
