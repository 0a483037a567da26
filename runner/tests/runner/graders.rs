//! Others judge the codecs: the official Python clients read the same streams and our requests, and llmock breaks on
//! demand and says how we took it. `make graders` runs these; they want Python packages.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use belay_protocol::event::Outcome;
use belay_protocol::plan::{Effort, ModelApi, PlanModel, Reasoning};
use rstest::rstest;
use serde_json::{Value, json};

use crate::answers::Format;
use crate::asking::{run_model, run_plan, sse};
use crate::codecs::recorded;
use crate::fake_mcp::{Era, FakeMcp};
use crate::http::Server;
use crate::plans::{chat, messages, plan, responses, tool};

/// The folder of the Python environment.
pub fn graders() -> PathBuf {
    std::env::var_os("BELAY_GRADERS").expect("run these with `make graders`").into()
}

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks the official clients, one question after the other.
fn ask_clients(questions: &[Value]) -> Vec<Value> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../e2e/graders/clients.py");
    let mut command = Command::new(graders().join("bin/python"));
    let mut clients = Process(command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut stdin = clients.0.stdin.take().unwrap();
    let mut lines = BufReader::new(clients.0.stdout.take().unwrap()).lines();
    let ask = |question: &Value| {
        writeln!(stdin, "{question}").unwrap();
        serde_json::from_str(&lines.next().expect("an answer").unwrap()).unwrap()
    };
    questions.iter().map(ask).collect()
}

/// A client that keeps the value of arguments alone is compared by it; of arguments that were cut it makes its own.
fn comparable(mut answer: Value) -> Value {
    for item in answer["items"].as_array_mut().unwrap() {
        if let Some(arguments) = item.pointer_mut("/call/arguments") {
            let value = match &*arguments {
                Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
                value => value.clone(),
            };
            *arguments = value;
        }
    }
    answer
}

#[test]
#[ignore = "wants Python packages: make graders"]
fn official_clients_read_the_same_streams_to_the_same_answers() {
    for api in ["chat", "responses", "messages"] {
        let streams = recorded(api);
        let questions: Vec<Value> = streams.iter().map(|stream| json!({"api": api, "stream": stream.path})).collect();
        for (stream, theirs) in streams.iter().zip(ask_clients(&questions)) {
            assert!(theirs.get("refused").is_none(), "{}: {theirs:#}", stream.name);
            let (mut theirs, mut ours) = (theirs, stream.expected.clone());
            if api == "messages" {
                (theirs, ours) = (comparable(theirs), comparable(ours));
                for (their, our) in
                    theirs["items"].as_array_mut().unwrap().iter_mut().zip(ours["items"].as_array().unwrap())
                {
                    if our.pointer("/call/arguments").is_some_and(Value::is_null) {
                        their["call"]["arguments"] = Value::Null;
                    }
                }
            }
            assert_eq!(theirs, ours, "{}", stream.name);
        }
    }
}

fn of(api: &str, base_url: &str) -> PlanModel {
    match api {
        "chat" => chat(base_url),
        "responses" => responses(base_url),
        _ => messages(base_url),
    }
}

