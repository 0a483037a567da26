//! Grants as they stand in the cluster: which of a run's still count when a call wants to go by one. What a grant is, the
//! journal says; that nobody took it back, its ApprovalGrant.
//!
//! # What a look promises
//! The ApprovalGrant is read from quorum after the call was proposed and before it is decided. So once somebody's deletion
//! was answered, no call that is proposed afterwards goes by that grant. One that was being decided at that moment may; a
//! permit that is out already stays good for its ten seconds.

mod law;
mod object;
#[cfg(test)]
mod tests;

pub use self::law::{GrantObjects, GrantingLaw};
pub use self::object::{Live, approval_grant, stands};
