//! Servers that ask people something, in both eras, well and badly behaved; and what becomes of the calls.

use axum::body::{Body, Bytes};
use axum::http::Response;
use belay_protocol::elicitation::{Asked, InputRequired, Inputs, Inquiry, QUESTIONS_PER_CALL_MAX, Round};
use belay_protocol::event::ToolResult;
use belay_protocol::fold::CallState;
use belay_runner::tools::Outcome;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;

use crate::fake_mcp::{Era, FakeMcp, sse};
use crate::fake_operator::Script;
use crate::mcp::{call, call_with, connect, plan_for};
use crate::plans::{calls, says};
use crate::runs::run_script;

/// What the operation asks, question for question.
fn questions(operation: &str) -> Vec<Value> {
    let form = |message: &str, property: Value| {
        let schema = json!({"type": "object", "properties": {"name": property}, "required": ["name"]});
        json!({"mode": "form", "message": message, "requestedSchema": schema})
    };
    let text = || json!({"type": "string"});
    let deep =
        |levels: usize| (0..levels).fold(text(), |inner, _| json!({"type": "object", "properties": {"a": inner}}));
    match operation {
        "ask" => vec![form("who are you?", text())],
        "ask-page" => {
            vec![json!({"mode": "url", "message": "sign in", "url": "https://x.example/in", "elicitationId": "e"})]
        }
        "ask-twice" => vec![form("first?", text()), form("second?", text())],
        "ask-deep" => vec![form("deep", deep(50))],
        "ask-too-deep" => vec![form("deep", deep(1000))],
        "ask-much" => vec![form(&"x".repeat(1_000_000), text())],
        "ask-oddly" => vec![form("clear \u{1b}[2J\u{202e}", text())],
        "ask-script" => {
            vec![json!({"mode": "url", "message": "m", "url": "javascript:alert(1)", "elicitationId": "e"})]
        }
        "ask-often" => (0..20).map(|at| form(&format!("question {at}?"), text())).collect(),
        other => panic!("no questions for {other}"),
    }
}

/// Asks on the stream of the call, one after the other, and ends it with what was answered.
pub fn in_call(id: &Value, operation: &str, responses: Receiver<Value>) -> Response<Body> {
    struct Asking {
        id: Value,
        left: Vec<Value>,
        responses: Receiver<Value>,
        answers: Vec<Value>,
        waits: bool,
        over: bool,
    }
    let mut left = questions(operation);
    left.reverse();
    let asking = Asking { id: id.clone(), left, responses, answers: Vec::new(), waits: false, over: false };
    let events = futures::stream::unfold(asking, |mut asking| async move {
        if asking.over {
            return None;
        }
        if asking.waits {
            let response = asking.responses.recv().await.unwrap();
            asking.answers.push(response.get("result").unwrap_or(&response["error"]).clone());
            asking.waits = false;
        }
        let message = if let Some(params) = asking.left.pop() {
            asking.waits = true;
            let id = format!("e{}", asking.answers.len());
            json!({"jsonrpc": "2.0", "id": id, "method": "elicitation/create", "params": params})
        } else {
            asking.over = true;
            let text = json!({"answers": asking.answers}).to_string();
            let result = json!({"content": [{"type": "text", "text": text}], "isError": false});
            json!({"jsonrpc": "2.0", "id": asking.id, "result": result})
        };
        Some((Ok::<_, std::io::Error>(Bytes::from(format!("data: {message}\n\n"))), asking))
    });
    sse(Body::from_stream(events))
}

/// Says that input is needed until it comes with the call.
pub fn in_result(operation: &str, params: &Value) -> Value {
    let never_done = operation == "ask-often";
    if params["inputResponses"].is_object() && !never_done {
        let text = json!({"answers": params["inputResponses"], "state": params["requestState"]}).to_string();
        return json!({"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": false});
    }
    let asked = questions(operation).into_iter().take(if never_done { 1 } else { 20 });
    let requests: serde_json::Map<String, Value> = (asked.enumerate())
        .map(|(at, params)| (format!("q{at}"), json!({"method": "elicitation/create", "params": params})))
        .collect();
    json!({"resultType": "input_required", "inputRequests": requests, "requestState": "opaque \u{e9}"})
}

pub fn needs_page(id: &Value) -> Value {
    let page = json!({"mode": "url", "message": "sign in", "url": "https://x.example/in", "elicitationId": "e"});
    let error = json!({"code": -32042, "message": "not signed in", "data": {"elicitations": [page]}});
    json!({"jsonrpc": "2.0", "id": id, "error": error})
}

