//! A small MCP server on loopback, of either era, whose operations misbehave on request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

use crate::inquiries;
use crate::leaks;
use crate::news::{self, News};
use crate::plans::definition;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// 2025-11-25 and older: initialize and a session id.
    Sessions,
    /// 2026-07-28: every request stands alone.
    Stateless,
}

#[derive(Clone)]
pub struct FakeMcp {
    pub address: SocketAddr,
    era: Era,
    operations: Arc<Vec<&'static str>>,
    /// Operations that were called, in order, with their arguments.
    called: Arc<Mutex<Vec<(String, Value)>>>,
    /// The keys that calls carried.
    keys: Arc<Mutex<Vec<Option<String>>>>,
    /// How many calls have arrived, for tests that wait for one.
    arrivals: Arc<watch::Sender<usize>>,
    /// Listings that are refused with 502 before one goes well.
    pub refused_listings: Arc<Mutex<u32>>,
    /// Lets a call to `held` end.
    release: Arc<tokio::sync::Notify>,
    pub authorizations: Arc<Mutex<Vec<Option<String>>>>,
    /// What clients answered to requests of this server.
    responses: Arc<broadcast::Sender<Value>>,
    /// The secrets that requests carried, whatever header or parameter they stood in.
    pub carried: Arc<Mutex<Vec<String>>>,
    /// Where leaks redirect to.
    pub elsewhere: String,
    /// What it says besides its answers, and what clients say besides their requests.
    pub news: News,
}

impl FakeMcp {
    pub async fn start(era: Era, operations: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self {
            address,
            era,
            operations: Arc::new(operations.to_vec()),
            called: Arc::default(),
            keys: Arc::default(),
            arrivals: Arc::new(watch::channel(0).0),
            refused_listings: Arc::default(),
            release: Arc::default(),
            authorizations: Arc::default(),
            responses: Arc::new(broadcast::channel(64).0),
            carried: Arc::default(),
            elsewhere: format!("http://{address}/elsewhere"),
            news: News::default(),
        };
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub fn called(&self) -> Vec<(String, Value)> {
        self.called.lock().unwrap().clone()
    }

    pub fn called_operations(&self) -> Vec<String> {
        self.called().into_iter().map(|(operation, _)| operation).collect()
    }

    pub fn keys(&self) -> Vec<Option<String>> {
        self.keys.lock().unwrap().clone()
    }

    fn refuses_listing(&self) -> bool {
        let mut left = self.refused_listings.lock().unwrap();
        let refused = *left > 0;
        *left = left.saturating_sub(1);
        refused
    }

    pub fn release(&self) {
        self.release.notify_one();
    }

    pub async fn until_called(&self, times: usize) {
        self.arrivals.subscribe().wait_for(|arrived| *arrived >= times).await.unwrap();
    }
}

async fn serve(
    State(server): State<FakeMcp>,
    method: axum::http::Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let carried = leaks::carried(&uri, &headers);
    server.carried.lock().unwrap().extend(carried.iter().cloned());
    if method == axum::http::Method::GET && server.news.tells() {
        return server.news.beside();
    }
    if method != axum::http::Method::POST {
        return status(405, "");
    }
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    server.authorizations.lock().unwrap().push(authorization.clone());
    let request: Value = serde_json::from_slice(&body).unwrap();
    let id = request["id"].clone();
    if request["method"].is_null() {
        let _ = server.responses.send(request);
        return status(202, "");
    }
    match (request["method"].as_str().unwrap_or_default(), server.era) {
        ("server/discover", Era::Stateless) => {
            let result = json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": server.news.capabilities(),
                "ttlMs": 0, "cacheScope": "private",
            });
            answer(&id, &result)
        }
        ("initialize", Era::Sessions) => {
            let result = json!({
                "protocolVersion": "2025-11-25", "capabilities": server.news.capabilities(),
                "serverInfo": {"name": "fake", "version": "1"},
            });
            let mut response = answer(&id, &result);
            response.headers_mut().insert("mcp-session-id", "session-1".parse().unwrap());
            response
        }
        ("notifications/initialized", _) => status(202, ""),
        ("notifications/cancelled", _) => {
            server.news.cancelled.send_modify(|ids| ids.push(request["params"]["requestId"].clone()));
            status(202, "")
        }
        ("subscriptions/listen", Era::Stateless) if server.news.tells() => server.news.subscription(&id),
        ("tools/list", _) if server.refuses_listing() => status(502, "not now"),
        ("tools/list", _) => {
            let sent = authorization.unwrap_or_default();
            answer(&id, &page(&server, &request["params"]["cursor"], &sent))
        }
        ("tools/call", _) => call(&server, &id, &request["params"], (authorization, carried.concat())).await,
        (other, _) => rpc_error(&id, -32601, &format!("no method {other}")),
    }
}

