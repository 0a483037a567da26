//! The Chat Completions codec against recorded streams and misbehaving servers, and its retries in a run.

use std::time::Duration;

use belay_protocol::Event;
use belay_protocol::cost::Usage;
use belay_protocol::event::{EndReason, FailureReason, Finish, Item, Outcome};
use belay_protocol::plan::PlanModel;
use belay_runner::models::{AnswerItem, ModelAnswer};
use rstest::rstest;
use serde_json::{Value, json};

use crate::answers::Format;
use crate::asking::{ask, fails, run_model, run_plan, stream};
use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::Journal;
use crate::http::{Answer, Server, reply};
use crate::plans::{chat, plan, tool};

fn text(text: &str) -> AnswerItem {
    AnswerItem::Text(text.into())
}

fn tool_call(id: &str, name: &str, arguments: &str) -> AnswerItem {
    AnswerItem::Call { provider_id: id.into(), name: name.into(), arguments: arguments.into() }
}

fn answer(items: Vec<AnswerItem>, finish: Finish, usage: Usage) -> ModelAnswer {
    ModelAnswer {
        items,
        finish,
        usage,
        response_id: Some("r1".into()),
        model: Some("small-1-2026".into()),
        first_chunk: None,
    }
}

fn usage(input: u64, cached: Option<u64>, output: u64) -> Usage {
    Usage { input_tokens: Some(input), cached_input_tokens: cached, output_tokens: Some(output), ..Usage::default() }
}

#[rstest]
#[case::text_usage_and_done(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
        r#"{"id":"r1","choices":[{"index":0,"delta":{"content":"Hel"}}]}"#,
        r#"{"id":"r1","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}"#,
        r#"{"id":"r1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"id":"r1","choices":[],"usage":{"prompt_tokens":31,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":16}}}"#,
        "[DONE]",
    ],
    answer(vec![text("Hello")], Finish::Stop, usage(31, Some(16), 2)),
)]
#[case::two_calls_in_pieces_and_both_in_one_chunk(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"content":"I will.","tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"server__echo","arguments":""}},{"index":1,"id":"b","function":{"name":"server__fail","arguments":"{}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"te"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"xt\": \"a\"}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        "[DONE]",
    ],
    answer(
        vec![text("I will."), tool_call("a", "server__echo", r#"{"text": "a"}"#), tool_call("b", "server__fail", "{}")],
        Finish::ToolCalls,
        Usage::default(),
    ),
)]
#[case::no_index_the_name_repeated_and_no_done(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"server__echo","arguments":"{\"a\""}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"server__echo","arguments":":1}"}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"id":"b","function":{"name":"server__echo","arguments":{"b":2}}}]}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
    ],
    answer(
        vec![tool_call("a", "server__echo", r#"{"a":1}"#), tool_call("b", "server__echo", r#"{"b":2}"#)],
        Finish::ToolCalls,
        Usage::default(),
    ),
)]
#[case::every_call_with_the_index_0(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"server__echo","arguments":"{\"a\":1}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"b","function":{"name":"server__echo","arguments":"{\"b\""}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"","function":{"arguments":":2"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"b","function":{"arguments":"}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
    ],
    answer(
        vec![tool_call("a", "server__echo", r#"{"a":1}"#), tool_call("b", "server__echo", r#"{"b":2}"#)],
        Finish::ToolCalls,
        Usage::default(),
    ),
)]
#[case::every_piece_with_an_id_of_its_own(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"server__echo","arguments":""}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"z","function":{"arguments":"{\"b\":2}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
    ],
    answer(vec![tool_call("a", "server__echo", r#"{"b":2}"#)], Finish::ToolCalls, Usage::default()),
)]
#[case::cut_at_the_output_limit(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":"length"}]}"#,
        "[DONE]",
    ],
    answer(vec![text("Hel")], Finish::Length, Usage::default()),
)]
#[case::message_beside_delta(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"content":"Hel"},"message":{"content":"Hel"}}]}"#,
        r#"{"choices":[{"index":0,"delta":null,"message":{"content":"lo"},"finish_reason":"stop"}]}"#,
    ],
    answer(vec![text("Hello")], Finish::Stop, Usage::default()),
)]
#[case::lists_and_numbers_of_null(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":null,"usage":null,"error":null}"#,
        r#"{"choices":[{"index":null,"delta":{"content":"Hello","tool_calls":null},"finish_reason":"stop"}]}"#,
        r#"{"choices":null,"usage":{"prompt_tokens":31,"completion_tokens":2,"prompt_tokens_details":null}}"#,
        "[DONE]",
    ],
    answer(vec![text("Hello")], Finish::Stop, usage(31, None, 2)),
)]
#[case::filtered(
    &[
        r#"{"id":"r1","model":"small-1-2026","choices":[{"index":0,"delta":{"refusal":"No."},"finish_reason":"content_filter"}]}"#,
        "[DONE]",
    ],
    answer(vec![text("No.")], Finish::ContentFilter, Usage::default()),
)]
#[tokio::test]
async fn recorded_streams_come_out_whole(#[case] events: &[&str], #[case] expected: ModelAnswer) {
    let server = Server::start(vec![stream(events)]).await;
    let answer = ask(chat(&server.url("/v1"))).await.unwrap();
    assert!(answer.first_chunk.is_some(), "it came in pieces");
    assert_eq!(ModelAnswer { first_chunk: None, ..answer }, expected);
}

