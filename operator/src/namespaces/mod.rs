//! Which namespaces opted in, and what the operator looks at there: its own pods, NetworkPolicies and Services.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use belay_crds::{AgentRun, Credential, ENABLED_LABEL, POD_PREFIX, Tool};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service as ServiceObject};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::network::policy::Sighting;
use crate::pod_template::MANAGED_BY;
use crate::watches::{Pulses, Seen, Watch};
use crate::world::Relations;

const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// What is watched in each of them.
const WATCHED: [&str; 3] = ["pods", "services", "networkpolicies"];

/// Enabled namespaces and what is in them. Cheap to clone.
#[derive(Clone)]
pub struct Namespaces(Arc<Inner>);

struct Inner {
    client: Client,
    relations: Relations,
    pulses: Pulses,
    metrics: Metrics,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    served: RwLock<BTreeMap<String, Served>>,
}

struct Served {
    pods: Store<Pod>,
    services: Store<ServiceObject>,
    policies: Store<NetworkPolicy>,
    stop: CancellationToken,
}

/// Whether the operator may run pods in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Enabled,
    /// What is there has not been listed yet: wait.
    Starting,
    /// The label is absent.
    NotEnabled,
    /// The label is there, the RoleBinding is not.
    Forbidden,
}

impl Service {
    /// What to do about it, unless it is served.
    #[must_use]
    pub fn complaint(self, namespace: &str) -> Option<String> {
        match self {
            Self::Enabled | Self::Starting => None,
            Self::NotEnabled => Some(format!(
                "namespace {namespace} is not served by this installation; run: belay namespace enable {namespace}"
            )),
            Self::Forbidden => Some(format!(
                "namespace {namespace} has the label {ENABLED_LABEL} but the operator may not run pods there: its \
                 RoleBinding is missing; run: belay namespace enable {namespace}"
            )),
        }
    }
}

impl Namespaces {
    #[must_use]
    pub fn new(
        client: Client,
        relations: Relations,
        pulses: Pulses,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Self {
        let (tasks, served) = (TaskTracker::new(), RwLock::default());
        Self(Arc::new(Inner { client, relations, pulses, metrics, tasks, shutdown, served }))
    }

    #[must_use]
    pub fn service(&self, namespace: &str) -> Service {
        let served = self.0.served.read();
        let Some(served) = served.get(namespace) else { return Service::NotEnabled };
        if WATCHED.iter().any(|what| self.0.pulses.is_forbidden(&watch_name(what, namespace))) {
            return Service::Forbidden;
        }
        if is_listed(&served.pods) && is_listed(&served.services) && is_listed(&served.policies) {
            Service::Enabled
        } else {
            Service::Starting
        }
    }

    /// Of every object that probes are about, wherever it is.
    #[must_use]
    pub fn uids_of_probed(&self) -> HashSet<String> {
        let world = &self.0.relations.world;
        let (credentials, tools) = (world.credentials.state(), world.tools.state());
        let credentials = credentials.iter().filter_map(|credential| credential.uid());
        credentials.chain(tools.iter().filter_map(|tool| tool.uid())).collect()
    }

    /// What is known of the Service of that name.
    #[must_use]
    pub fn sighting(&self, namespace: &str, name: &str) -> Sighting {
        match self.service(namespace) {
            Service::NotEnabled | Service::Forbidden => return Sighting::Unknown,
            // Nobody is let in anew meanwhile: whoever names it is looked at again once it is listed.
            Service::Starting => return Sighting::Starting,
            Service::Enabled => {}
        }
        let services = self.0.served.read().get(namespace).map(|served| served.services.clone());
        let found = services.and_then(|services| services.get(&ObjectRef::new(name).within(namespace)));
        found.map_or(Sighting::Missing, Sighting::Known)
    }

    /// Every Agent may say something else now.
    pub async fn look_at_agents(&self) {
        self.0.relations.look_at_agents().await;
    }

    /// The NetworkPolicy of that name, whoever made it.
    #[must_use]
    pub fn policy(&self, namespace: &str, name: &str) -> Option<Arc<NetworkPolicy>> {
        let policies = self.0.served.read().get(namespace).map(|served| served.policies.clone());
        policies.and_then(|policies| policies.get(&ObjectRef::new(name).within(namespace)))
    }

    /// All NetworkPolicies there, whoever made them.
    #[must_use]
    pub fn policies(&self, namespace: &str) -> Vec<Arc<NetworkPolicy>> {
        let policies = self.0.served.read().get(namespace).map(|served| served.policies.clone());
        policies.map(|policies| policies.state()).unwrap_or_default()
    }

    /// NetworkPolicies of ours that the object with this uid owns.
    #[must_use]
    pub fn policies_of(&self, namespace: &str, owner_uid: &str) -> Vec<Arc<NetworkPolicy>> {
        let mut policies = self.policies(namespace);
        policies.retain(|policy| {
            policy.labels().get(MANAGED_BY_LABEL).is_some_and(|by| by == MANAGED_BY)
                && policy.owner_references().iter().any(|owner| owner.uid == owner_uid)
        });
        policies
    }

    /// What pods of ours there have in that label.
    #[must_use]
    pub fn labels_of_pods(&self, namespace: &str, label: &str) -> Vec<String> {
        let pods = self.0.served.read().get(namespace).map(|served| served.pods.clone());
        let pods = pods.map(|pods| pods.state()).unwrap_or_default();
        pods.iter().filter_map(|pod| pod.labels().get(label).cloned()).collect()
    }

    /// The pod of that name as the cache knows it.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.0.served.read().get(namespace).map(|served| served.pods.clone());
        pods.and_then(|pods| pods.get(&ObjectRef::new(name).within(namespace)))
    }

