//! Questions of tools' servers, and what people may answer, asked of a real API server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, approval, create, decide, decision, deny, merge, refused, requirements};
use serde_json::{Value, json};

/// An Approval of purpose Question, with this question in it.
fn asking(name: &str, question: &Value) -> Value {
    let mut approval = approval(name, &requirements());
    approval["spec"]["request"]["purpose"] = json!("Question");
    if !question.is_null() {
        approval["spec"]["request"]["question"] = question.clone();
    }
    approval
}

fn form() -> Value {
    json!({"message": "which branch?", "schema": r#"{"properties":{"b":{"type":"string"}},"type":"object"}"#})
}

fn page() -> Value {
    json!({"message": "sign in", "url": "https://x.example/in"})
}

fn input(content: Option<&str>) -> Value {
    let input = content.map_or_else(|| json!({}), |content| json!({"content": content}));
    json!({"answer": {"input": input}})
}

#[test]
fn a_form_is_answered_with_content_and_a_page_without() {
    let stage = Stage::new("qst-answer");
    accepted(|| create(&stage.operator, &asking("form", &form())));
    accepted(|| create(&stage.operator, &asking("page", &page())));
    accepted(|| decide(&stage.ada, "ada", &decision("form", "ada", &input(Some(r#"{"b":"main"}"#)))));
    accepted(|| decide(&stage.ada, "ada", &decision("page", "ada", &input(None))));
    assert_eq!(stage.decisions("form")[0]["answer"]["input"]["content"], r#"{"b":"main"}"#);
    assert_eq!(stage.decisions("page")[0]["answer"], json!({"input": {}}));
}

#[test]
fn a_yes_without_an_answer_and_one_that_answers_something_else_are_refused_and_a_no_carries_none() {
    let stage = Stage::new("qst-refused");
    accepted(|| create(&stage.operator, &asking("form", &form())));
    accepted(|| create(&stage.operator, &asking("page", &page())));
    let words = "on a Question an Allow carries answer.input; a Deny declines and carries no answer";
    for other in [json!({"answer": null}), json!({}), json!({"answer": {"happened": {"result": "x"}}})] {
        refused(words, || decide(&stage.ada, "ada", &decision("form", "ada", &other)));
    }
    let with_answer = json!({"verdict": "Deny", "answer": {"input": {"content": "{}"}}});
    refused(words, || decide(&stage.ada, "ada", &decision("form", "ada", &with_answer)));
    let words = "a form is answered with answer.input.content, a url with an empty answer.input";
    refused(words, || decide(&stage.ada, "ada", &decision("form", "ada", &input(None))));
    refused(words, || decide(&stage.ada, "ada", &decision("page", "ada", &input(Some("{}")))));
    accepted(|| decide(&stage.ada, "ada-deny", &decision("form", "ada", &deny())));
}

#[test]
fn an_input_answers_nothing_but_a_question() {
    let stage = Stage::asked("qst-others");
    let mut call = approval("call", &requirements());
    call["spec"]["request"]["purpose"] = json!("Call");
    accepted(|| create(&stage.operator, &call));
    for name in ["a", "call"] {
        refused("answer.input belongs to a Question", || {
            decide(&stage.ada, "ada", &decision(name, "ada", &input(Some("{}"))))
        });
    }
    let both = json!({"answer": {"input": {}, "retry": {}}});
    refused("an answer is one of happened, retry, grant and input", || {
        decide(&stage.ada, "ada", &decision("a", "ada", &both))
    });
}

#[test]
fn a_question_holds_what_is_asked_and_no_other_approval_does() {
    let stage = Stage::new("qst-made");
    let words = "a Question, and nothing else, has request.question";
    refused(words, || create(&stage.operator, &asking("a", &Value::Null)));
    let mut call = approval("b", &requirements());
    call["spec"]["request"]["question"] = form();
    refused(words, || create(&stage.operator, &call));
    let mut both = form();
    both["url"] = page()["url"].clone();
    for odd in [both, json!({"message": "?"})] {
        refused("a question has either a schema or a url", || create(&stage.operator, &asking("c", &odd)));
    }
}

#[test]
fn what_is_asked_cannot_be_changed_and_is_signed_by_who_holds_the_verb_with_its_digest() {
    let stage = Stage::new("qst-guard");
    accepted(|| create(&stage.operator, &asking("a", &form())));
    let patch = json!({"spec": {"request": {"question": {"message": "your password?"}}}});
    refused("spec.request cannot change", || merge(&stage.mallory, "approval", "a", &patch));
    let mut other = input(Some("{}"));
    other["digest"] = json!("sha256:other");
    refused("the decision names another request", || decide(&stage.ada, "ada", &decision("a", "ada", &other)));
    refused("a decision is signed by the one who makes it", || {
        decide(&stage.ada, "ada", &decision("a", "bob", &input(Some("{}"))))
    });
    refused("needs the verb approve on approvalpolicies.decide.belay.dev default", || {
        decide(&stage.mallory, "mallory", &decision("a", "mallory", &input(Some("{}"))))
    });
    stage.seal("a");
    refused("too late: this Approval is sealed", || {
        decide(&stage.ada, "ada", &decision("a", "ada", &input(Some("{}"))))
    });
}
