//! Another implementation plays the server: MCP's own reference server, over sessions. `make graders` runs this; it wants
//! Node.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use belay_runner::tools::{Outcome, Progress, ToolServer as _};
use serde_json::json;

use crate::mcp::{call, connect, plan_for};

/// The reference server on loopback; ends with the test.
struct Everything {
    process: Child,
    url: String,
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Everything {
    async fn start() -> Self {
        let modules = std::env::var_os("BELAY_EVERYTHING").expect("run this with `make graders`");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("node");
        command.arg(PathBuf::from(modules).join("@modelcontextprotocol/server-everything/dist/index.js"));
        command.arg("streamableHttp").env("PORT", port.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
        let everything = Self { process: command.spawn().unwrap(), url: format!("http://127.0.0.1:{port}/mcp") };
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), listens).await.expect("the reference server listens");
        everything
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
