//! Whole runs: the loop against a fake operator, with the scripted model and a fake MCP server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use belay_protocol::event::{Artifact, EndReason, NotSentReason, Outcome, ToolResult};
use belay_protocol::fold::CallState;
use belay_protocol::plan::{Effects, OnDrift, PlanAgent, PlanTool, ScriptedTurn};
use belay_protocol::{Digest, Event};
use belay_runner::agent_loop::Parting;
use belay_runner::models::scripted::Scripted;
use belay_runner::redact::Redactor;
use belay_runner::tools::http::Documents;
use belay_runner::tools::mcp::McpServer;
use belay_runner::tools::of_plan;
use rstest::rstest;
use serde_json::json;

use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::{FakeKeeper, Journal, People, Script, run};
use crate::plans::{TOOL, calls, credential, mounted, plan, says, scripted, tool};

/// A run of this script against this server, whose listed operations are all in the plan.
pub async fn run_script(server: &FakeMcp, operations: &[&str], turns: Vec<ScriptedTurn>, script: Script) -> Journal {
    let plan = plan(scripted(turns), vec![tool(&server.url(), operations)]);
    run_plan(plan, script, &[]).await
}

pub async fn run_plan(plan: belay_protocol::Plan, script: Script, secrets: &[(&str, &str)]) -> Journal {
    let (_folder, credentials) = mounted(secrets);
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    let servers = plan.tools.iter().map(|tool| {
        let documents = Documents::new("/nowhere".into());
        (tool.name.clone(), of_plan(&plan, tool, &credentials, &documents, &redactor).unwrap())
    });
    let servers = servers.collect();
    let model = Box::new(Scripted::new(&plan, &plan.model));
    run(plan, script, vec![model], servers, credentials).await
}

fn results(journal: &Journal) -> Vec<(&str, &ToolResult)> {
    journal
        .events()
        .filter_map(|event| match event {
            Event::CallObserved { call_id, result, .. } => Some((call_id.as_str(), result)),
            _ => None,
        })
        .collect()
}

fn not_sent(journal: &Journal) -> Vec<NotSentReason> {
    let reasons = journal.events().filter_map(|event| match event {
        Event::CallNotSent { reason, .. } => Some(*reason),
        _ => None,
    });
    reasons.collect()
}

#[rstest]
#[case::sessions(Era::Sessions)]
#[case::stateless(Era::Stateless)]
#[tokio::test]
async fn a_run_lists_asks_calls_and_ends_in_two_round_trips_a_step(#[case] era: Era) {
    let server = FakeMcp::start(era, &["echo", "stream", "fail"]).await;
    let turns = vec![
        calls(&[("echo", json!({"text": "one"})), ("stream", json!({})), ("fail", json!({}))]),
        calls(&[("echo", json!({"text": "two"}))]),
        says("done"),
    ];
    let journal = run_script(&server, &["echo", "stream", "fail"], turns, Script::default()).await;
    assert_eq!(
        journal.names(),
        [
            vec!["ToolsListed", "ModelRequested"],
            vec!["ModelResponded", "CallProposed", "CallProposed", "CallProposed"],
            vec!["CallObserved", "CallProposed"],
            vec!["CallObserved", "CallProposed"],
            vec!["CallObserved", "ModelRequested"],
            vec!["ModelResponded", "CallProposed"],
            vec!["CallObserved", "ModelRequested"],
            vec!["ModelResponded"],
        ]
    );
    let shown: Vec<_> = results(&journal).into_iter().map(|(id, r)| (id, r.is_error, r.content.as_str())).collect();
    assert_eq!(
        shown,
        [("c1", false, "one"), ("c2", false, "streamed"), ("c3", true, "it did not work"), ("c4", false, "two")]
    );
    assert_eq!(journal.parting, Parting::Dismissed { reason: "Succeeded".into() });
    assert_eq!((journal.end().outcome, journal.state.output.as_deref()), (Outcome::Succeeded, Some("done")));
    assert_eq!(server.called_operations(), ["echo", "stream", "fail", "echo"]);
    assert_eq!(server.called()[0].1, json!({"text": "one"}));
}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