    /// Pods of ours there that the object with this uid owns.
    #[must_use]
    pub fn pods_of(&self, namespace: &str, owner_uid: &str) -> Vec<Arc<Pod>> {
        let pods = self.0.served.read().get(namespace).map(|served| served.pods.clone());
        // Anybody may name an owner; only the operator makes pods of that name.
        let owned = |pod: &Pod| {
            pod.name_any().starts_with(POD_PREFIX) && pod.owner_references().iter().any(|owner| owner.uid == owner_uid)
        };
        pods.map(|pods| pods.state_filter(owned)).unwrap_or_default()
    }

    /// Follows what was seen of a Namespace object.
    pub async fn saw(&self, seen: Seen<Namespace>) {
        match seen {
            Seen::There(namespace) => {
                let enabled = namespace.labels().get(ENABLED_LABEL).is_some_and(|value| value == "true");
                let going = namespace.meta().deletion_timestamp.is_some();
                if enabled && !going {
                    self.serve(&namespace.name_any());
                } else {
                    self.leave(&namespace.name_any()).await;
                }
            }
            Seen::Gone(namespace) => self.leave(&namespace.name_any()).await,
            Seen::Forbidden => {}
            Seen::Listed => {
                let known: Vec<String> = self.0.served.read().keys().cloned().collect();
                for name in known {
                    if self.0.relations.world.namespaces.get(&ObjectRef::new(&name)).is_none() {
                        self.leave(&name).await;
                    }
                }
            }
        }
    }