#[tokio::test]
async fn how_long_the_first_piece_took_is_journaled() {
    let mcp = FakeMcp::start(Era::Stateless, &[]).await;
    let streamed = Format::Chat.says("done");
    let whole = json!({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "done"}}]}).to_string();
    for (answer, measured) in [(streamed, true), (reply(200, "application/json", whole), false)] {
        let server = Server::start(vec![answer]).await;
        let journal = run_model(chat(&server.url("/v1")), &mcp, &[]).await;
        let first = journal.events().find_map(|event| match event {
            Event::ModelResponded { response, .. } => Some((response.first_chunk_milliseconds, response.milliseconds)),
            _ => None,
        });
        let (first, all) = first.unwrap();
        assert_eq!(first.is_some_and(|first| first <= all), measured);
    }
}

#[tokio::test]
async fn an_answer_in_one_piece_is_taken_too() {
    let body = json!({
        "id": "r1", "model": "small-1-2026",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": null,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "server__echo", "arguments": "{}"}}]}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    });
    let server = Server::start(vec![reply(200, "application/json", body.to_string())]).await;
    let expected = answer(vec![tool_call("a", "server__echo", "{}")], Finish::ToolCalls, usage(3, None, 4));
    assert_eq!(ask(chat(&server.url("/v1"))).await, Ok(expected));
}

#[rstest]
#[case::wrong_key(
    reply(401, "application/json", r#"{"error":"bad key hunter2"}"#),
    FailureReason::Unauthorized,
    "check Credential key (Secret keys, key token)"
)]
#[case::forbidden(reply(403, "text/plain", "no"), FailureReason::Unauthorized, "403 Forbidden")]
#[case::unknown_model(reply(404, "text/plain", "no such model"), FailureReason::BadRequest, "spec.model (small-1)")]
#[case::too_long(
    reply(400, "application/json", r#"{"error":{"code":"context_length_exceeded"}}"#),
    FailureReason::ContextExceeded,
    "no longer fits"
)]
#[case::limited(reply(429, "text/plain", ""), FailureReason::RateLimited, "429")]
#[case::overloaded(reply(529, "text/plain", "overloaded"), FailureReason::ServerError, "overloaded")]
#[case::redirected(Answer::Reply { status: 307, headers: vec![("location", "http://127.0.0.1:1/".into())], body: String::new() }, FailureReason::BadRequest, "307")]
#[case::a_web_page(reply(200, "text/html", "<html>"), FailureReason::Malformed, "text/html")]
#[case::not_json(reply(200, "application/json", "<html>"), FailureReason::Malformed, "no Chat Completions answer")]
#[case::garbage_in_the_stream(stream(&["{\"choices\":7}"]), FailureReason::Malformed, "no Chat Completions answer")]
#[case::a_limit_in_the_stream(stream(&[r#"{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}"#]), FailureReason::RateLimited, "slow down")]
#[case::an_error_in_the_stream(stream(&[r#"{"error":{"message":"hunter2 is out"}}"#]), FailureReason::ServerError, "is out")]
#[case::no_finish_reason(stream(&[r#"{"choices":[{"delta":{"content":"half"}}]}"#, "[DONE]"]), FailureReason::Truncated, "without a finish reason")]
#[case::an_empty_finish_reason(stream(&[r#"{"choices":[{"delta":{"content":"half"},"finish_reason":""}]}"#, "[DONE]"]), FailureReason::Truncated, "without a finish reason")]
#[case::an_error_as_finish_reason(stream(&[r#"{"choices":[{"delta":{"content":"half"},"finish_reason":"error"}]}"#, "[DONE]"]), FailureReason::ServerError, "reported an error")]
#[case::out_of_resources(stream(&[r#"{"choices":[{"delta":{"content":"half"},"finish_reason":"insufficient_system_resource"}]}"#, "[DONE]"]), FailureReason::ServerError, "insufficient_system_resource")]
#[case::an_empty_stream(stream(&[]), FailureReason::Truncated, "without a finish reason")]
#[case::calls_announced_and_missing(stream(&[r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#]), FailureReason::Malformed, "sent no call")]
#[case::broken_off(Answer::Break { content_type: "text/event-stream", body: "data: {\"choices\":[]}\n\n".into() }, FailureReason::Truncated, "broke off")]
#[case::too_large(reply(200, "application/json", "x".repeat(9 * 1024 * 1024)), FailureReason::TooLarge, "more than 8388608 bytes")]
#[tokio::test]
async fn an_answer_that_is_none_has_a_reason_and_names_the_model(
    #[case] server_answer: Answer,
    #[case] reason: FailureReason,
    #[case] words: &str,
) {
    let server = Server::start(vec![server_answer]).await;
    let model = chat(&server.url("/v1"));
    fails(model, "chat/completions", reason, words).await;
    assert_eq!(server.received().len(), 1, "nothing is sent twice");
    assert_eq!(server.received()[0].authorization.as_deref(), Some("Bearer hunter2"));
}

