#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;
use crate::played;

/// Serves `enabled` (a Service `llm`), `forbidden` (no RoleBinding) and not `plain`.
async fn three() -> Namespaces {
    let client = played::client(|_, path, _| match path.rsplit('/').next() {
        _ if path.contains("/forbidden/") => played::refusal(403, "Forbidden", "no RoleBinding"),
        Some("services") => {
            let llm = json!({"metadata": {"name": "llm", "namespace": "enabled"}, "spec": {}});
            (200, json!({"metadata": {"resourceVersion": "1"}, "items": [llm]}))
        }
        _ => (200, json!({"metadata": {"resourceVersion": "1"}, "items": []})),
    });
    let relations = Relations { world: played::empty_world(), queues: played::queues(), shared: Arc::default() };
    let namespaces =
        Namespaces::new(client, relations, Pulses::default(), Metrics::default(), CancellationToken::new());
    for (name, served) in [("enabled", Service::Enabled), ("forbidden", Service::Forbidden)] {
        played::opt_in(&namespaces, name).await;
        assert!(matches!(namespaces.sighting(name, "llm"), Sighting::Starting), "not listed yet");
        played::until_served(&namespaces, name, served).await;
    }
    namespaces
}

/// What is not there must not count as what nobody may look at: a policy opens a whole namespace for that.
#[tokio::test]
async fn a_service_is_unknown_only_where_nobody_looks() {
    let namespaces = three().await;
    assert!(matches!(namespaces.sighting("enabled", "llm"), Sighting::Known(_)));
    assert!(matches!(namespaces.sighting("enabled", "gone"), Sighting::Missing));
    assert!(matches!(namespaces.sighting("plain", "llm"), Sighting::Unknown));
    assert!(matches!(namespaces.sighting("forbidden", "llm"), Sighting::Unknown));
    namespaces.0.shutdown.cancel();
    namespaces.stopped().await;
}
