//! What others see of a run: oteltap takes its spans, a real Prometheus scrapes the operator. `make graders` brings both.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::operator::Outlets;
use super::person::When;
use super::world::{Setting, World};
use super::{alone, an_unknown};

const PATIENCE: Duration = Duration::from_mins(1);

/// A process that ends with the test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A program that `make graders` found or fetched.
fn program(variable: &str, name: &str) -> PathBuf {
    let folder = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run e2e/graders/run"));
    Path::new(&folder).join("bin").join(name)
}

/// oteltap, and the lines that it prints: one a request, as JSON.
fn oteltap(port: u16) -> (Peer, mpsc::Receiver<String>) {
    let mut child = Command::new(program("BELAY_GRADERS", "oteltap"))
        .args(["--port", &port.to_string()])
        .env("PYTHONUNBUFFERED", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (lines, read) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
    let began = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < PATIENCE, "oteltap does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    (Peer(child), read)
}

/// The spans in what it printed: in a request as OTLP's JSON has it, or alone.
fn spans_in(line: &str) -> Vec<Value> {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return Vec::new() };
    let mut found = Vec::new();
    collect(&value, &mut found);
    found
}

fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) if object.contains_key("spanId") && object.contains_key("name") => {
            found.push(value.clone());
        }
        Value::Object(object) => object.values().for_each(|value| collect(value, found)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn attributes(span: &Value) -> BTreeMap<&str, &Value> {
    let all = span["attributes"].as_array().unwrap().iter();
    all.map(|it| (it["key"].as_str().unwrap(), it["value"].as_object().unwrap().values().next().unwrap())).collect()
}

/// A decision that waits for an earlier epoch's quarantine: whether one is made is a matter of time.
fn put_off(span: &Value) -> bool {
    attributes(span).get("belay.decision") == Some(&&json!("Later"))
}

/// A call that a person allows while the run waits without a pod, and of which she then says that it happened.
async fn a_run_in_three_epochs(outlets: Outlets) -> Setting {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut setting = Setting::prepare(alone(an_unknown()), When::Later).await.unwrap();
    setting.outlets = outlets;
    setting
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs oteltap: e2e/graders/run"]
async fn a_real_receiver_takes_the_spans_of_a_run_as_one_trace_across_its_epochs() {
    let port = free().port();
    let (_oteltap, lines) = oteltap(port);
    let otlp = Some(format!("http://127.0.0.1:{port}"));
    let setting = a_run_in_three_epochs(Outlets { http: None, otlp }).await;
    let outcome = World::play(&setting, &[]).await.unwrap();
    assert_eq!(outcome.run.status["phase"], "Succeeded", "{:#}", outcome.run.status);
    let mut spans: Vec<Value> = Vec::new();
    let named =
        |spans: &[Value], name: &str| spans.iter().filter(|span| span["name"] == name && !put_off(span)).count();
    let began = Instant::now();
    while named(&spans, "invoke_agent agent") < 1 || named(&spans, "epoch") < 3 {
        let line = lines.recv_timeout(PATIENCE.saturating_sub(began.elapsed()));
        spans.extend(spans_in(&line.unwrap_or_else(|_| panic!("not all came: {spans:#?}"))));
    }
    for (name, count) in [
        ("invoke_agent agent", 1),
        ("chat m", 2),
        ("decide counter/drop", 2),
        ("execute_tool counter/drop", 1),
        ("ask people", 2),
        ("epoch", 3),
        ("start a pod", 3),
    ] {
        assert_eq!(named(&spans, name), count, "{name}: {spans:#?}");
    }
    let root = spans.iter().find(|span| span["name"] == "invoke_agent agent").unwrap();
    let told = attributes(root);
    assert_eq!(
        (told["gen_ai.operation.name"], told["belay.run.outcome"]),
        (&json!("invoke_agent"), &json!("Succeeded"))
    );
    let epochs: Vec<&Value> = spans.iter().filter(|span| span["name"] == "epoch").collect();
    for span in &spans {
        assert_eq!(span["traceId"], root["traceId"], "{span:#}");
        let parents = match span["name"].as_str().unwrap() {
            "invoke_agent agent" => continue,
            "start a pod" => epochs.clone(),
            _ => vec![root],
        };
        assert!(parents.iter().any(|parent| parent["spanId"] == span["parentSpanId"]), "{span:#}");
    }
    let unknown = spans.iter().find(|span| span["name"] == "execute_tool counter/drop").unwrap();
    let told = attributes(unknown);
    assert_eq!((told["gen_ai.tool.name"], told["error.type"]), (&json!("counter/drop"), &json!("Unknown")));
    // What people, models and tools said stays where it was.
    assert!(!format!("{spans:?}").contains("Done."), "{spans:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Prometheus: e2e/graders/run"]
async fn a_real_prometheus_scrapes_what_a_run_used() {
    let (operator, own) = (free(), free());
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    let target = json!({"scrape_configs": [{"job_name": "belay", "scrape_interval": "200ms", "scrape_timeout": "200ms",
        "static_configs": [{"targets": [operator.to_string()]}]}]});
    std::fs::write(&config, target.to_string()).unwrap();
    let _prometheus = Peer(
        Command::new(program("BELAY_PROMETHEUS", "prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={own}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // It looks for targets some seconds after it began; the operator does not wait for it.
    let began = Instant::now();
    while asked(own, "count(up{job='belay'})").is_err() {
        assert!(began.elapsed() < PATIENCE, "Prometheus does not scrape");
        std::thread::sleep(Duration::from_millis(100));
    }
    let setting = a_run_in_three_epochs(Outlets { http: Some(operator), otlp: None }).await;
    let outcome = World::play(&setting, &[]).await.unwrap();
    assert_eq!(outcome.run.status["phase"], "Succeeded", "{:#}", outcome.run.status);
    // The operator is gone by now: what it said last.
    for (query, least) in [
        (
            "max_over_time(gen_ai_client_operation_duration_seconds_count{gen_ai_request_model='m',error_type=''}[5m])",
            1.0,
        ),
        ("max_over_time(gen_ai_execute_tool_duration_seconds_count{error_type='Unknown'}[5m])", 1.0),
        ("max_over_time(belay_approvals_pending{purpose='Unknown'}[5m])", 1.0),
    ] {
        let value = asked(own, query).unwrap_or_else(|answer| panic!("{query}: {answer}"));
        assert!(value >= least, "{query} is {value}");
    }
}

/// The one value of a query, or what Prometheus answered.
fn asked(prometheus: SocketAddr, query: &str) -> Result<f64, String> {
    let url = format!("http://{prometheus}/api/v1/query");
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--retry", "20", "--retry-connrefused", "--retry-delay", "1"])
        .args(["--get", "--data-urlencode", &format!("query={query}"), &url])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    let value = answer["data"]["result"][0]["value"][1].as_str().and_then(|value| value.parse().ok());
    value.ok_or(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
