//! What to do about the Lease, as a function of what was seen and for how long. Knows no client and no wall
//! clock: times in a Lease are compared for equality alone, because other nodes' clocks are wrong.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

/// A Lease that nobody renewed for so long, by the clock of who looks at it, is free.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often a leader renews, and others look.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
/// A leader that could not renew for so long stops: well before others may take over.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// Names one reign. Raised in the journal before anything is served, so that an earlier leader writes no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub lease_uid: String,
    pub transitions: i64,
}

/// What of a Lease counts. While two looks are equal, nobody has renewed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub token: Option<Token>,
    pub holder: Option<String>,
    pub renewed: Option<Timestamp>,
}

impl Record {
    #[must_use]
    pub fn of(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let token = lease
            .metadata
            .uid
            .clone()
            .map(|lease_uid| Token { lease_uid, transitions: spec.lease_transitions.unwrap_or_default().into() });
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        Self { token, holder, renewed: spec.renew_time.map(|at| at.0) }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Me<'a> {
    /// Never shared by two processes that may be alive at one time.
    pub identity: &'a str,
    /// The reign that it holds, if it leads.
    pub reign: Option<&'a Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is no Lease: make an empty one.
    Create,
    Acquire,
    Renew,
    /// Someone leads, or may. Free after this time, if nothing changes until then.
    Wait(Duration),
    Lost(Loss),
}

/// Why a leader leads no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    #[error("the Lease was deleted")]
    Deleted,
    #[error("the Lease was taken by {0}")]
    Taken(String),
    #[error("the Lease was released in its name")]
    Released,
    #[error("the Lease could not be renewed for {} s", GIVE_UP_AFTER.as_secs())]
    NotRenewed,
    #[error("renewing the Lease ended by itself")]
    Stopped,
}

/// `seen` is the Lease as it was just read, if there is one. `unchanged` is, for a leader, the time since it sent
/// its last good renewal; for others, the time since they first saw the Lease as it is now.
#[must_use]
pub fn decide(seen: Option<&Record>, unchanged: Duration, me: Me<'_>) -> Decision {
    match me.reign {
        Some(reign) => defend(seen, unchanged, me.identity, reign),
        None => contend(seen, unchanged, me.identity),
    }
}

fn defend(seen: Option<&Record>, unchanged: Duration, identity: &str, reign: &Token) -> Decision {
    if unchanged >= GIVE_UP_AFTER {
        return Decision::Lost(Loss::NotRenewed);
    }
    let Some(seen) = seen.filter(|seen| seen.token.as_ref().is_some_and(|token| token.lease_uid == reign.lease_uid))
    else {
        return Decision::Lost(Loss::Deleted);
    };
    match seen.holder.as_deref() {
        Some(holder) if holder == identity && seen.token.as_ref() == Some(reign) => Decision::Renew,
        Some(holder) => Decision::Lost(Loss::Taken(holder.to_owned())),
        None => Decision::Lost(Loss::Released),
    }
}

fn contend(seen: Option<&Record>, unchanged: Duration, identity: &str) -> Decision {
    let rest = LEASE.saturating_sub(unchanged);
    match seen.map(|seen| seen.holder.as_deref()) {
        // Its last process: it is dead, or this one would not be.
        Some(Some(holder)) if holder == identity => Decision::Acquire,
        Some(None) => Decision::Acquire,
        Some(Some(_)) if rest.is_zero() => Decision::Acquire,
        // Perhaps deleted under a leader, who notices when he renews.
        None if rest.is_zero() => Decision::Create,
        Some(Some(_)) | None => Decision::Wait(rest),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rstest::rstest;

    use super::*;

    const ME: &str = "me";

    fn token(lease_uid: &str, transitions: i64) -> Token {
        Token { lease_uid: lease_uid.to_owned(), transitions }
    }

    fn held(holder: Option<&str>, lease_uid: &str, transitions: i64) -> Record {
        Record { token: Some(token(lease_uid, transitions)), holder: holder.map(str::to_owned), renewed: None }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[rstest]
    #[case::a_lease_never_held_is_free(Some(held(None, "u", 0)), 0, Decision::Acquire)]
    #[case::a_released_one_too(Some(held(None, "u", 7)), 0, Decision::Acquire)]
    #[case::ones_own_of_an_earlier_life(Some(held(Some(ME), "u", 7)), 0, Decision::Acquire)]
    #[case::a_held_one_is_waited_for(Some(held(Some("she"), "u", 7)), 0, Decision::Wait(seconds(15)))]
    #[case::to_the_last_second(Some(held(Some("she"), "u", 7)), 14, Decision::Wait(seconds(1)))]
    #[case::and_taken_when_it_ran_out(Some(held(Some("she"), "u", 7)), 15, Decision::Acquire)]
    #[case::a_deleted_one_may_still_have_a_leader(None, 3, Decision::Wait(seconds(12)))]
    #[case::but_not_for_ever(None, 15, Decision::Create)]
    fn who_does_not_lead(#[case] seen: Option<Record>, #[case] unchanged: u64, #[case] expected: Decision) {
        let me = Me { identity: ME, reign: None };
        assert_eq!(decide(seen.as_ref(), seconds(unchanged), me), expected);
    }

    #[rstest]
    #[case::renews_his_own(Some(held(Some(ME), "u", 7)), 2, Decision::Renew)]
    #[case::as_long_as_he_may(Some(held(Some(ME), "u", 7)), 9, Decision::Renew)]
    #[case::and_stops_before_others_start(Some(held(Some(ME), "u", 7)), 10, Decision::Lost(Loss::NotRenewed))]
    #[case::sees_another_holder(Some(held(Some("she"), "u", 8)), 2, Decision::Lost(Loss::Taken("she".into())))]
    #[case::sees_a_reign_that_is_not_his(Some(held(Some(ME), "u", 8)), 2, Decision::Lost(Loss::Taken(ME.into())))]
    #[case::sees_a_release_that_was_not_his(Some(held(None, "u", 7)), 2, Decision::Lost(Loss::Released))]
    #[case::sees_no_lease(None, 2, Decision::Lost(Loss::Deleted))]
    #[case::sees_a_lease_made_anew(Some(held(Some(ME), "v", 7)), 2, Decision::Lost(Loss::Deleted))]
    fn who_leads(#[case] seen: Option<Record>, #[case] unchanged: u64, #[case] expected: Decision) {
        let reign = token("u", 7);
        let me = Me { identity: ME, reign: Some(&reign) };
        assert_eq!(decide(seen.as_ref(), seconds(unchanged), me), expected);
    }

    #[test]
    fn a_leader_stops_before_anyone_else_may_start_even_if_clocks_drift() {
        let margin = LEASE.checked_sub(GIVE_UP_AFTER + RENEW_EVERY).unwrap();
        assert!(margin * 10 > LEASE, "a tenth of drift");
    }
}
