//! Which namespaces opted in, and the pods there: one watch an enabled namespace. Pods of nobody else are
//! looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use belay_crds::{AgentRun, Credential, ENABLED_LABEL, POD_PREFIX, Tool};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::pod_template::MANAGED_BY;
use crate::watches::{Pulses, Seen, Watch};
use crate::world::Relations;

/// Enabled namespaces and their pods. Cheap to clone.
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
    stop: CancellationToken,
}

/// Whether the operator may run pods in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Enabled,
    /// Its pods have not been listed yet: wait.
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
        let Some(pods) = served.get(namespace).map(|served| &served.pods) else {
            return Service::NotEnabled;
        };
        if self.0.pulses.is_forbidden(&watch_name(namespace)) {
            return Service::Forbidden;
        }
        match futures::FutureExt::now_or_never(pods.wait_until_ready()) {
            Some(_) => Service::Enabled,
            None => Service::Starting,
        }
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
        let writer = Writer::new(());
        let stop = self.0.shutdown.child_token();
        served.insert(namespace.to_owned(), Served { pods: writer.as_reader(), stop: stop.clone() });
        let watch = Watch {
            name: watch_name(namespace),
            api: Api::<Pod>::namespaced(self.0.client.clone(), namespace),
            config: watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGED_BY}")),
            writer,
            trim: trim_pod,
            pulses: self.0.pulses.clone(),
            metrics: self.0.metrics.clone(),
        };
        let (relations, namespace) = (self.0.relations.clone(), namespace.to_owned());
        self.0.tasks.spawn(watch.follow(stop, move |seen| {
            let (relations, namespace) = (relations.clone(), namespace.clone());
            async move {
                match seen {
                    Seen::There(pod) | Seen::Gone(pod) => tell_owner(&relations, &namespace, &pod).await,
                    Seen::Listed | Seen::Forbidden => relations.namespace_changed(&namespace).await,
                }
            }
        }));
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

fn watch_name(namespace: &str) -> String {
    format!("pods/{namespace}")
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
