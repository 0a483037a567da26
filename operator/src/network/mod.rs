//! Where runner and probe pods may go: which URLs are refused beforehand, and the NetworkPolicies around the pods.

pub mod destinations;
pub mod enforcement;
pub mod fences;
pub mod policy;

use belay_protocol::network::{AllowedHosts, Destination};
use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;

/// What the installation decides about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkSettings {
    /// What may be reached at private addresses, beside Services of the own namespace.
    pub allowed: AllowedHosts,
    /// How pods reach cluster DNS.
    pub dns: Vec<NetworkPolicyEgressRule>,
    /// How pods reach the operator.
    pub operator: Option<Destination>,
    /// Where its own pod listens for them.
    pub operator_port: u16,
    /// Where the operator listens for others than pods: what no policy of ours lets out to.
    pub forbidden: Option<String>,
}
