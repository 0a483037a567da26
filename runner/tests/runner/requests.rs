//! What a Model's settings make of a request: reasoning and headers.

use belay_protocol::event::{EndReason, FailureReason, Outcome};
use belay_protocol::plan::{Effort, PlanHeader, PlanModel, Reasoning, ScriptedTurn};
use rstest::rstest;
use serde_json::{Value, json};

use crate::answers::Format;
use crate::asking::{ask, ask_with, run_model};
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::{Server, reply};
use crate::plans::{says, scripted};

fn effort(effort: Effort) -> Reasoning {
    Reasoning { effort: Some(effort), budget_tokens: None }
}

fn budget(effort: Option<Effort>, tokens: u64) -> Reasoning {
    Reasoning { effort, budget_tokens: Some(tokens) }
}

#[rstest]
#[case(Format::Chat, effort(Effort::None), json!({"reasoning_effort": "none"}))]
#[case(Format::Chat, effort(Effort::Minimal), json!({"reasoning_effort": "minimal"}))]
#[case(Format::Chat, effort(Effort::Low), json!({"reasoning_effort": "low"}))]
#[case(Format::Chat, effort(Effort::Medium), json!({"reasoning_effort": "medium"}))]
#[case(Format::Chat, effort(Effort::High), json!({"reasoning_effort": "high"}))]
#[case(Format::Responses, effort(Effort::None), json!({"reasoning": {"effort": "none"}}))]
#[case(Format::Responses, effort(Effort::High), json!({"reasoning": {"effort": "high"}}))]
#[case(Format::Messages, effort(Effort::None), json!({"thinking": {"type": "disabled"}}))]
#[case(Format::Messages, effort(Effort::Low), json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}))]
#[case(Format::Messages, effort(Effort::High), json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}))]
#[case(Format::Messages, budget(None, 2048), json!({"thinking": {"type": "enabled", "budget_tokens": 2048}}))]
#[case(Format::Messages, budget(Some(Effort::Medium), 2048),
    json!({"thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "medium"}}))]
#[tokio::test]
async fn reasoning_is_asked_for_in_each_providers_words(
    #[case] format: Format,
    #[case] reasoning: Reasoning,
    #[case] expected: Value,
) {
    let server = Server::start(vec![format.says("done")]).await;
    let model = PlanModel { reasoning: Some(reasoning), ..format.model(&server.url("/v1")) };
    ask(model).await.unwrap();
    ask(format.model(&server.url("/v1"))).await.unwrap();
    let bodies = server.bodies();
    let fields = ["reasoning_effort", "reasoning", "thinking", "output_config"];
    let said = |body: &Value| -> Value {
        fields.iter().filter_map(|field| Some(((*field).to_owned(), body.get(*field)?.clone()))).collect()
    };
    assert_eq!((said(&bodies[0]), said(&bodies[1])), (expected, json!({})), "and nothing of it where nothing is set");
}

#[rstest]
#[case::chat(Format::Chat)]
#[case::responses(Format::Responses)]
#[case::messages(Format::Messages)]
#[tokio::test]
async fn a_models_headers_go_with_every_request_beside_its_key(#[case] format: Format) {
    let server = Server::start(vec![format.says("done")]).await;
    let header = |name: &str, value: &str| PlanHeader { name: name.into(), value: value.into() };
    let headers = vec![header("X-Route", "team-a"), header("anthropic-beta", "some-beta-2026-01-01")];
    let model = PlanModel { headers, credential: Some("key".into()), ..format.model(&server.url("/v1")) };
    ask_with(model, &[("key", "hunter2")]).await.unwrap();
    let request = &server.received()[0];
    assert_eq!(
        (&request.headers["x-route"], &request.headers["anthropic-beta"]),
        (&"team-a".parse().unwrap(), &"some-beta-2026-01-01".parse().unwrap())
    );
    assert_eq!(request.authorization.as_deref(), Some("Bearer hunter2"));
    assert_eq!(request.headers["content-type"], "application/json");
}

#[tokio::test]
async fn a_server_that_wants_the_output_limit_under_its_other_name_gets_it_from_then_on() {
    let refused = json!({"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. \
        Use 'max_completion_tokens' instead.", "type": "invalid_request_error", "code": "unsupported_parameter"}});
    let refused = reply(400, "application/json", refused.to_string());
    let asks = Format::Chat.asks(&[("a", "server__echo", "{\"text\":\"hi\"}")]);
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let limited = |server: &Server| PlanModel { max_output_tokens: Some(64), ..Format::Chat.model(&server.url("/v1")) };
    let server = Server::start(vec![refused.clone(), asks, Format::Chat.says("done")]).await;
    let journal = run_model(limited(&server), &mcp, &["echo"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    let said = |server: &Server| -> Vec<[Value; 2]> {
        let name = |body: &Value, name: &str| body.get(name).cloned().unwrap_or_default();
        server.bodies().iter().map(|body| [name(body, "max_tokens"), name(body, "max_completion_tokens")]).collect()
    };
    let (older, newer) = ([json!(64), Value::Null], [Value::Null, json!(64)]);
    assert_eq!(said(&server), [older.clone(), newer.clone(), newer.clone()]);

    let stubborn = Server::start(vec![refused]).await;
    let journal = run_model(limited(&stubborn), &mcp, &["echo"]).await;
    assert_eq!(journal.end().reason, EndReason::ModelFailed);
    assert_eq!(said(&stubborn), [older, newer], "it is believed once");
}

#[tokio::test]
async fn a_scripted_turn_that_takes_longer_than_a_request_may_has_timed_out() {
    let turn = ScriptedTurn { delay_milliseconds: 600_000, ..says("late") };
    let mut model = scripted(vec![turn]);
    model.timeouts.total_seconds = 1;
    let error = ask(model).await.unwrap_err();
    assert_eq!(error.reason, FailureReason::TimedOut, "{error}");
    assert!(error.message.contains("spec.timeouts.totalSeconds"), "{error}");
}
