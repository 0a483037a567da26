//! The Helm chart: rendered by Helm's own library, it is what manifests/ holds, and its values bite.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;

use belay_e2e::{Helm, Kubectl, Output};
use serde_json::{Value, json};

fn helm(command: &str, values: &Value) -> Output {
    Helm::new().output(command, values).unwrap()
}

/// Objects by kind and name, as YAML says them.
type Objects = BTreeMap<String, Value>;

fn parse(yaml: &str) -> Objects {
    // kubectl parses YAML as the API server would, without asking it.
    let output = Kubectl::new()
        .output(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], Some(yaml))
        .unwrap();
    assert!(output.success, "{}", output.stderr);
    let stream = serde_json::Deserializer::from_str(&output.stdout).into_iter::<Value>();
    let objects = stream.flat_map(|value| {
        let value = value.unwrap();
        match value["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![value],
        }
    });
    objects.map(|object| (format!("{}/{}", object["kind"], object["metadata"]["name"]), object)).collect()
}

fn render(values: &Value) -> Objects {
    let rendered = helm("template", values);
    assert!(rendered.success, "{}", rendered.stderr);
    parse(&rendered.stdout)
}

#[test]
fn the_chart_lints_without_a_warning() {
    let report = helm("lint", &json!({}));
    assert!(report.success, "{}{}", report.stdout, report.stderr);
}

#[test]
fn with_its_defaults_the_chart_is_what_manifests_hold() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    let mut manifests = parse(&Kubectl::new().run(&["kustomize", folder]).unwrap());
    // Helm makes the release's namespace itself (--create-namespace).
    assert!(manifests.remove("\"Namespace\"/\"belay-system\"").is_some());
    let mut chart = render(&json!({}));
    for (name, object) in &mut chart {
        if name.starts_with("\"CustomResourceDefinition\"") {
            let kept = object["metadata"].as_object_mut().unwrap().remove("annotations");
            assert_eq!(kept, Some(json!({"helm.sh/resource-policy": "keep"})), "{name}");
        }
    }
    assert_eq!(chart.keys().collect::<Vec<_>>(), manifests.keys().collect::<Vec<_>>());
    for (name, object) in &manifests {
        assert_eq!(&chart[name], object, "{name}");
    }
}

