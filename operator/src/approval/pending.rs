//! What waits for people, as Prometheus is told: counted from the cache of Approvals whenever it asks.

use std::fmt;
use std::sync::{Arc, OnceLock};

use belay_crds::{Approval, ApprovalPurpose};
use jiff::Timestamp;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric as _};

use crate::clock::Clock;

/// `approvals_pending` and `approvals_oldest_pending_seconds`, for each purpose. Until this process leads it knows no
/// Approvals, and says nothing rather than 0. Cheap to clone.
#[derive(Clone, Default)]
pub struct PendingApprovals(Arc<OnceLock<Store<Approval>>>);

impl PendingApprovals {
    /// Counts what is in `store` from now on. The first store stays.
    pub fn follow(&self, store: Store<Approval>) {
        let _ = self.0.set(store);
    }
}

impl fmt::Debug for PendingApprovals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PendingApprovals").field(&self.0.get().is_some()).finish()
    }
}

impl Collector for PendingApprovals {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Some(store) = self.0.get() else { return Ok(()) };
        let pending = pending(&store.state(), Clock.now());
        let mut each = |name: &str, help: &str, value: fn(&Pending) -> i64| -> fmt::Result {
            let mut family = encoder.encode_descriptor(name, help, None, GAUGE)?;
            pending.iter().try_for_each(|one| gauge(family.encode_family(&one.label())?, value(one)))
        };
        each("approvals_pending", "Questions that wait for people, by purpose", |one| one.count)?;
        each("approvals_oldest_pending_seconds", "How long the oldest of them has waited; 0 where none does", |one| {
            one.oldest_seconds
        })
    }
}

const GAUGE: MetricType = ConstGauge::<i64>::TYPE;

fn gauge(encoder: MetricEncoder<'_>, value: i64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder)
}

/// How many questions of a kind are open, and for how long the oldest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    purpose: ApprovalPurpose,
    count: i64,
    oldest_seconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    purpose: &'static str,
}

impl Pending {
    fn label(&self) -> Asked {
        let purpose = match self.purpose {
            ApprovalPurpose::Call => "Call",
            ApprovalPurpose::Drift => "Drift",
            ApprovalPurpose::Unknown => "Unknown",
            ApprovalPurpose::Question => "Question",
        };
        Asked { purpose }
    }
}

