//! Calls that other runs carry out: each child holds a share of what the run may use until it has ended.

use super::{CallState, IllegalEvent, Presumed, RunState, Settlement, out_of_order, wrong_call};
use crate::cost::Cost;
use crate::event::{Child, ChildEnd};

/// A child that has not come to an end, as far as its parent has heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenChild {
    pub call_id: String,
    pub attempt: u32,
    pub child: Child,
    /// Of its AgentRun, once that exists.
    pub uid: Option<String>,
}

impl RunState {
    /// Whether a run that was started for one of the calls is under way, or has ended and was not heard of yet.
    #[must_use]
    pub fn has_child_at_work(&self) -> bool {
        self.children.values().any(|open| open.uid.is_some())
    }

    /// Tokens that the run may still use: without those that children may. None: there is no limit.
    #[must_use]
    pub fn tokens_left(&self) -> Option<u64> {
        self.tokens_without(self.tokens_spent())
    }

    /// Likewise micro-USD.
    #[must_use]
    pub fn cost_left(&self) -> Option<u64> {
        self.cost_without(self.cost_spent())
    }

    fn tokens_without(&self, spent: u64) -> Option<u64> {
        let limit = self.plan.as_ref()?.limits.tokens?;
        Some(limit.saturating_sub(spent).saturating_sub(self.tokens_set_aside()))
    }

    fn cost_without(&self, spent: Cost) -> Option<u64> {
        let limit = self.plan.as_ref()?.limits.cost_micro_usd?;
        Some(limit.saturating_sub(spent.micro_usd()).saturating_sub(self.cost_set_aside()))
    }

    /// Tokens that children under way may use.
    #[must_use]
    pub fn tokens_set_aside(&self) -> u64 {
        let shares = self.children.values().filter_map(|open| open.child.limits.tokens);
        shares.fold(0, u64::saturating_add)
    }

    /// Likewise micro-USD.
    #[must_use]
    pub fn cost_set_aside(&self) -> u64 {
        let shares = self.children.values().filter_map(|open| open.child.limits.cost_micro_usd);
        shares.fold(0, u64::saturating_add)
    }

    /// Only a call that was just permitted, of a tool that is an Agent, with no more than what is left.
    pub(super) fn open_child(&mut self, call_id: &str, attempt: u32, child: &Child) -> Result<(), IllegalEvent> {
        const EVENT: &str = "ChildOpened";
        let Some(CallState::Permitted { call, at, .. }) = self.calls.get(call_id) else {
            return Err(wrong_call(EVENT, call_id, "it has no permit"));
        };
        let tool = self.plan.as_ref().and_then(|plan| plan.tool(&call.tool));
        if tool.and_then(|tool| tool.agent.as_ref()).is_none_or(|agent| agent.name != child.agent) {
            return Err(wrong_call(EVENT, call_id, "its tool is no such Agent"));
        }
        if self.children.contains_key(&child.name) {
            return Err(wrong_call(EVENT, call_id, "a child has that name"));
        }
        let within = |share: Option<u64>, left: Option<u64>| left.is_none_or(|left| share.is_some_and(|it| it <= left));
        // Operators gave shares before they held against a run what nobody counted: what was given was given.
        let fits = within(child.limits.tokens, self.tokens_without(self.tokens_reported()))
            && within(child.limits.cost_micro_usd, self.cost_without(self.cost_reported()));
        if !fits {
            return Err(wrong_call(EVENT, call_id, "there is not so much left"));
        }
        let at = *at;
        self.move_permitted(EVENT, call_id, attempt, |call, _| CallState::Delegated {
            attempt,
            call: std::sync::Arc::clone(call),
            at,
            child: child.name.clone(),
        })?;
        let open = OpenChild { call_id: call_id.to_owned(), attempt, child: child.clone(), uid: None };
        self.children.insert(child.name.clone(), open);
        self.children_total = self.children_total.saturating_add(1);
        Ok(())
    }

    pub(super) fn post_child(&mut self, name: &str, uid: &str) -> Result<(), IllegalEvent> {
        let open = self.children.get_mut(name).filter(|open| open.uid.is_none());
        open.ok_or(out_of_order("ChildPosted", "no such child waits for its AgentRun"))?.uid = Some(uid.to_owned());
        Ok(())
    }

    pub(super) fn end_child(
        &mut self,
        (call_id, attempt): (&str, u32),
        name: &str,
        end: &ChildEnd,
        ended_at: i64,
    ) -> Result<(), IllegalEvent> {
        const EVENT: &str = "ChildEnded";
        let open = self.children.get(name).ok_or(out_of_order(EVENT, "there is no such child"))?;
        if end.outcome.is_some() && open.uid.is_none() {
            return Err(out_of_order(EVENT, "its AgentRun was never made"));
        }
        self.move_call(EVENT, call_id, |now| match now {
            CallState::Delegated { attempt: held, child, .. } if *held == attempt && child == name => {
                Some(CallState::Settled(Settlement::Observed))
            }
            CallState::Delegated { .. }
            | CallState::Due { .. }
            | CallState::Proposed { .. }
            | CallState::Later { .. }
            | CallState::Asked { .. }
            | CallState::Permitted { .. }
            | CallState::Unknown { .. }
            | CallState::InputRequired { .. }
            | CallState::Settled(_) => None,
        })?;
        self.children.remove(name);
        let spent = Presumed { tokens: end.tokens, cost: Cost::of_micro_usd(end.cost_micro_usd) };
        self.children_spent = self.children_spent.plus(spent);
        if let Some(rested_at) = self.rested_at.as_mut() {
            *rested_at = ended_at.max(*rested_at);
        }
        self.come_forward();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
