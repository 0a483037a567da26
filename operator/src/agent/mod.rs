//! Agent: Ready when its Model and Tools are, and every operation that it lists exists.

#[cfg(test)]
mod tests;
mod verdict;

pub use verdict::EVERY_OPERATION;

use std::sync::Arc;
use std::time::Duration;

use belay_crds::Agent;
use belay_crds::conditions::{NETWORK_ENFORCED, find as find_condition, set_condition};
use belay_protocol::network::AllowedHosts;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;

use crate::agent_run::resolve::is_priced;
use crate::approval_policy::{named, overburdened};
use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::metrics::Kind;
use crate::namespaces::{Namespaces, Service};
use crate::network::fences::{Fences, routes};
use crate::network::policy::Surroundings;
use crate::network::{NetworkSettings, destinations, enforcement};
use crate::probe_pod::{ProbePods, Step};
use crate::service::AddressCheck;
use crate::world::World;
use crate::writes::{Writes, owner_of};

/// What passes over Agents need.
pub struct Agents {
    pub world: World,
    pub namespaces: Namespaces,
    pub network: NetworkSettings,
    pub fences: Fences,
    pub probes: ProbePods,
    pub writes: Writes,
    pub clock: Clock,
    /// Whether streams must come from their pod's own address.
    pub address_check: AddressCheck,
}

impl Reconcile for Agents {
    type Kind = Agent;
    const KIND: Kind = Kind::Agent;

    /// 1. Look up what the Agent names. 2. Decide. 3. Keep its NetworkPolicies. 4. Write status if it
    ///    changed. 5. Announce a flip.
    ///
    /// That a suspension withholds permits does not wait for this: the watch has told the gate before.
    async fn reconcile(&self, agent: Arc<Agent>) -> Result<Action, Failure> {
        let namespace = agent.namespace().unwrap_or_default();
        let service = self.namespaces.service(&namespace);
        if service == Service::Starting {
            return Ok(Action::await_change());
        }
        let found = self.look_up(&agent);
        let verdict = verdict::judge(&agent, service, &found);

        let mut status = agent.status.clone().unwrap_or_default();
        let flip = verdict.write(&mut status.conditions, agent.metadata.generation, &Time(self.clock.now()));
        let addresses = verdict::addresses(self.address_check);
        let now = Time(self.clock.now());
        set_condition(&mut status.conditions, &addresses, agent.metadata.generation, now);
        status.observed_generation = agent.metadata.generation;
        let at = self.surroundings(&agent);
        let again = self.say_of_the_network(&agent, &at, &mut status.conditions).await;
        if service == Service::Enabled && agent.metadata.deletion_timestamp.is_none() {
            // Runs that start now find their policies there; those under way keep theirs.
            self.fences.raise(&at).await?;
            self.fences.clear(&at).await?;
        }
        if agent.status.as_ref() != Some(&status) {
            self.writes.apply_status(&*agent, &status).await?;
        }
        self.writes.announce(&*agent, flip, &verdict).await;
        Ok(again.map_or_else(Action::await_change, Action::requeue))
    }
}

impl Agents {
    /// Whether NetworkPolicies hold the Agent's pods: nobody else's may widen them, and the cluster has to enforce them, as
    /// far as a probe found out. When to look again.
    async fn say_of_the_network(
        &self,
        agent: &Agent,
        at: &Surroundings,
        conditions: &mut Vec<Condition>,
    ) -> Option<Duration> {
        let known = self.world.namespaces.get(&ObjectRef::new(&at.namespace));
        let (Service::Enabled, Some(namespace)) = (self.namespaces.service(&at.namespace), known) else { return None };
        let question = self.network.forbidden.as_ref().map(|address| enforcement::question(&namespace, address));
        if let Some(question) = &question {
            self.probes.sweep(&question.namespace, &question.owner.uid).await;
        }
        let now = Time(self.clock.now());
        // What a pod reaches here says nothing of the network then: others ask, or nobody.
        if let Some(words) = enforcement::widened(&self.fences.widening(&agent.name_any(), at)) {
            set_condition(conditions, &enforcement::not_held(&words), agent.metadata.generation, now);
            return None;
        }
        let step = question.map(|question| self.probes.consult(&question, enforcement::KNOWN));
        let unsaid =
            find_condition(conditions, NETWORK_ENFORCED).is_none_or(|said| said.reason == enforcement::WIDENED);
        let said = enforcement::statement(step.as_ref()).or(unsaid.then_some(enforcement::UNKNOWN));
        if let Some(said) = said {
            set_condition(conditions, &said, agent.metadata.generation, now);
        }
        match step {
            Some(Step::Use { again, .. }) => again,
            Some(Step::Start | Step::Wait | Step::Rest) | None => None,
        }
    }

    /// What the Agent's references find, and the Services that those name.
    fn look_up(&self, agent: &Agent) -> verdict::Found {
        let (namespace, allowed) = (agent.namespace().unwrap_or_default(), &self.network.allowed);
        let found = find(&self.world, agent, allowed);
        let service = |namespace: &str, name: &str| self.namespaces.sighting(namespace, name);
        let external = || destinations::external(&urls(&self.world, agent), &namespace, allowed, service);
        verdict::Found { astray: found.astray.or_else(external), ..found }
    }

    /// What pods of its runs reach.
    fn surroundings(&self, agent: &Agent) -> Surroundings {
        let namespace = agent.namespace().unwrap_or_default();
        let urls = urls(&self.world, agent);
        let routes = routes(urls.iter().map(|named| named.url.as_str()), &namespace, &self.network.allowed);
        Surroundings { namespace, owner: owner_of(agent), routes, proxy: self.network.proxy.clone() }
    }
}

/// Everything that runs of the Agent would request.
fn urls(world: &World, agent: &Agent) -> Vec<destinations::Named> {
    destinations::named(&world.models_of(agent), &world.tools_of(agent), &world.credentials_of(agent))
}

/// What the Agent's references find.
pub(crate) fn find(world: &World, agent: &Agent, allowed: &AllowedHosts) -> verdict::Found {
    let namespace = agent.namespace().unwrap_or_default();
    let model = world.model(&namespace, &agent.spec.model_ref.name);
    let tools: Vec<_> = agent.spec.tools.iter().map(|tool| world.tool(&namespace, &tool.name)).collect();
    let (there, credentials) = (world.tools_of(agent), world.credentials_of(agent));
    let unpriced = tools.iter().enumerate().find_map(|(index, tool)| {
        let named = &tool.as_ref()?.spec.agent.as_ref()?.agent_ref.name;
        let subagent = world.agent(&namespace, named)?;
        (!is_priced(world, &subagent)).then(|| (index, named.clone()))
    });
    verdict::Found {
        unpriced,
        astray: destinations::refusal(&urls(world, agent), &namespace, allowed),
        fallbacks: world.models_of(agent).split_off(usize::from(model.is_some())),
        policies: named(world, agent, &there, &credentials),
        overburdened: overburdened(agent, &there, &credentials),
        model,
        tools,
    }
}
