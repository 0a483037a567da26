//! The way out: HTTP clients that go where their plan says and nowhere else, follow no redirect and retry nothing.

mod authorities;
mod guard;
#[cfg(test)]
mod guard_tests;
mod names;
mod proxy;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use belay_protocol::event::{FailureReason, NotSentReason};
use belay_protocol::network::{AllowedHosts, ClusterRanges, EgressProxy, Host, NotAllowed, Reach, Route, Unclear};
use belay_protocol::{AUTHORITIES_DIR, Plan};
use reqwest::Url;

use self::authorities::{Authorities, Verified};
use self::guard::Guard;

pub use self::authorities::{AuthoritiesError, AuthoritiesProblem, Trust};
pub use self::guard::{Refused, refused};
pub use self::names::{Names, SystemNames};

/// Shorter than the 5 s after which Node's HTTP servers close an idle connection: a request written into
/// a connection that is just being closed has an unknown end.
const IDLE_SECONDS: u64 = 4;

/// What is done about a server whom no public authority vouches for.
const STRANGERS: &str = "name those who vouch for it in tls.caConfigMapKeyRef, or check the ones that are named there";

#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error("cannot build an HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    #[error(transparent)]
    Authorities(#[from] AuthoritiesError),
    #[error("{asked} is not {own}, for which this client was made")]
    Elsewhere { asked: String, own: String },
}

impl EgressError {
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Client(_) => FailureReason::Unreachable,
            Self::NotAllowed(_) | Self::Elsewhere { .. } => FailureReason::DestinationNotAllowed,
            Self::Authorities(_) => FailureReason::CaBundleUnusable,
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
        | FailureReason::CaBundleUnusable
        | FailureReason::Withheld => NotSentReason::Unreachable,
    }
}

/// Where the requests of one plan may go, and by whom servers there are verified. Cheap to clone.
#[derive(Clone)]
pub struct Destinations {
    /// Of the run, or of the Tool that is probed.
    namespace: String,
    allowed: AllowedHosts,
    /// Leads to public hosts.
    proxy: Option<EgressProxy>,
    authorities: Authorities,
    names: Arc<dyn Names>,
}

/// A client for the scheme, host and port of one URL, which connects to none where the plan may not go there. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    origin: String,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Refused(NotAllowed),
    /// To a server that public authorities vouch for, or nobody.
    Usual(reqwest::Client),
    Verified(Arc<Verified>),
}

/// How a client connects, whomever it trusts.
struct Connecting {
    guard: Arc<Guard>,
    /// The guard is the proxy's then: nobody here looks up the host itself.
    proxy: Option<reqwest::Proxy>,
    timeout: Duration,
}

impl Client {
    /// What to send the next request with, one to `url`, if it may be sent. The guard has no say in URLs with an address:
    /// nobody looks those up.
    pub fn open(&self, url: &str) -> Result<reqwest::Client, EgressError> {
        let client = match &self.way {
            Way::Refused(refusal) => return Err(refusal.clone().into()),
            Way::Usual(client) => client.clone(),
            Way::Verified(verified) => verified.client()?,
        };
        let asked = origin(url);
        if asked == self.origin { Ok(client) } else { Err(EgressError::Elsewhere { asked, own: self.origin.clone() }) }
    }
}

