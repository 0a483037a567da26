#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::unnecessary_wraps)] // a Deny has none
use std::sync::Arc;

use belay_crds::{Approval, ApprovalPurpose, EarlierAnswer};
use belay_protocol::Digest;
use belay_protocol::call::request_digest;
use belay_protocol::elicitation::{Asked, Inputs, Round};
use belay_protocol::fold::{Approved, CallState};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::approval::{About, Question, Tally, request, settled, tally};
use crate::fixtures::plan;

const SCHEMA: &str = r#"{"properties":{"name":{"type":"string"}},"required":["name"],"type":"object"}"#;

fn form() -> Inquiry {
    Inquiry::Form { message: "who\u{202e}?".to_owned(), schema: serde_json::from_str(SCHEMA).unwrap() }
}

fn proposed() -> ProposedCall {
    let plan = plan();
    ProposedCall {
        tool: plan.tools[0].name.clone(),
        operation: "list_issues".to_owned(),
        args: json!({}),
        definition: Digest::zero(),
        digest: Digest::zero(),
    }
}

fn careful(quorum: u32) -> PolicyRequirement {
    PolicyRequirement {
        policy: "careful".to_owned(),
        generation: 2,
        quorum,
        separation_of_duty: false,
        expires_after_seconds: 60,
        grants: None,
    }
}

/// The Approval of a question, with these decisions: policy, who, and what goes with an Allow, or nothing for a Deny.
fn decided(inquiry: &Inquiry, quorum: u32, decisions: &[(&str, Option<Value>)]) -> (Approval, Digest) {
    let required = InputRequired { questions: Vec::new(), state: None, said: None };
    let (plan, call, requirements) = (plan(), proposed(), [careful(quorum)]);
    let asked = Inquired { inquiry, number: 0, required: &required, answers: &[], note: None };
    let about = About::Question { asked, requirements: &requirements, inputs: None };
    let question = Question { plan: &plan, call_id: "c1", attempt: 1, call: &call, about, expires_at: 0, nonce: "n" };
    let (request, digest) = request(&question).unwrap();
    let one = |(by, answer): &(&str, Option<Value>)| {
        let verdict = if answer.is_some() { "Allow" } else { "Deny" };
        let mut decision = json!({"policy": "careful", "by": by, "digest": digest.to_string(), "verdict": verdict});
        if let Some(answer) = answer {
            decision["answer"] = answer.clone();
        }
        decision
    };
    let decisions: Vec<Value> = decisions.iter().map(one).collect();
    let approval = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "a"},
        "spec": {"request": request, "decisions": decisions},
    });
    (serde_json::from_value(approval).unwrap(), digest)
}

fn says(content: &str) -> Option<Value> {
    Some(json!({"input": {"content": content}}))
}

#[test]
fn the_request_carries_what_the_server_asks_and_is_signed_over_it() {
    let (approval, digest) = decided(&form(), 1, &[]);
    let request = &approval.spec.request;
    assert_eq!(request.purpose, ApprovalPurpose::Question);
    let question = request.question.clone().unwrap();
    assert_eq!(
        (question.message.as_str(), question.schema.as_deref(), question.url),
        ("who\u{202e}?", Some(SCHEMA), None)
    );
    assert!(request.message.starts_with("an untrusted server asks: that of github/list_issues"), "{}", request.message);
    let mut other = request.clone();
    other.question.as_mut().unwrap().message = "who?".to_owned();
    assert_ne!(request_digest(&serde_json::to_value(&other).unwrap()).unwrap(), digest);
}

fn asked(key: &str, inquiry: Inquiry) -> Asked {
    Asked { key: key.to_owned(), inquiry }
}

/// Neither the yes to a call that is sent again nor the answer to the next question is given blindly.
#[test]
fn what_people_answered_before_is_shown_whole_to_who_decides_next() {
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(10_000));
    let page = Inquiry::Url { message: "m".to_owned(), url: "https://x.example".to_owned() };
    let round = |asked: Vec<Asked>, answers| Round {
        required: InputRequired { questions: asked, state: None, said: None },
        answers,
    };
    let inputs = Inputs { rounds: vec![round(vec![asked("a", form())], vec![Some(long.clone())])] };
    let (plan, call, requirements) = (plan(), proposed(), [careful(1)]);
    let asks =
        |about| Question { plan: &plan, call_id: "c1", attempt: 2, call: &call, about, expires_at: 0, nonce: "n" };
    let first = EarlierAnswer { message: "who\u{202e}?".to_owned(), content: Some(long), url: None };

    let again = About::Call { requirements: &requirements, inputs: Some(&inputs) };
    let (again, digest) = request(&asks(again)).unwrap();
    assert_eq!(again.answered, std::slice::from_ref(&first));
    assert!(again.message.ends_with("It goes with 1 earlier answers of people to its server: spec.request.answered"));
    let mut other = again.clone();
    other.answered[0].content = Some("{}".to_owned());
    assert_ne!(request_digest(&serde_json::to_value(&other).unwrap()).unwrap(), digest, "it is signed too");

    let required = round(vec![asked("p", page), asked("q", form())], vec![]).required;
    let (inquiry, answers) = (&form(), [None]);
    let second = Inquired { inquiry, number: 1, required: &required, answers: &answers, note: None };
    let second = About::Question { asked: second, requirements: &requirements, inputs: Some(&inputs) };
    let opened = EarlierAnswer { message: "m".to_owned(), content: None, url: Some("https://x.example".to_owned()) };
    assert_eq!(request(&asks(second)).unwrap().0.answered, [first, opened]);
}

