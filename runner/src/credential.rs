//! Credential values: read from their mounted files at the moment of use, held in a type that cannot be
//! printed or serialized, and wiped when dropped. What was read is remembered, so that it can be redacted.

pub mod inject;
mod known;
pub mod scope;
mod token;

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::sync::Arc;

use belay_protocol::CREDENTIAL_BYTES_MAX;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::PlanCredential;
use belay_protocol::probe::Presence;
use http::HeaderValue;
use zeroize::Zeroizing;

use self::known::Known;
use self::token::Tokens;
use crate::egress::Destinations;
use crate::redact::Finder;

/// A credential's true value. Its `Debug` says nothing. Cheap to clone; wiped with the last clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Why a credential cannot be used. Its words name the Credential, the Secret and the key.
#[derive(Debug, thiserror::Error)]
#[error("Credential {}: {}", credential, problem.words(secret_name, secret_key))]
pub struct CredentialError {
    pub credential: String,
    pub secret_name: String,
    pub secret_key: String,
    pub problem: CredentialProblem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialProblem {
    Missing,
    Empty,
    TooLarge,
    /// Bytes that are not what its injection sends: no HTTP header's, or no text.
    NotSendable,
}

impl CredentialProblem {
    fn words(self, secret: &str, key: &str) -> String {
        match self {
            Self::Missing => format!("Secret {secret} has no key {key}, or is not there: create it, then run again"),
            Self::Empty => format!("key {key} of Secret {secret} is empty: put the value in, then run again"),
            Self::TooLarge => {
                format!(
                    "key {key} of Secret {secret} holds more than {CREDENTIAL_BYTES_MAX} bytes: is it the right key?"
                )
            }
            Self::NotSendable => {
                format!("key {key} of Secret {secret} holds bytes that no request can carry: is it the right key?")
            }
        }
    }

    #[must_use]
    pub fn reason(self) -> FailureReason {
        match self {
            Self::Missing | Self::NotSendable => FailureReason::CredentialMissing,
            Self::Empty => FailureReason::CredentialEmpty,
            Self::TooLarge => FailureReason::CredentialTooLarge,
        }
    }
}

/// The folder in which the kubelet mounts credentials: `<folder>/<name>/value`. Cheap to clone; all clones remember the
/// same values and tokens.
#[derive(Clone)]
pub struct Credentials {
    folder: PathBuf,
    known: Arc<Known>,
    tokens: Arc<Tokens>,
    /// Where tokens may be asked for.
    destinations: Destinations,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Credentials {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        let destinations = Destinations::new("", &[]);
        Self { folder, known: Arc::default(), tokens: Arc::default(), destinations }
    }

    /// The same, whose tokens are asked for within these destinations.
    #[must_use]
    pub fn reaching(self, destinations: Destinations) -> Self {
        Self { destinations, ..self }
    }

    /// Where tokens may be asked for. The way out is the same for all that a pod sends.
    #[must_use]
    pub fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    /// Finds every value that was read so far, and every token that was given for one.
    #[must_use]
    pub fn finder(&self) -> Arc<Finder> {
        self.known.finder()
    }

    /// Reads the value as it is now, and remembers it.
    pub fn read(&self, credential: &PlanCredential) -> Result<Secret, CredentialError> {
        let problem = match self.read_file(&credential.name) {
            Ok(bytes) if bytes.is_empty() => CredentialProblem::Empty,
            Ok(bytes) if bytes.len() > CREDENTIAL_BYTES_MAX => CredentialProblem::TooLarge,
            // The probe reports a trailing newline; it is never meant to be sent.
            Ok(bytes) => match bytes.trim_ascii_end() {
                [] => CredentialProblem::Empty,
                value => {
                    let secret = Secret::new(value);
                    self.known.remember(&credential.name, &secret);
                    return Ok(secret);
                }
            },
            Err(_) => CredentialProblem::Missing,
        };
        Err(CredentialError::new(credential, problem))
    }

    /// The server at `url` answered 401 to a request with this `Authorization`. True: that came from a token endpoint and is
    /// not used again, so that the next request carries another token.
    #[expect(clippy::must_use_candidate, reason = "who asks nothing again by itself has no use for it")]
    pub fn refused(&self, credential: &PlanCredential, url: &str, authorization: Option<&HeaderValue>) -> bool {
        authorization.is_some_and(|sent| token::drop_refused(self, credential, url, sent))
    }

