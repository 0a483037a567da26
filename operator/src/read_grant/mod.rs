//! Readers of the journal: a ReadGrant says who, its key proves it, and what the journal holds of that run is returned.
//! The API server vouches for who made a grant; no token of anybody's comes here.

mod nonces;
mod sweep;
mod verify;

use std::sync::Arc;

use async_trait::async_trait;
use belay_crds::ReadGrant;
use belay_protocol::reading::{artifact_path, export_path};
use belay_protocol::{Digest, export};
use kube::{Api, Client, ResourceExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::nonces::{Nonces, Use};
pub use self::sweep::sweep;
pub use self::verify::{Moment, Presented, Refusal, has_run_out, verify};
use crate::guard::{Guard, State};
use crate::journal::{ArtifactError, Journal, JournalError};

/// Exports that are made at one time: each holds a run's whole journal in memory.
const EXPORTS_MAX: usize = 2;
/// Requests that are looked at at one time: each asks the API server, and anybody may send one.
const LOOKS_MAX: usize = 16;

/// Where grants are read: from quorum, since the one that is presented was made a moment ago.
#[async_trait]
pub trait Grants: Send + Sync {
    async fn fetch(&self, namespace: &str, name: &str) -> Result<Option<ReadGrant>, kube::Error>;
}

/// The API server.
pub struct ApiGrants(pub Client);

#[async_trait]
impl Grants for ApiGrants {
    async fn fetch(&self, namespace: &str, name: &str) -> Result<Option<ReadGrant>, kube::Error> {
        let grants: Api<ReadGrant> = Api::namespaced(self.0.clone(), namespace);
        grants.get_opt(name).await
    }
}

/// Why nothing is returned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("there is no ReadGrant {0}")]
    NoGrant(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("this request was answered already: sign another, with another nonce")]
    Replayed,
    #[error("too many requests: try again in a minute")]
    Busy,
    #[error(
        "the journal holds no run with the uid {0}: it has not started (kubectl describe agentrun says why), or its rows went, \
         some time after their AgentRun"
    )]
    NoRun(String),
    #[error("reading the ReadGrant: {0}")]
    Grants(#[from] kube::Error),
    #[error("reading the journal: {0}")]
    Journal(#[from] JournalError),
    #[error("the run keeps no artifact {0}")]
    NoArtifact(Digest),
    #[error("reading the artifact: {0}")]
    Artifact(#[from] ArtifactError),
}

/// Answers readers. Cheap to clone.
#[derive(Clone)]
pub struct Readers(Arc<Inner>);

struct Inner {
    grants: Arc<dyn Grants>,
    journal: Journal,
    guard: Guard,
    nonces: Nonces,
    looks: Semaphore,
    exports: Semaphore,
}

/// What is asked for of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that the journal holds, as an export.
    Journal,
    Artifact(Digest),
}

impl Wanted {
    fn path(self, run_uid: &str) -> String {
        match self {
            Self::Journal => export_path(run_uid),
            Self::Artifact(digest) => artifact_path(run_uid, digest),
        }
    }
}

/// Names a grant.
#[derive(Clone, Copy, Debug)]
pub struct GrantName<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Readers {
    #[must_use]
    pub fn new(grants: Arc<dyn Grants>, journal: Journal, guard: Guard) -> Self {
        let (looks, exports) = (Semaphore::new(LOOKS_MAX), Semaphore::new(EXPORTS_MAX));
        Self(Arc::new(Inner { grants, journal, guard, nonces: Nonces::default(), looks, exports }))
    }

    /// What is wanted of the run of that uid, for a request by that grant.
    ///
    /// # Errors
    /// The request may not read it, or it could not be read.
    pub async fn read(
        &self,
        run_uid: &str,
        wanted: Wanted,
        grant: GrantName<'_>,
        presented: &Presented<'_>,
    ) -> Result<Vec<u8>, ReadError> {
        if presented.path != wanted.path(run_uid) {
            return Err(Refusal::BadSignature.into());
        }
        let by = self.admit(run_uid, grant, presented).await?;
        let Ok(_place) = self.0.exports.try_acquire() else { return Err(ReadError::Busy) };
        tracing::info!(run = run_uid, by, ?wanted, "journal read");
        if let Wanted::Artifact(digest) = wanted {
            let kept = self.0.journal.artifacts().fetch(run_uid, digest).await?;
            return kept.ok_or(ReadError::NoArtifact(digest));
        }
        let Some(head) = self.0.journal.run_head(run_uid).await? else {
            return Err(ReadError::NoRun(run_uid.to_owned()));
        };
        let records = self.0.journal.records(run_uid, 1).await?;
        Ok(export::write(self.0.journal.id(), &head.run, &records))
    }

    /// Who made the grant, if the request may read.
    async fn admit(&self, run_uid: &str, grant: GrantName<'_>, presented: &Presented<'_>) -> Result<String, ReadError> {
        let Ok(_place) = self.0.looks.try_acquire() else { return Err(ReadError::Busy) };
        let name = || format!("{}/{}", grant.namespace, grant.name);
        let found = self.0.grants.fetch(grant.namespace, grant.name).await?;
        let found = found.ok_or_else(|| ReadError::NoGrant(name()))?;
        let head = self.0.journal.run_head(run_uid).await?;
        let Some(head) = head else { return Err(ReadError::NoRun(run_uid.to_owned())) };
        let guarded_since = match self.0.guard.state() {
            State::Up { since, .. } => Some(since),
            State::Down(_) => None,
        };
        verify(&found, &head.run, presented, Moment { now: jiff::Timestamp::now(), guarded_since })?;
        // Only now: nobody without the key uses up the room.
        match self.0.nonces.take(&found.uid().unwrap_or_default(), presented.nonce, Instant::now()) {
            Use::First => {}
            Use::Again => return Err(ReadError::Replayed),
            Use::Full => return Err(ReadError::Busy),
        }
        Ok(found.spec.by)
    }
}
