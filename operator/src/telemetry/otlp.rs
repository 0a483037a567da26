//! Spans as OpenTelemetry's protocol encodes them: the part of `opentelemetry/proto/trace/v1/trace.proto` (1.x, stable)
//! that a span of ours needs. By hand, because the crates for it bring an SDK that makes its own ids and takes its own
//! times.

use belay_protocol::trace::{Attribute, Span as TracedSpan, TraceId, Value as TracedValue, What, seconds};
use prost::{Message, Oneof};

/// Name and version of what made the spans.
const SCOPE: &str = "belay";
const NANOSECONDS: u64 = 1_000_000;

#[derive(Clone, PartialEq, Message)]
pub struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExportTraceServiceResponse {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
#[expect(clippy::struct_field_names, reason = "fields are named as in the protocol")]
pub struct Span {
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    pub name: String,
    #[prost(enumeration = "SpanKind", tag = "6")]
    pub kind: i32,
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SpanKind {
    Unspecified = 0,
    Internal = 1,
    Client = 3,
}

#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(enumeration = "StatusCode", tag = "3")]
    pub code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum StatusCode {
    Unset = 0,
    Error = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    pub value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(int64, tag = "3")]
    Number(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    List(ListValue),
}

#[derive(Clone, PartialEq, Message)]
pub struct ListValue {
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<AnyValue>,
}

/// A span that has ended. None: it is still open.
#[must_use]
pub fn span(trace: TraceId, span: &TracedSpan) -> Option<Span> {
    let end = span.end?;
    let error = span.error();
    Some(Span {
        trace_id: trace.as_bytes().to_vec(),
        span_id: span.id.as_bytes().to_vec(),
        parent_span_id: span.parent.map(|parent| parent.as_bytes().to_vec()).unwrap_or_default(),
        name: span.name(),
        kind: kind(&span.what).into(),
        start_time_unix_nano: nanoseconds(span.start),
        end_time_unix_nano: nanoseconds(end),
        attributes: span.attributes().into_iter().map(attribute).collect(),
        status: error.map(|message| Status { message, code: StatusCode::Error.into() }),
    })
}

/// What is sent: these spans, of one process.
#[must_use]
pub fn request(resource: &[(String, String)], spans: Vec<Span>) -> Vec<u8> {
    let attributes = resource.iter().map(|(key, value)| text(key, value.clone())).collect();
    let scope = Scope { name: SCOPE.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn kind(what: &What) -> SpanKind {
    match what {
        What::Model(_) => SpanKind::Client,
        What::Run(_)
        | What::Rest(_)
        | What::Epoch(_)
        | What::PodStart(_)
        | What::Decision(_)
        | What::Ask(_)
        | What::Call(_) => SpanKind::Internal,
    }
}

fn nanoseconds(milliseconds: i64) -> u64 {
    u64::try_from(milliseconds).unwrap_or(0).saturating_mul(NANOSECONDS)
}

fn attribute(attribute: Attribute) -> KeyValue {
    let any = |value| AnyValue { value: Some(value) };
    let value = match attribute.value {
        TracedValue::Text(text) => Value::Text(text),
        TracedValue::Flag(flag) => Value::Flag(flag),
        TracedValue::Number(number) => Value::Number(i64::try_from(number).unwrap_or(i64::MAX)),
        TracedValue::Milliseconds(milliseconds) => Value::Double(seconds(milliseconds)),
        TracedValue::Texts(texts) => {
            Value::List(ListValue { values: texts.into_iter().map(|text| any(Value::Text(text))).collect() })
        }
    };
    KeyValue { key: attribute.key.to_owned(), value: Some(any(value)) }
}

fn text(key: &str, value: String) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::Text(value)) }) }
}
