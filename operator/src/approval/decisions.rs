//! What decisions come to. A decision counts only for the request that it was given for, and on a policy that asks.

use std::collections::BTreeSet;

use belay_crds::{Approval, Decision, DecisionVerdict, Requirement};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use belay_protocol::event::Answer;

/// What a sealed Approval says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    Answer(Answer),
    /// Not enough people said the same: it is asked anew, and why is told.
    Nothing(String),
}

/// Whether there is enough to seal it: every requirement has its yes, or someone said no.
#[must_use]
pub fn is_decided(approval: &Approval, digest: Digest) -> bool {
    let decisions = counted(approval, digest);
    let denied = decisions.iter().any(|decision| decision.verdict == DecisionVerdict::Deny);
    denied || approval.spec.request.requirements.iter().all(|one| people(&decisions, one).len() >= quorum(one))
}

/// `GIVEN`: people who said yes, of those that are needed.
#[must_use]
pub fn given(approval: &Approval, digest: Digest) -> String {
    let decisions = counted(approval, digest);
    let requirements = &approval.spec.request.requirements;
    let yes: usize = requirements.iter().map(|one| people(&decisions, one).len().min(quorum(one))).sum();
    format!("{yes}/{}", requirements.iter().map(quorum).sum::<usize>())
}

/// A Deny beats any Allow; Allows have to agree.
#[must_use]
pub fn settled(approval: &Approval, digest: Digest) -> Settled {
    let decisions = counted(approval, digest);
    if let Some(deny) = decisions.iter().find(|decision| decision.verdict == DecisionVerdict::Deny) {
        let reason = deny.reason.clone().unwrap_or_default();
        return Settled::Answer(Answer::End { by: deny.by.clone(), reason });
    }
    if !is_decided(approval, digest) {
        return Settled::Nothing("it was sealed before enough people had decided".to_owned());
    }
    let mut answers = decisions.iter().filter_map(|decision| answer(decision));
    let Some(first) = answers.next() else {
        return Settled::Nothing("none of its decisions says what became of the call".to_owned());
    };
    match answers.find(|other| !agree(&first, other)) {
        None => Settled::Answer(first),
        Some(other) => Settled::Nothing(format!("people disagree: {}; {}", words(&first), words(&other))),
    }
}

/// The decisions that count.
fn counted(approval: &Approval, digest: Digest) -> Vec<&Decision> {
    let request = &approval.spec.request;
    let whole = serde_json::to_value(request).ok().and_then(|value| request_digest(&value).ok());
    if whole != Some(digest) {
        return Vec::new();
    }
    let signed = digest.to_string();
    let asked = |policy: &str| request.requirements.iter().any(|one| one.policy == policy);
    let separated = |decision: &Decision| {
        let duty = |one: &Requirement| one.policy == decision.policy && one.separation_of_duty == Some(true);
        decision.verdict == DecisionVerdict::Allow
            && decision.by == request.requested_by
            && request.requirements.iter().any(duty)
    };
    let decisions = approval.spec.decisions.iter();
    decisions.filter(|one| one.digest == signed && asked(&one.policy) && !separated(one)).collect()
}

fn people<'a>(decisions: &[&'a Decision], requirement: &Requirement) -> BTreeSet<&'a str> {
    let yes = |one: &&&Decision| one.policy == requirement.policy && one.verdict == DecisionVerdict::Allow;
    decisions.iter().filter(yes).map(|decision| decision.by.as_str()).collect()
}

fn quorum(requirement: &Requirement) -> usize {
    usize::try_from(requirement.quorum).unwrap_or(usize::MAX)
}

