//! A yes for more than one call: whether it can be given, what it says for which policy, and how it is shown.

use belay_crds::{ApprovalRequest, DecisionAnswer, GrantAnswer, GrantTerms, Requirement, visible};
use belay_policy::Pattern;

use super::deciding::Refused;

/// The grant that `answer` carries, if it is one.
pub fn grant_of(answer: Option<&DecisionAnswer>) -> Option<&GrantAnswer> {
    answer.and_then(|answer| answer.grant.as_ref())
}

/// Whether the operator would take the pattern: it can be used, and is true for the very call.
pub fn check(request: &ApprovalRequest, grant: &GrantAnswer) -> Result<(), Refused> {
    let unusable = |why: String| Refused::Pattern { pattern: visible(&grant.when), why };
    let args = serde_json::from_str(&request.arguments).map_err(|error| unusable(error.to_string()))?;
    match Pattern::compile(&grant.when).and_then(|pattern| pattern.fits(&args)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(unusable("it is not true for this call itself".to_owned())),
        Err(error) => Err(unusable(visible(&error))),
    }
}

/// What is answered for one policy: a policy that lets nobody allow more gets a plain yes.
pub fn answer_for(wanted: &Requirement, answer: Option<&DecisionAnswer>) -> Result<Option<DecisionAnswer>, Refused> {
    let Some(grant) = grant_of(answer) else { return Ok(answer.cloned()) };
    let Some(terms) = wanted.grants else { return Ok(None) };
    let within = (1..=terms.max_count).contains(&grant.count) && (1..=terms.max_seconds).contains(&grant.seconds);
    if within {
        return Ok(answer.cloned());
    }
    Err(Refused::TooMuch { policy: wanted.policy.clone(), terms: words(terms) })
}

/// How much a policy lets people allow.
pub fn words(terms: GrantTerms) -> String {
    format!("at most {} more calls within at most {} seconds", terms.max_count, terms.max_seconds)
}

/// What somebody allows besides the call.
pub fn said(grant: &GrantAnswer) -> String {
    format!("{} more calls within {} seconds where {}", grant.count, grant.seconds, visible(&grant.when))
}

/// What is asked back besides the call. `added`: the policies that a decision is written for.
pub fn shown(request: &ApprovalRequest, grant: &GrantAnswer, added: &[String]) -> String {
    let lets = |one: &&Requirement| added.contains(&one.policy) && one.grants.is_some();
    let (policies, others): (Vec<_>, Vec<_>) = request.requirements.iter().partition(lets);
    let names = |of: &[&Requirement]| of.iter().map(|one| visible(&one.policy)).collect::<Vec<_>>().join(", ");
    let rest = if others.is_empty() {
        String::new()
    } else {
        let others = names(&others);
        format!("  such calls still wait for the people of policy {others}, as long as those do not allow them\n")
    };
    format!(
        "BESIDES this call you allow, without anybody being asked again, in run {}:\n  {} of {}/{}\n  for policy {}\n{rest}",
        visible(request.run_name()),
        said(grant),
        visible(&request.tool),
        visible(request.operation_name()),
        names(&policies),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;
    use serde_json::json;

    use super::super::question::tests::approval;
    use super::*;

    fn answer(when: &str, count: i32, seconds: i32) -> DecisionAnswer {
        let grant = GrantAnswer { when: when.to_owned(), count, seconds };
        DecisionAnswer { grant: Some(grant), ..DecisionAnswer::default() }
    }

    fn wanted(grants: Option<(i32, i32)>) -> Requirement {
        let grants = grants.map(|(max_count, max_seconds)| GrantTerms { max_count, max_seconds });
        Requirement { policy: "careful".into(), generation: None, quorum: 1, separation_of_duty: None, grants }
    }

    #[rstest]
    #[case("args.name == 'a'", None)]
    #[case("true", None)]
    #[case("args.name == 'b'", Some("it is not true for this call itself"))]
    #[case("args.repo == 'a'", Some("No such key"))]
    #[case("tool == 'github'", Some("a pattern can ask about args"))]
    #[case("args.name ==", Some("not CEL"))]
    fn a_pattern_is_tried_on_the_call_before_anything_is_written(#[case] when: &str, #[case] words: Option<&str>) {
        let refused = check(
            &approval(&json!({}), &[]).spec.request,
            &GrantAnswer { when: when.to_owned(), count: 1, seconds: 1 },
        );
        match words {
            None => assert_eq!(refused, Ok(())),
            Some(words) => assert!(refused.as_ref().unwrap_err().to_string().contains(words), "{refused:?}"),
        }
    }

    #[test]
    fn each_policy_gets_what_it_lets_people_give_and_one_that_lets_nobody_a_plain_yes() {
        let five = answer("true", 5, 60);
        assert_eq!(answer_for(&wanted(Some((5, 60))), Some(&five)), Ok(Some(five.clone())));
        assert_eq!(answer_for(&wanted(None), Some(&five)), Ok(None));
        for terms in [(4, 60), (5, 59)] {
            let refused = answer_for(&wanted(Some(terms)), Some(&five)).unwrap_err().to_string();
            assert!(refused.contains("careful lets people allow at most"), "{refused}");
        }
        let nothing = answer("true", 0, 60);
        assert!(answer_for(&wanted(Some((5, 60))), Some(&nothing)).is_err());
    }

    #[test]
    fn what_is_allowed_besides_and_what_is_not_is_shown_in_visible_letters() {
        let requirements = json!([
            {"policy": "careful", "quorum": 1, "grants": {"maxCount": 5, "maxSeconds": 60}}, {"policy": "owners", "quorum": 1}]);
        let request = approval(&json!({"requirements": requirements}), &[]).spec.request;
        let grant = GrantAnswer { when: "args.a == '\u{202e}'".to_owned(), count: 5, seconds: 60 };
        let text = shown(&request, &grant, &["careful".to_owned(), "owners".to_owned()]);
        assert_eq!(
            text,
            "BESIDES this call you allow, without anybody being asked again, in run nightly:
  5 more calls within 60 seconds where args.a == '\\u{202e}' of github/delete_repo
  for policy careful
  such calls still wait for the people of policy owners, as long as those do not allow them
"
        );
    }
}
