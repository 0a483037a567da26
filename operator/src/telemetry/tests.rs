#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use belay_protocol::cost::Usage;
use belay_protocol::event::{EndReason, EpochEnd, Event, Finish, Item, ModelResponse, Outcome, RunEnd};
use prometheus_client::encoding::text::encode;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::otlp::{AnyValue, ExportTraceServiceRequest, ExportTraceServiceResponse, PartialSuccess, Span, Value};
use super::*;
use crate::gate::tests::plan_of;

/// A collector that answers as it is told, then well.
struct Played {
    url: String,
    requests: mpsc::UnboundedReceiver<(HeaderMap, ExportTraceServiceRequest)>,
}

type Answers = Arc<Mutex<VecDeque<(u16, Vec<u8>)>>>;

async fn collector(answers: &[(u16, Vec<u8>)]) -> Played {
    let (sender, requests) = mpsc::unbounded_channel();
    let answers: Answers = Arc::new(Mutex::new(answers.iter().cloned().collect()));
    let take = async |State((sender, answers)): State<(mpsc::UnboundedSender<_>, Answers)>,
                      headers: HeaderMap,
                      body: Bytes| {
        let (status, answer) = answers.lock().pop_front().unwrap_or((200, Vec::new()));
        sender.send((headers, ExportTraceServiceRequest::decode(body).unwrap())).unwrap();
        (StatusCode::from_u16(status).unwrap(), [("retry-after", "0")], answer).into_response()
    };
    let router = Router::new().route("/v1/traces", axum::routing::post(take)).with_state((sender, answers));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Played { url, requests }
}

impl Played {
    /// The spans of the next requests, until there are so many.
    async fn spans(&mut self, count: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(20), self.requests.recv()).await;
            let (_, request) = next.unwrap_or_else(|_| panic!("{} of {count} spans came", spans.len())).unwrap();
            spans.extend(request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans));
        }
        spans
    }
}

fn to(url: &str) -> Collector {
    let resource = vec![("service.name".to_owned(), "belay-operator".to_owned())];
    Collector { endpoint: url.parse().unwrap(), headers_file: None, ca_file: None, resource }
}

fn run() -> ObjectId {
    ObjectId { namespace: "ns".into(), name: "r".into(), uid: "3f2a9c1e-0b6d-4c7e-9a51-7d2f60c4e8ab".into() }
}

fn accepted() -> Event {
    accepted_of(&run())
}

fn accepted_of(run: &ObjectId) -> Event {
    let plan = plan_of(run);
    Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) }
}

/// An epoch in which the model answers.
fn middle() -> Vec<Event> {
    let response = ModelResponse::new(
        vec![Item::Text { text: "what it said".into() }],
        Finish::Stop,
        Usage { input_tokens: Some(7), output_tokens: Some(2), ..Usage::default() },
        30,
    );
    let request = belay_protocol::Digest::zero();
    vec![
        Event::EpochOpened { epoch: 1, pod_name: "belay-run-r-x".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() },
        Event::ModelRequested { step: 1, attempt: 1, request, reserved_tokens: 9 },
        Event::ModelResponded { step: 1, attempt: 1, response },
    ]
}

fn ended() -> Vec<Event> {
    let end = RunEnd { outcome: Outcome::Succeeded, reason: EndReason::Completed, message: String::new() };
    vec![Event::RunEnded { end }, Event::EpochEnded { epoch: 1, cause: EpochEnd::Completed, active_milliseconds: 1 }]
}

async fn open(folder: &Path) -> Journal {
    Journal::open(&folder.join("journal.sqlite")).await.unwrap()
}

async fn append(journal: &Journal, events: Vec<Event>) {
    let seq = journal.head(&run().uid).await.unwrap().map_or(0, |head| head.seq);
    journal.append(&run(), seq, events).await.unwrap();
}

/// Starts tracing as the operator does.
async fn attend(journal: &Journal, collector: Collector, content: Content) -> (Export, Metrics) {
    let metrics = Metrics::default();
    let export = Export::begin(Some(collector), &metrics).unwrap();
    let telemetry = Arc::new(Telemetry::new(metrics.clone(), export.exporter.clone(), content));
    telemetry.attend(journal).await;
    (export, metrics)
}

fn names(spans: &[Span]) -> BTreeSet<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn scraped(metrics: &Metrics) -> String {
    let mut text = String::new();
    encode(&mut text, &metrics.registry()).unwrap();
    text
}

