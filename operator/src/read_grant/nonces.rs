//! Which nonces were used: what was sent once is not answered again.

use std::collections::HashMap;
use std::time::Duration;

use belay_protocol::reading::TIME_SLACK_MILLISECONDS;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A request is refused for its time from then on.
const KEEP: Duration = Duration::from_millis(2 * TIME_SLACK_MILLISECONDS);
/// More requests within [`KEEP`] than people make.
const NONCES_MAX: usize = 10_000;

/// Remembers nonces for as long as their requests could be sent again.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<HashMap<String, Instant>>);

/// What a nonce is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    First,
    Again,
    /// There is no room to remember it.
    Full,
}

impl Nonces {
    /// Takes one that belongs to the grant of that uid.
    pub fn take(&self, grant_uid: &str, nonce: &str, now: Instant) -> Use {
        let mut used = self.0.lock();
        used.retain(|_, at| now.duration_since(*at) < KEEP);
        let key = format!("{grant_uid}/{nonce}");
        if used.contains_key(&key) {
            return Use::Again;
        }
        if used.len() >= NONCES_MAX {
            return Use::Full;
        }
        used.insert(key, now);
        Use::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_taken_once_for_each_grant_and_forgotten_when_its_time_is_over() {
        let (nonces, now) = (Nonces::default(), Instant::now());
        assert_eq!(nonces.take("g", "n", now), Use::First);
        assert_eq!(nonces.take("g", "n", now), Use::Again);
        assert_eq!(nonces.take("h", "n", now), Use::First);
        assert_eq!(nonces.take("g", "n", now + KEEP), Use::First);
    }

    #[test]
    fn more_than_it_can_remember_is_refused() {
        let (nonces, now) = (Nonces::default(), Instant::now());
        for number in 0..NONCES_MAX {
            assert_eq!(nonces.take("g", &number.to_string(), now), Use::First);
        }
        assert_eq!(nonces.take("g", "one more", now), Use::Full);
    }
}
