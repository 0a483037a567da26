//! Models that ask for nonsense, in each wire format: it ends in words, bounded, and nothing is sent that should not be.

use belay_protocol::Event;
use belay_protocol::cost::Usage;
use belay_protocol::event::{EndReason, Item, NotSentReason, Outcome};
use belay_protocol::plan::PlanModel;
use rstest::rstest;
use serde_json::Value;

use crate::answers::{Asked, Format};
use crate::asking::{run_model, stream};
use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::Journal;
use crate::http::{Answer, Server, reply};

struct Played {
    journal: Journal,
    mcp: FakeMcp,
    bodies: Vec<Value>,
}

/// A run whose model asks for these calls and then is content.
async fn played(format: Format, calls: &[Asked<'_>]) -> Played {
    let server = Server::start(vec![format.asks(calls), format.says("done")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_model(format.model(&server.url("/v1")), &mcp, &["echo"]).await;
    Played { journal, mcp, bodies: server.bodies() }
}

impl Played {
    fn not_sent(&self) -> Vec<(NotSentReason, String)> {
        let reasons = self.journal.events().filter_map(|event| match event {
            Event::CallNotSent { reason, message, .. } => Some((*reason, message.clone())),
            _ => None,
        });
        reasons.collect()
    }

    /// Everything that the model was told.
    fn told(&self) -> String {
        self.bodies.last().unwrap().to_string()
    }
}

#[rstest]
#[tokio::test]
async fn a_tool_that_does_not_exist_is_told_to_the_model(
    #[values(Format::Chat, Format::Responses, Format::Messages)] format: Format,
    #[values("rm", "echo", "", "server_echo", "../server__echo", "SERVER__ECHO", " server__echo", "server\u{0}__echo")]
    name: &str,
) {
    let played = played(format, &[("call_1", name, "{}")]).await;
    // Some of these are no call at all in some formats: then the answer is no answer.
    if played.journal.end().outcome == Outcome::Failed {
        assert_eq!((played.journal.end().reason, name), (EndReason::ModelFailed, ""));
        return;
    }
    let not_sent = played.not_sent();
    assert_eq!(not_sent.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), [NotSentReason::UnknownTool]);
    assert!(played.told().contains("not sent: "), "{}", played.told());
    assert_eq!(played.mcp.called_operations(), Vec::<String>::new());
}

#[rstest]
#[tokio::test]
async fn arguments_that_are_no_object_are_told_to_the_model(
    #[values(Format::Chat, Format::Responses, Format::Messages)] format: Format,
    #[values(
        "{\"text\": ",
        "[1]",
        "nonsense",
        "\"text\"",
        "{\"a\": 1e999}",
        "{\"a\": 9007199254740993}",
        "{\"a\": \"\\ud800\"}"
    )]
    arguments: &str,
) {
    let played = played(format, &[("call_1", "server__echo", arguments)]).await;
    let not_sent = played.not_sent();
    assert_eq!(not_sent.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), [NotSentReason::MalformedArguments]);
    assert!(!not_sent[0].1.is_empty() && played.told().contains("not sent: "), "{}", played.told());
    assert_eq!(played.mcp.called_operations(), Vec::<String>::new());
    assert_eq!(played.journal.end().outcome, Outcome::Succeeded, "the model goes on");
}

