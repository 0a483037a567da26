//! Every value that this process has read or been given: what must not show anywhere. An older one stays known after it
//! was rotated away, since a server may echo it later.

use std::sync::{Arc, Mutex, PoisonError};

use super::Secret;
use crate::redact::{Finder, Named};

/// Values of one credential that are remembered; beyond that the oldest is forgotten. Tokens are replaced every few
/// minutes at most, and keys by hand.
const VALUES_KEPT: usize = 32;

#[derive(Default)]
pub struct Known(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    values: Vec<Named>,
    finder: Arc<Finder>,
}

impl Known {
    /// From now on `secret` is recognised as a value of that credential.
    pub fn remember(&self, credential: &str, secret: &Secret) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.values.iter().any(|known| *known.name == *credential && known.secret == *secret) {
            return;
        }
        let kept = inner.values.iter().filter(|known| *known.name == *credential).count();
        if kept >= VALUES_KEPT
            && let Some(oldest) = inner.values.iter().position(|known| *known.name == *credential)
        {
            inner.values.remove(oldest);
        }
        inner.values.push(Named { name: credential.into(), secret: secret.clone() });
        inner.finder = Arc::new(Finder::new(&inner.values));
    }

    pub fn finder(&self) -> Arc<Finder> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner).finder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_values_of_one_credential_are_remembered_and_none_is_forgotten_for_anothers() {
        let known = Known::default();
        known.remember("other", &Secret::new(b"swordfish"));
        for number in 0..=VALUES_KEPT {
            known.remember("key", &Secret::new(format!("value-{number:03}").as_bytes()));
        }
        let finder = known.finder();
        let shown = |text| finder.replaced(text).into_owned();
        assert_eq!(shown("value-000"), "value-000", "the oldest is forgotten");
        assert_eq!(shown("value-001 value-032"), "[credential key redacted] [credential key redacted]");
        assert_eq!(shown("swordfish"), "[credential other redacted]");
    }
}
