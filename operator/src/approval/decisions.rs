//! What decisions come to. A decision counts only for the request that it was given for, and on a policy that asks.

use belay_crds::{Approval, ApprovalOutcome, ApprovalPurpose, Decision, DecisionVerdict};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use belay_protocol::event::{Answer, Approver};

/// How the decisions of an Approval stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// Not enough people have decided.
    Open,
    /// Everyone whose yes it needs said yes.
    Yes,
    /// Someone said no, which beats any yes.
    No,
}

/// What a sealed Approval says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    Answer(Answer),
    /// Not enough people said the same: it is asked anew, and why is told.
    Nothing(String),
    /// What they answered a server cannot be sent, and why.
    Misfit(String),
}

impl Settled {
    /// The same in one word, for whoever looks at the Approval.
    #[must_use]
    pub fn outcome(&self) -> ApprovalOutcome {
        match self {
            Self::Answer(Answer::Allowed { .. }) => ApprovalOutcome::Allowed,
            Self::Answer(Answer::Denied { .. } | Answer::End { .. }) => ApprovalOutcome::Denied,
            Self::Answer(Answer::Happened { .. } | Answer::Retry { .. } | Answer::Answered { .. }) => {
                ApprovalOutcome::Answered
            }
            Self::Answer(Answer::Expired {}) => ApprovalOutcome::Expired,
            Self::Answer(Answer::Withdrawn { .. } | Answer::Misfit { .. }) | Self::Nothing(_) | Self::Misfit(_) => {
                ApprovalOutcome::Withdrawn
            }
        }
    }
}

#[must_use]
pub fn tally(approval: &Approval, digest: Digest) -> Tally {
    let decisions = counted(approval, digest);
    if denial(&decisions).is_some() {
        Tally::No
    } else if approval.spec.request.has_every_yes(&decisions) {
        Tally::Yes
    } else {
        Tally::Open
    }
}

/// `GIVEN`: people who said yes, of those that are needed.
#[must_use]
pub fn given(approval: &Approval, digest: Digest) -> String {
    approval.spec.request.given(&counted(approval, digest))
}

/// A Deny beats any Allow; Allows of an Unknown have to agree.
#[must_use]
pub fn settled(approval: &Approval, digest: Digest) -> Settled {
    let decisions = counted(approval, digest);
    let purpose = approval.spec.request.purpose;
    if let Some(deny) = denial(&decisions) {
        let (by, reason) = (deny.by.clone(), deny.reason.clone().unwrap_or_default());
        return Settled::Answer(match purpose {
            ApprovalPurpose::Call | ApprovalPurpose::Drift | ApprovalPurpose::Question => Answer::Denied { by, reason },
            ApprovalPurpose::Unknown => Answer::End { by, reason },
        });
    }
    if !approval.spec.request.has_every_yes(&decisions) {
        return Settled::Nothing("it was sealed before enough people had decided".to_owned());
    }
    match purpose {
        ApprovalPurpose::Call | ApprovalPurpose::Drift => {
            Settled::Answer(Answer::Allowed { by: approvers(&decisions) })
        }
        ApprovalPurpose::Unknown => what_became_of_it(&decisions),
        ApprovalPurpose::Question => {
            super::inquiry::answered(&approval.spec.request, &decisions, approvers(&decisions))
        }
    }
}

fn what_became_of_it(decisions: &[&Decision]) -> Settled {
    let mut answers = decisions.iter().filter_map(|decision| answer(decision));
    let Some(first) = answers.next() else {
        return Settled::Nothing("none of its decisions says what became of the call".to_owned());
    };
    match answers.find(|other| !agree(&first, other)) {
        None => Settled::Answer(first),
        Some(other) => Settled::Nothing(format!("people disagree: {}; {}", words(&first), words(&other))),
    }
}

fn denial<'a>(decisions: &[&'a Decision]) -> Option<&'a Decision> {
    decisions.iter().copied().find(|decision| decision.verdict == DecisionVerdict::Deny)
}

fn approvers(decisions: &[&Decision]) -> Vec<Approver> {
    let yes = decisions.iter().filter(|decision| decision.verdict == DecisionVerdict::Allow);
    yes.map(|decision| Approver { policy: decision.policy.clone(), by: decision.by.clone() }).collect()
}