#[rstest]
#[tokio::test]
async fn an_image_is_kept_before_the_result_that_names_it_and_its_bytes_are_not_in_the_journal(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let server = FakeMcp::start(era, &["image"]).await;
    let script = Script::default();
    let keeper = script.keeper.clone();
    let journal = run_script(&server, &["image"], vec![calls(&[("image", json!({}))]), says("done")], script).await;
    let digest = Digest::of(PNG);
    assert_eq!(*keeper.kept.lock().unwrap(), [(digest, PNG.to_vec())]);
    let [(_, result)] = results(&journal)[..] else { panic!("one result") };
    let artifact = Artifact { digest, bytes: 8, media_type: "image/png".into(), name: String::new() };
    assert_eq!(result.artifacts, [artifact]);
    assert_eq!(result.content, format!("look:\n[image image/png, 8 bytes, not shown: artifact {digest}]"));
    let journaled: Vec<String> = journal.events().map(|event| serde_json::to_string(event).unwrap()).collect();
    assert!(!journaled.concat().contains("iVBORw0KGgo"));
}

#[rstest]
#[tokio::test]
async fn the_whole_of_a_text_that_is_cut_is_kept_before_the_result_that_names_it(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let server = FakeMcp::start(era, &["huge"]).await;
    let script = Script::default();
    let keeper = script.keeper.clone();
    let journal = run_script(&server, &["huge"], vec![calls(&[("huge", json!({}))]), says("done")], script).await;
    let whole = "x".repeat(300 * 1024).into_bytes();
    let (digest, bytes) = (Digest::of(&whole), whole.len() as u64);
    assert!(*keeper.kept.lock().unwrap() == [(digest, whole)]);
    let [(_, result)] = results(&journal)[..] else { panic!("one result") };
    let artifact = Artifact { digest, bytes, media_type: "text/plain; charset=utf-8".into(), name: String::new() };
    assert_eq!((result.truncated_from_bytes, &result.artifacts), (Some(bytes), &vec![artifact]));
    assert!(result.content.ends_with(&format!("of {bytes} bytes are shown; all of it is artifact {digest}]")));
}

