//! Installing, upgrading and uninstalling on an API server where nothing else is: what is made is what was said,
//! and nothing is left.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use belay_e2e::{BareServer, Helm, Kubectl};
use serde_json::{Value, json};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/belay");

/// One installation at a time on the one server.
static TURN: Mutex<()> = Mutex::new(());

/// The server while nobody else installs on it. What a failed test left goes at the end.
struct Server {
    bare: BareServer,
    before: BTreeSet<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    fn empty() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let bare = BareServer::new().unwrap();
        let before = bare.everything().unwrap();
        assert!(!before.iter().any(|name| name.contains("belay")), "not empty: {before:?}");
        Self { bare, before, _turn: turn }
    }

    /// What there was before, and these.
    fn before_and(&self, more: &[&str]) -> BTreeSet<String> {
        self.before.iter().cloned().chain(more.iter().map(ToString::to_string)).collect()
    }

    /// Every object of the chart is there, and no field differs from what the chart says.
    fn holds_the_chart(&self, helm: &Helm, values: &Value) {
        let rendered = helm.run("template", values).unwrap();
        let there = self.bare.kubectl.output(&["get", "-f", "-", "-o", "name"], Some(&rendered)).unwrap();
        assert!(there.success, "{}", there.stderr);
        let difference = ["diff", "--server-side", "--force-conflicts", "-f", "-"];
        let difference = self.bare.kubectl.output(&difference, Some(&rendered)).unwrap();
        assert!(difference.success, "{}{}", difference.stdout, difference.stderr);
    }

    /// A definition deleted in the moment in which the API server sets up its storage stays Terminating for
    /// minutes: "could not list instances: storage is (re)initializing".
    fn serves_every_kind(&self) {
        let kinds: Vec<String> = crds().iter().map(|kind| format!("{kind}.belay.dev")).collect();
        self.bare.soon(|| self.bare.kubectl.run(&["get", &kinds.join(","), "--all-namespaces"])).unwrap();
    }

    fn system(&self) -> Kubectl {
        self.bare.kubectl.with(&["--namespace", "belay-system"])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.bare.helm.output("uninstall", &json!({}));
        let _ = self.bare.kubectl.output(&["delete", "-k", MANIFESTS, "--ignore-not-found"], None);
        let _ = self.bare.settles_at(&self.before);
    }
}

/// The chart as it was when Agents had no `suspend`.
fn older_chart(folder: &Path) {
    for entry in ["", "templates", "files/crds", "files/operator", "files/admission"] {
        fs::create_dir_all(folder.join(entry)).unwrap();
        for file in fs::read_dir(Path::new(CHART).join(entry)).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), folder.join(entry).join(file.file_name())).unwrap();
            }
        }
    }
    let agents = folder.join("files/crds/agents.yaml");
    let parse = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", agents.to_str().unwrap()];
    let mut crd: Value = serde_json::from_str(&Kubectl::new().run(&parse).unwrap()).unwrap();
    let fields = crd.pointer_mut(&format!("{SPEC_OF_AGENTS}/properties")).unwrap().as_object_mut().unwrap();
    assert!(fields.remove("suspend").is_some());
    fs::write(agents, crd.to_string()).unwrap();
}

const SPEC_OF_AGENTS: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";

const MODEL: &str = "{apiVersion: belay.dev/v1alpha1, kind: Model, metadata: {name: kept, namespace: default}, \
    spec: {api: ChatCompletions, model: m, baseURL: 'https://models.example/v1'}}";

/// The plural names of every kind.
fn crds() -> Vec<String> {
    let files = fs::read_dir(format!("{MANIFESTS}/crds")).unwrap().map(|file| file.unwrap().path());
    let names = files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name != "kustomization").collect()
}

