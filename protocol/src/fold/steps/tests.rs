#![allow(clippy::unwrap_used)]
use serde_json::json;

use crate::Record;
use crate::cost::{Cost, Usage};
use crate::digest::{Digest, canonical};
use crate::event::{Event, Failure, FailureReason};
use crate::fold::{Presumed, RunState};
use crate::plan::Plan;

/// Input at 1 and output at 3 micro-USD a token.
fn plan() -> Plan {
    serde_json::from_value(json!({
        "version": 1, "run": {"namespace": "team", "name": "run", "uid": "run-uid"},
        "agent": {"namespace": "team", "name": "lead", "uid": "agent-uid"}, "agentGeneration": 1, "input": "go",
        "model": {"name": "m", "api": "Messages", "model": "m", "timeouts":
            {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1},
            "prices": {"input": 1_000_000, "output": 3_000_000}},
        "tools": [], "limits": {"steps": 9, "activeSeconds": 60, "waitSeconds": 60},
    }))
    .unwrap()
}

/// A run whose request may have taken 100 tokens and failed like this.
fn failed(reason: FailureReason, reported: Option<Usage>) -> RunState {
    let failure = Failure { reason, message: "no".into(), retrying: true, retry_after_seconds: None };
    let events = [
        Event::RunAccepted { plan_digest: plan().digest().unwrap(), plan: Box::new(plan()) },
        Event::EpochOpened { epoch: 1, pod_name: "p".into() },
        Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "u".into() },
        Event::ModelRequested { step: 1, attempt: 1, request: Digest::zero(), reserved_tokens: 100 },
        Event::ModelFailed { step: 1, attempt: 1, failure, reported },
    ];
    let records: Vec<Record> = (1..).zip(events).map(|(seq, event)| Record { seq, at: 1000, event }).collect();
    RunState::replay(&records).unwrap()
}

#[test]
fn a_failure_within_an_answer_counts_with_what_it_may_have_cost_and_one_before_it_with_nothing() {
    let none = Presumed::default();
    let all = Presumed { tokens: 100, cost: Cost::of_micro_usd(300) };
    let some = Usage { input_tokens: Some(40), output_tokens: Some(10), ..Usage::default() };
    let more = Usage { input_tokens: Some(400), output_tokens: Some(10), ..Usage::default() };
    let dear = Presumed { tokens: 410, cost: Cost::of_micro_usd(430) };
    for reason in [FailureReason::ServerError, FailureReason::RateLimited, FailureReason::BadRequest] {
        assert_eq!(failed(reason, None).presumed, none, "{reason:?}");
        assert_eq!(failed(reason, Some(Usage::default())).presumed, all, "{reason:?}: nobody counted");
        assert_eq!(failed(reason, Some(some)).presumed, all, "{reason:?}: it had not come to its end");
        assert_eq!(failed(reason, Some(more)).presumed, dear, "{reason:?}");
    }
    assert_eq!(failed(FailureReason::Truncated, None).presumed, all);
    assert_eq!(failed(FailureReason::Truncated, Some(more)).presumed, dear);
}

#[test]
fn a_failure_as_it_was_written_before_is_read_and_written_alike() {
    let written = br#"{"attempt":1,"failure":{"message":"no","reason":"ServerError","retrying":true},"kind":"ModelFailed","step":1}"#;
    let read: Event = serde_json::from_slice(written).unwrap();
    assert!(matches!(read, Event::ModelFailed { reported: None, .. }));
    assert_eq!(canonical(&read).unwrap(), written);
}
