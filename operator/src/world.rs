//! What the watches know: one shared store a kind, and who names whom. Reads caches only, never the API server.

use std::sync::Arc;

use belay_crds::{Agent, AgentRun, Approval, Credential, Model, Tool};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc;

/// The caches of every kind. Cheap to clone.
#[derive(Clone)]
pub struct World {
    pub models: Store<Model>,
    pub credentials: Store<Credential>,
    pub tools: Store<Tool>,
    pub agents: Store<Agent>,
    pub runs: Store<AgentRun>,
    pub approvals: Store<Approval>,
    pub namespaces: Store<Namespace>,
}

impl World {
    #[must_use]
    pub fn model(&self, namespace: &str, name: &str) -> Option<Arc<Model>> {
        self.models.get(&ObjectRef::new(name).within(namespace))
    }

    #[must_use]
    pub fn credential(&self, namespace: &str, name: &str) -> Option<Arc<Credential>> {
        self.credentials.get(&ObjectRef::new(name).within(namespace))
    }

    #[must_use]
    pub fn tool(&self, namespace: &str, name: &str) -> Option<Arc<Tool>> {
        self.tools.get(&ObjectRef::new(name).within(namespace))
    }

    #[must_use]
    pub fn agent(&self, namespace: &str, name: &str) -> Option<Arc<Agent>> {
        self.agents.get(&ObjectRef::new(name).within(namespace))
    }

    #[must_use]
    pub fn approval(&self, namespace: &str, name: &str) -> Option<Arc<Approval>> {
        self.approvals.get(&ObjectRef::new(name).within(namespace))
    }

    #[must_use]
    pub fn run(&self, namespace: &str, name: &str) -> Option<Arc<AgentRun>> {
        self.runs.get(&ObjectRef::new(name).within(namespace))
    }
}

/// Objects to look at. Full means that whoever pushes waits: the controllers fold equal entries into one.
pub struct Queue<K: kube::runtime::reflector::Lookup<DynamicType = ()> + 'static>(mpsc::Sender<ObjectRef<K>>);

impl<K: kube::runtime::reflector::Lookup<DynamicType = ()> + 'static> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

const QUEUE_MAX: usize = 1024;

impl<K: kube::runtime::reflector::Lookup<DynamicType = ()> + 'static> Queue<K> {
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ObjectRef<K>>) {
        let (push, pull) = mpsc::channel(QUEUE_MAX);
        (Self(push), pull)
    }

    /// After the controller has ended nobody looks any more, and nothing is lost: the next start looks at all.
    pub async fn push(&self, namespace: &str, name: &str) {
        let _ = self.0.send(ObjectRef::new(name).within(namespace)).await;
    }
}

/// The queue of every kind. Cheap to clone.
#[derive(Clone)]
pub struct Queues {
    pub models: Queue<Model>,
    pub credentials: Queue<Credential>,
    pub tools: Queue<Tool>,
    pub agents: Queue<Agent>,
    pub runs: Queue<AgentRun>,
}

/// Whom a change concerns besides the object itself.
#[derive(Clone)]
pub struct Relations {
    pub world: World,
    pub queues: Queues,
}

