//! What becomes of a call of an HTTP API, for every way in which a server can answer or not.

use std::time::Duration;

use belay_protocol::call::CallBinding;
use belay_protocol::elicitation::Inputs;
use belay_protocol::event::{EndReason, Event, FailureReason, NotSentReason, Outcome as RunOutcome, ToolResult};
use belay_protocol::plan::{
    Effects, HttpOperations, Inject, InlineHeader, InlineOperation, PlanCredential, PlanOperation, PlanTool,
};
use belay_protocol::{Digest, Plan};
use belay_runner::models::scripted::Scripted;
use belay_runner::redact::Redactor;
use belay_runner::tools::http::Documents;
use belay_runner::tools::{self, Call, Outcome, ToolServer};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::credentials::client;
use crate::fake_operator::{Journal, Script, run};
use crate::http::{Answer, Server, reply};
use crate::mcp::permit;
use crate::plans::{TOOL, calls, credential, mounted, plan, says, scripted, tool};
use crate::token_server::TokenServer;

const DOCUMENT: &str = "
openapi: 3.1.0
paths:
  /things/{id}:
    get:
      operationId: get_thing
      parameters:
      - {name: id, in: path, required: true, schema: {type: string}}
      - {name: tags, in: query, schema: {type: array, items: {type: string}}}
    put:
      operationId: put_thing
      parameters:
      - {name: id, in: path, required: true, schema: {type: string}}
      requestBody: {required: true, content: {application/json: {schema: {type: object}}}}
";

/// An API, what calls it, and the folders that it reads.
pub struct Stage {
    plan: Plan,
    pub server: Box<dyn ToolServer>,
    /// How long a call may take.
    pub patience: Duration,
    folders: (TempDir, TempDir),
}

pub fn documented() -> HttpOperations {
    HttpOperations::Document { config_map: "things".into(), key: "openapi.yaml".into(), only: Vec::new() }
}

pub fn inline() -> HttpOperations {
    HttpOperations::Inline(vec![InlineOperation {
        name: "put_thing".into(),
        description: "Puts a thing.".into(),
        method: "PUT".into(),
        path: "/things/{id}".into(),
        query: vec!["dry".into()],
        headers: vec![InlineHeader { name: "If-Match".into(), argument: "etag".into() }],
        body: Some("body".into()),
        schema: None,
    }])
}

pub fn http_tool(url: &str, described: HttpOperations, credential: Option<&str>) -> PlanTool {
    PlanTool { http: Some(described), credential: credential.map(str::to_owned), ..tool(url, &[]) }
}

fn document(text: &str) -> (TempDir, Documents) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(TOOL)).unwrap();
    std::fs::write(folder.path().join(TOOL).join("document"), text).unwrap();
    let documents = Documents::new(folder.path().to_owned());
    (folder, documents)
}

pub fn stage_of(tool: PlanTool, text: &str, hosts: &[&str]) -> Stage {
    stage_by(tool, text, credential(hosts))
}

fn stage_by(tool: PlanTool, text: &str, credential: PlanCredential) -> Stage {
    let mut plan = plan(scripted(vec![says("")]), vec![tool]);
    plan.credentials.push(credential);
    let (secrets, credentials) = mounted(&[("key", "s3cr3t-value")]);
    let (folder, documents) = document(text);
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    let server = tools::of_plan(&plan, &plan.tools[0], &credentials, &documents, &redactor).unwrap();
    Stage { plan, server, patience: Duration::from_secs(10), folders: (secrets, folder) }
}

fn stage(server: &Server, described: HttpOperations) -> Stage {
    stage_of(http_tool(&server.url("/v1"), described, None), DOCUMENT, &["127.0.0.1"])
}