/// One that is sealed or expired waits for nobody.
fn pending(approvals: &[Arc<Approval>], now: Timestamp) -> Vec<Pending> {
    let open = |approval: &&Arc<Approval>| !approval.is_sealed() && approval.spec.request.expires_at.0 > now;
    let age = |approval: &Arc<Approval>| {
        let made = approval.metadata.creation_timestamp.as_ref().map_or(now, |made| made.0);
        (now.as_second() - made.as_second()).max(0)
    };
    let of = |purpose: ApprovalPurpose| {
        let asked = approvals.iter().filter(|approval| approval.spec.request.purpose == purpose);
        let ages: Vec<i64> = asked.filter(open).map(age).collect();
        let count = i64::try_from(ages.len()).unwrap_or(i64::MAX);
        Pending { purpose, count, oldest_seconds: ages.into_iter().max().unwrap_or(0) }
    };
    [ApprovalPurpose::Call, ApprovalPurpose::Drift, ApprovalPurpose::Unknown, ApprovalPurpose::Question]
        .map(of)
        .to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use belay_crds::reason::RunReason;
    use belay_protocol::event::Outcome;
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use prometheus_client::encoding::text::encode;
    use serde_json::json;

    use super::*;
    use crate::metrics::{Metrics, samples};

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn approval(name: &str, purpose: &str, made: &str, expires: &str, sealed: bool) -> Approval {
        let object = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
            "metadata": {"name": name, "namespace": "team", "creationTimestamp": made},
            "spec": {"request": {
                "purpose": purpose, "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
                "operation": "delete_repo", "definition": "sha256:d", "arguments": "{}", "destination": "http://x/mcp",
                "callDigest": "sha256:c", "message": "?", "requirements": [{"policy": "default", "quorum": 1}],
                "requestedBy": "eve", "expiresAt": expires, "nonce": "n", "digest": "sha256:e",
            }},
            "status": {"sealed": sealed},
        });
        serde_json::from_value(object).unwrap()
    }

    const LATER: &str = "2036-11-24T00:00:00Z";

    #[test]
    fn what_is_open_is_counted_by_purpose_with_the_age_of_the_oldest() {
        let approvals = [
            approval("a", "Call", "2026-11-23T11:00:00Z", LATER, false),
            approval("b", "Call", "2026-11-23T11:59:00Z", LATER, false),
            approval("sealed", "Call", "2026-11-23T09:00:00Z", LATER, true),
            approval("expired", "Call", "2026-11-23T09:00:00Z", NOW, false),
            approval("ahead", "Unknown", "2026-11-23T12:00:05Z", LATER, false),
            approval("asked", "Question", "2026-11-23T11:59:00Z", LATER, false),
        ]
        .map(Arc::new);
        let expected = [
            Pending { purpose: ApprovalPurpose::Call, count: 2, oldest_seconds: 3600 },
            Pending { purpose: ApprovalPurpose::Drift, count: 0, oldest_seconds: 0 },
            Pending { purpose: ApprovalPurpose::Unknown, count: 1, oldest_seconds: 0 },
            Pending { purpose: ApprovalPurpose::Question, count: 1, oldest_seconds: 60 },
        ];
        assert_eq!(pending(&approvals, NOW.parse().unwrap()), expected);
    }

    #[test]
    fn nothing_is_said_before_there_is_a_cache_and_what_is_in_it_after() {
        let metrics = Metrics::default();
        let registry = metrics.registry();
        let told = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!told().contains("belay_approvals"), "{}", told());
        let mut writer = Writer::<Approval>::new(());
        metrics.approvals.follow(writer.as_reader());
        assert!(told().contains("belay_approvals_pending{purpose=\"Call\"} 0\n"), "{}", told());
        writer.apply_watcher_event(&Event::Apply(approval("a", "Call", "2026-11-23T11:00:00Z", LATER, false)));
        assert!(told().contains("belay_approvals_pending{purpose=\"Call\"} 1\n"), "{}", told());
        assert!(told().contains("belay_approvals_pending{purpose=\"Unknown\"} 0\n"), "{}", told());
        assert!(told().contains("# TYPE belay_approvals_oldest_pending_seconds gauge\n"), "{}", told());
    }

    #[test]
    fn ten_thousand_that_wait_are_counted_once_each() {
        let metrics = Metrics::default();
        let mut writer = Writer::<Approval>::new(());
        metrics.approvals.follow(writer.as_reader());
        let made = |sealed: bool| approval("q", "Call", "2026-11-23T11:00:00Z", LATER, sealed);
        let (open, sealed) = (made(false), made(true));
        for number in 0..10_000 {
            let mut one = if number % 10 == 0 { sealed.clone() } else { open.clone() };
            one.metadata.name = Some(format!("q{number}"));
            writer.apply_watcher_event(&Event::Apply(one));
        }
        let mut text = String::new();
        encode(&mut text, &metrics.registry()).unwrap();
        assert!(text.contains("belay_approvals_pending{purpose=\"Call\"} 9000\n"), "a tenth of them is sealed");
    }

    /// Every alert that is shipped asks for metrics that there are.
    #[test]
    fn alerts_ask_for_metrics_that_there_are() {
        let metrics = Metrics::default();
        let writer = Writer::<Approval>::new(());
        metrics.approvals.follow(writer.as_reader());
        // Without labels they are not there yet.
        metrics.run_ended(Outcome::Failed, RunReason::RunnerCrashed, None);
        for span in &samples() {
            metrics.gen_ai.observe("team", span);
        }
        let mut text = String::new();
        encode(&mut text, &metrics.registry()).unwrap();
        let known: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let rules = include_str!("../../../docs/prometheus/alerts.yaml");
        let parsed: serde_json::Value = serde_saphyr::from_str(rules).unwrap();
        let alerts = parsed["groups"][0]["rules"].as_array().unwrap();
        assert!(alerts.iter().any(|alert| alert["alert"] == "BelayApprovalsWaiting"));
        for alert in alerts {
            let words = alert["expr"].as_str().unwrap();
            let asked: Vec<&str> = (words.split(|c: char| !c.is_alphanumeric() && c != '_'))
                .filter(|word| word.starts_with("belay_") || word.starts_with("gen_ai_") && word.ends_with("_count"))
                .collect();
            assert!(!asked.is_empty(), "{alert}");
            for metric in asked {
                let family = metric.strip_suffix("_total").or(metric.strip_suffix("_count")).unwrap_or(metric);
                assert!(known.contains(&family), "{metric} of {} is none of {known:?}", alert["alert"]);
            }
            for field in ["summary", "description"] {
                assert!(alert["annotations"][field].is_string(), "{alert}");
            }
        }
    }
}
