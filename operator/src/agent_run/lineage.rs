//! What a run has from the one whose call it carries out: who asked for it, how deep it is, and policies that judge it
//! besides its own. It ends when that one does, which the journal tells, whatever becomes of any write.

use std::collections::BTreeSet;

use belay_crds::{AgentRun, ParentRun};
use belay_protocol::fold::RunState;
use belay_protocol::plan::{ObjectId, PlanParent};
use kube::ResourceExt;

use super::AgentRuns;
use crate::controller::Failure;
use crate::journal::JournalError;

/// Where a run comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// People, or what they set up.
    Root,
    /// A call of another run, which waits for it.
    Below(Above),
    /// Likewise perhaps: that run's journal does not name its uid yet.
    Unnamed,
    /// Nobody waits for it any more, in words that say why.
    CutOff(String),
}

/// What the run above hands down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Above {
    pub parent: PlanParent,
    /// Names of the policies that the Agents of all runs above name, each once, sorted.
    pub policies: Vec<String>,
}

impl Lineage {
    #[must_use]
    pub fn cut_off(&self) -> Option<&str> {
        match self {
            Self::CutOff(why) => Some(why),
            Self::Root | Self::Below(_) | Self::Unnamed => None,
        }
    }

    #[must_use]
    pub fn above(&self) -> Option<&Above> {
        match self {
            Self::Below(above) => Some(above),
            Self::Root | Self::Unnamed | Self::CutOff(_) => None,
        }
    }
}

impl AgentRuns {
    /// Nothing is asked about a run that is over.
    pub(super) async fn lineage(&self, run: &AgentRun, state: Option<&RunState>) -> Result<Lineage, Failure> {
        let over = state.is_some_and(|state| state.end.is_some());
        let Some(parent) = run.spec.parent.as_ref().filter(|_| !over) else { return Ok(Lineage::Root) };
        let above = match self.journal.state(&parent.uid).await {
            Err(JournalError::Damaged { .. }) => None,
            above => above.map_err(Failure::journal("reading the journal of the run above"))?,
        };
        Ok(lineage(run, parent, above.as_deref()))
    }
}

/// Goes by the journal of the run above: an AgentRun that claims a parent is its child only where that one started it.
pub(crate) fn lineage(run: &AgentRun, parent: &ParentRun, above: Option<&RunState>) -> Lineage {
    let cut_off = |why: &str| Lineage::CutOff(format!("AgentRun {}, whose call it carries out, {why}", parent.name));
    let Some((state, plan)) = above.and_then(|state| Some((state, state.plan.as_ref()?))) else {
        return cut_off("is not in the journal");
    };
    if state.end.is_some() {
        return cut_off("has ended");
    }
    if state.cancel_requested {
        return cut_off("is being cancelled");
    }
    let started = state.children.get(&run.name_any()).filter(|open| open.call_id == parent.call_id);
    match started.map(|open| &open.uid) {
        Some(None) => return Lineage::Unnamed,
        Some(uid) if *uid == run.uid() => {}
        Some(_) | None => return cut_off("does not wait for it"),
    }
    let depth = plan.parent.as_ref().map_or(0, |parent| parent.depth).saturating_add(1);
    let run = ObjectId { namespace: plan.run.namespace.clone(), name: parent.name.clone(), uid: parent.uid.clone() };
    let parent = PlanParent { run, call_id: parent.call_id.clone(), depth };
    let policies: BTreeSet<&String> = plan.agent_policies.iter().chain(&plan.inherited_policies).collect();
    Lineage::Below(Above { parent, policies: policies.into_iter().cloned().collect() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use belay_protocol::event::{Child, EndReason, Outcome, RunEnd};
    use belay_protocol::fold::OpenChild;

    use super::*;
    use crate::fixtures::{plan, run};

    fn child() -> AgentRun {
        let mut child = run("nightly-c1-x", "helper");
        let parent = ParentRun { name: "nightly".into(), uid: "uid-nightly".into(), call_id: "c1".into() };
        child.spec.parent = Some(parent);
        child
    }

    /// Run `nightly`, one below another, which waits for that child.
    fn above(uid: Option<&str>) -> RunState {
        let mut plan = plan();
        plan.agent_policies = vec!["careful".into()];
        plan.inherited_policies = vec!["careful".into(), "of-up".into()];
        let up = ObjectId { namespace: "triage".into(), name: "up".into(), uid: "uid-up".into() };
        plan.parent = Some(PlanParent { run: up, call_id: "c7".into(), depth: 1 });
        let child = Child { name: "nightly-c1-x".into(), agent: "helper".into(), limits: plan.limits };
        let open = OpenChild { call_id: "c1".into(), attempt: 1, child, uid: uid.map(str::to_owned) };
        RunState {
            plan: Some(Arc::new(plan)),
            children: [("nightly-c1-x".to_owned(), open)].into(),
            ..RunState::default()
        }
    }

    fn of(above: Option<&RunState>) -> Lineage {
        let child = child();
        lineage(&child, child.spec.parent.as_ref().unwrap(), above)
    }

    #[test]
    fn a_child_is_one_deeper_than_its_parent_and_comes_under_the_policies_of_all_above() {
        let lineage = of(Some(&above(Some("uid-nightly-c1-x"))));
        let above = lineage.above().unwrap();
        assert_eq!((above.parent.depth, above.parent.call_id.as_str()), (2, "c1"));
        assert_eq!(above.policies, ["careful", "of-up"]);
    }

    #[test]
    fn a_child_is_held_until_the_journal_of_its_parent_names_this_very_run() {
        assert_eq!(of(Some(&above(None))), Lineage::Unnamed);
    }

    #[test]
    fn a_child_is_cut_off_once_its_parent_ends_or_where_its_journal_knows_of_none() {
        let end = RunEnd { outcome: Outcome::Failed, reason: EndReason::WaitExceeded, message: String::new() };
        let table = [
            (Some(RunState { end: Some(end), ..above(None) }), "has ended"),
            (Some(RunState { cancel_requested: true, ..above(None) }), "is being cancelled"),
            (Some(RunState { children: [].into(), ..above(None) }), "does not wait for it"),
            (Some(above(Some("uid-of-an-earlier-one"))), "does not wait for it"),
            (Some(RunState::default()), "is not in the journal"),
            (None, "is not in the journal"),
        ];
        for (above, why) in table {
            let lineage = of(above.as_ref());
            assert_eq!(lineage.cut_off(), Some(format!("AgentRun nightly, whose call it carries out, {why}").as_str()));
        }
    }
}
