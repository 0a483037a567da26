//! HTTP servers on loopback: scripted answers, and a record of what came in.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::net::TcpListener;

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    pub authorization: Option<String>,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    Reply {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Sends these bytes and then nothing more, without closing.
    Stall {
        content_type: &'static str,
        body: String,
    },
    /// Sends these bytes and breaks the connection.
    Break {
        content_type: &'static str,
        body: String,
    },
    /// Never answers.
    Silence,
}

#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub received: Arc<Mutex<Vec<Received>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

impl Server {
    /// Gives these answers in turn; the last one again and again.
    pub async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
            answers: Arc::new(Mutex::new(answers.into())),
        };
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The bodies of the requests, in their order.
    pub fn bodies(&self) -> Vec<Value> {
        self.received().iter().map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
    }
}

async fn serve(
    State(server): State<Server>,
    method: axum::http::Method,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    server.received.lock().unwrap().push(Received {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        authorization: headers.get("authorization").map(|value| value.to_str().unwrap().to_owned()),
        headers,
        body: body.to_vec(),
    });
    let answer = {
        let mut answers = server.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
    };
    match answer {
        Answer::Reply { status, headers, body } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(body.into()).unwrap()
        }
        Answer::Stall { content_type, body } => {
            let rest = futures::stream::pending::<std::io::Result<Bytes>>();
            streaming(content_type, body, rest)
        }
        Answer::Break { content_type, body } => {
            let broken = futures::stream::once(async { Err(std::io::Error::other("broken on purpose")) });
            streaming(content_type, body, broken)
        }
        Answer::Silence => std::future::pending().await,
    }
}

fn streaming(
    content_type: &str,
    body: String,
    rest: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Response<Body> {
    let first = futures::stream::once(async move { Ok(Bytes::from(body)) });
    Response::builder().header("content-type", content_type).body(Body::from_stream(first.chain(rest))).unwrap()
}

pub fn reply(status: u16, content_type: &str, body: impl Into<String>) -> Answer {
    Answer::Reply { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
}
