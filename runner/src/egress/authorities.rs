//! Authorities that vouch for one destination in place of the public ones. They are read from the file that the kubelet
//! mounts whenever a client is wanted, so that they can be rotated while a run is under way.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use belay_protocol::plan::CaBundle;
use belay_protocol::{CA_BUNDLE_BYTES_MAX, Digest};
use reqwest::Certificate;

use super::{Connecting, EgressError};

/// The folder in which the kubelet mounts them: `<folder>/<ConfigMap>/<key>`.
#[derive(Clone, Debug)]
pub struct Authorities(PathBuf);

/// By whom a destination is verified, and which field of its object says so.
#[derive(Clone, Debug)]
pub struct Trust {
    pub field: &'static str,
    pub ca: CaBundle,
}

/// Why nobody can be verified. Its words name the field, the ConfigMap and the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {}", problem.words(ca))]
pub struct AuthoritiesError {
    pub field: &'static str,
    pub ca: CaBundle,
    pub problem: AuthoritiesProblem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthoritiesProblem {
    Missing,
    TooLarge,
    /// Nothing in it is a certificate.
    Empty,
    /// Something in it that says it is a certificate is none.
    Malformed,
}

/// A client that is made anew whenever its authorities are others.
pub struct Verified {
    connecting: Connecting,
    trust: Trust,
    authorities: Authorities,
    newest: Mutex<Option<(Digest, reqwest::Client)>>,
}

impl AuthoritiesProblem {
    fn words(self, CaBundle { config_map, key }: &CaBundle) -> String {
        match self {
            Self::Missing => format!("ConfigMap {config_map} has no key {key}, or is not there: create it"),
            Self::TooLarge => {
                format!(
                    "key {key} of ConfigMap {config_map} holds more than {CA_BUNDLE_BYTES_MAX} bytes: is it the right key?"
                )
            }
            Self::Empty => format!(
                "key {key} of ConfigMap {config_map} holds no certificate: put in those of the authority, in PEM"
            ),
            Self::Malformed => {
                format!(
                    "key {key} of ConfigMap {config_map} holds what is no certificate in PEM: put in those of the authority"
                )
            }
        }
    }
}

impl Authorities {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// At most one byte more than they may hold.
    fn read(&self, CaBundle { config_map, key }: &CaBundle) -> Result<Vec<u8>, AuthoritiesProblem> {
        // Names are Kubernetes' own; whatever else they were, they never leave the folder.
        let leads_away = |name: &str| name.is_empty() || name.contains('/') || name == "." || name.starts_with("..");
        if leads_away(config_map) || leads_away(key) {
            return Err(AuthoritiesProblem::Missing);
        }
        let file = File::open(self.0.join(config_map).join(key)).map_err(|_| AuthoritiesProblem::Missing)?;
        let mut bytes = Vec::new();
        let read = file.take(CA_BUNDLE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        match read.map_err(|_| AuthoritiesProblem::Missing)? {
            more if more > CA_BUNDLE_BYTES_MAX => Err(AuthoritiesProblem::TooLarge),
            _ => Ok(bytes),
        }
    }
}

impl Verified {
    pub(super) fn new(connecting: Connecting, trust: Trust, authorities: Authorities) -> Self {
        Self { connecting, trust, authorities, newest: Mutex::default() }
    }

    /// A client that trusts what the file holds now.
    pub(super) fn client(&self) -> Result<reqwest::Client, EgressError> {
        let bytes = self.authorities.read(&self.trust.ca).map_err(|problem| self.error(problem))?;
        let digest = Digest::of(&bytes);
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = newest.as_ref().filter(|(held, _)| *held == digest) {
            return Ok(client.clone());
        }
        // Connections that others vouched for go with the client that made them.
        *newest = None;
        let client = self.trusting(&bytes).map_err(|problem| self.error(problem))?;
        Ok(newest.insert((digest, client)).1.clone())
    }

    fn trusting(&self, bytes: &[u8]) -> Result<reqwest::Client, AuthoritiesProblem> {
        let certificates = Certificate::from_pem_bundle(bytes).map_err(|_| AuthoritiesProblem::Malformed)?;
        if certificates.is_empty() {
            return Err(AuthoritiesProblem::Empty);
        }
        // They are parsed here; nothing else of a client can fail.
        self.connecting.builder().tls_certs_only(certificates).build().map_err(|_| AuthoritiesProblem::Malformed)
    }

    fn error(&self, problem: AuthoritiesProblem) -> AuthoritiesError {
        AuthoritiesError { field: self.trust.field, ca: self.trust.ca.clone(), problem }
    }
}