async fn first(era: Era, operation: &str) -> (FakeMcp, Outcome) {
    let fake = FakeMcp::start(era, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &[operation]));
    let outcome = call_with(&mut server, operation, Inputs::default(), None).await;
    (fake, outcome)
}

fn required(outcome: Outcome) -> InputRequired {
    match outcome {
        Outcome::InputRequired(required) => required,
        other => panic!("{other:?}"),
    }
}

fn observed(outcome: Outcome) -> (bool, String) {
    match outcome {
        Outcome::Observed(ToolResult { is_error, content, .. }) => (is_error, content),
        other => panic!("{other:?}"),
    }
}

fn answered(required: InputRequired, answers: &[Option<&str>]) -> Round {
    assert_eq!(required.questions.len(), answers.len());
    Round { required, answers: answers.iter().map(|answer| answer.map(str::to_owned)).collect() }
}

async fn again(fake: &FakeMcp, operation: &str, rounds: Vec<Round>) -> Outcome {
    let mut server = connect(&plan_for(&fake.url(), &[operation]));
    call_with(&mut server, operation, Inputs { rounds }, None).await
}

const ADA: &str = r#"{"name":"Ada"}"#;

#[tokio::test]
async fn a_question_of_a_stateless_server_is_answered_with_the_call_sent_again_under_its_name_with_its_state() {
    let (fake, outcome) = first(Era::Stateless, "ask").await;
    let required = required(outcome);
    let [Asked { key, inquiry: Inquiry::Form { message, .. } }] = &required.questions[..] else {
        panic!("{required:?}")
    };
    assert_eq!((key.as_str(), message.as_str(), required.said.as_deref()), ("q0", "who are you?", None));
    let outcome = again(&fake, "ask", vec![answered(required, &[Some(ADA)])]).await;
    let (is_error, content) = observed(outcome);
    let expected =
        json!({"answers": {"q0": {"action": "accept", "content": {"name": "Ada"}}}, "state": "opaque \u{e9}"});
    assert_eq!((is_error, serde_json::from_str::<Value>(&content).unwrap()), (false, expected));
    assert_eq!(fake.called(), vec![("ask".to_owned(), json!({})); 2], "the arguments stay the same");
}