/// Waits until it is in what Prometheus would read.
async fn comes_to(metrics: &Metrics, line: &str) {
    for _ in 0..1000 {
        if scraped(metrics).contains(line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no {line} in\n{}", scraped(metrics));
}

const SPANS: usize = 5;
const NAMES: [&str; SPANS] = ["chat m", "epoch", "invoke_agent agent", "start a pod", "wait for a pod"];

#[tokio::test]
async fn a_run_arrives_span_by_span_as_it_goes_on() {
    let mut played = collector(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).await;
    let file = folder.path().join("headers");
    std::fs::write(&file, "authorization: Bearer key\n\nx-scope: a:b\n").unwrap();
    let to = Collector { headers_file: Some(file), ..to(&played.url) };
    let (export, metrics) = attend(&journal, to, Content::Left).await;
    append(&journal, vec![accepted()]).await;
    append(&journal, middle()).await;
    let (headers, first) = played.requests.recv().await.unwrap();
    let sent = |name: &str| headers.get(name).unwrap().to_str().unwrap();
    assert_eq!((sent("authorization"), sent("x-scope")), ("Bearer key", "a:b"));
    assert_eq!(sent("content-type"), "application/x-protobuf");
    let of = &first.resource_spans[0];
    assert_eq!(of.resource.as_ref().unwrap().attributes[0].key, "service.name");
    let mut spans = of.scope_spans[0].spans.clone();
    // What is open is not there yet.
    assert_eq!(names(&spans), BTreeSet::from(["chat m", "start a pod", "wait for a pod"]));
    append(&journal, ended()).await;
    spans.extend(played.spans(2).await);
    assert_eq!(names(&spans), BTreeSet::from(NAMES));
    let root = spans.iter().find(|span| span.parent_span_id.is_empty()).unwrap();
    assert_eq!(root.name, "invoke_agent agent");
    assert!(spans.iter().all(|span| span.trace_id == TraceId::of(&run().uid).as_bytes()));
    let chat = spans.iter().find(|span| span.name == "chat m").unwrap();
    assert_eq!((chat.kind, &chat.parent_span_id), (otlp::SpanKind::Client.into(), &root.span_id));
    assert!(
        chat.start_time_unix_nano > 1_700_000_000_000_000_000 && chat.end_time_unix_nano >= chat.start_time_unix_nano
    );
    let tokens = chat.attributes.iter().find(|it| it.key == "gen_ai.usage.input_tokens").unwrap();
    assert_eq!(tokens.value, Some(AnyValue { value: Some(Value::Number(7)) }));
    comes_to(&metrics, "belay_spans_exported_total 5").await;
    assert!(scraped(&metrics).contains("gen_ai_client_token_usage_count"));
    export.end().await;
}

#[tokio::test]
async fn another_process_sends_the_same_spans_again_and_goes_on_with_the_trace() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).await;
    let mut first = collector(&[]).await;
    let (export, _) = attend(&journal, to(&first.url), Content::Left).await;
    append(&journal, vec![accepted()]).await;
    append(&journal, middle()).await;
    let before = first.spans(3).await;
    export.end().await;
    journal.close().await;

    let journal = open(folder.path()).await;
    let mut second = collector(&[]).await;
    let (export, metrics) = attend(&journal, to(&second.url), Content::Left).await;
    assert_eq!(second.spans(3).await, before);
    assert!(!scraped(&metrics).contains("gen_ai_client_token_usage_count"), "what was measured is not measured again");
    append(&journal, ended()).await;
    let after = second.spans(2).await;
    assert!(before.iter().all(|span| after.iter().any(|of| of.span_id == span.parent_span_id)));
    export.end().await;
    journal.close().await;

    // The run is over; who came after that sends what may have been lost.
    let journal = open(folder.path()).await;
    let mut third = collector(&[]).await;
    let (export, _) = attend(&journal, to(&third.url), Content::Left).await;
    assert_eq!(names(&third.spans(SPANS).await), BTreeSet::from(NAMES));
    export.end().await;
}

#[tokio::test]
async fn a_run_whose_head_is_damaged_keeps_nobody_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).await;
    append(&journal, vec![accepted()]).await;
    append(&journal, middle()).await;
    append(&journal, ended()).await;
    journal.close().await;
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    assert_eq!(file.execute("UPDATE heads SET hash = x'00'", []).unwrap(), 1);
    drop(file);
    let journal = open(folder.path()).await;
    let other = ObjectId { name: "s".into(), uid: "4f2a9c1e-0b6d-4c7e-9a51-7d2f60c4e8ab".into(), ..run() };
    let mut played = collector(&[]).await;
    let (export, _) = attend(&journal, to(&played.url), Content::Left).await;
    journal.append(&other, 0, vec![accepted_of(&other)]).await.unwrap();
    journal.append(&other, 1, middle()).await.unwrap();
    assert_eq!(played.spans(3).await.len(), 3, "and others are traced");
    export.end().await;
}

