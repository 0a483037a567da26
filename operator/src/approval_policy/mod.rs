//! ApprovalPolicy: Ready when its rules can be used and its tests pass. Otherwise its last good generation goes on.

mod fits;
mod named;
mod usable;
mod verdict;

pub use named::{JUDGES_MAX, Named, named, overburdened};
pub use usable::{Usable, usable};

use std::sync::Arc;

use belay_crds::conditions::set_condition;
use belay_crds::{ApprovalPolicy, Tool};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use self::fits::{Fits, fits};
use self::verdict::{Trouble, examine, judge, names, record};
use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::metrics::Kind;
use crate::namespaces::{Namespaces, Service};
use crate::policy::Judge;
use crate::world::World;
use crate::writes::Writes;

/// What passes over ApprovalPolicies need.
pub struct ApprovalPolicies {
    pub world: World,
    pub namespaces: Namespaces,
    pub writes: Writes,
    pub clock: Clock,
    pub judge: Judge,
}

impl Reconcile for ApprovalPolicies {
    type Kind = ApprovalPolicy;
    const KIND: Kind = Kind::ApprovalPolicy;

    /// 1. Look up what the rules name. 2. Parse the rules, try the tests, and calls made up from schemas. 3. Decide. 4. Write status, if it has
    ///    changed. 5. Announce a flip.
    async fn reconcile(&self, policy: Arc<ApprovalPolicy>) -> Result<Action, Failure> {
        let namespace = policy.namespace().unwrap_or_default();
        let service = self.namespaces.service(&namespace);
        if service == Service::Starting {
            return Ok(Action::await_change());
        }
        let tools = self.named_tools(&policy, &namespace);
        let named = names(&policy, &tools);
        let (findings, fits) = self.examine(&policy, tools).await;
        let verdict = judge(&policy, service, &findings);

        let now = Time(self.clock.now());
        let mut status = record(&policy, &findings, &verdict);
        let flip = verdict.write(&mut status.conditions, policy.metadata.generation, &now);
        set_condition(&mut status.conditions, &named.statement(), policy.metadata.generation, now.clone());
        set_condition(&mut status.conditions, &fits.statement(), policy.metadata.generation, now);
        if policy.status.as_ref() != Some(&status) {
            self.writes.apply_status(&*policy, &status).await?;
        }
        self.writes.announce(&*policy, flip, &verdict).await;
        Ok(Action::await_change())
    }
}

impl ApprovalPolicies {
    /// Rules and tests are a tenant's: they are evaluated where nothing else waits for them.
    async fn examine(&self, policy: &Arc<ApprovalPolicy>, tools: Vec<Arc<Tool>>) -> (verdict::Findings, Fits) {
        let overran = self.judge.has_overrun(&usable::as_it_is(policy));
        let own = Arc::clone(policy);
        let examined = tokio::task::spawn_blocking(move || (examine(&own), fits(&own, &tools))).await;
        let gone = |_| (Err(Trouble::Gone("its rules could not be looked at".to_owned())), Fits::NotTried);
        let (findings, fits) = examined.unwrap_or_else(gone);
        (if overran { findings.and(Err(Trouble::Overran)) } else { findings }, fits)
    }

    fn named_tools(&self, policy: &ApprovalPolicy, namespace: &str) -> Vec<Arc<Tool>> {
        let named = policy.spec.rules.iter().flat_map(|rule| &rule.tools);
        named.filter_map(|name| self.world.tool(namespace, name)).collect()
    }
}
