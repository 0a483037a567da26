//! Keeps the NetworkPolicies around pods as they have to be: written before the pod is, mended when somebody changes
//! them, and deleted when no pod and no owner needs them any more.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use belay_crds::NETWORK_LABEL;
use belay_protocol::network::{AllowedHosts, Host, Route};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::NetworkSettings;
use super::policy::{Services, Sighting, Surroundings, around, base, name_of};
use super::widening::widening;
use crate::controller::Failure;
use crate::namespaces::Namespaces;
use crate::writes::{FIELD_MANAGER, Target, Writes};

/// A policy that a pod was promised is kept so long without one: the pod may only be on its way.
const PROMISED: Duration = Duration::from_mins(10);

/// Cheap to clone.
#[derive(Clone)]
pub struct Fences(Arc<Inner>);

struct Inner {
    writes: Writes,
    namespaces: Namespaces,
    settings: NetworkSettings,
    /// When a policy was last asked for, by namespace and name.
    promised: Mutex<HashMap<(String, String), Instant>>,
}

impl Fences {
    #[must_use]
    pub fn new(writes: Writes, namespaces: Namespaces, settings: NetworkSettings) -> Self {
        Self(Arc::new(Inner { writes, namespaces, settings, promised: Mutex::default() }))
    }

    /// Makes sure of the policies around a pod, before it is created or while it lives. What comes back labels it.
    pub async fn raise(&self, at: &Surroundings) -> Result<String, Failure> {
        self.apply(base(&at.namespace, &self.0.settings)).await?;
        let key = at.key();
        if !at.routes.is_empty() {
            let services = self.services(at);
            // After a start of the operator nothing is closed to runs under way: it is not known yet which pods to name.
            let is_starting = services.values().any(|seen| matches!(seen, Sighting::Starting));
            if !is_starting || self.0.namespaces.policy(&at.namespace, &name_of(&key)).is_none() {
                self.apply(around(at, &services, &self.0.settings.ranges)).await?;
            }
        }
        Ok(key)
    }

    /// Names of other NetworkPolicies there that add to what pods of that Agent reach, or who reaches them.
    #[must_use]
    pub fn widening(&self, agent: &str, at: &Surroundings) -> Vec<String> {
        let around = around(at, &self.services(at), &self.0.settings.ranges);
        let ours = [base(&at.namespace, &self.0.settings), around];
        widening(&self.0.namespaces.policies(&at.namespace), agent, &at.key(), &ours)
    }

    /// Deletes what the owner's pods needed once and need no more.
    pub async fn clear(&self, at: &Surroundings) -> Result<(), Failure> {
        let current = name_of(&at.key());
        for policy in self.0.namespaces.policies_of(&at.namespace, &at.owner.uid) {
            let name = policy.name_any();
            let needed = |key: &str| name_of(key) == name;
            let in_use = self.0.namespaces.labels_of_pods(&at.namespace, NETWORK_LABEL).iter().any(|key| needed(key));
            if name == current || in_use || self.is_promised(&at.namespace, &name) {
                continue;
            }
            let target = Target {
                namespace: at.namespace.clone(),
                name,
                uid: policy.uid().unwrap_or_default(),
                resource_version: None,
            };
            self.0.writes.delete::<NetworkPolicy>(&target).await?;
        }
        Ok(())
    }

    async fn apply(&self, wanted: NetworkPolicy) -> Result<(), Failure> {
        let (namespace, name) = (wanted.namespace().unwrap_or_default(), wanted.name_any());
        self.0.promised.lock().insert((namespace.clone(), name.clone()), Instant::now());
        let held = self.0.namespaces.policy(&namespace, &name);
        if held.is_some_and(|held| is_as_wanted(&held, &wanted)) {
            return Ok(());
        }
        let api: Api<NetworkPolicy> = Api::namespaced(self.0.writes.client(), &namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(&wanted)).await.map_err(Failure::api("applying a NetworkPolicy"))?;
        tracing::info!(namespace, policy = name, "network policy applied");
        Ok(())
    }

    fn services(&self, at: &Surroundings) -> Services {
        let taken = at.taken();
        let named = taken.iter().filter_map(|route| match &route.destination.host {
            Host::Service { name, namespace } => Some((namespace.clone(), name.clone())),
            Host::Name(_) | Host::Address(_) => None,
        });
        let seen = |(namespace, name): (String, String)| {
            let sighting = self.0.namespaces.sighting(&namespace, &name);
            ((namespace, name), sighting)
        };
        named.map(seen).collect()
    }

    fn is_promised(&self, namespace: &str, name: &str) -> bool {
        let mut promised = self.0.promised.lock();
        promised.retain(|_, at| at.elapsed() < PROMISED);
        promised.contains_key(&(namespace.to_owned(), name.to_owned()))
    }
}

/// The ways to URLs that may be requested; the others get none.
#[must_use]
pub fn routes<'a>(urls: impl IntoIterator<Item = &'a str>, namespace: &str, allowed: &AllowedHosts) -> BTreeSet<Route> {
    urls.into_iter().filter_map(|url| allowed.route(url, namespace).ok()).collect()
}

/// The API server keeps no empty list.
fn filled(policy: &NetworkPolicy) -> Option<NetworkPolicySpec> {
    let spec = policy.spec.clone()?;
    let (ingress, egress) = (spec.ingress.unwrap_or_default(), spec.egress.unwrap_or_default());
    Some(NetworkPolicySpec { ingress: Some(ingress), egress: Some(egress), ..spec })
}

/// Others may add labels and annotations of their own.
fn is_as_wanted(held: &NetworkPolicy, wanted: &NetworkPolicy) -> bool {
    let has_labels = wanted.labels().iter().all(|(name, value)| held.labels().get(name) == Some(value));
    filled(held) == filled(wanted) && has_labels && held.owner_references() == wanted.owner_references()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyIngressRule};

    use super::*;

    #[test]
    fn a_policy_that_lets_more_in_or_out_is_not_as_wanted_and_one_without_empty_lists_is() {
        let wanted = base("triage", &NetworkSettings { dns: Vec::new(), ..NetworkSettings::default() });
        let held = |change: fn(&mut NetworkPolicySpec)| {
            let mut held = wanted.clone();
            held.spec.iter_mut().for_each(change);
            is_as_wanted(&held, &wanted)
        };
        assert!(held(|_| ()));
        assert!(held(|spec| (spec.ingress, spec.egress) = (None, None)), "as the API server keeps it");
        assert!(!held(|spec| spec.ingress = Some(vec![NetworkPolicyIngressRule::default()])));
        assert!(!held(|spec| spec.egress = Some(vec![NetworkPolicyEgressRule::default()])));
        assert!(!held(|spec| spec.policy_types = None));
    }
}
