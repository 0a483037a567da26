//! The fake API server on the network: paths, verbs and watches, with a place before and after each write.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, Response, Uri};
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep_until;

use super::api::{Api, CONFLICT, Key, Refusal};
use super::points::{Next, Points, Process};
use super::rules;
use super::world::RUN;

const AUDIENCE: &str = belay_protocol::TOKEN_AUDIENCE;

#[derive(Clone)]
struct Server {
    api: Arc<Api>,
    points: Arc<Points>,
}

/// What a path names.
struct Target {
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

pub async fn serve(api: Arc<Api>, points: Arc<Points>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(answer).with_state(Server { api, points });
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn answer(
    State(server): State<Server>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response<Body> {
    let target = Target::of(uri.path());
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if method == Method::GET {
        return server.read(&target, &query);
    }
    if query.contains_key("dryRun") {
        return response(422, &rules::refusal());
    }
    let label = label(&method, &target, &body);
    // Leases are written by time alone, so that no two runs come to the same places there.
    let Some(label) = label else { return reply(server.write(&method, &target, body)) };
    match server.points.pass(&format!("before {label}"), Process::Operator).await {
        Next::Go => {}
        Next::Answer(409) => return reply(Err(CONFLICT)),
        Next::Answer(code) => return reply(Err(Refusal { code, reason: "ServiceUnavailable" })),
        Next::Lost | Next::Never | Next::Cut => return std::future::pending().await,
    }
    let written = server.write(&method, &target, body);
    match server.points.pass(&format!("after {label}"), Process::Operator).await {
        Next::Go => reply(written),
        Next::Answer(code) => reply(Err(Refusal { code, reason: "Timeout" })),
        Next::Lost | Next::Never | Next::Cut => std::future::pending().await,
    }
}

/// The name of the place where a write is done.
fn label(method: &Method, target: &Target, body: &Value) -> Option<String> {
    let text = |at: &str| body.pointer(at).and_then(Value::as_str).unwrap_or_default();
    match (method.as_str(), target.resource.as_str()) {
        // Nor NetworkPolicies, which runs share and which are there before the first.
        (_, "leases" | "secrets" | "networkpolicies") => None,
        ("PATCH", "agentruns") => {
            let whose = if target.name.as_deref() == Some(RUN) { "AgentRun" } else { "child" };
            let reason = text("/status/conditions/0/reason");
            Some(format!("status of the {whose} {} {reason}", text("/status/phase")))
        }
        ("PATCH" | "POST", "events") => Some("Event".to_owned()),
        ("PATCH", resource) => Some(format!("status of {resource}")),
        ("POST", "tokenreviews") => Some("TokenReview".to_owned()),
        ("POST", resource) => Some(format!("create {resource}")),
        (verb, resource) => Some(format!("{} {resource}", verb.to_lowercase())),
    }
}

impl Target {
    fn of(path: &str) -> Self {
        let mut parts = path.trim_matches('/').split('/').map(str::to_owned).peekable();
        // `api/VERSION` or `apis/GROUP/VERSION`.
        let skipped = if parts.next().as_deref() == Some("api") { 1 } else { 2 };
        let mut parts = parts.skip(skipped).collect::<Vec<_>>().into_iter();
        let mut resource = parts.next().unwrap_or_default();
        let (mut namespace, mut name) = (None, parts.next());
        let mut rest = parts.next();
        if resource == "namespaces" && rest.is_some() {
            namespace = name;
            resource = rest.unwrap();
            name = parts.next();
            rest = parts.next();
        }
        Self { resource, namespace, name, subresource: rest }
    }

    fn key(&self, body: &Value) -> Key {
        let named = body["metadata"]["name"].as_str().map(str::to_owned);
        // Events are named by whoever writes them; nobody reads them by name here.
        let name = self.name.clone().or(named).unwrap_or_else(|| format!("{:x}", rand::random::<u64>()));
        Key::new(&self.resource, self.namespace.as_deref().unwrap_or_default(), &name)
    }
}

impl Server {
    fn read(&self, target: &Target, query: &HashMap<String, String>) -> Response<Body> {
        if target.name.is_some() {
            return reply(self.api.get(&target.key(&Value::Null)));
        }
        let namespace = target.namespace.as_deref();
        if query.get("watch").is_some_and(|watch| watch == "true") {
            let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            return self.watch(target, from);
        }
        let (version, items) = self.api.list(&target.resource, namespace);
        let list = json!({
            "kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items,
        });
        reply(Ok(list))
    }

    fn write(&self, method: &Method, target: &Target, mut body: Value) -> Result<Value, Refusal> {
        let key = target.key(&body);
        match (method.as_str(), target.resource.as_str(), target.subresource.as_deref()) {
            ("POST", "tokenreviews", None) => Ok(review(&body)),
            ("POST", _, None) => self.api.create(key, body),
            ("PUT", _, None) => self.api.replace(&key, body),
            ("PATCH", "events", None) => {
                body["metadata"]["name"] = json!(key.name);
                Ok(body)
            }
            ("PATCH", "networkpolicies", None) => Ok(self.api.apply(key, body)),
            ("PATCH", _, Some("status")) => self.api.apply_status(&key, &body),
            ("DELETE", _, None) => self.api.delete(&key, &body["preconditions"]),
            (verb, resource, subresource) => panic!("the operator asks for {verb} {resource} {subresource:?}"),
        }
    }

    fn watch(&self, target: &Target, from: u64) -> Response<Body> {
        let weather = *self.api.weather.borrow();
        if from < weather.oldest {
            let gone = json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": 410, "reason": "Expired", "message": "too old resource version",
            }});
            return Response::builder().status(200).body(Body::from(format!("{gone}\n"))).unwrap();
        }
        let follow = Follow {
            api: self.api.clone(),
            resource: target.resource.clone(),
            namespace: target.namespace.clone(),
            version: from,
            era: weather.era,
        };
        let lines = stream::unfold(follow, |mut follow| async move {
            let line = follow.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(line)), follow))
        });
        Response::builder()
            .status(200)
            .header("content-type", "application/json")
            .body(Body::from_stream(lines))
            .unwrap()
    }
}

