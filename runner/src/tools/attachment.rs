//! What an MCP result holds besides text: decoded, looked through for values of credentials, and named by its digest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_protocol::event::Artifact;
use belay_protocol::{ARTIFACT_BYTES_MAX, ARTIFACTS_PER_RESULT_MAX, Digest};

use crate::egress::piece;
use crate::redact::Redactor;

const MEDIA_TYPE_BYTES: usize = 128;
const NAME_BYTES: usize = 256;

/// One artifact and its bytes, not kept yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub artifact: Artifact,
    pub bytes: Vec<u8>,
}

/// What is found in one result.
pub struct Attachments<'a> {
    redactor: &'a Redactor,
    found: Vec<Attachment>,
}

/// A piece of a result that is no text, in its server's words.
pub struct Binary<'a> {
    /// `image`, `audio` or `resource`.
    pub kind: &'static str,
    pub media_type: &'a str,
    /// A URI, where it has one.
    pub name: &'a str,
    pub base64: &'a str,
}

impl<'a> Attachments<'a> {
    pub fn new(redactor: &'a Redactor) -> Self {
        Self { redactor, found: Vec::new() }
    }

    /// Takes the piece, and says to the model what it is instead.
    pub fn take(&mut self, binary: &Binary<'_>) -> String {
        let shown = |text: &str, most: usize| piece(&self.redactor.redact(text), most);
        let (media_type, name) = (shown(binary.media_type, MEDIA_TYPE_BYTES), shown(binary.name, NAME_BYTES));
        let kind = binary.kind;
        let Ok(bytes) = STANDARD.decode(binary.base64.trim()) else {
            return format!("[{kind} {media_type}, not shown: it is not base64]");
        };
        let what = format!("{kind} {media_type}, {} bytes", bytes.len());
        if !self.redactor.is_clean_bytes(&bytes) {
            return format!("[{what}, withheld: it holds the value of a credential]");
        }
        if bytes.len() > ARTIFACT_BYTES_MAX || self.found.len() >= ARTIFACTS_PER_RESULT_MAX {
            return format!(
                "[{what}, not kept: a result holds at most {ARTIFACTS_PER_RESULT_MAX} of {ARTIFACT_BYTES_MAX} bytes each]"
            );
        }
        let artifact = Artifact { digest: Digest::of(&bytes), bytes: bytes.len() as u64, media_type, name };
        let line = format!("[{what}, not shown: artifact {}]", artifact.digest);
        if !self.found.iter().any(|found| found.artifact.digest == artifact.digest) {
            self.found.push(Attachment { artifact, bytes });
        }
        line
    }

    pub fn into_found(self) -> Vec<Attachment> {
        self.found
    }
}
