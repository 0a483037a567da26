//! Which Agents are suspended, as the gate asks at every decision. Fed by the watch itself, so that a
//! suspension withholds permits at once, whatever the controllers are busy with.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::RwLock;

/// Suspended Agents by namespace and name. Cheap to clone.
#[derive(Clone, Default)]
pub struct Suspensions(Arc<RwLock<HashSet<(String, String)>>>);

impl Suspensions {
    #[must_use]
    pub fn is_suspended(&self, namespace: &str, agent: &str) -> bool {
        self.0.read().contains(&(namespace.to_owned(), agent.to_owned()))
    }

    pub fn suspend(&self, namespace: &str, agent: &str) {
        self.0.write().insert((namespace.to_owned(), agent.to_owned()));
    }

    pub fn resume(&self, namespace: &str, agent: &str) {
        self.0.write().remove(&(namespace.to_owned(), agent.to_owned()));
    }
}