    /// Waits until no pod watch runs any more.
    pub async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn serve(&self, namespace: &str) {
        let mut served = self.0.served.write();
        if served.contains_key(namespace) {
            return;
        }
        tracing::info!(namespace, "namespace enabled");
        let stop = self.0.shutdown.child_token();
        let (pods, services, policies) = (Writer::new(()), Writer::new(()), Writer::new(()));
        let stores = Served {
            pods: pods.as_reader(),
            services: services.as_reader(),
            policies: policies.as_reader(),
            stop: stop.clone(),
        };
        served.insert(namespace.to_owned(), stores);
        let relations = &self.0.relations;
        self.watch(
            "pods",
            namespace,
            pods,
            trim_pod,
            stop.clone(),
            tell(relations, namespace, |to, namespace, pod| {
                async move { tell_owner(&to, &namespace, &pod).await }.boxed()
            }),
        );
        let trim = |service: &mut ServiceObject| service.meta_mut().managed_fields = None;
        self.watch(
            "services",
            namespace,
            services,
            trim,
            stop.clone(),
            tell(relations, namespace, |to, namespace, service: Arc<ServiceObject>| {
                async move { to.service_changed(&namespace, &service.name_any()).await }.boxed()
            }),
        );
        let trim = |policy: &mut NetworkPolicy| policy.meta_mut().managed_fields = None;
        self.watch(
            "networkpolicies",
            namespace,
            policies,
            trim,
            stop,
            tell(relations, namespace, |to, namespace, _| async move { to.network_changed(&namespace).await }.boxed()),
        );
    }

    fn watch<K, F>(
        &self,
        what: &str,
        namespace: &str,
        writer: Writer<K>,
        trim: fn(&mut K),
        stop: CancellationToken,
        tell: impl FnMut(Seen<K>) -> F + Send + 'static,
    ) where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        // Services and NetworkPolicies count whoever's they are; of pods only those of ours are looked at.
        let config = match what {
            "pods" => watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}")),
            _ => watcher::Config::default(),
        };
        let watch = Watch {
            name: watch_name(what, namespace),
            api: Api::<K>::namespaced(self.0.client.clone(), namespace),
            config,
            writer,
            trim,
            pulses: self.0.pulses.clone(),
            metrics: self.0.metrics.clone(),
        };
        self.0.tasks.spawn(watch.follow(stop, tell));
    }

    async fn leave(&self, namespace: &str) {
        let served = self.0.served.write().remove(namespace);
        if let Some(served) = served {
            tracing::info!(namespace, "namespace disabled");
            served.stop.cancel();
            self.0.relations.namespace_changed(namespace).await;
        }
    }
}

fn watch_name(what: &str, namespace: &str) -> String {
    format!("{what}/{namespace}")
}

fn is_listed<K>(store: &Store<K>) -> bool
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()> + Clone + 'static,
{
    futures::FutureExt::now_or_never(store.wait_until_ready()).is_some()
}

/// Tells of each sighting, and of a list by everything in the namespace.
fn tell<K: Send + Sync + 'static>(
    relations: &Relations,
    namespace: &str,
    of: fn(Relations, String, Arc<K>) -> BoxFuture<'static, ()>,
) -> impl FnMut(Seen<K>) -> BoxFuture<'static, ()> + Send + 'static + use<K> {
    let (relations, namespace) = (relations.clone(), namespace.to_owned());
    move |seen| {
        let (relations, namespace) = (relations.clone(), namespace.clone());
        match seen {
            Seen::There(object) | Seen::Gone(object) => of(relations, namespace, object),
            Seen::Listed | Seen::Forbidden => async move { relations.namespace_changed(&namespace).await }.boxed(),
        }
    }
}

/// A pod concerns the object that owns it.
async fn tell_owner(relations: &Relations, namespace: &str, pod: &Pod) {
    for owner in pod.owner_references() {
        let queues = &relations.queues;
        if owner.kind == AgentRun::kind(&()) {
            queues.runs.push(namespace, &owner.name).await;
        } else if owner.kind == Credential::kind(&()) {
            queues.credentials.push(namespace, &owner.name).await;
        } else if owner.kind == Tool::kind(&()) {
            queues.tools.push(namespace, &owner.name).await;
        }
    }
}

/// Of a pod only its identity and status are read.
fn trim_pod(pod: &mut Pod) {
    pod.spec = None;
    pod.meta_mut().managed_fields = None;
    pod.meta_mut().annotations = None;
}

#[cfg(test)]
mod tests;