#[rstest]
#[case::silence(Answer::Silence, "firstByteSeconds")]
#[case::headers_alone(Answer::Stall { content_type: "text/event-stream", body: String::new() }, "firstByteSeconds")]
#[case::stuck(Answer::Stall { content_type: "text/event-stream", body: ": ping\n\n".into() }, "idleSeconds")]
#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_the_time_out_is_named(#[case] answer: Answer, #[case] field: &str) {
    let server = Server::start(vec![answer]).await;
    let mut model = chat(&server.url("/v1"));
    model.timeouts.first_byte_seconds = 1;
    model.timeouts.idle_seconds = 1;
    let error = ask(model).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::TimedOut, "{error}");
    assert!(error.message.contains(field), "{error}");
}

#[tokio::test]
async fn a_server_that_drips_forever_meets_the_total_time_out() {
    let server =
        Server::start(vec![Answer::Stall { content_type: "text/event-stream", body: ": ping\n\n".into() }]).await;
    let mut model = chat(&server.url("/v1"));
    model.timeouts.total_seconds = 1;
    model.timeouts.idle_seconds = 60;
    let error = ask(model).await.unwrap_err();
    assert!(error.message.contains("totalSeconds"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = ask(chat(&format!("http://{free}/v1"))).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Unreachable, "{error}");
    assert!(error.message.contains("check spec.baseURL"), "{error}");
}

#[tokio::test]
async fn a_context_that_cannot_fit_is_not_sent() {
    let server = Server::start(vec![stream(&[])]).await;
    let model = PlanModel { context_window_tokens: Some(20), max_output_tokens: Some(10), ..chat(&server.url("/v1")) };
    let error = ask(model).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::ContextExceeded, "{error}");
    assert_eq!(server.received().len(), 0);
}

