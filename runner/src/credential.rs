//! Credential values: read from their mounted files at the moment of use, held in a type that cannot be
//! printed or serialized, and wiped when dropped.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use belay_protocol::CREDENTIAL_BYTES_MAX;
use belay_protocol::event::FailureReason;
use belay_protocol::plan::{Inject, PlanCredential};
use belay_protocol::probe::Presence;
use http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

/// A credential's true value. Its `Debug` says nothing.
pub struct Secret(Zeroizing<Vec<u8>>);

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
    /// Bytes that no HTTP header can carry.
    NotAHeader,
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
            Self::NotAHeader => {
                format!("key {key} of Secret {secret} holds bytes that no HTTP header can carry: is it the right key?")
            }
        }
    }

    #[must_use]
    pub fn reason(self) -> FailureReason {
        match self {
            Self::Missing | Self::NotAHeader => FailureReason::CredentialMissing,
            Self::Empty => FailureReason::CredentialEmpty,
            Self::TooLarge => FailureReason::CredentialTooLarge,
        }
    }
}

/// The folder in which the kubelet mounts credentials: `<folder>/<name>/value`.
#[derive(Clone, Debug)]
pub struct Credentials {
    folder: PathBuf,
}

impl Credentials {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Reads the value as it is now.
    pub fn read(&self, credential: &PlanCredential) -> Result<Secret, CredentialError> {
        let problem = match self.read_file(&credential.name) {
            Ok(bytes) if bytes.is_empty() => CredentialProblem::Empty,
            Ok(bytes) if bytes.len() > CREDENTIAL_BYTES_MAX => CredentialProblem::TooLarge,
            // The probe reports a trailing newline; it is never meant to be sent.
            Ok(bytes) => match bytes.trim_ascii_end() {
                [] => CredentialProblem::Empty,
                value => return Ok(Secret(Zeroizing::new(value.to_vec()))),
            },
            Err(_) => CredentialProblem::Missing,
        };
        Err(CredentialError::new(credential, problem))
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
    /// The header that carries this value by the credential's rule, marked so that no client prints it.
    pub fn header(&self, credential: &PlanCredential) -> Result<(HeaderName, HeaderValue), CredentialError> {
        let wrong = || CredentialError::new(credential, CredentialProblem::NotAHeader);
        let text = str::from_utf8(&self.0).map_err(|_| wrong())?;
        let (name, value) = match &credential.inject {
            Inject::Bearer {} => (http::header::AUTHORIZATION, Zeroizing::new(format!("Bearer {text}"))),
            Inject::Header { name, format } => {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
                (name, Zeroizing::new(format.replace("{}", text)))
            }
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok((name, value))
    }

    /// The value as text, where it is text: what a redaction looks for.
    #[must_use]
    pub(crate) fn text(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rstest::rstest;

    pub(crate) fn credential(name: &str, hosts: &[&str]) -> PlanCredential {
        PlanCredential {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            secret_name: "keys".to_owned(),
            secret_key: "token".to_owned(),
            inject: Inject::Bearer {},
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
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
    fn a_value_never_shows_in_debug_output_of_itself_or_its_header() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2")]);
        let credential = credential("key", &[]);
        let secret = credentials.read(&credential).unwrap();
        let header = secret.header(&credential).unwrap();
        let printed = format!("{credentials:?} {secret:?} {header:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
        assert_eq!(header.1.as_bytes(), b"Bearer hunter2");
    }

    #[test]
    fn a_header_credential_follows_its_format() {
        let (_folder, credentials) = mounted(&[("key", b"hunter2\n")]);
        let inject = Inject::Header { name: "X-Api-Key".to_owned(), format: "token={}".to_owned() };
        let credential = PlanCredential { inject, ..credential("key", &[]) };
        let (name, value) = credentials.read(&credential).unwrap().header(&credential).unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-api-key", b"token=hunter2".as_slice()));
    }

    #[test]
    fn an_error_names_the_credential_the_secret_and_the_key_and_no_value() {
        let (_folder, credentials) = mounted(&[("key", b"a\x01b")]);
        let credential = credential("key", &[]);
        let error = credentials.read(&credential).unwrap().header(&credential).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Credential key: key token of Secret keys holds bytes that no HTTP header can carry: is it the right key?"
        );
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let (folder, _) = mounted(&[("key", b"hunter2")]);
        let inner = Credentials::new(folder.path().join("other"));
        assert_eq!(inner.presence("../key"), Presence::Missing);
    }
}
