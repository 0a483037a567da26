//! Random secrets in every kind of credential, servers that give them back in every way that they can, and a model that
//! repeats what it was sent: afterwards no piece of one stands in anything that the runner wrote, said or was given.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use belay_protocol::event::{EndReason, Item};
use belay_protocol::network::ClusterRanges;
use belay_protocol::plan::{
    ClientAuthentication, ClientCredentials, Effects, Inject, PlanCredential, PlanModel, PlanTool,
};
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::runner_message::Body as FromRunner;
use belay_protocol::wire::{Bye, RunnerMessage};
use belay_protocol::{Event, Plan};
use belay_runner::config::{Config, Mode, OperatorAddress};
use belay_runner::log::WarningLine;
use belay_runner::models::scripted::Scripted;
use belay_runner::redact::Redactor;
use belay_runner::tools::mcp::McpServer;
use futures::StreamExt as _;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::fake_mcp::{Era, FakeMcp};
use crate::fake_operator::{Journal, Remote, Script, run, welcome};
use crate::grpc::Operator;
use crate::http::{Server, reply};
use crate::leaks::{self, LEAKS};
use crate::plans::{calls, chat, credential, mounted, plan, says, scripted, tool};
use crate::token_server::TokenServer;

/// Where the runner in the other process finds its operator and files.
const FOLDER: &str = "BELAY_TEST_CANARY";
/// No piece of a secret of so many bytes may show.
const WINDOW: usize = 8;
const KINDS: [&str; 4] = ["bearer", "basic", "query", "oauth"];

/// A value that no text holds by chance, with the characters that encoders change.
fn random(kind: &str) -> String {
    let letters = |count: usize| -> String {
        (0..count).map(|_| char::from(rand::Rng::sample(&mut rand::rng(), rand::distr::Alphanumeric))).collect()
    };
    match kind {
        // What an access token may be made of.
        "token" => format!("{}-._~+/{}", letters(16), letters(16)),
        _ => format!("{}\"/+ &{}%=?{}", letters(12), letters(12), letters(13)),
    }
}

struct Secrets {
    /// By the credential's name.
    values: Vec<(String, String)>,
    token_prefix: String,
}

impl Secrets {
    fn new() -> Self {
        let named = KINDS.iter().chain(&["model"]).map(|kind| ((*kind).to_owned(), random(kind)));
        Self { values: named.collect(), token_prefix: random("token") }
    }

    fn all(&self) -> Vec<&str> {
        let values = self.values.iter().map(|(_, value)| value.as_str());
        values.chain([self.token_prefix.as_str()]).collect()
    }

    fn mount(&self, folder: &Path) {
        for (name, value) in &self.values {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            std::fs::write(folder.join(name).join("value"), value).unwrap();
        }
    }
}

fn key(name: &str, inject: Inject) -> PlanCredential {
    PlanCredential { name: name.into(), uid: format!("{name}-uid"), inject, ..credential(&["127.0.0.1"]) }
}

fn plan_of(model: &Leaky, servers: &[FakeMcp], tokens: &TokenServer) -> Plan {
    let client = ClientCredentials {
        token_url: tokens.url(),
        ca: None,
        client_id: "belay".into(),
        scopes: vec!["read".into()],
        audience: None,
        resource: None,
        authentication: ClientAuthentication::Header,
    };
    let injects = [
        Inject::Bearer {},
        Inject::Basic { username: "ada".into() },
        Inject::Query { name: "key".into() },
        Inject::ClientCredentials(client),
    ];
    let tools = KINDS.iter().zip(servers).map(|(kind, server)| {
        let mut tool = tool(&server.url(), &LEAKS);
        tool.name = (*kind).into();
        tool.credential = Some((*kind).into());
        for operation in &mut tool.operations {
            operation.model_name = format!("{kind}__{}", operation.name);
            // A leak that leaves no answer is tried again, and then goes back as an error.
            operation.effects = Effects::None;
        }
        tool
    });
    let mut plan =
        plan(PlanModel { credential: Some("model".into()), ..chat(&model.url) }, tools.collect::<Vec<PlanTool>>());
    plan.credentials = KINDS.iter().zip(injects).map(|(kind, inject)| key(kind, inject)).collect();
    plan.credentials.push(key("model", Inject::Header { name: "x-api-key".into(), format: "{}".into() }));
    plan
}

/// A model's server that repeats its key.
#[derive(Clone)]
struct Leaky {
    url: String,
    carried: Arc<Mutex<Vec<String>>>,
    /// Requests so far, their bodies.
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Leaky {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let server = Self { url, carried: Arc::default(), asked: Arc::default() };
        let router = Router::new().fallback(repeat).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }
}