#[test]
fn helm_installs_what_the_chart_says_and_uninstalls_all_but_what_is_kept() {
    let server = Server::empty();
    let (bare, defaults) = (&server.bare, json!({}));
    bare.helm.run("install", &defaults).unwrap();
    server.holds_the_chart(&bare.helm, &defaults);
    bare.soon(|| bare.kubectl.apply(MODEL)).unwrap();

    let told = bare.helm.run("uninstall", &defaults).unwrap();
    let kept: Vec<String> = crds().iter().map(|kind| format!("CustomResourceDefinition /{kind}.belay.dev")).collect();
    let mut left = vec!["APIService /v1alpha1.belay.dev", "Namespace /belay-system", "Model default/kept"];
    left.extend(kept.iter().map(String::as_str));
    bare.settles_at(&server.before_and(&left)).unwrap();
    assert!(crds().iter().all(|kind| told.contains(&format!("{kind}.belay.dev"))), "{told}");

    // A later installation takes up what was kept, objects included.
    bare.helm.run("install", &json!({"crds": {"keep": false}})).unwrap();
    assert_eq!(bare.kubectl.with(&["--namespace", "default"]).get("model", "kept").unwrap()["spec"]["model"], "m");
    bare.helm.run("uninstall", &defaults).unwrap();
    bare.settles_at(&server.before_and(&["Namespace /belay-system"])).unwrap();
    bare.kubectl.run(&["delete", "namespace", "belay-system"]).unwrap();
    bare.settles_at(&server.before).unwrap();
}

#[test]
fn a_helm_upgrade_changes_what_changed_and_keeps_what_the_operator_wrote() {
    let server = Server::empty();
    let bare = &server.bare;
    let older = tempfile::tempdir().unwrap();
    older_chart(older.path());
    let older = bare.helm.with_chart(older.path());
    let first = json!({"crds": {"keep": false}, "namespaces": ["default"]});
    older.run("install", &first).unwrap();
    let agents = || bare.kubectl.get("crd", "agents.belay.dev").unwrap();
    assert!(agents().pointer(&format!("{SPEC_OF_AGENTS}/properties/suspend")).is_none());

    // As the operator does it.
    let filled = r#"{"data":{"tls.crt":"Y2VydGlmaWNhdGU=","tls.key":"a2V5"}}"#;
    server.system().run(&["patch", "secret", "belay-operator-tls", "--type=merge", "-p", filled]).unwrap();

    let leads = r#"{"spec":{"holderIdentity":"pod","leaseTransitions":3}}"#;
    server.system().run(&["patch", "lease", "belay-operator", "--type=merge", "-p", leads]).unwrap();

    let second = json!({
        "crds": {"keep": false},
        "image": {"operator": "registry.example/belay-operator:2", "runner": "registry.example/belay-runner:2"},
        "namespaces": ["kube-public"],
    });
    bare.helm.run("upgrade", &second).unwrap();
    server.holds_the_chart(&bare.helm, &second);
    assert!(agents().pointer(&format!("{SPEC_OF_AGENTS}/properties/suspend")).is_some());
    let container = server.system().get("deployment", "belay-operator").unwrap();
    let container = &container["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/belay-operator:2");
    let there = bare.everything().unwrap();
    assert!(there.contains("RoleBinding kube-public/belay-operator"));
    assert!(!there.contains("RoleBinding default/belay-operator"));
    let secret = server.system().get("secret", "belay-operator-tls").unwrap();
    assert_eq!(secret["data"], json!({"tls.crt": "Y2VydGlmaWNhdGU=", "tls.key": "a2V5"}));
    let lease = server.system().get("lease", "belay-operator").unwrap();
    assert_eq!(lease["spec"], json!({"holderIdentity": "pod", "leaseTransitions": 3}));

    bare.helm.run("uninstall", &json!({})).unwrap();
    bare.settles_at(&server.before_and(&["Namespace /belay-system"])).unwrap();
    bare.kubectl.run(&["delete", "namespace", "belay-system"]).unwrap();
    bare.settles_at(&server.before).unwrap();
}

#[test]
fn kustomize_installs_what_manifests_hold_and_deletes_all_of_it() {
    let server = Server::empty();
    let bare = &server.bare;
    bare.kubectl.run(&["apply", "--server-side", "-k", MANIFESTS]).unwrap();
    bare.kubectl.run(&["diff", "--server-side", "-k", MANIFESTS]).unwrap();
    server.serves_every_kind();
    bare.kubectl.run(&["delete", "-k", MANIFESTS]).unwrap();
    bare.settles_at(&server.before).unwrap();
    // Without --server-side, as people type it.
    bare.kubectl.run(&["apply", "-k", MANIFESTS]).unwrap();
    bare.kubectl.run(&["diff", "-k", MANIFESTS]).unwrap();
    server.serves_every_kind();
    bare.kubectl.run(&["delete", "-k", MANIFESTS]).unwrap();
    bare.settles_at(&server.before).unwrap();
}

