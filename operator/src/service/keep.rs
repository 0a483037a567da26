//! Artifacts of a run's results, taken before the events that name them, from the instance that speaks for the run.

use std::time::Duration;

use belay_protocol::plan::ObjectId;
use belay_protocol::wire::artifact_part::Body;
use belay_protocol::wire::{ArtifactHead, ArtifactPart, Hello, Kept};
use belay_protocol::{ARTIFACT_BYTES_MAX, Digest};
use tonic::{Request, Response, Status, Streaming};

use super::authenticate::Caller;
use super::hello::{check_claim, check_form};
use super::session::Over;
use super::{HELLO_TIMEOUT, Served};
use crate::journal::{ArtifactError, Journal};

/// How long one may take to arrive.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(15);

impl Served {
    pub(super) async fn take_artifact(
        &self,
        request: Request<Streaming<ArtifactPart>>,
    ) -> Result<Response<Kept>, Status> {
        let caller = self.authenticate(&request).await?;
        let mut incoming = request.into_inner();
        let head = announced(&mut incoming).await?;
        let journal = &self.service.journal;
        // Only who speaks for a run takes a place that others wait for.
        speaker(journal, &caller, &head).await?;
        caller.origin.admit();
        let _place = self.keeping.take(&caller.pod.uid).await?;
        let late = |_| Status::deadline_exceeded("the artifact did not arrive in time");
        let arrival = arrive(&head, incoming);
        let Arrived { digest, bytes } = tokio::time::timeout(ARRIVAL_TIMEOUT, arrival).await.map_err(late)??;
        // Its run may have ended meanwhile.
        let run = speaker(journal, &caller, &head).await?;
        let size = bytes.len();
        journal.artifacts().keep(&run.uid, digest, bytes).await.map_err(|error| refused(&error))?;
        tracing::debug!(run = run.uid, %digest, bytes = size, "artifact kept");
        Ok(Response::new(Kept {}))
    }
}

struct Arrived {
    digest: Digest,
    bytes: Vec<u8>,
}

async fn announced(incoming: &mut Streaming<ArtifactPart>) -> Result<ArtifactHead, Status> {
    let late = |_| Status::deadline_exceeded("no head in time");
    let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await.map_err(late)??;
    match first.and_then(|part| part.body) {
        Some(Body::Head(head)) => Ok(head),
        Some(Body::Bytes(_)) | None => Err(Status::invalid_argument("an artifact begins with its head")),
    }
}

async fn arrive(head: &ArtifactHead, mut incoming: Streaming<ArtifactPart>) -> Result<Arrived, Status> {
    let digest = Digest::try_from(head.digest.as_slice());
    let digest = digest.map_err(|_| Status::invalid_argument("the head names no digest"))?;
    let size = usize::try_from(head.bytes).unwrap_or(usize::MAX);
    if size > ARTIFACT_BYTES_MAX {
        return Err(Status::invalid_argument(ArtifactError::TooLarge { bytes: size }.to_string()));
    }
    let mut bytes = Vec::with_capacity(size);
    while let Some(part) = incoming.message().await? {
        match part.body {
            Some(Body::Bytes(part)) if bytes.len() + part.len() <= size => bytes.extend_from_slice(&part),
            Some(Body::Bytes(_) | Body::Head(_)) | None => {
                return Err(Status::invalid_argument("that is not what the artifact's head announced"));
            }
        }
    }
    if bytes.len() != size || Digest::of(&bytes) != digest {
        return Err(Status::invalid_argument("the bytes are not those of the artifact's head"));
    }
    Ok(Arrived { digest, bytes })
}

/// The run that the caller speaks for: its pod's live epoch, which this very instance has claimed.
async fn speaker(journal: &Journal, caller: &Caller, head: &ArtifactHead) -> Result<ObjectId, Status> {
    let hello = Hello {
        protocol_version: head.protocol_version,
        instance: head.instance.clone(),
        last_seq: 0,
        last_hash: Vec::new(),
    };
    check_form(&hello).map_err(status)?;
    let pod = &caller.pod;
    let nobody = || Status::failed_precondition("this pod speaks for no run that goes on");
    let run = journal.run_of_pod(&pod.namespace, &pod.name).ok_or_else(nobody)?;
    let state = journal.state(&run.uid).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let state = state.filter(|state| state.end.is_none()).ok_or_else(nobody)?;
    let epoch = state.live_epoch().filter(|epoch| epoch.pod_name == pod.name);
    let claim = epoch.and_then(|epoch| epoch.claim.as_ref()).ok_or_else(nobody)?;
    check_claim(claim, pod, &hello).map_err(status)?;
    Ok(run)
}

fn status(over: Over) -> Status {
    match over {
        Over::Bye(reason) => Status::failed_precondition(reason),
        Over::Status(status) => status,
        Over::Left | Over::Drain => Status::unavailable("come again"),
    }
}

/// What asking again does not change, and what it may.
fn refused(error: &ArtifactError) -> Status {
    let words = error.to_string();
    match error {
        ArtifactError::TooLarge { .. }
        | ArtifactError::RunFull { .. }
        | ArtifactError::RunCrowded
        | ArtifactError::ShareFull { .. }
        | ArtifactError::VolumeFull => Status::failed_precondition(words),
        ArtifactError::Damaged(_) | ArtifactError::Io(_) => Status::unavailable(words),
    }
}
