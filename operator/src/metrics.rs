//! What Prometheus may know. Every label is an enum of ours, never an object's name.

use std::sync::atomic::AtomicU64;

use belay_crds::reason::RunReason;
use belay_protocol::event::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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

/// Cheap to clone: every metric is shared.
#[derive(Clone)]
pub struct Metrics {
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

impl Default for Metrics {
    fn default() -> Self {
        Self {
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
    /// Registers everything under the prefix `belay`.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("belay");
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
        registry
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
