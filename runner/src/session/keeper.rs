//! What results hold besides the text that is shown: sent to the operator, which keeps it, before the event that names it.

use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::event::Artifact;
use belay_protocol::wire::artifact_part::Body;
use belay_protocol::wire::{ArtifactHead, ArtifactPart};
use belay_protocol::{BATCH_BYTES_MAX, PROTOCOL_VERSION};
use tokio::sync::Mutex;

use super::{Link, LinkError};

/// Well below what one message may hold.
const PART_BYTES: usize = BATCH_BYTES_MAX / 2;
/// An operator that is just starting is asked again.
const PAUSES_MILLISECONDS: [u64; 4] = [250, 1000, 2000, 4000];

/// Whoever keeps artifacts.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Durable on return; otherwise why it is not kept.
    async fn keep(&self, artifact: &Artifact, bytes: &[u8]) -> Result<(), String>;
}

/// The operator, asked in the name of one instance.
pub struct Uploads {
    link: Link,
    instance: String,
    /// The operator takes one of a pod at a time.
    turn: Mutex<()>,
}

impl Uploads {
    #[must_use]
    pub fn new(link: Link, instance: String) -> Self {
        Self { link, instance, turn: Mutex::default() }
    }

    async fn upload(&self, artifact: &Artifact, bytes: &[u8]) -> Result<(), LinkError> {
        let head = ArtifactHead {
            protocol_version: PROTOCOL_VERSION,
            instance: self.instance.clone(),
            digest: artifact.digest.as_bytes().to_vec(),
            bytes: bytes.len() as u64,
        };
        let parts = bytes.chunks(PART_BYTES).map(|part| Body::Bytes(part.to_vec()));
        let parts: Vec<ArtifactPart> =
            std::iter::once(Body::Head(head)).chain(parts).map(|body| ArtifactPart { body: Some(body) }).collect();
        let (mut client, request) = self.link.call(tokio_stream::iter(parts)).await?;
        client.keep(request).await?;
        Ok(())
    }
}

#[async_trait]
impl Keeper for Uploads {
    async fn keep(&self, artifact: &Artifact, bytes: &[u8]) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        for pause in PAUSES_MILLISECONDS {
            match self.upload(artifact, bytes).await {
                Err(error) if !error.is_final() => tokio::time::sleep(Duration::from_millis(pause)).await,
                sent => return sent.map_err(in_words),
            }
        }
        self.upload(artifact, bytes).await.map_err(in_words)
    }
}

/// For the model and for people: the operator's own words alone.
fn in_words(error: LinkError) -> String {
    match error {
        LinkError::Status(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}