#[rstest]
#[case("chat", "reasoning_and_calls")]
#[case("chat", "cut_in_a_call")]
#[case("responses", "reasoning_and_calls")]
#[case("responses", "incomplete_with_calls")]
#[case("messages", "thinking_and_calls")]
#[case("messages", "cut_in_a_call")]
#[ignore = "wants Python packages: make graders"]
#[tokio::test]
async fn official_clients_know_every_field_of_our_requests(#[case] api: &str, #[case] stream: &str) {
    let streams = recorded(api);
    let bytes = |name: &str| {
        let stream = streams.iter().find(|stream| stream.name == format!("{api}/{name}")).unwrap();
        sse(str::from_utf8(&stream.bytes).unwrap())
    };
    let server = Server::start(vec![bytes(stream), bytes("text")]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo", "fail"]).await;
    // Anthropic's client has no temperature any more; its older models and other servers take one.
    let temperature = (api != "messages").then_some(0.5);
    let model = PlanModel { max_output_tokens: Some(99), temperature, ..of(api, &server.url("/v1")) };
    run_model(model, &mcp, &["echo", "fail"]).await;
    let mut sent = server.bodies();
    assert_eq!(sent.len(), 2);
    // No part of the standard: it goes back to whoever said it.
    for message in sent.iter_mut().filter(|_| api == "chat").flat_map(|body| body["messages"].as_array_mut().unwrap()) {
        message.as_object_mut().unwrap().remove("reasoning_content");
    }
    let questions: Vec<Value> = sent.iter().map(|body| json!({"api": api, "request": body})).collect();
    for (body, judged) in sent.iter().zip(ask_clients(&questions)) {
        assert_eq!(&judged["accepted"], body, "{}", judged["refused"]);
    }
}

/// What of a request only some Models and Agents ask for.
#[rstest]
#[case(Format::Chat, Effort::Minimal, None)]
#[case(Format::Responses, Effort::None, None)]
#[case(Format::Messages, Effort::High, None)]
#[case(Format::Messages, Effort::None, None)]
#[case(Format::Messages, Effort::Low, Some(2048))]
#[ignore = "wants Python packages: make graders"]
#[tokio::test]
async fn official_clients_know_what_settings_add_to_our_requests(
    #[case] format: Format,
    #[case] effort: Effort,
    #[case] budget_tokens: Option<u64>,
) {
    let server = Server::start(vec![format.says("no"), format.says(r#"{"area": "ui"}"#)]).await;
    let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let reasoning = Some(Reasoning { effort: Some(effort), budget_tokens });
    let model = PlanModel { reasoning, max_output_tokens: Some(4096), ..format.model(&server.url("/v1")) };
    let mut plan = plan(model, vec![tool(&mcp.url(), &["echo"])]);
    plan.output_schema = Some(json!({"type": "object", "properties": {"area": {"type": "string"}},
        "required": ["area"], "additionalProperties": false}));
    run_plan(plan, &[]).await;
    let api = match format {
        Format::Chat => "chat",
        Format::Responses => "responses",
        Format::Messages => "messages",
    };
    let sent = server.bodies();
    assert_eq!(sent.len(), 2);
    let questions: Vec<Value> = sent.iter().map(|body| json!({"api": api, "request": body})).collect();
    for (body, judged) in sent.iter().zip(ask_clients(&questions)) {
        assert_eq!(&judged["accepted"], body, "{}", judged["refused"]);
    }
}

/// llmock on loopback.
struct Judge {
    _process: Process,
    url: String,
    http: reqwest::Client,
}

impl Judge {
    async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(graders().join("bin/llmock"));
        command.args(["serve", "--host", "127.0.0.1", "--log-level", "error", "--port", &port.to_string()]);
        // As slow as a model, so that it notices who stops reading.
        command.args(["--stream-chunk-delay-ms", "20"]);
        let process = Process(command.stdout(Stdio::null()).spawn().unwrap());
        let url = format!("http://127.0.0.1:{port}");
        let judge = Self { _process: process, url, http: reqwest::Client::builder().no_proxy().build().unwrap() };
        let listens = async {
            while judge.http.get(format!("{}/_llmock/scenario", judge.url)).send().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), listens).await.expect("llmock listens");
        judge
    }

    async fn post(&self, path: &str, body: &Value) {
        let sent = self.http.post(format!("{}/_llmock/{path}", self.url)).json(body).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
    }

    async fn get(&self, path: &str) -> Value {
        self.http.get(format!("{}/_llmock/{path}", self.url)).send().await.unwrap().json().await.unwrap()
    }
}

struct Scene {
    behaviors: Value,
    outcome: Outcome,
    /// How many it counts of them at least; slow answers and broken calls count as none.
    faults: u64,
}

fn scene(outcome: Outcome, faults: u64, behaviors: Value) -> Scene {
    Scene { behaviors, outcome, faults }
}

fn scenes() -> Vec<Scene> {
    let fails = |status: u16, outcome| scene(outcome, 1, json!([{"type": "fail", "status": status}]));
    let breaks = |kind: &str, after: u32| {
        scene(
            Outcome::Succeeded,
            1,
            json!([{"type": "stream_fault", "kind": kind, "after_chunks": after, "stall_seconds": 3}]),
        )
    };
    let mut scenes = vec![
        scene(Outcome::Succeeded, 2, json!([{"type": "fail", "status": 429, "retry_after": 1.0, "times": 2}])),
        scene(Outcome::Succeeded, 3, json!([{"type": "fail", "status": 529, "times": 3}])),
        scene(Outcome::Failed, 5, json!([{"type": "fail", "status": 503, "times": null}])),
        scene(Outcome::Succeeded, 0, json!([{"type": "slow_first_token", "seconds": 0.5}])),
        scene(Outcome::Succeeded, 0, json!([{"type": "tool_fault", "kind": "malformed_arguments"}])),
        scene(Outcome::Succeeded, 0, json!([{"type": "tool_fault", "kind": "unknown_tool"}])),
    ];
    scenes.extend([408, 409, 500, 502, 504].map(|status| fails(status, Outcome::Succeeded)));
    scenes.extend([400, 401, 403, 404, 422].map(|status| fails(status, Outcome::Failed)));
    for after in [0, 1, 3] {
        scenes.extend(["disconnect", "truncate", "malformed", "stall"].map(|kind| breaks(kind, after)));
    }
    scenes
}

#[rstest]
#[case::chat(ModelApi::ChatCompletions, "/v1")]
#[case::responses(ModelApi::Responses, "/v1")]
#[case::messages(ModelApi::Messages, "/anthropic/v1")]
#[ignore = "wants Python packages: make graders"]
#[tokio::test]
async fn a_judge_that_breaks_on_demand_finds_nothing(#[case] api: ModelApi, #[case] path: &str) {
    let judge = Judge::start().await;
    for Scene { behaviors, outcome, faults } in scenes() {
        judge.post("reset", &json!({})).await;
        judge.post("scenario", &json!({"behaviors": behaviors})).await;
        let mcp = FakeMcp::start(Era::Sessions, &["echo"]).await;
        let mut model = PlanModel { api, ..messages(&format!("{}{path}", judge.url)) };
        model.timeouts.idle_seconds = 1;
        let journal = run_model(model, &mcp, &["echo"]).await;
        let verdict = judge.get("verdict").await;
        assert_eq!(journal.end().outcome, outcome, "{behaviors}: {}", journal.end().message);
        assert_eq!(verdict["findings"], json!([]), "{behaviors}: {verdict:#}");
        let pending = judge.get("scenario").await["pending"].clone();
        assert!(pending == json!([]) || pending[0]["times"].is_null(), "{behaviors}: {pending}");
        assert!(verdict["faults_injected"].as_u64().unwrap() >= faults, "{behaviors}: {verdict:#}");
    }
}
