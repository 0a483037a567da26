//! Runs that carry out calls of a run: each is made once, under the name that the journal held first, and its end becomes
//! the call's result. docs/decisions/0017 says why the operator does so and not the runner.

use std::collections::BTreeMap;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, AgentRunSpec, Limits as CrdLimits, NameRef, PARENT_LABEL, ParentRun, Usd, WaitingOn};
use belay_protocol::event::{ChildEnd, EpochEnd, Event};
use belay_protocol::fold::{CallState, OpenChild, RunState};
use belay_protocol::plan::{Limits, ObjectId};
use belay_protocol::subagent::input_of;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::AgentRuns;
use super::asks::REFUSED_AGAIN;
use super::child_end;
use super::follow::SOON;
use super::observe::Sight;
use super::plan::{Follow, Wait};
use crate::controller::Failure;
use crate::journal::JournalError;
use crate::pod_template::label_value;
use crate::writes::owner_of;

/// A child, and what is seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSeen {
    pub name: String,
    pub seen: ChildState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildState {
    /// The journal has no uid of it yet.
    Unposted,
    AtWork,
    /// It has ended, or nothing will ever become of it.
    Over,
}

impl AgentRuns {
    pub(super) async fn children(&self, id: &ObjectId, state: &RunState) -> Result<Vec<ChildSeen>, Failure> {
        let mut children = Vec::new();
        for (name, open) in &state.children {
            let seen = match &open.uid {
                None => ChildState::Unposted,
                Some(uid) => self.child_state(id, name, uid).await?,
            };
            children.push(ChildSeen { name: name.clone(), seen });
        }
        Ok(children)
    }

    /// Its journal says whether it has ended; one without journal is over once its AgentRun is gone. A cache that lacks that
    /// is believed only after the API server agreed.
    async fn child_state(&self, id: &ObjectId, name: &str, uid: &str) -> Result<ChildState, Failure> {
        match self.journal.state(uid).await {
            Ok(Some(child)) => Ok(if child.end.is_some() { ChildState::Over } else { ChildState::AtWork }),
            Err(JournalError::Damaged { .. }) => Ok(ChildState::Over),
            Err(error) => Err(Failure::journal("reading the journal of a child")(error)),
            Ok(None) => {
                let ours = |run: &AgentRun| run.uid().as_deref() == Some(uid);
                let cached = self.world.run(&id.namespace, name).is_some_and(|run| ours(&run));
                let there = cached || self.fetch_run(&id.namespace, name).await?.is_some_and(|run| ours(&run));
                Ok(if there { ChildState::AtWork } else { ChildState::Over })
            }
        }
    }

    /// Makes the AgentRun, never applies it; one of that name is the child only if it says so, since nobody but the operator
    /// may create such a run.
    pub(super) async fn post_child(&self, run: &AgentRun, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| Some((state, state.children.get(name)?)));
        let Some((state, open)) = open else { return Ok(Action::requeue(SOON)) };
        let Some(child) = build_child(run, state, open) else { return Ok(Action::requeue(SOON)) };
        let runs: Api<AgentRun> = Api::namespaced(self.writes.client(), &sight.id.namespace);
        let made = match runs.create(&PostParams::default(), &child).await {
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                match self.fetch_run(&sight.id.namespace, name).await? {
                    Some(found) if !is_same(&found.spec, &child.spec) => {
                        return self.take_child(sight, state, open, child_end::not_ours(open)).await;
                    }
                    found => found,
                }
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
                let message =
                    format!("AgentRun {name}, which is to carry out a call, cannot be created: {}", status.message);
                let wait = Wait { on: waiting_on(open), reason: RunReason::ChildRunning, message };
                Box::pin(self.follow(run, sight, Follow::Waiting(wait))).await?;
                return Ok(Action::requeue(REFUSED_AGAIN));
            }
            made => Some(made.map_err(Failure::api("creating a child"))?),
        };
        if let Some(uid) = made.and_then(|made| made.uid()) {
            self.append(sight, vec![Event::ChildPosted { name: name.to_owned(), uid }]).await?;
            tracing::info!(namespace = sight.id.namespace, run = sight.id.name, child = name, "child started");
            // It may have been looked at, and held, before the journal named it.
            self.queues.runs.push(&sight.id.namespace, name).await;
        }
        Ok(Action::requeue(SOON))
    }

    /// Its end becomes the result of the call.
    pub(super) async fn settle_child(&self, sight: &Sight, name: &str) -> Result<Action, Failure> {
        let open = sight.state.as_deref().and_then(|state| Some((state, state.children.get(name)?)));
        let Some((state, open)) = open else { return Ok(Action::requeue(SOON)) };
        let uid = open.uid.as_deref().unwrap_or_default();
        let end = match self.journal.state(uid).await {
            Err(JournalError::Damaged { .. }) => child_end::illegible(open),
            Err(error) => return Err(Failure::journal("reading the journal of a child")(error)),
            Ok(None) => child_end::gone(open),
            Ok(Some(child)) => match &child.end {
                Some(end) => child_end::ended(open, &child, end),
                // It was accepted this very moment.
                None => return Ok(Action::requeue(SOON)),
            },
        };
        self.take_child(sight, state, open, end).await
    }

    /// The runner that waits knows nothing of it: the next one reads it.
    async fn take_child(
        &self,
        sight: &Sight,
        state: &RunState,
        open: &OpenChild,
        end: ChildEnd,
    ) -> Result<Action, Failure> {
        let (namespace, run, child) = (&sight.id.namespace, &sight.id.name, &open.child.name);
        tracing::info!(%namespace, %run, %child, outcome = ?end.outcome, "child ended");
        let active_milliseconds = u64::try_from(sight.active_for.as_millis()).unwrap_or(u64::MAX);
        let events = end_events(state, open, end, active_milliseconds);
        let released = events.iter().any(|event| matches!(event, Event::EpochEnded { .. }));
        self.append(sight, events).await?;
        if released {
            // Without a stream there is nobody to tell: the next runner finds it in the journal.
            let _ = self.sessions.bye(&sight.id.uid, "a child has ended: the run goes on in another pod");
        }
        Ok(Action::requeue(SOON))
    }

    /// Has them looked at: a run that ends or is cancelled takes its children with it.
    pub(super) async fn wake_children(&self, namespace: &str, state: &RunState) {
        for name in state.children.keys() {
            self.queues.runs.push(namespace, name).await;
        }
    }

    /// Likewise, and the run that waits for this one.
    pub(super) async fn wake_family(&self, namespace: &str, state: &RunState) {
        self.wake_children(namespace, state).await;
        if let Some(parent) = state.plan.as_ref().and_then(|plan| plan.parent.as_ref()) {
            self.queues.runs.push(namespace, &parent.run.name).await;
        }
    }

    async fn fetch_run(&self, namespace: &str, name: &str) -> Result<Option<AgentRun>, Failure> {
        let runs: Api<AgentRun> = Api::namespaced(self.writes.client(), namespace);
        runs.get_opt(name).await.map_err(Failure::api("reading a child"))
    }
}

