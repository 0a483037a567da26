//! What the journal says that runs did, read from exports line by line and not with the operator's own code, and
//! the comparison with what truly arrived.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::TempNamespace;
use crate::counter::{Arrived, arrived};
use crate::kubectl::belay;

/// One permit for one call of the counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permitted {
    pub call_id: String,
    pub attempt: u64,
    pub operation: String,
    /// The argument by which the counter knows it.
    pub id: String,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Observed,
    /// Given back, or failed before the first byte.
    Unsent,
    /// Unknown, interrupted, or still out.
    Open,
}

impl Outcome {
    /// How often it arrived, at least and at most.
    fn arrivals(self) -> (usize, usize) {
        match self {
            Self::Observed => (1, 1),
            Self::Unsent => (0, 0),
            Self::Open => (0, 1),
        }
    }
}

/// The run's export, after `belay journal verify` found nothing wrong with it.
pub fn verified_export(namespace: &TempNamespace, run: &str) -> Result<String> {
    let exported = belay(&["-n", &namespace.name, "journal", "export", run])?;
    ensure!(exported.success, "journal export {run}: {}", exported.stderr);
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(exported.stdout.as_bytes())?;
    let path = file.path().to_str().context("a path that is not UTF-8")?;
    let verdict = belay(&["journal", "verify", path])?;
    ensure!(verdict.success, "journal verify {run}: {}", verdict.stderr);
    Ok(exported.stdout)
}

/// The records of an export, in order.
pub fn records(export: &str) -> Result<Vec<Value>> {
    let lines = export.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.iter().filter_map(|line| line.pointer("/record").cloned()).collect())
}

/// Their events.
pub fn events(export: &str) -> Result<Vec<Value>> {
    Ok(records(export)?.iter().filter_map(|record| record.pointer("/event").cloned()).collect())
}

/// Every permit for a call of the counter in these events.
#[must_use]
pub fn permits(events: &[Value]) -> Vec<Permitted> {
    let text = |event: &Value, at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut proposed: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut permits: Vec<Permitted> = Vec::new();
    for event in events {
        let call_id = text(event, "/callId");
        let attempt = event.pointer("/attempt").and_then(Value::as_u64).unwrap_or_default();
        let mut settle = |outcome| {
            let mut same = permits.iter_mut().rev().filter(|one| one.call_id == call_id && one.attempt == attempt);
            if let Some(permit) = same.next() {
                permit.outcome = outcome;
            }
        };
        match text(event, "/kind").as_str() {
            "CallProposed" => {
                proposed.insert(call_id, (text(event, "/call/operation"), text(event, "/call/args/id")));
            }
            "CallDecided" if event.pointer("/verdict/allowed").is_some() => {
                let (operation, id) = proposed.get(&call_id).cloned().unwrap_or_default();
                permits.push(Permitted { call_id, attempt, operation, id, outcome: Outcome::Open });
            }
            "CallObserved" => settle(Outcome::Observed),
            // What a run carries out no runner sends.
            "CallNotSent" | "PermitReturned" | "ChildOpened" => settle(Outcome::Unsent),
            _ => {} // nothing that says whether a permit was used
        }
    }
    permits
}

/// Compares what arrived at the counter with what these runs' journals permitted and observed: no arrival without
/// a permit, at most one for each permit, one for each answer, one key for each call. Fails with every difference.
pub fn check(namespace: &TempNamespace, runs: &[String]) -> Result<()> {
    let mut all = Vec::new();
    for run in runs {
        all.extend(permits(&events(&verified_export(namespace, run)?)?));
    }
    compare(all, &arrived(namespace)?)
}

