//! Credential: Ready once a probe pod found its key. The operator never sees what the key holds.

mod verdict;

use std::sync::Arc;

use belay_crds::Credential;
use belay_crds::conditions;
use belay_crds::reason::CredentialReason;
use belay_protocol::probe::ProbeTask;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::metrics::Kind;
use crate::namespaces::{Namespaces, Service};
use crate::pod_template::Mount;
use crate::probe_pod::{Known, ProbePods, Question, Step, Subject, still_tells};
use crate::writes::{Writes, owner_of};

/// What passes over Credentials need.
pub struct Credentials {
    pub namespaces: Namespaces,
    pub probes: ProbePods,
    pub writes: Writes,
    pub clock: Clock,
}

impl Reconcile for Credentials {
    type Kind = Credential;
    const KIND: Kind = Kind::Credential;

    /// 1. Ask a probe pod, where one is due. 2. Decide. 3. Write status if it changed. 4. Announce a flip.
    async fn reconcile(&self, credential: Arc<Credential>) -> Result<Action, Failure> {
        let namespace = credential.namespace().unwrap_or_default();
        let step = match self.namespaces.service(&namespace) {
            Service::Starting => return Ok(Action::await_change()),
            Service::Enabled => {
                self.probes.sweep(&namespace, &credential.uid().unwrap_or_default()).await;
                let known = Known { is_ready: is_ready(&credential), good_for: None };
                Ok(self.probes.consult(&question(&credential, &namespace), known))
            }
            service @ (Service::NotEnabled | Service::Forbidden) => Err(service),
        };
        let again = match &step {
            Ok(Step::Use { again, .. }) => *again,
            Ok(Step::Rest) => return Ok(Action::await_change()),
            Ok(Step::Start | Step::Wait) if tells(&credential) => return Ok(Action::await_change()),
            Ok(Step::Start | Step::Wait) | Err(_) => None,
        };
        let verdict = verdict::judge(&credential, step);

        let mut status = credential.status.clone().unwrap_or_default();
        let flip = verdict.write(&mut status.conditions, credential.metadata.generation, &Time(self.clock.now()));
        status.observed_generation = credential.metadata.generation;
        if credential.status.as_ref() != Some(&status) {
            self.writes.apply_status(&*credential, &status).await?;
        }
        self.writes.announce(&*credential, flip, &verdict).await;
        Ok(again.map_or_else(Action::await_change, Action::requeue))
    }
}

fn tells(credential: &Credential) -> bool {
    let status = credential.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let not_found = [CredentialReason::NotProbed, CredentialReason::NamespaceNotEnabled].map(CredentialReason::as_str);
    still_tells(status, credential.metadata.generation, &not_found)
}

fn is_ready(credential: &Credential) -> bool {
    let status = credential.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions::is_ready(status, credential.metadata.generation)
}

fn question(credential: &Credential, namespace: &str) -> Question {
    let name = credential.name_any();
    let secret = &credential.spec.secret_key_ref;
    Question {
        subject: Subject::Credential,
        namespace: namespace.to_owned(),
        owner: owner_of(credential),
        task: ProbeTask::Credential { name: name.clone() },
        mounts: vec![Mount { credential: name, secret_name: secret.name.clone(), secret_key: secret.key.clone() }],
        documents: Vec::new(),
        version: credential.metadata.generation.unwrap_or_default().to_string(),
    }
}