#[rstest]
#[case::of_an_image("image", Digest::of(PNG), "look:")]
#[case::of_a_text("huge", Digest::of("x".repeat(300 * 1024).as_bytes()), "xxx")]
#[tokio::test]
async fn a_result_names_no_artifact_that_is_not_kept_and_says_why(
    #[case] operation: &'static str,
    #[case] digest: Digest,
    #[case] begins: &str,
) {
    let server = FakeMcp::start(Era::Sessions, &[operation]).await;
    let keeper = FakeKeeper { refuses: Some("the volume is full"), ..FakeKeeper::default() };
    let script = Script { keeper, ..Script::default() };
    let turns = vec![calls(&[(operation, json!({}))]), says("done")];
    let journal = run_script(&server, &[operation], turns, script).await;
    let [(_, result)] = results(&journal)[..] else { panic!("one result") };
    assert_eq!(result.artifacts, []);
    let note = format!("[belay: artifact {digest} was not kept: the volume is full]\n{begins}");
    assert!(result.content.starts_with(&note), "{}", result.content);
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[rstest]
#[case::a_keeper_that_does_not_answer(false, "the operator took longer than 15 s")]
#[case::a_cancelled_run(true, "the run was cancelled before it was")]
#[tokio::test]
async fn a_known_answer_is_journaled_in_time_whatever_keeping_its_image_takes(
    #[case] cancels: bool,
    #[case] why: &str,
) {
    let server = FakeMcp::start(Era::Sessions, &["image"]).await;
    let keeper = FakeKeeper { hangs: true, ..FakeKeeper::default() };
    let stop_when_called = cancels.then(|| server.clone());
    let grace = Duration::from_mins(1);
    let script = Script { grace, stop_when_called, cancels, keeper, ..Script::default() };
    let running = run_script(&server, &["image"], vec![calls(&[("image", json!({}))]), says("done")], script);
    let journal = tokio::time::timeout(Duration::from_secs(25), running).await.unwrap();
    let [(_, result)] = results(&journal)[..] else { panic!("one result") };
    assert!(result.artifacts.is_empty() && result.content.contains(why), "{}", result.content);
    assert!(result.content.contains("look:"), "{}", result.content);
}

#[rstest]
#[case::broken_connection("break")]
#[case::lost_upstream("bad-gateway")]
#[tokio::test]
async fn a_call_that_may_be_repeated_is_sent_again_with_its_key_and_not_for_ever(#[case] operation: &str) {
    let server = FakeMcp::start(Era::Sessions, &["break", "bad-gateway"]).await;
    let turns = vec![calls(&[(operation, json!({}))]), says("done")];
    let mut plan = plan(scripted(turns), vec![tool(&server.url(), &["break", "bad-gateway"])]);
    plan.tools[0].operations.iter_mut().for_each(|operation| operation.effects = Effects::Idempotent);
    let journal = run_plan(plan, Script::default(), &[]).await;
    let interrupted: Vec<u32> = journal.events().filter_map(interrupted).collect();
    assert_eq!(interrupted, [1, 2, 3]);
    assert_eq!(server.keys(), vec![Some("run-uid/c1".to_owned()); 3]);
    assert_eq!(journal.end().outcome, Outcome::Succeeded, "the model goes on with what it was told");
}

fn interrupted(event: &Event) -> Option<u32> {
    match event {
        Event::CallInterrupted { attempt, .. } => Some(*attempt),
        _ => None,
    }
}

#[tokio::test]
async fn a_call_that_may_have_happened_is_not_sent_again_and_the_model_waits_for_a_person() {
    let server = FakeMcp::start(Era::Sessions, &["break", "echo"]).await;
    let turns = vec![calls(&[("break", json!({})), ("echo", json!({}))]), says("never said")];
    let script = Script { stop_on: Some("CallUnknown"), ..Script::default() };
    let journal = run_script(&server, &["break", "echo"], turns, script).await;
    assert_eq!(server.called_operations(), ["break"]);
    assert_eq!(server.keys(), [None], "a key would promise what the server does not keep");
    assert_eq!(journal.state.steps, 1);
    assert!(matches!(journal.state.calls["c1"], CallState::Unknown { attempt: 1, .. }));
}

#[tokio::test]
async fn a_denied_call_is_never_sent_and_the_run_goes_on() {
    let server = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    let turns = vec![calls(&[("fail", json!({})), ("echo", json!({"text": "yes"}))]), says("done")];
    let script = Script { denied_operations: BTreeSet::from(["fail".into()]), ..Script::default() };
    let journal = run_script(&server, &["echo", "fail"], turns, script).await;
    assert_eq!(server.called_operations(), ["echo"]);
    let answered: Vec<&str> = results(&journal).into_iter().map(|(call_id, _)| call_id).collect();
    assert_eq!(answered, ["c2"]);
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_permit_that_ran_out_is_returned_and_the_call_proposed_again() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({}))]), says("done")];
    let script = Script { permit_milliseconds: [0, 0].into(), ..Script::default() };
    let journal = run_script(&server, &["echo"], turns, script).await;
    assert_eq!(
        journal.names()[1..5],
        [
            vec!["ModelResponded", "CallProposed"],
            vec!["PermitReturned", "CallProposed"],
            vec!["PermitReturned", "CallProposed"],
            vec!["CallObserved", "ModelRequested"],
        ]
    );
    assert_eq!(server.called_operations(), ["echo"]);
}

#[tokio::test]
async fn one_listing_that_fails_in_passing_ends_no_run() {
    let server = FakeMcp::start(Era::Stateless, &["echo"]).await;
    *server.refused_listings.lock().unwrap() = 1;
    let turns = vec![calls(&[("echo", json!({}))]), says("done")];
    let journal = run_script(&server, &["echo"], turns, Script::default()).await;
    assert_eq!(journal.names()[0], ["ToolsListed", "ModelRequested"]);
    assert_eq!(server.called_operations(), ["echo"]);
}

