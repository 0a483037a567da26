//! What an ApprovalPolicy says of a call: compiles its rules once, with every check that can be made before a call is
//! seen, and judges by them. Pure: knows no cluster, clock or network; the operator and `belay policy` share it.
//!
//! Whatever cannot be evaluated means ask or deny, never allow (design section 8).

mod check;
mod combine;
mod cost;
mod engine;
mod facts;
mod frozen;
mod pattern;
mod samples;
mod source;
mod trial;
mod types;
mod values;

pub use combine::{Voice, combine, combine_by};
pub use engine::{Engine, Ruling, policy_digest};
pub use facts::{Facts, Scene, Spend};
pub use frozen::{Identity, freeze, freeze_effects};
pub use pattern::{PATTERN_COST_MAX, Pattern};
pub use samples::{Described, Misfit, misfits};
pub use source::{STACK_BYTES, on_a_large_stack};
pub use trial::{Trial, trials, word};

/// What is wrong with a policy, in words that point at the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rules[{index}] {rule}: {message}")]
pub struct Fault {
    /// Place in `spec.rules`.
    pub index: usize,
    pub rule: String,
    pub message: String,
}
