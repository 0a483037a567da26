//! Policies as they are now. The watch tells of each before any queue does, so that what a policy newly denies is
//! denied at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use belay_protocol::plan::PlanPolicy;
use parking_lot::RwLock;

/// Namespace and name.
type Key = (String, String);

/// The generation of every policy that counts now, by namespace and name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Current(Arc<RwLock<BTreeMap<Key, Arc<PlanPolicy>>>>);

impl Current {
    pub fn set(&self, namespace: &str, policy: PlanPolicy) {
        self.0.write().insert((namespace.to_owned(), policy.name.clone()), Arc::new(policy));
    }

    /// The policy was deleted, or none of its generations can be used. What a run's plan holds of it goes on.
    pub fn remove(&self, namespace: &str, name: &str) {
        self.0.write().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Forgets every policy that `keep` does not name: a watch listed anew.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) {
        self.0.write().retain(|(namespace, name), _| keep(namespace, name));
    }

    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<PlanPolicy>> {
        self.0.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}
