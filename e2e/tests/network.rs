//! The operator's NetworkPolicies with real packets: what a pod behind them reaches, and what it does not, though another
//! pod of the same namespace does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use belay_e2e::chaos::operator;
use belay_e2e::namespace::condition;
use belay_e2e::{Kubectl, TempNamespace};
use parking_lot::RwLock;
use serde_json::{Value, json};

const IMAGE: &str = "localhost/belay-peer-busybox:1";
const A_MINUTE: Duration = Duration::from_mins(1);
/// How long rules may take to follow a pod.
const SOON: Duration = Duration::from_secs(15);
/// With this label the namespace kube-system has the embedded cluster enforce nothing (e2e/cluster/tools/enforcer).
const OPEN: &str = "belay.dev/test-network-open";

/// Held for reading by who needs network and operator as they are, and for writing by who changes them.
static NETWORK: RwLock<()> = RwLock::new(());

/// A pod that listens on two ports, and a Service before it.
fn listener(name: &str, labels: &Value) -> String {
    let labels = {
        let mut labels = labels.clone();
        labels["app"] = json!(name);
        labels
    };
    let container = |port: u16| {
        json!({
            "name": format!("p{port}"), "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["/bin/busybox", "httpd", "-f", "-p", port.to_string(), "-h", "/"],
            "ports": [{"name": format!("p{port}"), "containerPort": port}],
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        })
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container(9000), container(9001)],
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [
            {"name": "one", "port": 80, "targetPort": "p9000"}, {"name": "other", "port": 81, "targetPort": 9001},
        ]},
    });
    format!("{pod}\n---\n{service}\n---\n")
}

/// A model behind the Service `llm` and one on the internet.
fn agent() -> String {
    let model = |name: &str, url: &str, fallbacks: &Value| {
        json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
            "spec": {"api": "ChatCompletions", "model": "m", "baseURL": url, "fallbackRefs": fallbacks},
        })
    };
    let agent = json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "a"},
        "spec": {"modelRef": {"name": "inside"}},
    });
    let (inside, outside) = (
        model("inside", "http://llm/v1", &json!([{"name": "outside"}])),
        model("outside", "https://models.example.com/v1", &json!([])),
    );
    format!("{inside}\n---\n{outside}\n---\n{agent}")
}

fn connects(namespace: &TempNamespace, from: &str, host: &str, port: u16) -> bool {
    let port = port.to_string();
    // This nc has no -z: once connected, it becomes `true`.
    let nc = ["/bin/busybox", "nc", "-w", "1", host, &port, "-e", "/bin/busybox", "true"];
    let command = [&["exec", from, "-c", "p9000", "--"][..], &nc].concat();
    namespace.kubectl.output(&command, None).unwrap().success
}

fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not so after {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The key of the Agent's policy, once that is there.
fn key_of(namespace: &TempNamespace) -> String {
    let policies = || namespace.kubectl.run(&["get", "networkpolicies", "-o", "name"]).unwrap();
    soon("NetworkPolicies of the namespace and of the Agent", || {
        policies().contains("/belay-net-") && policies().contains("/belay-runners")
    });
    policies().lines().find_map(|name| name.split_once("/belay-net-").map(|(_, key)| key.to_owned())).unwrap()
}

#[test]
fn a_pod_of_an_agent_reaches_what_its_plan_names_and_nothing_else() {
    let _as_it_is = NETWORK.read();
    let namespace = TempNamespace::enabled("net").unwrap();
    let elsewhere = TempNamespace::plain("net-other").unwrap();
    namespace.kubectl.apply(&agent()).unwrap();
    let key = key_of(&namespace);
    let pods = [
        listener("llm", &json!({})),
        listener("bystander", &json!({})),
        listener("fenced", &json!({"belay.dev/network": key})),
    ];
    namespace.kubectl.apply(&pods.concat()).unwrap();
    elsewhere.kubectl.apply(&listener("llm", &json!({}))).unwrap();
    for (place, pods) in [(&namespace, ["llm", "bystander", "fenced"].as_slice()), (&elsewhere, &["llm"])] {
        for pod in pods {
            place.wait_until("pod", pod, A_MINUTE, is_running).unwrap();
        }
    }
    let other = format!("llm.{}.svc", elsewhere.name);
    let operator = "belay-operator.belay-system.svc";
    let table = [
        ("its Service", "llm", 80, true),
        ("the operator's port for runners", operator, 8443, true),
        ("another port of its Service", "llm", 81, false),
        ("another Service", "bystander", 80, false),
        ("a Service of another namespace", other.as_str(), 80, false),
        ("the operator's other port", operator, 8080, false),
        ("the API server", "kubernetes.default.svc", 443, false),
        ("the node", "10.88.0.1", 6443, false),
    ];
    for (what, host, port, _) in table.iter().filter(|(what, ..)| *what != "the node" || is_embedded()) {
        // Not itself by its own Service: that way is no pod's on every network.
        let from = if *host == "bystander" { "llm" } else { "bystander" };
        soon(&format!("a pod without policies reaches {what}"), || connects(&namespace, from, host, *port));
    }
    soon("policies are enforced", || !connects(&namespace, "fenced", "bystander", 80));
    for (what, host, port, reached) in table {
        assert_eq!(connects(&namespace, "fenced", host, port), reached, "{what}");
    }
    assert!(!connects(&namespace, "bystander", "fenced", 80), "nobody reaches a pod of a run");
}

/// Whether this is the cluster of e2e/cluster, whose node has that address.
fn is_embedded() -> bool {
    Kubectl::new().run(&["get", "node", "belay", "-o", "name"]).is_ok()
}

fn is_running(pod: &Value) -> Option<()> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True").then_some(())
}

#[test]
fn a_policy_that_somebody_deletes_or_changes_comes_back_and_follows_its_service() {
    let _as_it_is = NETWORK.read();
    let namespace = TempNamespace::enabled("net-mended").unwrap();
    namespace.kubectl.apply(&agent()).unwrap();
    let policy = format!("belay-net-{}", key_of(&namespace));
    let ports = || namespace.kubectl.get("networkpolicy", &policy).map(|policy| policy["spec"]["egress"].to_string());
    // Its Service is not there yet: only the public host is.
    assert!(ports().is_ok_and(|ports| ports.contains("443") && !ports.contains("p9000")));
    namespace.kubectl.apply(&listener("llm", &json!({}))).unwrap();
    soon("the policy follows the Service", || ports().is_ok_and(|ports| ports.contains("p9000")));
    namespace.kubectl.run(&["delete", "networkpolicy", &policy, "belay-runners"]).unwrap();
    soon("both are back", || {
        ports().is_ok_and(|ports| ports.contains("p9000"))
            && namespace.kubectl.get("networkpolicy", "belay-runners").is_ok()
    });
    let open = r#"{"spec": {"ingress": [{}], "egress": [{}]}}"#;
    namespace.kubectl.run(&["patch", "networkpolicy", "belay-runners", "--type=merge", "-p", open]).unwrap();
    soon("it is closed again", || {
        let runners = namespace.kubectl.get("networkpolicy", "belay-runners").unwrap();
        let let_in = runners["spec"]["ingress"].as_array().is_some_and(|rules| !rules.is_empty());
        !let_in && runners["spec"]["egress"].as_array().is_some_and(|rules| rules.len() == 2)
    });
    namespace.kubectl.run(&["delete", "agent", "a"]).unwrap();
    soon("it goes with its Agent", || namespace.kubectl.get("networkpolicy", &policy).is_err());
}

/// A network that enforces nothing, until this is dropped.
struct OpenNetwork;

