//! Where requests of a run may go: what the host of a URL names, which addresses it may have, and what of it the
//! installation has to allow. Pure: operator and runner decide by the same rules.

mod class;
mod proxy;
mod ranges;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

pub use self::class::AddressClass;
pub use self::proxy::{EgressProxy, NotAProxy};
pub use self::ranges::{AddressRange, ClusterRanges, NotARange};

/// What names of Services end in before the cluster's own domain.
const SERVICES: &str = ".svc";
/// What names of Services end in, in a URL; another cluster domain needs the short name.
const IN_CLUSTER: [&str; 2] = [SERVICES, ".svc.cluster.local"];

/// What the host of a URL names, seen from one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Service { name: String, namespace: String },
    Name(String),
    Address(IpAddr),
}

/// Where a URL leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    pub host: Host,
    pub port: u16,
}

/// A URL whose destination is not plain to see.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unclear {
    #[error("{0} is no http or https URL")]
    Scheme(String),
    #[error("{0} has no port between 1 and 65535")]
    Port(String),
    #[error("{0} is an IPv4 address in another spelling: write it as four decimal numbers")]
    Disguised(String),
    #[error(
        "{0} is no plain host name: write it in letters, digits, '-', '_' and '.', an international one in its xn-- form"
    )]
    Spelling(String),
}

/// A destination that a run may not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAllowed {
    #[error(transparent)]
    Unclear(#[from] Unclear),
    #[error(
        "{name}.{namespace}.svc is a Service of another namespace: name one of namespace {own}, or have an \
         administrator add {name}.{namespace}.svc to the installation's allowedPrivateHosts"
    )]
    Elsewhere { name: String, namespace: String, own: String },
    #[error(
        "{address} is {class}: name a public host or a Service of the own namespace, or have an administrator add \
         {address} to the installation's allowedPrivateHosts"
    )]
    Unlisted { address: IpAddr, class: AddressClass },
    #[error("{address} is {class}, which nothing may be sent to: name a public host or a Service of the own namespace")]
    Never { address: IpAddr, class: AddressClass },
    #[error(
        "{host} would be asked in plain text through the installation's egress proxy, which could read and change all of \
         it: use https, or have an administrator add {host} to the installation's allowedPrivateHosts"
    )]
    InPlainText { host: String },
    #[error(
        "{host} is no name of the public internet, and the installation's egress proxy is asked for no other: have an \
         administrator add {host} to the installation's allowedPrivateHosts"
    )]
    NotPublic { host: String },
}

/// Which addresses a host may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    Public,
    /// Private ones too: it is a Service, or the installation allows it.
    Private,
    /// None from here: the installation's proxy is asked for it by its name.
    Proxied,
}

/// A destination that a run may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: Destination,
    pub reach: Reach,
}

/// Hosts that the installation lets runs reach at private addresses, beside Services of their own namespace, which
/// addresses are its own, and whether all other hosts are reached through its proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    hosts: Vec<AllowedHost>,
    ranges: ClusterRanges,
    proxied: bool,
}

/// One of them: `NAME.NAMESPACE.svc`, another host name, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost(Host);

/// What an installation cannot allow.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAllowable {
    #[error(transparent)]
    Unclear(#[from] Unclear),
    #[error("{0} says no namespace: write a Service as NAME.NAMESPACE.svc")]
    NoNamespace(String),
    #[error("{0} is {1}, which nothing may be sent to")]
    Never(IpAddr, AddressClass),
}

