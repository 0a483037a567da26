#![allow(clippy::indexing_slicing, clippy::unwrap_used)]
use std::net::IpAddr;

use belay_protocol::network::{AddressClass, AllowedHosts};
use serde_json::{Value, json};

use super::*;

fn at(urls: &[&str]) -> Surroundings {
    let allowed: AllowedHosts = ["llm.models.svc", "gone.models.svc", "far.away.svc", "proxy.corp.example", "10.1.2.3"]
        .map(|host| host.parse().unwrap())
        .into_iter()
        .collect();
    Surroundings {
        namespace: "triage".into(),
        owner: OwnerReference {
            kind: "Agent".into(),
            name: "triage".into(),
            uid: "uid-triage".into(),
            ..OwnerReference::default()
        },
        routes: urls.iter().map(|url| allowed.route(url, "triage").unwrap()).collect(),
        proxy: None,
    }
}

/// The same behind a proxy.
fn proxied(proxy: &str, urls: &[&str]) -> Surroundings {
    let proxy: EgressProxy = proxy.parse().unwrap();
    let allowed: AllowedHosts = ["llm.models.svc".parse().unwrap()].into_iter().collect();
    let allowed = allowed.behind(Some(&proxy));
    let settings = NetworkSettings { allowed, proxy: Some(proxy.clone()), ..NetworkSettings::default() };
    let listed = ["llm.models.svc".to_owned()];
    let routes = settings.routes(urls.iter().copied(), "triage", &listed);
    Surroundings { routes, proxy: Some(proxy), ..at(&[]) }
}

fn services() -> Services {
    let all = [
        (
            "triage",
            "tool",
            json!({"selector": {"app": "tool"}, "clusterIP": "10.96.0.1", "ports": [{"port": 80, "targetPort": "http"}, {"port": 81}]}),
        ),
        (
            "triage",
            "headless",
            json!({"selector": {"app": "h"}, "clusterIP": "None", "ports": [{"port": 80, "targetPort": 9}]}),
        ),
        (
            "triage",
            "elsewhere",
            json!({"type": "ExternalName", "externalName": "10.0.0.1.nip.io", "selector": {"app": "x"}, "ports": [{"port": 80}]}),
        ),
        ("triage", "by-hand", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]})),
        (
            "models",
            "llm",
            json!({"selector": {"app": "llm"}, "clusterIP": "10.96.0.3", "ports": [{"port": 80, "targetPort": 8080}]}),
        ),
    ];
    let service = |spec: &Value| serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    let known = all.iter().map(|(of, name, spec)| ((*of, *name), Sighting::Known(Arc::new(service(spec)))));
    let others = [(("triage", "gone"), Sighting::Missing), (("models", "gone"), Sighting::Missing)]
        .into_iter()
        .chain([(("away", "far"), Sighting::Unknown)]);
    known.chain(others).map(|((namespace, name), seen)| ((namespace.into(), name.into()), seen)).collect()
}

fn rules(urls: &[&str]) -> Value {
    let policy = serde_json::to_value(around(&at(urls), &services(), &ClusterRanges::default())).unwrap();
    assert_eq!(policy["spec"]["ingress"], json!([]), "ours, so that nobody else adds to it");
    policy["spec"]["egress"].clone()
}

fn tcp(port: impl Into<Value>) -> Value {
    json!({"protocol": "TCP", "port": port.into()})
}

#[test]
fn a_service_of_the_own_namespace_is_its_pods_at_the_ports_where_they_listen() {
    let tool = json!({"podSelector": {"matchLabels": {"app": "tool"}}});
    for (url, port) in [("http://tool/mcp", json!("http")), ("http://tool.triage.svc:81/mcp", json!(81))] {
        assert_eq!(rules(&[url]), json!([{"to": [tool], "ports": [tcp(port)]}]), "{url}");
    }
    let headless = json!([{"to": [{"podSelector": {"matchLabels": {"app": "h"}}}], "ports": [tcp(80)]}]);
    assert_eq!(rules(&["http://headless:80/mcp"]), headless);
}

#[test]
fn what_has_no_pods_to_select_gets_no_rule() {
    for url in [
        "http://gone/mcp",
        "http://gone.models.svc/mcp",
        "http://elsewhere/mcp",
        "http://by-hand/mcp",
        "http://tool:82/mcp",
    ] {
        assert_eq!(rules(&[url]), json!([]), "{url}");
    }
}

