//! The Responses codec: what is sent, what is sent back, and what becomes of errors.

use belay_protocol::event::{FailureReason, Finish, Outcome};
use belay_protocol::plan::PlanModel;
use rstest::rstest;
use serde_json::{Value, json};

use crate::asking::{ask, ask_with, fails, run_model, sse, stream};
use crate::codecs::as_json;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::{Answer, Server, reply};
use crate::plans::responses;

const CALLS: &str = include_str!("../streams/responses/reasoning_and_calls.sse");
const CUT: &str = include_str!("../streams/responses/incomplete_with_calls.sse");
const TEXT: &str = include_str!("../streams/responses/text.sse");

#[tokio::test]
async fn nothing_is_kept_at_the_provider_and_reasoning_is_asked_for() {
    let server = Server::start(vec![sse(TEXT)]).await;
    let model = PlanModel {
        credential: Some("key".into()),
        max_output_tokens: Some(64),
        temperature: Some(0.5),
        ..responses(&server.url("/v1"))
    };
    ask_with(model, &[("key", "hunter2")]).await.unwrap();
    let request = &server.received()[0];
    assert_eq!(request.path, "/v1/responses");
    assert_eq!(request.authorization.as_deref(), Some("Bearer hunter2"));
    assert_eq!(
        server.bodies()[0],
        json!({
            "model": "small-1",
            "instructions": "Be brief.",
            "input": [{"type": "message", "role": "user", "content": "Do it."}],
            "tools": [{
                "type": "function", "name": "server__echo", "description": "says it", "parameters": {}, "strict": false,
            }],
            "temperature": 0.5,
            "max_output_tokens": 64,
            "include": ["reasoning.encrypted_content"],
            "store": false,
            "stream": true,
        })
    );
}

#[tokio::test]
async fn items_go_back_in_order_and_reasoning_byte_for_byte() {
    let model = Server::start(vec![sse(CALLS), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let journal = run_model(responses(&model.url("/v1")), &mcp, &["echo", "fail"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    let [first, second] = &model.bodies()[..] else { panic!("two requests") };
    let reasoning = r#"{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"Two calls."}],"encrypted_content":"gAAAAABo+/x7=="}"#;
    assert_eq!(
        second["input"],
        json!([
            {"type": "message", "role": "user", "content": "Do it."},
            serde_json::from_str::<Value>(reasoning).unwrap(),
            {"type": "message", "role": "assistant", "content": "I will."},
            {"type": "function_call", "call_id": "call_a", "name": "server__echo", "arguments": "{\"text\": \"a\"}"},
            {"type": "function_call", "call_id": "call_b", "name": "server__fail", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_a", "output": "a"},
            {"type": "function_call_output", "call_id": "call_b", "output": "Error: it did not work"},
        ])
    );
    assert_eq!((&first["tools"], &first["instructions"]), (&second["tools"], &second["instructions"]));
    let sent = String::from_utf8(model.received()[1].body.clone()).unwrap();
    assert!(sent.contains(reasoning), "{sent}");
}

#[tokio::test]
async fn an_incomplete_response_still_carries_its_whole_calls() {
    let model = Server::start(vec![sse(CUT), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_model(responses(&model.url("/v1")), &mcp, &["echo"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(mcp.called_operations(), ["echo"]);
    let input = &model.bodies()[1]["input"];
    assert_eq!(input[2]["arguments"], "{\"malformed\":\"{\\\"text\\\": \\\"half of\"}");
    assert!(input[4]["output"].as_str().unwrap().contains("cut at the output limit"), "{input}");
}

#[tokio::test]
async fn an_answer_in_one_piece_is_taken_too() {
    let body = json!({
        "id": "resp_1", "object": "response", "model": "small-2-2026", "status": "completed", "error": null,
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
            {"type": "function_call", "call_id": "a", "name": "server__echo", "arguments": "{}"},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    });
    let server = Server::start(vec![reply(200, "application/json", body.to_string())]).await;
    let answer = ask(responses(&server.url("/v1"))).await.unwrap();
    assert_eq!(
        as_json(&answer),
        json!({
            "items": [
                {"block": {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}},
                {"call": {"id": "a", "name": "server__echo", "arguments": "{}"}},
            ],
            "finish": "ToolCalls",
            "usage": {"inputTokens": 3, "outputTokens": 4},
            "responseId": "resp_1",
            "model": "small-2-2026",
        })
    );
}

#[tokio::test]
async fn arguments_of_the_finished_item_beat_the_pieces_before_it() {
    let server = Server::start(vec![stream(&[
        r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{\"half\""}"#,
        r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"function_call","call_id":"a","name":"t","arguments":"{\"whole\":1}"}}"#,
        r#"{"type":"response.completed","response":{"status":"completed","output":[]}}"#,
    ])])
    .await;
    let answer = ask(responses(&server.url("/v1"))).await.unwrap();
    assert_eq!(answer.finish, Finish::ToolCalls);
    assert_eq!(as_json(&answer)["items"][0]["call"]["arguments"], "{\"whole\":1}");
}

#[rstest]
#[case::failed(stream(&[r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"oops"}}}"#]), FailureReason::ServerError, "oops")]
#[case::limited(stream(&[r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"rate_limit_exceeded","message":"slow"}}}"#]), FailureReason::RateLimited, "slow")]
#[case::an_error_event(stream(&[r#"{"type":"error","code":"rate_limit_exceeded","message":"slow","param":null}"#]), FailureReason::RateLimited, "slow")]
#[case::an_error_one_level_down(stream(&[r#"{"type":"error","error":{"type":"invalid_request_error","code":"context_length_exceeded","message":"hunter2"}}"#]), FailureReason::ContextExceeded, "redacted")]
#[case::failed_without_words(stream(&[r#"{"type":"response.failed","response":{"status":"failed"}}"#]), FailureReason::ServerError, "reported an error")]
#[case::incomplete_for_no_reason(stream(&[r#"{"type":"response.incomplete","response":{"status":"incomplete"}}"#]), FailureReason::Malformed, "does not say why")]
#[case::no_end(stream(&[r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"message","content":[{"text":"half"}]}}"#]), FailureReason::Truncated, "without a finish reason")]
#[case::done_without_an_end(stream(&["[DONE]"]), FailureReason::Truncated, "without a finish reason")]
#[case::an_item_twice(stream(&[r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"x"}}"#, r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"x"}}"#]), FailureReason::Malformed, "came twice")]
#[case::still_under_way(
    reply(200, "application/json", r#"{"status":"in_progress","output":[]}"#),
    FailureReason::Malformed,
    "no status that ends it"
)]
#[case::another_api(stream(&[r#"{"id":"r1","choices":[{"delta":{"content":"hi"}}]}"#]), FailureReason::Malformed, "no Responses answer")]
#[tokio::test]
async fn an_answer_that_is_none_has_a_reason_and_names_the_model(
    #[case] server_answer: Answer,
    #[case] reason: FailureReason,
    #[case] words: &str,
) {
    let server = Server::start(vec![server_answer]).await;
    let model = responses(&server.url("/v1"));
    fails(model, "responses", reason, words).await;
}

#[tokio::test]
async fn lists_of_null_are_empty_ones() {
    let server = Server::start(vec![stream(&[
        r#"{"type":"response.output_item.done","output_index":0,"item":{"type":"message","content":[{"text":"done"}]}}"#,
        r#"{"type":"response.completed","response":{"status":"completed","output":null,"usage":null}}"#,
    ])])
    .await;
    let answer = ask(responses(&server.url("/v1"))).await.unwrap();
    assert_eq!(as_json(&answer)["items"], json!([{"text": "done"}]));
}
