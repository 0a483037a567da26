//! A pass over an Agent, against a played API server.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use http::Method;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fixtures::{agent, model, ready};
use crate::metrics::Metrics;
use crate::played::{self, empty_world, queues, settings};
use crate::probe_pod::Parts;
use crate::service::Probes;
use crate::watches::Pulses;
use crate::world::Relations;

/// Agent `triage` with Model `writer` behind Service `llm` of this spec, and what status it was given.
async fn judged(service: Value) -> Value {
    let written = Arc::new(Mutex::new(Value::Null));
    let (status, shutdown) = (Arc::clone(&written), CancellationToken::new());
    let client = played::client(move |method: &Method, path: &str, body: &Value| {
        let last = path.rsplit('/').next().unwrap_or_default();
        match (method.as_str(), last) {
            ("GET", "services") => {
                let llm = json!({"metadata": {"name": "llm", "namespace": "triage"}, "spec": &service});
                (200, json!({"metadata": {"resourceVersion": "1"}, "items": [llm]}))
            }
            ("GET", _) => (200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
            ("PATCH", "status") => {
                status.lock().clone_from(body);
                (200, serde_json::to_value(agent("triage", "writer", &[])).unwrap())
            }
            _ => (200, body.clone()),
        }
    });
    let mut llm = ready(model("writer", None));
    llm.spec.base_url = Some("http://llm/v1".to_owned());
    let (mut models, mut agents) = (Writer::new(()), Writer::new(()));
    models.apply_watcher_event(&Event::Apply(llm));
    agents.apply_watcher_event(&Event::Apply(agent("triage", "writer", &[])));
    let world = World { models: models.as_reader(), agents: agents.as_reader(), ..empty_world() };
    let relations = Relations { world: world.clone(), queues: queues(), shared: Arc::default() };
    let metrics = Metrics::default();
    let namespaces = Namespaces::new(client.clone(), relations, Pulses::default(), metrics.clone(), shutdown.clone());
    played::opt_in(&namespaces, "triage").await;
    played::until_served(&namespaces, "triage", Service::Enabled).await;
    let (writes, network) = (Writes::new(client.clone()), NetworkSettings::default());
    let fences = Fences::new(writes.clone(), namespaces.clone(), network.clone());
    let probes = ProbePods::new(Parts {
        client,
        writes: writes.clone(),
        namespaces: namespaces.clone(),
        probes: Probes::default(),
        queues: queues(),
        settings: settings(),
        fences: fences.clone(),
        metrics,
        shutdown: shutdown.clone(),
    });
    let address_check = AddressCheck::Required;
    let agents = Agents { world, namespaces, network, fences, probes, writes, clock: Clock, address_check };
    agents.reconcile(Arc::new(agent("triage", "writer", &[]))).await.unwrap();
    shutdown.cancel();
    let written = written.lock();
    let conditions = written["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == "Ready").unwrap().clone()
}

#[tokio::test]
async fn an_agent_whose_model_is_an_external_name_says_so() {
    let ready = judged(json!({"type": "ExternalName", "externalName": "llm.example.com"})).await;
    assert_eq!(ready["reason"], "DestinationNotAllowed");
    let message = ready["message"].as_str().unwrap();
    assert!(message.starts_with("Agent triage: Model writer: spec.baseURL leads where no run may go"), "{message}");
    assert!(message.ends_with("name llm.example.com itself"), "{message}");
    let pods = judged(json!({"clusterIP": "10.96.0.7", "selector": {"app": "llm"}, "ports": [{"port": 80}]})).await;
    assert_eq!(pods["reason"], "Ready");
}
