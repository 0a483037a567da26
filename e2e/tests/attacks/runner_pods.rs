//! Runner pods hold credentials: nobody makes, changes or enters one.

use belay_e2e::stage::{OPERATOR, accepted, binding, create, merge, merge_status, pod, refused, role};
use belay_e2e::{Kubectl, TempNamespace};
use serde_json::{Value, json};

const OURS: &str = "pods named belay-run-* are the operator's";

/// A namespace that opted in, with a runner's pod in it, where ada may do everything with pods.
struct Pods {
    namespace: TempNamespace,
    ada: Kubectl,
}

impl Pods {
    fn empty(prefix: &str) -> Self {
        let namespace = TempNamespace::plain(prefix).unwrap();
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "anyone"}});
        let doors = json!([
            "pods",
            "pods/status",
            "pods/exec",
            "pods/attach",
            "pods/portforward",
            "pods/proxy",
            "pods/ephemeralcontainers",
            "pods/resize"
        ]);
        let all = json!({"apiGroups": [""], "resources": doors, "verbs": ["*"]});
        for object in [account, role("pods", &[all]), binding("ada", "Role", "pods")] {
            namespace.kubectl.apply(&object.to_string()).unwrap();
        }
        namespace.apply_manifest("namespace/binding.yaml").unwrap();
        let ada = namespace.kubectl.as_user("ada");
        Self { namespace, ada }
    }

    fn new(prefix: &str) -> Self {
        let pods = Self::empty(prefix);
        let operator = pods.namespace.kubectl.with(&["--as", OPERATOR]);
        accepted(|| create(&operator, &pod(&json!({"name": "belay-run-x", "labels": {"run": "x"}}))));
        pods
    }

    fn everybody(&self) -> [&Kubectl; 2] {
        [&self.ada, &self.namespace.kubectl]
    }

    /// What `kubectl exec` and the like ask the API server for.
    fn door(&self, path: &str) {
        let path = format!("/api/v1/namespaces/{}/pods/{path}", self.namespace.name);
        for who in self.everybody() {
            refused(OURS, || who.output(&["get", "--raw", &path], None).unwrap());
        }
    }

    fn patch(&self, patch: &Value) {
        for who in self.everybody() {
            refused(OURS, || merge(who, "pod", "belay-run-x", patch));
        }
    }
}

#[test]
fn a_pod_made_beforehand_under_a_runners_name_is_refused() {
    let pods = Pods::empty("atk-before");
    for who in pods.everybody() {
        for metadata in [json!({"name": "belay-run-x"}), json!({"generateName": "belay-run-"})] {
            refused(OURS, || create(who, &pod(&metadata)));
        }
    }
    accepted(|| create(&pods.ada, &pod(&json!({"generateName": "belay-runner-"}))));
}

#[test]
fn another_image_in_a_runner_pod_is_refused() {
    let pods = Pods::new("atk-image");
    let image = r#"{"spec":{"containers":[{"name":"c","image":"localhost/mine:0"}]}}"#;
    for who in pods.everybody() {
        refused(OURS, || who.output(&["patch", "pod", "belay-run-x", "-p", image], None).unwrap());
    }
}

#[test]
fn executing_in_a_runner_pod_is_refused() {
    Pods::new("atk-exec").door("belay-run-x/exec?command=id&stdout=true");
}

#[test]
fn attaching_to_a_runner_pod_is_refused() {
    Pods::new("atk-attach").door("belay-run-x/attach?stdout=true");
}

#[test]
fn forwarding_a_port_of_a_runner_pod_is_refused() {
    Pods::new("atk-port").door("belay-run-x/portforward?ports=80");
}

#[test]
fn going_through_the_proxy_to_a_runner_pod_is_refused_however_it_is_named() {
    let pods = Pods::new("atk-proxy");
    for name in ["belay-run-x", "belay-run-x:8080", "http:belay-run-x:8080", "https:belay-run-x:8080"] {
        pods.door(&format!("{name}/proxy/"));
    }
}

#[test]
fn an_ephemeral_container_in_a_runner_pod_is_refused() {
    let pods = Pods::new("atk-guest");
    let guest = r#"{"spec":{"ephemeralContainers":[{"name":"e","image":"localhost/mine:0",
        "securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}]}}"#;
    let arguments = ["patch", "pod", "belay-run-x", "--subresource=ephemeralcontainers", "-p", guest];
    for who in pods.everybody() {
        refused(OURS, || who.output(&arguments, None).unwrap());
    }
}

#[test]
fn a_changed_label_of_a_runner_pod_is_refused() {
    let pods = Pods::new("atk-labels");
    for labels in [json!({"run": "y"}), json!({"run": null}), json!({"more": "z"})] {
        pods.patch(&json!({"metadata": {"labels": labels}}));
    }
}

#[test]
fn a_finalizer_on_a_runner_pod_is_refused() {
    Pods::new("atk-stay").patch(&json!({"metadata": {"finalizers": ["example.com/stay"]}}));
}

#[test]
fn a_forged_status_of_a_runner_pod_is_refused() {
    let pods = Pods::new("atk-ended");
    for who in pods.everybody() {
        refused(OURS, || merge_status(who, "pod", "belay-run-x", &json!({"phase": "Succeeded"})));
    }
}

#[test]
fn a_runner_pod_can_be_annotated_and_deleted_by_whoever_rbac_lets() {
    let pods = Pods::new("atk-may");
    pods.ada.run(&["annotate", "pod", "belay-run-x", "note=seen"]).unwrap();
    pods.ada.run(&["delete", "pod", "belay-run-x", "--timeout=60s"]).unwrap();
}
