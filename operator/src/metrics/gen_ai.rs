//! OpenTelemetry's GenAI metrics as Prometheus spells them, measured on the spans of runs. Labels are bounded: models are
//! those of the installation's Model objects, and beyond a number of them they are one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use belay_protocol::export::EffectOutcome;
use belay_protocol::plan::ModelApi;
use belay_protocol::trace::{ModelAsked, ModelOutcome, Span, What};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Pairs of provider and model that have labels of their own, and how many of them one namespace may bring: whoever names
/// models as they like takes no label from anybody else.
const MODELS_MAX: usize = 128;
const MODELS_OF_NAMESPACE_MAX: usize = 16;
const OTHER: &str = "other";
/// What no provider counts needs no name.
const SCRIPTED: &str = "scripted";
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
    known: Arc<Mutex<Known>>,
}

/// Pairs of provider and model with labels of their own.
#[derive(Default)]
struct Known {
    pairs: HashSet<(String, String)>,
    /// How many of them each namespace was the first to use.
    brought: HashMap<String, usize>,
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

    /// Counts a span that has ended, of a run in that namespace.
    pub fn observe(&self, namespace: &str, span: &Span) {
        let error_type = span.error().unwrap_or_default();
        match &span.what {
            What::Model(model) => {
                let (gen_ai_provider_name, gen_ai_request_model) = self.labels(namespace, &model.model);
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
    fn labels(&self, namespace: &str, model: &ModelAsked) -> (String, String) {
        if model.api == ModelApi::Scripted {
            return (SCRIPTED.to_owned(), SCRIPTED.to_owned());
        }
        let pair = (model.provider.clone(), model.id.clone());
        if self.known.lock().admits(namespace, &pair) { pair } else { (OTHER.to_owned(), OTHER.to_owned()) }
    }
}

impl Known {
    /// Whether the pair has labels of its own, from now on if there is room.
    fn admits(&mut self, namespace: &str, pair: &(String, String)) -> bool {
        if self.pairs.contains(pair) {
            return true;
        }
        if self.pairs.len() >= MODELS_MAX {
            return false;
        }
        let brought = self.brought.entry(namespace.to_owned()).or_default();
        let fits = *brought < MODELS_OF_NAMESPACE_MAX;
        if fits {
            *brought += 1;
            self.pairs.insert(pair.clone());
        }
        fits
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
        let api = ModelApi::Messages;
        let model = ModelAsked { name: "writer".into(), api, provider: "anthropic".into(), id: id.into() };
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
            metrics.observe("team", span);
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

    /// How many series count tokens, and how often the one of all others was counted.
    fn counted(metrics: &GenAi) -> (usize, u64) {
        let text = text(metrics);
        let other = "gen_ai_provider_name=\"other\",gen_ai_request_model=\"other\",gen_ai_token_type=\"input\"} ";
        let others = text.lines().filter(|line| line.starts_with("gen_ai_client_token_usage_count"));
        let others = others.filter_map(|line| line.split_once(other)).map(|(_, count)| count.parse::<u64>().unwrap());
        (text.matches("gen_ai_client_token_usage_count{").count(), others.sum())
    }

    #[test]
    fn a_namespace_brings_so_many_models_and_takes_no_label_from_another() {
        let metrics = GenAi::default();
        for number in 0..MODELS_OF_NAMESPACE_MAX + 50 {
            metrics.observe("loud", &asked(&format!("m-{number}"), responded()));
        }
        assert_eq!(counted(&metrics), (MODELS_OF_NAMESPACE_MAX + 1, 50));
        metrics.observe("quiet", &asked("mine", responded()));
        metrics.observe("loud", &asked("mine", responded()));
        assert_eq!(counted(&metrics), (MODELS_OF_NAMESPACE_MAX + 2, 50));
    }

    #[test]
    fn there_are_so_many_models_and_then_there_is_one_more() {
        let metrics = GenAi::default();
        for number in 0..MODELS_MAX + 50 {
            metrics.observe(&format!("n-{number}"), &asked(&format!("m-{number}"), responded()));
        }
        assert_eq!(counted(&metrics), (MODELS_MAX + 1, 50));
    }

    #[test]
    fn all_scripted_models_are_one() {
        let metrics = GenAi::default();
        for number in 0..=MODELS_MAX {
            let mut span = asked(&format!("m-{number}"), responded());
            let What::Model(model) = &mut span.what else { unreachable!() };
            (model.model.api, model.model.provider) = (ModelApi::Scripted, format!("p-{number}"));
            metrics.observe("team", &span);
        }
        assert_eq!(counted(&metrics), (1, 0));
        let scripted = "gen_ai_provider_name=\"scripted\",gen_ai_request_model=\"scripted\"";
        assert!(text(&metrics).contains(scripted), "{}", text(&metrics));
    }
}
