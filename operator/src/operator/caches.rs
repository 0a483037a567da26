//! The caches of every kind and the queues to their controllers, each with both of its ends.

use belay_crds::{Agent, AgentRun, Approval, ApprovalGrant, ApprovalPolicy, Credential, Model, Tool};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use tokio::sync::mpsc::Receiver;

use crate::world::{Queue, Queues, World};

/// The receiving ends of the queues.
pub struct Pulls {
    pub models: Receiver<ObjectRef<Model>>,
    pub credentials: Receiver<ObjectRef<Credential>>,
    pub tools: Receiver<ObjectRef<Tool>>,
    pub policies: Receiver<ObjectRef<ApprovalPolicy>>,
    pub agents: Receiver<ObjectRef<Agent>>,
    pub runs: Receiver<ObjectRef<AgentRun>>,
}

/// The writing ends of the caches.
pub struct Writers {
    pub models: Writer<Model>,
    pub credentials: Writer<Credential>,
    pub tools: Writer<Tool>,
    pub policies: Writer<ApprovalPolicy>,
    pub agents: Writer<Agent>,
    pub runs: Writer<AgentRun>,
    pub approvals: Writer<Approval>,
    pub grants: Writer<ApprovalGrant>,
    pub namespaces: Writer<Namespace>,
}

pub fn caches() -> (Writers, World) {
    let writers = Writers {
        models: Writer::new(()),
        credentials: Writer::new(()),
        tools: Writer::new(()),
        policies: Writer::new(()),
        agents: Writer::new(()),
        runs: Writer::new(()),
        approvals: Writer::new(()),
        grants: Writer::new(()),
        namespaces: Writer::new(()),
    };
    let world = World {
        models: writers.models.as_reader(),
        credentials: writers.credentials.as_reader(),
        tools: writers.tools.as_reader(),
        policies: writers.policies.as_reader(),
        agents: writers.agents.as_reader(),
        runs: writers.runs.as_reader(),
        approvals: writers.approvals.as_reader(),
        grants: writers.grants.as_reader(),
        namespaces: writers.namespaces.as_reader(),
    };
    (writers, world)
}

pub fn queues() -> (Queues, Pulls) {
    let (models, pull_models) = Queue::new();
    let (credentials, pull_credentials) = Queue::new();
    let (tools, pull_tools) = Queue::new();
    let (policies, pull_policies) = Queue::new();
    let (agents, pull_agents) = Queue::new();
    let (runs, pull_runs) = Queue::new();
    let pulls = Pulls {
        models: pull_models,
        credentials: pull_credentials,
        tools: pull_tools,
        policies: pull_policies,
        agents: pull_agents,
        runs: pull_runs,
    };
    (Queues { models, credentials, tools, policies, agents, runs }, pulls)
}
