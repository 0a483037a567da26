//! The endpoint as a reader meets it: a router, a journal, a played API server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use belay_crds::ReadGrant;
use belay_protocol::reading::{
    GRANT_HEADER, NONCE_HEADER, Request, SIGNATURE_HEADER, TIME_HEADER, artifact_path, export_path, signed,
};
use belay_protocol::{Digest, export};
use jiff::Timestamp;
use serde_json::json;
use tower::ServiceExt as _;

use super::*;
use crate::guard::tests::Stage as Guarded;
use crate::journal::Journal;
use crate::journal::fixture::write_runs;
use crate::metrics::Metrics;
use crate::read_grant::{Grants, Readers};

/// One grant, for run `ns/done`.
struct One(ReadGrant);

#[async_trait]
impl Grants for One {
    async fn fetch(&self, namespace: &str, name: &str) -> Result<Option<ReadGrant>, kube::Error> {
        Ok((namespace == "ns" && name == "read-x").then(|| self.0.clone()))
    }
}

struct Stage {
    router: Router,
    key: Ed25519KeyPair,
    journal: Journal,
    guarded: Guarded,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db")).await.unwrap();
        write_runs(&journal).await;
        let key = Ed25519KeyPair::generate().unwrap();
        let guarded = Guarded::up(&[]).await;
        let made = Timestamp::now() + jiff::SignedDuration::from_secs(1);
        let grant = serde_json::from_value(json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "ReadGrant",
            "metadata": {"name": "read-x", "namespace": "ns", "uid": "grant-uid", "creationTimestamp": made.to_string()},
            "spec": {"runRef": {"name": "done"}, "purpose": "JournalExport", "by": "ada",
                "publicKey": STANDARD.encode(key.public_key().as_ref()), "validSeconds": 60},
        }));
        let page = Page {
            pulses: Pulses::default(),
            stages: Stages::default(),
            registry: Arc::new(Metrics::default().registry()),
            readers: Reading::default(),
        };
        let grants = Arc::new(One(grant.unwrap()));
        page.readers.open(Readers::new(grants, journal.clone(), guarded.guard.clone()));
        Self { router: router(page), key, journal, guarded, _folder: folder }
    }

    async fn read(&self, run_uid: &str, grant: &str, nonce: &str) -> (StatusCode, Vec<u8>) {
        let path = export_path(run_uid);
        self.get(&path, &path, grant, nonce).await
    }

    /// Asks for `path` with the signature over another, or the same.
    async fn get(&self, path: &str, signed_path: &str, grant: &str, nonce: &str) -> (StatusCode, Vec<u8>) {
        let at = Timestamp::now().as_millisecond();
        let request = Request { grant_uid: "grant-uid", method: "GET", path: signed_path, at, nonce };
        let request = HttpRequest::get(path)
            .header(GRANT_HEADER, grant)
            .header(TIME_HEADER, at)
            .header(NONCE_HEADER, nonce)
            .header(SIGNATURE_HEADER, STANDARD.encode(self.key.sign(&signed(&request))))
            .body(Body::empty());
        self.send(request.unwrap()).await
    }

    async fn send(&self, request: HttpRequest<Body>) -> (StatusCode, Vec<u8>) {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        (status, axum::body::to_bytes(answer.into_body(), 1 << 24).await.unwrap().to_vec())
    }
}

const NONCE: &str = "0123456789abcdef";

#[tokio::test]
async fn a_granted_reader_gets_the_whole_run_once_for_each_nonce_and_it_verifies() {
    let stage = Stage::new().await;
    let uid = "done-uid";
    let (status, file) = stage.read(uid, "ns/read-x", NONCE).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&file));
    let verified = export::verify(&file).unwrap();
    assert_eq!((verified.header.run.uid.as_str(), verified.header.journal.as_str()), (uid, stage.journal.id()));
    assert_eq!(Some(verified.head.hash), stage.journal.head(uid).await.unwrap().map(|head| head.hash));
    let (status, words) = stage.read(uid, "ns/read-x", NONCE).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(String::from_utf8(words).unwrap().starts_with("this request was answered already"));
}

#[tokio::test]
async fn another_run_and_another_grant_are_refused() {
    let stage = Stage::new().await;
    let (status, words) = stage.read("unknown-uid", "ns/read-x", NONCE).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(String::from_utf8(words).unwrap().contains("is for run ns/done"));
    assert_eq!(stage.read("done-uid", "ns/read-y", NONCE).await.0, StatusCode::FORBIDDEN);
    assert_eq!(stage.read("done-uid", "../read-x", NONCE).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(stage.read("nothing", "ns/read-x", NONCE).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nothing_is_read_without_a_grant_or_while_the_guard_is_down() {
    let stage = Stage::new().await;
    let bare = HttpRequest::get(export_path("done-uid")).body(Body::empty()).unwrap();
    assert_eq!(stage.send(bare).await.0, StatusCode::BAD_REQUEST);
    stage.guarded.take_away_a_rule().await;
    let (status, words) = stage.read("done-uid", "ns/read-x", NONCE).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{}", String::from_utf8_lossy(&words));
}

#[tokio::test]
async fn an_artifact_is_read_under_the_grant_of_its_run_as_bytes_that_nothing_shows() {
    let stage = Stage::new().await;
    let digest = Digest::of(b"<script>");
    stage.journal.artifacts().keep("done-uid", digest, b"<script>".to_vec()).await.unwrap();
    let path = artifact_path("done-uid", digest);
    let (status, bytes) = stage.get(&path, &path, "ns/read-x", NONCE).await;
    assert_eq!((status, bytes.as_slice()), (StatusCode::OK, &b"<script>"[..]));
    let other = artifact_path("done-uid", Digest::of(b"other"));
    let nonce = "0123456789abcdeg";
    assert_eq!(stage.get(&path, &other, "ns/read-x", nonce).await.0, StatusCode::FORBIDDEN, "signed for another");
    assert_eq!(stage.get(&path, &export_path("done-uid"), "ns/read-x", nonce).await.0, StatusCode::FORBIDDEN);
    assert_eq!(stage.get(&other, &other, "ns/read-x", nonce).await.0, StatusCode::NOT_FOUND);
    let elsewhere = artifact_path("unknown-uid", digest);
    assert_eq!(stage.get(&elsewhere, &elsewhere, "ns/read-x", nonce).await.0, StatusCode::FORBIDDEN);
    let nonsense = "/v1/runs/done-uid/artifacts/..%2Fjournal.db";
    assert_eq!(stage.get(nonsense, nonsense, "ns/read-x", nonce).await.0, StatusCode::BAD_REQUEST);
}
