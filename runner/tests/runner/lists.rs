//! Servers whose lists are bad: too long, too deep, without an end, with names that nobody could read, untrue. Each ends in
//! words that name the Tool, and what can be used is.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Response;
use belay_protocol::event::FailureReason;
use belay_runner::tools::mcp::McpServer;
use belay_runner::tools::schema::ArgumentSchema;
use belay_runner::tools::{LeftOut, ListError, ToolServer as _};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::mcp::{connect, plan_for};

/// A server of the older era that answers every request for its tools with `page`.
async fn server(page: fn() -> String) -> McpServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let answer = move |body: Bytes| async move {
        let request: Value = serde_json::from_slice(&body).unwrap_or_default();
        let result = match request["method"].as_str() {
            Some("initialize") => {
                let info = json!({"name": "bad", "version": "1"});
                json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}).to_string()
            }
            Some("tools/list") => page(),
            Some("notifications/initialized") => return Response::builder().status(202).body(Body::empty()).unwrap(),
            _ => return Response::builder().status(400).body("what?".into()).unwrap(),
        };
        let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, request["id"]);
        Response::builder().header("content-type", "application/json").body(Body::from(body)).unwrap()
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    connect(&plan_for(&url, &[]))
}

fn tool(name: &str, schema: &Value) -> Value {
    json!({"name": name, "description": "d", "inputSchema": schema})
}

fn tools(tools: &[Value]) -> String {
    json!({"tools": tools}).to_string()
}

fn object() -> Value {
    json!({"type": "object"})
}

/// So many objects, each in the one before.
fn nested(levels: usize) -> String {
    format!(
        "{}{}{}",
        r#"{"type":"object","properties":{"a":"#.repeat(levels),
        r#"{"type":"string"}"#,
        "}}".repeat(levels)
    )
}

fn deep(levels: usize) -> String {
    format!(
        r#"{{"tools":[{{"name":"fine","inputSchema":{{"type":"object"}}}},{{"name":"deep","inputSchema":{}}}]}}"#,
        nested(levels)
    )
}

#[rstest]
#[case::ten_thousand_tools(
    || tools(&(0..10_000).map(|n| tool(&format!("t{n}"), &object())).collect::<Vec<_>>()),
    FailureReason::TooLarge, "lists more than 1024 operations"
)]
#[case::the_same_page_for_ever(
    || json!({"tools": [], "nextCursor": "again"}).to_string(),
    FailureReason::TooLarge, "on more than 256 pages"
)]
#[case::megabytes_of_one_tool(
    || tools(&[tool("t", &json!({"type": "object", "description": "x".repeat(5 << 20)}))]),
    FailureReason::TooLarge, "4194304 bytes"
)]
#[case::more_than_is_read(
    || tools(&[tool(&"x".repeat(9 << 20), &object())]),
    FailureReason::TooLarge, "more than 8388608 bytes"
)]
#[case::a_thousand_levels(|| deep(1000), FailureReason::Malformed, "lists an operation whose inputSchema is nested too deep")]
#[case::no_list(|| json!({"tools": "none"}).to_string(), FailureReason::Malformed, "does not speak MCP")]
#[tokio::test]
async fn a_list_that_cannot_be_taken_is_refused_in_words(
    #[case] page: fn() -> String,
    #[case] reason: FailureReason,
    #[case] words: &str,
) {
    let ListError { reason: found, message } = server(page).await.list().await.unwrap_err();
    assert_eq!(found, reason, "{message}");
    assert!(message.contains(words) && message.starts_with("Tool server: "), "{message}");
}

#[tokio::test]
async fn operations_whose_names_nobody_could_use_are_left_out_with_the_reason_and_the_others_are_not() {
    let page = || {
        let long = "l".repeat(129);
        tools(&["fine", "", &long, "beep\u{7}", "two\nlines"].map(|name| tool(name, &object())))
    };
    let mut server = server(page).await;
    let names: Vec<String> = server.list().await.unwrap().into_iter().map(|definition| definition.name).collect();
    assert_eq!(names, ["fine"]);
    let (length, control) = ("its name has to be 1 to 128 characters long", "its name holds control characters");
    let long = "l".repeat(129);
    let expected = [("(no name)", length), (long.as_str(), length), ("beep\u{7}", control), ("two\nlines", control)];
    assert_eq!(server.left_out(), expected.map(|(name, why)| LeftOut::new(name, why)));
}

#[tokio::test]
async fn of_a_name_that_is_listed_twice_the_first_definition_counts_and_the_other_is_named() {
    let page = || tools(&[tool("a", &object()), tool("b", &object()), tool("a", &json!({"type": "object", "x": 1}))]);
    let mut server = server(page).await;
    let listed = server.list().await.unwrap();
    assert_eq!(
        listed.iter().map(|one| (one.name.as_str(), &one.input_schema)).collect::<Vec<_>>(),
        [("a", &object()), ("b", &object())]
    );
    let [LeftOut { name, why }] = server.left_out() else { panic!("{:?}", server.left_out()) };
    assert!(name == "a" && why.contains("more than once"), "{name}: {why}");
}

/// Not so deep that the list itself cannot be read.
#[tokio::test]
async fn one_schema_that_is_too_deep_leaves_the_others_usable() {
    let mut server = server(|| deep(50)).await;
    let names: Vec<String> = server.list().await.unwrap().into_iter().map(|definition| definition.name).collect();
    assert_eq!(names, ["fine"]);
    let why =
        "its definition has no canonical form (RFC 8785): it is nested too deep, or holds numbers that no double is";
    assert_eq!(server.left_out(), [LeftOut::new("deep", why)]);
}

/// What a schema says is what arguments are held to, whatever the server then does with them.
#[rstest]
#[case::no_schema_at_all(json!({"type": "object", "properties": []}))]
#[case::of_a_type_that_is_none(json!({"type": "thing"}))]
#[case::from_elsewhere(json!({"type": "object", "$ref": "http://127.0.0.1:1/schema.json"}))]
#[case::in_a_circle(json!({"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}))]
#[tokio::test]
async fn a_schema_that_is_none_is_not_checked_against(#[case] schema: Value) {
    assert!(ArgumentSchema::compile(&schema).is_err());
}