async fn repeat(State(server): State<Leaky>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let key = leaks::carried(&uri, &headers).concat();
    server.carried.lock().unwrap().push(key.clone());
    let turn = {
        let mut asked = server.asked.lock().unwrap();
        asked.push(body.to_vec());
        asked.len()
    };
    let chunk = |delta: serde_json::Value, finish: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        json!({"id": format!("chat-{key}"), "object": "chat.completion.chunk", "model": format!("m-{key}"), "choices": [choice]})
    };
    let call = |index: usize, id: &str, name: &str, arguments: &str| json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    match turn {
        // Every leak of every tool.
        1 => {
            let names = KINDS.iter().flat_map(|kind| LEAKS.map(|leak| format!("{kind}__{leak}")));
            let calls: Vec<_> =
                names.enumerate().map(|(at, name)| call(at, &format!("call-{at}"), &name, "{}")).collect();
            stream(&[chunk(json!({"tool_calls": calls}), None), chunk(json!({}), Some("tool_calls"))], None)
        }
        // Its own key: as text that is cut in two, as reasoning, and in calls.
        2 => {
            let (begin, end) = key.split_at(key.len() / 2);
            let forms = leaks::forms(&key);
            let arguments = json!({"text": forms.join(" ")}).to_string();
            let calls = [
                call(0, &format!("call-{key}"), "bearer__leak-text", &arguments),
                call(1, "call-b", "bearer__leak-text", &json!({&key: 1}).to_string()),
                call(2, "call-c", &format!("bearer__{key}"), "{}"),
            ];
            let chunks = [
                chunk(json!({"content": format!("my key: {begin}")}), None),
                chunk(json!({"content": format!("{end}, {}", forms.join(" "))}), None),
                chunk(json!({"reasoning_content": format!("I was given {key}")}), None),
                chunk(json!({"tool_calls": calls}), Some("tool_calls")),
            ];
            stream(&chunks, Some(&key))
        }
        // A status that is tried again, with a body that is cut within a value.
        3 => status(500, "content-type", "text/plain", key.repeat(16 * 1024 / key.len() + 2).into()),
        4 => status(
            200,
            "content-type",
            "text/event-stream",
            format!("data: {{\"oh\": {}\n\n", json!([key.repeat(60)])).into(),
        ),
        5 => status(
            200,
            "content-type",
            "text/event-stream",
            format!("data: {}\n\n", json!({"error": {"message": key.repeat(60), "type": "server_error"}})).into(),
        ),
        _ => {
            let body = leaks::gzip(key.as_bytes());
            let builder = Response::builder().status(400).header("content-encoding", "gzip");
            builder.body(Body::from(body)).unwrap()
        }
    }
}

fn status(code: u16, name: &str, value: &str, body: Body) -> Response<Body> {
    Response::builder().status(code).header(name, value).body(body).unwrap()
}

/// An event stream, cut in the middle of every `key`.
fn stream(chunks: &[serde_json::Value], key: Option<&str>) -> Response<Body> {
    let body: String =
        chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect::<Vec<_>>().concat() + "data: [DONE]\n\n";
    let length = key.map_or(body.len(), |key| key.len() / 2);
    let pieces: Vec<Bytes> = body.as_bytes().chunks(length).map(Bytes::copy_from_slice).collect();
    let stream = futures::stream::iter(pieces).then(|piece| async move {
        tokio::task::yield_now().await;
        Ok::<_, std::io::Error>(piece)
    });
    status(200, "content-type", "text/event-stream", Body::from_stream(stream))
}

/// The runner of the test below, in a process of its own.
#[tokio::test]
#[ignore = "started by the canary test"]
async fn the_canarys_runner() {
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    let file = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .event_format(WarningLine)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(std::io::stderr)
        .init();
    let config = Config {
        operator: OperatorAddress::parse(file("url"), file("ca.pem")).unwrap(),
        mode: Mode::Run,
        pod_name: "belay-run-x".into(),
        token_file: folder.join("token"),
        credentials_folder: folder.join("credentials"),
        documents_folder: folder.join("documents"),
        authorities_folder: folder.join("authorities"),
        egress_proxy: None,
        cluster_ranges: ClusterRanges::default(),
    };
    belay_runner::run::run(&config, "instance-1".into(), std::future::pending()).await.unwrap();
}

/// Everything that came out of a runner.
struct Traces {
    /// What the operator was sent, and would write down.
    messages: Vec<u8>,
    output: Vec<u8>,
    process: Vec<u8>,
}

