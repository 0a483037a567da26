//! For machines: spans as they are exported, with ids and attributes.

use std::collections::BTreeMap;

use belay_crds::visible_json;
use belay_protocol::plan::ObjectId;
use belay_protocol::trace::{Span, TraceId, Value};
use jiff::Timestamp;
use serde::Serialize;

use super::Trace;
use super::totals::{Totals, totals};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    run: &'a ObjectId,
    trace_id: String,
    /// Time of the newest record.
    as_of: String,
    spans: Vec<Row>,
    totals: Totals,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    name: String,
    started_at: String,
    /// Absent: it is still open.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<u64>,
    attributes: BTreeMap<&'static str, Value>,
}

pub fn render(trace: &Trace) -> String {
    let document = Document {
        run: &trace.run,
        trace_id: TraceId::of(&trace.run.uid).to_string(),
        as_of: time(trace.as_of),
        spans: trace.spans.iter().map(row).collect(),
        totals: totals(trace),
    };
    // Strings and numbers under fixed names: there is nothing in it that JSON does not take.
    visible_json(&serde_json::to_string_pretty(&document).unwrap_or_default())
}

fn row(span: &Span) -> Row {
    Row {
        span_id: span.id.to_string(),
        parent_span_id: span.parent.map(|parent| parent.to_string()),
        name: span.name(),
        started_at: time(span.start),
        ended_at: span.end.map(time),
        milliseconds: span.took(),
        attributes: span.attributes().into_iter().map(|attribute| (attribute.key, attribute.value)).collect(),
    }
}

fn time(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| milliseconds.to_string(), |at| format!("{at:.3}"))
}
