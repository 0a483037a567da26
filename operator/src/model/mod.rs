//! Model: Ready when the Credentials are that it and its fallbacks name.

mod verdict;

use std::sync::Arc;

use belay_crds::{Credential, Model, ModelStatus};
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
        let fallbacks = model.spec.fallback_refs.iter().map(|fallback| {
            let found = self.world.model(&namespace, &fallback.name);
            let credential = found.as_deref().and_then(|model| self.credential_of(model));
            verdict::Fallback { model: found, credential }
        });
        let found = verdict::Found { credential: self.credential_of(&model), fallbacks: fallbacks.collect() };
        let verdict = verdict::judge(&model, service, &found);

        let mut status = model.status.clone().unwrap_or_default();
        let flip = verdict.write(&mut status.conditions, model.metadata.generation, &Time(self.clock.now()));
        status.observed_generation = model.metadata.generation;
        self.publish(&model, &status).await?;
        self.writes.announce(&*model, flip, &verdict).await;
        Ok(Action::await_change())
    }
}

impl Models {
    fn credential_of(&self, model: &Model) -> Option<Arc<Credential>> {
        let reference = model.spec.credential_ref.as_ref()?;
        self.world.credential(&model.namespace().unwrap_or_default(), &reference.name)
    }

    async fn publish(&self, model: &Model, status: &ModelStatus) -> Result<(), Failure> {
        if model.status.as_ref() != Some(status) {
            self.writes.apply_status(model, status).await?;
        }
        Ok(())
    }
}