/// The decisions that count. Where there are none nothing is digested: most Approvals wait for the first one.
pub(super) fn counted(approval: &Approval, digest: Digest) -> Vec<&Decision> {
    if approval.spec.decisions.is_empty() {
        return Vec::new();
    }
    let whole = serde_json::to_value(&approval.spec.request).ok().and_then(|value| request_digest(&value).ok());
    if whole == Some(digest) { approval.spec.counted(&digest.to_string()) } else { Vec::new() }
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
        (
            Answer::Happened { .. }
            | Answer::Retry { .. }
            | Answer::End { .. }
            | Answer::Withdrawn { .. }
            | Answer::Allowed { .. }
            | Answer::Denied { .. }
            | Answer::Answered { .. }
            | Answer::Misfit { .. }
            | Answer::Expired {},
            _,
        ) => false,
    }
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::Happened { result, by } => format!("{by} says that it happened, with {result:?}"),
        Answer::Retry { by } => format!("{by} wants it sent again"),
        Answer::End { by, .. } => format!("{by} wants the run to end"),
        Answer::Withdrawn { why } | Answer::Misfit { why } => why.clone(),
        Answer::Allowed { .. } => "people allow it".to_owned(),
        Answer::Denied { by, .. } => format!("{by} does not allow it"),
        Answer::Answered { .. } => "people answered the server".to_owned(),
        Answer::Expired {} => "nobody decided in time".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_crds::Requirement;
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
        assert_eq!(tally(&undecided, digest), Tally::Open);
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
            assert_eq!(tally(&approval, digest), Tally::Open);
        }
        let (mut changed, digest) = approval(&json!([retry("ada")]));
        changed.spec.request.arguments = "{\"force\":true}".to_owned();
        assert_eq!(tally(&changed, digest), Tally::Open, "the request is not the one that was signed");
        let (good, _) = approval(&json!([retry("ada")]));
        assert_eq!(tally(&good, Digest::zero()), Tally::Open, "nor the one that the journal holds");
    }

    /// A question before a call, under one policy that wants two people and another that wants one.
    fn before_a_call(requested_by: &str, duty: bool, decisions: &[(&str, &str, &str)]) -> (Approval, Digest) {
        let (mut approval, _) = approval(&json!([]));
        let request = &mut approval.spec.request;
        request.purpose = ApprovalPurpose::Call;
        request.requested_by = requested_by.to_owned();
        request.requirements = vec![
            Requirement {
                policy: "careful".into(),
                generation: Some(3),
                quorum: 2,
                separation_of_duty: duty.then_some(true),
                grants: None,
            },
            Requirement {
                policy: "owners".into(),
                generation: Some(1),
                quorum: 1,
                separation_of_duty: None,
                grants: None,
            },
        ];
        let digest = request_digest(&serde_json::to_value(&*request).unwrap()).unwrap();
        request.digest = digest.to_string();
        approval.spec.decisions = (decisions.iter())
            .map(|(policy, by, verdict)| {
                let decision = json!({"policy": policy, "by": by, "verdict": verdict, "digest": digest.to_string()});
                serde_json::from_value(decision).unwrap()
            })
            .collect();
        (approval, digest)
    }

    #[test]
    fn every_policy_wants_its_own_yes_and_one_no_is_enough() {
        let yes = |policy, by| (policy, by, "Allow");
        let two = [yes("careful", "ada"), yes("careful", "bob")];
        let (open, digest) = before_a_call("eve", false, &two);
        assert_eq!((tally(&open, digest), given(&open, digest)), (Tally::Open, "2/3".to_owned()));
        let all = [two[0], two[1], yes("owners", "ada")];
        let (done, digest) = before_a_call("eve", false, &all);
        assert_eq!((tally(&done, digest), given(&done, digest)), (Tally::Yes, "3/3".to_owned()));
        let Settled::Answer(Answer::Allowed { by }) = settled(&done, digest) else { unreachable!("no answer") };
        assert_eq!(by.len(), 3);
        let (denied, digest) = before_a_call("eve", false, &[all[0], all[1], all[2], ("owners", "zoe", "Deny")]);
        let no = Answer::Denied { by: "zoe".to_owned(), reason: String::new() };
        assert_eq!((tally(&denied, digest), settled(&denied, digest)), (Tally::No, Settled::Answer(no)));
    }

    #[test]
    fn whoever_created_the_run_does_not_count_where_duties_are_separate_and_may_still_deny() {
        let owners = ("owners", "zoe", "Allow");
        let own = [("careful", "eve", "Allow"), ("careful", "bob", "Allow"), owners];
        let (own_yes, digest) = before_a_call("eve", true, &own);
        assert_eq!(tally(&own_yes, digest), Tally::Open);
        let (without_duty, digest) = before_a_call("eve", false, &own);
        assert_eq!(tally(&without_duty, digest), Tally::Yes);
        let (own_no, digest) = before_a_call("eve", true, &[("careful", "eve", "Deny")]);
        assert_eq!(tally(&own_no, digest), Tally::No);
    }

    #[test]
    fn a_requester_who_is_no_known_person_costs_one_yes_more() {
        let two = [("careful", "ada", "Allow"), ("careful", "bob", "Allow"), ("owners", "zoe", "Allow")];
        for requester in ["", "system:serviceaccount:argocd:sync"] {
            let (approval, digest) = before_a_call(requester, true, &two);
            assert_eq!((tally(&approval, digest), given(&approval, digest)), (Tally::Open, "3/4".to_owned()));
            let three = [two[0], two[1], two[2], ("careful", "cem", "Allow")];
            let (approval, digest) = before_a_call(requester, true, &three);
            assert_eq!(tally(&approval, digest), Tally::Yes);
        }
    }

    #[test]
    fn one_person_is_one_whatever_they_write() {
        let twice = [("careful", "ada", "Allow"), ("careful", "ada", "Allow"), ("owners", "ada", "Allow")];
        let (approval, digest) = before_a_call("eve", false, &twice);
        assert_eq!((tally(&approval, digest), given(&approval, digest)), (Tally::Open, "2/3".to_owned()));
    }
}
