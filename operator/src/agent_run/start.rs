//! From a run that may start to its pod. Each step is journaled or checked before the next, so that a crash
//! anywhere in between is taken up where it happened.

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, POD_PREFIX, WaitingOn};
use belay_protocol::event::Event;
use belay_protocol::fold::{Epoch, RunState};
use belay_protocol::plan::Plan;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use tokio::time::Instant;

use super::AgentRuns;
use super::observe::{Sight, is_ours};
use super::plan::{Follow, Wait, created_at};
use super::queue::{Full, Turn};
use super::resolve::{Parts, freeze};
use super::status::Stand;
use super::{plan, pod};
use crate::controller::Failure;
use crate::network::NetworkSettings;
use crate::network::policy::Surroundings;
use crate::pod_template::random_suffix;
use crate::writes::owner_of_agent;

const SUFFIX_LENGTH: usize = 8;
/// A run that only waits for others to start says so after this time, not in between.
const QUIET: Duration = Duration::from_secs(5);
/// When to try again to create a pod that was refused: quota and the like change without telling.
const REFUSED_AGAIN: Duration = Duration::from_secs(15);
/// When to look again without being told: a pod that is stuck makes place by time alone.
const QUEUED_AGAIN: Duration = Duration::from_secs(20);

impl AgentRuns {
    /// 1. Take a slot, or queue. 2. Freeze the plan. 3. Journal that the run is accepted. 4. Launch.
    pub(super) async fn start(&self, run: &AgentRun, sight: &Sight) -> Result<Action, Failure> {
        let me = self.ticket(run);
        let mut waiting = self.waiting();
        waiting.push(me.clone());
        if let Turn::Queued(full) = self.lobby.take_turn(&me, waiting, Instant::now()) {
            return self.queue(run, sight, full).await;
        }
        self.metrics.runs_active.set(i64::try_from(self.lobby.len()).unwrap_or(i64::MAX));
        let allowed = self.settings.current().network.allowed;
        let plan = sight
            .agent
            .clone()
            .map(|agent| Parts::gather(&self.world, agent, &allowed, sight.lineage.above()))
            .transpose();
        let plan = plan.and_then(|parts| parts.map(|parts| freeze(run, &parts)).transpose());
        let plan = match plan {
            Ok(Some(plan)) => believed(plan, sight.status_doubt.as_deref()),
            Ok(None) => return Ok(Action::requeue(QUIET)),
            Err(message) => Err(message),
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(message) => {
                let on = WaitingOn::new("agent", &run.spec.agent_ref.name);
                return self.wait(run, sight, Wait { on, reason: RunReason::AgentNotReady, message }).await;
            }
        };
        let accepted = Event::RunAccepted { plan_digest: plan.digest()?, plan: Box::new(plan) };
        self.append(sight, vec![accepted]).await?;
        tracing::info!(namespace = sight.id.namespace, name = sight.id.name, uid = sight.id.uid, "run accepted");
        let sight = self.observe(run).await?;
        self.launch(run, &sight).await
    }

    /// 1. Status names the journal: from now on a lost journal is noticed. 2. Take a slot, if none is held.
    /// 3. Journal the pod's name. 4. Create the pod.
    pub(super) async fn launch(&self, run: &AgentRun, sight: &Sight) -> Result<Action, Failure> {
        let Some(state) = sight.state.as_deref() else { return Ok(Action::requeue(QUIET)) };
        let named = run.status.as_ref().is_some_and(|status| status.journal.is_some());
        if !named {
            self.publish(run, sight, &Stand::following(Follow::Starting, state)).await?;
        }
        let me = self.ticket(run);
        let mut waiting = self.waiting();
        waiting.push(me.clone());
        if let Turn::Queued(full) = self.lobby.take_turn(&me, waiting, Instant::now()) {
            return self.queue(run, sight, full).await;
        }
        let opened;
        let state = if state.live_epoch().is_some() {
            state
        } else {
            let suffix = random_suffix(&mut rand::rng(), SUFFIX_LENGTH);
            let number = state.epoch.as_ref().map_or(0, |epoch| epoch.number) + 1;
            let event = Event::EpochOpened { epoch: number, pod_name: format!("{POD_PREFIX}{suffix}") };
            opened = self.append(sight, vec![event]).await?;
            &opened
        };
        match state.live_epoch() {
            Some(epoch) => self.create_pod(run, sight, state, epoch).await,
            None => Ok(Action::await_change()),
        }
    }

