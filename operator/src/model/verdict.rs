//! Whether a Model is ready, and in which words it is not. Pure.

use belay_crds::reason::ModelReason;
use belay_crds::{Credential, Model, ModelApi};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::readiness::Verdict;
use crate::references::{CredentialState, credential_state};

/// Judges by what was looked up: the first thing that is missing is what the message names.
pub fn judge(model: &Model, service: Service, credential: Option<&Credential>) -> Verdict<ModelReason> {
    let namespace = model.namespace().unwrap_or_default();
    if let Some(complaint) = service.complaint(&namespace) {
        return Verdict::stalled(ModelReason::NamespaceNotEnabled, complaint);
    }
    let subject = format!("Model {}: spec.credentialRef", model.name_any());
    match credential_state(&subject, &namespace, model.spec.credential_ref.as_ref(), credential) {
        CredentialState::None | CredentialState::Ready => Verdict::ready(ModelReason::Ready, describe(model)),
        CredentialState::Missing(message) => Verdict::waiting(ModelReason::CredentialMissing, message),
        CredentialState::NotReady(message) => Verdict::waiting(ModelReason::CredentialNotReady, message),
    }
}

fn describe(model: &Model) -> String {
    match model.spec.api {
        ModelApi::ChatCompletions => format!("{} over Chat Completions; not asked yet", model.spec.model),
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

    #[test]
    fn a_model_is_ready_when_all_that_it_names_is() {
        let (plain, named) = (model("m", None), model("m", Some("k")));
        let k = ready(credential("k"));
        let table = [
            (judge(&plain, Service::Enabled, None), Standing::Ready, ModelReason::Ready),
            (judge(&named, Service::Enabled, Some(&k)), Standing::Ready, ModelReason::Ready),
            (judge(&named, Service::Enabled, None), Standing::Waiting, ModelReason::CredentialMissing),
            (
                judge(&named, Service::Enabled, Some(&not_ready(credential("k"), "Empty", "the key is empty"))),
                Standing::Waiting,
                ModelReason::CredentialNotReady,
            ),
            (judge(&plain, Service::NotEnabled, None), Standing::Stalled, ModelReason::NamespaceNotEnabled),
            (judge(&plain, Service::Forbidden, None), Standing::Stalled, ModelReason::NamespaceNotEnabled),
        ];
        for (verdict, standing, reason) in table {
            assert_eq!((verdict.standing, verdict.reason), (standing, reason));
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_field() {
        let verdict = judge(&model("writer", Some("k")), Service::Enabled, None);
        assert_eq!(
            verdict.message,
            "Model writer: spec.credentialRef names Credential \"k\", which does not exist in namespace triage"
        );
        let verdict = judge(&model("m", None), Service::NotEnabled, None);
        assert!(verdict.message.ends_with("run: belay namespace enable triage"), "{}", verdict.message);
    }
}
