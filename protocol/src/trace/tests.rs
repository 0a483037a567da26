#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::json;

use super::*;
use crate::Digest;
use crate::cost::Usage;
use crate::event::{
    Answer, Approver, Ask, AskPurpose, DenyReason, EndReason, EpochEnd, Event, Failure, FailureReason, Finish, Item,
    ModelResponse, Outcome, ProposedCall, RunEnd, ToolResult, Verdict,
};
use crate::export::{EffectOutcome, PermittedBy};
use crate::judgement::{Judged, Judgement, Opinion, OpinionVerdict, PolicyRequirement, PolicySource};

const UID: &str = "3f2a9c1e-0b6d-4c7e-9a51-7d2f60c4e8ab";

fn accepted() -> Event {
    let model = |name: &str, input: u64| {
        json!({"name": name, "api": "Messages", "model": format!("{name}-5"),
            "prices": {"input": input, "output": 15_000_000},
            "timeouts": {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}})
    };
    let plan: crate::Plan = serde_json::from_value(json!({
        "version": 1, "run": {"namespace": "team", "name": "triage-1", "uid": UID},
        "agent": {"namespace": "team", "name": "triage", "uid": "agent-uid"}, "agentGeneration": 3,
        "requestedBy": "eve", "input": "the secret question", "model": model("large", 3_000_000),
        "fallbacks": [model("small", 1_000_000)],
        "tools": [{"name": "files", "uid": "files-uid", "url": "http://files/mcp", "callTimeoutSeconds": 5, "operations": [
            {"name": "read", "modelName": "files__read", "definition": Digest::zero(), "effects": "None"},
            {"name": "delete", "modelName": "files__delete", "definition": Digest::zero()}]}],
        "limits": {"steps": 9, "activeSeconds": 60, "waitSeconds": 60},
    }))
    .unwrap();
    Event::RunAccepted { plan_digest: Digest::zero(), plan: Box::new(plan) }
}

fn opened(epoch: u64) -> Event {
    Event::EpochOpened { epoch, pod_name: format!("belay-run-triage-1-{epoch}") }
}

fn claimed(epoch: u64) -> Event {
    Event::InstanceClaimed { epoch, instance: "i".into(), pod_uid: "p".into() }
}

fn requested(step: u32, attempt: u32) -> Event {
    Event::ModelRequested { step, attempt, request: Digest::zero(), reserved_tokens: 10 }
}

fn responded(step: u32, calls: &[&str]) -> Event {
    let call = |id: &&str| Item::ToolCall {
        call_id: (*id).into(),
        provider_id: String::new(),
        name: "files__delete".into(),
        arguments: r#"{"path":"secret.txt"}"#.into(),
    };
    let text = Item::Text { text: "the secret answer".into() };
    let usage =
        Usage { input_tokens: Some(1000), cached_input_tokens: Some(400), output_tokens: Some(10), ..Usage::default() };
    let response = ModelResponse {
        response_id: Some("msg_1".into()),
        model: Some("large-5-2026".into()),
        ..ModelResponse::new(
            std::iter::once(text).chain(calls.iter().map(call)).collect(),
            if calls.is_empty() { Finish::Stop } else { Finish::ToolCalls },
            usage,
            90,
        )
    };
    Event::ModelResponded { step, attempt: 1, response }
}

fn proposed(call_id: &str, operation: &str) -> Event {
    let args = json!({"path": "secret.txt"});
    let call = ProposedCall {
        tool: "files".into(),
        operation: operation.into(),
        args,
        definition: Digest::zero(),
        digest: Digest::zero(),
    };
    Event::CallProposed { call_id: call_id.into(), attempt: 1, call }
}

fn decided(call_id: &str, verdict: Verdict, judged: Option<Judged>) -> Event {
    Event::CallDecided { call_id: call_id.into(), attempt: 1, verdict, judged: judged.map(Box::new) }
}

fn allowed() -> Verdict {
    Verdict::Allowed { digest: Digest::zero() }
}

