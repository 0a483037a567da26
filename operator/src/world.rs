//! What the watches know: one shared store a kind, and who names whom. Reads caches only, never the API server.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::{Agent, AgentRun, Approval, ApprovalPolicy, Credential, Model, Tool};
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
    pub policies: Store<ApprovalPolicy>,
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
    pub fn policy(&self, namespace: &str, name: &str) -> Option<Arc<ApprovalPolicy>> {
        self.policies.get(&ObjectRef::new(name).within(namespace))
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
    pub policies: Queue<ApprovalPolicy>,
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
    /// Models that name the Model as a fallback, and Agents that name it or one of those.
    pub async fn model_changed(&self, model: &Model) {
        let (namespace, name) = place(model);
        let falls_back = |model: &Model| model.spec.fallback_refs.iter().any(|fallback| fallback.name == name);
        let models = self.world.models.state_filter(|model| falls_back(model) && within(model, &namespace));
        let mut concerned: BTreeSet<String> = models.iter().map(|model| model.name_any()).collect();
        concerned.insert(name);
        for name in &concerned {
            self.queues.models.push(&namespace, name).await;
        }
        let names = |agent: &Agent| concerned.contains(&agent.spec.model_ref.name);
        for agent in self.world.agents.state_filter(|agent| names(agent) && within(agent, &namespace)) {
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
        // Its policies may be others now.
        let uses = |agent: &Agent| self.tools_of(agent).iter().any(|t| named(t.spec.mcp.credential_ref.as_ref()));
        for agent in self.world.agents.state_filter(|agent| within(agent, &namespace) && uses(agent)) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
    }

    /// Agents that name the policy, themselves or by way of a Tool or a Credential.
    pub async fn policy_changed(&self, policy: &ApprovalPolicy) {
        let (namespace, name) = place(policy);
        self.queues.policies.push(&namespace, &name).await;
        let concerned = |agent: &Agent| within(agent, &namespace) && self.policies_of(agent).contains(&name);
        for agent in self.world.agents.state_filter(concerned) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
    }

    fn tools_of(&self, agent: &Agent) -> Vec<Arc<Tool>> {
        let namespace = agent.namespace().unwrap_or_default();
        agent.spec.tools.iter().filter_map(|tool| self.world.tool(&namespace, &tool.name)).collect()
    }

    fn policies_of(&self, agent: &Agent) -> BTreeSet<String> {
        let names = |references: &[belay_crds::NameRef]| -> Vec<String> {
            references.iter().map(|reference| reference.name.clone()).collect()
        };
        let namespace = agent.namespace().unwrap_or_default();
        let tools = self.tools_of(agent);
        let credentials = tools.iter().filter_map(|tool| tool.spec.mcp.credential_ref.as_ref());
        let credentials = credentials.filter_map(|named| self.world.credential(&namespace, &named.name));
        let own = names(&agent.spec.policy_refs);
        let theirs = tools.iter().flat_map(|tool| names(&tool.spec.policy_refs));
        own.into_iter().chain(theirs).chain(credentials.flat_map(|it| names(&it.spec.policy_refs))).collect()
    }

    /// The run that asks.
    pub async fn approval_changed(&self, approval: &Approval) {
        let (namespace, _) = place(approval);
        self.queues.runs.push(&namespace, &approval.spec.request.run.name).await;
    }

    /// Agents that list the Tool, and policies that name it.
    pub async fn tool_changed(&self, tool: &Tool) {
        let (namespace, name) = place(tool);
        self.queues.tools.push(&namespace, &name).await;
        let lists = |agent: &Agent| agent.spec.tools.iter().any(|tool| tool.name == name);
        for agent in self.world.agents.state_filter(|agent| lists(agent) && within(agent, &namespace)) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
        let names = |policy: &ApprovalPolicy| policy.spec.rules.iter().any(|rule| rule.tools.contains(&name));
        for policy in self.world.policies.state_filter(|policy| names(policy) && within(policy, &namespace)) {
            self.queues.policies.push(&namespace, &policy.name_any()).await;
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
        for object in self.world.policies.state() {
            self.queues.policies.push(&object.namespace().unwrap_or_default(), &object.name_any()).await;
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
        for object in self.world.policies.state_filter(|o| within(o, namespace)) {
            self.queues.policies.push(namespace, &object.name_any()).await;
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