impl OpenNetwork {
    fn new() -> Self {
        Kubectl::new().run(&["label", "namespace", "kube-system", &format!("{OPEN}=true"), "--overwrite"]).unwrap();
        Self
    }
}

impl Drop for OpenNetwork {
    fn drop(&mut self) {
        // A failure here is seen by whoever wants policies enforced next.
        let _ = Kubectl::new().run(&["label", "namespace", "kube-system", &format!("{OPEN}-")]);
    }
}

#[test]
fn an_agent_says_whether_the_network_enforces_policies_and_so_it_is() {
    let _alone = NETWORK.write();
    let namespace = TempNamespace::enabled("net-enforced").unwrap();
    namespace.kubectl.apply(&agent()).unwrap();
    let key = key_of(&namespace);
    let pods = [listener("bystander", &json!({})), listener("fenced", &json!({"belay.dev/network": key}))];
    namespace.kubectl.apply(&pods.concat()).unwrap();
    for pod in ["bystander", "fenced"] {
        namespace.wait_until("pod", pod, A_MINUTE, is_running).unwrap();
    }
    let reaches = || connects(&namespace, "fenced", "bystander", 80);
    let says = |reason: &str| {
        let said = |agent: &Value| (condition(agent, "NetworkEnforced")?["reason"] == reason).then(|| agent.clone());
        let agent = namespace.wait_until("agent", "a", A_MINUTE, said).unwrap();
        condition(&agent, "NetworkEnforced").unwrap()["status"].as_str().unwrap().to_owned()
    };
    if is_embedded() {
        let open = OpenNetwork::new();
        // The answer is good for an hour, or as long as the process.
        operator::rollout_restart().unwrap();
        assert_eq!(says("NotEnforced"), "False");
        soon("nothing keeps the pod from its neighbour", reaches);
        drop(open);
        operator::rollout_restart().unwrap();
    }
    assert_eq!(says("Enforced"), "True");
    soon("the pod is kept from its neighbour", || !reaches());
    let open = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "open"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
    });
    namespace.kubectl.apply(&open.to_string()).unwrap();
    assert_eq!(says("Widened"), "False");
    soon("a policy of somebody else's lets the pod to its neighbour", reaches);
    namespace.kubectl.run(&["delete", "networkpolicy", "open"]).unwrap();
    assert_eq!(says("Enforced"), "True");
}

#[test]
fn an_agent_that_would_go_where_no_run_may_says_which_object_and_field() {
    let _as_it_is = NETWORK.read();
    let namespace = TempNamespace::enabled("net-astray").unwrap();
    for url in ["http://llm.kube-system.svc/v1", "http://169.254.169.254/v1", "http://10.96.0.1/v1", "http://0x7f.1/v1"]
    {
        namespace.kubectl.apply(&agent().replace("http://llm/v1", url)).unwrap();
        let ready = |agent: &Value| {
            let ready = condition(agent, "Ready")?;
            let host = url.split('/').nth(2).unwrap();
            (ready["reason"] == "DestinationNotAllowed" && ready["message"].as_str()?.contains(host))
                .then(|| ready.clone())
        };
        let ready = namespace.wait_until("agent", "a", A_MINUTE, ready).unwrap();
        let message = ready["message"].as_str().unwrap();
        assert!(message.contains("Agent a: Model inside: spec.baseURL leads where no run may go"), "{message}");
    }
}

#[test]
fn the_yaml_in_the_docs_is_taken() {
    let _as_it_is = NETWORK.read();
    let docs = include_str!("../../docs/network.md");
    let namespace = TempNamespace::enabled("net-docs").unwrap();
    let objects = docs.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next());
    let mut taken = 0;
    for yaml in objects.filter(|yaml| yaml.contains("kind:")) {
        namespace.kubectl.apply(&yaml.replace("my-team", &namespace.name)).unwrap();
        taken += 1;
    }
    assert_eq!(taken, 1);
    namespace.wait_ready("tool", "files", "False", "Unreachable").unwrap();
}
