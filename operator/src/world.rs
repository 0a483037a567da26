//! What the watches know: one shared store a kind, and who names whom. Reads caches only, never the API server.

use std::collections::BTreeSet;
use std::sync::Arc;

use belay_crds::{Agent, AgentRun, Approval, ApprovalGrant, ApprovalPolicy, Credential, Model, Tool};
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc;

use crate::approval_policy::named;

/// What a run waits on whose tool drifted.
pub const TOOL: &str = "tool";

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
    pub grants: Store<ApprovalGrant>,
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
    pub fn grant(&self, namespace: &str, name: &str) -> Option<Arc<ApprovalGrant>> {
        self.grants.get(&ObjectRef::new(name).within(namespace))
    }

    /// What people allowed for the rest of the run of that uid.
    #[must_use]
    pub fn grants_of(&self, namespace: &str, run_uid: &str) -> Vec<Arc<ApprovalGrant>> {
        let of_run = |grant: &Arc<ApprovalGrant>| {
            grant.metadata.namespace.as_deref() == Some(namespace) && grant.spec.run.uid == run_uid
        };
        self.grants.state().into_iter().filter(of_run).collect()
    }

    #[must_use]
    pub fn run(&self, namespace: &str, name: &str) -> Option<Arc<AgentRun>> {
        self.runs.get(&ObjectRef::new(name).within(namespace))
    }

    /// The Agent's Model and that Model's fallbacks, as far as they are there.
    #[must_use]
    pub fn models_of(&self, agent: &Agent) -> Vec<Arc<Model>> {
        let namespace = agent.namespace().unwrap_or_default();
        let Some(model) = self.model(&namespace, &agent.spec.model_ref.name) else { return Vec::new() };
        let fallbacks = model.spec.fallback_refs.iter().filter_map(|named| self.model(&namespace, &named.name));
        std::iter::once(Arc::clone(&model)).chain(fallbacks).collect()
    }

    /// The Agent's Tools, as far as they are there.
    #[must_use]
    pub fn tools_of(&self, agent: &Agent) -> Vec<Arc<Tool>> {
        let namespace = agent.namespace().unwrap_or_default();
        agent.spec.tools.iter().filter_map(|tool| self.tool(&namespace, &tool.name)).collect()
    }

    /// The Credentials that a run of the Agent would use, as far as they are there.
    #[must_use]
    pub fn credentials_of(&self, agent: &Agent) -> Vec<Arc<Credential>> {
        let namespace = agent.namespace().unwrap_or_default();
        let (models, tools) = (self.models_of(agent), self.tools_of(agent));
        let names = credential_names(&models, &tools);
        names.into_iter().filter_map(|name| self.credential(&namespace, name)).collect()
    }
}

