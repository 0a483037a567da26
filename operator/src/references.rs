//! What a reference finds, in words that name object and field. Pure; shared by the kinds that name others.

use belay_crds::conditions::{self, READY};
use belay_crds::{Credential, NameRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

/// What naming a Credential came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialState {
    /// None is named.
    None,
    Ready,
    Missing(String),
    NotReady(String),
}

/// `subject` says who names it, such as `Model writer: spec.credentialRef`.
#[must_use]
pub fn credential_state(
    subject: &str,
    namespace: &str,
    reference: Option<&NameRef>,
    found: Option<&Credential>,
) -> CredentialState {
    let Some(reference) = reference else { return CredentialState::None };
    let Some(credential) = found else {
        return CredentialState::Missing(missing(subject, "Credential", &reference.name, namespace));
    };
    let status = credential.status.as_ref().map_or(&[][..], |status| &status.conditions);
    match not_ready(subject, "Credential", credential, status) {
        None => CredentialState::Ready,
        Some(message) => CredentialState::NotReady(message),
    }
}

#[must_use]
pub fn missing(subject: &str, kind: &str, name: &str, namespace: &str) -> String {
    format!("{subject} names {kind} \"{name}\", which does not exist in namespace {namespace}")
}

/// Why the object that `subject` names is not Ready, if it is not.
#[must_use]
pub fn not_ready(subject: &str, kind: &str, object: &impl ResourceExt, status: &[Condition]) -> Option<String> {
    if conditions::is_ready(status, object.meta().generation) {
        return None;
    }
    let name = object.name_any();
    Some(match conditions::find(status, READY) {
        Some(ready) if ready.observed_generation == object.meta().generation => {
            format!("{subject} names {kind} \"{name}\", which is not Ready: {}: {}", ready.reason, ready.message)
        }
        Some(_) | None => format!("{subject} names {kind} \"{name}\", which is not Ready yet"),
    })
}
