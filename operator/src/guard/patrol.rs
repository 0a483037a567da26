//! Looks at the guard at start, on every change of a rule, and every few minutes; tells people and runs how it stands.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Guard, State};
use crate::metrics::Metrics;
use crate::watches::{Pulses, Seen, Watch};
use crate::world::Relations;
use crate::writes::{FIELD_MANAGER, NOTE_BYTES_MAX, cut};

/// For what no watch tells: an API server that does not apply what it holds.
const LOOK_EVERY: Duration = Duration::from_mins(3);
/// The API server applies a rule a moment after it was put back, and tells nobody.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What keeps looking.
#[derive(Clone)]
pub struct Patrol {
    pub guard: Guard,
    pub client: Client,
    pub relations: Relations,
    /// What the Events are about: the operator's own pod.
    pub about: ObjectReference,
    pub pulses: Pulses,
    pub metrics: Metrics,
    pub shutdown: CancellationToken,
}

impl Patrol {
    /// Starts everything; it ends at shutdown.
    pub fn start(self, tasks: &TaskTracker) {
        tasks.spawn(self.follow::<ValidatingAdmissionPolicy>("validatingadmissionpolicies"));
        tasks.spawn(self.follow::<ValidatingAdmissionPolicyBinding>("validatingadmissionpolicybindings"));
        tasks.spawn(self.clone().tell());
        tasks.spawn(self.walk());
    }

    async fn walk(self) {
        loop {
            let found = self.guard.look_everywhere().await;
            let pause = match &found {
                Some(State::Up { .. }) => LOOK_EVERY,
                Some(State::Down(_)) | None => LOOK_AGAIN,
            };
            if let Some(state) = found {
                self.guard.set(state);
            }
            self.guard.forget_the_gone();
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.guard.0.alarm.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Events, and the runs that wait for people: one look each at every change.
    async fn tell(self) {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: None };
        let recorder = Recorder::new(self.client.clone(), reporter);
        let mut changes = self.guard.changes();
        while let Some(Ok(())) = self.shutdown.run_until_cancelled(changes.changed()).await {
            let state = changes.borrow_and_update().clone();
            if let Err(error) = recorder.publish(&event(&state), &self.about).await {
                tracing::debug!(%error, "event not published");
            }
            self.relations.look_at_runs().await;
        }
    }

    /// A watch that only says that something changed: what is there is read from quorum.
    fn follow<K>(&self, name: &str) -> impl Future<Output = ()> + Send + 'static + use<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let watch: Watch<K> = Watch {
            name: name.to_owned(),
            api: Api::all(self.client.clone()),
            config: watcher::Config::default(),
            writer: Writer::new(()),
            trim: |object| object.meta_mut().managed_fields = None,
            pulses: self.pulses.clone(),
            metrics: self.metrics.clone(),
        };
        let guard = self.guard.clone();
        watch.follow(self.shutdown.clone(), move |seen| {
            let concerns = match seen {
                Seen::There(object) | Seen::Gone(object) => guard.0.rules.holds(&object.name_any()),
                Seen::Listed | Seen::Forbidden => true,
            };
            if concerns {
                guard.0.alarm.notify_one();
            }
            std::future::ready(())
        })
    }
}

fn event(state: &State) -> Event {
    let (type_, reason, note) = match state {
        State::Up { .. } => (EventType::Normal, "AdmissionGuardUp", "decisions on Approvals are checked".to_owned()),
        State::Down(why) => (EventType::Warning, "AdmissionGuardDown", format!("no approval is honoured: {why}")),
    };
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(cut(&note, NOTE_BYTES_MAX).to_owned()),
        action: "Guard".to_owned(),
        secondary: None,
    }
}