async fn run_elsewhere(plan: &Plan, secrets: &Secrets) -> (Traces, Journal) {
    let mut operator = Operator::start().await;
    let folder = operator.folder.path().to_owned();
    secrets.mount(&folder.join("credentials"));
    std::fs::write(folder.join("url"), &operator.config.operator.url).unwrap();
    std::fs::write(folder.join("ca.pem"), &operator.config.operator.ca_pem).unwrap();
    let mut runner = Command::new(std::env::current_exe().unwrap())
        .args(["canary::the_canarys_runner", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, &folder)
        // Nobody is there: what goes that way does not arrive.
        .envs(["http_proxy", "https_proxy", "all_proxy"].map(|name| (name, "http://127.0.0.1:1")))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdout, mut stderr) = (runner.stdout.take().unwrap(), runner.stderr.take().unwrap());
    let output = tokio::spawn(async move {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (first, second) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        first.unwrap();
        second.unwrap();
        out.extend(err);
        out
    });
    let remote = Remote::start(plan, Script::default());
    let (mut session, _hello) = operator.greeted().await;
    session.say(FromOperator::Welcome(welcome(plan))).await;
    let mut messages = Vec::new();
    while remote.over().is_none() {
        let message: RunnerMessage = session.incoming.message().await.unwrap().unwrap();
        messages.extend(prost_bytes(&message));
        if let Some(FromRunner::Batch(batch)) = message.body {
            session.say(FromOperator::Ack(remote.append(batch.events).await)).await;
        }
    }
    let proc = PathBuf::from(format!("/proc/{}", runner.id().unwrap()));
    let process = ["cmdline", "environ"].map(|file| std::fs::read(proc.join(file)).unwrap()).concat();
    session.say(FromOperator::Bye(Bye { reason: remote.over().unwrap() })).await;
    assert!(runner.wait().await.unwrap().success());
    (Traces { messages, output: output.await.unwrap(), process }, remote.journal().await)
}

fn prost_bytes(message: &RunnerMessage) -> Vec<u8> {
    match &message.body {
        Some(FromRunner::Batch(batch)) => batch.events.concat(),
        other => format!("{other:?}").into_bytes(),
    }
}

/// Pieces of `secret` in `text`, in any of the forms that are promised.
fn pieces_of(secret: &str, text: &[u8]) -> Vec<String> {
    let mut forms = vec![secret.as_bytes().to_vec()];
    forms.extend(leaks::forms(secret).into_iter().map(String::into_bytes));
    forms.push(
        json!(secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat())
            .to_string()
            .into_bytes(),
    );
    for before in 0..3 {
        // Only what the value alone decides: whatever stands around it in the same base64.
        let whole = [&b"xyz"[..before], secret.as_bytes()].concat();
        let core =
            |encoded: String| encoded.as_bytes()[[0, 2, 3][before]..encoded.trim_end_matches('=').len() - 1].to_vec();
        forms.push(core(STANDARD.encode(&whole)));
        forms.push(core(URL_SAFE_NO_PAD.encode(&whole)));
    }
    let there: HashSet<&[u8]> = text.windows(WINDOW).collect();
    let windows = forms.iter().flat_map(|form| form.windows(WINDOW));
    windows.filter(|window| there.contains(window)).map(|window| String::from_utf8_lossy(window).into_owned()).collect()
}

/// What stands around the first piece.
fn around(text: &[u8], pieces: &[String]) -> String {
    let Some(piece) = pieces.first() else { return String::new() };
    let at = text.windows(WINDOW).position(|window| window == piece.as_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&text[at.saturating_sub(200)..text.len().min(at + 200)]).into_owned()
}

#[tokio::test]
async fn no_piece_of_a_secret_shows_in_anything_that_a_runner_writes_says_or_is_given() {
    let secrets = Secrets::new();
    let elsewhere = Server::start(vec![reply(200, "application/json", "{}")]).await;
    let tokens = TokenServer::giving(&secrets.token_prefix, 3600).await;
    let model = Leaky::start().await;
    let mut servers = Vec::new();
    for era in [Era::Sessions, Era::Stateless, Era::Sessions, Era::Stateless] {
        let mut server = FakeMcp::start(era, &LEAKS).await;
        server.elsewhere = elsewhere.url("/");
        servers.push(server);
    }
    let plan = plan_of(&model, &servers, &tokens);
    let ran = tokio::time::timeout(Duration::from_mins(2), run_elsewhere(&plan, &secrets));
    let (traces, journal) = ran.await.expect("the run ends");

    for secret in secrets.all() {
        let traces = [("messages", &traces.messages), ("output", &traces.output), ("process", &traces.process)];
        for (name, trace) in traces {
            let pieces = pieces_of(secret, trace);
            assert!(pieces.is_empty(), "in {name}: {pieces:?} in {}", around(trace, &pieces));
        }
        let seen = model.asked.lock().unwrap().concat();
        let pieces = pieces_of(secret, &seen);
        assert!(pieces.is_empty(), "sent to the model: {pieces:?} in {}", around(&seen, &pieces));
    }
    assert!(elsewhere.received().is_empty(), "redirects and metadata are not followed");
    assert_leaked(&secrets, &servers, &model, &journal);
}

