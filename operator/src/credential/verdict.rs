//! Whether a Credential is ready, and in which words it is not. Pure.

use belay_crds::Credential;
use belay_crds::reason::CredentialReason;
use belay_protocol::CREDENTIAL_BYTES_MAX;
use belay_protocol::probe::{Presence, ProbeReport};
use kube::ResourceExt;

use crate::namespaces::Service;
use crate::probe_pod::Step;
use crate::readiness::Verdict;

/// Judges by the probe's step, or by a namespace that is not served.
pub fn judge(credential: &Credential, step: Result<Step, Service>) -> Verdict<CredentialReason> {
    let secret = &credential.spec.secret_key_ref;
    let subject = format!("Credential {}: spec.secretKeyRef", credential.name_any());
    let report = match step {
        Err(service) => {
            let complaint = service.complaint(&credential.namespace().unwrap_or_default()).unwrap_or_default();
            return Verdict::stalled(CredentialReason::NamespaceNotEnabled, complaint);
        }
        Ok(Step::Start | Step::Wait | Step::Rest) => {
            let message = format!("a probe pod is looking for the key {} of Secret {}", secret.key, secret.name);
            return Verdict::unknown(CredentialReason::NotProbed, message);
        }
        Ok(Step::Use { report, .. }) => report,
    };
    let presence = match report {
        Ok(ProbeReport::Credential(presence)) => presence,
        Ok(ProbeReport::Tool(_) | ProbeReport::Network(_)) => {
            return Verdict::waiting(CredentialReason::ProbeFailed, "the probe pod answered another question");
        }
        Err(why) => return Verdict::waiting(CredentialReason::ProbeFailed, format!("{subject} is not known: {why}")),
    };
    let here = format!("{subject}: the key {} of Secret {}", secret.key, secret.name);
    match presence {
        Presence::Present => Verdict::ready(
            CredentialReason::Ready,
            format!("the key {} of Secret {} is there", secret.key, secret.name),
        ),
        Presence::Missing => {
            let message =
                format!("{subject}: Secret {} is absent or has no key {}: create it", secret.name, secret.key);
            Verdict::waiting(CredentialReason::KeyMissing, message)
        }
        Presence::Empty => Verdict::waiting(CredentialReason::Empty, format!("{here} is empty")),
        Presence::TrailingNewline => Verdict::waiting(
            CredentialReason::TrailingNewline,
            format!("{here} ends in a newline, which no provider takes: write it without one (echo -n)"),
        ),
        Presence::TooLarge => Verdict::waiting(
            CredentialReason::TooLarge,
            format!("{here} is larger than {CREDENTIAL_BYTES_MAX} bytes: is it the right key?"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::credential;
    use crate::readiness::Standing;

    fn used(presence: Presence) -> Step {
        Step::Use { report: Ok(ProbeReport::Credential(presence)), again: None }
    }

    #[test]
    fn each_presence_has_a_reason_of_its_own() {
        let table = [
            (Ok(used(Presence::Present)), Standing::Ready, CredentialReason::Ready),
            (Ok(used(Presence::Missing)), Standing::Waiting, CredentialReason::KeyMissing),
            (Ok(used(Presence::Empty)), Standing::Waiting, CredentialReason::Empty),
            (Ok(used(Presence::TrailingNewline)), Standing::Waiting, CredentialReason::TrailingNewline),
            (Ok(used(Presence::TooLarge)), Standing::Waiting, CredentialReason::TooLarge),
            (Ok(Step::Wait), Standing::Unknown, CredentialReason::NotProbed),
            (Err(Service::NotEnabled), Standing::Stalled, CredentialReason::NamespaceNotEnabled),
            (
                Ok(Step::Use { report: Err("quota".into()), again: None }),
                Standing::Waiting,
                CredentialReason::ProbeFailed,
            ),
        ];
        for (step, standing, reason) in table {
            let verdict = judge(&credential("key"), step);
            assert_eq!((verdict.standing, verdict.reason), (standing, reason), "{}", verdict.message);
        }
    }

    #[test]
    fn a_missing_key_names_the_field_the_secret_and_the_key() {
        let message = judge(&credential("key"), Ok(used(Presence::Missing))).message;
        assert_eq!(
            message,
            "Credential key: spec.secretKeyRef: Secret key-secret is absent or has no key token: create it"
        );
    }
}