/// Who may start runs of the Agent `a` in `default`.
const AUTHORS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: author, namespace: default}
rules:
- {apiGroups: [belay.dev], resources: [agentruns], verbs: [create, get, patch]}
- {apiGroups: [decide.belay.dev], resources: [agents], resourceNames: [a], verbs: [use]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: author, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: author}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: ada}
- {kind: ServiceAccount, name: belay-operator, namespace: belay-system}
";

const OPERATOR: &str = "system:serviceaccount:belay-system:belay-operator";

fn run_by(author: &Kubectl, name: &str, requested_by: Option<&str>) -> anyhow::Result<Value> {
    let mut spec = json!({"agentRef": {"name": "a"}, "input": "go"});
    if let Some(someone) = requested_by {
        spec["requestedBy"] = json!(someone);
    }
    let run = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": name}, "spec": spec});
    author.apply(&run.to_string())?;
    author.get("agentrun", name)
}

#[test]
fn the_optional_policy_stamps_the_author_of_a_run_whatever_he_wrote() {
    let server = Server::empty();
    let bare = &server.bare;
    bare.kubectl.run(&["apply", "--server-side", "-k", MANIFESTS]).unwrap();
    bare.soon(|| bare.kubectl.apply(AUTHORS)).unwrap();
    let ada = bare.kubectl.with(&["--namespace", "default"]).as_user("ada");
    // The base policy bites before, and refuses what the stamp will correct.
    bare.soon(|| run_by(&ada, "unstamped", None)).unwrap();
    let refusal = bare.soon(|| match run_by(&ada, &format!("forged-{}", stamp_of_now()), Some("grace")) {
        Ok(run) => anyhow::bail!("accepted: {run}"),
        Err(refusal) => Ok(refusal.to_string()),
    });
    let refusal = refusal.unwrap();
    assert!(refusal.contains("spec.requestedBy is grace, but you are ada"), "{refusal}");

    let stamp = fs::read_to_string(format!("{MANIFESTS}/admission/optional-1.36/requested-by.yaml")).unwrap();
    // Kubernetes 1.35 serves the kind as beta, behind a feature gate.
    let stamp = stamp.replace("admissionregistration.k8s.io/v1\n", "admissionregistration.k8s.io/v1beta1\n");
    bare.kubectl.apply(&stamp).unwrap();
    let stamped = bare.soon(|| run_by(&ada, &format!("claims-{}", stamp_of_now()), Some("grace"))).unwrap();
    assert_eq!(stamped["spec"]["requestedBy"], "ada");
    assert_eq!(run_by(&ada, "silent", None).unwrap()["spec"]["requestedBy"], "ada");
    assert_eq!(run_by(&ada, "honest", Some("ada")).unwrap()["spec"]["requestedBy"], "ada");
    // Changing what may change later does not stamp again, and the field stays immutable.
    ada.run(&["patch", "agentrun", "silent", "--type=merge", "-p", r#"{"spec":{"cancel":true}}"#]).unwrap();
    let old = ada.run(&["patch", "agentrun", "unstamped", "--type=merge", "-p", r#"{"spec":{"cancel":true}}"#]);
    old.unwrap();
    // Runs that the operator starts for a run are requested by who requested that one.
    let operator = bare.kubectl.with(&["--namespace", "default"]).as_user(OPERATOR);
    let parent = json!({"name": "silent", "uid": "u", "callId": "c1"});
    let spec = json!({"agentRef": {"name": "a"}, "input": "go", "requestedBy": "ada", "parent": parent});
    let child =
        json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": "child"}, "spec": spec});
    operator.apply(&child.to_string()).unwrap();
    assert_eq!(operator.get("agentrun", "child").unwrap()["spec"]["requestedBy"], "ada");

    bare.kubectl.output(&["delete", "-f", "-"], Some(&stamp)).unwrap();
    bare.kubectl.output(&["delete", "-f", "-"], Some(AUTHORS)).unwrap();
    bare.kubectl.run(&["delete", "-k", MANIFESTS]).unwrap();
    bare.settles_at(&server.before).unwrap();
}

/// A name that no earlier attempt took.
fn stamp_of_now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}