/// That there was something to leak: every server got its secret, and gave it back.
fn assert_leaked(secrets: &Secrets, servers: &[FakeMcp], model: &Leaky, journal: &Journal) {
    for ((kind, server), (_, value)) in KINDS.iter().zip(servers).zip(&secrets.values) {
        // One of the leaks refuses a token, and the next call carries another one.
        let tokens = [1, 2].map(|number| format!("{}{number}", secrets.token_prefix));
        let expected = if *kind == "oauth" { &tokens[..] } else { std::slice::from_ref(value) };
        let carried = server.carried.lock().unwrap();
        assert!(
            carried.len() > LEAKS.len() && carried.iter().all(|sent| expected.contains(sent)),
            "{kind}: {carried:?}"
        );
        assert!(expected.iter().all(|sent| carried.contains(sent)), "{kind}: {carried:?}");
        let called = server.called_operations();
        assert!(LEAKS.iter().all(|leak| called.iter().any(|operation| operation == leak)), "{kind}: {called:?}");
    }
    assert!(model.carried.lock().unwrap().iter().all(|sent| *sent == secrets.values[4].1));
    let end = journal.end();
    assert_eq!(end.reason, EndReason::ModelFailed, "{end:?}");
    let marked = |text: &str| text.contains("[credential ") && text.contains(" redacted]");
    let responses = journal.events().filter_map(|event| match event {
        Event::ModelResponded { response, .. } => Some(response),
        _ => None,
    });
    let marked_items = responses.flat_map(|response| &response.items).filter(|item| match item {
        Item::Text { text } | Item::Reasoning { text, .. } => marked(text),
        Item::ToolCall { name, arguments, .. } => marked(name) || marked(arguments),
        Item::Block { .. } => false,
    });
    assert_eq!(marked_items.count(), 5, "text, reasoning and three calls");
    let results = journal.events().filter_map(|event| match event {
        Event::CallObserved { result, .. } => Some(result.content.as_str()),
        _ => None,
    });
    let results: Vec<&str> = results.collect();
    assert!(results.iter().filter(|result| marked(result)).count() >= 4 * 6, "{results:#?}");
}

#[tokio::test]
async fn a_key_that_is_changed_in_mid_run_is_used_from_the_next_request_on_and_neither_shows() {
    let (old, new) = (random("key"), random("key"));
    let server = FakeMcp::start(Era::Sessions, &["held", "leak-text"]).await;
    let turns = vec![
        calls(&[("held", json!({}))]),
        calls(&[("leak-text", json!({})), ("leak-text", json!({"text": &old})), ("leak-text", json!({"text": &new}))]),
        says(&format!("it was {old} and is {new}")),
    ];
    let mut plan = plan(scripted(turns), vec![tool(&server.url(), &["held", "leak-text"])]);
    plan.tools[0].credential = Some("key".into());
    plan.credentials.push(credential(&["127.0.0.1"]));
    let (folder, credentials) = mounted(&[("key", &old)]);
    let (watched, file, value) = (server.clone(), folder.path().join("key/value"), new.clone());
    tokio::spawn(async move {
        watched.until_called(1).await;
        std::fs::write(file, value).unwrap();
        watched.release();
    });
    let redactor = Redactor::new(credentials.clone(), &plan.credentials);
    let mcp = McpServer::of_plan(&plan, &plan.tools[0], credentials.clone(), redactor).unwrap();
    let model = Box::new(Scripted::new(&plan, &plan.model));
    let servers = vec![(plan.tools[0].name.clone(), Box::new(mcp) as _)];
    let journal = run(plan, Script::default(), vec![model], servers, credentials).await;
    let carried = server.carried.lock().unwrap().clone();
    assert_eq!((carried.first(), carried.last()), (Some(&old), Some(&new)));
    assert_eq!(server.called_operations(), ["held", "leak-text"], "arguments that hold either are refused");
    let reported = serde_json::to_vec(&journal.batches).unwrap();
    for secret in [&old, &new] {
        let pieces = pieces_of(secret, &reported);
        assert!(pieces.is_empty(), "{pieces:?} in {}", around(&reported, &pieces));
    }
}
