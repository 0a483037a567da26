//! What names resolve to. Whoever asks hands over whole names: a search list is read for where Services lie, and followed
//! never.

use std::io;
use std::net::IpAddr;

use futures::future::BoxFuture;

const RESOLVER_FILE: &str = "/etc/resolv.conf";
const USUAL_DOMAIN: &str = "cluster.local";

/// What resolves names. Tests play one.
pub trait Names: Send + Sync {
    /// In which domain the names of Services lie, without dots at its ends.
    fn cluster_domain(&self) -> &str;
    fn look_up(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The pod's own resolver.
pub struct SystemNames {
    cluster_domain: String,
}

impl SystemNames {
    /// As the kubelet set it up. Outside of a pod Services lie where they mostly do.
    #[must_use]
    pub fn of_pod() -> Self {
        let file = std::fs::read_to_string(RESOLVER_FILE).unwrap_or_default();
        Self { cluster_domain: cluster_domain(&file).unwrap_or(USUAL_DOMAIN).to_owned() }
    }
}

impl Names for SystemNames {
    fn cluster_domain(&self) -> &str {
        &self.cluster_domain
    }

    fn look_up(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|found| found.ip()).collect()) })
    }
}

/// Where Services lie by a search list: the first entry `NAMESPACE.svc.DOMAIN`, as the kubelet writes it before those of
/// the node. Of several lists the last one counts, as for resolvers.
fn cluster_domain(resolver_file: &str) -> Option<&str> {
    let mut lines = resolver_file.lines().rev().map(str::split_whitespace);
    let entries = lines.find_map(|mut words| (words.next() == Some("search")).then_some(words))?;
    entries.filter_map(|entry| entry.split_once(".svc.")).find_map(|(namespace, domain)| {
        let domain = domain.trim_end_matches('.');
        (!namespace.contains('.') && !domain.is_empty()).then_some(domain)
    })
}

#[cfg(test)]
mod tests {
    use super::cluster_domain;
    use rstest::rstest;

    #[rstest]
    #[case(
        "search team.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
        Some("cluster.local")
    )]
    #[case("nameserver 10.96.0.10\n  search\tteam.svc.corp.example. svc.corp.example.\n", Some("corp.example"))]
    #[case("search svc.svc.k8s svc.k8s k8s", Some("k8s"))]
    #[case("search team.svc.k8s svc.k8s k8s node.svc.corp.example", Some("k8s"))]
    #[case("search a.svc.old\nsearch a.svc.new", Some("new"))]
    #[case("search corp.example example", None)]
    #[case("search svc.cluster.local team.svc.", None)]
    #[case("# search team.svc.cluster.local\nsearching team.svc.cluster.local", None)]
    #[case("", None)]
    fn the_domain_of_services_is_what_the_kubelet_wrote(#[case] file: &str, #[case] domain: Option<&str>) {
        assert_eq!(cluster_domain(file), domain);
    }
}