fn by_rule() -> Judged {
    let opinion = Opinion {
        policy: "careful".into(),
        generation: 1,
        digest: Digest::zero(),
        source: PolicySource::Plan,
        verdict: OpinionVerdict::Allow,
        rule: Some("reads".into()),
        error: None,
    };
    Judged { judgement: Judgement::Allow, opinions: vec![opinion], grants: vec![] }
}

fn asked() -> Verdict {
    let requirement = PolicyRequirement {
        policy: "careful".into(),
        generation: 1,
        quorum: 1,
        separation_of_duty: false,
        expires_after_seconds: 60,
        grants: None,
    };
    Verdict::Asked { requirements: vec![requirement] }
}

fn question() -> Event {
    let ask = Ask {
        name: "triage-1-c2".into(),
        purpose: AskPurpose::Call,
        call_id: "c2".into(),
        attempt: 1,
        nonce: String::new(),
        expires_at: 0,
        digest: Digest::zero(),
        call: Some(Digest::zero()),
        question: None,
        requirements: vec![],
        guard: None,
    };
    Event::AskOpened { ask }
}

fn observed(call_id: &str) -> Event {
    let result = ToolResult {
        is_error: false,
        content: "the secret text".into(),
        truncated_from_bytes: None,
        artifacts: Vec::new(),
    };
    Event::CallObserved { call_id: call_id.into(), attempt: 1, result, milliseconds: 7 }
}

fn ended() -> Event {
    let end = RunEnd { outcome: Outcome::Succeeded, reason: EndReason::Completed, message: String::new() };
    Event::RunEnded { end }
}

fn released(epoch: u64, cause: EpochEnd) -> Event {
    Event::EpochEnded { epoch, cause, active_milliseconds: 0 }
}

/// A run in two epochs: a read that a rule allows, a deletion that ada allows while no pod is there, a model that fails.
fn run() -> Vec<Record> {
    let ada = Approver { policy: "careful".into(), by: "ada".into() };
    let failure = Failure {
        reason: FailureReason::ServerError,
        message: "secret 500".into(),
        retrying: false,
        retry_after_seconds: None,
    };
    let because = FailureReason::ServerError;
    let events = vec![
        (0, accepted()),
        (100, opened(1)),
        (400, claimed(1)),
        (410, requested(1, 1)),
        (500, responded(1, &["c1", "c2"])),
        (510, proposed("c1", "read")),
        (510, decided("c1", allowed(), Some(by_rule()))),
        (520, proposed("c2", "delete")),
        (520, decided("c2", asked(), None)),
        (521, question()),
        (530, observed("c1")),
        (900, released(1, EpochEnd::Released)),
        (60_000, Event::AskSettled { name: "triage-1-c2".into(), answer: Answer::Allowed { by: vec![ada] } }),
        (60_100, opened(2)),
        (60_300, claimed(2)),
        (60_310, proposed("c2", "delete")),
        (60_310, decided("c2", allowed(), None)),
        (60_320, observed("c2")),
        (60_330, requested(2, 1)),
        (60_400, Event::ModelFailed { step: 2, attempt: 1, failure, reported: None }),
        (60_400, Event::ModelReplaced { model: "large".into(), by: "small".into(), because }),
        (60_410, requested(2, 2)),
        (60_500, responded(2, &[])),
        (60_510, ended()),
        (60_600, released(2, EpochEnd::Completed)),
    ];
    records(events)
}

fn records(events: Vec<(i64, Event)>) -> Vec<Record> {
    (1..).zip(events).map(|(seq, (at, event))| Record { seq, at, event }).collect()
}

