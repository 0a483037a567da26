//! A run as spans, a pure function of its records: the operator exports them as they end, `belay trace` draws them. Knows
//! no exporter and no terminal; names are OpenTelemetry's where it has some.
//!
//! # Guarantees
//! Ids follow from the run's uid and a record's number alone. Whoever derives a span twice, after a restart or in another
//! program, comes to the same one, and all epochs of a run are one trace.

mod attributes;
mod content;
mod id;
mod span;
#[cfg(test)]
mod tests;
mod tracer;

pub use self::attributes::{Attribute, Value, seconds};
pub use self::content::Content;
pub use self::id::{SpanId, TraceId};
pub use self::span::{
    AskSpan, CallName, CallSpan, Decided, DecisionSpan, EpochSpan, ModelAsked, ModelOutcome, ModelSpan, PodStartSpan,
    RestSpan, RunSpan, Span, What,
};
pub use self::tracer::Tracer;

use crate::event::Record;

/// Every span of a run, those that are still open included, in the order in which they began.
#[must_use]
pub fn spans<'a>(run_uid: &str, records: impl IntoIterator<Item = &'a Record>) -> Vec<Span> {
    let mut tracer = Tracer::new(run_uid, Content::Left);
    let mut spans: Vec<Span> = records.into_iter().flat_map(|record| tracer.take(record)).collect();
    spans.extend(tracer.open());
    spans.sort_by_key(|span| (span.start, span.began, span.depth()));
    spans
}
