//! Tool: Ready once a probe pod listed the operations of its server. The operator never opens the URL. What the server
//! offers otherwise than it was accepted is held, and people are asked.

pub mod drift;
mod offer;
mod question;
#[cfg(test)]
mod question_tests;
pub mod subagent;
mod unrest;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use belay_crds::conditions;
use belay_crds::reason::ToolReason;
use belay_crds::{Credential, Tool, ToolAgent, ToolStatus};
use belay_protocol::plan::Timeouts;
use belay_protocol::probe::ProbeTask;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt;
use kube::runtime::controller::Action;

use self::question::Asked;
use self::verdict::{Found, Judged};
use crate::agent_run::resolve::{freeze_credential, freeze_tls};
use crate::clock::Clock;
use crate::controller::{Failure, Reconcile};
use crate::guard::Guard;
use crate::http_api;
use crate::metrics::Kind;
use crate::namespaces::{Namespaces, Service};
use crate::network::{NetworkSettings, destinations};
use crate::pod_template::{Document, Mount};
use crate::probe_pod::{Known, ProbePods, Question, Step, Subject, still_tells};
use crate::readiness::Verdict;
use crate::references::{CredentialState, credential_state};
use crate::world::World;
use crate::writes::{Writes, owner_of};

/// A server that accepts and says nothing must not outlast the probe's own deadline.
const PROBE_TIMEOUTS: Timeouts =
    Timeouts { connect_seconds: 5, first_byte_seconds: 15, idle_seconds: 15, total_seconds: 30 };

/// How often a server is asked again that is not as it was accepted.
const DRIFTED_AGAIN: Duration = Duration::from_mins(10);
/// How often a document is read again that lacks what was picked.
const MENDED_AGAIN: Duration = Duration::from_mins(1);

/// What passes over Tools need.
pub struct Tools {
    pub world: World,
    pub network: NetworkSettings,
    pub namespaces: Namespaces,
    pub probes: ProbePods,
    pub guard: Guard,
    pub writes: Writes,
    pub clock: Clock,
}

impl Reconcile for Tools {
    type Kind = Tool;
    const KIND: Kind = Kind::Tool;

    /// 1. Look up the Credential. 2. Ask a probe pod, where one is due. 3. Take in what it found. 4. Ask people about what
    ///    differs, and take what they said. 5. Decide. 6. Write status, if it has changed. 7. Announce a flip.
    async fn reconcile(&self, tool: Arc<Tool>) -> Result<Action, Failure> {
        let namespace = tool.namespace().unwrap_or_default();
        let service = self.namespaces.service(&namespace);
        if service == Service::Starting {
            return Ok(Action::await_change());
        }
        if let Some(named) = &tool.spec.agent {
            return self.stand_for(&tool, named, service).await;
        }
        let found = self.find(&tool, &namespace, service).await;
        let probe_again = match &found {
            Found::Probe(Step::Use { again, .. }) => *again,
            Found::Probe(Step::Rest | Step::Start | Step::Wait)
            | Found::NotServed(_)
            | Found::Astray(_)
            | Found::Credential(_) => None,
        };
        let mut status = tool.status.clone().unwrap_or_default();
        let judged = verdict::judge(&tool, found);
        if let Judged::Listed { operations, left_out } = &judged {
            let began = self.probes.began(&tool.uid().unwrap_or_default()).unwrap_or_default();
            drift::take(&mut status, &tool.spec, operations.clone(), MicroTime(began));
            status.left_out.clone_from(left_out);
        }
        let asked = match service {
            Service::Enabled => self.settle(&tool, &mut status).await?,
            Service::Starting | Service::NotEnabled | Service::Forbidden => Asked::default(),
        };
        if status.accepted_from.is_some() || status.accepted_from_http.is_some() {
            status.operation_count = i32::try_from(status.operations.len()).ok();
        }
        let verdict = standing(&tool, &status, judged, &asked);
        let now = Time(self.clock.now());
        let flip = verdict.as_ref().map(|it| it.write(&mut status.conditions, tool.metadata.generation, &now));
        if verdict.is_some() {
            status.observed_generation = tool.metadata.generation;
        }
        if tool.status.as_ref() != Some(&status) {
            self.writes.apply_status(&*tool, &status).await?;
        }
        if let (Some(verdict), Some(flip)) = (&verdict, flip) {
            self.writes.announce(&*tool, flip, verdict).await;
        }
        let again = [probe_again, asked.again].into_iter().flatten().min();
        Ok(again.map_or_else(Action::await_change, Action::requeue))
    }
}

