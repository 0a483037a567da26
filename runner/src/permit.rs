//! Leave to act, as the operator gave it. A permit can be made here alone, from the operator's decision;
//! whoever sends must hand one in. Knows nothing of networks.

use std::time::Duration;

use belay_protocol::Digest;
use belay_protocol::wire;
use nix::time::{ClockId, clock_gettime};

/// A reading of `CLOCK_BOOTTIME`, which goes on while a node sleeps: a frozen permit ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now; a clock that cannot be read counts as the end of time, at which no permit is valid.
    #[must_use]
    pub fn now() -> Self {
        Self(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from))
    }

    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Leave to send one call once. Spent by value.
#[derive(Debug)]
pub struct Permit {
    digest: Digest,
    expires: BootTime,
}

/// Leave to ask the model once.
#[derive(Debug)]
pub struct ModelPermit(());

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the permit ran out before the call could be sent")]
    Expired,
    #[error("what would be sent is not what the permit was given for")]
    OtherBytes,
}

/// One decision of an ack.
#[derive(Debug)]
pub struct Decided {
    /// `m` and the step of a model request, or a call id.
    pub subject: String,
    pub attempt: u32,
    pub verdict: Verdict,
}

#[derive(Debug)]
pub enum Verdict {
    Call(Permit),
    Model(ModelPermit),
    Denied(String),
    /// People are asked first.
    Asked,
    /// Not now.
    Later,
}

impl Decided {
    /// Reads a decision about something that was proposed at `proposed_at`. What cannot be read is a no.
    #[must_use]
    pub fn read(decision: wire::Decision, proposed_at: BootTime) -> Self {
        let verdict = match decision.verdict {
            // Subjects tell the two kinds apart: a call's permit without a digest must not become the other.
            Some(wire::decision::Verdict::Permit(_)) if is_model_request(&decision.subject) => {
                Verdict::Model(ModelPermit(()))
            }
            Some(wire::decision::Verdict::Permit(permit)) => read_permit(&permit, proposed_at),
            Some(wire::decision::Verdict::Denied(why)) => Verdict::Denied(why),
            Some(wire::decision::Verdict::Asked(_)) => Verdict::Asked,
            Some(wire::decision::Verdict::Later(_)) => Verdict::Later,
            Some(wire::decision::Verdict::Again(_)) | None => {
                Verdict::Denied("the operator's decision says neither yes nor no".to_owned())
            }
        };
        Self { subject: decision.subject, attempt: decision.attempt, verdict }
    }
}

/// What the operator said by itself about a call that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Woken {
    pub call_id: String,
    pub attempt: u32,
    pub word: WokenWord,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WokenWord {
    /// It is to be proposed again.
    Again,
    Denied(String),
}

impl Woken {
    /// Nothing but these two words wakes a call: a permit answers a proposal alone.
    #[must_use]
    pub fn read(decision: wire::Decision) -> Option<Self> {
        let word = match decision.verdict? {
            wire::decision::Verdict::Again(_) => WokenWord::Again,
            wire::decision::Verdict::Denied(why) => WokenWord::Denied(why),
            wire::decision::Verdict::Permit(_)
            | wire::decision::Verdict::Asked(_)
            | wire::decision::Verdict::Later(_) => return None,
        };
        Some(Self { call_id: decision.subject, attempt: decision.attempt, word })
    }
}

fn is_model_request(subject: &str) -> bool {
    subject.strip_prefix('m').is_some_and(|step| step.parse::<u32>().is_ok())
}

fn read_permit(permit: &wire::Permit, proposed_at: BootTime) -> Verdict {
    let valid = Duration::from_millis(u64::from(permit.valid_milliseconds));
    match Digest::try_from(permit.digest.as_slice()) {
        Ok(digest) => Verdict::Call(Permit { digest, expires: proposed_at.plus(valid) }),
        Err(_) => Verdict::Denied("the operator's permit holds no digest".to_owned()),
    }
}

impl Permit {
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Spends the permit on bytes with the digest `about_to_send`, whose first one leaves within `lead`.
    pub fn spend(self, about_to_send: Digest, now: BootTime, lead: Duration) -> Result<(), Refusal> {
        if about_to_send != self.digest {
            return Err(Refusal::OtherBytes);
        }
        if now.plus(lead) >= self.expires {
            return Err(Refusal::Expired);
        }
        Ok(())
    }
}

impl ModelPermit {
    /// Spends the permit: the request goes out now.
    pub fn spend(self) {
        let Self(()) = self;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    const START: BootTime = BootTime(Duration::from_secs(100));

    fn permit(digest: Digest) -> Permit {
        let wire = wire::Permit { digest: digest.as_bytes().to_vec(), valid_milliseconds: 10_000 };
        match read_permit(&wire, START) {
            Verdict::Call(permit) => permit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_permit_is_good_for_its_bytes_until_it_runs_out() {
        let digest = Digest::of(b"call");
        let at = |seconds| START.plus(Duration::from_secs(seconds));
        let none = Duration::ZERO;
        assert_eq!(permit(digest).spend(digest, at(9), none), Ok(()));
        assert_eq!(permit(digest).spend(digest, at(10), none), Err(Refusal::Expired));
        assert_eq!(permit(digest).spend(digest, at(6), Duration::from_secs(5)), Err(Refusal::Expired));
        assert_eq!(permit(digest).spend(Digest::of(b"other"), at(0), none), Err(Refusal::OtherBytes));
    }

    #[test]
    fn a_node_that_slept_finds_its_permit_expired() {
        let digest = Digest::of(b"call");
        let an_hour_later = START.plus(Duration::from_hours(1));
        assert_eq!(permit(digest).spend(digest, an_hour_later, Duration::ZERO), Err(Refusal::Expired));
    }

    #[test]
    fn the_boot_clock_runs_forward() {
        let before = BootTime::now();
        assert!(BootTime::now() >= before);
        assert!(before < BootTime(Duration::MAX));
    }

    #[test]
    fn a_decision_that_says_nothing_or_nonsense_is_a_no() {
        let decision = |verdict| wire::Decision { subject: "c1".to_owned(), attempt: 1, verdict };
        let nonsense = wire::Permit { digest: vec![1, 2, 3], valid_milliseconds: 10_000 };
        for verdict in [None, Some(wire::decision::Verdict::Permit(nonsense))] {
            assert!(matches!(Decided::read(decision(verdict), START).verdict, Verdict::Denied(_)));
        }
    }

    #[test]
    fn a_permit_is_for_the_model_or_for_a_call_by_its_subject() {
        let decided = |subject: &str, digest: Vec<u8>| {
            let permit = wire::Permit { digest, valid_milliseconds: 10_000 };
            let verdict = Some(wire::decision::Verdict::Permit(permit));
            Decided::read(wire::Decision { subject: subject.to_owned(), attempt: 1, verdict }, START).verdict
        };
        assert!(matches!(decided("m3", Vec::new()), Verdict::Model(_)));
        assert!(matches!(decided("m3", vec![0; 32]), Verdict::Model(_)));
        assert!(matches!(decided("c3", vec![0; 32]), Verdict::Call(_)));
        assert!(matches!(decided("c3", Vec::new()), Verdict::Denied(_)));
        assert!(matches!(decided("mine", Vec::new()), Verdict::Denied(_)));
    }
}
