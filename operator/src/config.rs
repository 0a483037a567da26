//! What the installation decides: flags and environment variables, parsed once at the border.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use belay_protocol::network::{AddressRange, AllowedHost, AllowedHosts, ClusterRanges, Destination, EgressProxy};
use belay_protocol::trace::Content;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;
use reqwest::Url;
use serde::de::DeserializeOwned;

use crate::journal::Settings;
use crate::network::NetworkSettings;
use crate::network::policy::usual_dns;
use crate::telemetry::Collector;

/// Governs AI agents on Kubernetes: turns every AgentRun into an isolated pod and decides what it may do.
#[derive(Clone, Debug, Parser)]
#[command(name = "belay-operator", version, subcommand_negates_reqs = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Absent only where a command was given.
    #[command(flatten)]
    pub config: Option<Config>,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Look into the journal beside the operator that writes it
    #[command(subcommand)]
    Journal(JournalCommand),
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum JournalCommand {
    /// Print all that the journal holds of a run; `belay journal verify` checks it anywhere
    Export {
        /// NAMESPACE/NAME, or the uid of the AgentRun
        run: String,
        /// Where the journal is kept
        #[arg(long, env = "BELAY_DATA_DIR", default_value = "/var/lib/belay")]
        data_dir: PathBuf,
    },
}

/// Governs AI agents on Kubernetes: turns every AgentRun into an isolated pod and decides what it may do.
#[derive(Clone, Debug, Parser)]
#[command(name = "belay-operator", version)]
pub struct Config {
    /// The operator's own namespace
    #[arg(long, env = "BELAY_NAMESPACE", default_value = "belay-system")]
    pub namespace: String,

    /// Uid of the operator's own pod; outside of a pod a random one is made
    #[arg(long, env = "BELAY_POD_UID")]
    pub pod_uid: Option<String>,

    /// Where runners connect
    #[arg(long, env = "BELAY_GRPC_ADDRESS", default_value = "0.0.0.0:8443")]
    pub grpc_address: SocketAddr,

    /// Where health and metrics are served
    #[arg(long, env = "BELAY_HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,

    /// How runners reach the operator [default: the Service `belay-operator` of its namespace]
    #[arg(long, env = "BELAY_RUNNER_OPERATOR_ADDRESS")]
    pub runner_operator_address: Option<String>,

    /// Further names or addresses that the operator's certificate shall hold
    #[arg(long, env = "BELAY_CERTIFICATE_NAMES", value_delimiter = ',')]
    pub certificate_names: Vec<String>,

    /// Image of runner and probe pods
    #[arg(long, env = "BELAY_RUNNER_IMAGE")]
    pub runner_image: String,

    /// When nodes pull that image
    #[arg(long, env = "BELAY_RUNNER_IMAGE_PULL_POLICY", value_enum, default_value_t = PullPolicy::IfNotPresent)]
    pub runner_image_pull_policy: PullPolicy,

    /// Where the journal is kept
    #[arg(long, env = "BELAY_DATA_DIR", default_value = "/var/lib/belay")]
    pub data_dir: PathBuf,

    /// Days for which the journal keeps a run after its AgentRun was deleted; 0 forgets it at once
    #[arg(long, env = "BELAY_JOURNAL_RETENTION_DAYS", default_value_t = 30)]
    pub journal_retention_days: u32,

    /// Space that is held back so that runs can be cancelled and ended while the journal's volume is full
    #[arg(long, env = "BELAY_JOURNAL_RESERVE_MEBIBYTES", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub journal_reserve_mebibytes: u32,

    /// What one run may write into the journal; one that writes more is ended. A runner that takes a run up is told
    /// all of it, hence the bound
    #[arg(long, env = "BELAY_RUN_JOURNAL_MEBIBYTES", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=56))]
    pub run_journal_mebibytes: u32,

    /// Runs at one time in the whole installation; the rest wait in order
    #[arg(long, env = "BELAY_MAX_RUNS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_runs: u32,

    /// Runs at one time in one namespace
    #[arg(long, env = "BELAY_MAX_RUNS_PER_NAMESPACE", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_runs_per_namespace: u32,

    /// Pods that may be starting at one time, so that many runs at once do not storm nodes
    #[arg(long, env = "BELAY_MAX_STARTING_PODS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_starting_pods: u32,

    /// Whether a runner's address must be its pod's; false where the network masquerades
    #[arg(long, env = "BELAY_VERIFY_PEER_ADDRESS", default_value_t = true, action = ArgAction::Set)]
    pub verify_peer_address: bool,