    /// What can be said of a credential without saying what it holds.
    #[must_use]
    pub fn presence(&self, name: &str) -> Presence {
        match self.read_file(name) {
            Ok(bytes) if bytes.is_empty() => Presence::Empty,
            Ok(bytes) if bytes.len() > CREDENTIAL_BYTES_MAX => Presence::TooLarge,
            Ok(bytes) if bytes.ends_with(b"\n") => Presence::TrailingNewline,
            Ok(_) => Presence::Present,
            Err(_) => Presence::Missing,
        }
    }

    /// At most one byte more than a credential may hold.
    fn read_file(&self, name: &str) -> std::io::Result<Zeroizing<Vec<u8>>> {
        // Names are Kubernetes object names; whatever else they were, they never leave the folder.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(ErrorKind::NotFound.into());
        }
        let file = File::open(self.folder.join(name).join("value"))?;
        let most = CREDENTIAL_BYTES_MAX + 1;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(most).min(most);
        // Never grown, so that no half-read copy stays behind in freed memory.
        let mut bytes = Zeroizing::new(vec![0; length]);
        let mut filled = 0;
        let mut limited = file.take(most as u64);
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match limited.read(rest)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

impl CredentialError {
    fn new(credential: &PlanCredential, problem: CredentialProblem) -> Self {
        Self {
            credential: credential.name.clone(),
            secret_name: credential.secret_name.clone(),
            secret_key: credential.secret_key.clone(),
            problem,
        }
    }
}

impl Secret {
    #[must_use]
    pub fn new(value: &[u8]) -> Self {
        Self(Arc::new(Zeroizing::new(value.to_vec())))
    }

    /// What a redaction looks for.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value as text, which is what every injection sends.
    fn text(&self, credential: &PlanCredential) -> Result<&str, CredentialError> {
        str::from_utf8(&self.0).map_err(|_| CredentialError::new(credential, CredentialProblem::NotSendable))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use belay_protocol::plan::Inject;
    use rstest::rstest;

    pub(crate) fn credential(name: &str, hosts: &[&str]) -> PlanCredential {
        PlanCredential {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            secret_name: "keys".to_owned(),
            secret_key: "token".to_owned(),
            inject: Inject::Bearer {},
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            methods: Vec::new(),
            path_prefixes: Vec::new(),
            policies: Vec::new(),
        }
    }

    /// A folder as the kubelet mounts it, holding these values.
    pub(crate) fn mounted(values: &[(&str, &[u8])]) -> (tempfile::TempDir, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in values {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("value"), value).unwrap();
        }
        let credentials = Credentials::new(folder.path().to_owned());
        (folder, credentials)
    }

    #[rstest]
    #[case::present(Some(b"hunter2".to_vec()), Presence::Present, None)]
    #[case::missing(None, Presence::Missing, Some(CredentialProblem::Missing))]
    #[case::empty(Some(Vec::new()), Presence::Empty, Some(CredentialProblem::Empty))]
    #[case::newline(Some(b"hunter2\n".to_vec()), Presence::TrailingNewline, None)]
    #[case::only_a_newline(Some(b"\n".to_vec()), Presence::TrailingNewline, Some(CredentialProblem::Empty))]
    #[case::largest(Some(vec![b'x'; CREDENTIAL_BYTES_MAX]), Presence::Present, None)]
    #[case::too_large(Some(vec![b'x'; CREDENTIAL_BYTES_MAX + 1]), Presence::TooLarge, Some(CredentialProblem::TooLarge))]
    fn a_mounted_file_is_judged_without_saying_what_it_holds(
        #[case] value: Option<Vec<u8>>,
        #[case] presence: Presence,
        #[case] problem: Option<CredentialProblem>,
    ) {
        let values: Vec<(&str, &[u8])> = value.iter().map(|value| ("key", value.as_slice())).collect();
        let (_folder, credentials) = mounted(&values);
        assert_eq!(credentials.presence("key"), presence);
        let read = credentials.read(&credential("key", &[]));
        assert_eq!(read.err().map(|error| error.problem), problem);
    }

    #[test]
    fn a_value_never_shows_in_debug_output() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2")]);
        let secret = credentials.read(&credential("key", &[])).unwrap();
        let printed = format!("{credentials:?} {secret:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let (folder, _) = mounted(&[("key", b"hunter2")]);
        let inner = Credentials::new(folder.path().join("other"));
        assert_eq!(inner.presence("../key"), Presence::Missing);
    }
}
