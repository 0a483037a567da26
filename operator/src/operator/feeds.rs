//! What makes controllers look: the watches of every kind, appends to the journal, streams that end.

use std::fmt::Debug;
use std::sync::Arc;

use belay_crds::{Agent, AgentRun, ApprovalPolicy, Model};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::OperatorError;
use super::caches::Writers;
use crate::agent_run::resolve::id_of;
use crate::agent_run::{AgentRuns, Orphans};
use crate::approval_policy::usable;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::policy::{Current, Judge};
use crate::service::Sessions;
use crate::suspension::Suspensions;
use crate::watches::{Pulses, Seen, Watch};
use crate::world::{Relations, has_ended};

/// Everything that a change may concern.
#[derive(Clone)]
pub struct Feeds {
    pub client: Client,
    pub relations: Relations,
    pub namespaces: Namespaces,
    pub suspensions: Suspensions,
    pub current: Current,
    pub runs: Arc<AgentRuns>,
    pub orphans: Orphans,
    pub pulses: Pulses,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
}

impl Feeds {
    /// Starts the watches of every kind and waits until each has listed what is there. Namespaces come first:
    /// an object is never judged before it is known whether its namespace is served.
    pub async fn watch(&self, writers: Writers, tasks: &TaskTracker) -> Result<(), OperatorError> {
        let listed = CancellationToken::new();
        let (namespaces, told) = (self.namespaces.clone(), listed.clone());
        tasks.spawn(self.follow("namespaces", writers.namespaces, trim, move |seen| {
            let (namespaces, told, done) = (namespaces.clone(), told.clone(), matches!(seen, Seen::Listed));
            async move {
                namespaces.saw(seen).await;
                if done {
                    told.cancel();
                }
            }
        }));
        let feeds = self.clone();
        tasks.spawn(self.follow("models", writers.models, trim, move |seen| {
            let feeds = feeds.clone();
            async move { feeds.saw_model(seen).await }
        }));
        tasks.spawn(self.relate("credentials", writers.credentials, |to, credential| {
            async move { to.credential_changed(&credential).await }.boxed()
        }));
        tasks
            .spawn(self.relate("tools", writers.tools, |to, tool| async move { to.tool_changed(&tool).await }.boxed()));
        tasks.spawn(self.relate("approvals", writers.approvals, |to, approval| {
            async move { to.approval_changed(&approval).await }.boxed()
        }));
        tasks.spawn(self.relate("approvalgrants", writers.grants, |to, grant| {
            async move { to.grant_changed(&grant).await }.boxed()
        }));
        let feeds = self.clone();
        tasks.spawn(self.follow("approvalpolicies", writers.policies, trim, move |seen| {
            let feeds = feeds.clone();
            async move { feeds.saw_policy(seen).await }
        }));
        let feeds = self.clone();
        tasks.spawn(self.follow("agents", writers.agents, trim, move |seen| {
            let feeds = feeds.clone();
            async move { feeds.saw_agent(seen).await }
        }));
        let feeds = self.clone();
        tasks.spawn(self.follow("agentruns", writers.runs, trim_run, move |seen| {
            let feeds = feeds.clone();
            async move { feeds.saw_run(seen).await }
        }));
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            ready = self.all_listed(&listed) => ready,
        }
    }

    /// Starts passing on what the journal and the streams of runners tell.
    pub fn listen(&self, sessions: &Sessions, journal: &Journal, tasks: &TaskTracker) {
        let (feeds, mut changes) = (self.clone(), journal.changes());
        tasks.spawn(async move {
            while let Some(change) = feeds.shutdown.run_until_cancelled(changes.recv()).await {
                match change {
                    Ok(run) => feeds.relations.queues.runs.push(&run.namespace, &run.name).await,
                    Err(RecvError::Lagged(_)) => feeds.relations.look_at_runs().await,
                    Err(RecvError::Closed) => return,
                }
            }
        });
        let (feeds, mut streams, journal) = (self.clone(), sessions.changed(), journal.clone());
        tasks.spawn(async move {
            while let Some(stream) = feeds.shutdown.run_until_cancelled(streams.recv()).await {
                match stream {
                    Ok(uid) => match journal.run_head(&uid).await {
                        Ok(Some(head)) => feeds.relations.queues.runs.push(&head.run.namespace, &head.run.name).await,
                        Ok(None) => {}
                        Err(error) => tracing::warn!(uid, %error, "the run of a stream is not known"),
                    },
                    Err(RecvError::Lagged(_)) => feeds.relations.look_at_runs().await,
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// Starts passing on which policies took too long to evaluate.
    pub fn listen_to(&self, judge: &Judge, tasks: &TaskTracker) {
        let (feeds, mut overruns) = (self.clone(), judge.overruns());
        tasks.spawn(async move {
            while let Some(overrun) = feeds.shutdown.run_until_cancelled(overruns.recv()).await {
                match overrun {
                    Ok(it) => feeds.relations.queues.policies.push(&it.namespace, &it.policy).await,
                    Err(RecvError::Lagged(_)) => feeds.relations.look_at_all().await,
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    async fn all_listed(&self, namespaces: &CancellationToken) -> Result<(), OperatorError> {
        let world = &self.relations.world;
        let ended = |_| OperatorError::WatchEnded;
        namespaces.cancelled().await;
        world.models.wait_until_ready().await.map_err(ended)?;
        world.credentials.wait_until_ready().await.map_err(ended)?;
        world.tools.wait_until_ready().await.map_err(ended)?;
        world.policies.wait_until_ready().await.map_err(ended)?;
        world.agents.wait_until_ready().await.map_err(ended)?;
        world.approvals.wait_until_ready().await.map_err(ended)?;
        world.grants.wait_until_ready().await.map_err(ended)?;
        world.runs.wait_until_ready().await.map_err(ended)
    }

    /// The watch of a kind whose changes concern whoever names the object.
    fn relate<K>(
        &self,
        name: &str,
        writer: Writer<K>,
        changed: fn(Relations, Arc<K>) -> BoxFuture<'static, ()>,
    ) -> impl Future<Output = ()> + Send + 'static + use<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let relations = self.relations.clone();
        self.follow(name, writer, trim, move |seen| {
            let relations = relations.clone();
            async move {
                match seen {
                    Seen::There(object) | Seen::Gone(object) => changed(relations, object).await,
                    Seen::Listed => relations.look_at_all().await,
                    Seen::Forbidden => {}
                }
            }
        })
    }

    fn follow<K, F, T>(
        &self,
        name: &str,
        writer: Writer<K>,
        trim: fn(&mut K),
        tell: T,
    ) -> impl Future<Output = ()> + Send + 'static + use<K, F, T>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
        T: FnMut(Seen<K>) -> F + Send + 'static,
    {
        let watch = Watch {
            name: name.to_owned(),
            api: Api::all(self.client.clone()),
            config: watcher::Config::default(),
            writer,
            trim,
            pulses: self.pulses.clone(),
            metrics: self.metrics.clone(),
        };
        watch.follow(self.shutdown.clone(), tell)
    }

    async fn saw_model(&self, seen: Seen<Model>) {
        match seen {
            Seen::There(model) | Seen::Gone(model) => {
                // First of all: whoever waits for a limit that was raised does not wait for any queue.
                self.runs.quotas.limits_changed();
                self.relations.model_changed(&model).await;
            }
            Seen::Listed => {
                self.runs.quotas.limits_changed();
                self.relations.look_at_all().await;
            }
            Seen::Forbidden => {}
        }
    }

    async fn saw_agent(&self, seen: Seen<Agent>) {
        let place = |agent: &Agent| (agent.namespace().unwrap_or_default(), agent.name_any());
        match seen {
            Seen::There(agent) => {
                let (namespace, name) = place(&agent);
                // First of all: what a suspension withholds does not wait for any queue.
                if agent.spec.suspend == Some(true) {
                    self.suspensions.suspend(&namespace, &name);
                } else {
                    self.suspensions.resume(&namespace, &name);
                }
                self.relations.agent_changed(&agent).await;
            }
            Seen::Gone(agent) => {
                let (namespace, name) = place(&agent);
                self.suspensions.resume(&namespace, &name);
                self.relations.agent_changed(&agent).await;
            }
            Seen::Listed => self.relations.look_at_all().await,
            Seen::Forbidden => {}
        }
    }

    async fn saw_policy(&self, seen: Seen<ApprovalPolicy>) {
        let place = |policy: &ApprovalPolicy| (policy.namespace().unwrap_or_default(), policy.name_any());
        match seen {
            Seen::There(policy) => {
                let (namespace, name) = place(&policy);
                // First of all: what it newly denies does not wait for any queue.
                match usable(&policy).policy() {
                    Some(counts) => self.current.set(&namespace, counts),
                    None => self.current.remove(&namespace, &name),
                }
                self.relations.policy_changed(&policy).await;
            }
            Seen::Gone(policy) => {
                let (namespace, name) = place(&policy);
                self.current.remove(&namespace, &name);
                self.relations.policy_changed(&policy).await;
            }
            Seen::Listed => {
                let world = &self.relations.world;
                self.current.retain(|namespace, name| world.policy(namespace, name).is_some());
                self.relations.look_at_all().await;
            }
            Seen::Forbidden => {}
        }
    }

    async fn saw_run(&self, seen: Seen<AgentRun>) {
        match seen {
            Seen::There(run) => self.relations.run_changed(&run).await,
            Seen::Gone(run) => {
                self.orphans.report(id_of(&*run)).await;
                self.relations.child_changed(&run).await;
            }
            Seen::Listed => {
                if let Err(failure) = self.runs.report_missing(&self.orphans).await {
                    tracing::warn!(%failure, "deleted runs not looked for");
                }
            }
            Seen::Forbidden => {}
        }
    }
}

/// Nobody reads who wrote which field.
fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// What a finished run was asked and answered is read by people, never by the operator.
fn trim_run(run: &mut AgentRun) {
    trim(run);
    if has_ended(run) {
        run.spec.input = String::new();
        if let Some(status) = run.status.as_mut() {
            status.output = None;
        }
    }
}