/// What a run waits for that waits for a child.
#[must_use]
pub(super) fn wait(open: &OpenChild) -> Wait {
    let (call_id, name, agent) = (&open.call_id, &open.child.name, &open.child.agent);
    let message = format!("AgentRun {name} of Agent {agent} carries out call {call_id}: kubectl get agentrun {name}");
    Wait { on: waiting_on(open), reason: RunReason::ChildRunning, message }
}

fn waiting_on(open: &OpenChild) -> WaitingOn {
    WaitingOn::new("agentrun", &open.child.name)
}

/// What the end of a child is in the journal of the run that called it: with the end of a pod that could only wait for it.
/// `active_milliseconds`: how long that one was claimed.
pub(crate) fn end_events(state: &RunState, open: &OpenChild, end: ChildEnd, active_milliseconds: u64) -> Vec<Event> {
    let ended = Event::ChildEnded {
        call_id: open.call_id.clone(),
        attempt: open.attempt,
        name: open.child.name.clone(),
        end: Box::new(end),
    };
    let live = state.live_epoch().filter(|epoch| epoch.claim.is_some()).map(|epoch| epoch.number);
    let released = live.map(|epoch| Event::EpochEnded { epoch, cause: EpochEnd::Released, active_milliseconds });
    std::iter::once(ended).chain(released).collect()
}

/// The AgentRun of a child. It goes with its parent; whoever asked for that one asked for it.
pub(crate) fn build_child(run: &AgentRun, state: &RunState, open: &OpenChild) -> Option<AgentRun> {
    let Some(CallState::Delegated { call, .. }) = state.calls.get(&open.call_id) else { return None };
    let parent = ParentRun { name: run.name_any(), uid: run.uid().unwrap_or_default(), call_id: open.call_id.clone() };
    Some(AgentRun {
        metadata: ObjectMeta {
            name: Some(open.child.name.clone()),
            namespace: run.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([(PARENT_LABEL.to_owned(), label_value(&parent.name))])),
            owner_references: Some(vec![owner_of(run)]),
            ..ObjectMeta::default()
        },
        spec: AgentRunSpec {
            agent_ref: NameRef::new(open.child.agent.clone()),
            input: input_of(&call.args)?.to_owned(),
            limits: Some(crd_limits(open.child.limits)),
            requested_by: state.plan.as_ref()?.requested_by.clone(),
            parent: Some(parent),
            ..AgentRunSpec::default()
        },
        status: None,
    })
}

/// By what never changes of an AgentRun.
fn is_same(found: &AgentRunSpec, child: &AgentRunSpec) -> bool {
    let fixed = |spec: &AgentRunSpec| {
        (
            spec.agent_ref.clone(),
            spec.input.clone(),
            spec.limits.clone(),
            spec.requested_by.clone(),
            spec.parent.clone(),
        )
    };
    fixed(found) == fixed(child)
}

fn crd_limits(limits: Limits) -> CrdLimits {
    let counted = |number: u32| i32::try_from(number).ok();
    CrdLimits {
        steps: counted(limits.steps),
        tokens: limits.tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX)),
        cost_usd: limits.cost_micro_usd.map(Usd::from_micro),
        active_seconds: counted(limits.active_seconds),
        wait_seconds: counted(limits.wait_seconds),
    }
}
