//! Whether a Model is ready, and in which words it is not. Pure.

use std::sync::Arc;

use belay_crds::reason::ModelReason;
use belay_crds::{Credential, Model, ModelApi};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::readiness::Verdict;
use crate::references::{CredentialState, credential_state, missing};

/// What the Model's references found; `fallbacks` in the order of `spec.fallbackRefs`.
#[derive(Default)]
pub struct Found {
    pub credential: Option<Arc<Credential>>,
    pub fallbacks: Vec<Fallback>,
}

/// A Model that is named as a fallback, and the Credential that it names itself.
pub struct Fallback {
    pub model: Option<Arc<Model>>,
    pub credential: Option<Arc<Credential>>,
}

/// Judges by what was looked up: the first thing that is missing is what the message names.
pub fn judge(model: &Model, service: Service, found: &Found) -> Verdict<ModelReason> {
    let namespace = model.namespace().unwrap_or_default();
    if let Some(complaint) = service.complaint(&namespace) {
        return Verdict::stalled(ModelReason::NamespaceNotEnabled, complaint);
    }
    let subject = format!("Model {}: spec.credentialRef", model.name_any());
    match credential_state(&subject, &namespace, model.spec.credential_ref.as_ref(), found.credential.as_deref()) {
        CredentialState::None | CredentialState::Ready => {}
        CredentialState::Missing(message) => return Verdict::waiting(ModelReason::CredentialMissing, message),
        CredentialState::NotReady(message) => return Verdict::waiting(ModelReason::CredentialNotReady, message),
    }
    for (place, (named, fallback)) in model.spec.fallback_refs.iter().zip(&found.fallbacks).enumerate() {
        let subject = format!("Model {}: spec.fallbackRefs[{place}]", model.name_any());
        if named.name == model.name_any() {
            let message = format!("{subject} names the Model itself: name another one");
            return Verdict::stalled(ModelReason::FallbackIsItself, message);
        }
        if let Some(verdict) = judge_fallback(&subject, &namespace, &named.name, fallback) {
            return verdict;
        }
    }
    Verdict::ready(ModelReason::Ready, describe(model))
}

/// Looks past the fallback's own conditions: two Models that name each other would wait for ever.
fn judge_fallback(subject: &str, namespace: &str, name: &str, found: &Fallback) -> Option<Verdict<ModelReason>> {
    let Some(model) = &found.model else {
        return Some(Verdict::waiting(ModelReason::FallbackMissing, missing(subject, "Model", name, namespace)));
    };
    let subject = format!("{subject} names Model \"{name}\", whose spec.credentialRef");
    match credential_state(&subject, namespace, model.spec.credential_ref.as_ref(), found.credential.as_deref()) {
        CredentialState::None | CredentialState::Ready => None,
        CredentialState::Missing(message) | CredentialState::NotReady(message) => {
            Some(Verdict::waiting(ModelReason::FallbackNotReady, message))
        }
    }
}

fn describe(model: &Model) -> String {
    match model.spec.api {
        ModelApi::ChatCompletions => format!("{} over Chat Completions; not asked yet", model.spec.model),
        ModelApi::Responses => format!("{} over Responses; not asked yet", model.spec.model),
        ModelApi::Messages => format!("{} over Messages; not asked yet", model.spec.model),
        ModelApi::Scripted => {
            let turns = model.spec.scripted.as_ref().map_or(0, |script| script.turns.len());
            format!("scripted answers: {turns}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{credential, model, not_ready, ready};
    use crate::readiness::Standing;

    fn found(credential: Option<&Credential>) -> Found {
        Found { credential: credential.cloned().map(Arc::new), fallbacks: Vec::new() }
    }

    #[test]
    fn a_model_is_ready_when_all_that_it_names_is() {
        let (plain, named) = (model("m", None), model("m", Some("k")));
        let k = ready(credential("k"));
        let table = [
            (judge(&plain, Service::Enabled, &found(None)), Standing::Ready, ModelReason::Ready),
            (judge(&named, Service::Enabled, &found(Some(&k))), Standing::Ready, ModelReason::Ready),
            (judge(&named, Service::Enabled, &found(None)), Standing::Waiting, ModelReason::CredentialMissing),
            (
                judge(&named, Service::Enabled, &found(Some(&not_ready(credential("k"), "Empty", "the key is empty")))),
                Standing::Waiting,
                ModelReason::CredentialNotReady,
            ),
            (judge(&plain, Service::NotEnabled, &found(None)), Standing::Stalled, ModelReason::NamespaceNotEnabled),
            (judge(&plain, Service::Forbidden, &found(None)), Standing::Stalled, ModelReason::NamespaceNotEnabled),
        ];
        for (verdict, standing, reason) in table {
            assert_eq!((verdict.standing, verdict.reason), (standing, reason));
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_field() {
        let verdict = judge(&model("writer", Some("k")), Service::Enabled, &found(None));
        assert_eq!(
            verdict.message,
            "Model writer: spec.credentialRef names Credential \"k\", which does not exist in namespace triage"
        );
        let verdict = judge(&model("m", None), Service::NotEnabled, &found(None));
        assert!(verdict.message.ends_with("run: belay namespace enable triage"), "{}", verdict.message);
    }

    #[test]
    fn a_fallback_has_to_be_there_with_its_credential() {
        let mut writer = model("writer", None);
        writer.spec.fallback_refs = vec![belay_crds::NameRef::new("second")];
        let second = |reference| Some(Arc::new(model("second", reference)));
        let judged = |model, credential: Option<Credential>| {
            let fallback = Fallback { model, credential: credential.map(Arc::new) };
            judge(&writer, Service::Enabled, &Found { credential: None, fallbacks: vec![fallback] })
        };
        let k = || credential("k");
        let table = [
            (judged(second(None), None), Standing::Ready, ModelReason::Ready),
            (judged(second(Some("k")), Some(ready(k()))), Standing::Ready, ModelReason::Ready),
            (judged(None, None), Standing::Waiting, ModelReason::FallbackMissing),
            (judged(second(Some("k")), None), Standing::Waiting, ModelReason::FallbackNotReady),
            (
                judged(second(Some("k")), Some(not_ready(k(), "Empty", "the key is empty"))),
                Standing::Waiting,
                ModelReason::FallbackNotReady,
            ),
        ];
        for (verdict, standing, reason) in table {
            assert_eq!((verdict.standing, verdict.reason), (standing, reason), "{}", verdict.message);
        }
        let message = judged(second(Some("k")), None).message;
        assert!(message.starts_with("Model writer: spec.fallbackRefs[0] names Model \"second\", whose"), "{message}");
        writer.spec.fallback_refs = vec![belay_crds::NameRef::new("writer")];
        let itself = Fallback { model: Some(Arc::new(writer.clone())), credential: None };
        let verdict = judge(&writer, Service::Enabled, &Found { credential: None, fallbacks: vec![itself] });
        assert_eq!((verdict.standing, verdict.reason), (Standing::Stalled, ModelReason::FallbackIsItself));
    }
}
