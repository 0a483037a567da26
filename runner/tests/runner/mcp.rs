//! What becomes of a call, for every way in which a server can answer or not.

use std::time::Duration;

use belay_protocol::call::CallBinding;
use belay_protocol::elicitation::Inputs;
use belay_protocol::event::{FailureReason, ToolResult};
use belay_protocol::{Digest, Plan, wire};
use belay_runner::permit::{BootTime, Decided, Permit, Verdict};
use belay_runner::redact::Redactor;
use belay_runner::tools::mcp::McpServer;
use belay_runner::tools::{Call, Outcome, ToolServer as _};
use rstest::rstest;
use serde_json::{Value, json};

use crate::fake_mcp::{Era, FakeMcp};
use crate::http::{Answer, Server, reply};
use crate::plans::{mounted, plan, says, scripted, tool};

pub fn connect(plan: &Plan) -> McpServer {
    let (_folder, credentials) = mounted(&[]);
    let redactor = Redactor::new(credentials.clone(), &[]);
    McpServer::of_plan(plan, &plan.tools[0], credentials, redactor).unwrap()
}

pub fn plan_for(url: &str, operations: &[&str]) -> Plan {
    plan(scripted(vec![says("")]), vec![tool(url, operations)])
}

pub fn permit(digest: Digest) -> Permit {
    let permit = wire::Permit { digest: digest.as_bytes().to_vec(), valid_milliseconds: 10_000 };
    let verdict = Some(wire::decision::Verdict::Permit(permit));
    let decision = wire::Decision { subject: "c1".into(), attempt: 1, verdict };
    match Decided::read(decision, BootTime::now()).verdict {
        Verdict::Call(permit) => permit,
        other => panic!("{other:?}"),
    }
}

/// Calls with a permit for these very bytes, or for others.
pub async fn call(server: &mut McpServer, operation: &str, args: Value, permitted: Option<Digest>) -> Outcome {
    call_within(Duration::from_millis(400), server, operation, args, (Inputs::default(), permitted)).await
}

/// Calls without arguments, with what people answered before, and with time for all that is asked.
pub async fn call_with(server: &mut McpServer, operation: &str, inputs: Inputs, permitted: Option<Digest>) -> Outcome {
    call_within(Duration::from_secs(20), server, operation, json!({}), (inputs, permitted)).await
}

async fn call_within(
    timeout: Duration,
    server: &mut McpServer,
    operation: &str,
    args: Value,
    (inputs, permitted): (Inputs, Option<Digest>),
) -> Outcome {
    let definition = Digest::of(b"definition");
    server.prepare().await.unwrap();
    let url = server.url().to_owned();
    let plan = plan_for(&url, &[operation]);
    let binding = CallBinding::new(&plan, &plan.tools[0], definition, operation, &args);
    let binding = CallBinding { inputs: inputs.digest().unwrap(), ..binding };
    let digest = permitted.unwrap_or_else(|| binding.digest().unwrap());
    let Value::Object(arguments) = args else { panic!("arguments are an object") };
    let call = Call { operation: operation.into(), arguments, definition, key: None, inputs };
    server.call(&call, permit(digest), timeout).await
}

