//! Tool: Ready once a probe pod listed the operations of its server. The operator never opens the URL.

mod verdict;

use std::sync::Arc;

use belay_crds::conditions;
use belay_crds::reason::ToolReason;
use belay_crds::{Credential, Tool};
use belay_protocol::plan::Timeouts;
use belay_protocol::probe::ProbeTask;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::controller::Action;

use self::verdict::Found;
use crate::agent_run::resolve::freeze_credential;
use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::metrics::Kind;
use crate::namespaces::{Namespaces, Service};
use crate::pod_template::Mount;
use crate::probe_pod::{ProbePods, Question, Step, Subject, still_tells};
use crate::references::{CredentialState, credential_state};
use crate::world::World;
use crate::writes::{Writes, owner_of};

/// A server that accepts and says nothing must not outlast the probe's own deadline.
const PROBE_TIMEOUTS: Timeouts =
    Timeouts { connect_seconds: 5, first_byte_seconds: 15, idle_seconds: 15, total_seconds: 30 };

/// What passes over Tools need.
pub struct Tools {
    pub world: World,
    pub namespaces: Namespaces,
    pub probes: ProbePods,
    pub writes: Writes,
    pub clock: Clock,
}

impl Reconcile for Tools {
    type Kind = Tool;
    const KIND: Kind = Kind::Tool;

    /// 1. Look up the Credential. 2. Ask a probe pod, where one is due. 3. Decide. 4. Write status, if it has
    ///    changed. 5. Announce a flip.
    async fn reconcile(&self, tool: Arc<Tool>) -> Result<Action, Failure> {
        let namespace = tool.namespace().unwrap_or_default();
        let service = self.namespaces.service(&namespace);
        if service == Service::Starting {
            return Ok(Action::await_change());
        }
        let found = self.find(&tool, &namespace, service).await;
        let again = match &found {
            Found::Probe(Step::Rest) => return Ok(Action::await_change()),
            Found::Probe(Step::Start | Step::Wait) if tells(&tool) => return Ok(Action::await_change()),
            Found::Probe(Step::Use { again, .. }) => *again,
            Found::Probe(Step::Start | Step::Wait) | Found::NotServed(_) | Found::Credential(_) => None,
        };
        let (verdict, operations) = verdict::judge(&tool, found);

        let mut status = tool.status.clone().unwrap_or_default();
        if let Some(operations) = operations {
            status.operation_count = i32::try_from(operations.len()).ok();
            status.operations = operations;
        }
        let flip = verdict.write(&mut status.conditions, tool.metadata.generation, &Time(self.clock.now()));
        status.observed_generation = tool.metadata.generation;
        if tool.status.as_ref() != Some(&status) {
            self.writes.apply_status(&*tool, &status).await?;
        }
        self.writes.announce(&*tool, flip, &verdict).await;
        Ok(again.map_or_else(Action::await_change, Action::requeue))
    }
}

impl Tools {
    async fn find(&self, tool: &Tool, namespace: &str, service: Service) -> Found {
        if matches!(service, Service::NotEnabled | Service::Forbidden) {
            return Found::NotServed(service);
        }
        let reference = tool.spec.mcp.credential_ref.as_ref();
        let credential = reference.and_then(|reference| self.world.credential(namespace, &reference.name));
        let subject = format!("Tool {}: spec.mcp.credentialRef", tool.name_any());
        match credential_state(&subject, namespace, reference, credential.as_deref()) {
            CredentialState::None | CredentialState::Ready => {}
            state @ (CredentialState::Missing(_) | CredentialState::NotReady(_)) => return Found::Credential(state),
        }
        self.probes.sweep(namespace, &tool.uid().unwrap_or_default()).await;
        Found::Probe(self.probes.consult(&question(tool, namespace, credential.as_deref()), is_ready(tool)))
    }
}

fn tells(tool: &Tool) -> bool {
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let not_found = [
        ToolReason::NotProbed,
        ToolReason::NamespaceNotEnabled,
        ToolReason::CredentialMissing,
        ToolReason::CredentialNotReady,
    ];
    still_tells(status, tool.metadata.generation, &not_found.map(ToolReason::as_str))
}

fn is_ready(tool: &Tool) -> bool {
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions::is_ready(status, tool.metadata.generation)
}

fn question(tool: &Tool, namespace: &str, credential: Option<&Credential>) -> Question {
    let credential = credential.map(freeze_credential);
    Question {
        subject: Subject::Tool,
        namespace: namespace.to_owned(),
        owner: owner_of(tool),
        mounts: credential.iter().map(Mount::from).collect(),
        task: ProbeTask::Tool {
            name: tool.name_any(),
            url: tool.spec.mcp.url.clone(),
            credential: credential.map(Box::new),
            timeouts: PROBE_TIMEOUTS,
        },
        version: tool.metadata.generation.unwrap_or_default().to_string(),
    }
}