impl Relations {
    /// Agents that name the Model.
    pub async fn model_changed(&self, model: &Model) {
        let (namespace, name) = place(model);
        self.queues.models.push(&namespace, &name).await;
        for agent in
            self.world.agents.state_filter(|agent| agent.spec.model_ref.name == name && within(agent, &namespace))
        {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
    }

    /// Models and Tools that name the Credential.
    pub async fn credential_changed(&self, credential: &Credential) {
        let (namespace, name) = place(credential);
        self.queues.credentials.push(&namespace, &name).await;
        let named = |reference: Option<&belay_crds::NameRef>| reference.is_some_and(|reference| reference.name == name);
        for model in self.world.models.state_filter(|m| named(m.spec.credential_ref.as_ref()) && within(m, &namespace))
        {
            self.queues.models.push(&namespace, &model.name_any()).await;
        }
        for tool in
            self.world.tools.state_filter(|t| named(t.spec.mcp.credential_ref.as_ref()) && within(t, &namespace))
        {
            self.queues.tools.push(&namespace, &tool.name_any()).await;
        }
    }

    /// The run that asks.
    pub async fn approval_changed(&self, approval: &Approval) {
        let (namespace, _) = place(approval);
        self.queues.runs.push(&namespace, &approval.spec.request.run.name).await;
    }

    /// Agents that list the Tool.
    pub async fn tool_changed(&self, tool: &Tool) {
        let (namespace, name) = place(tool);
        self.queues.tools.push(&namespace, &name).await;
        let lists = |agent: &Agent| agent.spec.tools.iter().any(|tool| tool.name == name);
        for agent in self.world.agents.state_filter(|agent| lists(agent) && within(agent, &namespace)) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
    }

    /// Runs of the Agent that have not ended.
    pub async fn agent_changed(&self, agent: &Agent) {
        let (namespace, name) = place(agent);
        self.queues.agents.push(&namespace, &name).await;
        let concerned = |run: &AgentRun| run.spec.agent_ref.name == name && within(run, &namespace) && !has_ended(run);
        for run in self.world.runs.state_filter(concerned) {
            self.queues.runs.push(&namespace, &run.name_any()).await;
        }
    }

    pub async fn run_changed(&self, run: &AgentRun) {
        let (namespace, name) = place(run);
        self.queues.runs.push(&namespace, &name).await;
    }

    /// Everything: a watch listed anew, and what vanished meanwhile was told to nobody.
    pub async fn look_at_all(&self) {
        for object in self.world.models.state() {
            self.queues.models.push(&object.namespace().unwrap_or_default(), &object.name_any()).await;
        }
        for object in self.world.credentials.state() {
            self.queues.credentials.push(&object.namespace().unwrap_or_default(), &object.name_any()).await;
        }
        for object in self.world.tools.state() {
            self.queues.tools.push(&object.namespace().unwrap_or_default(), &object.name_any()).await;
        }
        for object in self.world.agents.state() {
            self.queues.agents.push(&object.namespace().unwrap_or_default(), &object.name_any()).await;
        }
        self.look_at_runs().await;
    }

    /// Every run that status does not call ended.
    pub async fn look_at_runs(&self) {
        for run in self.world.runs.state_filter(|run| !has_ended(run)) {
            self.run_changed(&run).await;
        }
    }

    /// Everything in a namespace that was enabled or disabled.
    pub async fn namespace_changed(&self, namespace: &str) {
        for object in self.world.models.state_filter(|o| within(o, namespace)) {
            self.queues.models.push(namespace, &object.name_any()).await;
        }
        for object in self.world.credentials.state_filter(|o| within(o, namespace)) {
            self.queues.credentials.push(namespace, &object.name_any()).await;
        }
        for object in self.world.tools.state_filter(|o| within(o, namespace)) {
            self.queues.tools.push(namespace, &object.name_any()).await;
        }
        for object in self.world.agents.state_filter(|o| within(o, namespace)) {
            self.queues.agents.push(namespace, &object.name_any()).await;
        }
        for object in self.world.runs.state_filter(|o| within(o, namespace) && !has_ended(o)) {
            self.queues.runs.push(namespace, &object.name_any()).await;
        }
    }
}

/// Whether status says that the run is over.
#[must_use]
pub fn has_ended(run: &AgentRun) -> bool {
    run.status.as_ref().and_then(|status| status.phase).is_some_and(belay_crds::Phase::is_terminal)
}

fn place(object: &impl ResourceExt) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn within(object: &impl ResourceExt, namespace: &str) -> bool {
    object.meta().namespace.as_deref() == Some(namespace)
}
