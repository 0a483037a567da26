//! Model: Ready when the Credential that it names is.

mod verdict;

use std::sync::Arc;

use belay_crds::{Model, ModelStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::metrics::Kind;
use crate::namespaces::{Namespaces, Service};
use crate::world::World;
use crate::writes::Writes;

/// What passes over Models need.
pub struct Models {
    pub world: World,
    pub namespaces: Namespaces,
    pub writes: Writes,
    pub clock: Clock,
}

impl Reconcile for Models {
    type Kind = Model;
    const KIND: Kind = Kind::Model;

    /// 1. Look up what the Model names. 2. Decide. 3. Write status if it changed. 4. Announce a flip.
    async fn reconcile(&self, model: Arc<Model>) -> Result<Action, Failure> {
        let namespace = model.namespace().unwrap_or_default();
        let service = self.namespaces.service(&namespace);
        if service == Service::Starting {
            return Ok(Action::await_change());
        }
        let named = model.spec.credential_ref.as_ref();
        let credential = named.and_then(|reference| self.world.credential(&namespace, &reference.name));
        let verdict = verdict::judge(&model, service, credential.as_deref());

        let mut status = model.status.clone().unwrap_or_default();
        let flip = verdict.write(&mut status.conditions, model.metadata.generation, &Time(self.clock.now()));
        status.observed_generation = model.metadata.generation;
        self.publish(&model, &status).await?;
        self.writes.announce(&*model, flip, &verdict).await;
        Ok(Action::await_change())
    }
}

impl Models {
    async fn publish(&self, model: &Model, status: &ModelStatus) -> Result<(), Failure> {
        if model.status.as_ref() != Some(status) {
            self.writes.apply_status(model, status).await?;
        }
        Ok(())
    }
}
