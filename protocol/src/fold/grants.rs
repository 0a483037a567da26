//! Grants: given with an approval, counted down by each call that goes by them, revoked for good.

use std::collections::BTreeSet;

use super::{CallState, IllegalEvent, RunState, out_of_order, wrong_call};
use crate::GRANTS_MAX;
use crate::event::{ProposedCall, Verdict};
use crate::grant::Grant;

/// A grant, and how much of it is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldGrant {
    pub grant: Grant,
    /// The ApprovalGrant's, once it exists.
    pub uid: Option<String>,
    /// Attempts of calls that got a permit by it. One that came back unused stays counted.
    pub used: u32,
}

impl HeldGrant {
    /// Whether a call may go by it at `now`, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn is_left(&self, now: i64) -> bool {
        self.left() > 0 && now < self.grant.expires_at
    }

    /// Calls that may still go by it.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.grant.pattern.count.saturating_sub(self.used)
    }
}

impl RunState {
    /// Only what the people said who allowed that very call, on terms that let them.
    pub(super) fn open_grant(&mut self, grant: &Grant) -> Result<(), IllegalEvent> {
        let illegal = |why| Err(out_of_order("GrantOpened", why));
        if self.grants.contains_key(&grant.name) {
            return illegal("there is one of that name");
        }
        if self.grants.len() >= GRANTS_MAX {
            return illegal("a run holds so many and no more");
        }
        let (pattern, wanted) = (&grant.pattern, &grant.requirement);
        let terms = wanted.grants.filter(|terms| terms.admit(pattern.count, pattern.seconds));
        if terms.is_none() || pattern.policy != wanted.policy || pattern.digest() != Ok(grant.digest) {
            return illegal("its policy did not let people give that");
        }
        let approved = self.approved.get(&grant.call_id).filter(|approved| approved.requirements.contains(wanted));
        let said = |by: &String| {
            approved.is_some_and(|approved| approved.by.iter().any(|one| one.by == *by && one.policy == wanted.policy))
        };
        let people: BTreeSet<&String> = grant.by.iter().filter(|by| said(by)).collect();
        if u32::try_from(people.len()).unwrap_or(u32::MAX) < wanted.quorum || people.len() != grant.by.len() {
            return illegal("those who give it did not allow the call");
        }
        self.grants.insert(grant.name.clone(), HeldGrant { grant: grant.clone(), uid: None, used: 0 });
        Ok(())
    }

    pub(super) fn post_grant(&mut self, name: &str, uid: &str) -> Result<(), IllegalEvent> {
        let held = self.grants.get_mut(name).filter(|held| held.uid.is_none());
        held.ok_or(out_of_order("GrantPosted", "no such grant waits for its ApprovalGrant"))?.uid =
            Some(uid.to_owned());
        Ok(())
    }

    pub(super) fn revoke_grant(&mut self, name: &str) -> Result<(), IllegalEvent> {
        self.grants.remove(name).map(drop).ok_or(out_of_order("GrantRevoked", "there is no such grant"))
    }

    /// Whether that verdict may name those grants: each once, each there and not used up, for that operation.
    pub(super) fn may_use(&self, call_id: &str, verdict: &Verdict, grants: &[String]) -> Result<(), IllegalEvent> {
        if grants.is_empty() {
            return Ok(());
        }
        let allowed = matches!(verdict, Verdict::Allowed { .. });
        let once = grants.iter().collect::<BTreeSet<_>>().len() == grants.len();
        let call = match self.calls.get(call_id) {
            Some(CallState::Proposed { call, .. }) => Some(&**call),
            _ => None, // nothing else is permitted
        };
        let good = |name: &String| {
            let held = self.grants.get(name);
            held.zip(call).is_some_and(|(held, call)| held.is_good_for(call))
        };
        if allowed && once && grants.iter().all(good) {
            return Ok(());
        }
        Err(wrong_call("CallDecided", call_id, "a grant that it names is not there, used up or for another operation"))
    }

    pub(super) fn use_grants(&mut self, grants: &[String]) {
        for name in grants {
            if let Some(held) = self.grants.get_mut(name) {
                held.used += 1;
            }
        }
    }
}

impl HeldGrant {
    fn is_good_for(&self, call: &ProposedCall) -> bool {
        self.uid.is_some() && self.left() > 0 && self.grant.pattern.is_about(call)
    }
}

#[cfg(test)]
mod tests;
