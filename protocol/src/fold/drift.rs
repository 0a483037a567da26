//! Definitions of a run's tools: what its server offers otherwise than it was accepted, and what people accepted since.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{IllegalEvent, RunState, out_of_order};
use crate::digest::Digest;
use crate::event::{AcceptedDefinition, ProposedCall};
use crate::plan::{OnDrift, PlanOperation, PlanTool};

impl RunState {
    /// Tools that the run waits for: their servers offer a listed operation otherwise than it was accepted. Until that
    /// is over the model is not asked and no call is permitted.
    pub fn drifted(&self) -> impl Iterator<Item = &PlanTool> {
        self.differing().filter(|tool| tool.on_drift == OnDrift::Wait)
    }

    /// Tools of which an operation is not offered as it was accepted, whether the run waits for that or not.
    pub fn differing(&self) -> impl Iterator<Item = &PlanTool> {
        let tools = self.plan.iter().flat_map(|plan| &plan.tools);
        tools.filter(|tool| self.differs.contains_key(&tool.name))
    }

    /// What the server listed for an operation in this epoch.
    #[must_use]
    pub fn offered(&self, tool: &str, operation: &str) -> Option<Digest> {
        let listed = self.listings.get(tool)?;
        listed.iter().find(|offered| offered.name == operation).map(|offered| offered.definition)
    }

    /// Whether the call was proposed under a definition that is not the accepted one any more: what people were asked
    /// about it is void, and it has to be proposed anew.
    #[must_use]
    pub fn is_stale(&self, call: &ProposedCall) -> bool {
        let operation = self.plan.as_ref().and_then(|plan| plan.tool(&call.tool)?.operation(&call.operation));
        operation.is_some_and(|operation| operation.gone || operation.definition != call.definition)
    }

    pub(super) fn compare(&mut self, tool: &str) {
        let (Some(plan), Some(listed)) = (&self.plan, self.listings.get(tool)) else { return };
        let offered: BTreeMap<&str, Digest> = listed.iter().map(|one| (one.name.as_str(), one.definition)).collect();
        let differs = |operation: &&PlanOperation| {
            !operation.gone && offered.get(operation.name.as_str()) != Some(&operation.definition)
        };
        let operations = plan.tool(tool).map_or(&[][..], |tool| &tool.operations);
        let names: Vec<String> = operations.iter().filter(differs).map(|operation| operation.name.clone()).collect();
        if names.is_empty() {
            self.differs.remove(tool);
        } else {
            self.differs.insert(tool.to_owned(), names);
        }
    }