fn reply(answer: Result<Value, Refusal>) -> Response<Body> {
    let (code, body) = match answer {
        Ok(object) => (200, object),
        Err(Refusal { code, reason }) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code, "reason": reason, "message": reason,
            });
            (code, status)
        }
    };
    response(code, &body)
}

fn response(code: u16, body: &Value) -> Response<Body> {
    let body = Body::from(body.to_string());
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

/// One watch under way.
struct Follow {
    api: Arc<Api>,
    resource: String,
    namespace: Option<String>,
    version: u64,
    era: u64,
}

impl Follow {
    /// The next line; none once the watch is cut.
    async fn next(&mut self) -> Option<String> {
        let (mut newest, mut weather) = (self.api.newest.subscribe(), self.api.weather.subscribe());
        loop {
            let now = *weather.borrow_and_update();
            if now.era != self.era {
                return None;
            }
            if let Some(until) = now.frozen_until.filter(|until| *until > tokio::time::Instant::now()) {
                sleep_until(until).await;
                continue;
            }
            newest.borrow_and_update();
            if let Some(change) = self.api.change_after(self.version, &self.resource, self.namespace.as_deref()) {
                self.version = change.version;
                return Some(format!("{}\n", json!({"type": change.kind, "object": change.object})));
            }
            tokio::select! {
                moved = newest.changed() => moved.ok()?,
                turned = weather.changed() => turned.ok()?,
            }
        }
    }
}

/// A token is `NAMESPACE/POD/UID`, as the fake kubelet writes it.
fn review(body: &Value) -> Value {
    let token = body["spec"]["token"].as_str().unwrap_or_default();
    let parts: Vec<&str> = token.split('/').collect();
    let [namespace, pod, uid] = parts[..] else {
        return json!({"metadata": {}, "spec": {}, "status": {"authenticated": false}});
    };
    json!({"metadata": {}, "spec": {}, "status": {
        "authenticated": true,
        "audiences": [AUDIENCE],
        "user": {
            "username": format!("system:serviceaccount:{namespace}:default"),
            "extra": {
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [uid],
            },
        },
    }})
}