    /// Only behind its NetworkPolicies. Creates, never applies: an apply would adopt a pod that someone made beforehand.
    async fn create_pod(
        &self,
        run: &AgentRun,
        sight: &Sight,
        state: &RunState,
        epoch: &Epoch,
    ) -> Result<Action, Failure> {
        let Some(plan) = state.plan.as_deref() else { return Ok(Action::await_change()) };
        let settings = self.settings.current();
        let network = match self.fences.raise(&surroundings(plan, &settings.network)).await {
            Ok(network) => network,
            Err(Failure::Api { source: kube::Error::Api(status), .. }) if matches!(status.code, 403 | 422) => {
                let message =
                    format!("no NetworkPolicy can be applied around pod {}: {}", epoch.pod_name, status.message);
                return self.blocked(run, state, epoch, message).await;
            }
            Err(failure) => return Err(failure),
        };
        let active = Duration::from_millis(state.active_milliseconds);
        let place = pod::Place { name: &epoch.pod_name, active, network: &network };
        let built = pod::build(run, plan, sight.agent.as_deref(), &place, &settings);
        let pods: Api<Pod> = Api::namespaced(self.writes.client(), &sight.id.namespace);
        match pods.create(&PostParams::default(), &built).await {
            Ok(pod) => {
                self.remember_pod(&sight.id.uid, epoch.number, &pod);
                tracing::info!(
                    namespace = sight.id.namespace,
                    name = sight.id.name,
                    pod = epoch.pod_name,
                    "pod created"
                );
                Ok(Action::requeue(plan::SILENT_MAX))
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                let found = self.fetch_pod(&sight.id.namespace, &epoch.pod_name).await?;
                if let Some(pod) = found.filter(|pod| is_ours(pod, &sight.id.uid)) {
                    self.remember_pod(&sight.id.uid, epoch.number, &pod);
                }
                Ok(Action::requeue(Duration::from_secs(1)))
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => {
                let message = format!("pod {} cannot be created: {}", epoch.pod_name, status.message);
                self.blocked(run, state, epoch, message).await
            }
            Err(error) => Err(Failure::api("creating the pod")(error)),
        }
    }

    async fn blocked(
        &self,
        run: &AgentRun,
        state: &RunState,
        epoch: &Epoch,
        message: String,
    ) -> Result<Action, Failure> {
        let wait = Wait { on: WaitingOn::new("pod", &epoch.pod_name), reason: RunReason::PodBlocked, message };
        let sight = self.observe(run).await?;
        self.publish(run, &sight, &Stand::following(Follow::Waiting(wait), state)).await?;
        Ok(Action::requeue(REFUSED_AGAIN))
    }

    async fn queue(&self, run: &AgentRun, sight: &Sight, full: Full) -> Result<Action, Failure> {
        let age = self.clock.milliseconds().saturating_sub(created_at(run));
        let said = run.status.as_ref().is_some_and(|status| status.phase.is_some());
        let (scope, limit, whose) = match full {
            Full::Installation(limit) => ("installation".to_owned(), limit, "runs of this installation"),
            Full::Namespace(limit) => (sight.id.namespace.clone(), limit, "runs of this namespace"),
            Full::Agent(limit) => {
                (run.spec.agent_ref.name.clone(), limit, "runs of this Agent (spec.maxConcurrentRuns)")
            }
            Full::Starting(_) if !said && age < i64::try_from(QUIET.as_millis()).unwrap_or(i64::MAX) => {
                return Ok(Action::requeue(QUIET));
            }
            Full::Starting(limit) => ("starting".to_owned(), limit, "pods that start at the same time"),
        };
        let message = format!("{limit} {whose} are under way; runs start in the order in which they were created");
        let wait = Wait { on: WaitingOn::new(super::QUEUE, &scope), reason: RunReason::Queued, message };
        match sight.state.as_deref() {
            Some(state) => self.publish(run, sight, &Stand::following(Follow::Waiting(wait), state)).await?,
            None => {
                self.wait(run, sight, wait).await?;
            }
        }
        Ok(Action::requeue(QUEUED_AGAIN))
    }
}

/// What the run's pods may reach: what its plan names, whatever its Agent names by now.
fn surroundings(plan: &Plan, network: &NetworkSettings) -> Surroundings {
    Surroundings {
        namespace: plan.run.namespace.clone(),
        owner: owner_of_agent(&plan.agent),
        routes: network.routes(plan.urls(), &plan.run.namespace, &plan.private_hosts),
        proxy: network.proxy.clone(),
    }
}

/// A plan, unless it names operations by a status that perhaps somebody else wrote.
fn believed(plan: Plan, doubt: Option<&str>) -> Result<Plan, String> {
    match doubt.filter(|_| !plan.tools.is_empty()) {
        Some(why) => Err(format!("what was accepted of its Tools is not certain for now: {why}")),
        None => Ok(plan),
    }
}

#[cfg(test)]
mod tests {
    use super::believed;
    use crate::fixtures::plan;

    #[test]
    fn no_run_is_planned_with_tools_whose_status_is_in_doubt() {
        let doubt = Some("belay-status is missing");
        assert!(believed(plan(), None).is_ok());
        let words = believed(plan(), doubt).err().unwrap_or_default();
        assert_eq!(words, "what was accepted of its Tools is not certain for now: belay-status is missing");
        let mut without = plan();
        without.tools.clear();
        assert!(believed(without, doubt).is_ok(), "it goes by no Tool's status");
    }
}