#[tokio::test]
async fn a_question_in_the_middle_of_a_call_hears_that_nobody_answers_yet_and_gets_its_answer_when_it_is_called_again()
{
    let (fake, outcome) = first(Era::Sessions, "ask").await;
    let required = required(outcome);
    assert_eq!(required.said.as_deref(), Some(r#"{"answers":[{"action":"cancel"}]}"#));
    assert_eq!(required.questions[0].inquiry.message(), "who are you?");
    let (is_error, content) = observed(again(&fake, "ask", vec![answered(required, &[Some(ADA)])]).await);
    assert_eq!((is_error, content.as_str()), (false, r#"{"answers":[{"action":"accept","content":{"name":"Ada"}}]}"#));
}

#[rstest]
#[tokio::test]
async fn a_page_that_was_opened_is_told_without_content(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let (fake, outcome) = first(era, "ask-page").await;
    let required = required(outcome);
    assert_eq!(required.questions[0].inquiry.url(), Some("https://x.example/in"));
    let (is_error, content) = observed(again(&fake, "ask-page", vec![answered(required, &[None])]).await);
    assert!(!is_error && content.contains(r#"{"action":"accept"}"#), "{content}");
}

#[tokio::test]
async fn questions_that_follow_one_from_another_are_asked_one_call_after_the_other() {
    let (fake, outcome) = first(Era::Sessions, "ask-twice").await;
    let one = required(outcome);
    assert_eq!(one.questions[0].inquiry.message(), "first?");
    let rounds = vec![answered(one, &[Some(ADA)])];
    let two = required(again(&fake, "ask-twice", rounds.clone()).await);
    assert_eq!(two.questions[0].inquiry.message(), "second?", "the first was answered");
    let rounds = rounds.into_iter().chain([answered(two, &[Some(r#"{"name":"Bob"}"#)])]).collect();
    let (_, content) = observed(again(&fake, "ask-twice", rounds).await);
    assert!(content.contains("Ada") && content.contains("Bob"), "{content}");
    let (_, outcome) = first(Era::Stateless, "ask-twice").await;
    assert_eq!(required(outcome).questions.len(), 2, "these come together");
}

#[tokio::test]
async fn an_error_that_names_a_page_to_open_first_asks_people() {
    let (_, outcome) = first(Era::Sessions, "needs-page").await;
    let required = required(outcome);
    assert_eq!((required.questions.len(), required.said.as_deref()), (1, Some("not signed in")));
}

#[rstest]
#[case::deep("ask-deep", "its schema is")]
#[case::much("ask-much", "longer than 8192 bytes")]
#[case::script("ask-script", "no http or https URL")]
#[tokio::test]
async fn what_people_cannot_be_shown_is_declined_and_the_model_told_why(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
    #[case] operation: &str,
    #[case] why: &str,
) {
    let (fake, outcome) = first(era, operation).await;
    let (_, content) = observed(outcome);
    // rmcp reads no schema of that shape and leaves nothing of it in a whole message.
    let lost = era == Era::Stateless && content.contains("it says that it needs input and asks nothing");
    assert!(content.contains("people cannot be shown") && (content.contains(why) || lost), "{content}");
    assert_eq!(fake.called_operations(), [operation], "nothing is sent again");
}

/// Deeper than JSON is read: that is no answer of which anything is known.
#[rstest]
#[tokio::test]
async fn a_schema_too_deep_to_be_read_leaves_the_call_unknown(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let fake = FakeMcp::start(era, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &["ask-too-deep"]));
    let outcome = call(&mut server, "ask-too-deep", json!({}), None).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

#[rstest]
#[tokio::test]
async fn a_servers_odd_characters_are_kept_for_those_who_show_them(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let (_, outcome) = first(era, "ask-oddly").await;
    assert_eq!(required(outcome).questions[0].inquiry.message(), "clear \u{1b}[2J\u{202e}");
}

#[rstest]
#[tokio::test]
async fn a_server_that_goes_on_asking_is_given_up(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let (fake, mut outcome) = first(era, "ask-often").await;
    let mut rounds = Vec::new();
    while let Outcome::InputRequired(required) = outcome {
        assert_eq!(required.questions.len(), 1);
        rounds.push(answered(required, &[Some(ADA)]));
        outcome = again(&fake, "ask-often", rounds.clone()).await;
    }
    assert_eq!(rounds.len(), QUESTIONS_PER_CALL_MAX);
    let (_, content) = observed(outcome);
    assert!(content.contains("asks more than 8 questions"), "{content}");
}

#[rstest]
#[tokio::test]
async fn a_server_that_asks_without_end_in_one_call_is_not_heard_any_further(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let (_, outcome) = first(era, "nag").await;
    let Outcome::Unknown { message } = outcome else { panic!("{outcome:?}") };
    assert!(message.contains("the server asked more than 64 times"), "{message}");
}

#[tokio::test]
async fn answers_are_part_of_what_a_permit_is_for() {
    let (fake, outcome) = first(Era::Stateless, "ask").await;
    let rounds = vec![answered(required(outcome), &[Some(ADA)])];
    let mut server = connect(&plan_for(&fake.url(), &["ask"]));
    let plan = plan_for(&fake.url(), &["ask"]);
    let definition = belay_protocol::Digest::of(b"definition");
    let args = json!({});
    let without = belay_protocol::call::CallBinding::new(&plan, &plan.tools[0], definition, "ask", &args);
    let outcome = call_with(&mut server, "ask", Inputs { rounds }, Some(without.digest().unwrap())).await;
    assert!(matches!(outcome, Outcome::NotSent { .. }), "{outcome:?}");
    assert_eq!(fake.called_operations(), ["ask"]);
}

#[rstest]
#[tokio::test]
async fn a_run_whose_call_needs_input_waits_and_asks_the_model_nothing(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let server = FakeMcp::start(era, &["ask", "echo"]).await;
    let turns = vec![calls(&[("ask", json!({})), ("echo", json!({}))]), says("never said")];
    let script = Script { stop_on: Some("CallObserved"), ..Script::default() };
    let journal = run_script(&server, &["ask", "echo"], turns, script).await;
    assert_eq!(server.called_operations(), ["ask", "echo"], "it holds up no other");
    assert!(matches!(journal.state.calls["c1"], CallState::InputRequired { attempt: 1, .. }));
    assert_eq!(journal.state.steps, 1);
}
