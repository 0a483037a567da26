//! OpenTelemetry's GenAI metrics as Prometheus spells them, measured on the spans of runs. Labels are bounded: models are
//! those of the installation's Model objects, and beyond a number of them they are one.

use std::collections::HashSet;
use std::sync::Arc;

use belay_protocol::export::EffectOutcome;
use belay_protocol::trace::{ModelAsked, ModelOutcome, Span, What};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Pairs of provider and model that have labels of their own.
const MODELS_MAX: usize = 64;
const OTHER: &str = "other";
/// What OpenTelemetry advises.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const SECONDS: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "labels are OpenTelemetry's attributes")]
struct Tokens {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
    gen_ai_token_type: &'static str,
}

/// `error_type` is empty where it went well.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    gen_ai_operation_name: &'static str,
    gen_ai_provider_name: String,
    gen_ai_request_model: String,
    error_type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tool {
    gen_ai_operation_name: &'static str,
    error_type: String,
}

/// Cheap to clone: every metric is shared.
#[derive(Clone)]
pub struct GenAi {
    tokens: Family<Tokens, Histogram, fn() -> Histogram>,
    operations: Family<Operation, Histogram, fn() -> Histogram>,
    first_chunks: Family<Operation, Histogram, fn() -> Histogram>,
    tools: Family<Tool, Histogram, fn() -> Histogram>,
    known: Arc<Mutex<HashSet<(String, String)>>>,
}

impl Default for GenAi {
    fn default() -> Self {
        Self {
            tokens: Family::new_with_constructor(|| Histogram::new(TOKENS)),
            operations: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            first_chunks: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            tools: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            known: Arc::default(),
        }
    }
}

impl GenAi {
    /// Without a prefix: the names are OpenTelemetry's.
    pub(super) fn register(&self, registry: &mut Registry) {
        let tokens = "Tokens of one request to a model, as its provider counts them";
        registry.register("gen_ai_client_token_usage", tokens, self.tokens.clone());
        let seconds = "Duration of one request to a model";
        registry.register("gen_ai_client_operation_duration_seconds", seconds, self.operations.clone());
        let first = "Time until the first piece of an answer that came in pieces";
        let name = "gen_ai_client_operation_time_to_first_chunk_seconds";
        registry.register(name, first, self.first_chunks.clone());
        registry.register("gen_ai_execute_tool_duration_seconds", "Duration of one call of a tool", self.tools.clone());
    }

    /// Counts a span that has ended.
    pub fn observe(&self, span: &Span) {
        let error_type = span.error().unwrap_or_default();
        match &span.what {
            What::Model(model) => {
                let (gen_ai_provider_name, gen_ai_request_model) = self.labels(&model.model);
                let mut milliseconds = span.took();
                if let Some(ModelOutcome::Responded { usage, milliseconds: measured, .. }) = &model.outcome {
                    milliseconds = Some(*measured);
                    for (kind, tokens) in [("input", usage.input_tokens), ("output", usage.output_tokens)] {
                        let Some(tokens) = tokens else { continue };
                        let labels = Tokens {
                            gen_ai_operation_name: "chat",
                            gen_ai_provider_name: gen_ai_provider_name.clone(),
                            gen_ai_request_model: gen_ai_request_model.clone(),
                            gen_ai_token_type: kind,
                        };
                        #[allow(clippy::cast_precision_loss)] // a metric, not an account
                        self.tokens.get_or_create(&labels).observe(tokens as f64);
                    }
                }
                let labels =
                    Operation { gen_ai_operation_name: "chat", gen_ai_provider_name, gen_ai_request_model, error_type };
                self.operations.get_or_create(&labels).observe(seconds(milliseconds));
                if let Some(first) = model.first_chunk_milliseconds() {
                    self.first_chunks.get_or_create(&labels).observe(seconds(Some(first)));
                }
            }
            What::Call(call) if was_executed(call.outcome) => {
                let labels = Tool { gen_ai_operation_name: "execute_tool", error_type };
                self.tools.get_or_create(&labels).observe(seconds(call.milliseconds.or(span.took())));
            }
            What::Call(_)
            | What::Run(_)
            | What::Rest(_)
            | What::Epoch(_)
            | What::PodStart(_)
            | What::Decision(_)
            | What::Ask(_) => {}
        }
    }

    /// Provider and model, while they are few.
    fn labels(&self, model: &ModelAsked) -> (String, String) {
        let pair = (model.provider.clone(), model.id.clone());
        let mut known = self.known.lock();
        if known.contains(&pair) || (known.len() < MODELS_MAX && known.insert(pair.clone())) {
            return pair;
        }
        (OTHER.to_owned(), OTHER.to_owned())
    }
}

