//! The Messages codec: what is sent, what is sent back, and what becomes of errors.

use belay_protocol::Event;
use belay_protocol::event::{EndReason, FailureReason, Finish, Item, Outcome};
use belay_protocol::plan::{Inject, PlanModel};
use belay_runner::models::AnswerItem;
use rstest::rstest;
use serde_json::{Value, json};

use crate::asking::{ask, ask_as, fails, run_model, sse, stream};
use crate::codecs::as_json;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::{Answer, Server, reply};
use crate::plans::{credential, messages};

const CALLS: &str = include_str!("../streams/messages/thinking_and_calls.sse");
const CUT: &str = include_str!("../streams/messages/cut_in_a_call.sse");
const TEXT: &str = include_str!("../streams/messages/text.sse");

#[tokio::test]
async fn the_key_goes_into_its_header_and_the_version_is_said() {
    let server = Server::start(vec![sse(TEXT)]).await;
    let model = PlanModel { credential: Some("key".into()), temperature: Some(0.5), ..messages(&server.url("/v1")) };
    let mut key = credential(&["127.0.0.1"]);
    key.inject = Inject::Header { name: "x-api-key".into(), format: "{}".into() };
    ask_as(model, &[("key", "hunter2")], key).await.unwrap();
    let request = &server.received()[0];
    assert_eq!(request.path, "/v1/messages");
    assert_eq!(request.headers["x-api-key"], "hunter2");
    assert_eq!(request.headers["anthropic-version"], "2023-06-01");
    assert_eq!(request.authorization, None);
    let cached = json!({"type": "ephemeral"});
    assert_eq!(
        server.bodies()[0],
        json!({
            "model": "small-1",
            "max_tokens": 512,
            "temperature": 0.5,
            "stream": true,
            "system": [{"type": "text", "text": "Be brief.", "cache_control": cached}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Do it.", "cache_control": cached}]}],
            "tools": [{"name": "server__echo", "description": "says it", "input_schema": {}, "cache_control": cached}],
        })
    );
}

#[tokio::test]
async fn blocks_go_back_in_order_and_reasoning_byte_for_byte() {
    let model = Server::start(vec![sse(CALLS), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let journal = run_model(messages(&model.url("/v1")), &mcp, &["echo", "fail"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(journal.state.output.as_deref(), Some("Grüße, 世界 😀"));
    let second = &model.bodies()[1]["messages"];
    let block = |kind: &str, rest: Value| {
        let mut block = json!({"type": kind});
        block.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        block
    };
    assert_eq!(second[1]["role"], "assistant");
    assert_eq!(
        second[1]["content"],
        json!([
            block(
                "thinking",
                json!({
                    "thinking": "Two calls, then.\nThe \"first\" one first.",
                    "signature": "EqQBCkYIARgCKkAbc+/def==",
                })
            ),
            block("redacted_thinking", json!({"data": "EmwKAhgBEgy3va3pzix/LafPsn4a=="})),
            block("text", json!({"text": "I will."})),
            block("tool_use", json!({"id": "toolu_a", "name": "server__echo", "input": {"text": "a"}})),
            block("tool_use", json!({"id": "toolu_b", "name": "server__fail", "input": {}})),
        ])
    );
    assert_eq!(
        second[2],
        json!({"role": "user", "content": [
            block("tool_result", json!({"tool_use_id": "toolu_a", "content": "a"})),
            block("tool_result", json!({
                "tool_use_id": "toolu_b", "content": "it did not work", "is_error": true,
                "cache_control": {"type": "ephemeral"},
            })),
        ]})
    );
    let sent = String::from_utf8(model.received()[1].body.clone()).unwrap();
    assert!(sent.contains(r#"{"type":"redacted_thinking","data":"EmwKAhgBEgy3va3pzix/LafPsn4a=="}"#), "{sent}");
    assert!(sent.contains(r#""input":{"text": "a"}"#), "the model's own characters: {sent}");
}

#[tokio::test]
async fn what_was_sent_before_is_sent_again_alike_and_ends_in_a_breakpoint() {
    let call = |n: u32| CALLS.replace("toolu_a", &format!("toolu_a{n}")).replace("toolu_b", &format!("toolu_b{n}"));
    let model = Server::start(vec![sse(&call(1)), sse(&call(2)), sse(&call(3)), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    run_model(messages(&model.url("/v1")), &mcp, &["echo", "fail"]).await;
    let requests = model.bodies();
    assert_eq!(requests.len(), 4);
    for pair in requests.windows(2) {
        let (earlier, later) = (unmarked(&pair[0]), unmarked(&pair[1]));
        assert_eq!((&earlier["tools"], &earlier["system"]), (&later["tools"], &later["system"]));
        let said = earlier["messages"].as_array().unwrap();
        assert_eq!(said[..], later["messages"].as_array().unwrap()[..said.len()]);
    }
    for request in &requests {
        let marked: Vec<bool> = request["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message.to_string().contains("cache_control"))
            .collect();
        let users = marked.iter().step_by(2).collect::<Vec<_>>();
        assert!(users.iter().rev().take(2).all(|marked| **marked), "{marked:?}");
        assert!(marked.iter().filter(|marked| **marked).count() <= 2, "four with tools and instructions: {marked:?}");
    }
}

fn unmarked(request: &Value) -> Value {
    let mut request = request.clone();
    strip(&mut request);
    request
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("cache_control");
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[tokio::test]
async fn a_call_that_was_cut_is_told_to_the_model_and_goes_back_as_an_object() {
    let model = Server::start(vec![sse(CUT), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_model(messages(&model.url("/v1")), &mcp, &["echo"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(mcp.called_operations(), ["echo"], "the call before it was whole");
    let second = &model.bodies()[1]["messages"];
    assert_eq!(second[1]["content"][1]["input"], json!({"malformed": "{\"text\": \"half of"}));
    let told = &second[2]["content"][1];
    assert_eq!(told["is_error"], true);
    assert!(told["content"].as_str().unwrap().contains("cut at the output limit"), "{told}");
}

#[tokio::test]
async fn text_of_white_space_alone_is_not_sent_back() {
    let blank = CALLS.replace("I will.", "\\n\\n");
    let model = Server::start(vec![sse(&blank), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    run_model(messages(&model.url("/v1")), &mcp, &["echo", "fail"]).await;
    let kinds: Vec<Value> = model.bodies()[1]["messages"][1]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block["type"].clone())
        .collect();
    assert_eq!(kinds, ["thinking", "redacted_thinking", "tool_use", "tool_use"]);
}

#[rstest]
#[case::as_it_is("s3cr3t-value")]
#[case::escaped("\\u00733cr3t-value")]
#[tokio::test]
async fn reasoning_that_holds_a_credential_is_neither_journaled_nor_sent_back(#[case] spelling: &str) {
    let model = Server::start(vec![sse(CALLS), sse(TEXT)]).await;
    let leaking = CALLS.replace("EmwKAhgBEgy3va3pzix", spelling);
    let model_leaking = Server::start(vec![sse(&leaking), sse(TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let clean = run_model(messages(&model.url("/v1")), &mcp, &["echo", "fail"]).await;
    let redacted = run_model(messages(&model_leaking.url("/v1")), &mcp, &["echo", "fail"]).await;
    let blocks = |journal: &crate::fake_operator::Journal| {
        let items = journal.events().find_map(|event| match event {
            Event::ModelResponded { response, .. } => Some(response.items.clone()),
            _ => None,
        });
        items.unwrap().iter().filter(|item| matches!(item, Item::Block { .. })).count()
    };
    assert_eq!((blocks(&clean), blocks(&redacted)), (2, 1));
    assert!(!model_leaking.bodies()[1].to_string().contains("s3cr3t"));
}

#[tokio::test]
async fn an_answer_in_one_piece_is_taken_too() {
    let body = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "small-1-2026", "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "tool_use", "id": "a", "name": "server__echo", "input": {"text": "a"}},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    });
    let server = Server::start(vec![reply(200, "application/json", body.to_string())]).await;
    let answer = ask(messages(&server.url("/v1"))).await.unwrap();
    assert_eq!(
        as_json(&answer),
        json!({
            "items": [
                {"block": {"type": "thinking", "thinking": "hm", "signature": "c2ln"}},
                {"call": {"id": "a", "name": "server__echo", "arguments": "{\"text\":\"a\"}"}},
            ],
            "finish": "ToolCalls",
            "usage": {"inputTokens": 3, "outputTokens": 4},
            "responseId": "msg_1",
            "model": "small-1-2026",
        })
    );
}

const START: &str =
    r#"{"type":"message_start","message":{"id":"m","model":"x","content":[],"usage":{"input_tokens":1}}}"#;

#[tokio::test]
async fn events_and_pieces_of_kinds_to_come_are_passed_over() {
    let server = Server::start(vec![stream(&[
        START,
        r#"{"type":"something_new","index":7}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"novelty","a":1.0}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"novel_delta","b":2}}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"ok"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"stop_sequence"}}"#,
        r#"{"type":"message_stop"}"#,
    ])])
    .await;
    let answer = ask(messages(&server.url("/v1"))).await.unwrap();
    // The novelty lacks a piece: it goes back whole or not at all.
    assert_eq!((answer.items, answer.finish), (vec![AnswerItem::Text("ok".into())], Finish::Stop));
    assert_eq!(answer.usage.output_tokens, None, "nobody said");
}

#[rstest]
#[case::overloaded_in_the_stream(stream(&[START, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#]), FailureReason::ServerError, "Overloaded")]
#[case::limited_in_the_stream(stream(&[START, r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow"}}"#]), FailureReason::RateLimited, "slow")]
#[case::refused_in_the_stream(stream(&[r#"{"type":"error","error":{"type":"invalid_request_error","message":"hunter2?"}}"#]), FailureReason::BadRequest, "redacted")]
#[case::an_unknown_reason(stream(&[START, r#"{"type":"message_delta","delta":{"stop_reason":"pause_turn"}}"#, r#"{"type":"message_stop"}"#]), FailureReason::Malformed, "pause_turn")]
#[case::no_reason(stream(&[START, r#"{"type":"message_stop"}"#]), FailureReason::Truncated, "without a finish reason")]
#[case::pings_alone(stream(&[START, r#"{"type":"ping"}"#]), FailureReason::Truncated, "without a finish reason")]
#[case::calls_announced_and_missing(stream(&[START, r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"}}"#]), FailureReason::Malformed, "sent no call")]
#[case::a_piece_of_nothing(stream(&[START, r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"x"}}"#]), FailureReason::Malformed, "no such block")]
#[case::a_block_twice(stream(&[START, r#"{"type":"content_block_start","index":0,"content_block":{"type":"text"}}"#, r#"{"type":"content_block_start","index":0,"content_block":{"type":"text"}}"#]), FailureReason::Malformed, "began twice")]
#[case::another_api(stream(&[r#"{"id":"r1","choices":[{"delta":{"content":"hi"}}]}"#]), FailureReason::Malformed, "no Messages answer")]
#[case::too_long(reply(400, "application/json", r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#), FailureReason::ContextExceeded, "no longer fits")]
#[case::overloaded(
    reply(529, "application/json", r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#),
    FailureReason::ServerError,
    "529"
)]
#[case::an_error_as_an_answer(
    reply(200, "application/json", r#"{"type":"error","error":{"type":"api_error","message":"oops"}}"#),
    FailureReason::ServerError,
    "oops"
)]
#[case::broken_off(Answer::Break { content_type: "text/event-stream", body: format!("data: {START}\n\n") }, FailureReason::Truncated, "broke off")]
#[tokio::test]
async fn an_answer_that_is_none_has_a_reason_and_names_the_model(
    #[case] server_answer: Answer,
    #[case] reason: FailureReason,
    #[case] words: &str,
) {
    let server = Server::start(vec![server_answer]).await;
    let model = messages(&server.url("/v1"));
    fails(model, "messages", reason, words).await;
}

#[tokio::test]
async fn pings_keep_a_slow_answer_alive_and_do_not_outlast_the_total_time() {
    let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    let server = Server::start(vec![Answer::Stall { content_type: "text/event-stream", body: ping.to_owned() }]).await;
    let mut model = messages(&server.url("/v1"));
    model.timeouts.idle_seconds = 1;
    let error = ask(model).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::TimedOut);
    assert!(error.message.contains("idleSeconds"), "{error}");
}

#[tokio::test]
async fn a_refusal_without_a_call_ends_the_run_in_words() {
    let model = Server::start(vec![sse(include_str!("../streams/messages/refused.sse"))]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_model(messages(&model.url("/v1")), &mcp, &["echo"]).await;
    assert_eq!(journal.end().reason, EndReason::ModelIncomplete);
}

#[tokio::test]
async fn parts_of_the_input_that_together_are_more_than_a_journal_can_hold_are_not_known() {
    let body = json!({
        "type": "message", "stop_reason": "end_turn", "content": [{"type": "text", "text": "done"}],
        "usage": {"input_tokens": 1, "cache_read_input_tokens": 9_007_199_254_740_992_u64, "output_tokens": 2},
    });
    let server = Server::start(vec![reply(200, "application/json", body.to_string())]).await;
    let usage = ask(messages(&server.url("/v1"))).await.unwrap().usage;
    assert_eq!((usage.input_tokens, usage.output_tokens), (None, Some(2)));
    assert_eq!(usage.cached_input_tokens, Some(9_007_199_254_740_992));
}

#[tokio::test]
async fn lists_of_null_are_empty_ones() {
    let server = Server::start(vec![stream(&[
        r#"{"type":"message_start","message":{"id":"m","content":null,"usage":null}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"done"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":null}"#,
        r#"{"type":"message_stop"}"#,
    ])])
    .await;
    let answer = ask(messages(&server.url("/v1"))).await.unwrap();
    assert_eq!(answer.items, [AnswerItem::Text("done".into())]);
}

#[tokio::test]
async fn a_block_that_only_the_provider_knows_goes_back_with_all_its_pieces() {
    let events = [
        r#"{"type":"message_start","message":{"id":"m","content":[]}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":"","depth":3}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"server_tool_use","id":"s","name":"web_search","input":{}}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"query\":"}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":" \"x\"}"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    let server = Server::start(vec![stream(&events)]).await;
    let answer = ask(messages(&server.url("/v1"))).await.unwrap();
    assert_eq!(
        as_json(&answer)["items"],
        json!([
            {"block": {"type": "thinking", "thinking": "hm", "signature": "c2ln", "depth": 3}},
            {"block": {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}}},
        ])
    );
}

#[rstest]
#[case::of_another_kind(r#"{"type":"compaction_delta","content":"x"}"#)]
#[case::cut(r#"{"type":"input_json_delta","partial_json":"{\"query\""}"#)]
#[tokio::test]
async fn an_unknown_block_that_cannot_be_put_together_goes_back_not_at_all(#[case] delta: &str) {
    let piece = format!(r#"{{"type":"content_block_delta","index":0,"delta":{delta}}}"#);
    let events = [
        START,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"new","id":"s"}}"#,
        &piece,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"ok"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    let answer = ask(messages(&Server::start(vec![stream(&events)]).await.url("/v1"))).await.unwrap();
    assert_eq!(answer.items, [AnswerItem::Text("ok".into())]);
}
