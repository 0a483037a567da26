//! Sends spans to a collector: OTLP over HTTP, in batches, from a queue of bounded size. What finds no room is counted and
//! gone.

use std::sync::Arc;
use std::time::Duration;

use belay_protocol::trace::{Span as TracedSpan, TraceId};
use prost::Message as _;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, CollectorError, HeadersError};
use super::otlp::{ExportTraceServiceResponse, Span, request, span};
use crate::metrics::{Metrics, SpanLoss};

/// What spans that wait may take, in bytes as they are sent.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// The most of one request.
const BATCH_SPANS: usize = 512;
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long the first span of a batch waits for more.
const GATHER: Duration = Duration::from_secs(1);
/// How often a batch is tried, and how long between: doubled each time, or what the collector asks for.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// What is sent yet once the operator stops; others may lead soon.
const LAST: Duration = Duration::from_secs(2);
/// More of an answer than its few numbers is not read.
const ANSWER_BYTES: usize = 64 * 1024;

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Headers(#[from] HeadersError),
    #[error("{0}")]
    Unreachable(String),
    #[error("the collector answered {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
}

impl SendError {
    /// Whether the same may arrive later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Headers(_) | Self::Unreachable(_) => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Headers(_) | Self::Unreachable(_) => None,
        }
    }

    fn loss(&self) -> SpanLoss {
        match self {
            Self::Headers(_) | Self::Unreachable(_) => SpanLoss::Unreachable,
            Self::Status { .. } => SpanLoss::Refused,
        }
    }
}

/// The queue's inlet. Cheap to clone; it never waits.
#[derive(Clone)]
pub struct Exporter {
    queue: mpsc::UnboundedSender<Queued>,
    /// In bytes: what bounds the queue.
    room: Arc<Semaphore>,
    metrics: Metrics,
}

/// The queue's outlet: what sends until it is told to stop.
pub struct Sending {
    queue: mpsc::UnboundedReceiver<Queued>,
    client: Client,
    url: Url,
    collector: Collector,
    metrics: Metrics,
}

struct Queued {
    span: Span,
    bytes: usize,
    _room: OwnedSemaphorePermit,
}

impl Exporter {
    /// An inlet, and what has to be driven for anything to be sent.
    ///
    /// # Errors
    /// The collector's certificates cannot be read.
    pub fn new(collector: Collector, metrics: Metrics) -> Result<(Self, Sending), CollectorError> {
        let client = collector.client()?;
        let mut url = collector.endpoint.clone();
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
        let (sender, queue) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        let exporter = Self { queue: sender, room, metrics: metrics.clone() };
        Ok((exporter, Sending { queue, client, url, collector, metrics }))
    }

    /// Queues a span that has ended, if there is room.
    pub fn offer(&self, trace: TraceId, traced: &TracedSpan) {
        let Some(span) = span(trace, traced) else { return };
        let bytes = span.encoded_len();
        let room =
            u32::try_from(bytes).ok().and_then(|bytes| Arc::clone(&self.room).try_acquire_many_owned(bytes).ok());
        let Some(room) = room else { return self.metrics.spans_lost(SpanLoss::QueueFull, 1) };
        if self.queue.send(Queued { span, bytes, _room: room }).is_err() {
            self.metrics.spans_lost(SpanLoss::Stopped, 1);
        }
    }
}

impl Sending {
    /// Sends until `stop`; then what is queued, for a moment.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(Some(first)) = stop.run_until_cancelled(self.queue.recv()).await {
            let batch = self.gather(first, &stop).await;
            self.deliver(batch, &stop).await;
        }
        let until = Instant::now() + LAST;
        self.queue.close();
        while let Ok(first) = self.queue.try_recv() {
            let batch = self.fill(vec![first]);
            let spans = batch.len();
            match tokio::time::timeout_at(until, self.send(&batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => self.metrics.spans_lost(SpanLoss::Stopped, spans),
            }
        }
    }

    /// What comes within a moment.
    async fn gather(&mut self, first: Queued, stop: &CancellationToken) -> Vec<Queued> {
        let mut batch = self.fill(vec![first]);
        let until = Instant::now() + GATHER;
        while !is_full(&batch) {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(until) => break,
                next = self.queue.recv() => match next {
                    Some(next) => batch.push(next),
                    None => break,
                },
            }
        }
        batch
    }

    /// What is queued already.
    fn fill(&mut self, mut batch: Vec<Queued>) -> Vec<Queued> {
        while !is_full(&batch)
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        batch
    }

    /// Tries a batch a bounded number of times. Meanwhile the queue fills, and nobody waits.
    async fn deliver(&self, batch: Vec<Queued>, stop: &CancellationToken) {
        let mut wait = FIRST_WAIT;
        for attempt in 1..=TRIES {
            let Err(error) = self.send(&batch).await else { return };
            if attempt == TRIES || !error.is_transient() {
                tracing::warn!(%error, spans = batch.len(), "spans are lost");
                return self.metrics.spans_lost(error.loss(), batch.len());
            }
            tracing::debug!(%error, attempt, "spans are sent again");
            let pause = error.retry_after().unwrap_or(wait).min(WAIT_MAX);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return self.metrics.spans_lost(SpanLoss::Stopped, batch.len());
            }
            wait = wait.saturating_mul(2);
        }
    }

    async fn send(&self, batch: &[Queued]) -> Result<(), SendError> {
        let body = request(&self.collector.resource, batch.iter().map(|queued| queued.span.clone()).collect());
        let unreachable = |error: reqwest::Error| SendError::Unreachable(words(&error));
        let post = self.client.post(self.url.clone()).headers(self.collector.headers().await?);
        let post = post.header(CONTENT_TYPE, "application/x-protobuf").body(body);
        let answer = post.send().await.map_err(unreachable)?;
        if !answer.status().is_success() {
            return Err(SendError::Status { status: answer.status(), retry_after: retry_after(&answer) });
        }
        let rejected = rejected(answer).await.min(batch.len());
        if rejected > 0 {
            self.metrics.spans_lost(SpanLoss::Refused, rejected);
        }
        self.metrics.spans_exported(batch.len() - rejected);
        Ok(())
    }
}

fn is_full(batch: &[Queued]) -> bool {
    batch.len() >= BATCH_SPANS || batch.iter().map(|queued| queued.bytes).sum::<usize>() >= BATCH_BYTES
}

/// In seconds; a date is not worth a parser.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// How many spans the collector says it did not take. An answer that cannot be read says nothing.
async fn rejected(mut answer: Response) -> usize {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES {
            return 0;
        }
    }
    let said = ExportTraceServiceResponse::decode(body.as_slice()).unwrap_or_default();
    said.partial_success.and_then(|partial| usize::try_from(partial.rejected_spans).ok()).unwrap_or(0)
}

/// The error with its causes; the URL is the installation's own.
fn words(error: &reqwest::Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}
