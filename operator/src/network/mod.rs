//! Where runner and probe pods may go: which URLs are refused beforehand, and the NetworkPolicies around the pods.

pub mod destinations;
pub mod enforcement;
pub mod fences;
pub mod policy;
pub mod widening;

use std::collections::BTreeSet;

use belay_protocol::network::{AllowedHosts, ClusterRanges, Destination, EgressProxy, Host, Route};
use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;

/// What the installation decides about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkSettings {
    /// What may be reached at private addresses, beside Services of the own namespace.
    pub allowed: AllowedHosts,
    /// Leads pods to public hosts. None: they go there themselves.
    pub proxy: Option<EgressProxy>,
    /// Addresses that are the cluster's own, whatever their numbers.
    pub ranges: ClusterRanges,
    /// How pods reach cluster DNS.
    pub dns: Vec<NetworkPolicyEgressRule>,
    /// How pods reach the operator.
    pub operator: Option<Destination>,
    /// Where its own pod listens for them.
    pub operator_port: u16,
    /// Where the operator listens for others than pods: what no policy of ours lets out to.
    pub forbidden: Option<String>,
}

impl NetworkSettings {
    /// Services that runs of other namespaces may go to, or are led to, by namespace and name.
    #[must_use]
    pub fn shared_services(&self) -> BTreeSet<(String, String)> {
        let proxy = self.proxy.as_ref().map(|proxy| proxy.route().destination.host);
        let services = self.allowed.hosts().chain(&proxy).filter_map(|host| match host {
            Host::Service { name, namespace } => Some((namespace.clone(), name.clone())),
            Host::Name(_) | Host::Address(_) => None,
        });
        services.collect()
    }

    /// The ways from `namespace` to those URLs that may be requested, for a plan that names these private hosts.
    #[must_use]
    pub fn routes<'a>(
        &self,
        urls: impl IntoIterator<Item = &'a str>,
        namespace: &str,
        private_hosts: &[String],
    ) -> BTreeSet<Route> {
        fences::routes(urls, namespace, &self.allowed.listing(private_hosts))
    }
}
