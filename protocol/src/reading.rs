//! How a reader asks the operator for what the journal holds, and proves by a key that it may. The API server's service
//! proxy, a port-forward or an ingress may carry the request: none of them can change what was signed.

use crate::digest::Digest;

/// `NAMESPACE/NAME` of the ReadGrant.
pub const GRANT_HEADER: &str = "belay-grant";
/// When the request was made, in milliseconds since the Unix epoch.
pub const TIME_HEADER: &str = "belay-time";
/// Never used before with the grant's key: 16 to 64 letters and digits.
pub const NONCE_HEADER: &str = "belay-nonce";
/// Ed25519 over [`signed`], as base64 with padding.
pub const SIGNATURE_HEADER: &str = "belay-signature";
/// The fewest and the most characters of a nonce.
pub const NONCE_LENGTHS: std::ops::RangeInclusive<usize> = 16..=64;
/// How far the request's time may be from the operator's, in milliseconds.
pub const TIME_SLACK_MILLISECONDS: u64 = 60_000;

/// Where the export of a run is served, by the AgentRun's uid.
#[must_use]
pub fn export_path(run_uid: &str) -> String {
    format!("/v1/runs/{run_uid}/journal")
}

/// Where one of the run's artifacts is served.
#[must_use]
pub fn artifact_path(run_uid: &str, digest: Digest) -> String {
    format!("/v1/runs/{run_uid}/artifacts/{}", digest.short(64))
}

/// What is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// uid of the ReadGrant: another one of the same name has another key.
    pub grant_uid: &'a str,
    pub method: &'a str,
    /// As the operator sees it: without what a proxy put before it.
    pub path: &'a str,
    /// Milliseconds since the Unix epoch.
    pub at: i64,
    pub nonce: &'a str,
}

/// The bytes to sign. No part can hold a line's end, so that no two requests have the same bytes.
#[must_use]
pub fn signed(request: &Request<'_>) -> Vec<u8> {
    let Request { grant_uid, method, path, at, nonce } = request;
    format!("belay-read-v1\n{grant_uid}\n{method}\n{path}\n{at}\n{nonce}").into_bytes()
}
