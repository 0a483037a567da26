//! The runner pod of a run: whole, from the frozen plan and what the Agent says of its pod. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use belay_crds::{AGENT_LABEL, Agent, AgentRun, NETWORK_LABEL, RUN_LABEL, RUN_UID_LABEL};
use belay_protocol::plan::Plan;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::pod_template::{
    Document, Mode, Mount, PodSettings, PodShape, base_labels, build_pod, label_value, resources,
};
use crate::writes::owner_of;

/// What the pod lives longer than the run may be active: the operator ends the run first.
const DEADLINE_MARGIN_SECONDS: i64 = 60;
const REQUEST_CPU: &str = "10m";
const REQUEST_MEMORY: &str = "24Mi";
const LIMIT_MEMORY: &str = "128Mi";

/// What distinguishes one epoch's pod from another's.
pub struct Place<'a> {
    /// As the journal holds it.
    pub name: &'a str,
    /// How long earlier epochs were active.
    pub active: Duration,
    /// Key of the NetworkPolicy around it.
    pub network: &'a str,
}

/// The pod of an epoch. It lives no longer than what is left of the run's active time, and a margin.
#[must_use]
pub fn build(run: &AgentRun, plan: &Plan, agent: Option<&Agent>, place: &Place<'_>, settings: &PodSettings) -> Pod {
    let active = i64::try_from(place.active.as_secs()).unwrap_or(i64::MAX);
    let left = i64::from(plan.limits.active_seconds).saturating_sub(active).max(0);
    let mut labels = base_labels("runner");
    labels.insert(RUN_UID_LABEL.to_owned(), plan.run.uid.clone());
    labels.insert(RUN_LABEL.to_owned(), label_value(&plan.run.name));
    labels.insert(AGENT_LABEL.to_owned(), label_value(&plan.agent.name));
    labels.insert(NETWORK_LABEL.to_owned(), place.network.to_owned());
    let shape = PodShape {
        namespace: plan.run.namespace.clone(),
        name: place.name.to_owned(),
        mode: Mode::Run,
        labels,
        owner: owner_of(run),
        credentials: plan.credentials.iter().map(Mount::from).collect(),
        documents: plan.tools.iter().filter_map(|tool| Document::of(&tool.name, tool.http.as_ref())).collect(),
        authorities: plan.ca_bundles().into_iter().collect(),
        resources: runner_resources(agent),
        active_deadline_seconds: left + DEADLINE_MARGIN_SECONDS,
    };
    build_pod(shape, settings)
}

/// A default request never exceeds the limit that the Agent sets.
fn runner_resources(agent: Option<&Agent>) -> ResourceRequirements {
    let chosen = agent.and_then(|agent| agent.spec.pod.as_ref()).and_then(|pod| pod.resources.clone());
    let chosen = chosen.unwrap_or_default();
    let mut limits = chosen.limits;
    let mut requests = chosen.requests;
    for (name, default) in [("cpu", REQUEST_CPU), ("memory", REQUEST_MEMORY)] {
        if !requests.contains_key(name) {
            // Where only a limit is set the API server makes it the request: what Kubernetes users expect.
            let given = limits.get(name).cloned();
            requests.insert(name.to_owned(), given.unwrap_or_else(|| default.to_owned()));
        }
    }
    if !limits.contains_key("memory") {
        let request = requests.get("memory").filter(|memory| *memory != REQUEST_MEMORY).cloned();
        limits.insert("memory".to_owned(), request.unwrap_or_else(|| LIMIT_MEMORY.to_owned()));
    }
    resources(&requests, &limits)
}

