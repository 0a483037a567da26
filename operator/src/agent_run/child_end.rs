//! What the end of a child is to the run whose call it carries out: a result for the model, and what counts against the
//! limits. Pure.

use belay_protocol::RESULT_BYTES_MAX;
use belay_protocol::digest::INTEGER_MAX;
use belay_protocol::event::{ChildEnd, Outcome, RunEnd, ToolResult};
use belay_protocol::fold::{OpenChild, RunState};

use super::status::reason_of;
use crate::writes::cut;

/// Of a child that has ended, as its journal tells it.
#[must_use]
pub fn ended(open: &OpenChild, child: &RunState, end: &RunEnd) -> ChildEnd {
    let (name, agent) = (&open.child.name, &open.child.agent);
    let why = if end.message.is_empty() { String::new() } else { format!(": {}", end.message) };
    let (is_error, words) = match end.outcome {
        Outcome::Succeeded => (false, child.output.clone().unwrap_or_default()),
        Outcome::Failed => {
            let reason = reason_of(end.reason);
            (true, format!("run {name} of agent {agent} failed ({reason}){why}"))
        }
        Outcome::Cancelled => (true, format!("run {name} of agent {agent} was cancelled{why}")),
    };
    let Spent { tokens, cost_micro_usd } = spent(open, child);
    ChildEnd { outcome: Some(end.outcome), result: result(is_error, words), tokens, cost_micro_usd }
}

/// Of a child whose journal cannot be read.
#[must_use]
pub fn illegible(open: &OpenChild) -> ChildEnd {
    unknown(open, "its records are damaged")
}

/// Of a child whose AgentRun is gone and that has no journal: it was deleted before it was accepted, or its journal was lost.
#[must_use]
pub fn gone(open: &OpenChild) -> ChildEnd {
    unknown(open, "it was deleted and has no records; nothing was done if it had not begun")
}

/// It may have used all that it might.
fn unknown(open: &OpenChild, why: &str) -> ChildEnd {
    let (name, limits) = (&open.child.name, open.child.limits);
    let words = format!("what run {name} did is not known: {why}");
    ChildEnd {
        outcome: None,
        result: result(true, words),
        tokens: limits.tokens.unwrap_or_default(),
        cost_micro_usd: limits.cost_micro_usd.unwrap_or_default(),
    }
}

/// Of a child whose name is another run's.
#[must_use]
pub fn not_ours(open: &OpenChild) -> ChildEnd {
    let words = format!(
        "there is an AgentRun {} already, which another run or somebody else started: nothing was done",
        open.child.name
    );
    ChildEnd { outcome: None, result: result(true, words), tokens: 0, cost_micro_usd: 0 }
}

fn result(is_error: bool, words: String) -> ToolResult {
    let whole = words.len();
    if whole <= RESULT_BYTES_MAX {
        return ToolResult { is_error, content: words, truncated_from_bytes: None, artifacts: Vec::new() };
    }
    let content = cut(&words, RESULT_BYTES_MAX).to_owned();
    ToolResult { is_error, content, truncated_from_bytes: u64::try_from(whole).ok(), artifacts: Vec::new() }
}

struct Spent {
    tokens: u64,
    cost_micro_usd: u64,
}