#[test]
fn a_listed_service_of_another_namespace_is_its_pods_where_they_are_known() {
    let namespace = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    let llm = json!({"namespaceSelector": namespace("models"), "podSelector": {"matchLabels": {"app": "llm"}}});
    assert_eq!(rules(&["http://llm.models.svc/v1"]), json!([{"to": [llm], "ports": [tcp(8080)]}]));
    let far = json!({"namespaceSelector": namespace("away")});
    assert_eq!(rules(&["http://far.away.svc/v1"]), json!([{"to": [far], "ports": [{"protocol": "TCP"}]}]));
}

#[test]
fn public_hosts_are_their_ports_outside_private_ranges() {
    let rules = rules(&["https://api.example.com/", "https://other.example.com/", "http://third.example.com:8080/"]);
    assert_eq!(rules.as_array().unwrap().len(), 1);
    assert_eq!(rules[0]["ports"], json!([tcp(443), tcp(8080)]));
    let peers = &rules[0]["to"];
    for (address, class) in samples() {
        assert_eq!(covers(peers, address), class == AddressClass::Public, "{address}: {class}");
    }
}

#[test]
fn what_is_the_clusters_own_is_left_out_of_public_hosts_whatever_its_number() {
    let ranges: ClusterRanges = "1.1.0.0/16,2606:4700::/32,10.128.0.0/9,fd00::/8".parse().unwrap();
    let policy = around(&at(&["https://api.example.com/"]), &services(), &ranges);
    let policy = serde_json::to_value(policy).unwrap();
    let peers = &policy["spec"]["egress"][0]["to"];
    for (address, _) in samples() {
        assert_eq!(covers(peers, address), ranges.class_of(address) == AddressClass::Public, "{address}");
    }
    assert!(samples().iter().any(|(address, _)| address.to_string() == "64:ff9b::101:101"), "of the ranges, too");
    let except = |index: usize| peers[index]["ipBlock"]["except"].as_array().unwrap().clone();
    assert!(except(0).contains(&json!("1.1.0.0/16")) && !except(0).contains(&json!("10.128.0.0/9")), "named once");
    assert!(
        except(2).contains(&json!("2606:4700::/32")) && !except(2).contains(&json!("fd00::/8")),
        "within its block"
    );
}

#[test]
fn a_listed_name_may_be_private_and_never_metadata_or_the_node() {
    let rules = rules(&["https://proxy.corp.example/"]);
    for (address, class) in samples() {
        assert_eq!(covers(&rules[0]["to"], address), Reach::Private.takes(class), "{address}: {class}");
    }
    assert_eq!(
        self::rules(&["http://10.1.2.3:99/"]),
        json!([{"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [tcp(99)]}])
    );
}

/// Addresses that the policy and the guard in the runner must agree on. 6to4 a policy leaves closed.
fn samples() -> Vec<(IpAddr, AddressClass)> {
    let all = [
        "1.1.1.1",
        "9.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.64.0.0",
        "100.100.100.200",
        "100.128.0.0",
        "126.255.255.255",
        "127.0.0.1",
        "128.0.0.0",
        "168.63.129.16",
        "169.254.169.254",
        "172.15.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "172.32.0.0",
        "192.0.0.192",
        "192.0.1.1",
        "192.0.2.1",
        "192.168.0.1",
        "198.17.255.255",
        "198.18.0.1",
        "198.20.0.0",
        "198.51.100.7",
        "203.0.113.7",
        "223.255.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "64:ff9b::101:101",
        "64:ff9b::a00:1",
        "64:ff9b::6464:64c8",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::a83f:8110",
        "64:ff9b::ac20:1",
        "64:ff9b::e000:1",
        "64:ff9b:0:0:0:1::",
        "2606:4700::1",
        "2001:db8::1",
        "2001::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
        "::1",
        "::",
    ];
    all.iter().map(|text| text.parse().unwrap()).map(|address| (address, AddressClass::of(address))).collect()
}

fn covers(peers: &Value, address: IpAddr) -> bool {
    peers.as_array().unwrap().iter().any(|peer| {
        let block = &peer["ipBlock"];
        let except = block["except"].as_array().cloned().unwrap_or_default();
        inside(block["cidr"].as_str().unwrap(), address)
            && !except.iter().any(|cidr| inside(cidr.as_str().unwrap(), address))
    })
}

fn inside(cidr: &str, address: IpAddr) -> bool {
    let (network, bits) = cidr.split_once('/').unwrap();
    let bits: u32 = bits.parse().unwrap();
    match (network.parse().unwrap(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            bits == 0 || u32::from(network) >> (32 - bits) == u32::from(address) >> (32 - bits)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            bits == 0 || u128::from(network) >> (128 - bits) == u128::from(address) >> (128 - bits)
        }
        _ => false,
    }
}

#[test]
fn every_pod_reaches_dns_and_the_operator_and_nobody_reaches_a_pod() {
    let settings = NetworkSettings {
        dns: usual_dns(),
        operator: Some(Destination::parse("https://belay-operator.belay-system.svc:8443", "belay-system").unwrap()),
        operator_port: 18443,
        ..NetworkSettings::default()
    };
    let expected = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "namespace": "triage",
            "name": "belay-runners",
            "labels": {"app.kubernetes.io/part-of": "belay", "app.kubernetes.io/managed-by": "belay-operator"},
        },
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "belay.dev/network", "operator": "Exists"}]},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [
                {
                    "to": [{
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                    }],
                    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
                },
                {
                    "to": [{
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "belay-system"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "belay-operator"}},
                    }],
                    "ports": [{"protocol": "TCP", "port": 18443}],
                },
            ],
        },
    });
    assert_eq!(serde_json::to_value(base("triage", &settings)).unwrap(), expected);
}

