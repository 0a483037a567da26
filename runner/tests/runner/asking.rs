//! Asks a model once, or lets a whole run ask it.

use belay_protocol::Plan;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{PlanCredential, PlanModel};
use belay_protocol::transcript::Transcript;
use belay_protocol::wire;
use belay_runner::credential::Credentials;
use belay_runner::models::{self, Context, Model, ModelAnswer, ModelError, OfferedTool};
use belay_runner::permit::{BootTime, Decided, ModelPermit, Verdict};
use belay_runner::redact::Redactor;
use belay_runner::tools::mcp::McpServer;
use serde_json::json;

use crate::fake_mcp::FakeMcp;
use crate::fake_operator::{Journal, Script, run};
use crate::http::{Answer, reply};
use crate::plans::{credential, mounted, plan, tool};

fn permit() -> ModelPermit {
    let verdict = Some(wire::decision::Verdict::Permit(wire::Permit::default()));
    let decision = wire::Decision { subject: "m1".into(), attempt: 1, verdict };
    match Decided::read(decision, BootTime::now()).verdict {
        Verdict::Model(permit) => permit,
        other => panic!("{other:?}"),
    }
}

pub async fn ask(model: PlanModel) -> Result<ModelAnswer, ModelError> {
    ask_with(model, &[]).await
}

pub async fn ask_with(model: PlanModel, secrets: &[(&str, &str)]) -> Result<ModelAnswer, ModelError> {
    ask_as(model, secrets, credential(&["127.0.0.1"])).await
}

pub async fn ask_as(
    model: PlanModel,
    secrets: &[(&str, &str)],
    credential: PlanCredential,
) -> Result<ModelAnswer, ModelError> {
    let (_folder, credentials) = mounted(secrets);
    let mut plan = plan(model, Vec::new());
    plan.credentials.push(credential);
    ask_by(&plan, &credentials).await
}

/// Asks the plan's model.
pub async fn ask_by(plan: &Plan, credentials: &Credentials) -> Result<ModelAnswer, ModelError> {
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    ask_client(plan, &*models::client(plan, &plan.model, credentials, &redactor).unwrap()).await
}

pub async fn ask_client(plan: &Plan, model: &dyn Model) -> Result<ModelAnswer, ModelError> {
    let transcript = Transcript::default();
    let tools = [OfferedTool { name: "server__echo".into(), description: "says it".into(), input_schema: json!({}) }];
    let prepared = model.prepare(&Context { plan, transcript: &transcript, tools: &tools, answered: 0 })?;
    model.ask(prepared, permit()).await
}

/// Asks `model` with a Credential: it fails for `reason`, in words that name the Model and `path` and hold `words`,
/// but never the secret.
pub async fn fails(model: PlanModel, path: &str, reason: FailureReason, words: &str) {
    let begin = format!("Model writer: POST {}/{path} ", model.base_url.as_deref().unwrap());
    let model = PlanModel { credential: Some("key".into()), ..model };
    let error = ask_with(model, &[("key", "hunter2")]).await.unwrap_err();
    assert_eq!(error.reason, reason, "{error}");
    assert!(error.message.starts_with(&begin), "{error}");
    assert!(error.message.contains(words), "{error}");
    assert!(!error.message.contains("hunter2"), "{error}");
}

/// A run with one tool server; `s3cr3t-value` is the value of its one credential.
pub async fn run_model(model: PlanModel, mcp: &FakeMcp, operations: &[&str]) -> Journal {
    let mut plan = plan(model, vec![tool(&mcp.url(), operations)]);
    plan.credentials.push(credential(&["127.0.0.1"]));
    run_plan(plan, &[("key", "s3cr3t-value")]).await
}

/// A run of a plan with one tool.
pub async fn run_plan(plan: Plan, secrets: &[(&str, &str)]) -> Journal {
    let (_folder, credentials) = mounted(secrets);
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    let clients = plan.models().map(|model| models::client(&plan, model, &credentials, &redactor).unwrap()).collect();
    let server = McpServer::of_plan(&plan, &plan.tools[0], credentials.clone(), redactor).unwrap();
    let servers = vec![("server".to_owned(), Box::new(server) as _)];
    run(plan, Script::default(), clients, servers, credentials).await
}

/// An event stream of these data.
pub fn stream(events: &[&str]) -> Answer {
    let lines: Vec<String> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    sse(&lines.concat())
}

/// An event stream of these very bytes.
pub fn sse(body: &str) -> Answer {
    reply(200, "text/event-stream; charset=utf-8", body)
}
