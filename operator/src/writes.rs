//! The few ways in which this operator writes to the API server: status, deletion, Events. Each is guarded by
//! resourceVersion or uid, so that a late write never lands on another object or a newer state.

use std::fmt::Debug;

use belay_crds::{Agent, Approval};
use belay_protocol::plan::ObjectId;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::controller::Failure;
use crate::readiness::{Flip, Reason, Standing, Verdict};

/// Field manager of everything that this operator applies.
pub const FIELD_MANAGER: &str = "belay-operator";
/// The API server takes no longer note.
pub(crate) const NOTE_BYTES_MAX: usize = 1024;

/// Writes to the API server. Cheap to clone.
#[derive(Clone)]
pub struct Writes {
    client: Client,
    recorder: Recorder,
}

impl Writes {
    #[must_use]
    pub fn new(client: Client) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Applies the whole status to the version of the object that was looked at.
    pub async fn apply_status<K>(&self, object: &K, status: &impl Serialize) -> Result<K, Failure>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let name = object.name_any();
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "uid": object.uid(), "resourceVersion": object.resource_version()},
            "status": status,
        });
        let api: Api<K> = self.api(object);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch_status(&name, &params, &Patch::Apply(body)).await.map_err(Failure::api("writing status"))
    }

    /// Deletes that very object; one that is gone or was made anew meanwhile is left alone.
    pub async fn delete<K>(&self, target: &Target) -> Result<(), Failure>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &target.namespace);
        let only = Preconditions { uid: Some(target.uid.clone()), resource_version: target.resource_version.clone() };
        let params = DeleteParams::background().preconditions(only);
        match api.delete(&target.name, &params).await.map_err(Failure::api("deleting")) {
            Ok(_) | Err(Failure::Gone) => Ok(()),
            Err(Failure::Conflict) if target.resource_version.is_none() => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Publishes one Event, if there is one to publish. A lost Event never fails a pass.
    pub async fn announce<K, R>(&self, object: &K, flip: Flip, verdict: &Verdict<R>)
    where
        K: Resource<DynamicType = ()>,
        R: Reason,
    {
        if flip == Flip::None {
            return;
        }
        let type_ = match verdict.standing {
            Standing::Ready | Standing::Unknown | Standing::Waiting => EventType::Normal,
            Standing::Stalled => EventType::Warning,
        };
        let event = Event {
            type_,
            reason: verdict.reason.word().to_owned(),
            note: Some(cut(&verdict.message, NOTE_BYTES_MAX).to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, reason = event.reason, "event not published");
        }
    }

    /// Tells people what is asked of them, by an Event on the Approval. A lost one fails nothing.
    pub async fn announce_question(&self, approval: &Approval, asks: &impl Resource<DynamicType = ()>, note: &str) {
        let event = Event {
            type_: EventType::Normal,
            reason: "DecisionNeeded".to_owned(),
            note: Some(cut(note, NOTE_BYTES_MAX).to_owned()),
            action: "Ask".to_owned(),
            secondary: Some(asks.object_ref(&())),
        };
        if let Err(error) = self.recorder.publish(&event, &approval.object_ref(&())).await {
            tracing::debug!(%error, reason = event.reason, "event not published");
        }
    }

    /// Tells people something by an Event. A lost one fails nothing.
    pub async fn tell(&self, about: &ObjectReference, note: Note<'_>) {
        let event = Event {
            type_: note.type_,
            reason: note.reason.to_owned(),
            note: Some(cut(note.note, NOTE_BYTES_MAX).to_owned()),
            action: note.action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::debug!(%error, reason = event.reason, "event not published");
        }
    }

    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn api<K>(&self, object: &K) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), object.meta().namespace.as_deref().unwrap_or_default())
    }
}

/// What an Event says.
pub struct Note<'a> {
    pub type_: EventType,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: &'a str,
}

/// One object, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Where set, the object must not have changed since.
    pub resource_version: Option<String>,
}

/// The owner reference to `object`, which never blocks the owner's deletion.
#[must_use]
pub fn owner_of<K: Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.meta().name.clone().unwrap_or_default(),
        uid: object.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// The same, of an Agent that a plan names.
#[must_use]
pub fn owner_of_agent(agent: &ObjectId) -> OwnerReference {
    OwnerReference {
        api_version: Agent::api_version(&()).into_owned(),
        kind: Agent::kind(&()).into_owned(),
        name: agent.name.clone(),
        uid: agent.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// The longest beginning of `text` within `bytes`, cut between characters.
#[must_use]
pub fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("héllo", 2), "h");
        assert_eq!(cut("héllo", 3), "hé");
        assert_eq!(cut("hi", 10), "hi");
    }
}
