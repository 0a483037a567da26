//! A conversation with a server, and how it is heard that the server's list of operations changed meanwhile.

use std::time::Duration;

use rmcp::model::{ProtocolVersion, ServerPeerInfo, SubscriptionFilter, SubscriptionFilterBuilder};
use rmcp::service::{Peer, RoleClient};
use tokio::task::JoinSet;

use super::Service;
use crate::tools::changes::{Changes, pauses};

/// A server that has not confirmed a subscription by then has none to give.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether somebody wants to know of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    Changes,
    /// The list is asked for once.
    Nothing,
}

/// How a server tells of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    Not,
    /// On the stream of a call or on one beside it (MCP 2025-11-25 and older).
    Beside,
    /// To whoever subscribed (MCP 2026-07-28).
    Subscribers,
}

impl Telling {
    /// As the server says; one that says nothing promises that its list stays.
    pub fn of(info: &ServerPeerInfo) -> Self {
        let tells = info.capabilities.tools.as_ref().and_then(|tools| tools.list_changed);
        if tells != Some(true) {
            Self::Not
        } else if info.protocol_version >= ProtocolVersion::V_2026_07_28 {
            Self::Subscribers
        } else {
            Self::Beside
        }
    }
}

/// An open conversation. What its server says once it is over goes unheard, and may be that its list changed.
pub struct Conversation {
    pub service: Service,
    pub telling: Telling,
    changes: Changes,
    /// Ends with the conversation.
    _subscription: JoinSet<()>,
}

impl Conversation {
    pub fn new(service: Service, telling: Telling, changes: Changes) -> Self {
        let mut subscription = JoinSet::new();
        if telling == Telling::Subscribers {
            subscription.spawn(subscribe(service.peer().clone(), changes.clone()));
        }
        Self { service, telling, changes, _subscription: subscription }
    }

    /// MCP 2026-07-28: every request stands alone.
    pub fn is_newer(&self) -> bool {
        let info = self.service.peer().peer_info();
        info.is_some_and(|info| info.protocol_version >= ProtocolVersion::V_2026_07_28)
    }

    pub fn is_over(&self) -> bool {
        self.service.is_closed() || self.service.is_transport_closed()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if self.telling != Telling::Not {
            self.changes.note();
        }
    }
}

async fn subscribe(peer: Peer<RoleClient>, changes: Changes) {
    for pause in pauses() {
        let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, peer.listen(tools_alone())).await;
        let Ok(Ok(mut subscription)) = subscribed else { return };
        // The wire notes what is said on it.
        while let Ok(Some(_)) = subscription.next().await {}
        // What is said until there is another one goes unheard.
        changes.note();
        tokio::time::sleep(pause).await;
    }
}

fn tools_alone() -> SubscriptionFilter {
    SubscriptionFilterBuilder::default().tools_list_changed().build()
}
