//! What no installation sets: times that the operator counts in tens of seconds, and who stands by at commits.
//! Production takes the defaults; a test of the whole operator brings shorter times and an observer of its own.

use std::sync::Arc;
use std::time::Duration;

use crate::journal::CommitObserver;

/// Everything of it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tuning {
    pub times: Times,
    /// Called around every transaction of the journal.
    pub commits: Option<Arc<dyn CommitObserver>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A request to the API server whose answer has not begun by then has failed.
    pub api_answer: Duration,
    /// Added to the quarantine of an epoch that nobody saw end, for clocks and networks.
    pub quarantine_margin: Duration,
    /// A runner that only waits for a person or for its Agent is let go after this time.
    pub wait_grace: Duration,
    /// An ended pod stays so long that whoever follows its log reads the last lines.
    pub log_linger: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            api_answer: Duration::from_secs(30),
            quarantine_margin: Duration::from_secs(30),
            wait_grace: Duration::from_secs(20),
            log_linger: Duration::from_secs(3),
        }
    }
}
