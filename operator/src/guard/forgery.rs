//! What is sent to see that it is refused, and what an answer to it proves. Pure.

use belay_crds::admission::APPROVALS;
use belay_crds::{Approval, DECISIONS_MAX};
use kube::ResourceExt;
use serde_json::{Value, json};

/// What the API server's refusals by our policy say, and no other refusal does.
const DENIED: &str = "denied request: ";

/// What is said where a namespace is being deleted: of a birth, and of an Approval that went before its namespace, which
/// an apply would make anew.
const ENDING: &str = "because it is being terminated";

/// Something that admission must refuse from the operator's account too. Never more than a dry run, and a Deny: not
/// even a mistake here could let a call pass.
#[derive(Clone, Debug)]
pub enum Forgery {
    /// A decision in another's name, on an Approval that is there.
    Decision(Approval),
    /// An Approval that is about to be made, with a decision that nobody gave.
    Birth(Approval),
}

impl Forgery {
    #[must_use]
    pub fn approval(&self) -> &Approval {
        match self {
            Self::Decision(approval) | Self::Birth(approval) => approval,
        }
    }

    /// What to send: for a decision the fields to apply, for a birth the whole object. `nobody` is a user name that
    /// nobody has.
    #[must_use]
    pub fn body(&self, nobody: &str) -> Value {
        let approval = self.approval();
        let request = &approval.spec.request;
        let decision = json!({
            "policy": request.requirements.first().map(|requirement| requirement.policy.as_str()),
            "by": nobody,
            "digest": request.digest,
            "verdict": "Deny",
            "reason": "belay-operator looks whether the admission policy belay-approvals refuses this",
        });
        match self {
            Self::Decision(_) => {
                let mut metadata = json!({"name": approval.name_any(), "uid": approval.uid()});
                let mut body = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Approval"});
                // Where so many are, another one would be refused by the schema alone.
                if approval.spec.decisions.len() < DECISIONS_MAX {
                    insert(&mut body, "spec", json!({"decisions": [decision]}));
                } else {
                    insert(&mut metadata, "labels", json!({"belay.dev/forged": nobody}));
                }
                insert(&mut body, "metadata", metadata);
                body
            }
            Self::Birth(_) => {
                let spec = json!({"request": request, "decisions": [decision]});
                json!({
                    "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
                    "metadata": {"name": approval.name_any()}, "spec": spec,
                })
            }
        }
    }
}

fn insert(object: &mut Value, field: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

/// What an answer to a forgery proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Our policy refused it.
    Refused,
    /// It was taken: nobody checks decisions.
    Accepted,
    /// The Approval is not there any more.
    Gone,
    /// Its namespace is being deleted: nothing will be decided there.
    Ending(String),
    /// Refused by somebody else, in these words.
    Nothing(String),
    /// There was no answer.
    Unanswered(String),
}

/// A Forbidden by RBAC, an Invalid by the schema or another policy's refusal says nothing about ours.
#[must_use]
pub fn judge(answer: Result<(), kube::Error>) -> Proof {
    match answer {
        Ok(()) => Proof::Accepted,
        Err(kube::Error::Api(status)) => {
            let ours = format!("ValidatingAdmissionPolicy '{APPROVALS}' with binding '{APPROVALS}' {DENIED}");
            match status.code {
                _ if status.message.contains(&ours) => Proof::Refused,
                403 if status.message.contains(ENDING) => Proof::Ending(status.message.clone()),
                404 | 409 => Proof::Gone,
                429 | 500.. => Proof::Unanswered(status.message.clone()),
                _ => Proof::Nothing(status.message.clone()),
            }
        }
        Err(error) => Proof::Unanswered(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use kube::core::Status;
    use rstest::rstest;

    use super::*;
    use crate::guard::tests::approval;

    #[rstest]
    #[case::ours(
        422,
        "approvals.belay.dev \"a\" is forbidden: ValidatingAdmissionPolicy 'belay-approvals' with binding 'belay-approvals' denied request: a decision is signed by the one who makes it",
        Proof::Refused
    )]
    #[case::rbac(
        403,
        "approvals.belay.dev \"a\" is forbidden: User \"x\" cannot patch resource \"approvals\" in API group \"belay.dev\"",
        Proof::Nothing(String::new())
    )]
    #[case::namespace_that_ends(
        403,
        "approvals.belay.dev \"a\" is forbidden: unable to create new content in namespace x because it is being terminated",
        Proof::Ending(String::new())
    )]
    #[case::webhook(403, "admission webhook \"w\" denied the request: no", Proof::Nothing(String::new()))]
    #[case::schema(422, "spec.decisions: Too many: 33", Proof::Nothing(String::new()))]
    #[case::another_policy(
        422,
        "ValidatingAdmissionPolicy 'someone-elses' with binding 'belay-approvals' denied request: no",
        Proof::Nothing(String::new())
    )]
    #[case::another_binding(
        422,
        "ValidatingAdmissionPolicy 'belay-approvals' with binding 'mine' denied request: no",
        Proof::Nothing(String::new())
    )]
    #[case::gone(404, "not found", Proof::Gone)]
    #[case::made_anew(409, "uid mismatch", Proof::Gone)]
    #[case::busy(429, "too many requests", Proof::Unanswered(String::new()))]
    #[case::away(503, "unavailable", Proof::Unanswered(String::new()))]
    fn only_a_refusal_that_names_our_policy_and_binding_is_a_proof(
        #[case] code: u16,
        #[case] message: &str,
        #[case] expected: Proof,
    ) {
        let status = Status { code, message: message.to_owned(), ..Status::default() };
        let expected = match expected {
            Proof::Nothing(_) => Proof::Nothing(message.to_owned()),
            Proof::Unanswered(_) => Proof::Unanswered(message.to_owned()),
            Proof::Ending(_) => Proof::Ending(message.to_owned()),
            other @ (Proof::Refused | Proof::Accepted | Proof::Gone) => other,
        };
        assert_eq!(judge(Err(kube::Error::Api(Box::new(status)))), expected);
    }

    #[test]
    fn what_was_taken_proves_that_nobody_checks() {
        assert_eq!(judge(Ok(())), Proof::Accepted);
    }

    #[test]
    fn a_forged_decision_is_a_deny_for_a_policy_that_asked_with_the_right_digest() {
        let body = Forgery::Decision(approval("triage", "a")).body("nobody-x");
        let decision = &body["spec"]["decisions"][0];
        assert_eq!((&decision["verdict"], &decision["by"]), (&json!("Deny"), &json!("nobody-x")));
        assert_eq!((&decision["policy"], &decision["digest"]), (&json!("default"), &json!("sha256:read-me")));
        assert_eq!(body["metadata"], json!({"name": "a", "uid": "uid-a"}), "no other of that name");
        let born = Forgery::Birth(approval("triage", "a")).body("nobody-x");
        assert_eq!(born["spec"]["request"]["digest"], "sha256:read-me");
        assert_eq!(born["spec"]["decisions"][0]["verdict"], "Deny");
    }

    #[test]
    fn where_the_schema_takes_no_more_decisions_a_label_is_forged() {
        let mut full = approval("triage", "a");
        let decision = json!({"policy": "default", "by": "ada", "digest": "sha256:read-me", "verdict": "Allow"});
        full.spec.decisions = vec![serde_json::from_value(decision).unwrap(); DECISIONS_MAX];
        let body = Forgery::Decision(full).body("nobody-x");
        assert_eq!(body["metadata"]["labels"], json!({"belay.dev/forged": "nobody-x"}));
        assert!(body.get("spec").is_none());
    }
}
