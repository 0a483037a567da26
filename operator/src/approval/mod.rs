//! Approvals: the request that a question is made of, and what its decisions come to. Pure; runs ask and settle.

mod decisions;
mod pending;
mod request;

pub use self::decisions::{Settled, Tally, given, settled, tally};
pub use self::pending::PendingApprovals;
pub use self::request::{ARGUMENTS_BYTES_MAX, About, Question, approval, request};