/// Whether anything may have reached the tool.
fn was_executed(outcome: EffectOutcome) -> bool {
    match outcome {
        EffectOutcome::Observed
        | EffectOutcome::ObservedError
        | EffectOutcome::Unknown
        | EffectOutcome::Interrupted
        | EffectOutcome::Reported
        | EffectOutcome::InputRequired => true,
        EffectOutcome::UnderWay | EffectOutcome::Denied | EffectOutcome::NotSent(_) | EffectOutcome::Returned => false,
    }
}

fn seconds(milliseconds: Option<u64>) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a metric, not an account
    let seconds = milliseconds.unwrap_or(0) as f64 / 1000.0;
    seconds
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_protocol::cost::Usage;
    use belay_protocol::event::{FailureReason, Finish};
    use belay_protocol::trace::{CallName, CallSpan, ModelSpan, SpanId};
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn span(what: What) -> Span {
        Span { id: SpanId::of("u", "x", 1), parent: None, began: 1, start: 1000, end: Some(3500), what }
    }

    fn asked(id: &str, outcome: ModelOutcome) -> Span {
        let model = ModelAsked { name: "writer".into(), provider: "anthropic".into(), id: id.into() };
        span(What::Model(Box::new(ModelSpan { step: 1, attempt: 1, model, outcome: Some(outcome) })))
    }

    fn responded() -> ModelOutcome {
        ModelOutcome::Responded {
            finish: Finish::Stop,
            usage: Usage { input_tokens: Some(100), ..Usage::default() },
            cost: None,
            milliseconds: 2000,
            first_chunk_milliseconds: Some(320),
            response_id: None,
            model: None,
            output: None,
        }
    }

    fn called(outcome: EffectOutcome) -> Span {
        let call = CallName { call_id: "c1".into(), attempt: 1, tool: "files".into(), operation: "read".into() };
        let effects = belay_protocol::plan::Effects::None;
        let (milliseconds, arguments, result, child) = (Some(40), None, None, None);
        span(What::Call(Box::new(CallSpan { call, effects, outcome, milliseconds, arguments, result, child })))
    }

    /// A request that was answered, one that was not, and calls that did, may have, and did not reach their tool.
    pub(crate) fn samples() -> Vec<Span> {
        let failed = ModelOutcome::Failed { reason: FailureReason::RateLimited, message: "secret".into() };
        let calls = [EffectOutcome::Observed, EffectOutcome::Unknown, EffectOutcome::Returned].map(called);
        [asked("m-5", responded()), asked("m-5", failed)].into_iter().chain(calls).collect()
    }

    fn text(metrics: &GenAi) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn requests_and_calls_are_measured_under_opentelemetrys_names() {
        let metrics = GenAi::default();
        for span in &samples() {
            metrics.observe(span);
        }
        let text = text(&metrics);
        let model = "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"anthropic\",gen_ai_request_model=\"m-5\"";
        let tool = "gen_ai_execute_tool_duration_seconds";
        for line in [
            format!("gen_ai_client_token_usage_sum{{{model},gen_ai_token_type=\"input\"}} 100.0"),
            format!("gen_ai_client_operation_duration_seconds_sum{{{model},error_type=\"\"}} 2.0"),
            format!("gen_ai_client_operation_duration_seconds_sum{{{model},error_type=\"RateLimited\"}} 2.5"),
            format!("gen_ai_client_operation_time_to_first_chunk_seconds_sum{{{model},error_type=\"\"}} 0.32"),
            format!("gen_ai_client_operation_time_to_first_chunk_seconds_count{{{model},error_type=\"\"}} 1"),
            format!("{tool}_sum{{gen_ai_operation_name=\"execute_tool\",error_type=\"\"}} 0.04"),
            format!("{tool}_count{{gen_ai_operation_name=\"execute_tool\",error_type=\"Unknown\"}} 1"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        // Neither what was not counted nor what never left, nor anybody's name.
        for word in ["\"output\"", "Returned", "files", "secret"] {
            assert!(!text.contains(word), "{word}\n{text}");
        }
    }

    #[test]
    fn there_are_so_many_models_and_then_there_is_one_more() {
        let metrics = GenAi::default();
        for number in 0..MODELS_MAX + 50 {
            metrics.observe(&asked(&format!("m-{number}"), responded()));
        }
        let text = text(&metrics);
        assert_eq!(text.matches("gen_ai_client_token_usage_count{").count(), MODELS_MAX + 1);
        let other = "gen_ai_provider_name=\"other\",gen_ai_request_model=\"other\",gen_ai_token_type=\"input\"} 50";
        assert!(text.contains(other), "{text}");
    }
}
