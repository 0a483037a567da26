//! What status says of a run, from its journal.
#![allow(clippy::unwrap_used)]

use belay_crds::conditions::{READY, find};
use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, AgentRunStatus, Phase, WaitingOn};
use belay_protocol::RunState;
use belay_protocol::cost::{Prices, Usage};
use belay_protocol::event::{EndReason, Event, Item, Outcome, RunEnd};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Follow, JournalHead, Wait};
use super::status::*;
use crate::fixtures::{answered, claimed, opened, run, state};
use crate::readiness::Flip;

fn folded(run: &AgentRun, state: Option<&RunState>, stand: &Stand) -> (AgentRunStatus, Flip) {
    let head = state.map(|state| JournalHead { seq: state.seq, hash: "sha256:h".to_owned(), holds_witness: true });
    let witness = head.map(|head| Witness { journal_id: "journal-1", head });
    let now = Time(jiff::Timestamp::from_second(1_795_428_100).unwrap());
    fold(&Facts { run, state, witness, pod_uid: None, stand, now })
}

fn conditions(status: &AgentRunStatus) -> Vec<(&str, &str, &str)> {
    status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str())).collect()
}

fn ended(outcome: Outcome, reason: EndReason, output: &str) -> RunState {
    let usage =
        Usage { input_tokens: Some(100), cached_input_tokens: Some(40), output_tokens: Some(7), ..Usage::default() };
    let mut events = vec![opened(), claimed()];
    events.extend(answered(1, vec![Item::Text { text: output.to_owned() }], usage));
    events.push(Event::RunEnded { end: RunEnd { outcome, reason, message: "words".to_owned() } });
    state(events)
}

#[test]
fn an_accepted_run_names_its_journal_and_plan_before_it_has_a_pod() {
    let accepted = state(vec![]);
    let (status, flip) =
        folded(&run("nightly", "triage"), Some(&accepted), &Stand::following(Follow::Starting, &accepted));
    assert_eq!((status.phase, flip), (Some(Phase::Pending), Flip::Flipped));
    let journal = status.journal.unwrap();
    assert_eq!((journal.id.as_str(), journal.seq), ("journal-1", 1));
    assert!(status.plan_digest.unwrap().starts_with("sha256:"));
    assert_eq!((status.pod_ref, status.start_time, status.usage), (None, None, None));
}

#[test]
fn conditions_are_what_kstatus_and_kubectl_wait_expect() {
    let running = state(vec![opened(), claimed()]);
    let follow = |follow| Stand::following(follow, &running);
    let of = |outcome, reason| Stand::ended(&RunEnd { outcome, reason, message: "words".to_owned() });
    let wait = Wait { on: WaitingOn::new("agent", "triage"), reason: RunReason::Suspended, message: "m".to_owned() };
    let table = [
        (follow(Follow::Running), Phase::Running, ["False", "True", "False", "False"]),
        (follow(Follow::Waiting(wait.clone())), Phase::Waiting, ["False", "True", "False", "False"]),
        (Stand::pending(wait), Phase::Pending, ["False", "True", "False", "False"]),
        (of(Outcome::Succeeded, EndReason::Completed), Phase::Succeeded, ["True", "False", "False", "True"]),
        (of(Outcome::Cancelled, EndReason::Cancelled), Phase::Cancelled, ["True", "False", "False", "True"]),
        (of(Outcome::Failed, EndReason::PodLost), Phase::Failed, ["False", "False", "True", "True"]),
    ];
    for (stand, phase, truths) in table {
        let (status, _) = folded(&run("nightly", "triage"), Some(&running), &stand);
        assert_eq!(status.phase, Some(phase));
        let found = ["Ready", "Reconciling", "Stalled", "Finished"]
            .map(|type_| find(&status.conditions, type_).unwrap().status.clone());
        assert_eq!(found, truths, "{phase:?}");
    }
    let (status, _) = folded(&run("nightly", "triage"), Some(&running), &of(Outcome::Failed, EndReason::PodLost));
    assert_eq!(conditions(&status).first(), Some(&("Ready", "False", "PodLost")));
    assert_eq!(conditions(&status).last(), Some(&("Finished", "True", "Failed")));
}

#[test]
fn an_end_keeps_output_and_usage_and_what_is_unknown_is_absent() {
    let state = ended(Outcome::Succeeded, EndReason::Completed, "labelled");
    let (status, _) = folded(&run("nightly", "triage"), Some(&state), &Stand::ended(state.end.as_ref().unwrap()));
    assert_eq!((status.output.as_deref(), status.output_truncated), (Some("labelled"), None));
    let usage = status.usage.unwrap();
    assert_eq!((usage.steps, usage.input_tokens, usage.cached_input_tokens), (1, Some(100), Some(40)));
    assert_eq!((usage.output_tokens, usage.total_tokens, usage.cost_usd), (Some(7), Some(107), None));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    assert_eq!(status.pod_ref.unwrap().uid.as_deref(), Some("uid-pod"));
}

