//! Approvals: the request that a question is made of, and what its decisions come to. Pure; runs ask and settle.

mod decisions;
mod request;

pub use self::decisions::{Settled, given, is_decided, settled};
pub use self::request::{Question, approval, request};

/// The policy under which calls run while no other has a say.
pub const DEFAULT_POLICY: &str = "default";