impl Host {
    /// Reads the host of a URL of an object in `namespace`.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, Unclear> {
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address = Ipv6Addr::from_str(inner).map_err(|_| Unclear::Spelling(text.to_owned()))?;
            return Ok(Self::Address(address.into()));
        }
        let lower = text.to_ascii_lowercase();
        // The dot that makes a name absolute changes nothing about where it leads.
        let plain = lower.strip_suffix('.').unwrap_or(&lower);
        if let Ok(address) = Ipv4Addr::from_str(plain) {
            return Ok(Self::Address(address.into()));
        }
        let labels: Vec<&str> = plain.split('.').collect();
        let plain_label = |label: &&str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(known)
        };
        if plain.len() > 253 || !labels.iter().all(plain_label) {
            return Err(Unclear::Spelling(text.to_owned()));
        }
        if labels.last().is_some_and(|last| is_number(last)) {
            return Err(Unclear::Disguised(text.to_owned()));
        }
        let service =
            |name: &str, namespace: &str| Self::Service { name: name.to_owned(), namespace: namespace.to_owned() };
        let of_cluster = IN_CLUSTER.iter().find_map(|suffix| plain.strip_suffix(suffix)?.split_once('.'));
        Ok(match (of_cluster, labels.as_slice()) {
            (Some((name, of)), _) if !of.contains('.') => service(name, of),
            (_, [name]) => service(name, namespace),
            (_, [name, of]) if *of == namespace => service(name, of),
            _ => Self::Name(plain.to_owned()),
        })
    }

    /// The name to look up where names of Services end in `cluster_domain`: with the final dot that keeps it from every
    /// search list. By a pod's, `github.com` is first a pod of a Service `com` of its own namespace, and then the Service
    /// `github` of a namespace `com`.
    #[must_use]
    pub fn absolute(&self, cluster_domain: &str) -> Option<String> {
        match self {
            Self::Service { name, namespace } => Some(format!("{name}.{namespace}.svc.{cluster_domain}.")),
            // One pod of a Service: nobody's name in public.
            Self::Name(name) if name.ends_with(SERVICES) => Some(format!("{name}.{cluster_domain}.")),
            Self::Name(name) => Some(format!("{name}.")),
            Self::Address(_) => None,
        }
    }
}

/// What URL parsers take for a number, and so the whole host for an IPv4 address.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex || label.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, namespace } => write!(f, "{name}.{namespace}.svc"),
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl Destination {
    /// Reads the URL of an object in `namespace`.
    pub fn parse(url: &str, namespace: &str) -> Result<Self, Unclear> {
        let lower = |prefix: &str| url.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        let (start, usual) = match () {
            () if lower("https://") => (8, 443),
            () if lower("http://") => (7, 80),
            () => return Err(Unclear::Scheme(url.to_owned())),
        };
        let rest = url.get(start..).unwrap_or_default();
        let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            Some(_) | None => (authority, None),
        };
        let port = match port {
            None | Some("") => usual,
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| Unclear::Port(url.to_owned()))?,
        };
        Ok(Self { host: Host::parse(host, namespace)?, port })
    }
}

impl Reach {
    /// Whether an address of that kind may be connected to.
    #[must_use]
    pub fn takes(self, class: AddressClass) -> bool {
        match class {
            AddressClass::Public => self != Self::Proxied,
            AddressClass::Private => self == Self::Private,
            AddressClass::Loopback
            | AddressClass::LinkLocal
            | AddressClass::Metadata
            | AddressClass::Unspecified
            | AddressClass::Multicast
            | AddressClass::Broadcast
            | AddressClass::Reserved => false,
        }
    }
}

