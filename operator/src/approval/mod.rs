//! Approvals: the request that a question is made of, and what its decisions come to. Pure but for sealing; runs and
//! Tools ask and settle.

mod decisions;
mod grants;
mod inquiry;
mod pending;
mod request;
mod sealing;

pub use self::decisions::{Settled, Tally, given, settled, tally};
pub use self::grants::{Given, given as grants_given};
pub use self::inquiry::{Inquired, answered_before, requirements as inquiry_requirements};
pub use self::pending::PendingApprovals;
pub use self::request::{ARGUMENTS_BYTES_MAX, About, Question, approval, request};
pub use self::sealing::{count, seal};