enum Expected {
    Observed(&'static str),
    ToolError(&'static str),
    Unknown(&'static str),
}

#[rstest]
#[case::plain("echo", Expected::Observed("nothing"))]
#[case::streamed("stream", Expected::Observed("streamed"))]
#[case::tool_error("fail", Expected::ToolError("it did not work"))]
#[case::protocol_error("rpc-error", Expected::ToolError("no such thing"))]
#[case::unknown_operation("nothing-of-that-name", Expected::ToolError("unknown tool"))]
#[case::forbidden("forbidden", Expected::ToolError("HTTP 403"))]
#[case::rate_limited("too-many", Expected::ToolError("HTTP 429"))]
#[case::redirected("redirect", Expected::ToolError("HTTP 307"))]
#[case::no_answer("hang", Expected::Unknown("no answer within"))]
#[case::stream_without_answer("cut", Expected::Unknown("the connection ended"))]
#[case::broken_stream("break", Expected::Unknown("the connection broke"))]
#[case::bad_gateway("bad-gateway", Expected::Unknown("502"))]
#[case::not_mcp("web-page", Expected::Unknown("not MCP"))]
#[tokio::test]
async fn every_end_of_a_call_is_told_as_what_it_is(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
    #[case] operation: &'static str,
    #[case] expected: Expected,
) {
    let fake = FakeMcp::start(era, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &[operation]));
    let outcome = call(&mut server, operation, json!({}), None).await;
    match (&outcome, &expected) {
        (Outcome::Observed(ToolResult { is_error: false, content, .. }), Expected::Observed(words))
        | (Outcome::Observed(ToolResult { is_error: true, content, .. }), Expected::ToolError(words))
        | (Outcome::Unknown { message: content }, Expected::Unknown(words)) => {
            assert!(content.contains(words), "{outcome:?}");
        }
        _ => panic!("{outcome:?}"),
    }
    assert_eq!(fake.called_operations(), [operation], "sent once, whatever came of it");
}

#[tokio::test]
async fn an_expired_session_is_an_observed_error_and_the_next_call_opens_another() {
    let fake = FakeMcp::start(Era::Sessions, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &["expired", "echo"]));
    let outcome = call(&mut server, "expired", json!({}), None).await;
    assert!(matches!(outcome, Outcome::Observed(ToolResult { is_error: true, .. })), "{outcome:?}");
    let outcome = call(&mut server, "echo", json!({"text": "again"}), None).await;
    assert!(matches!(outcome, Outcome::Observed(ToolResult { is_error: false, .. })), "{outcome:?}");
    assert_eq!(fake.called_operations(), ["expired", "echo"]);
}

#[tokio::test]
async fn an_oversized_result_is_cut() {
    let fake = FakeMcp::start(Era::Sessions, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &["huge"]));
    let Outcome::Observed(result) = call(&mut server, "huge", json!({}), None).await else { panic!() };
    assert_eq!(result.truncated_from_bytes, Some(300 * 1024));
    assert!(result.content.len() <= belay_protocol::RESULT_BYTES_MAX);
}

#[tokio::test]
async fn a_listing_follows_its_pages() {
    let fake = FakeMcp::start(Era::Stateless, &["a", "b", "c", "d", "e"]).await;
    let mut server = connect(&plan_for(&fake.url(), &[]));
    let names: Vec<_> = server.list().await.unwrap().into_iter().map(|definition| definition.name).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
}

#[rstest]
#[case::wrong_key(401, FailureReason::Unauthorized, "set spec.mcp.credentialRef")]
#[case::wrong_path(404, FailureReason::BadRequest, "answered 404")]
#[case::broken(500, FailureReason::ServerError, "see the server's own logs")]
#[case::limited(429, FailureReason::RateLimited, "limits requests")]
#[case::moved(308, FailureReason::BadRequest, "redirects are not followed")]
#[tokio::test]
async fn a_listing_that_fails_says_what_to_do(#[case] status: u16, #[case] reason: FailureReason, #[case] words: &str) {
    let http = Server::start(vec![reply(status, "text/plain", "oh no")]).await;
    let error = connect(&plan_for(&http.url("/mcp"), &[])).list().await.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    assert!(error.message.contains(words) && error.message.contains("Tool server"), "{error}");
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_told_apart() {
    let http = Server::start(vec![reply(200, "text/html", "<html>hello</html>")]).await;
    let error = connect(&plan_for(&http.url("/"), &[])).list().await.unwrap_err();
    assert_eq!(error.reason, FailureReason::Malformed, "{error}");
    assert!(error.message.contains("does not speak MCP"), "{error}");
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let http = Server::start(vec![Answer::Silence]).await;
    let mut server = connect(&plan_for(&http.url("/mcp"), &[])).with_listing_timeout(Duration::from_millis(200));
    let error = server.list().await.unwrap_err();
    assert_eq!(error.reason, FailureReason::TimedOut, "{error}");
}
