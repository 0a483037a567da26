//! The three conditions that kstatus reads, from one verdict. Knows no kind and no client.

use belay_crds::conditions::{READY, RECONCILING, STALLED, Statement, Truth, set_condition};
use belay_crds::reason::{AgentReason, CredentialReason, ModelReason, PolicyReason, RunReason, ToolReason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Where an object stands between what it says and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All that it names is there.
    Ready,
    /// Not looked at yet.
    Unknown,
    /// Not ready, and it will be looked at again without anyone changing it.
    Waiting,
    /// Not ready, and someone has to change something.
    Stalled,
}

/// What the conditions of an object shall say. `R` is its kind's enum of reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<R> {
    pub standing: Standing,
    pub reason: R,
    /// Names the object, the field and what to do.
    pub message: String,
}

/// A kind's reasons in the API's own words: one CamelCase word each.
pub trait Reason: Copy {
    fn word(self) -> &'static str;
}

macro_rules! reason_words {
    ($($kind:ident),+) => { $(impl Reason for $kind {
        fn word(self) -> &'static str {
            self.as_str()
        }
    })+ };
}

reason_words!(ModelReason, CredentialReason, ToolReason, PolicyReason, AgentReason, RunReason);

/// Whether anybody needs to hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    None,
    Flipped,
}

impl Flip {
    #[must_use]
    pub fn of(flipped: bool) -> Self {
        if flipped { Self::Flipped } else { Self::None }
    }
}

impl<R: Reason> Verdict<R> {
    pub fn ready(reason: R, message: impl Into<String>) -> Self {
        Self { standing: Standing::Ready, reason, message: message.into() }
    }

    pub fn unknown(reason: R, message: impl Into<String>) -> Self {
        Self { standing: Standing::Unknown, reason, message: message.into() }
    }

    pub fn waiting(reason: R, message: impl Into<String>) -> Self {
        Self { standing: Standing::Waiting, reason, message: message.into() }
    }

    pub fn stalled(reason: R, message: impl Into<String>) -> Self {
        Self { standing: Standing::Stalled, reason, message: message.into() }
    }

    /// Writes Ready, Reconciling and Stalled. Tells whether Ready flipped.
    pub fn write(&self, conditions: &mut Vec<Condition>, generation: Option<i64>, now: &Time) -> Flip {
        let (ready, reconciling, stalled) = match self.standing {
            Standing::Ready => (Truth::True, Truth::False, Truth::False),
            Standing::Unknown => (Truth::Unknown, Truth::True, Truth::False),
            Standing::Waiting => (Truth::False, Truth::True, Truth::False),
            Standing::Stalled => (Truth::False, Truth::False, Truth::True),
        };
        let flipped = set_condition(conditions, &self.statement(READY, ready), generation, now.clone());
        set_condition(conditions, &self.statement(RECONCILING, reconciling), generation, now.clone());
        set_condition(conditions, &self.statement(STALLED, stalled), generation, now.clone());
        Flip::of(flipped)
    }

    fn statement(&self, type_: &'static str, truth: Truth) -> Statement<'_> {
        // The message stands where it is true; a False condition repeats only the reason.
        let message = if truth == Truth::False && type_ != READY { "" } else { self.message.as_str() };
        Statement { type_, truth, reason: self.reason.word(), message }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Clone, Copy)]
    struct Because;

    impl Reason for Because {
        fn word(self) -> &'static str {
            "Because"
        }
    }

    fn statuses(verdict: &Verdict<Because>) -> Vec<(String, String)> {
        let mut conditions = Vec::new();
        verdict.write(&mut conditions, Some(1), &Time(jiff::Timestamp::UNIX_EPOCH));
        conditions.into_iter().map(|c| (c.type_, c.status)).collect()
    }

    #[test]
    fn each_standing_is_what_kstatus_expects() {
        let table = [
            (Verdict::ready(Because, ""), ["True", "False", "False"]),
            (Verdict::unknown(Because, ""), ["Unknown", "True", "False"]),
            (Verdict::waiting(Because, ""), ["False", "True", "False"]),
            (Verdict::stalled(Because, ""), ["False", "False", "True"]),
        ];
        for (verdict, expected) in table {
            let types = ["Ready", "Reconciling", "Stalled"];
            let expected: Vec<_> = types.iter().zip(expected).map(|(t, s)| ((*t).to_owned(), s.to_owned())).collect();
            assert_eq!(statuses(&verdict), expected);
        }
    }
}