    /// Between epochs alone: under a runner nothing changes, and none of its calls is bound to two definitions.
    pub(super) fn accept_definitions(
        &mut self,
        tool: &str,
        accepted: &[AcceptedDefinition],
    ) -> Result<(), IllegalEvent> {
        const EVENT: &str = "DefinitionsAccepted";
        if self.live_epoch().is_some() {
            return Err(out_of_order(EVENT, "an epoch is open"));
        }
        let known = self.plan.as_ref().and_then(|plan| plan.tool(tool));
        let known = known.ok_or(out_of_order(EVENT, "the plan names no such tool"))?;
        if accepted.iter().any(|one| known.operation(&one.name).is_none()) {
            return Err(out_of_order(EVENT, "the plan lists no such operation"));
        }
        let plan = self.plan.as_mut().map(Arc::make_mut);
        let planned = plan.and_then(|plan| plan.tools.iter_mut().find(|planned| planned.name == tool));
        for operation in planned.into_iter().flat_map(|planned| &mut planned.operations) {
            if let Some(one) = accepted.iter().find(|one| one.name == operation.name) {
                operation.gone = one.definition.is_none();
                operation.definition = one.definition.unwrap_or(operation.definition);
            }
        }
        self.compare(tool);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::event::{EpochEnd, Event, ListedOperation, Listing, Record};
    use crate::plan::Plan;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    /// Tool `t` with operations `a` and `b` as they were accepted.
    fn plan(on_drift: OnDrift) -> Plan {
        let operation = |name: &str| json!({"name": name, "modelName": name, "definition": digest(name)});
        let tool = json!({"name": "t", "uid": "u", "url": "http://t/mcp", "callTimeoutSeconds": 1, "onDrift": on_drift,
            "operations": [operation("a"), operation("b")]});
        let id = json!({"namespace": "n", "name": "r", "uid": "u"});
        let plan = json!({
            "version": 1, "run": id, "agent": id, "agentGeneration": 1, "input": "go", "tools": [tool],
            "model": {"name": "m", "api": "Scripted", "model": "s",
                "timeouts": {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
            "limits": {"steps": 9, "activeSeconds": 9, "waitSeconds": 9},
        });
        serde_json::from_value(plan).unwrap()
    }

    fn listed(operations: &[(&str, &str)]) -> Event {
        let one = |(name, definition): &(&str, &str)| ListedOperation {
            name: (*name).to_owned(),
            definition: digest(definition),
        };
        Event::ToolsListed { tool: "t".into(), listing: Listing::Listed(operations.iter().map(one).collect()) }
    }

    fn take(state: &mut RunState, event: Event) -> Result<(), IllegalEvent> {
        let seq = state.seq + 1;
        state.apply(&Record { seq, at: i64::try_from(seq).unwrap() * 1000, event })
    }

    fn epoch(state: &mut RunState, number: u64, operations: &[(&str, &str)]) {
        let pod_name = "belay-run-a".to_owned();
        take(state, Event::EpochOpened { epoch: number, pod_name }).unwrap();
        let (instance, pod_uid) = ("i".to_owned(), "p".to_owned());
        take(state, Event::InstanceClaimed { epoch: number, instance, pod_uid }).unwrap();
        take(state, listed(operations)).unwrap();
    }

    fn ended(state: &mut RunState, number: u64) {
        let ended = Event::EpochEnded { epoch: number, cause: EpochEnd::Released, active_milliseconds: 1 };
        take(state, ended).unwrap();
    }

    fn run(on_drift: OnDrift, operations: &[(&str, &str)]) -> RunState {
        let plan = plan(on_drift);
        let mut state = RunState::default();
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        take(&mut state, accepted).unwrap();
        epoch(&mut state, 1, operations);
        state
    }

    fn accept(operations: &[(&str, Option<&str>)]) -> Event {
        let one = |(name, definition): &(&str, Option<&str>)| AcceptedDefinition {
            name: (*name).to_owned(),
            definition: definition.map(digest),
        };
        let operations = operations.iter().map(one).collect();
        Event::DefinitionsAccepted { tool: "t".into(), operations, approval: None }
    }

    fn waits(state: &RunState) -> bool {
        state.drifted().next().is_some()
    }

    #[test]
    fn a_run_waits_where_a_planned_operation_changed_or_is_gone_and_not_where_one_was_added() {
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let table: [Row<'_>; 5] = [
            (&[("a", "a"), ("b", "b")], &[]),
            (&[("a", "a"), ("b", "b"), ("c", "c")], &[]),
            (&[("a", "other"), ("b", "b")], &["a"]),
            (&[("b", "b")], &["a"]),
            (&[], &["a", "b"]),
        ];
        for (offered, differs) in table {
            let state = run(OnDrift::Wait, offered);
            let found = state.differs.get("t").cloned().unwrap_or_default();
            assert_eq!(
                (found, waits(&state)),
                (differs.iter().map(|name| (*name).to_owned()).collect(), !differs.is_empty())
            );
            assert!(!waits(&run(OnDrift::Continue, offered)), "it goes on without");
        }
    }

    #[test]
    fn what_people_accepted_is_what_the_run_goes_by_from_the_next_epoch_on() {
        let mut state = run(OnDrift::Wait, &[("a", "new"), ("b", "b")]);
        let digest_of_plan = state.plan_digest;
        let early = take(&mut state, accept(&[("a", Some("new"))]));
        assert!(matches!(early, Err(IllegalEvent::OutOfOrder { .. })), "under a runner nothing changes: {early:?}");
        ended(&mut state, 1);
        take(&mut state, accept(&[("a", Some("new"))])).unwrap();
        assert!(!waits(&state));
        let definition =
            |state: &RunState| state.plan.as_ref().unwrap().tool("t").unwrap().operation("a").unwrap().definition;
        assert_eq!((definition(&state), state.plan_digest), (digest("new"), digest_of_plan), "the plan's digest stays");
        epoch(&mut state, 2, &[("a", "new"), ("b", "b")]);
        assert!(!waits(&state));
        ended(&mut state, 2);
        epoch(&mut state, 3, &[("a", "a"), ("b", "b")]);
        assert!(waits(&state), "what was accepted before is not accepted any more");
    }

    #[test]
    fn an_operation_whose_end_was_accepted_is_not_waited_for_again() {
        let mut state = run(OnDrift::Wait, &[("b", "b")]);
        ended(&mut state, 1);
        take(&mut state, accept(&[("a", None)])).unwrap();
        epoch(&mut state, 2, &[("b", "b")]);
        assert!(!waits(&state));
    }

    #[test]
    fn only_what_the_plan_lists_is_accepted() {
        let mut state = run(OnDrift::Wait, &[]);
        ended(&mut state, 1);
        assert!(take(&mut state, accept(&[("c", Some("c"))])).is_err());
        let other = Event::DefinitionsAccepted { tool: "other".into(), operations: vec![], approval: None };
        assert!(take(&mut state, other).is_err());
    }

    #[test]
    fn a_call_is_stale_once_another_definition_is_accepted() {
        let mut state = run(OnDrift::Wait, &[("a", "new"), ("b", "b")]);
        let call = |operation: &str, definition: &str| ProposedCall {
            tool: "t".into(),
            operation: operation.into(),
            args: json!({}),
            definition: digest(definition),
            digest: Digest::zero(),
        };
        assert!(!state.is_stale(&call("a", "a")), "what was accepted is still accepted");
        ended(&mut state, 1);
        take(&mut state, accept(&[("a", Some("new"))])).unwrap();
        assert!(
            state.is_stale(&call("a", "a")) && !state.is_stale(&call("a", "new")) && !state.is_stale(&call("b", "b"))
        );
        take(&mut state, accept(&[("a", None)])).unwrap();
        assert!(state.is_stale(&call("a", "new")), "it is gone");
    }

    #[test]
    fn plans_from_before_go_on_without_and_keep_their_digests() {
        let written = serde_json::to_value(plan(OnDrift::Continue)).unwrap();
        let tool = written.pointer("/tools/0").unwrap();
        assert!(tool.get("onDrift").is_none() && tool.pointer("/operations/0/gone").is_none(), "{tool}");
        let read: Plan = serde_json::from_value(written).unwrap();
        assert_eq!(read, plan(OnDrift::Continue));
    }
}
