//! The NetworkPolicies around runner and probe pods. Pure: what they allow follows from the plan's URLs, the Services
//! that are there and the installation.
//!
//! Every pod carries the label [`NETWORK_LABEL`]. One policy a namespace selects all of them, lets nothing in, and only
//! cluster DNS and the operator out. One for each owner and set of destinations adds those, for pods with its key.

mod blocks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use belay_crds::NETWORK_LABEL;
use belay_protocol::digest::digest_of;
use belay_protocol::network::{ClusterRanges, Destination, EgressProxy, Host, Reach, Route};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::NetworkSettings;
use crate::pod_template::MANAGED_BY;

/// The policy of every pod in a namespace.
pub const BASE: &str = "belay-runners";
/// The key of pods that need no more than that one.
pub const NO_DESTINATIONS: &str = "none";
const KEY_LENGTH: usize = 16;
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What is known of a Service that a URL names.
#[derive(Clone, Debug)]
pub enum Sighting {
    /// Its namespace is not looked at: this installation does not serve it.
    Unknown,
    Missing,
    /// Its namespace is about to be looked at.
    Starting,
    Known(Arc<Service>),
}

/// Those that are named, by namespace and name.
pub type Services = BTreeMap<(String, String), Sighting>;

/// What the pods of one owner may reach.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub namespace: String,
    pub owner: OwnerReference,
    pub routes: BTreeSet<Route>,
    /// What leads to those that are proxied.
    pub proxy: Option<EgressProxy>,
}

impl Surroundings {
    /// What labels pods and names the policy: the same for the same owner and destinations.
    #[must_use]
    pub fn key(&self) -> String {
        if self.routes.is_empty() {
            return NO_DESTINATIONS.to_owned();
        }
        let routes: Vec<_> = self
            .routes
            .iter()
            .map(|route| format!("{} {} {:?}", route.destination.host, route.destination.port, route.reach))
            .collect();
        // Pods that know another proxy keep the policy that leads to it.
        let digest = match self.proxy_in_use() {
            Some(proxy) => digest_of(&(&self.owner.uid, routes, proxy.to_string())),
            None => digest_of(&(&self.owner.uid, routes)),
        };
        let digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        digest.trim_start_matches("sha256:").chars().take(KEY_LENGTH).collect()
    }
}

impl Surroundings {
    fn proxy_in_use(&self) -> Option<&EgressProxy> {
        self.proxy.as_ref().filter(|_| self.routes.iter().any(|route| route.reach == Reach::Proxied))
    }

    /// Every way that pods take themselves: to the proxy, in place of what it leads to.
    pub(super) fn taken(&self) -> BTreeSet<Route> {
        let direct = self.routes.iter().filter(|route| route.reach != Reach::Proxied).cloned();
        direct.chain(self.proxy_in_use().map(EgressProxy::route)).collect()
    }
}

/// The name of the policy for pods with that key.
#[must_use]
pub fn name_of(key: &str) -> String {
    format!("belay-net-{key}")
}

/// Nothing in; out only to cluster DNS and the operator.
#[must_use]
pub fn base(namespace: &str, settings: &NetworkSettings) -> NetworkPolicy {
    let egress = settings.dns.iter().cloned().chain(operator(settings)).collect();
    let any = LabelSelectorRequirement { key: NETWORK_LABEL.to_owned(), operator: "Exists".to_owned(), values: None };
    let selector = LabelSelector { match_expressions: Some(vec![any]), match_labels: None };
    policy(namespace, BASE, None, selector, egress)
}

/// Adds the destinations of one owner's pods.
#[must_use]
pub fn around(at: &Surroundings, services: &Services, ranges: &ClusterRanges) -> NetworkPolicy {
    let key = at.key();
    let selector = labelled([(NETWORK_LABEL, key.as_str())]);
    policy(&at.namespace, &name_of(&key), Some(at.owner.clone()), selector, egress(at, services, ranges))
}

fn policy(
    namespace: &str,
    name: &str,
    owner: Option<OwnerReference>,
    pod_selector: LabelSelector,
    egress: Vec<NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    let labels = [("app.kubernetes.io/part-of", "belay"), ("app.kubernetes.io/managed-by", MANAGED_BY)];
    NetworkPolicy {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            labels: Some(strings(labels)),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pod_selector),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            // Named even where they are empty: what others add to a field that we apply is taken out again.
            ingress: Some(Vec::new()),
            egress: Some(egress),
        }),
    }
}