#[test]
fn a_long_output_is_cut_between_characters_and_says_so() {
    let state = ended(Outcome::Succeeded, EndReason::Completed, &"é".repeat(3000));
    let (status, _) = folded(&run("nightly", "triage"), Some(&state), &Stand::ended(state.end.as_ref().unwrap()));
    assert_eq!(status.output.unwrap().len(), OUTPUT_BYTES_MAX);
    assert_eq!(status.output_truncated, Some(true));
}

#[test]
fn cost_is_shown_where_prices_and_tokens_are_known() {
    let mut plan = crate::fixtures::plan();
    plan.model.prices =
        Some(Prices { input: 3_000_000, cached_input: Some(300_000), cache_write: None, output: 15_000_000 });
    let mut priced = RunState::default();
    let usage = Usage {
        input_tokens: Some(1000),
        cached_input_tokens: Some(400),
        output_tokens: Some(100),
        ..Usage::default()
    };
    let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
    let events = [accepted, opened(), claimed()].into_iter().chain(answered(1, vec![], usage));
    for (seq, event) in (1..).zip(events) {
        priced.apply(&belay_protocol::Record { seq, at: 0, event }).unwrap();
    }
    let (status, _) = folded(&run("nightly", "triage"), Some(&priced), &Stand::following(Follow::Running, &priced));
    // 600 at 3, 400 at 0.3 and 100 at 15 dollars a million.
    assert_eq!(status.usage.unwrap().cost_usd.unwrap().to_string(), "0.00342");
}

#[test]
fn one_answer_without_its_numbers_leaves_the_sum_and_the_cost_unknown() {
    let mut plan = crate::fixtures::plan();
    plan.model.prices = Some(Prices { input: 1, cached_input: None, cache_write: None, output: 1 });
    let counted = Usage { input_tokens: Some(100), output_tokens: Some(7), ..Usage::default() };
    let half = Usage { output_tokens: None, ..counted };
    for unknown in [Usage::default(), half] {
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan.clone()) };
        let misfit = |mut events: Vec<Event>| {
            if let Some(Event::ModelResponded { response, .. }) = events.last_mut() {
                response.misfit = Some("no JSON".to_owned());
            }
            events
        };
        let first = misfit(answered(1, vec![], counted));
        let events = [accepted, opened(), claimed()].into_iter().chain(first).chain(answered(2, vec![], unknown));
        let mut state = RunState::default();
        for (seq, event) in (1..).zip(events) {
            state.apply(&belay_protocol::Record { seq, at: 0, event }).unwrap();
        }
        let (status, _) = folded(&run("nightly", "triage"), Some(&state), &Stand::following(Follow::Running, &state));
        let usage = status.usage.unwrap();
        assert_eq!((usage.steps, usage.output_tokens), (2, Some(7)));
        assert_eq!((usage.total_tokens, usage.cost_usd), (None, None));
    }
}

#[test]
fn how_the_last_pod_was_lost_is_told_but_is_no_news_that_a_write_of_its_own_is_worth() {
    let first = state(vec![opened(), claimed()]);
    let mut run = run("nightly", "triage");
    let stand = |words| Stand::following(Follow::Running, &first).after(words);
    let (before, _) = folded(&run, Some(&first), &stand(None));
    run.status = Some(before.clone());
    let (after, flip) = folded(&run, Some(&first), &stand(Some("was deleted")));
    let message = &find(&after.conditions, READY).unwrap().message;
    assert_eq!(message, "its runner is at work; the pod before it was deleted");
    assert!(before.conditions != after.conditions && !is_news(&before, &after));
    assert_eq!(flip, Flip::None);
    let waiting = Stand::following(Follow::Cancelling, &first);
    assert_eq!(waiting.clone().after(Some("was deleted")), waiting, "other words stay as they are");
}

#[test]
fn figures_alone_are_no_news() {
    let first = state(vec![opened(), claimed()]);
    let mut run = run("nightly", "triage");
    let (before, _) = folded(&run, Some(&first), &Stand::following(Follow::Running, &first));
    run.status = Some(before.clone());
    let mut events = vec![opened(), claimed()];
    events.extend(answered(1, vec![Item::Text { text: "t".to_owned() }], Usage::default()));
    let second = state(events);
    let (after, flip) = folded(&run, Some(&second), &Stand::following(Follow::Running, &second));
    assert!(before.usage != after.usage && !is_news(&before, &after));
    assert_eq!(flip, Flip::None);
    let (cancelling, _) = folded(&run, Some(&second), &Stand::following(Follow::Cancelling, &second));
    assert!(is_news(&before, &cancelling));
    let held = Follow::Held { reason: RunReason::RateLimited, message: "of its turn".to_owned() };
    let (limited, _) = folded(&run, Some(&second), &Stand::following(held, &second));
    assert!(before.conditions != limited.conditions && !is_news(&before, &limited), "each step may wait its turn");
}
