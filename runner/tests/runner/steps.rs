//! Fifty steps of a run: what is sent again stays the same, byte for byte, so that providers find it in their caches.

use belay_protocol::event::Outcome;
use rstest::rstest;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::answers::Format;
use crate::asking::run_plan;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::Server;
use crate::plans::{plan, tool};

const STEPS: usize = 50;
/// What a bare loop over the official client sends in so many steps to this very server (e2e/bench/bare.py) is 266 kB in
/// Chat Completions. In Messages 8 kB of ours are the marks of what is cached, which a bare loop leaves out.
const BYTES_MAX: usize = 265_000;
const MARKS_BYTES: usize = 8_000;
const MARK: &str = r#","cache_control":{"type":"ephemeral"}"#;

#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    tools: &'a RawValue,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow, alias = "input")]
    messages: &'a RawValue,
}

async fn fifty_steps(format: Format) -> Vec<String> {
    let mut answers: Vec<_> = (0..STEPS - 1)
        .map(|step| format.asks(&[(&format!("call_{step}"), "server__echo", r#"{"text":"a"}"#)]))
        .collect();
    answers.push(format.says("done"));
    let server = Server::start(answers).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_plan(plan(format.model(&server.url("/v1")), vec![tool(&mcp.url(), &["echo"])]), &[]).await;
    assert_eq!((journal.end().outcome, journal.state.steps), (Outcome::Succeeded, 50));
    server.received().into_iter().map(|request| String::from_utf8(request.body).unwrap()).collect()
}

/// The bytes of a conversation, without its end and without marks, which move on.
fn open(messages: &RawValue) -> String {
    messages.get().strip_suffix(']').unwrap().replace(MARK, "")
}

#[rstest]
#[case::chat(Format::Chat)]
#[case::responses(Format::Responses)]
#[case::messages(Format::Messages)]
#[tokio::test]
async fn each_request_begins_with_the_one_before_and_all_are_no_more_than_a_bare_loops(#[case] format: Format) {
    let bodies = fifty_steps(format).await;
    let parts: Vec<Parts<'_>> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(parts.len(), STEPS);
    for (step, pair) in parts.windows(2).enumerate() {
        let [before, after] = pair else { unreachable!() };
        assert_eq!(before.tools.get(), after.tools.get(), "tools of step {step}");
        assert_eq!(before.system.map(RawValue::get), after.system.map(RawValue::get), "instructions of step {step}");
        assert!(open(after.messages).starts_with(&open(before.messages)), "conversation of step {step}");
    }
    let sent: usize = bodies.iter().map(String::len).sum();
    println!("{format:?}: {sent} bytes in {STEPS} steps");
    let most = if format == Format::Messages { BYTES_MAX + MARKS_BYTES } else { BYTES_MAX };
    assert!(sent <= most, "{sent} bytes");
}

/// Anthropic looks back from a mark for what an earlier request wrote: it is found where that one's last mark was.
#[tokio::test]
async fn marks_are_where_the_request_before_left_off() {
    let bodies = fifty_steps(Format::Messages).await;
    let marked = |body: &String| -> Vec<usize> {
        let body: Value = serde_json::from_str(body).unwrap();
        let marks = body.to_string().matches(MARK.trim_start_matches(',')).count();
        assert!(marks <= 4, "{marks} marks, and the provider takes four");
        let messages = body["messages"].as_array().unwrap();
        let has = |message: &Value| {
            message["content"].as_array().unwrap().iter().any(|part| part.get("cache_control").is_some())
        };
        let marked: Vec<usize> = (0..messages.len()).filter(|index| has(&messages[*index])).collect();
        assert_eq!(marked.last(), Some(&(messages.len() - 1)), "all of it is written");
        marked
    };
    let marks: Vec<Vec<usize>> = bodies.iter().map(marked).collect();
    for pair in marks.windows(2) {
        assert!(pair[1].contains(pair[0].last().unwrap()), "{pair:?}");
    }
}
