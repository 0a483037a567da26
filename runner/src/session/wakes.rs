//! What the operator says by itself about calls that wait. Holds the newest word on each call until the loop takes it,
//! so that a busy loop never holds up the stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use belay_protocol::wire::Decision;
use tokio::sync::Notify;

/// Clones share what was heard.
#[derive(Clone, Debug, Default)]
pub struct Wakes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By call id: as many as one response has calls.
    heard: Mutex<BTreeMap<String, Decision>>,
    news: Notify,
}

impl Wakes {
    pub fn hear(&self, decisions: Vec<Decision>) {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend(decisions.into_iter().map(|decision| (decision.subject.clone(), decision)));
        drop(heard);
        self.0.news.notify_one();
    }

    /// What was heard since; waits until there is something.
    pub async fn take(&self) -> Vec<Decision> {
        loop {
            let heard = std::mem::take(&mut *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner));
            if !heard.is_empty() {
                return heard.into_values().collect();
            }
            self.0.news.notified().await;
        }
    }
}
