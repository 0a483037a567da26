//! Another implementation judges what is built from an OpenAPI document: the mock server Prism refuses what its document
//! does not allow. `make graders` runs this; it wants Node.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use belay_protocol::event::ToolResult;
use belay_runner::tools::Outcome;
use belay_runner::tools::schema::ArgumentSchema;
use serde_json::{Value, json};

use crate::http_api::{documented, http_tool, stage_of};
use crate::node::Peer;

struct Prism {
    _peer: Peer,
    url: String,
}

impl Prism {
    async fn start(document: &Path) -> Self {
        let tell = |command: &mut Command, port: u16| {
            command.args(["mock", "--errors", "--host", "127.0.0.1", "--port", &port.to_string()]).arg(document);
        };
        let (peer, port) = Peer::start("BELAY_PRISM", "@stoplight/prism-cli/dist/index.js", tell).await;
        Self { _peer: peer, url: format!("http://127.0.0.1:{port}") }
    }
}

/// Arguments that fit, and ones that do not. Not spaceDelimited: Prism splits where `%20` is left after decoding, and OpenAPI
/// writes it before.
fn table() -> Vec<(&'static str, Value, bool)> {
    let part = |more: Value| {
        let mut args = json!({"id": "ab", "part": 3, "tags": ["a b", "c&d"], "X-Trace": "ff"});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        args
    };
    let put = |body: Value| json!({"id": "ab", "part": 3, "body": body});
    vec![
        ("get_part", part(json!({})), true),
        ("get_part", part(json!({"id": "a/b c", "flag": true, "joined": [1, 2], "piped": ["x", "y z"]})), true),
        ("get_part", part(json!({"id": "\u{e4}\u{f6}?#", "part": -1, "tags": ["g", "a b", "g"]})), true),
        ("get_part", part(json!({"id": "a"})), false),
        ("get_part", part(json!({"tags": ["a b", "nope"]})), false),
        ("get_part", part(json!({"joined": [1]})), false),
        ("get_part", part(json!({"X-Trace": "no hex"})), false),
        ("put_part", put(json!({"name": null, "count": 1, "parent": {"name": "x", "count": 2}})), true),
        ("put_part", put(json!({"name": "x", "count": 0})), false),
        ("put_part", put(json!({"name": "x", "count": 1, "parent": {"name": "x"}})), false),
        ("put_part", put(json!({"name": "x", "count": 1, "more": 1})), false),
        ("delete_part", json!({"id": "ab", "part": 3}), true),
        ("merge", json!({"body": {"n": 1}}), true),
        ("merge", json!({"body": {}}), false),
    ]
}

#[tokio::test]
#[ignore = "wants npm packages: make graders"]
async fn another_implementation_takes_what_fits_and_nothing_else() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/graders/prism/openapi.yaml");
    let prism = Prism::start(&document).await;
    let text = std::fs::read_to_string(&document).unwrap();
    let mut stage = stage_of(http_tool(&prism.url, documented(), None), &text, &[]);
    stage.patience = Duration::from_secs(20);
    for (operation, args, fits) in table() {
        let listed = stage.server.list().await.unwrap();
        let schema = &listed.iter().find(|one| one.name == operation).unwrap().input_schema;
        let ours = ArgumentSchema::compile(schema).unwrap().check(&args);
        assert_eq!(ours.is_ok(), fits, "{operation} {args}: {ours:?}");
        let theirs = stage.call(operation, args.clone()).await;
        let taken = matches!(theirs, Outcome::Observed(ToolResult { is_error: false, .. }));
        assert_eq!(taken, fits, "{operation} {args}: {theirs:?}");
    }
}
