//! What a run looks like from outside while it goes on: every append to the journal becomes spans, which are measured, and
//! exported where the installation named a collector. Nothing of a run ever waits for it.
//!
//! # Guarantees
//! It hears of an append once that is durable, in order. Ids follow from the journal, so that spans which are sent again
//! after a restart are the same spans. Why like this: docs/decisions/0016.
//!
//! # Caveats
//! What was queued when the process was killed is derived anew and sent again: spans that ended in the last ten minutes
//! before a run's newest record, of runs that go on and of those that ended just then. A collector may see a span twice. Where
//! the journal's disk failed and nobody knows whether a commit is in, its spans are missing until the next start.

mod collector;
mod exporter;
mod otlp;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use belay_protocol::chain::SealedRecord;
use belay_protocol::plan::ObjectId;
use belay_protocol::trace::{Content, Span, TraceId, Tracer};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::collector::{Collector, CollectorError};
pub use self::exporter::Exporter;
use crate::journal::{Audience, Journal, JournalError};
use crate::metrics::Metrics;

/// How far before a run's newest record spans are sent again, milliseconds: longer than a batch may be tried.
const AGAIN: i64 = 10 * 60 * 1000;
/// How many runs that ended lately are looked at again.
const ENDED_LATELY_MAX: usize = 256;

/// Turns records into spans. One for all runs.
pub struct Telemetry {
    metrics: Metrics,
    exporter: Option<Exporter>,
    content: Content,
    /// Runs that go on, by uid.
    tracers: Mutex<HashMap<String, Tracer>>,
}

impl Telemetry {
    /// Without an exporter spans are measured alone.
    #[must_use]
    pub fn new(metrics: Metrics, exporter: Option<Exporter>, content: Content) -> Self {
        Self { metrics, exporter, content, tracers: Mutex::default() }
    }

    /// Takes up runs where the journal stands, and listens from now on. Nothing may be appended meanwhile. What cannot be
    /// read is not traced, and keeps nobody from starting.
    pub async fn attend(self: Arc<Self>, journal: &Journal) {
        let mut runs = journal.open_runs().await.unwrap_or_else(untraced);
        if self.exporter.is_some() {
            runs.extend(lately(journal).await.unwrap_or_else(untraced));
        }
        for run in runs {
            self.take_up(journal, &run).await;
        }
        journal.tell(self);
    }

    async fn take_up(&self, journal: &Journal, run: &ObjectId) {
        let records = match journal.records(&run.uid, 1).await {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(namespace = run.namespace, name = run.name, %error, "a run is not traced");
                return;
            }
        };
        let mut tracer = Tracer::new(&run.uid, self.content);
        let since = records.last().map_or(0, |sealed| sealed.record.at).saturating_sub(AGAIN);
        for span in records.iter().flat_map(|sealed| tracer.take(&sealed.record)) {
            if span.end.is_some_and(|end| end >= since) {
                self.export(&run.uid, &span);
            }
        }
        if !tracer.is_over() {
            self.tracers.lock().insert(run.uid.clone(), tracer);
        }
    }

    fn export(&self, run_uid: &str, span: &Span) {
        if let Some(exporter) = &self.exporter {
            exporter.offer(TraceId::of(run_uid), span);
        }
    }
}

impl Audience for Telemetry {
    fn appended(&self, run: &ObjectId, records: &[SealedRecord]) {
        let mut tracers = self.tracers.lock();
        // After its end, and its pod's, there is nothing to trace of a run.
        if records.first().is_some_and(|sealed| sealed.record.seq == 1) {
            tracers.insert(run.uid.clone(), Tracer::new(&run.uid, self.content));
        }
        let Some(tracer) = tracers.get_mut(&run.uid) else { return };
        let spans: Vec<Span> = records.iter().flat_map(|sealed| tracer.take(&sealed.record)).collect();
        if tracer.is_over() {
            tracers.remove(&run.uid);
        }
        drop(tracers);
        for span in &spans {
            self.metrics.gen_ai.observe(&run.namespace, span);
            self.export(&run.uid, span);
        }
    }
}

/// What sends spans, where there is a collector.
pub struct Export {
    pub exporter: Option<Exporter>,
    sending: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Export {
    /// # Errors
    /// The collector's certificates cannot be read.
    pub fn begin(collector: Option<Collector>, metrics: &Metrics) -> Result<Self, CollectorError> {
        let stop = CancellationToken::new();
        let Some(collector) = collector else { return Ok(Self { exporter: None, sending: None, stop }) };
        tracing::info!(endpoint = %collector.endpoint, "spans are exported");
        let (exporter, sending) = Exporter::new(collector, metrics.clone())?;
        let sending = tokio::spawn(sending.run(stop.clone()));
        Ok(Self { exporter: Some(exporter), sending: Some(sending), stop })
    }

    /// Sends what is queued, for a moment. Once nothing is appended any more.
    pub async fn end(self) {
        self.stop.cancel();
        if let Some(sending) = self.sending {
            let _ = sending.await;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for unwrap_or_else")]
fn untraced(error: JournalError) -> Vec<ObjectId> {
    tracing::warn!(%error, "runs of before are not traced");
    Vec::new()
}

/// Runs that ended so short a time ago that their last spans may not have been sent.
async fn lately(journal: &Journal) -> Result<Vec<ObjectId>, JournalError> {
    let since = journal.now().saturating_sub(AGAIN);
    let mut ended = Vec::new();
    for run in journal.kept_runs().await?.into_iter().rev().take(ENDED_LATELY_MAX) {
        let head = match journal.run_head(&run.uid).await {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(namespace = run.namespace, name = run.name, %error, "a run is not traced");
                continue;
            }
        };
        if head.is_some_and(|head| head.ended && head.pod_name.is_none() && head.chain.at >= since) {
            ended.push(run);
        }
    }
    Ok(ended)
}
