//! Whether a request may read a run: its grant, its key and its time. Pure.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_crds::{ReadGrant, ReadPurpose};
use belay_protocol::plan::ObjectId;
use belay_protocol::reading::{NONCE_LENGTHS, Request, TIME_SLACK_MILLISECONDS, signed};
use jiff::{SignedDuration, Timestamp};

use crate::clock::whole_seconds;

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
    pub nonce: &'a str,
    pub signature: &'a [u8],
}

/// What else it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Timestamp,
    /// Since when admission has been known to check who makes grants; None while it is not.
    pub guarded_since: Option<Timestamp>,
}

/// Why a request may not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the operator does not know that admission checks who makes ReadGrants: see `belay doctor`")]
    Unguarded,
    #[error("the ReadGrant is older than the operator's last good look at its admission rules: make another")]
    MadeUnguarded,
    #[error("the ReadGrant has run out: make another")]
    Expired,
    #[error("the ReadGrant is for run {granted}, and this is a record of {asked}")]
    OtherRun { granted: String, asked: String },
    #[error("the request was made {seconds} s before or after the operator's time; it may be {} s", TIME_SLACK_MILLISECONDS / 1000)]
    WrongTime { seconds: u64 },
    #[error("the nonce must be {} to {} letters and digits", NONCE_LENGTHS.start(), NONCE_LENGTHS.end())]
    BadNonce,
    #[error("the signature is not by the ReadGrant's key over this request")]
    BadSignature,
}

/// Whether `presented` may read `run` by `grant`.
///
/// # Errors
/// It may not. What is secret is checked last: a refusal tells nothing to who has no key.
pub fn verify(grant: &ReadGrant, run: &ObjectId, presented: &Presented<'_>, moment: Moment) -> Result<(), Refusal> {
    let guarded_since = moment.guarded_since.ok_or(Refusal::Unguarded)?;
    let made = grant.metadata.creation_timestamp.as_ref().ok_or(Refusal::Expired)?.0;
    if made < whole_seconds(guarded_since) {
        return Err(Refusal::MadeUnguarded);
    }
    if has_run_out(grant, moment.now) {
        return Err(Refusal::Expired);
    }
    let namespace = grant.metadata.namespace.as_deref().unwrap_or_default();
    let ReadPurpose::JournalExport = grant.spec.purpose;
    if namespace != run.namespace || grant.spec.run_ref.name != run.name {
        return Err(Refusal::OtherRun {
            granted: format!("{namespace}/{}", grant.spec.run_ref.name),
            asked: format!("{}/{}", run.namespace, run.name),
        });
    }
    let apart = moment.now.as_millisecond().abs_diff(presented.at);
    if apart > TIME_SLACK_MILLISECONDS {
        return Err(Refusal::WrongTime { seconds: apart / 1000 });
    }
    if !NONCE_LENGTHS.contains(&presented.nonce.len())
        || !presented.nonce.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Err(Refusal::BadNonce);
    }
    let request = Request {
        grant_uid: grant.metadata.uid.as_deref().unwrap_or_default(),
        method: presented.method,
        path: presented.path,
        at: presented.at,
        nonce: presented.nonce,
    };
    let key = STANDARD.decode(&grant.spec.public_key).map_err(|_| Refusal::BadSignature)?;
    let key = UnparsedPublicKey::new(&ED25519, key);
    key.verify(&signed(&request), presented.signature).map_err(|_| Refusal::BadSignature)
}

