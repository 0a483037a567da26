//! metav1 conditions: set by type, and a transition only when the status flips.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

pub const READY: &str = "Ready";
pub const RECONCILING: &str = "Reconciling";
pub const STALLED: &str = "Stalled";
/// On Agent: whether streams of its runners must come from their pods' own addresses.
pub const PEER_ADDRESS_VERIFIED: &str = "PeerAddressVerified";
/// On Agent: whether the cluster enforces the NetworkPolicies around its pods.
pub const NETWORK_ENFORCED: &str = "NetworkEnforced";
/// On ApprovalPolicy: whether there are the Tools and operations that its rules name.
pub const NAMES_KNOWN: &str = "NamesKnown";
/// On ApprovalPolicy: whether its rules can be evaluated on the arguments that servers describe.
pub const ARGUMENTS_FIT: &str = "ArgumentsFit";
/// On AgentRun: True once terminal, with the outcome as reason.
pub const FINISHED: &str = "Finished";

/// A condition's status in the API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a condition shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    pub type_: &'static str,
    pub truth: Truth,
    /// One CamelCase word.
    pub reason: &'a str,
    /// Names the object, the field and what to do.
    pub message: &'a str,
}

/// Sets the condition of that type. `lastTransitionTime` moves only when the status flips; whether it did is
/// returned, so that the caller emits its Event exactly then.
pub fn set_condition(conditions: &mut Vec<Condition>, say: &Statement<'_>, generation: Option<i64>, now: Time) -> bool {
    let before = conditions.iter().position(|condition| condition.type_ == say.type_);
    let flipped =
        before.and_then(|at| conditions.get(at)).is_none_or(|condition| condition.status != say.truth.as_str());
    let since = before.and_then(|at| conditions.get(at)).filter(|_| !flipped).map(|c| c.last_transition_time.clone());
    let condition = Condition {
        type_: say.type_.to_owned(),
        status: say.truth.as_str().to_owned(),
        reason: say.reason.to_owned(),
        message: say.message.to_owned(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or(now),
    };
    match before.and_then(|at| conditions.get_mut(at)) {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
    flipped
}

/// The condition of that type, if it was ever set.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether Ready is True for this generation of the object.
#[must_use]
pub fn is_ready(conditions: &[Condition], generation: Option<i64>) -> bool {
    find(conditions, READY)
        .is_some_and(|ready| ready.status == Truth::True.as_str() && ready.observed_generation == generation)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn say(truth: Truth, message: &str) -> Statement<'_> {
        Statement { type_: READY, truth, reason: "Because", message }
    }

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_flips() {
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, &say(Truth::False, "a"), Some(1), at(1)));
        assert!(!set_condition(&mut conditions, &say(Truth::False, "b"), Some(2), at(2)));
        let ready = find(&conditions, READY).unwrap();
        assert_eq!((ready.message.as_str(), ready.last_transition_time.clone()), ("b", at(1)));
        assert!(set_condition(&mut conditions, &say(Truth::True, "c"), Some(2), at(3)));
        assert_eq!(find(&conditions, READY).unwrap().last_transition_time, at(3));
        assert!(is_ready(&conditions, Some(2)) && !is_ready(&conditions, Some(3)));
    }
}
