//! Whether a call that policies ask about may go by what people allowed for the rest of the run. Pure.

use belay_protocol::event::ProposedCall;
use belay_protocol::fold::{HeldGrant, RunState};
use belay_protocol::judgement::PolicyRequirement;

use super::law::covers;

/// The grants by which the call goes, one for each policy that asks; none where one of them has none. `fits`: those whose
/// pattern its arguments fit and that nobody has revoked. `now` in milliseconds since the Unix epoch.
#[must_use]
pub fn covering(
    run: &RunState,
    call: &ProposedCall,
    wanted: &[PolicyRequirement],
    fits: &[String],
    now: i64,
) -> Option<Vec<String>> {
    if wanted.is_empty() {
        return None;
    }
    let one = |want: &PolicyRequirement| {
        let good = fits.iter().filter_map(|name| run.grants.get(name)).filter(|held| is_good(held, call, want, now));
        // What runs out first goes first.
        good.min_by_key(|held| (held.grant.expires_at, &held.grant.name)).map(|held| held.grant.name.clone())
    };
    wanted.iter().map(one).collect()
}

/// Its terms have to be within what is wanted now: a policy that lets people give less takes back what is more.
#[must_use]
pub fn is_good(held: &HeldGrant, call: &ProposedCall, want: &PolicyRequirement, now: i64) -> bool {
    let (grant, pattern) = (&held.grant, &held.grant.pattern);
    held.uid.is_some()
        && held.is_left(now)
        && pattern.is_about(call)
        && covers(std::slice::from_ref(&grant.requirement), std::slice::from_ref(want))
        && want.grants.is_some_and(|terms| terms.admit(pattern.count, pattern.seconds))
}