#[rstest]
#[case::it_fits(100, true)]
#[case::it_does_not(2950, false)]
#[tokio::test]
async fn a_conversation_is_as_long_as_its_server_counted_it_and_what_is_new_since(
    #[case] counted: u64,
    #[case] fits: bool,
) {
    // By its bytes it would take 5000 tokens.
    let call: Value = serde_json::from_str(PLAIN_CALL).unwrap();
    let answer = json!({"choices": [{"delta": {"content": "x".repeat(20_000), "tool_calls": [call]}, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": counted, "completion_tokens": 50}});
    let server = Server::start(vec![stream(&[&answer.to_string(), "[DONE]"]), stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let model =
        PlanModel { context_window_tokens: Some(3000), max_output_tokens: Some(100), ..chat(&server.url("/v1")) };
    let journal = run_model(model, &mcp, &["echo"]).await;
    assert_eq!(journal.end().outcome == Outcome::Succeeded, fits, "{}", journal.end().message);
    assert_eq!(server.received().len(), if fits { 2 } else { 1 });
    let reserved = journal.events().filter_map(|event| match event {
        Event::ModelRequested { reserved_tokens, .. } => Some(*reserved_tokens),
        _ => None,
    });
    // The tool said two bytes.
    assert_eq!(reserved.last(), Some(if fits { 100 + 50 + 100 } else { 0 }));
}

fn stop(words: &str) -> Answer {
    let delta = json!({"choices": [{"delta": {"content": words}, "finish_reason": "stop"}]});
    stream(&[&delta.to_string(), "[DONE]"])
}

async fn run_chat(model: &Server, mcp: &FakeMcp, operations: &[&str]) -> Journal {
    run_model(chat(&model.url("/v1")), mcp, operations).await
}

#[tokio::test]
async fn a_conversation_is_sent_back_as_the_api_wants_it() {
    let calls = json!({"choices": [{"finish_reason": "tool_calls", "delta": {"content": "Trying.", "tool_calls": [
        {"index": 0, "id": "a", "function": {"name": "server__echo", "arguments": "{\"text\":\"hi\"}"}},
        {"index": 1, "id": "a", "function": {"name": "server__fail", "arguments": ""}},
        {"index": 2, "id": "x", "function": {"name": "server__echo", "arguments": "{oops"}},
    ]}}]});
    let model = Server::start(vec![stream(&[&calls.to_string(), "[DONE]"]), stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let journal = run_chat(&model, &mcp, &["echo", "fail"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    let requests = model.bodies();
    assert!(model.received().iter().all(|request| request.path == "/v1/chat/completions"));
    assert_eq!(
        requests[0]["messages"],
        json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Do it."},
        ])
    );
    assert_eq!(requests[0]["stream_options"], json!({"include_usage": true}));
    assert_eq!(requests[0]["tools"][0]["function"]["name"], "server__echo");
    assert_eq!(requests[0]["tools"][0]["function"]["parameters"]["type"], "object");
    assert!(!requests[0]["tools"].to_string().contains("s3cr3t"), "{}", requests[0]["tools"]);
    let function = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    assert_eq!(
        requests[1]["messages"][2],
        json!({"role": "assistant", "content": "Trying.", "tool_calls": [
            function("a", "server__echo", "{\"text\":\"hi\"}"),
            function("c2", "server__fail", "{}"),
            function("x", "server__echo", "{\"malformed\":\"{oops\"}"),
        ]})
    );
    assert_eq!(requests[1]["messages"][3], json!({"role": "tool", "tool_call_id": "a", "content": "hi"}));
    assert_eq!(
        requests[1]["messages"][4],
        json!({"role": "tool", "tool_call_id": "c2", "content": "Error: it did not work"})
    );
    let malformed = requests[1]["messages"][5]["content"].as_str().unwrap();
    assert!(malformed.starts_with("Error: not sent: the arguments are not a JSON object"), "{malformed}");
    let kept = journal.events().find_map(|event| match event {
        Event::ModelResponded { response, .. } => response.items.last().cloned(),
        _ => None,
    });
    assert!(matches!(kept, Some(Item::ToolCall { arguments, .. }) if arguments == "{oops"), "verbatim in the journal");
}

const SIGNED_CALL: &str = r#"{"index":0,"id":"a","type":"function","extra_content":{"google":{"thought_signature":"AY89+/x=="}},"function":{"name":"server__echo","arguments":"{\"text\":\"hi\"}"}}"#;
const PLAIN_CALL: &str =
    r#"{"index":0,"id":"a","type":"function","function":{"name":"server__echo","arguments":"{\"text\":\"hi\"}"}}"#;

fn calls_after(deltas: &[&str], call: &str) -> Answer {
    let thoughts = deltas.iter().map(|delta| format!(r#"{{"choices":[{{"delta":{delta}}}]}}"#));
    let call = format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{call}]}},"finish_reason":"tool_calls"}}]}}"#);
    let events: Vec<String> = thoughts.chain([call]).collect();
    stream(&events.iter().map(String::as_str).collect::<Vec<_>>())
}

#[rstest]
#[case::deepseek(&[r#"{"reasoning_content":"Say "}"#, r#"{"reasoning_content":"hi."}"#], PLAIN_CALL, json!({"reasoning_content": "Say hi."}))]
#[case::vllm_and_groq(&[r#"{"reasoning":"Say "}"#, r#"{"reasoning":"hi."}"#], PLAIN_CALL, json!({"reasoning": "Say hi."}))]
#[case::openrouter(
    &[
        r#"{"reasoning":"Say ","reasoning_details":[{"type":"reasoning.text","index":0,"format":"f","text":"Say ","signature":null}]}"#,
        r#"{"reasoning":"hi.","reasoning_details":[{"type":"reasoning.text","index":0,"format":"f","text":"hi."}]}"#,
        r#"{"reasoning_details":[{"type":"reasoning.text","index":0,"format":"f","signature":"c2ln"}]}"#,
        r#"{"reasoning_details":[{"type":"reasoning.encrypted","index":1,"id":"x","data":"EmwK=="}]}"#,
    ],
    PLAIN_CALL,
    json!({"reasoning": "Say hi.", "reasoning_details": [
        {"type": "reasoning.text", "index": 0, "format": "f", "text": "Say hi.", "signature": "c2ln"},
        {"type": "reasoning.encrypted", "index": 1, "id": "x", "data": "EmwK=="},
    ]}),
)]
#[case::gemini(&[], SIGNED_CALL, json!({}))]
#[tokio::test]
async fn what_only_its_server_understands_goes_back_in_the_field_it_came_in_and_to_no_other_model(
    #[case] deltas: &[&str],
    #[case] call: &str,
    #[case] expected: Value,
) {
    let first = Server::start(vec![calls_after(deltas, call), reply(401, "text/plain", "no")]).await;
    let second = Server::start(vec![stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut plan = plan(chat(&first.url("/v1")), vec![tool(&mcp.url(), &["echo"])]);
    plan.fallbacks = vec![PlanModel { name: "other".into(), ..chat(&second.url("/v1")) }];
    let journal = run_plan(plan, &[]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    let said = |server: &Server, request: usize| server.bodies()[request]["messages"][2].clone();
    let mut own = json!({"role": "assistant", "tool_calls": [serde_json::from_str::<Value>(call).unwrap()]});
    own["tool_calls"][0].as_object_mut().unwrap().remove("index");
    own.as_object_mut().unwrap().extend(expected.as_object().unwrap().clone());
    assert_eq!(said(&first, 1), own);
    let others = json!({"role": "assistant", "tool_calls": [{"id": "c1", "type": "function",
        "function": {"name": "server__echo", "arguments": "{\"text\":\"hi\"}"}}]});
    assert_eq!(said(&second, 0), others);
}

#[tokio::test]
async fn details_of_reasoning_in_one_piece_go_back_as_they_came() {
    let details = json!([{"type": "reasoning.summary", "summary": "a"}, {"type": "reasoning.summary", "summary": "b"}]);
    let call = serde_json::from_str::<Value>(PLAIN_CALL).unwrap();
    let body = json!({"choices": [{"finish_reason": "tool_calls",
        "message": {"content": null, "reasoning_details": details, "tool_calls": [call]}}]});
    let model = Server::start(vec![reply(200, "application/json", body.to_string()), stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    run_chat(&model, &mcp, &["echo"]).await;
    assert_eq!(model.bodies()[1]["messages"][2]["reasoning_details"], details);
}

/// The answer of a model that wants one call with these arguments.
fn calls_echo(arguments: &str) -> Answer {
    let call = json!({"index": 0, "id": "a", "function": {"name": "server__echo", "arguments": arguments}});
    let delta = json!({"choices": [{"finish_reason": "tool_calls", "delta": {"tool_calls": [call]}}]});
    stream(&[&delta.to_string(), "[DONE]"])
}

#[tokio::test]
async fn arguments_of_nearly_a_megabyte_arrive_whole_and_what_does_not_fit_a_proposal_is_told_to_the_model() {
    let large = "x".repeat(1_000_000);
    // 4 bytes each in the model's words, 13 as the number that they stand for.
    let numbers = vec!["1e9"; 100_000].join(",");
    let answers = vec![
        calls_echo(&json!({"text": large}).to_string()),
        calls_echo(&format!("{{\"text\":\"\",\"n\":[{numbers}]}}")),
        stop("done"),
    ];
    let model = Server::start(answers).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    let called = mcp.called();
    assert_eq!(called.len(), 1);
    assert_eq!(called[0].1["text"].as_str().map(str::len), Some(large.len()));
    let told = journal.events().find_map(|event| match event {
        Event::CallNotSent { call_id, message, .. } => Some((call_id.as_str(), message.as_str())),
        _ => None,
    });
    let (call_id, message) = told.unwrap();
    assert!(call_id == "c2" && message.contains("a call holds 1040384: call it with less at a time"), "{message}");
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn an_answer_that_no_step_can_hold_ends_the_run_and_says_what_to_change() {
    let model = Server::start(vec![calls_echo(&json!({"text": "x".repeat(1_100_000)}).to_string())]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    assert_eq!(mcp.called_operations(), Vec::<String>::new());
    let end = journal.end();
    assert_eq!(end.outcome, Outcome::Failed);
    assert!(end.message.contains("is more than a step may hold: lower spec.maxOutputTokens"), "{}", end.message);
}

#[tokio::test]
async fn numbers_without_an_exact_form_and_calls_cut_at_the_limit_are_not_sent() {
    let calls = json!({"choices": [{"finish_reason": "length", "delta": {"tool_calls": [
        {"index": 0, "id": "a", "function": {"name": "server__echo", "arguments": "{\"id\":9007199254740993}"}},
        {"index": 1, "id": "b", "function": {"name": "server__echo", "arguments": "{}"}},
    ]}}]});
    let model = Server::start(vec![stream(&[&calls.to_string(), "[DONE]"]), stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    let words: Vec<_> = journal
        .events()
        .filter_map(|event| match event {
            Event::CallNotSent { message, .. } => Some(message.as_str()),
            _ => None,
        })
        .collect();
    assert!(words[0].contains("9007199254740993") && words[1].contains("cut at the output limit"), "{words:?}");
    assert_eq!(mcp.called_operations(), Vec::<String>::new());
}

#[tokio::test]
async fn transient_failures_are_asked_again_and_journaled_each_time() {
    let limited = Answer::Reply { status: 429, headers: vec![("retry-after", "0".into())], body: "slow down".into() };
    let model = Server::start(vec![limited.clone(), limited, stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    assert_eq!(
        journal.names()[1..],
        [
            vec!["ModelFailed"],
            vec!["ModelRequested"],
            vec!["ModelFailed"],
            vec!["ModelRequested"],
            vec!["ModelResponded"]
        ]
    );
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn retry_after_wins_over_the_backoff() {
    let limited = Answer::Reply { status: 503, headers: vec![("retry-after", "2".into())], body: String::new() };
    let model = Server::start(vec![limited, stop("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let start = std::time::Instant::now();
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_server_that_asks_for_hours_of_patience_ends_the_run() {
    let limited = Answer::Reply { status: 429, headers: vec![("retry-after", "7200".into())], body: String::new() };
    let model = Server::start(vec![limited]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    assert_eq!(journal.end().reason, EndReason::ModelFailed);
    assert_eq!(model.received().len(), 1);
}

#[tokio::test]
async fn five_attempts_are_all() {
    let limited = Answer::Reply { status: 429, headers: vec![("retry-after", "0".into())], body: String::new() };
    let model = Server::start(vec![limited]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_chat(&model, &mcp, &["echo"]).await;
    assert_eq!(model.received().len(), 5);
    assert_eq!(journal.end().reason, EndReason::ModelFailed);
    assert!(journal.end().message.contains("answered 429"), "{}", journal.end().message);
}
