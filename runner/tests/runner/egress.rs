//! Where a run may not go nothing arrives, and the failure says so.

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::Event;
use belay_protocol::event::{FailureReason, NotSentReason};
use belay_runner::credential::Credentials;
use belay_runner::models;
use belay_runner::permit::Permit;
use belay_runner::redact::Redactor;
use belay_runner::tools::mcp::McpServer;
use belay_runner::tools::{Call, Definition, ListError, Outcome, ToolServer};
use serde_json::json;

use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::{self, Script};
use crate::http::{Server, reply};
use crate::mcp::connect;
use crate::plans::{TOOL, calls, chat, plan, says, scripted, tool};

#[tokio::test]
async fn a_model_at_an_address_that_the_installation_does_not_list_is_not_asked() {
    let server = Server::start(vec![reply(200, "application/json", "{}")]).await;
    let mut plan = plan(chat(&server.url("/v1")), Vec::new());
    plan.private_hosts.clear();
    let credentials = Credentials::new("/nowhere".into());
    let redactor = Redactor::new(credentials.clone(), &[]);
    let models = vec![models::client(&plan, &plan.model, &credentials, &redactor).unwrap()];
    let journal = fake_operator::run(plan, Script::default(), models, Vec::new(), credentials).await;
    let failure = journal.state.failure.unwrap();
    assert_eq!((failure.reason, failure.retrying), (FailureReason::DestinationNotAllowed, false));
    assert!(failure.message.contains("was not sent: 127.0.0.1 is a loopback address"), "{}", failure.message);
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn a_call_to_an_address_that_the_installation_does_not_list_was_not_sent() {
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({"text": "a"}))]), says("done")];
    let listed = plan(scripted(turns), vec![tool(&mcp.url(), &["echo"])]);
    let mut unlisted = listed.clone();
    unlisted.private_hosts.clear();
    let server = Moved { listed: connect(&listed), called: connect(&unlisted) };
    let credentials = Credentials::new("/nowhere".into());
    let redactor = Redactor::new(credentials.clone(), &[]);
    let models = vec![models::client(&listed, &listed.model, &credentials, &redactor).unwrap()];
    let servers: Vec<(String, Box<dyn ToolServer>)> = vec![(TOOL.to_owned(), Box::new(server))];
    let journal = fake_operator::run(listed, Script::default(), models, servers, credentials).await;
    let unsent = journal.events().find_map(|event| match event {
        Event::CallNotSent { reason, message, .. } => Some((*reason, message.clone())),
        _ => None,
    });
    let (reason, message) = unsent.unwrap();
    assert_eq!(reason, NotSentReason::DestinationNotAllowed);
    assert!(message.contains("127.0.0.1 is a loopback address"), "{message}");
    assert!(mcp.called().is_empty());
}

/// A server that may not be reached any more once it was listed.
struct Moved {
    listed: McpServer,
    called: McpServer,
}

#[async_trait]
impl ToolServer for Moved {
    async fn list(&mut self) -> Result<Vec<Definition>, ListError> {
        self.listed.list().await
    }

    async fn prepare(&mut self) -> Result<(), ListError> {
        self.called.prepare().await
    }

    async fn call(&mut self, call: &Call, permit: Permit, timeout: Duration) -> Outcome {
        self.called.call(call, permit, timeout).await
    }
}
