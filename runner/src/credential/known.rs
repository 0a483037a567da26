//! Every value that this process has read or been given: what must not show anywhere. An older one stays known after it
//! was rotated away, since a server may echo it later.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Secret;
use crate::redact::{Finder, Named};

/// How long a token is remembered: none is used for longer.
const TOKEN_AGE_MAX: Duration = Duration::from_hours(24);
/// What the remembered values of one credential may come to, in bytes; beyond that the oldest is forgotten. Enough for a
/// day of tokens of 2 KiB that are replaced every three minutes.
const BYTES_MAX: usize = 1024 * 1024;
/// What it takes to find a value, beside its own bytes.
const BYTES_BESIDE: usize = 256;

#[derive(Default)]
pub struct Known(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// The oldest first.
    values: Vec<Value>,
    finder: Arc<Finder>,
}

struct Value {
    named: Named,
    /// When an endpoint gave it; keys have no such time, and no age.
    given: Option<Instant>,
}

impl Known {
    /// From now on `secret` is recognised as a value of that credential.
    pub fn remember(&self, credential: &str, secret: &Secret) {
        self.take_in(Named { name: credential.into(), secret: secret.clone() }, None);
    }

    /// The same for a token that was given at `now`, for a day.
    pub fn remember_token(&self, credential: &str, token: &Secret, now: Instant) {
        self.take_in(Named { name: credential.into(), secret: token.clone() }, Some(now));
    }

    pub fn finder(&self) -> Arc<Finder> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner).finder)
    }

    fn take_in(&self, named: Named, given: Option<Instant>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&mut Value| known.named.name == named.name && known.named.secret == named.secret;
        if let Some(known) = inner.values.iter_mut().find(same) {
            known.given = known.given.and(given);
            return;
        }
        if let Some(now) = given {
            inner.values.retain(|value| value.given.is_none_or(|given| now - given <= TOKEN_AGE_MAX));
        }
        inner.make_room(&named);
        inner.values.push(Value { named, given });
        inner.finder = Arc::new(Finder::new(inner.values.iter().map(|value| &value.named)));
    }
}

impl Inner {
    fn make_room(&mut self, new: &Named) {
        let bytes = |named: &Named| named.secret.bytes().len() + BYTES_BESIDE;
        let of_it = |value: &Value| value.named.name == new.name;
        let kept: usize = self.values.iter().filter(|value| of_it(value)).map(|value| bytes(&value.named)).sum();
        let mut excess = (kept + bytes(new)).saturating_sub(BYTES_MAX);
        self.values.retain(|value| {
            let goes = excess > 0 && of_it(value);
            if goes {
                excess = excess.saturating_sub(bytes(&value.named));
            }
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = "[credential key redacted]";

    fn token(number: u32) -> String {
        format!("token-{number:06}")
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_known_for_a_day_and_a_key_for_good() {
        let known = Known::default();
        known.remember("key", &Secret::new(b"hunter2"));
        let began = Instant::now();
        for number in 0..=96 {
            let at = began + Duration::from_mins(15) * number;
            known.remember_token("key", &Secret::new(token(number).as_bytes()), at);
        }
        let shown = |text: &str| known.finder().replaced(text).into_owned();
        for number in [0, 1, 50, 96] {
            assert_eq!(shown(&token(number)), MARKER, "{number}");
        }
        known.remember_token("key", &Secret::new(b"swordfish"), began + TOKEN_AGE_MAX + Duration::from_secs(1));
        assert_eq!(shown(&token(0)), token(0), "it is worth nothing any more");
        assert_eq!(shown(&token(1)), MARKER);
        assert_eq!(shown("hunter2"), MARKER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_given_again_is_known_for_another_day() {
        let known = Known::default();
        let began = Instant::now();
        known.remember_token("key", &Secret::new(b"hunter2"), began);
        known.remember_token("key", &Secret::new(b"hunter2"), began + TOKEN_AGE_MAX);
        known.remember_token("key", &Secret::new(b"swordfish"), began + TOKEN_AGE_MAX * 2);
        assert_eq!(known.finder().replaced("hunter2"), MARKER);
    }

    #[test]
    fn only_so_much_of_one_credential_is_remembered_and_nothing_is_forgotten_for_anothers() {
        let known = Known::default();
        known.remember("other", &Secret::new(b"swordfish"));
        let long = |number: u32| format!("{}{}", token(number), "x".repeat(60 * 1024));
        for number in 0..20 {
            known.remember("key", &Secret::new(long(number).as_bytes()));
        }
        let finder = known.finder();
        let shown = |text: &str| finder.replaced(text).into_owned();
        assert_eq!(shown(&long(3)), long(3), "the oldest are forgotten");
        assert_eq!(shown(&long(4)), MARKER);
        assert_eq!(shown(&long(19)), MARKER);
        assert_eq!(shown("swordfish"), "[credential other redacted]");
    }
}
