//! The installation's way out to public hosts: a forward proxy that is asked with CONNECT, so that TLS goes through it from end
//! to end.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::{Destination, Host, NotAllowable, Reach, Route, allowable};

/// Names that are nobody's in public (RFC 6761, 6762, 8375, 7686 and ICANN's `.internal`): what a proxy makes of one is its
/// own network, its cloud's metadata among that.
const NOT_PUBLIC: [&str; 9] =
    ["localhost", "localdomain", "local", "internal", "svc", "lan", "arpa", "invalid", "onion"];

/// Where that proxy is. The installation names it, so that it may have a private address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressProxy(Destination);

/// What an installation cannot name as its proxy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAProxy {
    #[error("{0} is no proxy that can be asked: write http://HOST:PORT, without user, password, path or query")]
    Spelling(String),
    #[error(transparent)]
    NotAllowable(#[from] NotAllowable),
}

impl EgressProxy {
    /// How it is connected to itself.
    #[must_use]
    pub fn route(&self) -> Route {
        Route { destination: self.0.clone(), reach: Reach::Private }
    }

    /// Its host, as its URL spells it.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.0.host {
            Host::Address(address) if address.is_ipv6() => format!("[{address}]"),
            host => host.to_string(),
        }
    }
}

impl fmt::Display for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host(), self.0.port)
    }
}

impl FromStr for EgressProxy {
    type Err = NotAProxy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let spelling = || NotAProxy::Spelling(text.to_owned());
        let authority = text.strip_prefix("http://").ok_or_else(spelling)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#', '@', '\\']) {
            return Err(spelling());
        }
        let Destination { host, port } = Destination::parse(text, "").map_err(NotAllowable::from)?;
        Ok(Self(Destination { host: allowable(host, text)?, port }))
    }
}

/// Whether a name can be one of the public internet.
pub(super) fn is_public(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    !NOT_PUBLIC.contains(&last)
}