/// Names of the Credentials that a run over these models and tools would use. Whoever asks what an Agent depends on asks
/// here: readiness, plan and watches must not disagree.
#[must_use]
pub fn credential_names<'a>(
    models: impl IntoIterator<Item = &'a Arc<Model>>,
    tools: impl IntoIterator<Item = &'a Arc<Tool>>,
) -> BTreeSet<&'a str> {
    let models = models.into_iter().filter_map(|model| model.spec.credential_ref.as_ref());
    let tools = tools.into_iter().filter_map(|tool| tool.spec.credential_ref());
    models.chain(tools).map(|reference| reference.name.as_str()).collect()
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
    /// Services that runs of every namespace may go to, by namespace and name.
    pub shared: Arc<BTreeSet<(String, String)>>,
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
        for tool in self.world.tools.state_filter(|t| named(t.spec.credential_ref()) && within(t, &namespace)) {
            self.queues.tools.push(&namespace, &tool.name_any()).await;
        }
        // Its policies may be others now.
        let uses = |agent: &Agent| {
            let (models, tools) = (self.world.models_of(agent), self.world.tools_of(agent));
            credential_names(&models, &tools).contains(name.as_str())
        };
        for agent in self.world.agents.state_filter(|agent| within(agent, &namespace) && uses(agent)) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
    }

    /// Agents that name the policy, themselves or by way of a Tool or a Credential.
    pub async fn policy_changed(&self, policy: &ApprovalPolicy) {
        let (namespace, name) = place(policy);
        self.queues.policies.push(&namespace, &name).await;
        let concerned = |agent: &Agent| within(agent, &namespace) && self.comes_under(agent, &name);
        for agent in self.world.agents.state_filter(concerned) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
    }

    fn comes_under(&self, agent: &Agent, policy: &str) -> bool {
        let (tools, credentials) = (self.world.tools_of(agent), self.world.credentials_of(agent));
        named(&self.world, agent, &tools, &credentials).iter().any(|named| named.name == policy)
    }

    /// The run that asks, or the Tool that drifted.
    pub async fn approval_changed(&self, approval: &Approval) {
        let ((namespace, _), request) = (place(approval), &approval.spec.request);
        match &request.run {
            Some(run) => self.queues.runs.push(&namespace, &run.name).await,
            None => self.queues.tools.push(&namespace, &request.tool).await,
        }
    }

    /// The run whose calls may go by it.
    pub async fn grant_changed(&self, grant: &ApprovalGrant) {
        let (namespace, _) = place(grant);
        self.queues.runs.push(&namespace, &grant.spec.run.name).await;
    }

    /// Agents that list the Tool, policies that name it, and runs that may wait for it.
    pub async fn tool_changed(&self, tool: &Tool) {
        let (namespace, name) = place(tool);
        self.queues.tools.push(&namespace, &name).await;
        let lists = |agent: &Agent| agent.spec.tools.iter().any(|tool| tool.name == name);
        for agent in self.world.agents.state_filter(|agent| lists(agent) && within(agent, &namespace)) {
            self.queues.agents.push(&namespace, &agent.name_any()).await;
        }
        let agents = self.world.agents.state_filter(|agent| lists(agent) && within(agent, &namespace));
        let agents: BTreeSet<String> = agents.iter().map(|agent| agent.name_any()).collect();
        let waits = |run: &AgentRun| {
            let on = run.status.as_ref().and_then(|status| status.waiting_on.as_ref());
            on.is_some_and(|on| on.kind == TOOL && on.name == name)
        };
        let concerned = |run: &AgentRun| agents.contains(&run.spec.agent_ref.name) || waits(run);
        for run in self.world.runs.state_filter(|run| within(run, &namespace) && !has_ended(run) && concerned(run)) {
            self.queues.runs.push(&namespace, &run.name_any()).await;
        }
        let names = |policy: &ApprovalPolicy| policy.spec.rules.iter().any(|rule| rule.tools.contains(&name));
        for policy in self.world.policies.state_filter(|policy| names(policy) && within(policy, &namespace)) {
            self.queues.policies.push(&namespace, &policy.name_any()).await;
        }
    }

    /// Tools that stand for the Agent, Agents that list those, and runs of the Agent that have not ended.
    pub async fn agent_changed(&self, agent: &Agent) {
        let (namespace, name) = place(agent);
        self.queues.agents.push(&namespace, &name).await;
        let stands_for = |tool: &Tool| {
            within(tool, &namespace) && tool.spec.agent.as_ref().is_some_and(|agent| agent.agent_ref.name == name)
        };
        for tool in self.world.tools.state_filter(stands_for) {
            self.queues.tools.push(&namespace, &tool.name_any()).await;
            let lists = |agent: &Agent| agent.spec.tools.iter().any(|listed| listed.name == tool.name_any());
            for agent in self.world.agents.state_filter(|agent| within(agent, &namespace) && lists(agent)) {
                self.queues.agents.push(&namespace, &agent.name_any()).await;
            }
        }
        let concerned = |run: &AgentRun| run.spec.agent_ref.name == name && within(run, &namespace) && !has_ended(run);
        for run in self.world.runs.state_filter(concerned) {
            self.queues.runs.push(&namespace, &run.name_any()).await;
        }
    }

    /// Whoever may go to the Service.
    pub async fn service_changed(&self, namespace: &str, name: &str) {
        if self.shared.contains(&(namespace.to_owned(), name.to_owned())) {
            self.look_at_fenced(None).await;
        } else {
            self.network_changed(namespace).await;
        }
    }

    /// Agents and Tools of a namespace: a Service or NetworkPolicy there is another.
    pub async fn network_changed(&self, namespace: &str) {
        self.look_at_fenced(Some(namespace)).await;
    }

    /// Whatever NetworkPolicies are kept for, in one namespace or in all.
    async fn look_at_fenced(&self, only: Option<&str>) {
        let tools = self.world.tools.state_filter(|tool| only.is_none_or(|only| within(tool, only)));
        for (namespace, name) in tools.iter().map(|tool| place(&**tool)) {
            self.queues.tools.push(&namespace, &name).await;
        }
        let agents = self.world.agents.state_filter(|agent| only.is_none_or(|only| within(agent, only)));
        for (namespace, name) in agents.iter().map(|agent| place(&**agent)) {
            self.queues.agents.push(&namespace, &name).await;
        }
    }

    /// The run, and the one whose call it carries out.
    pub async fn run_changed(&self, run: &AgentRun) {
        let (namespace, name) = place(run);
        self.queues.runs.push(&namespace, &name).await;
        self.child_changed(run).await;
    }

    /// The run whose call that one carries out, if it does.
    pub async fn child_changed(&self, child: &AgentRun) {
        if let (Some(namespace), Some(parent)) = (&child.metadata.namespace, &child.spec.parent) {
            self.queues.runs.push(namespace, &parent.name).await;
        }
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
        self.look_at_agents().await;
        self.look_at_runs().await;
    }

    pub async fn look_at_agents(&self) {
        for object in self.world.agents.state() {
            self.queues.agents.push(&object.namespace().unwrap_or_default(), &object.name_any()).await;
        }
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
        if self.shared.iter().any(|(of, _)| of == namespace) {
            self.look_at_fenced(None).await;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_crds::NameRef;
    use belay_protocol::network::AllowedHosts;
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::agent_run::resolve::Parts;
    use crate::fixtures::{agent, credential, model, policy, ready, tool};

    fn store<K>(objects: Vec<K>) -> Store<K>
    where
        K: kube::runtime::reflector::Lookup<DynamicType = ()> + Clone + 'static,
    {
        let mut writer = Writer::new(());
        for object in objects {
            writer.apply_watcher_event(&Event::Apply(object));
        }
        writer.as_reader()
    }

    /// Agent `triage` with three keys: of its Model, of that one's fallback and of its Tool. Each names a policy of its
    /// own.
    fn world(policies: Vec<ApprovalPolicy>) -> World {
        let key = |name: &str| {
            let mut key = credential(name);
            key.spec.policy_refs = vec![NameRef::new(format!("of-{name}"))];
            ready(key)
        };
        let mut writer = model("writer", Some("models"));
        writer.spec.fallback_refs = vec![NameRef::new("spare")];
        let mut github = tool("github", &["list_issues"]);
        github.spec.mcp.as_mut().unwrap().credential_ref = Some(NameRef::new("tools"));
        World {
            models: store(vec![ready(writer), ready(model("spare", Some("spares")))]),
            credentials: store(vec![key("models"), key("spares"), key("tools"), key("unused")]),
            tools: store(vec![ready(github)]),
            policies: store(policies),
            agents: store(vec![agent("triage", "writer", &[("github", &["list_issues"])])]),
            runs: store(vec![]),
            approvals: store(vec![]),
            grants: store(vec![]),
            namespaces: store(vec![]),
        }
    }

    fn good(name: &str) -> ApprovalPolicy {
        ready(policy(name, "{otherwise: Ask}"))
    }

    /// Queues of which those of Agents are read.
    fn queues() -> (Queues, mpsc::Receiver<ObjectRef<Agent>>) {
        let (agents, looked_at) = Queue::new();
        let queues = Queues {
            models: Queue::new().0,
            credentials: Queue::new().0,
            tools: Queue::new().0,
            policies: Queue::new().0,
            agents,
            runs: Queue::new().0,
        };
        (queues, looked_at)
    }

    #[tokio::test]
    async fn a_service_that_is_listed_for_all_namespaces_concerns_the_agents_of_all_and_others_those_of_their_own() {
        let (queues, mut looked_at) = queues();
        let shared = Arc::new(BTreeSet::from([("models".to_owned(), "llm".to_owned())]));
        let relations = Relations { world: world(vec![]), queues, shared };
        for (namespace, name, concerned) in
            [("models", "llm", true), ("models", "other", false), ("triage", "tool", true), ("team", "llm", false)]
        {
            relations.service_changed(namespace, name).await;
            assert_eq!(looked_at.try_recv().is_ok(), concerned, "{namespace}/{name}");
        }
        for (namespace, concerned) in [("models", true), ("team", false)] {
            relations.namespace_changed(namespace).await;
            assert_eq!(looked_at.try_recv().is_ok(), concerned, "{namespace}, as it was enabled or disabled");
        }
    }

    #[tokio::test]
    async fn whatever_a_run_of_an_agent_would_use_has_it_looked_at_and_is_missed_where_it_is_not_there() {
        for (key, used) in [("models", true), ("spares", true), ("tools", true), ("unused", false)] {
            let all: Vec<_> = ["of-models", "of-spares", "of-tools"].map(good).into();
            let world = world(all);
            let (queues, mut looked_at) = queues();
            let relations = Relations { world: world.clone(), queues, shared: Arc::default() };
            relations.policy_changed(&good(&format!("of-{key}"))).await;
            assert_eq!(looked_at.try_recv().is_ok(), used, "the policy of {key}");
            relations.credential_changed(&credential(key)).await;
            assert_eq!(looked_at.try_recv().is_ok(), used, "{key} itself");
        }
        let subject = agent("triage", "writer", &[("github", &["list_issues"])]);
        for missing in ["of-models", "of-spares", "of-tools"] {
            let there = ["of-models", "of-spares", "of-tools"].into_iter().filter(|name| *name != missing);
            let world = world(there.map(good).collect());
            let found = crate::agent::find(&world, &subject, &AllowedHosts::default());
            let unready = found.policies.iter().find(|named| named.policy.is_none()).map(|named| named.name.as_str());
            assert_eq!(unready, Some(missing), "the Agent is not Ready");
            let refused =
                Parts::gather(&world, Arc::new(subject.clone()), &AllowedHosts::default(), None).err().unwrap();
            assert!(refused.contains(missing), "and neither is a run of it planned: {refused}");
        }
    }
}