fn answer(decision: &Decision) -> Option<Answer> {
    let (by, answer) = (decision.by.clone(), decision.answer.as_ref()?);
    match (&answer.happened, &answer.retry) {
        (Some(happened), None) => Some(Answer::Happened { result: happened.result.clone(), by }),
        (None, Some(_)) => Some(Answer::Retry { by }),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

fn agree(one: &Answer, other: &Answer) -> bool {
    match (one, other) {
        (Answer::Happened { result: a, .. }, Answer::Happened { result: b, .. }) => a == b,
        (Answer::Retry { .. }, Answer::Retry { .. }) => true,
        (Answer::Happened { .. } | Answer::Retry { .. } | Answer::End { .. } | Answer::Withdrawn { .. }, _) => false,
    }
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::Happened { result, by } => format!("{by} says that it happened, with {result:?}"),
        Answer::Retry { by } => format!("{by} wants it sent again"),
        Answer::End { by, .. } => format!("{by} wants the run to end"),
        Answer::Withdrawn { why } => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use serde_json::{Value, json};

    use super::*;

    fn approval(decisions: &Value) -> (Approval, Digest) {
        let mut request = json!({
            "purpose": "Unknown", "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": "{}", "destination": "http://x/mcp",
            "callDigest": "sha256:c", "message": "?", "requirements": [{"policy": "default", "quorum": 1}],
            "requestedBy": "eve", "expiresAt": "2026-11-30T00:00:00Z", "nonce": "n",
        });
        let digest = request_digest(&request).unwrap();
        request["digest"] = json!(digest.to_string());
        let mut decisions = decisions.clone();
        for decision in decisions.as_array_mut().unwrap() {
            if decision.get("digest").is_none() {
                decision["digest"] = json!(digest.to_string());
            }
        }
        let object = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "a"},
            "spec": {"request": request, "decisions": decisions},
        });
        (serde_json::from_value(object).unwrap(), digest)
    }

    fn happened(by: &str, result: &str) -> Value {
        json!({"policy": "default", "by": by, "verdict": "Allow", "answer": {"happened": {"result": result}}})
    }

    fn retry(by: &str) -> Value {
        json!({"policy": "default", "by": by, "verdict": "Allow", "answer": {"retry": {}}})
    }

    #[test]
    fn one_yes_is_enough_and_a_no_beats_it() {
        let (undecided, digest) = approval(&json!([]));
        assert!(!is_decided(&undecided, digest));
        assert_eq!(given(&undecided, digest), "0/1");
        let (yes, digest) = approval(&json!([happened("ada", "done")]));
        assert_eq!(given(&yes, digest), "1/1");
        let expected = Answer::Happened { result: "done".to_owned(), by: "ada".to_owned() };
        assert_eq!(settled(&yes, digest), Settled::Answer(expected));
        let deny = json!({"policy": "default", "by": "bob", "verdict": "Deny", "reason": "stop"});
        let (no, digest) = approval(&json!([retry("ada"), deny]));
        let expected = Answer::End { by: "bob".to_owned(), reason: "stop".to_owned() };
        assert_eq!(settled(&no, digest), Settled::Answer(expected));
    }

    #[test]
    fn people_who_disagree_are_asked_again() {
        let (both, digest) = approval(&json!([happened("ada", "done"), retry("bob")]));
        let Settled::Nothing(why) = settled(&both, digest) else { unreachable!("no answer") };
        assert_eq!(why, "people disagree: ada says that it happened, with \"done\"; bob wants it sent again");
        let (alike, digest) = approval(&json!([happened("ada", "done"), happened("bob", "done")]));
        assert!(matches!(settled(&alike, digest), Settled::Answer(Answer::Happened { .. })));
    }

    #[test]
    fn a_decision_for_another_request_or_policy_counts_nothing() {
        let mut other = retry("ada");
        other["digest"] = json!("sha256:other");
        let mut policy = retry("ada");
        policy["policy"] = json!("mine");
        for decision in [other, policy] {
            let (approval, digest) = approval(&json!([decision]));
            assert!(!is_decided(&approval, digest));
        }
        let (mut changed, digest) = approval(&json!([retry("ada")]));
        changed.spec.request.arguments = "{\"force\":true}".to_owned();
        assert!(!is_decided(&changed, digest), "the request is not the one that was signed");
        let (good, _) = approval(&json!([retry("ada")]));
        assert!(!is_decided(&good, Digest::zero()), "nor the one that the journal holds");
    }
}