#[tokio::test]
async fn permits_that_always_run_out_end_in_a_call_not_sent() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({}))]), says("done")];
    let script = Script { permit_milliseconds: vec![0; 50].into(), ..Script::default() };
    let journal = run_script(&server, &["echo"], turns, script).await;
    assert_eq!(not_sent(&journal), [NotSentReason::Unreachable]);
    assert_eq!(journal.events().filter(|event| event.name() == "PermitReturned").count(), 3);
    assert_eq!(server.called_operations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_permit_for_other_bytes_sends_nothing() {
    let server = FakeMcp::start(Era::Stateless, &["echo"]).await;
    let plan = plan(scripted(vec![calls(&[("echo", json!({}))]), says("done")]), vec![tool(&server.url(), &["echo"])]);
    let (_folder, credentials) = mounted(&[]);
    let redactor = Redactor::new(credentials.clone(), &[]);
    let mut mcp = McpServer::of_plan(&plan, &plan.tools[0], credentials, redactor).unwrap();
    let outcome = crate::mcp::call(&mut mcp, "echo", json!({}), Some(belay_protocol::Digest::of(b"other"))).await;
    let belay_runner::tools::Outcome::NotSent { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, NotSentReason::DigestMismatch);
    assert_eq!(server.called_operations(), Vec::<String>::new());
}

#[tokio::test]
async fn unknown_tools_and_malformed_arguments_go_back_to_the_model() {
    let server = FakeMcp::start(Era::Sessions, &["echo", "other"]).await;
    let mut turn = calls(&[("nowhere", json!({})), ("echo", json!([1])), ("echo", json!("x"))]);
    turn.tool_calls[0].tool = "elsewhere".into();
    let turns = vec![turn, says("done")];
    let journal = run_script(&server, &["echo"], turns, Script::default()).await;
    let malformed = NotSentReason::MalformedArguments;
    assert_eq!(not_sent(&journal), [NotSentReason::UnknownTool, malformed, malformed]);
    assert_eq!(journal.names()[1].len(), 5, "they ride together: {:?}", journal.names());
    assert_eq!(server.called_operations(), Vec::<String>::new());
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn an_operation_that_the_agent_does_not_list_is_proposed_denied_and_never_sent() {
    let server = FakeMcp::start(Era::Sessions, &["echo", "other"]).await;
    let turns = vec![calls(&[("other", json!({}))]), says("done")];
    let script = Script { denied_operations: BTreeSet::from(["other".into()]), ..Script::default() };
    let journal = run_script(&server, &["echo"], turns, script).await;
    let proposed =
        journal.events().any(|event| matches!(event, Event::CallProposed { call, .. } if call.operation == "other"));
    assert!(proposed, "{:?}", journal.names());
    assert_eq!(server.called_operations(), Vec::<String>::new());
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn calls_beyond_the_bound_are_dropped_with_a_note() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut many = calls(&vec![("nowhere", json!({})); 70]);
    many.tool_calls.iter_mut().for_each(|call| call.tool = "elsewhere".into());
    let journal = run_script(&server, &["echo"], vec![many, says("done")], Script::default()).await;
    assert_eq!(journal.state.calls_total, 64);
    let note = journal.events().find_map(|event| match event {
        Event::ModelResponded { response, .. } => Some(format!("{:?}", response.items.last().unwrap())),
        _ => None,
    });
    assert!(note.unwrap().contains("6 more calls"));
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_script_that_runs_out_or_fails_ends_the_run_with_words() {
    for (turns, words) in [
        (vec![], "spec.scripted.turns holds 0 turns"),
        (vec![ScriptedTurn { error: Some("boom".into()), ..ScriptedTurn::default() }], "boom"),
    ] {
        let journal = run_plan(plan(scripted(turns), Vec::new()), Script::default(), &[]).await;
        assert_eq!(journal.end().reason, EndReason::ModelFailed);
        let message = &journal.end().message;
        assert!(message.contains("Model writer") && message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn a_denied_model_request_asks_nobody_and_waits_for_the_operator() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({}))]), says("never said")];
    let script = Script { deny_model_from: Some(2), stop_on: Some("CallObserved"), ..Script::default() };
    let journal = run_script(&server, &["echo"], turns, script).await;
    assert_eq!(journal.names().last().unwrap(), &["CallObserved", "ModelRequested"]);
    assert_eq!(journal.parting, Parting::Stopped);
}

#[tokio::test]
async fn a_server_that_is_not_there_ends_the_run_and_names_tool_and_url() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}/mcp");
    let plan = plan(scripted(vec![says("never")]), vec![tool(&url, &["echo"])]);
    let journal = run_plan(plan, Script::default(), &[]).await;
    assert_eq!(journal.end().reason, EndReason::ToolUnavailable);
    let message = &journal.end().message;
    assert!(message.starts_with(&format!("Tool server: the MCP server at {url} cannot be reached")), "{message}");
    assert_eq!(journal.names(), [["ToolsListed"]]);
}

