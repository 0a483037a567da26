//! Which addresses a client connects to. A name is looked up for every new connection, every address of the answer is
//! checked, and what was checked is what is connected to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use belay_protocol::network::{AddressClass, ClusterRanges, Reach, Route};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::names::Names;

/// Why a name was not connected to, though it resolves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "{host} resolves to {address}, which is {class}: name a public host or a Service of the own namespace, or have \
         an administrator add {host} to the installation's allowedPrivateHosts"
    )]
    Unlisted { host: String, address: IpAddr, class: AddressClass },
    #[error("{host} resolves to {address}, which is {class}: nothing may be sent there")]
    Never { host: String, address: IpAddr, class: AddressClass },
    #[error("{asked} is not {host}, for which this client was made")]
    OtherHost { asked: String, host: String },
}

/// Resolves one host and no other.
pub struct Guard {
    /// As the URL spells it.
    pub host: String,
    pub route: Route,
    pub ranges: ClusterRanges,
    pub names: Arc<dyn Names>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, reach) = (self.host.clone(), self.route.reach);
        if !name.as_str().eq_ignore_ascii_case(&host) {
            let asked = name.as_str().to_owned();
            return Box::pin(async { Err(Refused::OtherHost { asked, host }.into()) });
        }
        // A literal address needs no resolver: whoever asks one for it reads the URL otherwise than we do.
        let Some(whole) = self.route.destination.host.absolute(self.names.cluster_domain()) else {
            let asked = name.as_str().to_owned();
            return Box::pin(async { Err(Refused::OtherHost { asked, host }.into()) });
        };
        let (found, ranges) = (self.names.look_up(whole), self.ranges.clone());
        Box::pin(async move {
            let checked = check(&host, reach, &ranges, found.await?)?;
            // Port 0: the URL's.
            Ok(Box::new(checked.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// One bad address spoils the answer: connections fall back from one to the next.
fn check(host: &str, reach: Reach, ranges: &ClusterRanges, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Refused> {
    for address in &addresses {
        let (host, address, class) = (host.to_owned(), *address, ranges.class_of(*address));
        if reach.takes(class) {
            continue;
        }
        return Err(if Reach::Private.takes(class) {
            Refused::Unlisted { host, address, class }
        } else {
            Refused::Never { host, address, class }
        });
    }
    Ok(addresses)
}

/// What the guard said, if it was that which failed a request.
#[must_use]
pub fn refused(error: &reqwest::Error) -> Option<&Refused> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref() {
            return Some(refused);
        }
        cause = error.source();
    }
    None
}