#[rstest]
#[case::chat(Format::Chat, "id", "tool_call_id")]
#[case::responses(Format::Responses, "call_id", "call_id")]
#[case::messages(Format::Messages, "id", "tool_use_id")]
#[tokio::test]
async fn the_same_id_twice_is_two_calls_with_two_results(
    #[case] format: Format,
    #[case] asked: &str,
    #[case] answered: &str,
) {
    let calls = [("same", "server__echo", r#"{"text":"a"}"#), ("same", "server__echo", r#"{"text":"b"}"#)];
    let played = played(format, &calls).await;
    assert_eq!(played.journal.end().outcome, Outcome::Succeeded);
    assert_eq!(played.mcp.called_operations(), ["echo", "echo"], "each was sent once");
    let told = played.told();
    let ids = |field: &str| {
        let mark = format!("\"{field}\":\"");
        let named = told.split(&mark).skip(1).filter_map(|rest| rest.split('"').next());
        named.filter(|id| *id == "same" || *id == "c2").map(str::to_owned).collect::<Vec<_>>()
    };
    let mut both = ids(asked);
    both.sort();
    both.dedup();
    assert_eq!(both, ["c2", "same"], "{told}");
    assert!(ids(answered).len() >= 2, "{told}");
}

#[rstest]
#[tokio::test]
async fn more_calls_than_are_taken_at_once_are_dropped_and_the_model_is_told(
    #[values(Format::Chat, Format::Responses, Format::Messages)] format: Format,
) {
    let ids: Vec<String> = (0..100).map(|call| format!("call_{call}")).collect();
    let calls: Vec<Asked<'_>> = ids.iter().map(|id| (id.as_str(), "none", "{}")).collect();
    let played = played(format, &calls).await;
    assert_eq!((played.not_sent().len(), played.journal.end().outcome), (64, Outcome::Succeeded));
    assert!(played.told().contains("36 more calls of this answer were dropped"), "{}", played.told());
    assert_eq!(played.mcp.called_operations(), Vec::<String>::new());
}

#[rstest]
#[tokio::test]
async fn calls_without_end_are_no_answer(#[values(Format::Chat, Format::Responses, Format::Messages)] format: Format) {
    // Of the calls, or of the pieces that an answer has in the other formats.
    let most = if format == Format::Chat { 512 } else { 1024 };
    let ids: Vec<String> = (0..=most).map(|call| format!("call_{call}")).collect();
    let calls: Vec<Asked<'_>> = ids.iter().map(|id| (id.as_str(), "server__echo", "{}")).collect();
    let played = played(format, &calls).await;
    let end = played.journal.end();
    assert_eq!((end.outcome, end.reason), (Outcome::Failed, EndReason::ModelFailed));
    assert!(end.message.contains("asked for more than 512 calls at once"), "{}", end.message);
    assert_eq!((played.bodies.len(), played.mcp.called_operations()), (1, Vec::<String>::new()));
    let calls = played.journal.events().filter(|event| match event {
        Event::ModelResponded { response, .. } => {
            response.items.iter().any(|item| matches!(item, Item::ToolCall { .. }))
        }
        _ => false,
    });
    assert_eq!(calls.count(), 0);
}

/// An answer in one piece that used so much input and two tokens of output.
fn that_used(format: Format, input: &str) -> Answer {
    let body = match format {
        Format::Chat => format!(
            r#"{{"choices":[{{"message":{{"content":"done"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":{input},"completion_tokens":2}}}}"#
        ),
        Format::Responses => format!(
            r#"{{"status":"completed","output":[{{"type":"message","content":[{{"text":"done"}}]}}],"usage":{{"input_tokens":{input},"output_tokens":2}}}}"#
        ),
        Format::Messages => format!(
            r#"{{"type":"message","stop_reason":"end_turn","content":[{{"type":"text","text":"done"}}],"usage":{{"input_tokens":{input},"output_tokens":2}}}}"#
        ),
    };
    reply(200, "application/json", body)
}

#[rstest]
#[case::the_most("9007199254740992", Some(9_007_199_254_740_992))]
#[case::one_too_many("9007199254740993", None)]
#[case::as_many_as_there_are("18446744073709551615", None)]
#[case::more_than_there_are("18446744073709551616", None)]
#[case::less_than_none("-1", None)]
#[case::a_word("\"many\"", None)]
#[case::nothing("null", None)]
#[tokio::test]
async fn a_count_that_no_journal_can_hold_is_not_known_and_the_answer_is_taken(
    #[values(Format::Chat, Format::Responses, Format::Messages)] format: Format,
    #[case] input: &str,
    #[case] input_tokens: Option<u64>,
) {
    let server = Server::start(vec![that_used(format, input)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_model(format.model(&server.url("/v1")), &mcp, &["echo"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(journal.state.usage, Usage { input_tokens, output_tokens: Some(2), ..Usage::default() });
    assert_eq!(server.received().len(), 1);
}

#[rstest]
#[tokio::test]
async fn patience_that_no_journal_can_hold_ends_the_run(
    #[values(Format::Chat, Format::Responses, Format::Messages)] format: Format,
    #[values("9007199254740993", "18446744073709551615")] seconds: &str,
) {
    let headers = vec![("retry-after", seconds.to_owned())];
    let server = Server::start(vec![Answer::Reply { status: 429, headers, body: String::new() }]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let journal = run_model(format.model(&server.url("/v1")), &mcp, &["echo"]).await;
    assert_eq!(journal.end().reason, EndReason::ModelFailed);
    assert_eq!(server.received().len(), 1);
}

/// A stream that breaks off with an error of its server, begun before or not.
fn that_fails(format: Format, begun: bool) -> Answer {
    let (first, fail) = match format {
        Format::Chat => (
            &[r#"{"choices":[{"delta":{"content":"half"}}],"usage":{"prompt_tokens":40,"completion_tokens":1}}"#][..],
            r#"{"error":{"message":"overloaded","type":"server_error"}}"#,
        ),
        Format::Responses => (
            &[r#"{"type":"response.output_text.delta","output_index":0,"delta":"half"}"#][..],
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"no"},"usage":{"input_tokens":40,"output_tokens":1}}}"#,
        ),
        Format::Messages => (
            &[
                r#"{"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":40,"output_tokens":1}}}"#,
            ][..],
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
        ),
    };
    let fail =
        if begun { fail.to_owned() } else { fail.replace(r#","usage":{"input_tokens":40,"output_tokens":1}"#, "") };
    let events: Vec<&str> = first.iter().copied().filter(|_| begun).chain([fail.as_str()]).collect();
    stream(&events)
}

#[rstest]
#[tokio::test]
async fn what_an_answer_that_failed_midway_has_cost_is_held_against_the_run(
    #[values(Format::Chat, Format::Responses, Format::Messages)] format: Format,
    #[values(true, false)] begun: bool,
) {
    let server = Server::start(vec![that_fails(format, begun), that_used(format, "40")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let model = PlanModel { max_output_tokens: Some(1000), ..format.model(&server.url("/v1")) };
    let journal = run_model(model, &mcp, &["echo"]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    let counted = Usage { input_tokens: Some(40), output_tokens: Some(1), ..Usage::default() };
    let failed: Vec<Option<Usage>> = journal
        .events()
        .filter_map(|event| match event {
            Event::ModelFailed { reported, .. } => Some(*reported),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [begun.then_some(counted)]);
    let presumed = journal.state.presumed.tokens;
    assert!(if begun { presumed > 1000 } else { presumed == 0 }, "{presumed}");
    assert_eq!(journal.state.usage.total(), 42);
}