#[tokio::test]
async fn a_credential_that_is_missing_ends_the_run_before_the_server_is_asked() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut plan = plan(scripted(vec![says("never")]), vec![tool(&server.url(), &["echo"])]);
    plan.credentials.push(credential(&["127.0.0.1"]));
    plan.tools[0].credential = Some("key".into());
    let journal = run_plan(plan, Script::default(), &[]).await;
    let message = &journal.end().message;
    assert!(message.contains("Credential key: Secret keys has no key token"), "{message}");
    assert_eq!(*server.authorizations.lock().unwrap(), Vec::<Option<String>>::new());
}

#[tokio::test]
async fn a_credential_reaches_its_server_and_nothing_that_is_reported() {
    const VALUE: &str = "s3cr3t-value";
    let server = FakeMcp::start(Era::Sessions, &["leak", "echo"]).await;
    let turns = vec![
        calls(&[("leak", json!({})), ("echo", json!({"text": format!("here is {VALUE}")}))]),
        says("done, the key is s3cr3t-value"),
    ];
    let mut plan = plan(scripted(turns), vec![tool(&server.url(), &["leak", "echo"])]);
    plan.credentials.push(credential(&["127.0.0.1"]));
    plan.tools[0].credential = Some("key".into());
    let journal = run_plan(plan, Script::default(), &[("key", VALUE)]).await;
    assert!(server.authorizations.lock().unwrap().iter().all(|sent| sent.as_deref() == Some("Bearer s3cr3t-value")));
    let reported = serde_json::to_string(&journal.batches).unwrap();
    assert!(!reported.contains(VALUE), "{reported}");
    assert!(reported.contains("you sent Bearer [credential key redacted]"), "{reported}");
    assert_eq!(server.called_operations(), ["leak"], "arguments that hold the value are refused");
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn an_operation_whose_name_holds_a_credential_does_not_exist() {
    let server = FakeMcp::start(Era::Sessions, &["echo", "get-0ther-value"]).await;
    let mut plan = plan(scripted(vec![says("done")]), vec![tool(&server.url(), &["echo"])]);
    plan.credentials.push(credential(&["127.0.0.1"]));
    plan.tools[0].credential = Some("key".into());
    let journal = run_plan(plan, Script::default(), &[("key", "0ther-value")]).await;
    let reported = serde_json::to_string(&journal.batches).unwrap();
    assert!(reported.contains("\"echo\"") && !reported.contains("0ther"), "{reported}");
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_credential_is_never_sent_to_a_host_it_is_not_for() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut plan = plan(scripted(vec![says("never")]), vec![tool(&server.url(), &["echo"])]);
    plan.credentials.push(credential(&["api.example.com"]));
    plan.tools[0].credential = Some("key".into());
    let journal = run_plan(plan, Script::default(), &[("key", "value")]).await;
    let message = &journal.end().message;
    assert!(message.contains("Credential key may not be sent to 127.0.0.1"), "{message}");
    assert_eq!(*server.authorizations.lock().unwrap(), Vec::<Option<String>>::new());
}

#[rstest]
#[case::that_ends_within_the_grace_time("held", Duration::from_secs(10), "CallObserved")]
#[case::that_does_not("hang", Duration::from_millis(200), "CallUnknown")]
#[tokio::test]
async fn a_call_in_flight_when_the_run_is_stopped_is_reported(
    #[case] operation: &'static str,
    #[case] grace: Duration,
    #[case] reported: &'static str,
) {
    let server = FakeMcp::start(Era::Sessions, &[operation, "echo"]).await;
    let turns = vec![calls(&[(operation, json!({})), ("echo", json!({}))]), says("never")];
    let script = Script { stop_when_called: Some(server.clone()), grace, ..Script::default() };
    let journal = run_script(&server, &[operation, "echo"], turns, script).await;
    assert_eq!(journal.names().last().unwrap(), &[reported]);
    assert_eq!(server.called_operations(), [operation], "nothing new starts");
    assert_eq!(journal.parting, Parting::Stopped);
}

#[tokio::test]
async fn a_model_is_not_asked_once_the_run_is_stopped() {
    let plan = plan(scripted(vec![says("never")]), Vec::new());
    let script = Script { stop_on: Some("ModelRequested"), grace: Duration::from_secs(5), ..Script::default() };
    let journal = run_plan(plan, script, &[]).await;
    assert_eq!(journal.names(), [["ModelRequested"]]);
    assert_eq!(journal.parting, Parting::Stopped);
}

#[tokio::test]
async fn a_permit_that_arrives_with_the_order_to_stop_is_returned() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({}))]), says("never")];
    let plan = plan(scripted(turns), vec![tool(&server.url(), &["echo"])]);
    let script = Script { stop_on: Some("CallProposed"), grace: Duration::from_secs(5), ..Script::default() };
    let journal = run_plan(plan, script, &[]).await;
    assert_eq!(journal.names().last().unwrap(), &["PermitReturned"]);
    assert_eq!(server.called_operations(), Vec::<String>::new());
    assert_eq!(journal.parting, Parting::Stopped);
}

