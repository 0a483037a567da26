//! What people allowed for the rest of a run: made once it is journaled, taken back once its object is gone.

use super::{Decision, Observed};

/// A grant that could still be used, and its ApprovalGrant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantSeen {
    pub name: String,
    pub seen: Granted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// The journal has no uid of it yet.
    Unposted,
    Stands,
    /// Someone deleted it.
    Gone,
    /// The admission rules under which it was given are not those in force.
    Void,
}

impl Observed<'_> {
    /// What people allowed for the rest of the run, and what of that they took back.
    pub(super) fn grant(&self) -> Option<Decision> {
        self.grants.iter().find_map(|grant| {
            let name = grant.name.clone();
            match grant.seen {
                Granted::Unposted => Some(Decision::PostGrant { name }),
                Granted::Gone => Some(Decision::RevokeGrant { name, why: "its ApprovalGrant was deleted" }),
                Granted::Void => {
                    Some(Decision::RevokeGrant { name, why: "the admission rules were changed after people gave it" })
                }
                Granted::Stands => None,
            }
        })
    }
}
