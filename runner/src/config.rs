//! What the pod tells the runner: environment variables and mounted folders, parsed once at the border.

use std::path::PathBuf;

use belay_protocol::network::{ClusterRanges, EgressProxy, NotAProxy, NotARange};
use belay_protocol::{AUTHORITIES_DIR, CREDENTIALS_DIR, DOCUMENTS_DIR, TOKEN_FILE};

use crate::egress::Destinations;

/// Everything a runner or probe needs to find its operator.
#[derive(Clone, Debug)]
pub struct Config {
    pub operator: OperatorAddress,
    pub mode: Mode,
    /// The pod's own name, for diagnostics.
    pub pod_name: String,
    pub token_file: PathBuf,
    pub credentials_folder: PathBuf,
    pub documents_folder: PathBuf,
    pub authorities_folder: PathBuf,
    /// Leads to public hosts, where the installation has one.
    pub egress_proxy: Option<EgressProxy>,
    /// Addresses that are the cluster's own, whatever their numbers.
    pub cluster_ranges: ClusterRanges,
}

/// An `https` address and the authorities that may vouch for it.
#[derive(Clone, Debug)]
pub struct OperatorAddress {
    pub url: String,
    /// The host of `url`, which the operator's certificate must name.
    pub host: String,
    pub ca_pem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Run,
    Probe,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("the environment variable {0} is not set: this program is started by belay-operator, in a pod")]
    Missing(&'static str),
    #[error("BELAY_OPERATOR_ADDR must be https://HOST:PORT, not {0}")]
    Address(String),
    #[error("BELAY_EGRESS_PROXY: {0}")]
    EgressProxy(#[from] NotAProxy),
    #[error("BELAY_CLUSTER_RANGES: {0}")]
    ClusterRanges(#[from] NotARange),
    #[error("BELAY_MODE must be run or probe, not {0}")]
    Mode(String),
}

impl Config {
    /// Reads the settings of a pod; `variable` looks one environment variable up.
    pub fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let required =
            |name: &'static str| variable(name).filter(|value| !value.is_empty()).ok_or(ConfigError::Missing(name));
        let mode = match variable("BELAY_MODE").as_deref() {
            None | Some("" | "run") => Mode::Run,
            Some("probe") => Mode::Probe,
            Some(other) => return Err(ConfigError::Mode(other.to_owned())),
        };
        // What cannot be read must not become a way around it.
        let egress_proxy = variable("BELAY_EGRESS_PROXY").filter(|value| !value.is_empty());
        let egress_proxy = egress_proxy.map(|proxy| proxy.parse()).transpose()?;
        let cluster_ranges = variable("BELAY_CLUSTER_RANGES").unwrap_or_default().parse()?;
        Ok(Self {
            operator: OperatorAddress::parse(required("BELAY_OPERATOR_ADDR")?, required("BELAY_OPERATOR_CA_PEM")?)?,
            mode,
            pod_name: required("HOSTNAME")?,
            token_file: TOKEN_FILE.into(),
            credentials_folder: CREDENTIALS_DIR.into(),
            documents_folder: DOCUMENTS_DIR.into(),
            authorities_folder: AUTHORITIES_DIR.into(),
            egress_proxy,
            cluster_ranges,
        })
    }
}

impl Config {
    /// How whatever the pod sends gets out, to nowhere yet.
    #[must_use]
    pub fn way_out(&self) -> Destinations {
        let none = Destinations::new("", &[]);
        let through = none.with_authorities(self.authorities_folder.clone()).through(self.egress_proxy.clone());
        through.in_cluster(self.cluster_ranges.clone())
    }
}

impl OperatorAddress {
    /// Refuses anything but `https`: the token goes there.
    pub fn parse(url: String, ca_pem: String) -> Result<Self, ConfigError> {
        let parsed = reqwest::Url::parse(&url).map_err(|_| ConfigError::Address(url.clone()))?;
        match (parsed.scheme(), parsed.host_str()) {
            ("https", Some(host)) => Ok(Self { host: host.to_owned(), url, ca_pem }),
            _ => Err(ConfigError::Address(url)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    const GOOD: [(&str, &str); 3] = [
        ("BELAY_OPERATOR_ADDR", "https://belay-operator.belay-system.svc:8443"),
        ("BELAY_OPERATOR_CA_PEM", "PEM"),
        ("HOSTNAME", "belay-run-x"),
    ];

    fn parse(changed: Option<(&str, &str)>) -> Result<Config, ConfigError> {
        Config::parse(|name| {
            let given = changed.into_iter().chain(GOOD).find(|(key, _)| *key == name);
            given.map(|(_, value)| value.to_owned())
        })
    }

    #[test]
    fn a_pod_of_the_operator_needs_no_more_than_three_variables() {
        let config = parse(None).unwrap();
        assert_eq!(config.mode, Mode::Run);
        assert_eq!(config.operator.host, "belay-operator.belay-system.svc");
        assert_eq!(config.token_file, PathBuf::from(TOKEN_FILE));
        assert_eq!((config.egress_proxy, config.cluster_ranges), (None, ClusterRanges::default()));
        let proxied = parse(Some(("BELAY_EGRESS_PROXY", "http://10.1.2.3:3128"))).unwrap();
        assert_eq!(proxied.egress_proxy, Some("http://10.1.2.3:3128".parse().unwrap()));
        let ranged = parse(Some(("BELAY_CLUSTER_RANGES", "8.8.0.0/16,2600::/32"))).unwrap();
        assert_eq!(ranged.cluster_ranges.to_string(), "8.8.0.0/16,2600::/32");
    }

    #[rstest]
    #[case("BELAY_OPERATOR_ADDR", "http://operator:80", ConfigError::Address("http://operator:80".into()))]
    #[case("BELAY_OPERATOR_ADDR", "operator", ConfigError::Address("operator".into()))]
    #[case("BELAY_OPERATOR_CA_PEM", "", ConfigError::Missing("BELAY_OPERATOR_CA_PEM"))]
    #[case("BELAY_EGRESS_PROXY", "proxy:3128", ConfigError::EgressProxy(NotAProxy::Spelling("proxy:3128".into())))]
    #[case("BELAY_CLUSTER_RANGES", "8.8.0.1/16", ConfigError::ClusterRanges(NotARange::Spelling("8.8.0.1/16".into())))]
    #[case("BELAY_MODE", "sing", ConfigError::Mode("sing".into()))]
    fn a_wrong_variable_is_named(#[case] name: &str, #[case] value: &str, #[case] error: ConfigError) {
        assert_eq!(parse(Some((name, value))).unwrap_err(), error);
    }
}