impl Stage {
    /// Calls with a permit for these very bytes, or for others.
    async fn call_with(
        &mut self,
        operation: &str,
        args: Value,
        key: Option<&str>,
        permitted: Option<Digest>,
    ) -> Outcome {
        let listed = self.server.list().await.unwrap();
        let definition = listed.iter().find(|one| one.name == operation).unwrap().digest;
        self.server.prepare().await.unwrap();
        let binding = CallBinding::new(&self.plan, &self.plan.tools[0], definition, operation, &args);
        let digest = permitted.unwrap_or_else(|| binding.digest().unwrap());
        let Value::Object(arguments) = args.clone() else { panic!("arguments are an object") };
        let (operation, key) = (operation.to_owned(), key.map(str::to_owned));
        let call = Call { operation, arguments, definition, key, inputs: Inputs::default() };
        self.server.call(&call, permit(digest), self.patience).await
    }

    pub async fn call(&mut self, operation: &str, args: Value) -> Outcome {
        self.call_with(operation, args, None, None).await
    }
}

fn shown(outcome: &Outcome) -> (&str, &str) {
    match outcome {
        Outcome::Observed(ToolResult { is_error: false, content, .. }) => ("observed", content),
        Outcome::Observed(ToolResult { is_error: true, content, .. }) => ("error", content),
        Outcome::Unknown { message } => ("unknown", message),
        Outcome::NotSent { message, .. } => ("not sent", message),
        Outcome::PermitExpired | Outcome::InputRequired(_) => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn arguments_go_where_the_document_says() {
    let server = Server::start(vec![reply(200, "application/json", r#"{"ok":true}"#)]).await;
    let mut stage = stage(&server, documented());
    let args = json!({"id": "a/b c", "tags": ["x", "y&z"]});
    assert_eq!(shown(&stage.call("get_thing", args).await), ("observed", r#"{"ok":true}"#));
    stage.call("put_thing", json!({"id": "7", "body": {"n": 1}})).await;
    let received = server.received();
    let seen: Vec<_> = received.iter().map(|it| (it.method.as_str(), it.path.as_str(), it.query.as_deref())).collect();
    let expected = [("GET", "/v1/things/a%2Fb%20c", Some("tags=x&tags=y%26z")), ("PUT", "/v1/things/7", None)];
    assert_eq!(seen, expected);
    assert_eq!(
        (received[1].body.as_slice(), &received[1].headers["content-type"]),
        (&br#"{"n":1}"#[..], &"application/json".parse().unwrap())
    );
    assert!(received[0].authorization.is_none() && received[0].headers.get("idempotency-key").is_none());
}

#[tokio::test]
async fn an_operation_that_the_tool_describes_is_sent_with_its_key_and_credential() {
    let server = Server::start(vec![reply(200, "text/plain", "you sent s3cr3t-value")]).await;
    let tool = http_tool(&server.url(""), inline(), Some("key"));
    let mut stage = stage_of(tool, "", &["127.0.0.1"]);
    let args = json!({"id": "7", "dry": "yes", "etag": "\"1\"", "body": {}});
    let outcome = stage.call_with("put_thing", args, Some("run-uid/c1"), None).await;
    assert_eq!(shown(&outcome), ("observed", "you sent [credential key redacted]"));
    let received = &server.received()[0];
    assert_eq!((received.path.as_str(), received.query.as_deref()), ("/things/7", Some("dry=yes")));
    assert_eq!(received.authorization.as_deref(), Some("Bearer s3cr3t-value"));
    let header = |name: &str| received.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!((header("if-match"), header("idempotency-key")), (Some("\"1\""), Some("run-uid/c1")));
}

#[rstest]
#[case::plain(reply(200, "text/plain", "yes"), ("observed", "yes"))]
#[case::created(reply(201, "application/json", "{}"), ("observed", "{}"))]
#[case::nothing(reply(204, "", ""), ("observed", "without content"))]
#[case::refused(reply(422, "application/json", r#"{"why":"no"}"#), ("error", r#"HTTP 422
{"why":"no"}"#))]
#[case::failed(reply(500, "text/plain", "oh no"), ("error", "HTTP 500"))]
#[case::limited(reply(429, "text/plain", "slow down"), ("error", "HTTP 429"))]
#[case::bad_gateway(reply(502, "text/plain", "lost"), ("unknown", "answered 502"))]
#[case::gateway_timed_out(reply(504, "text/plain", "lost"), ("unknown", "answered 504"))]
#[case::silent(Answer::Silence, ("unknown", "no answer within"))]
#[case::stalled(Answer::Stall { content_type: "text/plain", body: "half".into() }, ("unknown", "no answer within"))]
#[case::broken(Answer::Break { content_type: "text/plain", body: "half".into() }, ("unknown", "the connection broke"))]
#[tokio::test]
async fn every_end_of_a_request_is_told_as_what_it_is(#[case] answer: Answer, #[case] expected: (&str, &str)) {
    let server = Server::start(vec![answer]).await;
    let mut stage = stage(&server, documented());
    if expected.1 == "no answer within" {
        stage.patience = Duration::from_millis(200);
    }
    let outcome = stage.call("get_thing", json!({"id": "1"})).await;
    let (kind, words) = shown(&outcome);
    assert!(kind == expected.0 && words.contains(expected.1), "{outcome:?}");
    assert_eq!(server.received().len(), 1, "sent once, whatever came of it");
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_names_its_host() {
    let elsewhere = Server::start(vec![reply(200, "text/plain", "got it")]).await;
    let headers = vec![("location", elsewhere.url("/?k=s3cr3t-value").replace("127.0.0.1", "localhost"))];
    let server = Server::start(vec![Answer::Reply { status: 307, headers, body: String::new() }]).await;
    let mut stage = stage_of(http_tool(&server.url(""), documented(), Some("key")), DOCUMENT, &["127.0.0.1"]);
    let outcome = stage.call("get_thing", json!({"id": "1"})).await;
    assert_eq!(
        shown(&outcome),
        ("error", "the server answered HTTP 307, a redirect to localhost: redirects are not followed")
    );
    assert_eq!(elsewhere.received().len(), 0);
}

#[tokio::test]
async fn an_oversized_answer_is_cut_and_kept_whole_and_an_endless_one_not_read() {
    let long = "x".repeat(300 * 1024);
    let server = Server::start(vec![
        reply(200, "text/plain", long.clone()),
        reply(200, "text/plain", "x".repeat(9 * 1024 * 1024)),
    ]);
    let server = server.await;
    let mut stage = stage(&server, documented());
    let Outcome::Observed(cut) = stage.call("get_thing", json!({"id": "1"})).await else { panic!() };
    assert_eq!(cut.truncated_from_bytes, Some(300 * 1024));
    let attached = stage.server.take_attachments();
    assert!(attached.len() == 1 && attached[0].bytes == long.as_bytes());
    let outcome = stage.call("get_thing", json!({"id": "1"})).await;
    assert_eq!(shown(&outcome), ("observed", "[text/plain, longer than what is read]"));
}

#[tokio::test]
async fn nothing_leaves_without_a_permit_for_these_bytes() {
    let server = Server::start(vec![reply(200, "text/plain", "")]).await;
    let mut stage = stage(&server, documented());
    let outcome = stage.call_with("get_thing", json!({"id": "1"}), None, Some(Digest::of(b"other"))).await;
    assert!(matches!(outcome, Outcome::NotSent { reason: NotSentReason::DigestMismatch, .. }), "{outcome:?}");
    let outcome = stage.call("get_thing", json!({"id": ".."})).await;
    assert!(matches!(outcome, Outcome::NotSent { reason: NotSentReason::MalformedArguments, .. }), "{outcome:?}");
    assert_eq!(server.received().len(), 0);
}

/// The document changed in a pod that lives: what was permitted is not what would be sent now.
#[tokio::test]
async fn a_definition_that_is_another_now_is_not_sent() {
    let server = Server::start(vec![reply(200, "text/plain", "")]).await;
    let mut stage = stage(&server, documented());
    let old = stage.server.list().await.unwrap()[0].digest;
    let moved = DOCUMENT.replace("/things/", "/admin/");
    std::fs::write(stage.folders.1.path().join(TOOL).join("document"), moved).unwrap();
    let new = stage.server.list().await.unwrap()[0].digest;
    assert_ne!(old, new);
    let args = json!({"id": "1"});
    let binding = CallBinding::new(&stage.plan, &stage.plan.tools[0], old, "get_thing", &args);
    let arguments = args.as_object().unwrap().clone();
    let call = Call { operation: "get_thing".into(), arguments, definition: old, key: None, inputs: Inputs::default() };
    let outcome = stage.server.call(&call, permit(binding.digest().unwrap()), Duration::from_secs(1)).await;
    assert!(matches!(outcome, Outcome::NotSent { reason: NotSentReason::DigestMismatch, .. }), "{outcome:?}");
    assert_eq!(server.received().len(), 0);
}

#[rstest]
#[case::another_host(&["api.example.com"], NotSentReason::HostNotAllowed, "may not be sent to 127.0.0.1")]
#[tokio::test]
async fn a_credential_goes_to_its_hosts_alone(
    #[case] hosts: &[&str],
    #[case] reason: NotSentReason,
    #[case] words: &str,
) {
    let server = Server::start(vec![reply(200, "text/plain", "")]).await;
    let mut stage = stage_of(http_tool(&server.url(""), documented(), Some("key")), DOCUMENT, hosts);
    let outcome = stage.call("get_thing", json!({"id": "1"})).await;
    let Outcome::NotSent { reason: told, message } = outcome else { panic!("{outcome:?}") };
    assert!(told == reason && message.contains(words), "{message}");
    assert_eq!(server.received().len(), 0);
}

#[tokio::test]
async fn an_operation_that_is_described_with_the_value_of_its_credential_is_left_out() {
    let text = DOCUMENT.replace("operationId: put_thing", "operationId: put_thing\n      summary: with s3cr3t-value");
    for (credential, expected) in [(Some("key"), &["get_thing"][..]), (None, &["get_thing", "put_thing"])] {
        let mut stage = stage_of(http_tool("http://127.0.0.1:1", documented(), credential), &text, &["127.0.0.1"]);
        let names: Vec<String> = stage.server.list().await.unwrap().into_iter().map(|one| one.name).collect();
        assert_eq!(names, expected);
        assert_eq!(stage.server.left_out().len(), 2 - expected.len());
    }
}

#[tokio::test]
async fn a_token_that_the_api_refuses_is_dropped() {
    let tokens = TokenServer::start(3600).await;
    let server = Server::start(vec![reply(401, "text/plain", "no")]).await;
    let inject = Inject::ClientCredentials(client(tokens.url()));
    let key = PlanCredential { inject, ..credential(&["127.0.0.1"]) };
    let mut stage = stage_by(http_tool(&server.url("/v1"), documented(), Some("key")), DOCUMENT, key);
    for _time in 0..2 {
        let outcome = stage.call("get_thing", json!({"id": "1"})).await;
        assert!(matches!(outcome, Outcome::Observed(_)), "{outcome:?}");
    }
    let sent: Vec<_> = server.received().into_iter().map(|request| request.authorization.unwrap()).collect();
    assert_eq!(sent, ["Bearer token-1", "Bearer token-2"]);
}

#[tokio::test]
async fn an_api_that_cannot_be_reached_was_not_sent_anything() {
    let tool = http_tool("http://127.0.0.1:1", documented(), None);
    let outcome = stage_of(tool, DOCUMENT, &[]).call("get_thing", json!({"id": "1"})).await;
    assert!(matches!(outcome, Outcome::NotSent { reason: NotSentReason::Unreachable, .. }), "{outcome:?}");
}

#[rstest]
#[case::not_there(
    None,
    FailureReason::DocumentMissing,
    "Tool server: spec.http.openAPI: ConfigMap things has no key openapi.yaml, or is not there"
)]
#[case::empty(
    Some(""),
    FailureReason::DefinitionsInvalid,
    "key openapi.yaml of ConfigMap things says no version of OpenAPI"
)]
#[tokio::test]
async fn a_document_that_cannot_be_used_names_object_and_field(
    #[case] text: Option<&str>,
    #[case] reason: FailureReason,
    #[case] words: &str,
) {
    let mut stage = stage_of(http_tool("http://127.0.0.1:1", documented(), None), text.unwrap_or_default(), &[]);
    if text.is_none() {
        std::fs::remove_file(stage.folders.1.path().join(TOOL).join("document")).unwrap();
    }
    let error = stage.server.list().await.unwrap_err();
    assert!(error.reason == reason && error.message.contains(words), "{error}");
}

/// A whole run over an HTTP API: listed, validated, gated, sent once.
async fn run_api(server: &Server, effects: Effects, turns: &[(&str, Value)]) -> Journal {
    let mut tool = http_tool(&server.url("/v1"), documented(), None);
    let listed = stage_of(tool.clone(), DOCUMENT, &[]).server.list().await.unwrap();
    let planned = |one: &tools::Definition| PlanOperation {
        name: one.name.clone(),
        model_name: format!("{TOOL}__{}", one.name),
        definition: one.digest,
        effects,
        gone: false,
    };
    tool.operations = listed.iter().map(planned).collect();
    let plan = plan(scripted(vec![calls(turns), says("done")]), vec![tool]);
    let (_secrets, credentials) = mounted(&[]);
    let (_folder, documents) = document(DOCUMENT);
    let redactor = Redactor::new(credentials.clone(), &[]);
    let server = tools::of_plan(&plan, &plan.tools[0], &credentials, &documents, &redactor).unwrap();
    let model = Box::new(Scripted::new(&plan, &plan.model));
    let script = Script { stop_on: Some("CallUnknown"), ..Script::default() };
    run(plan, script, vec![model], vec![(TOOL.to_owned(), server)], credentials).await
}

#[tokio::test]
async fn a_run_calls_an_api_and_a_misfit_does_not_reach_it() {
    let server = Server::start(vec![reply(200, "application/json", r#"{"id":"7"}"#)]).await;
    // The schema says no to the first; no request could carry the second and the third, though they fit the schema.
    let misfits = [json!({"id": 7}), json!({"id": ".."}), json!({"id": "7", "tags": ["x".repeat(9000)]})];
    let mut turns: Vec<_> = misfits.into_iter().map(|misfit| ("get_thing", misfit)).collect();
    turns.push(("get_thing", json!({"id": "7"})));
    let journal = run_api(&server, Effects::None, &turns).await;
    let proposed = journal.events().filter(|event| matches!(event, Event::CallProposed { .. })).count();
    assert_eq!((proposed, server.received().len()), (1, 1));
    assert_eq!((journal.end().outcome, &journal.end().reason), (RunOutcome::Succeeded, &EndReason::Completed));
    let unsent = |event: &Event| match event {
        Event::CallNotSent { reason: NotSentReason::MalformedArguments, message, .. } => Some(message.clone()),
        _ => None,
    };
    let words: Vec<String> = journal.events().filter_map(unsent).collect();
    assert_eq!(words.len(), 3, "{words:?}");
    assert!(words[1].contains("the argument id is a part of the path"), "{words:?}");
    assert!(words[2].contains("longer than 8192 bytes"), "{words:?}");
}

#[rstest]
#[case::once(Effects::NonIdempotent, 1, None)]
#[case::again_with_its_key(Effects::Idempotent, 3, Some("run-uid/c1"))]
#[tokio::test]
async fn a_lost_upstream_is_asked_again_only_where_that_is_safe(
    #[case] effects: Effects,
    #[case] times: usize,
    #[case] key: Option<&str>,
) {
    let server = Server::start(vec![reply(502, "text/plain", "lost")]).await;
    let journal = run_api(&server, effects, &[("put_thing", json!({"id": "7", "body": {}}))]).await;
    let keys: Vec<_> = server.received().iter().map(|it| it.headers.get("idempotency-key").cloned()).collect();
    assert_eq!(keys, vec![key.map(|key| key.parse().unwrap()); times]);
    let unknown = journal.events().any(|event| matches!(event, Event::CallUnknown { .. }));
    assert_eq!(unknown, times == 1, "a person says what became of it, where nobody may try");
}