/// Whether nobody can use it any more.
#[must_use]
pub fn has_run_out(grant: &ReadGrant, now: Timestamp) -> bool {
    let lasts = SignedDuration::from_secs(i64::from(grant.spec.valid_seconds));
    let made = grant.metadata.creation_timestamp.as_ref().map(|made| made.0);
    made.and_then(|made| made.checked_add(lasts).ok()).is_some_and(|end| now >= end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    const MADE: &str = "2026-11-23T10:00:00Z";
    const NONCE: &str = "0123456789abcdef";

    fn grant(key: &Ed25519KeyPair) -> ReadGrant {
        serde_json::from_value(json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "ReadGrant",
            "metadata": {"name": "g", "namespace": "triage", "uid": "grant-uid", "creationTimestamp": MADE},
            "spec": {"runRef": {"name": "nightly"}, "purpose": "JournalExport", "by": "ada",
                "publicKey": STANDARD.encode(key.public_key().as_ref()), "validSeconds": 60},
        }))
        .unwrap()
    }

    fn run() -> ObjectId {
        ObjectId { namespace: "triage".into(), name: "nightly".into(), uid: "run-uid".into() }
    }

    fn after(seconds: i64) -> Timestamp {
        MADE.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    /// A request made `seconds` after the grant, and what it may be presented as.
    struct Sent {
        at: i64,
        signature: Vec<u8>,
    }

    impl Sent {
        fn new(key: &Ed25519KeyPair, seconds: i64) -> Self {
            let at = after(seconds).as_millisecond();
            let request =
                Request { grant_uid: "grant-uid", method: "GET", path: "/v1/runs/run-uid/journal", at, nonce: NONCE };
            Self { at, signature: key.sign(&signed(&request)).as_ref().to_vec() }
        }

        fn as_it_is(&self) -> Presented<'_> {
            Presented {
                method: "GET",
                path: "/v1/runs/run-uid/journal",
                at: self.at,
                nonce: NONCE,
                signature: &self.signature,
            }
        }
    }

    fn guarded(seconds: i64) -> Moment {
        Moment { now: after(seconds), guarded_since: Some(after(-3600)) }
    }

    #[test]
    fn a_signed_request_reads_the_run_that_it_was_granted_until_the_grant_runs_out() {
        let key = Ed25519KeyPair::generate().unwrap();
        let sent = Sent::new(&key, 1);
        assert_eq!(verify(&grant(&key), &run(), &sent.as_it_is(), guarded(2)), Ok(()));
        let late = Sent::new(&key, 60);
        assert_eq!(verify(&grant(&key), &run(), &late.as_it_is(), guarded(60)), Err(Refusal::Expired));
        assert!(has_run_out(&grant(&key), after(60)) && !has_run_out(&grant(&key), after(59)));
    }

    #[test]
    fn another_run_another_namespace_and_another_time_are_refused() {
        let key = Ed25519KeyPair::generate().unwrap();
        let sent = Sent::new(&key, 1);
        for other in [ObjectId { name: "weekly".into(), ..run() }, ObjectId { namespace: "prod".into(), ..run() }] {
            let refusal = verify(&grant(&key), &other, &sent.as_it_is(), guarded(2)).unwrap_err();
            assert!(refusal.to_string().starts_with("the ReadGrant is for run triage/nightly"), "{refusal}");
        }
        let mut long = grant(&key);
        long.spec.valid_seconds = 600;
        for seconds in [-61, 63] {
            let refused = verify(&long, &run(), &Sent::new(&key, 1).as_it_is(), guarded(seconds));
            assert!(matches!(refused, Err(Refusal::WrongTime { .. })), "{refused:?}");
        }
    }

    #[test]
    fn every_part_of_what_was_signed_is_checked() {
        let (key, other) = (Ed25519KeyPair::generate().unwrap(), Ed25519KeyPair::generate().unwrap());
        let sent = Sent::new(&key, 1);
        let good = sent.as_it_is();
        let changed = [
            Presented { method: "POST", ..good },
            Presented { path: "/v1/runs/other-uid/journal", ..good },
            Presented { at: good.at + 1, ..good },
            Presented { nonce: "0123456789abcdeg", ..good },
            Presented { signature: &[], ..good },
            Presented { signature: good.signature.get(..63).unwrap(), ..good },
        ];
        for presented in changed {
            let refused = verify(&grant(&key), &run(), &presented, guarded(2));
            assert_eq!(refused, Err(Refusal::BadSignature), "{presented:?}");
        }
        assert_eq!(verify(&grant(&other), &run(), &good, guarded(2)), Err(Refusal::BadSignature));
        let mut anew = grant(&key);
        anew.metadata.uid = Some("another".into());
        assert_eq!(verify(&anew, &run(), &good, guarded(2)), Err(Refusal::BadSignature));
        for nonce in ["short", "0123456789abcde\n", &"a".repeat(65)] {
            let refused = verify(&grant(&key), &run(), &Presented { nonce, ..good }, guarded(2));
            assert_eq!(refused, Err(Refusal::BadNonce));
        }
    }

    #[test]
    fn a_grant_from_a_time_when_nobody_checked_who_makes_them_reads_nothing() {
        let key = Ed25519KeyPair::generate().unwrap();
        let sent = Sent::new(&key, 1);
        let down = Moment { guarded_since: None, ..guarded(2) };
        assert_eq!(verify(&grant(&key), &run(), &sent.as_it_is(), down), Err(Refusal::Unguarded));
        let since = Moment { guarded_since: Some(after(1)), ..guarded(2) };
        assert_eq!(verify(&grant(&key), &run(), &sent.as_it_is(), since), Err(Refusal::MadeUnguarded));
    }
}