#[tokio::test]
async fn definitions_that_differ_from_the_accepted_ones_are_not_offered_and_left_to_the_gate() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut drifted = tool(&server.url(), &["echo"]);
    let accepted = belay_protocol::Digest::of(b"an older definition");
    drifted.operations[0].definition = accepted;
    let plan = plan(scripted(vec![calls(&[("echo", json!({}))]), says("done")]), vec![drifted]);
    let script = Script { denied_operations: BTreeSet::from(["echo".into()]), ..Script::default() };
    let journal = run_plan(plan, script, &[]).await;
    let proposed = journal.events().find_map(|event| match event {
        Event::CallProposed { call, .. } => Some(call.clone()),
        _ => None,
    });
    assert_ne!(proposed.unwrap().definition, accepted, "the gate sees what the server lists now");
    assert_eq!(journal.state.listings[TOOL].len(), 1);
}

#[tokio::test]
async fn a_run_that_waits_for_a_definition_says_what_it_saw_and_asks_nobody() {
    for (on_drift, expected) in
        [(OnDrift::Wait, vec!["ToolsListed"]), (OnDrift::Continue, vec!["ToolsListed", "ModelRequested"])]
    {
        let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
        let mut drifted = PlanTool { on_drift, ..tool(&server.url(), &["echo"]) };
        drifted.operations[0].definition = belay_protocol::Digest::of(b"an older definition");
        let plan = plan(scripted(vec![says("never")]), vec![drifted]);
        let stop_on = Some("ToolsListed");
        let script = Script { stop_on, grace: Duration::from_secs(5), ..Script::default() };
        let journal = run_plan(plan, script, &[]).await;
        assert_eq!(journal.names(), [expected]);
    }
}

#[tokio::test]
async fn an_operation_whose_end_was_accepted_is_not_offered_although_its_server_lists_it() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut gone = PlanTool { on_drift: OnDrift::Wait, ..tool(&server.url(), &["echo"]) };
    gone.operations[0].gone = true;
    let plan = plan(scripted(vec![says("done")]), vec![gone]);
    let journal = run_plan(plan, Script::default(), &[]).await;
    assert_eq!(journal.end().outcome, Outcome::Succeeded, "it waits for nothing");
}

fn people(operation: &str, say: People) -> Script {
    Script { asked_operations: BTreeMap::from([(operation.to_owned(), say)]), ..Script::default() }
}

#[tokio::test]
async fn a_call_that_people_are_asked_about_is_sent_once_they_said_yes_and_holds_up_no_other() {
    let server = FakeMcp::start(Era::Sessions, &["echo", "stream"]).await;
    let turns = vec![calls(&[("echo", json!({"text": "x"})), ("stream", json!({}))]), says("done")];
    let journal = run_script(&server, &["echo", "stream"], turns, people("echo", People::Allow)).await;
    assert_eq!(server.called_operations(), ["stream", "echo"]);
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
    assert_eq!(results(&journal).iter().map(|(id, _)| *id).collect::<Vec<_>>(), ["c2", "c1"]);
}

