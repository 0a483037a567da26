//! Models in the place of others: who is asked when, with what, and what the journal says of it.

use belay_protocol::cost::Prices;
use belay_protocol::event::{EndReason, FailureReason, Outcome};
use belay_protocol::plan::{PlanCredential, PlanModel};
use belay_protocol::{Event, Plan};
use serde_json::json;

use crate::asking::{run_plan, sse};
use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::Journal;
use crate::http::{Answer, Server, reply};
use crate::plans::{chat, credential, messages, plan, responses, tool};

const MESSAGES_CALLS: &str = include_str!("../streams/messages/thinking_and_calls.sse");
const RESPONSES_TEXT: &str = include_str!("../streams/responses/text.sse");
const CHAT_CALLS: &str = include_str!("../streams/chat/reasoning_and_calls.sse");
const CHAT_TEXT: &str = include_str!("../streams/chat/text.sse");

fn refused() -> Answer {
    reply(401, "text/plain", "no")
}

fn named(name: &str, model: PlanModel) -> PlanModel {
    PlanModel { name: name.into(), credential: Some(format!("{name}-key")), ..model }
}

fn key(name: &str) -> PlanCredential {
    PlanCredential { name: format!("{name}-key"), ..credential(&["127.0.0.1"]) }
}

fn plan_of(models: Vec<PlanModel>, mcp: &FakeMcp) -> Plan {
    let mut models = models.into_iter();
    let mut plan = plan(models.next().unwrap(), vec![tool(&mcp.url(), &["echo", "fail"])]);
    plan.fallbacks = models.collect();
    plan.credentials = plan.models().map(|model| key(&model.name)).collect();
    plan
}

fn replacements(journal: &Journal) -> Vec<(&str, &str, FailureReason)> {
    let replaced = journal.events().filter_map(|event| match event {
        Event::ModelReplaced { model, by, because } => Some((model.as_str(), by.as_str(), *because)),
        _ => None,
    });
    replaced.collect()
}

#[tokio::test]
async fn a_model_that_fails_for_good_is_replaced_at_once_and_for_the_rest_of_the_run() {
    let first = Server::start(vec![refused()]).await;
    let second = Server::start(vec![sse(CHAT_CALLS), sse(CHAT_TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let prices = |output| Some(Prices { input: 0, cached_input: None, cache_write: None, output });
    let dear = PlanModel { prices: prices(9_000_000_000), ..named("first", messages(&first.url("/v1"))) };
    let cheap = PlanModel { prices: prices(1_000_000), ..named("second", chat(&second.url("/v1"))) };
    let secrets = [("first-key", "alpha-1"), ("second-key", "beta-2")];
    let journal = run_plan(plan_of(vec![dear, cheap], &mcp), &secrets).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(replacements(&journal), [("first", "second", FailureReason::Unauthorized)]);
    assert_eq!(
        journal.names()[..3],
        [vec!["ToolsListed", "ModelRequested"], vec!["ModelFailed", "ModelReplaced"], vec!["ModelRequested"]]
    );
    assert_eq!((first.received().len(), second.received().len()), (1, 2), "the second step does not try the first");
    assert_eq!(first.received()[0].authorization.as_deref(), Some("Bearer alpha-1"));
    assert!(second.received().iter().all(|request| request.authorization.as_deref() == Some("Bearer beta-2")));
    // 80 and 9 tokens of output, at the price of the model that gave them.
    assert_eq!(journal.state.cost.micro_usd(), 89);
}

#[tokio::test]
async fn what_only_one_provider_understands_is_not_sent_to_another() {
    let first = Server::start(vec![sse(MESSAGES_CALLS), reply(400, "text/plain", "no")]).await;
    let second = Server::start(vec![sse(RESPONSES_TEXT)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let models = vec![named("first", messages(&first.url("/v1"))), named("second", responses(&second.url("/v1")))];
    let journal = run_plan(plan_of(models, &mcp), &[("first-key", "alpha-1"), ("second-key", "beta-2")]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(
        second.bodies()[0]["input"],
        json!([
            {"type": "message", "role": "user", "content": "Do it."},
            {"type": "message", "role": "assistant", "content": "I will."},
            {"type": "function_call", "call_id": "c1", "name": "server__echo", "arguments": "{\"text\": \"a\"}"},
            {"type": "function_call", "call_id": "c2", "name": "server__fail", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a"},
            {"type": "function_call_output", "call_id": "c2", "output": "Error: it did not work"},
        ])
    );
    assert!(first.bodies()[1]["messages"].to_string().contains("signature"), "its own model still gets it");
}

#[tokio::test]
async fn a_model_is_given_up_after_its_attempts_and_the_next_one_has_as_many() {
    let busy = Answer::Reply { status: 503, headers: vec![("retry-after", "0".into())], body: String::new() };
    let (first, second) = (Server::start(vec![busy.clone()]).await, Server::start(vec![busy]).await);
    let third = Server::start(vec![refused()]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let models = [("first", &first), ("second", &second), ("third", &third)];
    let models = models.map(|(name, server)| named(name, chat(&server.url("/v1"))));
    let secrets = [("first-key", "alpha-1"), ("second-key", "beta-2"), ("third-key", "gamma-3")];
    let journal = run_plan(plan_of(models.into(), &mcp), &secrets).await;
    assert_eq!([&first, &second, &third].map(|server| server.received().len()), [5, 5, 1]);
    assert_eq!(
        replacements(&journal),
        [("first", "second", FailureReason::ServerError), ("second", "third", FailureReason::ServerError)]
    );
    assert_eq!(journal.end().reason, EndReason::ModelFailed);
    assert!(journal.end().message.starts_with("Model third: "), "{}", journal.end().message);
}

#[tokio::test]
async fn a_missing_key_of_one_model_is_no_end_where_another_has_its_own() {
    let (first, second) = (Server::start(vec![refused()]).await, Server::start(vec![sse(CHAT_TEXT)]).await);
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let models = vec![named("first", chat(&first.url("/v1"))), named("second", chat(&second.url("/v1")))];
    let journal = run_plan(plan_of(models, &mcp), &[("second-key", "beta-2")]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(replacements(&journal), [("first", "second", FailureReason::CredentialMissing)]);
    assert_eq!(first.received().len(), 0);
}
