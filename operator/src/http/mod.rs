//! Health, readiness and metrics over plain HTTP. Says nothing of tenants' objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::watches::Pulses;

/// What the process has got ready besides its watches. Cheap to clone.
#[derive(Clone, Default)]
pub struct Started(Arc<AtomicBool>);

impl Started {
    /// The journal is open, the certificate loaded, and runners are served.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Clone)]
struct Page {
    pulses: Pulses,
    started: Started,
    registry: Arc<Registry>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    pulses: Pulses,
    started: Started,
    registry: Registry,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let page = Page { pulses, started, registry: Arc::new(registry) };
    axum::serve(listener, router(page)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn router(page: Page) -> Router {
    Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
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

/// Ready once runners are served and every watch has listed what is there.
async fn ready(State(page): State<Page>) -> (StatusCode, String) {
    if !page.started.is_set() {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting: journal, certificate\n".to_owned());
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
            started: Started::default(),
            registry: Arc::new(Metrics::default().registry()),
        }
    }

    #[tokio::test]
    async fn it_is_live_before_it_is_ready() {
        let page = page();
        assert_eq!(live(State(page.clone())).await.0, StatusCode::OK);
        assert_eq!(ready(State(page.clone())).await.0, StatusCode::SERVICE_UNAVAILABLE);
        page.started.set();
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