/// What conditions say: of a server that was listed, how what it offers compares; of any other, why it was not. None: what
/// they say already, while a probe looks again.
fn standing(tool: &Tool, status: &ToolStatus, judged: Judged, asked: &Asked) -> Option<Verdict<ToolReason>> {
    match judged {
        Judged::Listed { .. } => Some(drift::verdict(tool, status, asked.unasked.as_deref())),
        Judged::Asking(_) if was_listed(tool) => Some(drift::verdict(tool, status, asked.unasked.as_deref())),
        Judged::Asking(_) if tells(tool) => None,
        Judged::Asking(verdict) | Judged::Not(verdict) => Some(verdict),
    }
}

impl Tools {
    /// 1. Look up the Agent. 2. Decide. 3. Write status, if it has changed. 4. Announce a flip.
    async fn stand_for(&self, tool: &Tool, named: &ToolAgent, service: Service) -> Result<Action, Failure> {
        let namespace = tool.namespace().unwrap_or_default();
        let there = self.world.agent(&namespace, &named.agent_ref.name).is_some();
        let (mut status, verdict) = subagent::judge(tool, named, service, there);
        let flip = verdict.write(&mut status.conditions, tool.metadata.generation, &Time(self.clock.now()));
        if tool.status.as_ref() != Some(&status) {
            self.writes.apply_status(tool, &status).await?;
        }
        self.writes.announce(tool, flip, &verdict).await;
        Ok(Action::await_change())
    }

    async fn find(&self, tool: &Tool, namespace: &str, service: Service) -> Found {
        if matches!(service, Service::NotEnabled | Service::Forbidden) {
            return Found::NotServed(service);
        }
        let reference = tool.spec.credential_ref();
        let credential = reference.and_then(|reference| self.world.credential(namespace, &reference.name));
        let urls = destinations::of_probe(tool, credential.as_deref());
        let service = |namespace: &str, name: &str| self.namespaces.sighting(namespace, name);
        let refusal = destinations::refusal(&urls, namespace, &self.network.allowed)
            .or_else(|| destinations::external(&urls, namespace, &self.network.allowed, service));
        if let Some(refusal) = refusal {
            return Found::Astray(refusal);
        }
        let subject = format!("Tool {}: spec.{}.credentialRef", tool.name_any(), tool.spec.kind());
        match credential_state(&subject, namespace, reference, credential.as_deref()) {
            CredentialState::None | CredentialState::Ready => {}
            state @ (CredentialState::Missing(_) | CredentialState::NotReady(_)) => return Found::Credential(state),
        }
        self.probes.sweep(namespace, &tool.uid().unwrap_or_default()).await;
        // A server that is not as it was accepted may be so again, and a document is mended without an edit of the Tool.
        let good_for = if drift::is_drifted(tool) {
            Some(DRIFTED_AGAIN)
        } else {
            has_reason(tool, ToolReason::DefinitionsInvalid).then_some(MENDED_AGAIN)
        };
        let known = Known { is_ready: is_ready(tool), good_for };
        Found::Probe(self.probes.consult(&self.question(tool, namespace, credential.as_deref()), known))
    }

    fn question(&self, tool: &Tool, namespace: &str, credential: Option<&Credential>) -> Question {
        let urls = destinations::of_probe(tool, credential);
        let credential = credential.map(freeze_credential);
        let http = tool.spec.http.as_ref().map(|http| http_api::freeze(http, |_| true));
        Question {
            subject: Subject::Tool,
            namespace: namespace.to_owned(),
            owner: owner_of(tool),
            mounts: credential.iter().map(Mount::from).collect(),
            documents: Document::of(&tool.name_any(), http.as_ref()).into_iter().collect(),
            task: ProbeTask::Tool {
                name: tool.name_any(),
                namespace: namespace.to_owned(),
                url: tool.spec.url().to_owned(),
                ca: tool.spec.tls().map(freeze_tls),
                credential: credential.map(Box::new),
                timeouts: PROBE_TIMEOUTS,
                private_hosts: destinations::private_hosts(&urls, namespace, &self.network.allowed),
                http: http.map(Box::new),
            },
            version: tool.metadata.generation.unwrap_or_default().to_string(),
        }
    }
}

/// Whether status tells what an earlier probe listed of this generation.
fn was_listed(tool: &Tool) -> bool {
    is_ready(tool) || drift::is_drifted(tool)
}

fn tells(tool: &Tool) -> bool {
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let not_found = [
        ToolReason::NotProbed,
        ToolReason::NamespaceNotEnabled,
        ToolReason::DestinationNotAllowed,
        ToolReason::CredentialMissing,
        ToolReason::CredentialNotReady,
    ];
    still_tells(status, tool.metadata.generation, &not_found.map(ToolReason::as_str))
}

fn has_reason(tool: &Tool, reason: ToolReason) -> bool {
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions::find(status, conditions::READY).is_some_and(|ready| ready.reason == reason.as_str())
}

fn is_ready(tool: &Tool) -> bool {
    let status = tool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions::is_ready(status, tool.metadata.generation)
}
