//! What people allowed besides the call that they were asked about: which patterns as many of them gave as their policy
//! wants, and which do not count. Pure; whether a pattern is any good is not looked at here.

use std::collections::{BTreeMap, BTreeSet};

use belay_crds::{Approval, DecisionVerdict, GrantAnswer, Requirement};
use belay_protocol::Digest;

use super::decisions::counted;

/// One pattern for one policy, and who gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub policy: String,
    pub by: Vec<String>,
    pub when: String,
    pub count: u32,
    pub seconds: u32,
    /// Why it does not count, if it does not.
    pub refused: Option<String>,
}

/// Every pattern that a decision carries which counts. Those that are not alike are different ones.
#[must_use]
pub fn given(approval: &Approval, digest: Digest) -> Vec<Given> {
    let mut people: BTreeMap<(&str, &str, i32, i32), BTreeSet<&str>> = BTreeMap::new();
    let counted = counted(approval, digest);
    for decision in counted.iter().filter(|decision| decision.verdict == DecisionVerdict::Allow) {
        let Some(GrantAnswer { when, count, seconds }) = decision.answer.as_ref().and_then(|it| it.grant.as_ref())
        else {
            continue;
        };
        people.entry((&decision.policy, when, *count, *seconds)).or_default().insert(&decision.by);
    }
    let request = &approval.spec.request;
    let wanted = |policy: &str| request.requirements.iter().find(|one| one.policy == policy);
    let one = |((policy, when, count, seconds), by): ((&str, &str, i32, i32), BTreeSet<&str>)| {
        let needed = wanted(policy).map_or(usize::MAX, |one| request.people_needed(one));
        let refused = beyond(wanted(policy), count, seconds).or_else(|| {
            let few = by.len() < needed;
            few.then(|| format!("{} of {needed} people gave that very pattern, count and time", by.len()))
        });
        Given {
            policy: policy.to_owned(),
            by: by.into_iter().map(str::to_owned).collect(),
            when: when.to_owned(),
            count: count.unsigned_abs(),
            seconds: seconds.unsigned_abs(),
            refused,
        }
    };
    people.into_iter().map(one).collect()
}