    /// What Models and Tools may name at private addresses, beside Services of their own namespace, separated by commas:
    /// Services of other namespaces (NAME.NAMESPACE.svc), host names, addresses
    #[arg(long, env = "BELAY_ALLOWED_PRIVATE_HOSTS", value_delimiter = ',')]
    pub allowed_private_hosts: Vec<AllowedHost>,

    /// Ranges of addresses with public numbers that pods, Services or nodes have, separated by commas: they count as private
    #[arg(long, env = "BELAY_CLUSTER_RANGES", value_delimiter = ',')]
    pub cluster_ranges: Vec<AddressRange>,

    /// The forward proxy by which runner and probe pods reach public hosts, such as `http://proxy.example:3128`: asked
    /// with CONNECT, for https alone. What --allowed-private-hosts lists and Services are reached without it
    #[arg(long, env = "BELAY_EGRESS_PROXY")]
    pub egress_proxy: Option<EgressProxy>,

    /// How runner and probe pods reach cluster DNS: a JSON list of egress rules of a NetworkPolicy [default: pods with the
    /// label k8s-app=kube-dns in kube-system, port 53]
    #[arg(long, env = "BELAY_DNS_EGRESS", default_value = "[]")]
    pub dns_egress: Json<Vec<NetworkPolicyEgressRule>>,

    /// Tolerations of runner and probe pods, a JSON list
    #[arg(long, env = "BELAY_POD_TOLERATIONS", default_value = "[]")]
    pub pod_tolerations: Json<Vec<Toleration>>,

    /// Node selector of runner and probe pods, a JSON object
    #[arg(long, env = "BELAY_POD_NODE_SELECTOR", default_value = "{}")]
    pub pod_node_selector: Json<BTreeMap<String, String>>,

    /// Where spans of runs are sent, OTLP over HTTP; `/v1/traces` is appended. Nothing is sent unless it is set
    #[arg(long, env = "BELAY_OTLP_ENDPOINT", value_parser = endpoint)]
    pub otlp_endpoint: Option<Url>,

    /// A file of `name: value` lines that go with every such request, read each time
    #[arg(long, env = "BELAY_OTLP_HEADERS_FILE", requires = "otlp_endpoint")]
    pub otlp_headers_file: Option<PathBuf>,

    /// Certificates in PEM that are trusted there instead of the usual ones
    #[arg(long, env = "BELAY_OTLP_CA_FILE", requires = "otlp_endpoint")]
    pub otlp_ca_file: Option<PathBuf>,

    /// Whether spans hold prompts, answers, arguments and results
    #[arg(long, env = "BELAY_OTLP_CAPTURE_CONTENT", default_value_t = false, action = ArgAction::Set)]
    pub otlp_capture_content: bool,

    /// Attributes of the resource that spans come from, a JSON object of strings
    #[arg(long, env = "BELAY_OTLP_RESOURCE_ATTRIBUTES", default_value = "{}")]
    pub otlp_resource_attributes: Json<BTreeMap<String, String>>,

    /// How log lines are written
    #[arg(long, env = "BELAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Json,
    Text,
}

/// A setting that is written as JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromStr for Json<T> {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map(Self)
    }
}

impl Config {
    /// The address that pods are given.
    #[must_use]
    pub fn operator_address(&self) -> String {
        let default = || format!("https://belay-operator.{}.svc:8443", self.namespace);
        self.runner_operator_address.clone().unwrap_or_else(default)
    }

