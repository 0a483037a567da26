//! What Prometheus may know. Every label is an enum of ours, never an object's name; models alone go by their provider's.

mod gen_ai;

use std::sync::atomic::AtomicU64;

use belay_crds::reason::RunReason;
use belay_protocol::event::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use self::gen_ai::GenAi;
#[cfg(test)]
pub(crate) use self::gen_ai::tests::samples;
use crate::approval::PendingApprovals;

/// The kinds that this operator reconciles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Kind {
    Model,
    Credential,
    Tool,
    ApprovalPolicy,
    Agent,
    AgentRun,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "Model",
            Self::Credential => "Credential",
            Self::Tool => "Tool",
            Self::ApprovalPolicy => "ApprovalPolicy",
            Self::Agent => "Agent",
            Self::AgentRun => "AgentRun",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reconciled {
    kind: Kind,
    result: ReconcileResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReconcileResult {
    Done,
    Conflict,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lost {
    reason: SpanLoss,
}

/// Why a span did not reach the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum SpanLoss {
    /// The collector is slower than runs are.
    QueueFull,
    /// Nobody answered in time, however often.
    Unreachable,
    /// The collector did not take it.
    Refused,
    /// The operator stopped before.
    Stopped,
}

/// Cheap to clone: every metric is shared.
#[derive(Clone)]
pub struct Metrics {
    pub gen_ai: GenAi,
    spans_exported: Counter,
    spans_lost: Family<Lost, Counter>,
    reconciles: Family<Reconciled, Counter>,
    reconcile_seconds: Histogram,
    runs_ended: Family<Ended, Counter>,
    pub runs_active: Gauge,
    pub runs_waiting: Gauge,
    pub probes_started: Counter,
    pub probes_unanswered: Counter,
    pub watch_failures: Counter,
    pub token_reviews: Counter,
    /// 1 while decisions on Approvals are known to be checked.
    pub admission_guard_up: Gauge,
    pub approvals: PendingApprovals,
    cost: Counter<f64, AtomicU64>,
}

impl SpanLoss {
    const ALL: [Self; 4] = [Self::QueueFull, Self::Unreachable, Self::Refused, Self::Stopped];
}

impl Default for Metrics {
    fn default() -> Self {
        let spans_lost = Family::<Lost, Counter>::default();
        for reason in SpanLoss::ALL {
            // From 0, or the first loss would be no increase.
            drop(spans_lost.get_or_create(&Lost { reason }));
        }
        Self {
            gen_ai: GenAi::default(),
            spans_exported: Counter::default(),
            spans_lost,
            reconciles: Family::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.0005, 4.0, 8)),
            runs_ended: Family::default(),
            runs_active: Gauge::default(),
            runs_waiting: Gauge::default(),
            probes_started: Counter::default(),
            probes_unanswered: Counter::default(),
            watch_failures: Counter::default(),
            token_reviews: Counter::default(),
            admission_guard_up: Gauge::default(),
            approvals: PendingApprovals::default(),
            cost: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers everything: our own under the prefix `belay`, what OpenTelemetry has names for under those.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut whole = Registry::default();
        self.gen_ai.register(&mut whole);
        let registry = whole.sub_registry_with_prefix("belay");
        registry.register("reconciles", "Passes over objects by kind and result", self.reconciles.clone());
        registry.register("reconcile_seconds", "Duration of a pass", self.reconcile_seconds.clone());
        registry.register("runs_ended", "Runs that ended, by outcome and reason", self.runs_ended.clone());
        registry.register("runs_active", "Runs that hold a slot", self.runs_active.clone());
        registry.register("runs_waiting", "Runs that wait to start", self.runs_waiting.clone());
        registry.register("probes_started", "Probe pods created", self.probes_started.clone());
        registry.register("probes_unanswered", "Probe pods that reported nothing", self.probes_unanswered.clone());
        registry.register("watch_failures", "Failures of watches", self.watch_failures.clone());
        registry.register("token_reviews", "Tokens of pods that were reviewed", self.token_reviews.clone());
        registry.register(
            "admission_guard_up",
            "Whether decisions on Approvals are known to be checked: while 0, none is honoured",
            self.admission_guard_up.clone(),
        );
        registry.register_collector(Box::new(self.approvals.clone()));
        registry.register("run_cost_usd", "Cost of runs that ended, where prices are known", self.cost.clone());
        registry.register("spans_exported", "Spans that the collector took", self.spans_exported.clone());
        registry.register("spans_lost", "Spans that did not reach the collector, by reason", self.spans_lost.clone());
        whole
    }

    pub fn spans_exported(&self, spans: usize) {
        self.spans_exported.inc_by(spans as u64);
    }

    pub fn spans_lost(&self, reason: SpanLoss, spans: usize) {
        self.spans_lost.get_or_create(&Lost { reason }).inc_by(spans as u64);
    }

    pub fn reconciled(&self, kind: Kind, result: ReconcileResult, seconds: f64) {
        self.reconciles.get_or_create(&Reconciled { kind, result }).inc();
        self.reconcile_seconds.observe(seconds);
    }

    pub fn run_ended(&self, outcome: Outcome, reason: RunReason, micro_usd: Option<u64>) {
        let labels = Ended { outcome: outcome_word(outcome), reason: reason.as_str() };
        self.runs_ended.get_or_create(&labels).inc();
        if let Some(micro_usd) = micro_usd {
            #[allow(clippy::cast_precision_loss)] // a metric, not an account
            self.cost.inc_by(micro_usd as f64 / 1e6);
        }
    }
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "Succeeded",
        Outcome::Failed => "Failed",
        Outcome::Cancelled => "Cancelled",
    }
}