/// One rule for public hosts, since a policy cannot tell them apart; one for each of the others.
fn egress(at: &Surroundings, services: &Services, ranges: &ClusterRanges) -> Vec<NetworkPolicyEgressRule> {
    let public = |route: &&Route| matches!((&route.destination.host, route.reach), (Host::Name(_), Reach::Public));
    let routes = at.taken();
    let ports: BTreeSet<u16> = routes.iter().filter(public).map(|route| route.destination.port).collect();
    let public_rule = (!ports.is_empty())
        .then(|| rule(blocks::public(ranges), ports.into_iter().map(|port| IntOrString::Int(port.into())).collect()));
    let others = routes.iter().filter(|route| !public(route)).filter_map(|route| {
        let port = IntOrString::Int(route.destination.port.into());
        match &route.destination.host {
            Host::Service { name, namespace } => {
                let away = (*namespace != at.namespace).then_some(namespace.as_str());
                match services.get(&(namespace.clone(), name.clone()))? {
                    Sighting::Unknown => away.map(to_any_pod),
                    Sighting::Missing | Sighting::Starting => None,
                    Sighting::Known(service) => to_service(service, away, route.destination.port),
                }
            }
            Host::Address(address) => Some(rule(vec![blocks::one(*address)], vec![port])),
            // Listed by the installation.
            Host::Name(_) => Some(rule(blocks::named(), vec![port])),
        }
    });
    public_rule.into_iter().chain(others).collect()
}

/// Which pods stand for a Service there, and at which ports, nobody can tell.
fn to_any_pod(namespace: &str) -> NetworkPolicyEgressRule {
    let namespace_selector = Some(labelled([(NAMESPACE_NAME, namespace)]));
    rule(vec![NetworkPolicyPeer { namespace_selector, ..NetworkPolicyPeer::default() }], Vec::new())
}

/// What a Service of type `ExternalName` stands for: a host, and no pods.
#[must_use]
pub fn external_name(service: &Service) -> Option<&str> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("ExternalName"))?;
    Some(spec.external_name.as_deref().unwrap_or_default())
}

/// The pods behind a Service, at the ports where they listen. None: it has no pods that a policy can select.
fn to_service(service: &Service, away: Option<&str>, port: u16) -> Option<NetworkPolicyEgressRule> {
    let namespace_selector = away.map(|namespace| labelled([(NAMESPACE_NAME, namespace)]));
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.clone().filter(|selector| !selector.is_empty())?;
    if external_name(service).is_some() {
        return None;
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let offered = spec.ports.iter().flatten().find(|offered| offered.port == i32::from(port));
    let target = match (headless, offered) {
        // Whoever resolves a headless Service talks to its pods at the URL's own port.
        (true, _) => IntOrString::Int(port.into()),
        (false, Some(offered)) => offered.target_port.clone().unwrap_or(IntOrString::Int(port.into())),
        (false, None) => return None,
    };
    let pod_selector = Some(LabelSelector { match_labels: Some(selector), match_expressions: None });
    Some(rule(vec![NetworkPolicyPeer { namespace_selector, pod_selector, ip_block: None }], vec![target]))
}

fn operator(settings: &NetworkSettings) -> Option<NetworkPolicyEgressRule> {
    let Destination { host, port } = settings.operator.clone()?;
    let (peers, port) = match host {
        Host::Service { namespace, .. } => {
            let peer = NetworkPolicyPeer {
                namespace_selector: Some(labelled([(NAMESPACE_NAME, namespace.as_str())])),
                pod_selector: Some(labelled([("app.kubernetes.io/name", "belay-operator")])),
                ip_block: None,
            };
            (vec![peer], settings.operator_port)
        }
        Host::Address(address) => (vec![blocks::one(address)], port),
        Host::Name(_) => (blocks::named(), port),
    };
    Some(rule(peers, vec![IntOrString::Int(port.into())]))
}

/// How pods reach DNS where the installation says nothing else: as most distributions run it.
#[must_use]
pub fn usual_dns() -> Vec<NetworkPolicyEgressRule> {
    let peer = NetworkPolicyPeer {
        namespace_selector: Some(labelled([(NAMESPACE_NAME, "kube-system")])),
        pod_selector: Some(labelled([("k8s-app", "kube-dns")])),
        ip_block: None,
    };
    let port = |protocol: &str| NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(53)),
        end_port: None,
    };
    vec![NetworkPolicyEgressRule { to: Some(vec![peer]), ports: Some(vec![port("UDP"), port("TCP")]) }]
}

/// Over TCP alone, at any port where none is said.
fn rule(to: Vec<NetworkPolicyPeer>, ports: Vec<IntOrString>) -> NetworkPolicyEgressRule {
    let tcp = |port| NetworkPolicyPort { protocol: Some("TCP".to_owned()), port, end_port: None };
    let ports = if ports.is_empty() { vec![tcp(None)] } else { ports.into_iter().map(Some).map(tcp).collect() };
    NetworkPolicyEgressRule { to: Some(to), ports: Some(ports) }
}

fn labelled<const N: usize>(labels: [(&str, &str); N]) -> LabelSelector {
    LabelSelector { match_labels: Some(strings(labels)), match_expressions: None }
}

fn strings<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests;