    /// The names that the operator's certificate vouches for.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        let service = format!("belay-operator.{}.svc", self.namespace);
        let names = [format!("{service}.cluster.local"), service, format!("belay-operator.{}", self.namespace)];
        names.into_iter().chain(self.certificate_names.iter().cloned()).collect()
    }

    /// Who holds the Lease. No two living processes share it: a pod's containers never live at one time, so one
    /// that was restarted goes on where the last one died.
    #[must_use]
    pub fn identity(&self) -> String {
        let place = std::env::var("HOSTNAME").unwrap_or_else(|_| "belay-operator".to_owned());
        let random = || format!("{:016x}", rand::random::<u64>());
        format!("{place}_{}", self.pod_uid.clone().unwrap_or_else(random))
    }

    /// Where spans go. None: nowhere.
    #[must_use]
    pub fn collector(&self) -> Option<Collector> {
        let mut resource = BTreeMap::from([
            ("service.name".to_owned(), "belay-operator".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("k8s.namespace.name".to_owned(), self.namespace.clone()),
        ]);
        resource.extend(self.otlp_resource_attributes.0.clone());
        Some(Collector {
            endpoint: self.otlp_endpoint.clone()?,
            headers_file: self.otlp_headers_file.clone(),
            ca_file: self.otlp_ca_file.clone(),
            resource: resource.into_iter().collect(),
        })
    }

    #[must_use]
    pub fn span_content(&self) -> Content {
        if self.otlp_capture_content { Content::Kept } else { Content::Left }
    }

    #[must_use]
    pub fn network(&self) -> NetworkSettings {
        let dns = self.dns_egress.0.clone();
        let allowed: AllowedHosts = self.allowed_private_hosts.iter().cloned().collect();
        let ranges: ClusterRanges = self.cluster_ranges.iter().copied().collect();
        NetworkSettings {
            allowed: allowed.behind(self.egress_proxy.as_ref()).in_cluster(ranges.clone()),
            ranges,
            proxy: self.egress_proxy.clone(),
            dns: if dns.is_empty() { usual_dns() } else { dns },
            operator: Destination::parse(&self.operator_address(), &self.namespace).ok(),
            operator_port: self.grpc_address.port(),
            forbidden: self
                .runner_operator_address
                .is_none()
                .then(|| format!("belay-operator.{}.svc:{}", self.namespace, self.http_address.port())),
        }
    }

    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        journal_path(&self.data_dir)
    }

    /// What one run may write into the journal.
    #[must_use]
    pub fn run_bytes_max(&self) -> u64 {
        u64::from(self.run_journal_mebibytes) * 1024 * 1024
    }

    #[must_use]
    pub fn journal_settings(&self) -> Settings {
        Settings {
            reserve_bytes: u64::from(self.journal_reserve_mebibytes) * 1024 * 1024,
            retention: Duration::from_hours(u64::from(self.journal_retention_days) * 24),
        }
    }
}

/// A base URL that a path can be appended to. Keys belong into the file of headers.
fn endpoint(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("it has to begin with http:// or https:// and name a host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("it may hold no user, password, query or fragment".to_owned());
    }
    Ok(url)
}

