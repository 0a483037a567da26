//! An MCP server that writes down every call that truly arrives, and the chat server beside it. Both have a place
//! before a request counts, after it, and after each piece of the answer.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Response;
use belay_e2e::counter::Arrived;
use futures::stream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::points::{Next, Points, Process};
use super::world::{LEAD, Scripts};

/// In a script: what the last call came to.
pub const HEARD: &str = "HEARD";

const OPERATIONS: [&str; 4] = ["add", "put", "drop", "ask"];

/// What arrived.
pub struct Outside {
    points: Arc<Points>,
    calls: Mutex<Vec<Arrived>>,
    /// Model and step of each model request.
    steps: Mutex<Vec<(String, u32)>>,
    /// The deltas of what is streamed.
    scripts: Scripts,
}

impl Outside {
    pub fn new(points: Arc<Points>, scripts: Scripts) -> Arc<Self> {
        Arc::new(Self { points, calls: Mutex::default(), steps: Mutex::default(), scripts })
    }

    pub fn calls(&self) -> Vec<Arrived> {
        self.calls.lock().clone()
    }

    pub fn steps(&self) -> Vec<(String, u32)> {
        self.steps.lock().clone()
    }

    /// Serves both on one address.
    pub async fn serve(self: Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/mcp", axum::routing::post(mcp).fallback(|| async { status(405) }))
            .route("/v1/chat/completions", axum::routing::post(chat))
            .with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }
}

async fn mcp(State(server): State<Arc<Outside>>, body: Bytes) -> Response<Body> {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let name = match request["method"].as_str().unwrap_or_default() {
        "tools/call" => format!("call {}", request["params"]["name"].as_str().unwrap_or_default()),
        method => method.to_owned(),
    };
    if let Some(answer) = server.stopped(&format!("before {name}")).await {
        return answer;
    }
    let Some(result) = server.result(&request) else { return status(202) };
    let drops = request["params"]["name"] == "drop";
    if let Some(answer) = server.stopped(&format!("after {name}")).await {
        return answer;
    }
    if drops {
        return cut();
    }
    let body = json!({"jsonrpc": "2.0", "id": request["id"], "result": result}).to_string();
    let (half, rest) = body.split_at(body.len() / 2);
    pieces("application/json", name, vec![half.to_owned(), rest.to_owned()], server.points.clone())
}

impl Outside {
    /// What is answered at `place` in place of what follows, where it is struck.
    async fn stopped(&self, place: &str) -> Option<Response<Body>> {
        match self.points.pass(place, Process::Runner).await {
            Next::Go => None,
            Next::Answer(code) => Some(status(code)),
            Next::Cut | Next::Lost => Some(cut()),
            Next::Never => std::future::pending().await,
        }
    }

    /// The answer, after the call was written down; none to a notification.
    fn result(&self, request: &Value) -> Option<Value> {
        let common = |mut result: Value| {
            result["resultType"] = json!("complete");
            result["ttlMs"] = json!(0);
            result["cacheScope"] = json!("private");
            result
        };
        let params = &request["params"];
        match request["method"].as_str().unwrap_or_default() {
            "server/discover" => {
                Some(common(json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})))
            }
            "tools/list" => {
                let schema = json!({"type": "object", "properties": {"id": {"type": "string"}}});
                let tool = |name| json!({"name": name, "description": name, "inputSchema": schema});
                Some(common(json!({"tools": OPERATIONS.map(tool)})))
            }
            "tools/call" => {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let name = text(&params["name"]).unwrap();
                let id = text(&params["arguments"]["id"]);
                if name == "ask" && !is_answered(params) {
                    return Some(question());
                }
                let content = told(&name, id.as_deref().unwrap_or_default());
                let key = text(&params["_meta"]["belay.dev/idempotency-key"]);
                self.calls.lock().push(Arrived { name, id, key });
                Some(common(json!({"content": [{"type": "text", "text": content}], "isError": false})))
            }
            _ => None,
        }
    }
}

