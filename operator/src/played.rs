//! An API server that a test plays, and what stands around passes over objects: caches that hold nothing, queues that nobody
//! pulls, settings of pods that are never made.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::client::Body;
use kube::runtime::reflector::store::Writer;
use serde_json::{Value, json};
use tower::service_fn;

use crate::namespaces::{Namespaces, Service};
use crate::pod_template::{PodSettings, SharedSettings};
use crate::watches::Seen;
use crate::world::{Queue, Queues, World};

/// A client of namespace `triage` whose requests are answered like this; watches never are.
pub fn client(answer: impl Fn(&Method, &str, &Value) -> (u16, Value) + Clone + Send + Sync + 'static) -> Client {
    let service = service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            if parts.uri.query().is_some_and(|query| query.contains("watch=true")) {
                return std::future::pending().await;
            }
            let bytes = body.collect_bytes().await?;
            let body = serde_json::from_slice(&bytes).unwrap_or_default();
            let (code, answer) = answer(&parts.method, parts.uri.path(), &body);
            let body = Body::from(serde_json::to_vec(&answer)?);
            Ok::<_, tower::BoxError>(Response::builder().status(code).body(body)?)
        }
    });
    Client::new(service, "triage")
}

/// As the API server refuses.
pub fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    (code, status)
}

pub fn empty_world() -> World {
    World {
        models: Writer::new(()).as_reader(),
        credentials: Writer::new(()).as_reader(),
        tools: Writer::new(()).as_reader(),
        policies: Writer::new(()).as_reader(),
        agents: Writer::new(()).as_reader(),
        runs: Writer::new(()).as_reader(),
        approvals: Writer::new(()).as_reader(),
        grants: Writer::new(()).as_reader(),
        namespaces: Writer::new(()).as_reader(),
    }
}

/// A test makes few enough entries for the queues to hold.
pub fn queues() -> Queues {
    Queues {
        models: Queue::new().0,
        credentials: Queue::new().0,
        tools: Queue::new().0,
        policies: Queue::new().0,
        agents: Queue::new().0,
        runs: Queue::new().0,
    }
}

pub fn settings() -> SharedSettings {
    SharedSettings::new(PodSettings {
        image: "runner".to_owned(),
        pull_policy: "Never",
        operator_address: "https://operator:8443".to_owned(),
        ca_pem: "CA".to_owned(),
        tolerations: vec![],
        node_selector: std::collections::BTreeMap::new(),
        network: crate::network::NetworkSettings::default(),
    })
}

/// Has that namespace opt in.
pub async fn opt_in(namespaces: &Namespaces, name: &str) {
    let namespace = json!({"metadata": {"name": name, "labels": {"belay.dev/enabled": "true"}}});
    let namespace: Namespace = serde_json::from_value(namespace).unwrap();
    namespaces.saw(Seen::There(Arc::new(namespace))).await;
}

/// Waits until it is served like that.
pub async fn until_served(namespaces: &Namespaces, name: &str, like: Service) {
    let listed = async {
        while namespaces.service(name) != like {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listed).await.unwrap();
}
