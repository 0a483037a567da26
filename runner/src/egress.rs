//! The way out: HTTP clients that go where their plan says and nowhere else, follow no redirect and retry nothing, and
//! the one place that decides whether a credential may travel to a URL.

mod guard;
#[cfg(test)]
mod guard_tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use belay_protocol::Plan;
use belay_protocol::event::{FailureReason, NotSentReason};
use belay_protocol::network::{AllowedHosts, Host, NotAllowed, Route, Unclear};
use belay_protocol::plan::PlanCredential;
use http::{HeaderName, HeaderValue};
use reqwest::Url;

use self::guard::{Guard, Names, SystemNames};
use crate::credential::{CredentialError, Credentials};

pub use self::guard::{Refused, refused};

/// Shorter than the 5 s after which Node's HTTP servers close an idle connection: a request written into
/// a connection that is just being closed has an unknown end.
const IDLE_SECONDS: u64 = 4;
const CAUSES_BYTES_SHOWN: usize = 500;
/// What names of Services end in; another cluster domain needs https or the short name.
const IN_CLUSTER: [&str; 2] = [".svc", ".svc.cluster.local"];

#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error("cannot build an HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    #[error("{url} is not a URL: {message}")]
    Url { url: String, message: String },
    #[error(
        "Credential {credential} may not be sent to {host}: its spec.hosts are {hosts}; add the host there or use another Credential"
    )]
    HostNotAllowed { credential: String, host: String, hosts: String },
    #[error(
        "Credential {credential} may not be sent to {host} in plain text: use https, or the name of a Service in this cluster"
    )]
    Plaintext { credential: String, host: String },
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl EgressError {
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Client(_) => FailureReason::Unreachable,
            Self::Url { .. } => FailureReason::BadRequest,
            Self::HostNotAllowed { .. } | Self::Plaintext { .. } => FailureReason::HostNotAllowed,
            Self::NotAllowed(_) => FailureReason::DestinationNotAllowed,
            Self::Credential(error) => error.problem.reason(),
        }
    }
}

/// Why a call was not sent that failed like this before its first byte.
#[must_use]
pub fn not_sent(reason: FailureReason) -> NotSentReason {
    match reason {
        FailureReason::HostNotAllowed => NotSentReason::HostNotAllowed,
        FailureReason::DestinationNotAllowed => NotSentReason::DestinationNotAllowed,
        FailureReason::CredentialMissing | FailureReason::CredentialEmpty | FailureReason::CredentialTooLarge => {
            NotSentReason::CredentialMissing
        }
        FailureReason::Unreachable
        | FailureReason::Unauthorized
        | FailureReason::RateLimited
        | FailureReason::ServerError
        | FailureReason::BadRequest
        | FailureReason::TimedOut
        | FailureReason::Truncated
        | FailureReason::Malformed
        | FailureReason::TooLarge
        | FailureReason::ScriptExhausted
        | FailureReason::Scripted
        | FailureReason::ContextExceeded
        | FailureReason::Interrupted
        | FailureReason::DocumentMissing
        | FailureReason::DefinitionsInvalid
        | FailureReason::Withheld => NotSentReason::Unreachable,
    }
}

/// Where the requests of one plan may go. Cheap to clone.
#[derive(Clone)]
pub struct Destinations {
    /// Of the run, or of the Tool that is probed.
    namespace: String,
    allowed: AllowedHosts,
    names: Arc<dyn Names>,
}

/// A client for one URL's host, which connects to none where the plan may not go there.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    refusal: Option<NotAllowed>,
}

impl Client {
    /// What to send with, if anything may be sent.
    pub fn open(&self) -> Result<&reqwest::Client, EgressError> {
        match &self.refusal {
            None => Ok(&self.http),
            Some(refusal) => Err(refusal.clone().into()),
        }
    }
}