impl Connecting {
    /// No redirects, no retries, no proxy from the environment, no other host.
    fn builder(&self) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("belay-runner/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeout)
            .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS))
            .pool_max_idle_per_host(2)
            .dns_resolver(Arc::clone(&self.guard));
        match &self.proxy {
            Some(proxy) => builder.proxy(proxy.clone()),
            None => builder,
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
        let authorities = Authorities::new(AUTHORITIES_DIR.into());
        let allowed = AllowedHosts::of(private_hosts);
        let names = Arc::new(SystemNames::of_pod());
        Self { namespace: namespace.to_owned(), allowed, proxy: None, authorities, names }
    }

    /// The same way out, to what this plan may reach.
    #[must_use]
    pub fn for_plan(&self, plan: &Plan) -> Self {
        self.within(&plan.run.namespace, &plan.private_hosts)
    }

    /// The same way out, to what may be reached from that namespace with these private hosts.
    #[must_use]
    pub fn within(&self, namespace: &str, private_hosts: &[String]) -> Self {
        Self { namespace: namespace.to_owned(), allowed: self.allowed.listing(private_hosts), ..self.clone() }
    }

    /// Public hosts through that proxy, if the installation has one.
    #[must_use]
    pub fn through(self, proxy: Option<EgressProxy>) -> Self {
        Self { allowed: self.allowed.behind(proxy.as_ref()), proxy, ..self }
    }

    /// Where these addresses are the cluster's own.
    #[must_use]
    pub fn in_cluster(self, ranges: ClusterRanges) -> Self {
        Self { allowed: self.allowed.in_cluster(ranges), ..self }
    }

    /// Finds authorities there instead.
    #[must_use]
    pub fn with_authorities(self, folder: PathBuf) -> Self {
        Self { authorities: Authorities::new(folder), ..self }
    }

    /// Looks names up there instead.
    #[cfg(test)]
    fn with_names(self, names: impl Names + 'static) -> Self {
        Self { names: Arc::new(names), ..self }
    }

    /// A client for the peer at `url`, verified by those whom `trust` names: else by the public authorities.
    pub fn client(&self, url: &str, timeout: Duration, trust: Option<Trust>) -> Result<Client, EgressError> {
        let origin = origin(url);
        let (host, route) = match self.route(url) {
            Ok(way) => way,
            Err(refusal) => return Ok(Client { origin, way: Way::Refused(refusal) }),
        };
        let connecting = self.connecting(host, route, timeout)?;
        let way = match trust {
            Some(trust) => Way::Verified(Arc::new(Verified::new(connecting, trust, self.authorities.clone()))),
            None => Way::Usual(usual(url, &connecting)?),
        };
        Ok(Client { origin, way })
    }

    fn connecting(&self, host: String, route: Route, timeout: Duration) -> Result<Connecting, EgressError> {
        let proxy = self.proxy.as_ref().filter(|_| route.reach == Reach::Proxied);
        let (host, route) = proxy.map_or((host, route), |proxy| (proxy.host(), proxy.route()));
        let proxy = proxy.map(|proxy| reqwest::Proxy::https(proxy.to_string()));
        let (ranges, names) = (self.allowed.ranges().clone(), Arc::clone(&self.names));
        let guard = Arc::new(Guard { host, route, ranges, names });
        Ok(Connecting { guard, proxy: proxy.transpose().map_err(EgressError::Client)?, timeout })
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

/// Scheme, host and port, and nothing of what may hold a key.
fn origin(url: &str) -> String {
    Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
}

fn usual(url: &str, connecting: &Connecting) -> Result<reqwest::Client, EgressError> {
    // In plain text nobody is verified, and no redirect leads to https: the CA bundle would be read for nothing.
    if Url::parse(url).is_ok_and(|url| url.scheme() == "http") {
        return connecting.builder().tls_certs_only([]).build().map_err(EgressError::Client);
    }
    connecting.builder().build().or_else(|error| {
        // Without a CA bundle nothing can be verified over TLS, but http goes on working.
        tracing::warn!(%error, "no CA bundle could be loaded: https destinations will be refused");
        connecting.builder().tls_certs_only([]).build().map_err(EgressError::Client)
    })
}

/// An error with everything underneath it, URL left out: the message names it already. Whoever shows it redacts it first
/// and cuts it then.
#[must_use]
pub fn causes(error: &reqwest::Error) -> String {
    let mut words = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        words.push(proxy::in_words(&said).map_or(said, str::to_owned));
        words.extend(is_of_strangers(error).then(|| STRANGERS.to_owned()));
        cause = error.source();
    }
    if words.is_empty() { "no further cause is known".to_owned() } else { words.join(": ") }
}

/// Whether it is that nobody who is trusted vouches for the server.
fn is_of_strangers(error: &(dyn std::error::Error + 'static)) -> bool {
    // What I/O errors wrap is not their source but themselves, and some are wrapped twice.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let tls = error.downcast_ref::<rustls::Error>();
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    tls.is_some_and(|tls| *tls == unknown) || wrapped.is_some_and(|wrapped| is_of_strangers(wrapped))
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
    use reqwest::dns::{Name, Resolve, Resolving};

    use super::*;

    struct Wordy;

    impl Resolve for Wordy {
        fn resolve(&self, _name: Name) -> Resolving {
            Box::pin(async { Err(format!("{}hunter2", "x".repeat(1000)).into()) })
        }
    }

    /// Half a value would not be recognised any more.
    #[tokio::test]
    async fn what_broke_an_exchange_is_not_cut_before_it_is_redacted() {
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().dns_resolver(Arc::new(Wordy));
        let error = client.build().unwrap().get("http://a.example/").send().await.unwrap_err();
        assert!(causes(&error).ends_with("hunter2"), "{}", causes(&error));
    }

    #[test]
    fn a_piece_of_a_foreign_text_is_short_and_one_line() {
        assert_eq!(piece("  a\nb\u{1b}[31m", 500), "a b [31m");
        assert_eq!(piece("äöü", 3), "ä");
    }
}