/// Name, parent's name, begin, end.
fn told(spans: &[Span]) -> Vec<(String, String, i64, Option<i64>)> {
    let name = |id: SpanId| spans.iter().find(|span| span.id == id).map(Span::name).unwrap_or_default();
    spans.iter().map(|it| (it.name(), it.parent.map(name).unwrap_or_default(), it.start, it.end)).collect()
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    span.attributes().into_iter().find(|attribute| attribute.key == key).map(|attribute| attribute.value)
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what may be absent")]
fn text(text: &str) -> Option<Value> {
    Some(Value::Text(text.into()))
}

#[test]
fn a_run_is_one_trace_across_its_epochs() {
    let spans = spans(UID, &run());
    let expected = [
        ("invoke_agent triage", "", 0, 60_510),
        ("wait for a pod", "invoke_agent triage", 0, 100),
        ("epoch", "invoke_agent triage", 100, 900),
        ("start a pod", "epoch", 100, 400),
        ("chat large-5", "invoke_agent triage", 410, 500),
        ("decide files/read", "invoke_agent triage", 510, 510),
        ("execute_tool files/read", "invoke_agent triage", 510, 530),
        ("decide files/delete", "invoke_agent triage", 520, 520),
        ("ask people", "invoke_agent triage", 521, 60_000),
        ("wait for a pod", "invoke_agent triage", 900, 60_100),
        ("epoch", "invoke_agent triage", 60_100, 60_600),
        ("start a pod", "epoch", 60_100, 60_300),
        ("decide files/delete", "invoke_agent triage", 60_310, 60_310),
        ("execute_tool files/delete", "invoke_agent triage", 60_310, 60_320),
        ("chat large-5", "invoke_agent triage", 60_330, 60_400),
        ("chat small-5", "invoke_agent triage", 60_410, 60_500),
    ];
    let expected = expected.map(|(name, parent, start, end)| (name.to_owned(), parent.to_owned(), start, Some(end)));
    assert_eq!(told(&spans), expected);
}

#[test]
fn spans_carry_the_names_that_opentelemetry_gave_them() {
    let spans = spans(UID, &run());
    let (root, chat, call) = (&spans[0], &spans[4], &spans[6]);
    for (span, key, value) in [
        (root, "gen_ai.operation.name", text("invoke_agent")),
        (root, "gen_ai.agent.name", text("triage")),
        (root, "gen_ai.agent.id", text("agent-uid")),
        (root, "gen_ai.agent.version", text("3")),
        (root, "gen_ai.conversation.id", text(UID)),
        (root, "gen_ai.usage.input_tokens", Some(Value::Number(2000))),
        (root, "gen_ai.usage.output_tokens", Some(Value::Number(20))),
        (root, "belay.run.outcome", text("Succeeded")),
        (chat, "gen_ai.operation.name", text("chat")),
        (chat, "gen_ai.provider.name", text("anthropic")),
        (chat, "gen_ai.request.model", text("large-5")),
        (chat, "gen_ai.response.model", text("large-5-2026")),
        (chat, "gen_ai.response.id", text("msg_1")),
        (chat, "gen_ai.response.finish_reasons", Some(Value::Texts(vec!["tool_call".into()]))),
        (chat, "gen_ai.usage.cache_read.input_tokens", Some(Value::Number(400))),
        // What the provider did not say is not said.
        (chat, "gen_ai.usage.reasoning.output_tokens", None),
        (call, "gen_ai.operation.name", text("execute_tool")),
        (call, "gen_ai.tool.name", text("files/read")),
        (call, "gen_ai.tool.call.id", text("c1")),
        (call, "belay.call.effects", text("None")),
    ] {
        assert_eq!(attribute(span, key), value, "{} {key}", span.name());
    }
}

#[test]
fn each_request_costs_what_its_own_model_costs() {
    let spans = spans(UID, &run());
    let cost = |index: usize| attribute(&spans[index], "belay.cost.usd_micros");
    // 1000 in and 10 out, at 3 and 15 micro-USD a token, then at 1 and 15.
    assert_eq!((cost(4), cost(15)), (Some(Value::Number(3150)), Some(Value::Number(1150))));
    assert_eq!(cost(0), Some(Value::Number(4300)));
    assert_eq!((cost(14), spans[14].error()), (None, Some("ServerError".into())));
}

#[test]
fn decisions_say_who_made_them() {
    let spans = spans(UID, &run());
    assert_eq!(attribute(&spans[5], "belay.decision.by"), text("policy careful/reads"));
    assert_eq!(attribute(&spans[7], "belay.decision"), text("Asked"));
    assert_eq!(attribute(&spans[12], "belay.decision.by"), text("ada (careful)"));
    let What::Ask(ask) = &spans[8].what else { panic!("{:?}", spans[8]) };
    assert_eq!((ask.answered(), ask.by()), (Some("Allowed"), vec!["ada".to_owned()]));
    let people = PermittedBy::People(vec![Approver { policy: "careful".into(), by: "ada".into() }]);
    let What::Decision(decision) = &spans[12].what else { panic!("{:?}", spans[12]) };
    assert_eq!(decision.decided, Decided::Allowed(people));
}

#[test]
fn what_goes_on_is_open_and_ends_with_the_epoch_that_was_about_it() {
    let all = run();
    let open: Vec<String> = spans(UID, &all[..10]).iter().filter(|span| span.end.is_none()).map(Span::name).collect();
    assert_eq!(open, ["invoke_agent triage", "epoch", "execute_tool files/read", "ask people"]);
    // A pod that goes while its request is on the way, and one whose runner never comes.
    let mut cut = all[..4].to_vec();
    cut.extend(
        [(500, released(1, EpochEnd::PodLost)), (600, opened(2)), (700, released(2, EpochEnd::NoHello))]
            .map(|(at, event)| Record { seq: 0, at, event }),
    );
    (1..).zip(&mut cut).for_each(|(seq, record)| record.seq = seq);
    let spans = spans(UID, &cut);
    let errors: Vec<(String, String)> = spans.iter().filter_map(|span| Some((span.name(), span.error()?))).collect();
    let expected = [("epoch", "PodLost"), ("chat large-5", "Interrupted"), ("epoch", "NoHello")];
    assert_eq!(errors, expected.map(|(name, error)| (name.to_owned(), error.to_owned())));
    let claimed: Vec<bool> = spans
        .iter()
        .filter_map(|span| match &span.what {
            What::PodStart(start) => Some(start.claimed),
            _ => None,
        })
        .collect();
    assert_eq!(claimed, [true, false]);
}

#[test]
fn a_call_of_a_tool_that_there_is_not_is_named_by_the_model_only_where_content_is_told() {
    let mut all = run()[..5].to_vec();
    let reason = crate::event::NotSentReason::UnknownTool;
    let event = Event::CallNotSent { call_id: "c1".into(), attempt: 1, reason, message: String::new() };
    all.push(Record { seq: 6, at: 505, event });
    let denied = Verdict::Denied { reason: DenyReason::NotListed, message: "no".into() };
    all.push(Record { seq: 7, at: 506, event: decided("c2", denied, None) });
    let spans = spans(UID, &all);
    let call = spans.iter().find(|span| span.name() == "execute_tool unknown").unwrap();
    let mut tracer = Tracer::new(UID, Content::Kept);
    let mut kept = all.iter().flat_map(|record| tracer.take(record));
    assert!(kept.any(|span| span.name() == "execute_tool files__delete"));
    assert_eq!((call.took(), call.error()), (Some(0), Some("UnknownTool".into())));
    let What::Call(of) = &call.what else { panic!("{call:?}") };
    assert_eq!(of.outcome, EffectOutcome::NotSent(reason));
    assert!(spans.iter().any(|span| attribute(span, "belay.decision.reason") == text("NotListed")));
}

#[test]
fn content_is_told_only_where_it_was_asked_for() {
    let told = |content: Content| {
        let mut tracer = Tracer::new(UID, content);
        let spans: Vec<Span> = run().iter().flat_map(|record| tracer.take(record)).collect();
        let attributes: Vec<Attribute> = spans.iter().flat_map(Span::attributes).collect();
        format!("{attributes:?}")
    };
    assert!(!told(Content::Left).contains("secret"), "{}", told(Content::Left));
    let kept = told(Content::Kept);
    for words in ["the secret question", "the secret answer", "secret.txt", "the secret text"] {
        assert!(kept.contains(words), "{words}: {kept}");
    }
    // What a provider answers to a request that it refuses may hold the request.
    assert!(!kept.contains("secret 500"));
}

#[test]
fn what_a_provider_calls_an_answer_and_its_model_is_told_as_far_as_it_is_a_name() {
    let told = |content: Content, name: &str| {
        let mut tracer = Tracer::new(UID, content);
        let mut all = run();
        for record in &mut all {
            if let Event::ModelResponded { response, .. } = &mut record.event {
                (response.response_id, response.model) = (Some(name.to_owned()), Some(name.to_owned()));
            }
        }
        let spans: Vec<Span> = all.iter().flat_map(|record| tracer.take(record)).collect();
        let told = |key| spans.iter().flat_map(Span::attributes).find(|one| one.key == key).map(|one| one.value);
        [told("gen_ai.response.id"), told("gen_ai.response.model")]
    };
    let name = "accounts/f@1/large-5.1:latest_2";
    assert_eq!(told(Content::Left, name), [text(name), text(name)]);
    assert_eq!(told(Content::Left, "you asked: how?"), [None, None]);
    assert_eq!(told(Content::Kept, "you asked: how?"), [text("you asked: how?"), text("you asked: how?")]);
}

#[test]
fn who_begins_again_comes_to_the_same_ids_and_is_done_when_the_pod_is_gone() {
    let all = run();
    let mut tracer = Tracer::new(UID, Content::Left);
    let mut ended: Vec<Span> = Vec::new();
    for (index, record) in all.iter().enumerate() {
        assert!(!tracer.is_over(), "before record {}", record.seq);
        ended.extend(tracer.take(record));
        // Another process takes the run up here.
        let mut again = Tracer::new(UID, Content::Left);
        let known: Vec<Span> = all[..=index].iter().flat_map(|record| again.take(record)).collect();
        assert_eq!(known, ended);
    }
    assert!(tracer.is_over() && tracer.open().next().is_none());
}

/// A run whose call c1 another run carries out, up to there and on with `rest`.
fn delegated(rest: Vec<(i64, Event)>) -> Vec<Record> {
    let Event::RunAccepted { plan_digest, mut plan } = accepted() else { panic!("a plan") };
    let agent = json!({"name": "helper", "description": "", "limits": plan.limits, "priced": true});
    plan.tools[0].agent = serde_json::from_value(agent).unwrap();
    let up = json!({"run": {"namespace": "team", "name": "up", "uid": "up-uid"}, "callId": "c7", "depth": 1});
    plan.parent = serde_json::from_value(up).unwrap();
    let child = crate::event::Child { name: "triage-1-c1-x".into(), agent: "helper".into(), limits: plan.limits };
    let before = vec![
        (0, Event::RunAccepted { plan_digest, plan }),
        (100, opened(1)),
        (200, claimed(1)),
        (210, requested(1, 1)),
        (300, responded(1, &["c1"])),
        (310, proposed("c1", "delete")),
        (310, decided("c1", allowed(), None)),
        (310, Event::ChildOpened { call_id: "c1".into(), attempt: 1, child }),
    ];
    records(before.into_iter().chain(rest).collect())
}

#[test]
fn a_call_that_another_run_carries_out_names_it_and_that_run_names_the_call() {
    let result = ToolResult {
        is_error: true,
        content: "the secret failure".into(),
        truncated_from_bytes: None,
        artifacts: Vec::new(),
    };
    let end = crate::event::ChildEnd { outcome: Some(Outcome::Failed), result, tokens: 5, cost_micro_usd: 0 };
    let over = Event::ChildEnded { call_id: "c1".into(), attempt: 1, name: "triage-1-c1-x".into(), end: Box::new(end) };
    for (rest, outcome) in [(vec![(900, over)], "ObservedError"), (vec![(900, ended())], "UnderWay")] {
        let spans = spans(UID, &delegated(rest));
        let call = spans.iter().find(|span| matches!(span.what, What::Call(_))).unwrap();
        assert_eq!((call.start, call.end), (310, Some(900)), "also where the run ends before it hears of its child");
        assert_eq!(attribute(call, "belay.child.run.name"), text("triage-1-c1-x"));
        assert_eq!(attribute(call, "belay.call.outcome"), text(outcome));
        let run = spans.iter().find(|span| matches!(span.what, What::Run(_))).unwrap();
        assert_eq!(attribute(run, "belay.parent.run.name"), text("up"));
        assert_eq!(attribute(run, "belay.parent.conversation.id"), text("up-uid"));
        assert_eq!(attribute(run, "belay.parent.call.id"), text("c7"));
        assert!(!format!("{:?}", call.attributes()).contains("secret"), "content only where it is asked for");
    }
}