const STATE: &str = "where it was";

/// Nothing happens before somebody says how many.
fn question() -> Value {
    let schema = json!({"type": "object", "required": ["many"], "properties": {"many": {"type": "integer"}}});
    let params = json!({"mode": "form", "message": "how many?", "requestedSchema": schema});
    let request = json!({"method": "elicitation/create", "params": params});
    json!({"resultType": "input_required", "inputRequests": {"q": request}, "requestState": STATE})
}

fn is_answered(params: &Value) -> bool {
    params["requestState"] == STATE
        && params["inputResponses"] == json!({"q": {"action": "accept", "content": {"many": 3}}})
}

/// What the server says that a call did.
pub fn told(operation: &str, id: &str) -> String {
    format!("{operation} {id} is done")
}

async fn chat(State(server): State<Arc<Outside>>, body: Bytes) -> Response<Body> {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let said = request["messages"].as_array().unwrap().iter().filter(|message| message["role"] == "assistant").count();
    let step = u32::try_from(said).unwrap() + 1;
    let model = request["model"].as_str().unwrap().to_owned();
    let (name, script) = match &server.scripts.lead {
        Some(lead) if model == LEAD => (format!("model request {step} of {model}"), lead),
        _ => (format!("model request {step}"), &server.scripts.own),
    };
    if let Some(answer) = server.stopped(&format!("before {name}")).await {
        return answer;
    }
    server.steps.lock().push((model, step));
    if let Some(answer) = server.stopped(&format!("after {name}")).await {
        return answer;
    }
    let Some(turn) = script.get(said) else { return status(400) };
    let heard = request["messages"].as_array().unwrap().last().unwrap()["content"].clone();
    let mut events: Vec<String> = turn
        .iter()
        .map(|choice| spoken(choice, &heard))
        .map(|choice| json!({"id": format!("r{step}"), "model": "m", "choices": [choice]}).to_string())
        .chain([json!({"id": "r", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}).to_string()])
        .collect();
    events.push("[DONE]".to_owned());
    let events = events.into_iter().map(|event| format!("data: {event}\n\n")).collect();
    pieces("text/event-stream", name, events, server.points.clone())
}

fn spoken(choice: &Value, heard: &Value) -> Value {
    let mut choice = choice.clone();
    if choice["delta"]["content"] == HEARD {
        choice["delta"]["content"] = heard.clone();
    }
    choice
}

/// An answer that comes in pieces.
fn pieces(content_type: &str, name: String, pieces: Vec<String>, points: Arc<Points>) -> Response<Body> {
    let many = pieces.len();
    let numbered = pieces.into_iter().enumerate();
    let sent =
        stream::unfold((numbered, None::<usize>, points, name), move |(mut numbered, sent, points, name)| async move {
            if let Some(sent) = sent {
                let place = format!("after piece {} of {many} of the answer to {name}", sent + 1);
                match points.pass(&place, Process::Runner).await {
                    Next::Go => {}
                    Next::Never => std::future::pending().await,
                    Next::Cut | Next::Lost | Next::Answer(_) => {
                        let broken = std::io::Error::other("broken on purpose");
                        return Some((Err(broken), (numbered, None, points, name)));
                    }
                }
            }
            let (number, piece) = numbered.next()?;
            Some((Ok(Bytes::from(piece)), (numbered, Some(number), points, name)))
        });
    let body = Body::from_stream(sent);
    Response::builder().header("content-type", content_type).body(body).unwrap()
}

/// A connection that breaks before its answer has begun: headers of an answer that never comes whole.
fn cut() -> Response<Body> {
    let broken = stream::once(async { Err::<Bytes, _>(std::io::Error::other("broken on purpose")) });
    Response::builder().header("content-type", "application/json").body(Body::from_stream(broken)).unwrap()
}

fn status(code: u16) -> Response<Body> {
    Response::builder().status(code).body(Body::empty()).unwrap()
}
