//! Folded states of runs that are under way, and which pod belongs to which. A copy: what it does not hold
//! is read again from the store.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use belay_protocol::fold::RunState;
use belay_protocol::plan::ObjectId;

use super::store::RunHead;

/// A run as of one head.
#[derive(Clone, Debug)]
pub(super) struct Folded {
    pub state: Arc<RunState>,
    pub head: RunHead,
    /// Of all its records.
    pub bytes: u64,
}

#[derive(Default)]
pub(super) struct Memory {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    runs: HashMap<String, Folded>,
    pods: HashMap<PodKey, ObjectId>,
    /// Uids of runs that have not ended.
    open: HashSet<String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PodKey {
    namespace: String,
    name: String,
}

impl Memory {
    pub(super) fn get(&self, run: &str) -> Option<Folded> {
        self.lock().runs.get(run).cloned()
    }

    pub(super) fn run_of_pod(&self, namespace: &str, name: &str) -> Option<ObjectId> {
        self.lock().pods.get(&PodKey { namespace: namespace.to_owned(), name: name.to_owned() }).cloned()
    }

    /// Knows of a run before anybody asks for its state.
    pub(super) fn note(&self, head: &RunHead) {
        self.lock().note(head);
    }

    pub(super) fn is_open(&self, run: &str) -> bool {
        self.lock().open.contains(run)
    }

    /// Takes in a state that was just written or read; an older one than is known changes nothing.
    pub(super) fn put(&self, mut folded: Folded) {
        let mut inner = self.lock();
        let uid = folded.head.run.uid.clone();
        let known = inner.runs.get(&uid).map(|known| known.head.clone());
        if known.as_ref().is_some_and(|known| known.chain.seq > folded.head.chain.seq) {
            return;
        }
        if let Some(known) = known {
            // A Hello may have raised the session after this append was prepared.
            folded.head.session = folded.head.session.max(known.session);
            inner.drop_pod(&known);
        }
        inner.note(&folded.head);
        if folded.head.ended && folded.head.pod_name.is_none() {
            inner.runs.remove(&uid);
        } else {
            inner.runs.insert(uid, folded);
        }
    }

    pub(super) fn put_session(&self, run: &str, session: u64) {
        if let Some(folded) = self.lock().runs.get_mut(run) {
            folded.head.session = session;
        }
    }

    pub(super) fn forget(&self, run: &str) {
        let mut inner = self.lock();
        inner.runs.remove(run);
        inner.open.remove(run);
        inner.pods.retain(|_, owner| owner.uid != run);
    }

    /// Drops all states; which pod is whose stays known.
    pub(super) fn clear_states(&self) {
        self.lock().runs.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note(&mut self, head: &RunHead) {
        if head.ended {
            self.open.remove(&head.run.uid);
        } else {
            self.open.insert(head.run.uid.clone());
        }
        match pod_key(head) {
            Some(key) => {
                self.pods.insert(key, head.run.clone());
            }
            // The states may have been dropped since the epoch was opened: look by owner.
            None => self.pods.retain(|_, owner| owner.uid != head.run.uid),
        }
    }

    fn drop_pod(&mut self, head: &RunHead) {
        if let Some(key) = pod_key(head) {
            self.pods.remove(&key);
        }
    }
}

fn pod_key(head: &RunHead) -> Option<PodKey> {
    head.pod_name.as_ref().map(|name| PodKey { namespace: head.run.namespace.clone(), name: name.clone() })
}