#[tokio::test]
async fn what_people_do_not_allow_is_never_sent_and_the_run_goes_on() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({"text": "x"}))]), says("done")];
    let journal = run_script(&server, &["echo"], turns, people("echo", People::Deny)).await;
    assert_eq!(server.called_operations(), Vec::<String>::new());
    assert!(results(&journal).is_empty());
    assert_eq!((journal.state.steps, journal.end().outcome), (2, Outcome::Succeeded));
}

#[tokio::test]
async fn calls_that_only_read_from_two_servers_are_under_way_together() {
    let (one, other) =
        (FakeMcp::start(Era::Sessions, &["held"]).await, FakeMcp::start(Era::Stateless, &["held"]).await);
    let mut turn = calls(&[("held", json!({})), ("held", json!({}))]);
    turn.tool_calls[1].tool = "other".into();
    let other_tool = PlanTool { name: "other".into(), ..tool(&other.url(), &["held"]) };
    let mut plan = plan(scripted(vec![turn, says("done")]), vec![tool(&one.url(), &["held"]), other_tool]);
    for tool in &mut plan.tools {
        let name = tool.name.clone();
        tool.operations.iter_mut().for_each(|operation| {
            operation.effects = Effects::None;
            operation.model_name = format!("{name}__held");
        });
    }
    let running = tokio::spawn(async move { run_plan(plan, Script::default(), &[]).await });
    one.until_called(1).await;
    other.until_called(1).await;
    other.release();
    one.release();
    let journal = running.await.unwrap();
    assert_eq!(results(&journal).len(), 2);
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

/// Neither people nor the gate are bothered with it, and the server is not.
#[tokio::test]
async fn arguments_that_do_not_fit_the_schema_go_back_to_the_model_unproposed() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let turns = vec![calls(&[("echo", json!({"text": 5})), ("echo", json!({"text": "five"}))]), says("done")];
    let journal = run_script(&server, &["echo"], turns, Script::default()).await;
    let proposed: Vec<_> = journal.events().filter(|event| matches!(event, Event::CallProposed { .. })).collect();
    assert_eq!((proposed.len(), server.called()), (1, vec![("echo".to_owned(), json!({"text": "five"}))]));
    let refused = journal.events().find_map(|event| match event {
        Event::CallNotSent { call_id, reason, message, .. } => Some((call_id.as_str(), *reason, message.as_str())),
        _ => None,
    });
    let words = "the arguments do not fit the schema of server__echo: at /text: 5 is not of type \"string\" (rule \
                 /properties/text/type)";
    assert_eq!(refused, Some(("c1", NotSentReason::MalformedArguments, words)));
    assert_eq!(journal.end().outcome, Outcome::Succeeded);
}

/// The operator starts a run for it; no permit of any sort makes a runner send something.
#[tokio::test]
async fn a_tool_that_is_an_agent_is_offered_as_the_plan_has_it_and_sends_nothing_even_with_a_permit() {
    let server = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut helper = tool("agent/helper", &["run"]);
    let limits = plan(scripted(vec![]), vec![]).limits;
    let agent = PlanAgent { name: "helper".into(), description: "Finds it.".into(), limits, priced: true };
    helper.operations[0].definition = agent.definition().unwrap();
    helper.agent = Some(agent);
    let turns =
        vec![calls(&[("run", json!({"input": "find it"})), ("run", json!({"text": "no input"}))]), says("done")];
    let journal = run_plan(plan(scripted(turns), vec![helper]), Script::default(), &[]).await;
    assert!(journal.state.differs.is_empty(), "it is listed as it was accepted");
    let proposed = journal.events().filter(|event| matches!(event, Event::CallProposed { .. })).count();
    assert_eq!(proposed, 1, "what is no input is not even proposed");
    let unsent: Vec<_> = journal
        .events()
        .filter_map(|event| match event {
            Event::CallNotSent { call_id, reason, .. } => Some((call_id.as_str(), *reason)),
            _ => None,
        })
        .collect();
    let malformed = ("c2", NotSentReason::MalformedArguments);
    assert!(
        unsent.contains(&malformed) && unsent.contains(&("c1", NotSentReason::DestinationNotAllowed)),
        "{unsent:?}"
    );
    assert_eq!(server.called_operations(), Vec::<String>::new());
}