impl Destinations {
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self::new(&plan.run.namespace, &plan.private_hosts)
    }

    #[must_use]
    pub fn new(namespace: &str, private_hosts: &[String]) -> Self {
        let allowed = AllowedHosts::of(private_hosts);
        Self { namespace: namespace.to_owned(), allowed, names: Arc::new(SystemNames) }
    }

    /// Looks names up there instead.
    #[cfg(test)]
    fn with_names(self, names: impl Names + 'static) -> Self {
        Self { names: Arc::new(names), ..self }
    }

    /// A client for the peer at `url`. No redirects, no retries, no proxy from the environment, no other host.
    pub fn client(&self, url: &str, connect_timeout: Duration) -> Result<Client, EgressError> {
        let (guard, refusal) = match self.route(url) {
            Ok((host, route)) => (Some(Arc::new(Guard { host, route, names: Arc::clone(&self.names) })), None),
            Err(refusal) => (None, Some(refusal)),
        };
        let http = build(url, || {
            let builder = reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .no_proxy()
                .referer(false)
                .user_agent(concat!("belay-runner/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS))
                .pool_max_idle_per_host(2);
            match &guard {
                Some(guard) => builder.dns_resolver(Arc::clone(guard)),
                None => builder,
            }
        });
        Ok(Client { http: http?, refusal })
    }

    /// The way to `url`, and its host as the HTTP client will ask for it.
    fn route(&self, url: &str) -> Result<(String, Route), NotAllowed> {
        let route = self.allowed.route(url, &self.namespace)?;
        let parsed = Url::parse(url).map_err(|_| Unclear::Spelling(url.to_owned()))?;
        let host = parsed.host_str().unwrap_or_default();
        // Whoever connects must read the URL as it was judged.
        let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let judged = match route.destination.host {
            Host::Address(address) => Some(address),
            Host::Service { .. } | Host::Name(_) => None,
        };
        if literal != judged || parsed.port_or_known_default() != Some(route.destination.port) {
            return Err(Unclear::Spelling(url.to_owned()).into());
        }
        Ok((host.to_owned(), route))
    }
}

fn build(url: &str, builder: impl Fn() -> reqwest::ClientBuilder) -> Result<reqwest::Client, EgressError> {
    // In plain text nobody is verified, and no redirect leads to https: the CA bundle would be read for nothing.
    if Url::parse(url).is_ok_and(|url| url.scheme() == "http") {
        return builder().tls_certs_only([]).build().map_err(EgressError::Client);
    }
    builder().build().or_else(|error| {
        // Without a CA bundle nothing can be verified over TLS, but http goes on working.
        tracing::warn!(%error, "no CA bundle could be loaded: https destinations will be refused");
        builder().tls_certs_only([]).build().map_err(EgressError::Client)
    })
}

/// The header that carries `credential` to `url`, its value read now.
pub fn credential_header(
    credentials: &Credentials,
    credential: &PlanCredential,
    url: &str,
) -> Result<(HeaderName, HeaderValue), EgressError> {
    let url = Url::parse(url).map_err(|error| EgressError::Url { url: url.to_owned(), message: error.to_string() })?;
    let host = url.host_str().unwrap_or_default();
    if !credential.hosts.iter().any(|pattern| host_matches(pattern, host)) {
        return Err(EgressError::HostNotAllowed {
            credential: credential.name.clone(),
            host: host.to_owned(),
            hosts: credential.hosts.join(", "),
        });
    }
    if url.scheme() != "https" && !stays_inside(host) {
        return Err(EgressError::Plaintext { credential: credential.name.clone(), host: host.to_owned() });
    }
    Ok(credentials.read(credential)?.header(credential)?)
}

/// Hosts to which plain text does not leave the cluster: a Service's name, or this pod itself.
fn stays_inside(host: &str) -> bool {
    let loopback = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback || !host.contains(['.', ':']) || IN_CLUSTER.iter().any(|suffix| host.ends_with(suffix))
}

/// Exact names, or one leading wildcard label that stands for exactly one label.
fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => {
            host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// An error with everything underneath it, URL left out: the message names it already.
#[must_use]
pub fn causes(error: &reqwest::Error) -> String {
    let mut words = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    if words.is_empty() { "no further cause is known".to_owned() } else { piece(&words.join(": "), CAUSES_BYTES_SHOWN) }
}

/// The start of an untrusted text, at most `most` bytes, on one line.
#[must_use]
pub fn piece(text: &str, most: usize) -> String {
    let end = text.floor_char_boundary(most);
    let start = text.get(..end).unwrap_or_default();
    start.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::credential::tests::{credential, mounted};
    use rstest::rstest;

    #[rstest]
    #[case("api.github.com", "api.github.com", true)]
    #[case("api.github.com", "API.GitHub.com", true)]
    #[case("api.github.com", "evil.com", false)]
    #[case("api.github.com", "api.github.com.evil.com", false)]
    #[case("*.example.com", "a.example.com", true)]
    #[case("*.example.com", "example.com", false)]
    #[case("*.example.com", "a.b.example.com", false)]
    #[case("*.example.com", ".example.com", false)]
    fn a_credential_travels_only_to_its_hosts(#[case] pattern: &str, #[case] host: &str, #[case] may: bool) {
        assert_eq!(host_matches(pattern, host), may);
    }

    #[test]
    fn user_info_and_ports_in_a_url_do_not_bend_its_host() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2")]);
        let credential = credential("key", &["good.example"]);
        let header = |url| credential_header(&credentials, &credential, url);
        assert!(header("https://good.example:8443/mcp").is_ok());
        let error = header("https://good.example@evil.example/mcp").unwrap_err();
        assert_eq!(error.reason(), FailureReason::HostNotAllowed);
        assert!(error.to_string().contains("evil.example"), "{error}");
        assert_eq!(header("good.example").unwrap_err().reason(), FailureReason::BadRequest);
    }

    #[rstest]
    #[case("https://api.example.com/v1", true)]
    #[case("http://api.example.com/v1", false)]
    #[case("http://llm:8080/v1", true)]
    #[case("http://llm.team.svc/v1", true)]
    #[case("http://llm.team.svc.cluster.local/v1", true)]
    #[case("http://10.1.2.3/v1", false)]
    #[case("http://127.0.0.1:80/v1", true)]
    fn plain_text_does_not_leave_the_cluster_with_a_credential(#[case] url: &str, #[case] may: bool) {
        let url = Url::parse(url).unwrap();
        assert_eq!(url.scheme() == "https" || stays_inside(url.host_str().unwrap()), may);
    }

    #[test]
    fn a_piece_of_a_foreign_text_is_short_and_one_line() {
        assert_eq!(piece("  a\nb\u{1b}[31m", 500), "a b [31m");
        assert_eq!(piece("äöü", 3), "ä");
    }
}
