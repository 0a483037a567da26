//! What of a result the model is not shown: bytes that are no text, and the whole of a text that was cut. Looked through for
//! values of credentials, and named by its digest.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_protocol::event::Artifact;
use belay_protocol::{ARTIFACT_BYTES_MAX, ARTIFACTS_PER_RESULT_MAX, Digest};

use crate::egress::piece;
use crate::redact::Redactor;

const MEDIA_TYPE_BYTES: usize = 128;
const NAME_BYTES: usize = 256;
/// What a text is once it is redacted, whatever its server called it.
const TEXT: &str = "text/plain; charset=utf-8";

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

/// A piece of an MCP result that is no text, in its server's words.
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

    pub fn redacted<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.redactor.redact(text)
    }

    /// Takes the piece, and says to the model what it is instead.
    pub fn take(&mut self, binary: &Binary<'_>) -> String {
        let (kind, media_type) = (binary.kind, self.shown(binary.media_type, MEDIA_TYPE_BYTES));
        match STANDARD.decode(binary.base64.trim()) {
            Ok(bytes) => {
                let name = self.shown(binary.name, NAME_BYTES);
                self.take_bytes(&format!("{kind} "), media_type, name, bytes)
            }
            Err(_) => format!("[{kind} {media_type}, not shown: it is not base64]"),
        }
    }

    /// Takes the body of an HTTP answer likewise.
    pub fn take_body(&mut self, media_type: &str, bytes: &[u8]) -> String {
        self.take_bytes("", self.shown(media_type, MEDIA_TYPE_BYTES), String::new(), bytes.to_vec())
    }

    /// Takes the whole of a text that is shown cut, and says where it is. It is redacted already.
    pub fn take_text(&mut self, text: &str) -> String {
        match self.attach(text.as_bytes().to_vec(), TEXT.to_owned(), String::new()) {
            Some(digest) => format!("all of it is artifact {digest}"),
            None => format!("the rest is not kept: {}", bounds()),
        }
    }

    fn take_bytes(&mut self, kind: &str, media_type: String, name: String, bytes: Vec<u8>) -> String {
        let what = format!("{kind}{media_type}, {} bytes", bytes.len());
        if !self.redactor.is_clean_bytes(&bytes) {
            return format!("[{what}, withheld: it holds the value of a credential]");
        }
        match self.attach(bytes, media_type, name) {
            Some(digest) => format!("[{what}, not shown: artifact {digest}]"),
            None => format!("[{what}, not kept: {}]", bounds()),
        }
    }

    /// None: it is more than a result may hold.
    fn attach(&mut self, bytes: Vec<u8>, media_type: String, name: String) -> Option<Digest> {
        if bytes.len() > ARTIFACT_BYTES_MAX || self.found.len() >= ARTIFACTS_PER_RESULT_MAX {
            return None;
        }
        let artifact = Artifact { digest: Digest::of(&bytes), bytes: bytes.len() as u64, media_type, name };
        let digest = artifact.digest;
        if !self.found.iter().any(|found| found.artifact.digest == digest) {
            self.found.push(Attachment { artifact, bytes });
        }
        Some(digest)
    }

    /// A server's words: redacted before they are cut.
    fn shown(&self, text: &str, most: usize) -> String {
        piece(&self.redactor.redact(text), most)
    }

    pub fn into_found(self) -> Vec<Attachment> {
        self.found
    }
}

fn bounds() -> String {
    format!("a result holds at most {ARTIFACTS_PER_RESULT_MAX} artifacts of {ARTIFACT_BYTES_MAX} bytes each")
}