#[test]
fn values_reach_the_objects_that_they_are_for() {
    let objects = render(&json!({
        "image": {"operator": "registry.example/o:1", "runner": "registry.example/r:1", "pullPolicy": "Always"},
        "namespaces": ["team-a", "team-b"],
        "storage": {"size": "5Gi", "className": "fast"},
        "resources": {"limits": {"memory": "1Gi"}},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "runnerPods": {"nodeSelector": {"pool": "agents"}},
        "limits": {"runs": 7},
        "verifyPeerAddress": false,
        "network": {"allowedPrivateHosts": ["llm.models.svc", "10.1.2.3"], "dnsEgress": [{"ports": [{"port": 53}]}],
            "clusterRanges": ["2600:1f18:4::/48", "8.8.0.0/16"], "egressProxy": "http://proxy.corp.example:3128"},
    }));
    let pod = &objects["\"Deployment\"/\"belay-operator\""]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example/o:1");
    assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(pod["tolerations"][0]["key"], "infra");
    let variable = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|variable| variable["name"] == name).map(|variable| variable["value"].clone())
    };
    assert_eq!(variable("BELAY_RUNNER_IMAGE"), Some(json!("registry.example/r:1")));
    assert_eq!(variable("BELAY_RUNNER_IMAGE_PULL_POLICY"), Some(json!("Always")));
    assert_eq!(variable("BELAY_MAX_RUNS"), Some(json!("7")));
    assert_eq!(variable("BELAY_VERIFY_PEER_ADDRESS"), Some(json!("false")));
    assert_eq!(variable("BELAY_POD_NODE_SELECTOR"), Some(json!(r#"{"pool":"agents"}"#)));
    assert_eq!(variable("BELAY_ALLOWED_PRIVATE_HOSTS"), Some(json!("llm.models.svc,10.1.2.3")));
    assert_eq!(variable("BELAY_CLUSTER_RANGES"), Some(json!("2600:1f18:4::/48,8.8.0.0/16")));
    assert_eq!(variable("BELAY_EGRESS_PROXY"), Some(json!("http://proxy.corp.example:3128")));
    assert_eq!(variable("BELAY_DNS_EGRESS"), Some(json!(r#"[{"ports":[{"port":53}]}]"#)));
    let claim = &objects["\"PersistentVolumeClaim\"/\"belay-journal\""]["spec"];
    assert_eq!(
        (&claim["storageClassName"], &claim["resources"]["requests"]["storage"]),
        (&json!("fast"), &json!("5Gi"))
    );
    let rendered = helm("template", &json!({"namespaces": ["team-a", "team-b"]})).stdout;
    assert!(rendered.contains("namespace: team-a") && rendered.contains("namespace: team-b"));
}

#[test]
fn spans_are_sent_where_the_values_say_with_what_the_kubelet_mounts() {
    let mut values = json!({"otlp": {
        "endpoint": "https://otel.example:4318", "headersSecret": {"name": "otel", "key": "h"},
        "caConfigMap": {"name": "ca"}, "captureContent": true, "resourceAttributes": {"deployment.environment.name": "prod"},
    }});
    let pod = |values: &Value| render(values)["\"Deployment\"/\"belay-operator\""]["spec"]["template"]["spec"].clone();
    let set = pod(&values);
    let variables: BTreeMap<&str, &str> = (set["containers"][0]["env"].as_array().unwrap().iter())
        .filter_map(|variable| {
            Some((variable["name"].as_str()?.strip_prefix("BELAY_OTLP_")?, variable["value"].as_str()?))
        })
        .collect();
    let expected = BTreeMap::from([
        ("ENDPOINT", "https://otel.example:4318"),
        ("HEADERS_FILE", "/etc/belay/otlp-headers/headers"),
        ("CA_FILE", "/etc/belay/otlp-ca/ca.crt"),
        ("CAPTURE_CONTENT", "true"),
        ("RESOURCE_ATTRIBUTES", r#"{"deployment.environment.name":"prod"}"#),
    ]);
    assert_eq!(variables, expected);
    let volumes = set["volumes"].as_array().unwrap();
    let secret = json!({"secretName": "otel", "defaultMode": 0o440, "items": [{"key": "h", "path": "headers"}]});
    let ca = json!({"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]});
    assert_eq!((&volumes[2]["secret"], &volumes[3]["configMap"]), (&secret, &ca));
    assert_eq!(set["containers"][0]["volumeMounts"][2]["mountPath"], "/etc/belay/otlp-headers");
    assert_eq!(set["containers"][0]["volumeMounts"][3]["mountPath"], "/etc/belay/otlp-ca");
    // Nothing of it without an endpoint.
    values["otlp"]["endpoint"] = json!("");
    assert_eq!(pod(&values), pod(&json!({})));
}

#[test]
fn crds_can_be_left_out_and_let_go() {
    let crds = |values: &Value| {
        let objects = render(values).into_iter();
        objects.filter(|(name, _)| name.starts_with("\"CustomResourceDefinition\"")).map(|(_, o)| o).collect::<Vec<_>>()
    };
    assert!(crds(&json!({"crds": {"install": false}})).is_empty());
    let loose = crds(&json!({"crds": {"keep": false}}));
    assert_eq!(loose.len(), belay_crds::definitions().unwrap().len());
    assert!(loose.iter().all(|crd| crd["metadata"].get("annotations").is_none()));
}

#[test]
fn a_value_that_is_wrong_or_unknown_is_refused_by_name() {
    for (values, words) in [
        (json!({"replicas": 3}), "replicas"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (json!({"namespaces": ["Team A"]}), "namespaces"),
        (json!({"otlp": {"endpoint": "otel:4317"}}), "endpoint"),
        (json!({"network": {"clusterRanges": ["nodes"]}}), "clusterRanges"),
    ] {
        let refused = helm("template", &values);
        assert!(!refused.success && refused.stderr.contains(words), "{values}: {}", refused.stderr);
    }
}