/// Resources of a probe pod: those of a runner whose Agent says nothing.
#[must_use]
pub fn default_resources() -> ResourceRequirements {
    let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    resources(&of(&[("cpu", REQUEST_CPU), ("memory", REQUEST_MEMORY)]), &of(&[("memory", LIMIT_MEMORY)]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::sync::Arc;

    use belay_protocol::plan::{CaBundle, HttpOperations};
    use serde_json::{Value, json};

    use super::*;
    use crate::agent_run::resolve::{Parts, freeze};
    use crate::fixtures::{agent, credential, model, run};

    fn settings() -> PodSettings {
        PodSettings {
            image: "localhost/belay-runner:dev".to_owned(),
            pull_policy: "IfNotPresent",
            operator_address: "https://belay-operator.belay-system.svc:8443".to_owned(),
            ca_pem: "CA".to_owned(),
            tolerations: vec![],
            node_selector: BTreeMap::from([("pool".to_owned(), "agents".to_owned())]),
            network: crate::network::NetworkSettings::default(),
        }
    }

    #[test]
    fn the_whole_pod_is_locked_down_and_holds_no_value() {
        let (run, agent) = (run("nightly", "triage"), agent("triage", "writer", &[]));
        let parts = Parts {
            agent: Arc::new(agent.clone()),
            model: Arc::new(model("writer", Some("k"))),
            fallbacks: vec![],
            tools: vec![],
            credentials: vec![Arc::new(credential("k"))],
            policies: vec![],
            private_hosts: vec![],
            subagents: std::collections::BTreeMap::new(),
            above: None,
        };
        let plan = freeze(&run, &parts).unwrap();
        let place = Place { name: "belay-run-abcd2345", active: Duration::from_secs(30), network: "k3y" };
        let pod = build(&run, &plan, Some(&agent), &place, &settings());
        let expected: Value = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "triage",
                "name": "belay-run-abcd2345",
                "labels": {
                    "app.kubernetes.io/name": "belay-runner",
                    "app.kubernetes.io/component": "runner",
                    "app.kubernetes.io/part-of": "belay",
                    "app.kubernetes.io/managed-by": "belay-operator",
                    "belay.dev/run-uid": "uid-nightly",
                    "belay.dev/run": "nightly",
                    "belay.dev/agent": "triage",
                    "belay.dev/network": "k3y",
                },
                "annotations": {"linkerd.io/inject": "disabled", "sidecar.istio.io/inject": "false"},
                "ownerReferences": [{
                    "apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "name": "nightly", "uid": "uid-nightly",
                    "controller": true, "blockOwnerDeletion": false,
                }],
            },
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": "default",
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "activeDeadlineSeconds": 1830,
                "terminationGracePeriodSeconds": 30,
                "nodeSelector": {"pool": "agents"},
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
                ],
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "volumes": [
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                        "audience": "belay-operator", "expirationSeconds": 600, "path": "token"}}]}},
                    {"name": "credential-0", "secret": {
                        "secretName": "k-secret", "optional": true, "defaultMode": 0o440,
                        "items": [{"key": "token", "path": "value"}]}},
                ],
                "containers": [{
                    "name": "runner",
                    "image": "localhost/belay-runner:dev",
                    "imagePullPolicy": "IfNotPresent",
                    "env": [
                        {"name": "BELAY_MODE", "value": "run"},
                        {"name": "BELAY_OPERATOR_ADDR", "value": "https://belay-operator.belay-system.svc:8443"},
                        {"name": "BELAY_OPERATOR_CA_PEM", "value": "CA"},
                    ],
                    "resources": {
                        "requests": {"cpu": "10m", "memory": "24Mi"}, "limits": {"memory": "128Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "token", "mountPath": "/var/run/belay/token", "readOnly": true},
                        {"name": "credential-0", "mountPath": "/var/run/belay/credentials/k", "readOnly": true},
                    ],
                }],
            },
        });
        assert_eq!(serde_json::to_value(pod).unwrap(), expected);
    }

    #[test]
    fn a_document_is_mounted_where_the_runner_looks_for_its_tool() {
        let mut plan = crate::fixtures::plan();
        let (config_map, key) = ("pets".to_owned(), "openapi.yaml".to_owned());
        plan.tools[0].http = Some(HttpOperations::Document { config_map, key, only: vec![] });
        let place = Place { name: "belay-run-abcd2345", active: Duration::ZERO, network: "k3y" };
        let pod = serde_json::to_value(build(&run("nightly", "triage"), &plan, None, &place, &settings())).unwrap();
        let volume = json!({"name": "document-0", "configMap": {
            "name": "pets", "optional": true, "defaultMode": 0o440, "items": [{"key": "openapi.yaml", "path": "document"}]}});
        assert_eq!(pod["spec"]["volumes"][1], volume);
        let mount = json!({"name": "document-0", "mountPath": "/var/run/belay/documents/github", "readOnly": true});
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][1], mount);
    }

    #[test]
    fn a_config_map_with_authorities_is_mounted_once_with_the_keys_that_are_named() {
        let mut plan = crate::fixtures::plan();
        let ca = |key: &str| Some(CaBundle { config_map: "corp.authorities".to_owned(), key: key.to_owned() });
        plan.model.ca = ca("models.crt");
        plan.tools[0].ca = ca("tools.crt");
        let place = Place { name: "belay-run-abcd2345", active: Duration::ZERO, network: "k3y" };
        let pod = serde_json::to_value(build(&run("nightly", "triage"), &plan, None, &place, &settings())).unwrap();
        let volume = json!({"name": "authorities-0", "configMap": {
            "name": "corp.authorities", "optional": true, "defaultMode": 0o440,
            "items": [{"key": "models.crt", "path": "models.crt"}, {"key": "tools.crt", "path": "tools.crt"}]}});
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.last(), Some(&volume));
        let path = "/var/run/belay/authorities/corp.authorities";
        let mount = json!({"name": "authorities-0", "mountPath": path, "readOnly": true});
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        assert_eq!(mounts.last(), Some(&mount));
        assert_eq!((volumes.len(), mounts.len()), (2 + plan.credentials.len(), 2 + plan.credentials.len()));
    }

    #[test]
    fn a_pod_is_told_of_the_installations_proxy_and_of_the_clusters_own_addresses() {
        let mut settings = settings();
        settings.network.proxy = Some("http://squid.infra.svc:3128".parse().unwrap());
        settings.network.ranges = "8.8.0.0/16,2600:1f18::/32".parse().unwrap();
        let place = Place { name: "belay-run-abcd2345", active: Duration::ZERO, network: "k3y" };
        let pod = build(&run("nightly", "triage"), &crate::fixtures::plan(), None, &place, &settings);
        let pod = serde_json::to_value(pod).unwrap();
        let told = json!({"name": "BELAY_EGRESS_PROXY", "value": "http://squid.infra.svc:3128"});
        assert_eq!(pod["spec"]["containers"][0]["env"][3], told);
        let told = json!({"name": "BELAY_CLUSTER_RANGES", "value": "8.8.0.0/16,2600:1f18::/32"});
        assert_eq!(pod["spec"]["containers"][0]["env"][4], told);
    }

    #[test]
    fn an_agents_limit_is_never_below_the_request() {
        let mut small = agent("triage", "writer", &[]);
        small.spec.pod = serde_json::from_value(json!({"resources": {"limits": {"memory": "16Mi"}}})).unwrap();
        assert_eq!(
            serde_json::to_value(runner_resources(Some(&small))).unwrap(),
            json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "16Mi"}})
        );
        let mut large = agent("triage", "writer", &[]);
        large.spec.pod = serde_json::from_value(json!({"resources": {"requests": {"memory": "1Gi"}}})).unwrap();
        assert_eq!(
            serde_json::to_value(runner_resources(Some(&large))).unwrap(),
            json!({"requests": {"cpu": "10m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}})
        );
    }
}
