//! The time, as a value that tests choose.

use jiff::Timestamp;

/// Where passes take the time from. Whole seconds: what the API server keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Cut to the second, as `metav1.Time` is written: a status compares equal to what was read back.
    #[must_use]
    pub fn now(self) -> Timestamp {
        whole_seconds(Timestamp::now())
    }

    /// Milliseconds since the Unix epoch, as the journal counts.
    #[must_use]
    pub fn milliseconds(self) -> i64 {
        Timestamp::now().as_millisecond()
    }
}

/// The instant of a journal's record as `metav1.Time` writes it.
#[must_use]
pub fn from_milliseconds(at: i64) -> Timestamp {
    whole_seconds(Timestamp::from_millisecond(at).unwrap_or_default())
}

/// `at` as the API server would keep it.
#[must_use]
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