/// The journal's file in the folder that the installation gave it.
#[must_use]
pub fn journal_path(data_dir: &Path) -> PathBuf {
    data_dir.join("journal.sqlite")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(extra: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(["belay-operator", "--runner-image", "runner:1"].iter().chain(extra))
    }

    #[test]
    fn an_installation_needs_to_name_only_the_runner_image() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.operator_address(), "https://belay-operator.belay-system.svc:8443");
        assert!(config.verify_peer_address);
        assert_eq!((config.max_runs, config.max_runs_per_namespace), (100, 50));
        assert!(config.certificate_names().contains(&"belay-operator.belay-system.svc".to_owned()));
    }

    #[test]
    fn only_a_pod_has_the_same_identity_twice() {
        assert_ne!(parse(&[]).unwrap().identity(), parse(&[]).unwrap().identity());
        let pod = || parse(&["--pod-uid", "u-1"]).unwrap().identity();
        assert!(pod() == pod() && pod().ends_with("_u-1"));
    }

    #[test]
    fn the_journal_can_be_looked_into_without_the_settings_of_an_operator() {
        let export =
            |words: &[&str]| Arguments::try_parse_from([&["belay-operator", "journal", "export"], words].concat());
        let arguments = export(&["team/triage-1"]).unwrap();
        let data_dir = PathBuf::from("/var/lib/belay");
        let command = Command::Journal(JournalCommand::Export { run: "team/triage-1".into(), data_dir });
        assert_eq!(arguments.command, Some(command));
        assert!(export(&[]).is_err());
        assert!(Arguments::try_parse_from(["belay-operator"]).is_err(), "an operator needs the runner's image");
        let operator = Arguments::try_parse_from(["belay-operator", "--runner-image", "runner:1"]).unwrap();
        assert!(operator.command.is_none() && operator.config.is_some());
    }

    #[test]
    fn a_journal_keeps_eight_mebibytes_and_thirty_days_unless_told_otherwise() {
        assert_eq!(parse(&[]).unwrap().journal_settings(), Settings::default());
        let forgetful = parse(&["--journal-retention-days", "0", "--journal-reserve-mebibytes", "64"]).unwrap();
        let settings = Settings { reserve_bytes: 64 << 20, retention: Duration::ZERO };
        assert_eq!(forgetful.journal_settings(), settings);
        assert!(parse(&["--journal-reserve-mebibytes", "0"]).is_err());
    }

    #[test]
    fn what_a_run_may_write_fits_what_a_runner_can_be_told() {
        assert_eq!(parse(&[]).unwrap().run_journal_mebibytes, 48);
        assert!(parse(&["--run-journal-mebibytes", "0"]).is_err());
        assert!(parse(&["--run-journal-mebibytes", "57"]).is_err());
        // The batch that goes over the bound, and what the operator adds to it, are told as well.
        let most = 56 * 1024 * 1024 + 2 * belay_protocol::BATCH_BYTES_MAX;
        assert!(most < belay_protocol::WELCOME_BYTES_MAX);
    }

    #[test]
    fn what_an_installation_cannot_allow_is_refused_at_the_start() {
        let usual = parse(&[]).unwrap().network();
        assert_eq!((usual.allowed, usual.dns, usual.operator_port), (AllowedHosts::default(), usual_dns(), 8443));
        assert_eq!(usual.forbidden.as_deref(), Some("belay-operator.belay-system.svc:8080"));
        let elsewhere = parse(&["--runner-operator-address", "https://10.0.0.1:8443"]).unwrap().network();
        assert_eq!(elsewhere.forbidden, None);
        assert_eq!(usual.operator.unwrap().host.to_string(), "belay-operator.belay-system.svc");
        let other = parse(&["--dns-egress", r#"[{"to": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}]"#]).unwrap();
        assert_ne!(other.network().dns, usual_dns());
        let listed = parse(&["--allowed-private-hosts", "llm.models.svc,10.1.2.3"]).unwrap().network();
        assert!(listed.allowed.route("http://llm.models.svc/", "team").is_ok());
        assert!(listed.allowed.route("http://10.1.2.3/", "team").is_ok());
        for never in ["169.254.169.254", "llm", "0x7f.1"] {
            assert!(parse(&["--allowed-private-hosts", never]).is_err(), "{never}");
        }
    }

    #[test]
    fn what_is_no_range_of_the_clusters_own_is_refused_at_the_start_in_clear_words() {
        let ranged = parse(&["--cluster-ranges", "8.8.0.0/16,2600:1f18::/32"]).unwrap().network();
        assert_eq!(ranged.ranges.to_string(), "8.8.0.0/16,2600:1f18::/32");
        assert!(ranged.allowed.route("http://8.8.8.8/", "team").is_err(), "as Agents are told");
        for (bad, words) in [("8.8.8.8/16", "8.8.8.8/16 is no range of addresses"), ("::/0", "every public address")] {
            let error = parse(&["--cluster-ranges", bad]).unwrap_err().to_string();
            assert!(error.contains("--cluster-ranges") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn public_hosts_are_reached_by_the_proxy_that_the_installation_names() {
        assert_eq!(parse(&[]).unwrap().network().proxy, None);
        let proxied = parse(&["--egress-proxy", "http://squid.infra.svc:3128"]).unwrap().network();
        assert_eq!(proxied.proxy, Some("http://squid.infra.svc:3128".parse().unwrap()));
        assert!(proxied.allowed.route("http://api.example/", "team").is_err(), "in plain text");
        for bad in ["https://proxy.corp.example", "http://user:key@proxy.corp.example", "http://169.254.169.254"] {
            assert!(parse(&["--egress-proxy", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_go_nowhere_unless_a_collector_is_named() {
        assert_eq!(parse(&[]).unwrap().collector(), None);
        assert_eq!(parse(&[]).unwrap().span_content(), Content::Left);
        let named = parse(&["--otlp-endpoint", "http://otel:4318/base/", "--otlp-resource-attributes", r#"{"a":"b"}"#]);
        let collector = named.unwrap().collector().unwrap();
        assert_eq!(collector.endpoint.as_str(), "http://otel:4318/base/");
        let has = |key: &str, value: &str| collector.resource.contains(&(key.to_owned(), value.to_owned()));
        assert!(has("service.name", "belay-operator") && has("a", "b"), "{collector:?}");
        for bad in ["otel:4318", "ftp://otel", "http://user:key@otel", "http://otel/?key=x"] {
            assert!(parse(&["--otlp-endpoint", bad]).is_err(), "{bad}");
        }
        assert!(parse(&["--otlp-headers-file", "/x"]).is_err(), "headers for nobody");
    }

    #[test]
    fn placement_is_json_and_nothing_else() {
        let config = parse(&["--pod-tolerations", r#"[{"key":"gpu","operator":"Exists"}]"#]).unwrap();
        assert_eq!(config.pod_tolerations.0.first().and_then(|t| t.key.as_deref()), Some("gpu"));
        assert!(parse(&["--pod-tolerations", "gpu"]).is_err());
        assert!(parse(&["--max-runs", "0"]).is_err());
    }
}
