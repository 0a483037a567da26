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

    /// The ways from `namespace` to those URLs that may be requested, for a plan that names these private hosts. Those that
    /// the installation lists no more get none.
    #[must_use]
    pub fn routes<'a>(
        &self,
        urls: impl IntoIterator<Item = &'a str>,
        namespace: &str,
        private_hosts: &[String],
    ) -> BTreeSet<Route> {
        fences::routes(urls, namespace, &self.allowed.among(private_hosts))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_protocol::network::Reach;

    use super::*;

    #[test]
    fn what_was_taken_off_the_list_is_closed_to_pods_of_plans_that_name_it() {
        let listed = |hosts: &[&str]| {
            let allowed = hosts.iter().map(|host| host.parse().unwrap()).collect();
            let settings = NetworkSettings { allowed, ..NetworkSettings::default() };
            let planned = ["llm.models.svc", "10.1.2.3", "db.corp.example"].map(str::to_owned);
            let urls = ["http://llm.models.svc/", "http://10.1.2.3/", "https://db.corp.example/", "http://tool/"];
            let routes = settings.routes(urls, "triage", &planned);
            let reach = |route: Route| (route.destination.host.to_string(), route.reach);
            routes.into_iter().map(reach).collect::<BTreeSet<_>>()
        };
        let host = |name: &str, reach| (name.to_owned(), reach);
        let tool = host("tool.triage.svc", Reach::Private);
        let (llm, address) = (host("llm.models.svc", Reach::Private), host("10.1.2.3", Reach::Private));
        let (private, public) = (host("db.corp.example", Reach::Private), host("db.corp.example", Reach::Public));
        let all = ["llm.models.svc", "10.1.2.3", "db.corp.example", "other.models.svc"];
        assert_eq!(listed(&all), BTreeSet::from([llm, address, private, tool.clone()]));
        assert_eq!(listed(&[]), BTreeSet::from([public, tool]));
    }
}
