//! Another implementation plays the server: MCP's own reference server, over sessions. `make graders` runs this; it wants
//! Node.

use std::process::{Command, Stdio};

use belay_runner::tools::{Outcome, Progress, ToolServer as _};
use serde_json::json;

use crate::mcp::{call, connect, plan_for};
use crate::node::Peer;

/// The reference server.
struct Everything {
    _peer: Peer,
    url: String,
}

impl Everything {
    async fn start() -> Self {
        let script = "@modelcontextprotocol/server-everything/dist/index.js";
        let tell = |command: &mut Command, port: u16| {
            command.arg("streamableHttp").env("PORT", port.to_string()).stderr(Stdio::null());
        };
        let (peer, port) = Peer::start("BELAY_EVERYTHING", script, tell).await;
        Self { _peer: peer, url: format!("http://127.0.0.1:{port}/mcp") }
    }
}

const LONG: &str = "trigger-long-running-operation";

#[tokio::test]
#[ignore = "wants Node: make graders"]
async fn the_reference_server_tells_of_progress_and_lets_go_of_calls_that_nobody_waits_for() {
    let everything = Everything::start().await;
    let mut server = connect(&plan_for(&everything.url, &[LONG, "echo"]));
    let listed = server.list().await.unwrap();
    assert!(listed.iter().any(|definition| definition.name == LONG), "{listed:?}");
    let mut progress = server.progress().unwrap();
    let outcome = call(&mut server, LONG, json!({"duration": 0.2, "steps": 4}), None).await;
    assert!(matches!(&outcome, Outcome::Observed(result) if result.content.contains("completed")), "{outcome:?}");
    let last = progress.wait_for(|progress| progress.done > 3.5).await.unwrap().clone();
    assert_eq!(last, Progress { done: 4.0, total: Some(4.0), message: String::new() });
    let outcome = call(&mut server, "get-tiny-image", json!({}), None).await;
    assert!(
        matches!(&outcome, Outcome::Observed(result) if result.content.contains("[image image/png, ")),
        "{outcome:?}"
    );
    let attached = server.take_attachments();
    assert!(attached.len() == 1 && attached[0].bytes.starts_with(b"\x89PNG"), "{attached:?}");
    let outcome = call(&mut server, LONG, json!({"duration": 60, "steps": 600}), None).await;
    assert!(matches!(&outcome, Outcome::Unknown { message } if message.contains("no answer within")), "{outcome:?}");
    server.abandon().await;
    let outcome = call(&mut server, "echo", json!({"message": "still there"}), None).await;
    assert!(matches!(&outcome, Outcome::Observed(result) if result.content.contains("still there")), "{outcome:?}");
}