#[tokio::test]
async fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let partial = PartialSuccess { rejected_spans: 2, error_message: "too old".into() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let mut played = collector(&[(503, vec![]), (429, vec![]), (200, vec![]), (400, vec![]), (200, partial)]).await;
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).await;
    let (export, metrics) = attend(&journal, to(&played.url), Content::Left).await;
    append(&journal, vec![accepted()]).await;
    append(&journal, middle()).await;
    let tried = played.spans(9).await;
    assert_eq!((&tried[..3], &tried[..3]), (&tried[3..6], &tried[6..]), "the same three times");
    comes_to(&metrics, "belay_spans_exported_total 3").await;
    append(&journal, ended()).await;
    comes_to(&metrics, "belay_spans_lost_total{reason=\"Refused\"} 2").await;
    let exporter = export.exporter.clone().unwrap();
    let spans = belay_protocol::trace::spans(
        &run().uid,
        journal.records(&run().uid, 1).await.unwrap().iter().map(|sealed| &sealed.record),
    );
    for span in &spans {
        exporter.offer(TraceId::of(&run().uid), span);
    }
    comes_to(&metrics, "belay_spans_lost_total{reason=\"Refused\"} 4").await;
    comes_to(&metrics, "belay_spans_exported_total 6").await;
    export.end().await;
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nobody_up_and_what_finds_no_room_is_counted() {
    let metrics = Metrics::default();
    // Nothing drives what sends: as if the collector never answered.
    let (exporter, sending) = Exporter::new(to("http://127.0.0.1:9"), metrics.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).await;
    let telemetry = Arc::new(Telemetry::new(metrics.clone(), Some(exporter.clone()), Content::Left));
    telemetry.attend(&journal).await;
    append(&journal, vec![accepted()]).await;
    append(&journal, middle()).await;
    append(&journal, ended()).await;
    let records = journal.records(&run().uid, 1).await.unwrap();
    let spans = belay_protocol::trace::spans(&run().uid, records.iter().map(|sealed| &sealed.record));
    let mut offered = SPANS;
    while scraped(&metrics).contains("belay_spans_lost_total{reason=\"QueueFull\"} 0") {
        assert!(offered < 200_000, "the queue has no end");
        for _ in 0..1000 {
            for span in &spans {
                exporter.offer(TraceId::of(&run().uid), span);
            }
            offered += spans.len();
        }
    }
    // A queue that nobody empties any more says so as well.
    drop(sending);
    exporter.offer(TraceId::of(&run().uid), &spans[0]);
    assert!(scraped(&metrics).contains("belay_spans_lost_total{reason=\"Stopped\"} 1"), "{}", scraped(&metrics));
}

#[tokio::test]
async fn what_is_queued_when_the_operator_stops_is_sent_yet() {
    let mut played = collector(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path()).await;
    let (export, metrics) = attend(&journal, to(&played.url), Content::Left).await;
    append(&journal, vec![accepted()]).await;
    append(&journal, middle()).await;
    append(&journal, ended()).await;
    export.end().await;
    assert_eq!(names(&played.spans(SPANS).await), BTreeSet::from(NAMES));
    for reason in ["QueueFull", "Unreachable", "Refused", "Stopped"] {
        let none = format!("belay_spans_lost_total{{reason=\"{reason}\"}} 0\n");
        assert!(scraped(&metrics).contains(&none), "{}", scraped(&metrics));
    }
}

#[tokio::test]
async fn content_goes_along_only_where_the_installation_says_so() {
    for (content, there) in [(Content::Left, false), (Content::Kept, true)] {
        let mut played = collector(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        let journal = open(folder.path()).await;
        let (export, _) = attend(&journal, to(&played.url), content).await;
        append(&journal, vec![accepted()]).await;
        append(&journal, middle()).await;
        append(&journal, ended()).await;
        export.end().await;
        let spans = played.spans(SPANS).await;
        assert_eq!(format!("{spans:?}").contains("what it said"), there);
    }
}

#[test]
fn certificates_that_are_not_there_are_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let named = Collector { ca_file: Some(path.clone()), ..to("https://otel:4318") };
    let told = |collector: Collector| match Exporter::new(collector, Metrics::default()) {
        Ok(_) => panic!("there is no certificate"),
        Err(error) => error.to_string(),
    };
    assert!(told(named.clone()).starts_with("BELAY_OTLP_CA_FILE"), "{}", told(named.clone()));
    std::fs::write(&path, "nothing of the kind").unwrap();
    assert!(told(named.clone()).ends_with("it holds no certificate in PEM"), "{}", told(named));
}