/// As the schema has it.
fn beyond(wanted: Option<&Requirement>, count: i32, seconds: i32) -> Option<String> {
    let Some(terms) = wanted.and_then(|one| one.grants) else {
        return Some("the policy lets nobody allow more than the call".to_owned());
    };
    let within = (1..=terms.max_count).contains(&count) && (1..=terms.max_seconds).contains(&seconds);
    (!within).then(|| {
        format!(
            "{count} calls in {seconds} seconds are not within the policy's {} calls in {} seconds",
            terms.max_count, terms.max_seconds
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_protocol::call::request_digest;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// Two people for `careful`, which lets them give five calls a minute; one for `owners`, which lets them give none.
    fn approval(requested_by: &str, decisions: &[(&str, &str, Value)]) -> (Approval, Digest) {
        let mut request = json!({
            "purpose": "Call", "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": "{}", "destination": "http://x/mcp",
            "callDigest": "sha256:c", "message": "?", "requestedBy": requested_by, "expiresAt": "2026-11-30T00:00:00Z",
            "nonce": "n", "requirements": [
                {"policy": "careful", "quorum": 2, "separationOfDuty": true, "grants": {"maxCount": 5, "maxSeconds": 60}},
                {"policy": "owners", "quorum": 1}],
        });
        let digest = request_digest(&request).unwrap();
        request["digest"] = json!(digest.to_string());
        let decision = |(policy, by, grant): &(&str, &str, Value)| {
            let mut decision = json!({"policy": policy, "by": by, "verdict": "Allow", "digest": digest.to_string()});
            if !grant.is_null() {
                decision["answer"] = json!({"grant": grant});
            }
            decision
        };
        let decisions: Vec<Value> = decisions.iter().map(decision).collect();
        let object = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "a"},
            "spec": {"request": request, "decisions": decisions},
        });
        (serde_json::from_value(object).unwrap(), digest)
    }

    fn grant(when: &str, count: i32, seconds: i32) -> Value {
        json!({"when": when, "count": count, "seconds": seconds})
    }

    /// Who gave each pattern, and why it does not count.
    fn weighed(requested_by: &str, decisions: &[(&str, &str, Value)]) -> Vec<(Vec<String>, Option<String>)> {
        let (approval, digest) = approval(requested_by, decisions);
        given(&approval, digest).into_iter().map(|one| (one.by, one.refused)).collect()
    }

    const CAREFUL: &str = "careful";

    #[test]
    fn a_pattern_counts_once_as_many_as_the_quorum_gave_the_very_same() {
        let x = || grant("args.repo == 'x'", 5, 60);
        let both = [(CAREFUL, "ada", x()), (CAREFUL, "bob", x())];
        assert_eq!(weighed("eve", &both), [(vec!["ada".to_owned(), "bob".to_owned()], None)]);
        let (approval, digest) = approval("eve", &both);
        let one = given(&approval, digest).remove(0);
        assert_eq!(
            (one.policy.as_str(), one.when.as_str(), one.count, one.seconds),
            (CAREFUL, "args.repo == 'x'", 5, 60)
        );
        assert_eq!(given(&approval, Digest::zero()), [], "decisions on another request");
    }

    #[rstest]
    #[case::another_condition(grant("args.repo == 'y'", 5, 60))]
    #[case::another_count(grant("args.repo == 'x'", 4, 60))]
    #[case::another_time(grant("args.repo == 'x'", 5, 59))]
    #[case::a_plain_yes(Value::Null)]
    fn whoever_said_something_else_does_not_count_for_it(#[case] other: Value) {
        let said = weighed("eve", &[(CAREFUL, "ada", grant("args.repo == 'x'", 5, 60)), (CAREFUL, "bob", other)]);
        let few = Some("1 of 2 people gave that very pattern, count and time".to_owned());
        assert!(!said.is_empty() && said.iter().all(|(_, refused)| *refused == few), "{said:?}");
    }

    #[rstest]
    #[case::too_many(grant("true", 6, 60), "6 calls in 60 seconds are not within")]
    #[case::too_long(grant("true", 5, 61), "5 calls in 61 seconds are not within")]
    #[case::none(grant("true", 0, 60), "0 calls in 60 seconds are not within")]
    #[case::less_than_none(grant("true", -1, 60), "-1 calls in 60 seconds are not within")]
    fn what_the_schema_should_have_refused_does_not_count_either(#[case] wrong: Value, #[case] words: &str) {
        let said = weighed("eve", &[(CAREFUL, "ada", wrong.clone()), (CAREFUL, "bob", wrong)]);
        assert!(said[0].1.as_ref().unwrap().starts_with(words), "{said:?}");
    }

    #[test]
    fn under_a_policy_that_lets_nobody_give_any_none_counts() {
        let said = weighed("eve", &[("owners", "zoe", grant("true", 1, 1))]);
        assert_eq!(said[0].1.as_deref(), Some("the policy lets nobody allow more than the call"));
    }

    #[test]
    fn whoever_created_the_run_does_not_count_and_where_nobody_knows_who_one_more_is_needed() {
        let x = || grant("true", 5, 60);
        let own = weighed("eve", &[(CAREFUL, "ada", x()), (CAREFUL, "eve", x())]);
        assert_eq!(
            own,
            [(vec!["ada".to_owned()], Some("1 of 2 people gave that very pattern, count and time".to_owned()))]
        );
        let two = [(CAREFUL, "ada", x()), (CAREFUL, "bob", x())];
        assert!(weighed("", &two)[0].1.as_ref().unwrap().starts_with("2 of 3 people"));
        let three = [two[0].clone(), two[1].clone(), (CAREFUL, "cem", x())];
        assert_eq!(weighed("", &three)[0].1, None);
    }
}