/// Two operations a page. Those that tell describe themselves by what the request was sent with.
fn page(server: &FakeMcp, cursor: &Value, sent: &str) -> Value {
    let start: usize = cursor.as_str().map_or(0, |cursor| cursor.parse().unwrap());
    if start == 0 {
        *server.news.listings.lock().unwrap() += 1;
    }
    let define = |name: &&'static str| {
        let mut definition = server.news.define(name, definition(name));
        if name.starts_with("tells-") {
            definition["description"] = json!(format!("You sent {sent}."));
        }
        definition
    };
    let tools: Vec<Value> = server.operations.iter().skip(start).take(2).map(define).collect();
    let next = start + tools.len();
    let mut result = json!({"resultType": "complete", "tools": tools, "ttlMs": 0, "cacheScope": "private"});
    if next < server.operations.len() {
        result["nextCursor"] = json!(next.to_string());
    }
    result
}

async fn call(
    server: &FakeMcp,
    id: &Value,
    params: &Value,
    (authorization, carried): (Option<String>, String),
) -> Response<Body> {
    let operation = params["name"].as_str().unwrap();
    server.called.lock().unwrap().push((operation.to_owned(), params["arguments"].clone()));
    let key = params["_meta"]["belay.dev/idempotency-key"].as_str().map(str::to_owned);
    server.keys.lock().unwrap().push(key);
    server.arrivals.send_modify(|arrived| *arrived += 1);
    let text = |text: &str, is_error: bool| json!({"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": is_error});
    let rpc = |result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
    match operation {
        "echo" => answer(id, &text(params["arguments"]["text"].as_str().unwrap_or("nothing"), false)),
        "stream" => {
            let notice = json!({"jsonrpc": "2.0", "method": "notifications/message",
                "params": {"level": "info", "data": "working"}});
            let body = format!("data: {notice}\n\nid: 1\ndata: {}\n\n", rpc(text("streamed", false)));
            sse(Body::from(body))
        }
        "fail" => answer(id, &text("it did not work", true)),
        "image" => {
            let image = json!({"type": "image", "mimeType": "image/png", "data": "iVBORw0KGgo="});
            answer(id, &json!({"resultType": "complete", "content": [{"type": "text", "text": "look:"}, image]}))
        }
        "rpc-error" => rpc_error(id, -32602, "no such thing"),
        "leak" => answer(id, &text(&format!("you sent {}", authorization.unwrap_or_default()), false)),
        leaking if leaking.starts_with("leak-") => leaks::leak(id, leaking, &carried, &server.elsewhere),
        "huge" => answer(id, &text(&"x".repeat(300 * 1024), false)),
        "held" => {
            server.release.notified().await;
            answer(id, &text("late", false))
        }
        "hang" => {
            server.news.hung.lock().unwrap().push(id.clone());
            std::future::pending().await
        }
        "linger" => {
            server.news.hung.lock().unwrap().push(id.clone());
            sse(server.news.lingering())
        }
        telling if news::tells_in_call(telling) => {
            sse(server.news.in_call(telling, &params["_meta"]["progressToken"], rpc(text(telling, false))))
        }
        "nag" => {
            let asks = (0u32..).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
            let events = futures::stream::iter(asks.map(|ask| Ok::<_, std::io::Error>(format!("data: {ask}\n\n"))));
            sse(Body::from_stream(events))
        }
        "cut" => sse(Body::from(": nothing more comes\n\n")),
        "break" => {
            let first = futures::stream::once(async { Ok(Bytes::from(": and gone\n\n")) });
            let broken = futures::stream::once(async { Err(std::io::Error::other("broken on purpose")) });
            sse(Body::from_stream(first.chain(broken)))
        }
        "bad-gateway" => status(502, "upstream lost"),
        "too-many" => status(429, "slow down"),
        "forbidden" => status(403, "not yours"),
        "redirect" => Response::builder().status(307).header("location", "/elsewhere").body(Body::empty()).unwrap(),
        "web-page" => Response::builder().header("content-type", "text/html").body("<html>".into()).unwrap(),
        "expired" => status(404, "no such session"),
        asks if asks.starts_with("ask") => match server.era {
            Era::Sessions => inquiries::in_call(id, asks, server.responses.subscribe()),
            Era::Stateless => answer(id, &inquiries::in_result(asks, params)),
        },
        "needs-page" => json_response(&inquiries::needs_page(id)),
        other => rpc_error(id, -32602, &format!("unknown tool {other}")),
    }
}

fn answer(id: &Value, result: &Value) -> Response<Body> {
    json_response(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn rpc_error(id: &Value, code: i32, message: &str) -> Response<Body> {
    json_response(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}))
}

fn json_response(body: &Value) -> Response<Body> {
    Response::builder().header("content-type", "application/json").body(body.to_string().into()).unwrap()
}

pub fn sse(body: Body) -> Response<Body> {
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

fn status(code: u16, body: &str) -> Response<Body> {
    Response::builder().status(code).body(body.to_owned().into()).unwrap()
}