#[test]
fn an_operator_by_a_host_name_may_be_private_and_never_metadata_or_the_node() {
    let operator = Some(Destination::parse("https://belay.corp.example:8443", "belay-system").unwrap());
    let settings = NetworkSettings { operator, ..NetworkSettings::default() };
    let policy = serde_json::to_value(base("triage", &settings)).unwrap();
    let rule = &policy["spec"]["egress"][0];
    assert_eq!(rule["ports"], json!([tcp(8443)]));
    for (address, class) in samples() {
        assert_eq!(covers(&rule["to"], address), Reach::Private.takes(class), "{address}: {class}");
    }
}

#[test]
fn other_destinations_are_another_policy_and_the_same_ones_are_shared() {
    let key = |urls: &[&str]| at(urls).key();
    assert_eq!(key(&["http://tool/a", "https://x.example/"]), key(&["https://x.example/v1", "http://tool.triage/b"]));
    assert_ne!(key(&["http://tool/a"]), key(&["http://tool:81/a"]));
    assert_eq!(key(&[]), NO_DESTINATIONS);
    let mut other = at(&["http://tool/a"]);
    other.owner.uid = "another".into();
    assert_ne!(other.key(), key(&["http://tool/a"]));
    let policy = around(&at(&["http://tool/a"]), &services(), &ClusterRanges::default());
    let key = key(&["http://tool/a"]);
    assert_eq!(policy.metadata.name, Some(format!("belay-net-{key}")));
    let selector = policy.spec.unwrap().pod_selector.unwrap();
    assert_eq!(selector.match_labels.unwrap().get("belay.dev/network"), Some(&key));
    assert_eq!(policy.metadata.owner_references.unwrap().first().map(|owner| owner.uid.as_str()), Some("uid-triage"));
}

#[test]
fn behind_a_proxy_pods_reach_it_and_no_public_address() {
    let rules = |proxy: &str, urls: &[&str]| {
        let policy =
            serde_json::to_value(around(&proxied(proxy, urls), &services(), &ClusterRanges::default())).unwrap();
        policy["spec"]["egress"].clone()
    };
    let urls = ["https://api.example.com/", "https://other.example.com:8443/", "https://1.1.1.1/"];
    let address = json!([{"to": [{"ipBlock": {"cidr": "10.9.9.9/32"}}], "ports": [tcp(3128)]}]);
    assert_eq!(rules("http://10.9.9.9:3128", &urls), address);
    // A Service by the ports where its pods listen.
    let pods = json!([{
        "to": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "models"}},
            "podSelector": {"matchLabels": {"app": "llm"}},
        }],
        "ports": [tcp(8080)],
    }]);
    assert_eq!(rules("http://llm.models.svc:80", &urls), pods);
    let named = rules("http://proxy.corp.example:3128", &urls);
    assert_eq!((named.as_array().unwrap().len(), &named[0]["ports"]), (1, &json!([tcp(3128)])));
    // What goes without the proxy has its own way, and alone no way to the proxy.
    let tool = json!({"to": [{"podSelector": {"matchLabels": {"app": "tool"}}}], "ports": [tcp("http")]});
    assert_eq!(rules("http://10.9.9.9:3128", &["http://tool/mcp"]), json!([tool]));
    let both = rules("http://10.9.9.9:3128", &["http://tool/mcp", "https://api.example.com/"]);
    assert_eq!(both.as_array().unwrap().len(), 2);
}

#[test]
fn another_proxy_is_another_policy_where_one_is_used() {
    let key = |proxy: &str, url: &str| proxied(proxy, &[url]).key();
    let (one, other) = ("http://10.9.9.9:3128", "http://10.9.9.8:3128");
    assert_ne!(key(one, "https://api.example.com/"), key(other, "https://api.example.com/"));
    assert_eq!(key(one, "http://tool/mcp"), at(&["http://tool/mcp"]).key());
}
