//! Whether a run may start another one for a call of an Agent, and what that one may use. Pure.

use belay_protocol::event::{Child, Event, Verdict};
use belay_protocol::fold::{CallState, RunState};
use belay_protocol::plan::{Limits, PlanAgent};
use belay_protocol::subagent::{AT_ONCE_MAX, DEPTH_MAX, TOTAL_MAX, child_name, input_of};
use serde_json::Value;

/// What a child may use: no more than its Agent and the Tool give, and than its parent has left of tokens and cost. Or why
/// there may be none, in words for the model.
pub fn share(run: &RunState, agent: &PlanAgent, args: &Value) -> Result<Limits, String> {
    let plan = run.plan.as_ref().ok_or("there is no plan")?;
    let depth = plan.parent.as_ref().map_or(0, |parent| parent.depth);
    if depth >= DEPTH_MAX {
        return Err(format!("this run is {depth} runs below the one that people started, and no run is deeper"));
    }
    if run.children_total >= TOTAL_MAX {
        return Err(format!("this run has started {TOTAL_MAX} runs, and starts no more"));
    }
    if run.children.len() >= AT_ONCE_MAX {
        return Err(format!("{AT_ONCE_MAX} runs are under way for this one: wait for the results of those"));
    }
    if input_of(args).is_none() {
        return Err("its input is no text, is empty or is too long".to_owned());
    }
    let (tokens, cost) = (run.tokens_left(), run.cost_left());
    if tokens == Some(0) {
        return Err("no tokens are left of limits.tokens beside what other runs may use: go on without it".to_owned());
    }
    if cost == Some(0) {
        return Err("nothing is left of limits.costUSD beside what other runs may spend: go on without it".to_owned());
    }
    if cost.is_some() && !agent.priced {
        return Err(format!(
            "this run has a limits.costUSD, and what Agent {} costs is not known: its Model has no spec.pricesUSD",
            agent.name
        ));
    }
    Ok(agent.limits.within(Limits { tokens, cost_micro_usd: cost, ..plan.limits }))
}

/// What follows a verdict that permits a call of an Agent: no runner sends it.
pub fn open(run: &RunState, verdict: &Event) -> Option<Event> {
    let Event::CallDecided { call_id, attempt, verdict: Verdict::Allowed { .. }, .. } = verdict else { return None };
    let Some(CallState::Permitted { call, .. }) = run.calls.get(call_id) else { return None };
    let plan = run.plan.as_ref()?;
    let agent = plan.tool(&call.tool)?.agent.as_ref()?;
    let child = Child {
        name: child_name(&plan.run, call_id, *attempt),
        agent: agent.name.clone(),
        limits: share(run, agent, &call.args).ok()?,
    };
    Some(Event::ChildOpened { call_id: call_id.clone(), attempt: *attempt, child })
}
