//! The verdict on one proposed call.

use belay_protocol::call::CallBinding;
use belay_protocol::event::{DenyReason, ProposedCall, Verdict};
use belay_protocol::fold::RunState;

/// Checks, in order: is the run going on, does the Agent list the operation, is its definition the accepted
/// one, and is the digest the one over exactly this call. Whatever fails means no.
pub fn judge(run: &RunState, call: &ProposedCall) -> Verdict {
    if run.cancel_requested || run.end.is_some() {
        return deny(DenyReason::RunEnding, "the run is ending".into());
    }
    if run.calls_in_flight().next().is_some() {
        return deny(DenyReason::RunEnding, "another call of this run is under way".into());
    }
    let name = format!("{}/{}", call.tool, call.operation);
    let tool = run.plan.as_ref().and_then(|plan| Some((plan, plan.tool(&call.tool)?)));
    let listed = tool.and_then(|(plan, tool)| Some((plan, tool, tool.operation(&call.operation)?)));
    let Some((plan, tool, operation)) = listed else {
        let message = format!(
            "the Agent does not list {name}: use an operation that was offered, or add it to the Agent's spec.tools"
        );
        return deny(DenyReason::NotListed, message);
    };
    let offered = run.listings.get(&call.tool).and_then(|all| all.iter().find(|o| o.name == call.operation));
    let unchanged = offered.is_some_and(|o| o.definition == operation.definition);
    if !unchanged || call.definition != operation.definition {
        let message = format!(
            "the server's definition of {name} is not the one that was accepted for this run: go on without it; \
             a run that starts now is planned with what Tool {} lists now",
            call.tool
        );
        return deny(DenyReason::DefinitionChanged, message);
    }
    match CallBinding::new(plan, tool, call.definition, &call.operation, &call.args).digest() {
        Ok(digest) if digest == call.digest => Verdict::Allowed { digest },
        Ok(_) => deny(DenyReason::DigestMismatch, format!("the digest of {name} is not over what the plan would send")),
        Err(error) => deny(DenyReason::DigestMismatch, format!("the arguments of {name}: {error}")),
    }
}

fn deny(reason: DenyReason, message: String) -> Verdict {
    Verdict::Denied { reason, message }
}
