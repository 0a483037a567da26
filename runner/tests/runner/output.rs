//! Structured output: how each provider is asked for it, and what becomes of answers that do not fit.

use belay_protocol::event::{EndReason, Outcome};
use rstest::rstest;
use serde_json::{Value, json};

use crate::answers::Format;
use crate::asking::run_plan;
use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::Journal;
use crate::http::{Answer, Server};
use crate::plans::{plan, tool};

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"area": {"enum": ["ui", "db"]}},
        "required": ["area"],
        "additionalProperties": false,
    })
}

async fn run(format: Format, schema: Value, answers: Vec<Answer>) -> (Journal, Vec<Value>) {
    let server = Server::start(answers).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut plan = plan(format.model(&server.url("/v1")), vec![tool(&mcp.url(), &["echo"])]);
    plan.output_schema = Some(schema);
    let journal = run_plan(plan, &[]).await;
    (journal, server.bodies())
}

#[rstest]
#[case::chat(Format::Chat, json!({"response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": schema(), "strict": true}}}))]
#[case::responses(Format::Responses, json!({"text": {"format": {"type": "json_schema", "name": "output", "schema": schema(), "strict": true}}}))]
#[case::messages(Format::Messages, json!({"output_config": {"format": {"type": "json_schema", "schema": schema()}}}))]
#[tokio::test]
async fn an_answer_that_does_not_fit_is_told_so_and_asked_again(#[case] format: Format, #[case] asked: Value) {
    let answers = vec![
        format.asks(&[("call_1", "server__echo", r#"{"text": "a"}"#)]),
        format.says("It is the user interface."),
        format.says(r#"{"area": "os"}"#),
        format.says(r#"{"area": "ui"}"#),
    ];
    let (journal, bodies) = run(format, schema(), answers).await;
    assert_eq!((journal.end().outcome, journal.end().reason), (Outcome::Succeeded, EndReason::Completed));
    let output: Value = serde_json::from_str(journal.state.output.as_deref().unwrap()).unwrap();
    assert_eq!((output, journal.state.steps), (json!({"area": "ui"}), 4));
    for body in &bodies {
        for (field, value) in asked.as_object().unwrap() {
            assert_eq!(&body[field], value, "in every request: caches know it");
        }
    }
    let last = format.said(&bodies[3]);
    let words = |message: &Value| {
        let content = &message["content"];
        (message["role"].clone(), content.as_str().or(content[0]["text"].as_str()).unwrap_or_default().to_owned())
    };
    let said: Vec<_> = last[last.len() - 4..].iter().map(words).collect();
    assert_eq!((&said[0].0, said[0].1.as_str()), (&json!("assistant"), "It is the user interface."));
    assert_eq!((&said[2].0, said[2].1.as_str()), (&json!("assistant"), r#"{"area": "os"}"#));
    for (told, why) in [(&said[1], "it is not JSON alone"), (&said[3], "at /area: ")] {
        assert_eq!(told.0, "user");
        assert!(
            told.1.starts_with(&format!("Your answer does not fit the output that is wanted: {why}")),
            "{}",
            told.1
        );
        assert!(told.1.ends_with(&schema().to_string()), "{}", told.1);
    }
}

#[rstest]
#[case::chat(Format::Chat)]
#[case::responses(Format::Responses)]
#[case::messages(Format::Messages)]
#[tokio::test]
async fn a_model_that_never_fits_ends_the_run_after_three_answers_in_a_row(#[case] format: Format) {
    let (journal, bodies) = run(format, schema(), vec![format.says("no")]).await;
    assert_eq!((journal.end().outcome, journal.end().reason), (Outcome::Failed, EndReason::OutputInvalid));
    assert_eq!((journal.state.misfits, bodies.len()), (3, 3));
}

#[tokio::test]
async fn calls_between_two_answers_that_do_not_fit_start_the_count_anew() {
    let call = || Format::Chat.asks(&[("call_1", "server__echo", "{}")]);
    let no = || Format::Chat.says("no");
    let answers = vec![no(), no(), call(), no(), no(), Format::Chat.says(r#"{"area":"db"}"#)];
    let (journal, bodies) = run(Format::Chat, schema(), answers).await;
    assert_eq!((journal.end().outcome, bodies.len()), (Outcome::Succeeded, 6));
}

#[rstest]
#[case::chat(Format::Chat, "/response_format/json_schema")]
#[case::responses(Format::Responses, "/text/format")]
#[tokio::test]
async fn a_schema_that_a_provider_cannot_hold_its_model_to_is_asked_for_without_strict(
    #[case] format: Format,
    #[case] place: &str,
) {
    let (journal, bodies) = run(format, json!({"type": "object"}), vec![format.says(r#"{"a": 1}"#)]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    let asked = bodies[0].pointer(place).unwrap();
    assert_eq!((&asked["schema"], asked.get("strict")), (&json!({"type": "object"}), None));
}