#[test]
fn the_operators_words_say_how_many_questions_what_the_server_said_and_why_it_is_asked_again() {
    let questions = vec![Asked { key: "a".to_owned(), inquiry: form() }; 2];
    let required = InputRequired { questions, state: None, said: Some("cancelled\n".repeat(500)) };
    let asked =
        Inquired { inquiry: &form(), number: 1, required: &required, answers: &[], note: Some("ada said nothing") };
    let words = asked.words(&proposed());
    for part in [
        "all of its 2 questions are answered; this is number 2",
        "\"cancelled\\ncancelled",
        "Asked again: ada said nothing",
    ] {
        assert!(words.contains(part), "{words}");
    }
    assert!(words.len() < 4096, "{}", words.len());
}

#[rstest]
#[case::one(1, &[("ada", says(r#"{ "name": "Ada" }"#))], Ok(Some(r#"{"name":"Ada"}"#)))]
#[case::two_alike(2, &[("ada", says(r#"{"name":"x"}"#)), ("bob", says(r#"{"name": "x"}"#))], Ok(Some(r#"{"name":"x"}"#)))]
#[case::two_that_differ(2, &[("ada", says(r#"{"name":"x"}"#)), ("bob", says(r#"{"name":"y"}"#))], Err("ada and bob answered differently"))]
#[case::misfit(1, &[("ada", says(r#"{"nmae":"x"}"#))], Err("what ada answered does not fit: there is no field \"nmae\""))]
#[case::no_json(1, &[("ada", says("name=x"))], Err("does not fit: the answer is no JSON object"))]
#[case::no_input(1, &[("ada", Some(json!({"retry": {}})))], Err("ada gave no answer.input"))]
#[case::no_content(1, &[("ada", Some(json!({"input": {}})))], Err("its fields are missing"))]
#[case::too_few(2, &[("ada", says(r#"{"name":"x"}"#))], Err("sealed before enough people"))]
fn answers_count_where_they_fit_and_agree(
    #[case] quorum: u32,
    #[case] decisions: &[(&str, Option<Value>)],
    #[case] expected: Result<Option<&str>, &str>,
) {
    let (approval, digest) = decided(&form(), quorum, decisions);
    match (settled(&approval, digest), expected) {
        (Settled::Answer(Answer::Answered { content, by }), Ok(expected)) => {
            assert_eq!(content.as_deref(), expected);
            assert_eq!(by.len(), decisions.len());
        }
        (Settled::Nothing(why), Err(expected)) => {
            assert!(why.contains(expected) && expected.starts_with("sealed"), "nobody answered wrong: {why}");
        }
        (Settled::Misfit(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn a_deny_declines_whoever_answered_and_a_page_takes_no_content() {
    let deny = ("bob", None);
    let (approval, digest) = decided(&form(), 1, &[("ada", says(r#"{"name":"x"}"#)), deny]);
    let no = Answer::Denied { by: "bob".to_owned(), reason: String::new() };
    assert_eq!((tally(&approval, digest), settled(&approval, digest)), (Tally::No, Settled::Answer(no)));
    let page = Inquiry::Url { message: "m".to_owned(), url: "https://x.example".to_owned() };
    let (approval, digest) = decided(&page, 1, &[("ada", Some(json!({"input": {}})))]);
    assert!(matches!(settled(&approval, digest), Settled::Answer(Answer::Answered { content: None, .. })));
    let (approval, digest) = decided(&page, 1, &[("ada", says("{}"))]);
    assert!(matches!(settled(&approval, digest), Settled::Misfit(_)));
}

#[test]
fn those_answer_who_would_say_yes_to_the_call() {
    let call = CallState::Due { attempt: 1 };
    let mut state = RunState { calls: [("c1".to_owned(), call)].into(), ..RunState::default() };
    let names = |state: &RunState| -> Vec<(String, u32)> {
        requirements(state, "c1", 1).into_iter().map(|one| (one.policy, one.quorum)).collect()
    };
    assert_eq!(names(&state), [("default".to_owned(), 1)]);
    state.ran_under.insert("c1".to_owned(), vec!["careful".to_owned(), "owners".to_owned()]);
    assert_eq!(names(&state), [("careful".to_owned(), 1), ("owners".to_owned(), 1)]);
    let approved =
        Approved { attempt: 1, call: Digest::zero(), requirements: vec![careful(2)], expires_at: 0, by: vec![] };
    state.approved.insert("c1".to_owned(), approved);
    assert_eq!(names(&state), [("careful".to_owned(), 2), ("owners".to_owned(), 1)]);
    let earlier: Arc<RunState> = Arc::new(state);
    assert_eq!(requirements(&earlier, "c1", 2).len(), 2, "an approval of another attempt asks nothing");
    assert!(requirements(&earlier, "c1", 2).iter().all(|one| one.quorum == 1));
}