impl AllowedHosts {
    /// Those that a plan names. What this build cannot read allows nothing.
    #[must_use]
    pub fn of(names: &[String]) -> Self {
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// The same installation, with those hosts that a plan names.
    #[must_use]
    pub fn listing(&self, names: &[String]) -> Self {
        Self { hosts: Self::of(names).hosts, ..self.clone() }
    }

    /// Those of them that a plan names: what was taken off the list since then it names in vain.
    #[must_use]
    pub fn among(&self, names: &[String]) -> Self {
        let wanted = Self::of(names).hosts;
        let hosts = self.hosts.iter().filter(|host| wanted.contains(host)).cloned().collect();
        Self { hosts, ..self.clone() }
    }

    /// The same hosts, where these addresses are private though their numbers are public.
    #[must_use]
    pub fn in_cluster(self, ranges: ClusterRanges) -> Self {
        Self { ranges, ..self }
    }

    /// The same hosts, where that proxy, if there is one, leads to public hosts that are not among them.
    #[must_use]
    pub fn behind(self, proxy: Option<&EgressProxy>) -> Self {
        Self { proxied: proxy.is_some(), ..self }
    }

    #[must_use]
    pub fn ranges(&self) -> &ClusterRanges {
        &self.ranges
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().map(|AllowedHost(host)| host)
    }

    /// Whether `url` may be requested by what lies in `namespace`, and at which addresses.
    pub fn route(&self, url: &str, namespace: &str) -> Result<Route, NotAllowed> {
        let Destination { host, port } = Destination::parse(url, namespace)?;
        let (host, reach) = match host {
            Host::Service { namespace: of, name } if of == namespace => {
                (Host::Service { name, namespace: of }, Reach::Private)
            }
            Host::Service { name, namespace: of } => {
                match self.find(&Host::Service { name: name.clone(), namespace: of.clone() }) {
                    Some(listed) => (listed.clone(), Reach::Private),
                    None => return Err(NotAllowed::Elsewhere { name, namespace: of, own: namespace.to_owned() }),
                }
            }
            Host::Address(address) => (Host::Address(address), self.reach_of(address)?),
            Host::Name(name) => match self.find(&Host::Name(name.clone())) {
                Some(listed) => (listed.clone(), Reach::Private),
                None => (Host::Name(name), Reach::Public),
            },
        };
        let reach = if self.proxied && reach == Reach::Public { proxied(url, &host)? } else { reach };
        Ok(Route { destination: Destination { host, port }, reach })
    }

    /// What of the list `url` needs, as the list spells it.
    #[must_use]
    pub fn needed(&self, url: &str, namespace: &str) -> Option<String> {
        let destination = Destination::parse(url, namespace).ok()?;
        self.find(&destination.host).map(Host::to_string)
    }

    fn reach_of(&self, address: IpAddr) -> Result<Reach, NotAllowed> {
        let class = self.ranges.class_of(address);
        match class {
            AddressClass::Public => Ok(Reach::Public),
            AddressClass::Private | AddressClass::Loopback if self.find(&Host::Address(address)).is_some() => {
                Ok(Reach::Private)
            }
            AddressClass::Private | AddressClass::Loopback => Err(NotAllowed::Unlisted { address, class }),
            AddressClass::LinkLocal
            | AddressClass::Metadata
            | AddressClass::Unspecified
            | AddressClass::Multicast
            | AddressClass::Broadcast
            | AddressClass::Reserved => Err(NotAllowed::Never { address, class }),
        }
    }

    /// The entry for a host. `llm.models` is the Service `llm.models.svc` where that is listed.
    fn find(&self, host: &Host) -> Option<&Host> {
        let is = |listed: &Host| match (listed, host) {
            (Host::Service { name, namespace }, Host::Name(short)) => *short == format!("{name}.{namespace}"),
            (listed, host) => listed == host,
        };
        self.hosts().find(|listed| is(listed))
    }
}

impl FromIterator<AllowedHost> for AllowedHosts {
    fn from_iter<I: IntoIterator<Item = AllowedHost>>(hosts: I) -> Self {
        Self { hosts: hosts.into_iter().collect(), ..Self::default() }
    }
}

impl FromStr for AllowedHost {
    type Err = NotAllowable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
        allowable(Host::parse(&bracketed, "")?, text).map(Self)
    }
}

/// A host that the installation may name; `text` is how it does.
fn allowable(host: Host, text: &str) -> Result<Host, NotAllowable> {
    match &host {
        Host::Service { namespace, .. } if namespace.is_empty() => Err(NotAllowable::NoNamespace(text.to_owned())),
        Host::Address(address) => match AddressClass::of(*address) {
            AddressClass::Public | AddressClass::Private | AddressClass::Loopback => Ok(host),
            never => Err(NotAllowable::Never(*address, never)),
        },
        Host::Service { .. } | Host::Name(_) => Ok(host),
    }
}

/// What is asked of the proxy: TLS alone goes through it unseen, and its own network is not what anybody meant.
fn proxied(url: &str, host: &Host) -> Result<Reach, NotAllowed> {
    if url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:")) {
        return Err(NotAllowed::InPlainText { host: host.to_string() });
    }
    match host {
        Host::Name(name) if !proxy::is_public(name) => Err(NotAllowed::NotPublic { host: name.clone() }),
        Host::Name(_) | Host::Address(_) | Host::Service { .. } => Ok(Reach::Proxied),
    }
}

#[cfg(test)]
mod tests;