/// What it used, with what it may have used and what runs below it may still use. What its provider did not count comes to
/// all that was set aside for it.
fn spent(open: &OpenChild, child: &RunState) -> Spent {
    let limits = open.child.limits;
    let known = !child.uncounted;
    let priced = known && (child.steps == 0 || child.plan.as_ref().is_some_and(|plan| plan.is_priced()));
    let tokens = child.tokens_spent().saturating_add(child.tokens_set_aside());
    let cost = child.cost_spent().micro_usd().saturating_add(child.cost_set_aside());
    // Sums of what a journal holds may be more than it holds.
    Spent {
        tokens: if known { tokens } else { tokens.max(limits.tokens.unwrap_or_default()) }.min(INTEGER_MAX),
        cost_micro_usd: if priced { cost } else { cost.max(limits.cost_micro_usd.unwrap_or_default()) }
            .min(INTEGER_MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use belay_protocol::cost::{Cost, Usage};
    use belay_protocol::event::{Child, EndReason};
    use belay_protocol::fold::Presumed;
    use belay_protocol::plan::Limits;

    use super::*;
    use crate::fixtures::plan;

    fn open() -> OpenChild {
        let limits =
            Limits { steps: 5, tokens: Some(1000), cost_micro_usd: Some(500), active_seconds: 9, wait_seconds: 9 };
        let child = Child { name: "nightly-c1-x".into(), agent: "helper".into(), limits };
        OpenChild { call_id: "c1".into(), attempt: 1, child, uid: Some("uid".into()) }
    }

    /// A run that used 30 tokens and may have used 5 more.
    fn child(output: Option<&str>) -> RunState {
        let mut plan = plan();
        let prices = belay_protocol::cost::Prices { input: 1, cached_input: None, cache_write: None, output: 1 };
        plan.model.prices = Some(prices);
        RunState {
            plan: Some(Arc::new(plan)),
            steps: 2,
            usage: Usage { input_tokens: Some(20), output_tokens: Some(10), ..Usage::default() },
            cost: Cost::of_micro_usd(7),
            presumed: Presumed { tokens: 5, cost: Cost::of_micro_usd(2) },
            output: output.map(str::to_owned),
            ..RunState::default()
        }
    }

    fn end(outcome: Outcome, reason: EndReason, message: &str) -> RunEnd {
        RunEnd { outcome, reason, message: message.to_owned() }
    }

    #[test]
    fn a_child_that_succeeded_answers_with_its_output_and_any_other_with_an_error_that_says_why() {
        let of = |outcome, reason, message| {
            let told = ended(&open(), &child(Some("{\"a\":1}")), &end(outcome, reason, message));
            (told.outcome, told.result.is_error, told.result.content)
        };
        let answer = (Some(Outcome::Succeeded), false, "{\"a\":1}".to_owned());
        assert_eq!(of(Outcome::Succeeded, EndReason::Completed, ""), answer);
        let words = "run nightly-c1-x of agent helper failed (StepsExceeded): too many".to_owned();
        assert_eq!(of(Outcome::Failed, EndReason::StepsExceeded, "too many"), (Some(Outcome::Failed), true, words));
        let words = "run nightly-c1-x of agent helper was cancelled: spec.cancel is true".to_owned();
        let cancelled = of(Outcome::Cancelled, EndReason::Cancelled, "spec.cancel is true");
        assert_eq!(cancelled, (Some(Outcome::Cancelled), true, words));
    }

    #[test]
    fn what_a_child_used_is_charged_and_what_nobody_counted_is_all_that_was_set_aside() {
        let succeeded = end(Outcome::Succeeded, EndReason::Completed, "");
        let charged = |child: &RunState| {
            let end = ended(&open(), child, &succeeded);
            (end.tokens, end.cost_micro_usd)
        };
        assert_eq!(charged(&child(None)), (35, 9));
        let uncounted = RunState { uncounted: true, ..child(None) };
        assert_eq!(charged(&uncounted), (1000, 500), "what one of its answers used is not known");
        let counted = Usage { input_tokens: Some(INTEGER_MAX), output_tokens: Some(1), ..Usage::default() };
        let endless = RunState { usage: counted, cost: Cost::of_micro_usd(u64::MAX), ..child(None) };
        assert_eq!(charged(&endless), (INTEGER_MAX, INTEGER_MAX), "more than that no journal holds");
        let mut unpriced = child(None);
        Arc::make_mut(unpriced.plan.as_mut().unwrap()).model.prices = None;
        assert_eq!(charged(&unpriced), (35, 500));
        assert_eq!(charged(&RunState::default()), (0, 0), "one that was never accepted used nothing");
        let below = OpenChild { call_id: "c9".into(), ..open() };
        let with_child = RunState { children: [("below".to_owned(), below)].into(), ..child(None) };
        assert_eq!(charged(&with_child), (1035, 509), "a run below it may still use its share");
        assert_eq!((illegible(&open()).tokens, illegible(&open()).cost_micro_usd), (1000, 500));
        let gone = gone(&open());
        assert_eq!((gone.tokens, gone.cost_micro_usd), (1000, 500), "its journal may have been lost");
        assert_eq!(not_ours(&open()).tokens, 0);
    }

    #[test]
    fn a_long_answer_is_cut_and_said_to_be() {
        let long = "é".repeat(RESULT_BYTES_MAX);
        let told = ended(&open(), &child(Some(&long)), &end(Outcome::Succeeded, EndReason::Completed, ""));
        assert!(told.result.content.len() <= RESULT_BYTES_MAX);
        assert_eq!(told.result.truncated_from_bytes, Some(2 * RESULT_BYTES_MAX as u64));
    }
}