/// The same, of permits and arrivals that were gathered otherwise.
pub fn compare(permits: Vec<Permitted>, arrived: &[Arrived]) -> Result<()> {
    let mut bounds: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
    for permit in permits {
        let (least, most) = permit.outcome.arrivals();
        let bound = bounds.entry((permit.operation, permit.id)).or_default();
        *bound = (bound.0 + least, bound.1 + most);
    }
    ensure!(!bounds.is_empty(), "the journals hold no permit: nothing was compared");
    let differences = differences(&bounds, arrived);
    if !differences.is_empty() {
        bail!("the counter and the journals disagree:\n{}", differences.join("\n"));
    }
    Ok(())
}

fn differences(bounds: &BTreeMap<(String, String), (usize, usize)>, arrived: &[Arrived]) -> Vec<String> {
    let mut calls: BTreeMap<(String, String), Vec<&Option<String>>> = BTreeMap::new();
    for one in arrived {
        calls.entry((one.name.clone(), one.id.clone().unwrap_or_default())).or_default().push(&one.key);
    }
    let mut found = Vec::new();
    for (call, keys) in &calls {
        if !bounds.contains_key(call) {
            found.push(format!("{call:?} arrived {} times without any permit", keys.len()));
        }
        if keys.iter().any(|key| Some(key) != keys.first()) {
            found.push(format!("{call:?} arrived with different keys: {keys:?}"));
        }
    }
    for (call, (least, most)) in bounds {
        let times = calls.get(call).map_or(0, Vec::len);
        if times < *least || times > *most {
            found.push(format!("{call:?} arrived {times} times; the journal says {least} to {most}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use serde_json::json;

    use super::*;

    fn decided(attempt: u64, verdict: &Value) -> Value {
        json!({"kind": "CallDecided", "callId": "c1", "attempt": attempt, "verdict": verdict})
    }

    fn proposed(attempt: u64) -> Value {
        json!({"kind": "CallProposed", "callId": "c1", "attempt": attempt, "call": {"operation": "add", "args": {"id": "a"}}})
    }

    #[test]
    fn every_permit_counts_with_what_became_of_it_and_a_denial_does_not() {
        let allowed = json!({"allowed": {"digest": "d"}});
        let events = [
            proposed(1),
            decided(1, &allowed),
            json!({"kind": "PermitReturned", "callId": "c1", "attempt": 1}),
            proposed(2),
            decided(2, &allowed),
            json!({"kind": "CallUnknown", "callId": "c1", "attempt": 2}),
            proposed(3),
            decided(3, &allowed),
            json!({"kind": "CallObserved", "callId": "c1", "attempt": 3}),
            proposed(4),
            decided(4, &json!({"denied": {"reason": "NotListed"}})),
            proposed(5),
            decided(5, &allowed),
            json!({"kind": "ChildOpened", "callId": "c1", "attempt": 5, "child": {"name": "r-c1-x"}}),
        ];
        let outcomes: Vec<Outcome> = permits(&events).into_iter().map(|permit| permit.outcome).collect();
        assert_eq!(outcomes, [Outcome::Unsent, Outcome::Open, Outcome::Observed, Outcome::Unsent]);
        assert_eq!(permits(&events)[0].id, "a");
    }

    #[test]
    fn too_many_too_few_unpermitted_and_changing_keys_are_differences() {
        let call = |id: &str, key: &str| Arrived { name: "add".into(), id: Some(id.into()), key: Some(key.into()) };
        let bound = |id: &str, least, most| (("add".to_owned(), id.to_owned()), (least, most));
        let bounds: BTreeMap<_, _> = [bound("a", 1, 2), bound("b", 1, 1), bound("c", 0, 1)].into();
        assert!(differences(&bounds, &[call("a", "k"), call("b", "l")]).is_empty());
        let arrived = [call("a", "k"), call("a", "other"), call("c", "m"), call("c", "m"), call("d", "n")];
        let found = differences(&bounds, &arrived).join("\n");
        for words in ["different keys", "\"b\") arrived 0", "\"c\") arrived 2", "\"d\") arrived 1 times without"] {
            assert!(found.contains(words), "{words}: {found}");
        }
    }
}
