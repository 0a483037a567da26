//! What a server says of its list between two listings: that it changed, and nothing more is taken from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a stream on which changes are heard stays closed before it is opened again; longer each time.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_mins(1);

/// How often the list may have changed: the server said so, or could not be heard. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<AtomicU64>);

impl Changes {
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// One pause for each time that a stream has to be opened again.
pub fn pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(PAUSE_FIRST), |pause| Some((*pause * 2).min(PAUSE_MOST)))
}
