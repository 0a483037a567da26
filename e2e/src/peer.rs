//! Servers that others wrote, as pods of the namespace that a kubectl works in.

use anyhow::Result;
use serde_json::{Value, json};

use crate::Kubectl;

/// What `restricted` Pod Security wants of a pod, and of its containers.
pub const SECURE_POD: &str =
    "runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: {type: RuntimeDefault}";
pub const SECURE_CONTAINER: &str =
    "allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}";

/// A peer's Deployment and Service, and the wait until it listens.
pub fn start(kubectl: &Kubectl, name: &str, image: &str, port: u16, mounts: &str, volumes: &str) -> Result<()> {
    // The model's server listens while it still loads, and says so only there.
    let ready = match name {
        "llm" => format!("httpGet: {{path: /health, port: {port}}}"),
        _ => format!("tcpSocket: {{port: {port}}}"),
    };
    kubectl
        .apply(&format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}}}, spec: {{selector: {{matchLabels: {{app: {name}}}}}, \
             template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{enableServiceLinks: false, securityContext: {{{SECURE_POD}}}, \
             containers: [{{name: c, image: '{image}', imagePullPolicy: Never, ports: [{{containerPort: {port}}}], \
             readinessProbe: {{{ready}, periodSeconds: 1, failureThreshold: 90}}, \
             securityContext: {{{SECURE_CONTAINER}}}, volumeMounts: [{{name: tmp, mountPath: /tmp}}{mounts}]}}], \
             volumes: [{{name: tmp, emptyDir: {{}}}}{volumes}]}}}}}}}}\n---\n\
             {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, ports: [{{port: {port}}}]}}}}\n"
        ))?;
    kubectl.run(&["rollout", "status", &format!("deployment/{name}"), "--timeout=150s"]).map(drop)
}

/// aimock with these fixtures.
pub fn aimock(kubectl: &Kubectl, fixtures: &Value) -> Result<()> {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixtures"},
        "data": {"fixtures.json": json!({"fixtures": fixtures}).to_string()}});
    kubectl.apply(&config.to_string())?;
    let mounts = ", {name: fixtures, mountPath: /fixtures/fixtures.json, subPath: fixtures.json}";
    let volumes = ", {name: fixtures, configMap: {name: fixtures}}";
    start(kubectl, "aimock", "localhost/belay-peer-aimock:1.43.0", 4010, mounts, volumes)
}

/// A Service of another name, and perhaps another port, for the pods of a peer.
pub fn also_called(kubectl: &Kubectl, peer: &str, service: &str, port: u16, target: u16) -> Result<()> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service},
        "spec": {"selector": {"app": peer}, "ports": [{"port": port, "targetPort": target}]}});
    kubectl.apply(&service.to_string()).map(drop)
}
