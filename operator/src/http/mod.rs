//! Health, readiness and metrics over plain HTTP, which say nothing of tenants' objects; and what readers of a run prove
//! by a key that they may see.

mod journal;
#[cfg(test)]
mod journal_tests;

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::RwLock;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::read_grant::Readers;
use crate::watches::Pulses;

/// How far the process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Another process may lead: nothing is served, watched or written.
    #[default]
    NotLeading,
    /// Certificate and journal are being opened.
    Starting,
    /// Runners are served.
    Serving,
}

/// The stage, for who waits for it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Stages(Arc<RwLock<Stage>>);

impl Stages {
    pub fn reach(&self, stage: Stage) {
        *self.0.write() = stage;
    }

    fn reached(&self) -> Stage {
        *self.0.read()
    }
}

/// Who answers readers of the journal: nobody before the journal is open. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reading(Arc<OnceLock<Readers>>);

impl Reading {
    /// From then on, `readers` answers.
    pub fn open(&self, readers: Readers) {
        // A process leads once: what was opened stays.
        let _ = self.0.set(readers);
    }

    fn get(&self) -> Option<&Readers> {
        self.0.get()
    }
}

/// What is served.
#[derive(Clone)]
pub struct Page {
    pub pulses: Pulses,
    pub stages: Stages,
    pub registry: Arc<Registry>,
    pub readers: Reading,
}

/// Serves until `shutdown`.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, page: Page, shutdown: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(page)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn router(page: Page) -> Router {
    Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/runs/{uid}/journal", get(journal::export))
        .route("/v1/runs/{uid}/artifacts/{digest}", get(journal::artifact))
        .with_state(page)
}

/// Live while no watch has failed for too long: a restart gets new connections and caches.
async fn live(State(page): State<Page>) -> (StatusCode, String) {
    let dead = page.pulses.dead(Instant::now());
    if dead.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("watches that fail for too long: {}\n", dead.join(", ")))
}

/// Ready once this process leads, runners are served and every watch has listed what is there.
async fn ready(State(page): State<Page>) -> (StatusCode, String) {
    let waits = |words: &str| (StatusCode::SERVICE_UNAVAILABLE, words.to_owned());
    match page.stages.reached() {
        Stage::NotLeading => return waits("not the leader: waiting for the Lease belay-operator\n"),
        Stage::Starting => return waits("starting: journal, certificate\n"),
        Stage::Serving => {}
    }
    let behind = page.pulses.behind();
    if behind.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("watches that have not listed yet: {}\n", behind.join(", ")))
}

async fn metrics(State(page): State<Page>) -> impl IntoResponse {
    let mut text = String::new();
    if encode(&mut text, &page.registry).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new());
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn page() -> Page {
        Page {
            pulses: Pulses::default(),
            stages: Stages::default(),
            registry: Arc::new(Metrics::default().registry()),
            readers: Reading::default(),
        }
    }

    #[tokio::test]
    async fn it_is_live_before_it_is_ready() {
        let page = page();
        assert_eq!(live(State(page.clone())).await.0, StatusCode::OK);
        for (stage, word) in [(Stage::NotLeading, "not the leader"), (Stage::Starting, "starting")] {
            page.stages.reach(stage);
            let (status, words) = ready(State(page.clone())).await;
            assert!(status == StatusCode::SERVICE_UNAVAILABLE && words.starts_with(word), "{words}");
        }
        page.stages.reach(Stage::Serving);
        assert_eq!(ready(State(page)).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_name_their_kind_and_carry_the_prefix() {
        let answer = metrics(State(page())).await.into_response();
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok().map(str::to_owned));
        assert!(kind.is_some_and(|kind| kind.starts_with("application/openmetrics-text")));
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap_or_default();
        assert!(String::from_utf8_lossy(&body).contains("# HELP belay_runs_active"));
    }
}
