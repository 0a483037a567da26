//! The line in simulated time: who goes when, and what a refusal does to the others.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::Mutex as StdMutex;

use belay_protocol::event::Failure;
use rstest::rstest;

use super::*;
use crate::fixtures::plan;

const NO_LIMIT: Rates = Rates { requests_per_minute: None, tokens_per_minute: None, concurrent_requests: None };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn request(run: usize, tokens: u64) -> Request {
    let of = Attempt { step: 1, attempt: 1 };
    Request { run: format!("r{run}"), of, reserved_tokens: tokens, over_within: seconds(600) }
}

/// So many runs, that all come at once; each request takes `takes`. When each was let go, in that order.
fn played(rates: Rates, runs: usize, tokens: u64, takes: Duration) -> Vec<(usize, u64)> {
    let mut line = Line::default();
    let mut now = Duration::ZERO;
    for run in 0..runs {
        line.join(request(run, tokens), now);
    }
    let (mut went, mut ends) = (Vec::new(), VecDeque::new());
    while went.len() < runs {
        while ends.front().is_some_and(|(at, _)| *at <= now) {
            let (_, run): (Duration, String) = ends.pop_front().unwrap();
            line.end(&run, None, Ended::Answered { tokens: Some(tokens) }, now);
        }
        while let Some(run) = line.next(rates, now) {
            went.push((run[1..].parse().unwrap(), now.as_secs()));
            ends.push_back((now + takes, run));
        }
        let opens = line.opens_at(rates, now).filter(|at| *at > now);
        now = opens.into_iter().chain(ends.front().map(|(at, _)| *at)).min().unwrap_or(now);
    }
    went
}

#[rstest]
#[case::no_limit(NO_LIMIT, &[0, 0, 0, 0, 0, 0])]
#[case::requests(Rates { requests_per_minute: Some(2), ..NO_LIMIT }, &[0, 0, 61, 61, 122, 122])]
#[case::tokens(Rates { tokens_per_minute: Some(250), ..NO_LIMIT }, &[0, 0, 61, 61, 122, 122])]
#[case::at_once(Rates { concurrent_requests: Some(3), ..NO_LIMIT }, &[0, 0, 0, 5, 5, 5])]
#[case::the_strictest_counts(
    Rates { requests_per_minute: Some(4), tokens_per_minute: Some(1_000), concurrent_requests: Some(2) },
    &[0, 0, 5, 5, 61, 61]
)]
#[case::larger_than_the_limit_goes_alone(Rates { tokens_per_minute: Some(60), ..NO_LIMIT }, &[0, 61, 122, 183, 244, 305])]
fn six_requests_of_a_hundred_tokens_and_five_seconds_go_in_order(#[case] rates: Rates, #[case] at: &[u64]) {
    let expected: Vec<(usize, u64)> = at.iter().copied().enumerate().collect();
    assert_eq!(played(rates, 6, 100, seconds(5)), expected);
}

#[test]
fn no_sixty_seconds_hold_more_than_the_limit() {
    let rates = Rates { requests_per_minute: Some(7), ..NO_LIMIT };
    let went = played(rates, 100, 0, Duration::from_millis(700));
    for (_, start) in &went {
        let within = went.iter().filter(|(_, at)| (*start..start + 60).contains(at)).count();
        assert!(within <= 7, "{within} within 60 s of {start}");
    }
    assert_eq!(went.last().unwrap().1, 14 * 61, "and none is held longer than it must be");
}

#[test]
fn what_an_answer_did_not_take_is_there_for_the_next() {
    let rates = Rates { tokens_per_minute: Some(100), ..NO_LIMIT };
    let mut line = Line::default();
    line.join(request(0, 90), seconds(0));
    line.join(request(1, 90), seconds(0));
    assert_eq!((line.next(rates, seconds(0)), line.next(rates, seconds(0))), (Some("r0".into()), None));
    assert_eq!(line.held_by(rates, seconds(0)), Some(HeldBy::TokensPerMinute));
    line.end("r0", None, Ended::Answered { tokens: Some(10) }, seconds(1));
    assert_eq!(line.next(rates, seconds(1)), Some("r1".into()));
    // And what it took beyond what it said counts too.
    line.end("r1", None, Ended::Answered { tokens: Some(500) }, seconds(2));
    line.join(request(2, 0), seconds(3));
    assert_eq!(line.opens_at(rates, seconds(3)), Some(seconds(63)));
}

#[test]
fn a_refusal_of_one_holds_all_and_then_lets_one_go_first() {
    let mut line = Line::default();
    for run in 0..100 {
        line.join(request(run, 0), seconds(0));
    }
    let first: Vec<_> = std::iter::from_fn(|| line.next(NO_LIMIT, seconds(0))).collect();
    assert_eq!(first.len(), 100, "nothing is known yet");
    // The provider takes ten and refuses the others, all at about the same time.
    for run in &first[10..] {
        line.end(run, None, Ended::Refused { retry_after: Some(seconds(20)) }, seconds(1));
        line.join(request(run[1..].parse().unwrap(), 0), seconds(1));
    }
    for run in &first[..10] {
        line.end(run, None, Ended::Answered { tokens: None }, seconds(2));
    }
    assert_eq!((line.next(NO_LIMIT, seconds(20)), line.held_by(NO_LIMIT, seconds(20))), (None, Some(HeldBy::Refusal)));
    assert_eq!(line.opens_at(NO_LIMIT, seconds(2)), Some(seconds(21)));
    let (mut now, mut went, mut at_once) = (seconds(21), 0, Vec::new());
    while went < 90 {
        let gone: Vec<_> = std::iter::from_fn(|| line.next(NO_LIMIT, now)).collect();
        went += gone.len();
        at_once.push(gone.len());
        now += seconds(1);
        for run in &gone {
            line.end(run, None, Ended::Answered { tokens: None }, now);
        }
    }
    assert_eq!(&at_once[..4], &[1, 2, 8, 79], "one, and with each answer twice as many");
}

#[rstest]
#[case::what_it_said(Some(7), 1, 7)]
#[case::too_long(Some(100_000), 1, 300)]
#[case::nothing_said(None, 1, 1)]
#[case::nothing_said_again_and_again(None, 4, 8)]
#[case::for_ever(None, 40, 32)]
fn a_refusal_lasts_as_long_as_the_provider_said_within_reason(
    #[case] said: Option<u64>,
    #[case] times: u32,
    #[case] pause: u64,
) {
    let (mut line, mut now) = (Line::default(), seconds(0));
    for _ in 0..times {
        line.join(request(0, 0), now);
        now = now.max(line.opens_at(NO_LIMIT, now).unwrap());
        assert_eq!(line.next(NO_LIMIT, now), Some("r0".into()));
        line.end("r0", None, Ended::Refused { retry_after: said.map(seconds) }, now);
    }
    line.join(request(1, 0), now);
    assert_eq!(line.opens_at(NO_LIMIT, now), Some(now + seconds(pause)));
}

#[test]
fn a_request_whose_runner_is_lost_frees_its_place_by_itself() {
    let rates = Rates { concurrent_requests: Some(1), ..NO_LIMIT };
    let mut line = Line::default();
    line.join(request(0, 0), seconds(0));
    line.join(request(1, 0), seconds(0));
    assert_eq!(line.next(rates, seconds(0)), Some("r0".into()));
    assert_eq!((line.next(rates, seconds(599)), line.opens_at(rates, seconds(0))), (None, Some(seconds(600))));
    assert_eq!(line.next(rates, seconds(600)), Some("r1".into()));
    line.end("r1", None, Ended::Failed, seconds(601));
    assert!(!line.is_idle(seconds(601)) && line.is_idle(seconds(700)), "nothing is remembered for ever");
}

#[test]
fn who_asks_again_since_it_did_not_hear_its_turn_goes_at_once_and_counts_once() {
    let rates = Rates { requests_per_minute: Some(2), ..NO_LIMIT };
    let mut line = Line::default();
    line.join(request(0, 0), seconds(0));
    assert_eq!(line.next(rates, seconds(0)), Some("r0".into()));
    assert_eq!(line.join(request(0, 0), seconds(1)), Joined::LetGoBefore);
    line.join(request(1, 0), seconds(1));
    assert_eq!(line.next(rates, seconds(1)), Some("r1".into()));
    // What is said late of an earlier attempt does not end this one.
    line.end("r1", Some(Attempt { step: 0, attempt: 1 }), Ended::Failed, seconds(1));
    assert_eq!(line.join(request(1, 0), seconds(1)), Joined::LetGoBefore);
}

/// A run that asks for leave.
fn asking(name: &str, reserved_tokens: u64) -> RunState {
    let mut plan = plan();
    plan.run.uid = format!("{name}-uid");
    let model = ModelState::InFlight { step: 1, attempt: 1, reserved_tokens };
    RunState { plan: Some(Arc::new(plan)), model, ..RunState::default() }
}

fn limited() -> (Quotas, Arc<StdMutex<Rates>>, CancellationToken) {
    let rates = Arc::new(StdMutex::new(NO_LIMIT));
    let (now, shutdown) = (rates.clone(), CancellationToken::new());
    let quotas = Quotas::new(Arc::new(move |_| *now.lock().unwrap()));
    tokio::spawn(quotas.clone().keep(shutdown.clone()));
    (quotas, rates, shutdown)
}

fn waits(turn: Turn) -> Place {
    match turn {
        Turn::Waits(place) => place,
        Turn::Now => panic!("it went"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_runs_of_one_model_get_their_turns_in_order_without_a_storm() {
    let (quotas, rates, shutdown) = limited();
    rates.lock().unwrap().requests_per_minute = Some(10);
    let started = Instant::now();
    let went = Arc::new(StdMutex::new(Vec::new()));
    let tasks: Vec<_> = (0..100)
        .map(|run| {
            // In this order they came.
            let turn = quotas.ask(&asking(&format!("n{run}"), 0));
            let went = went.clone();
            tokio::spawn(async move {
                if let Turn::Waits(mut place) = turn {
                    place.called().await;
                    place.go();
                }
                went.lock().unwrap().push((started.elapsed().as_secs(), run));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let went = went.lock().unwrap().clone();
    assert!(went.is_sorted(), "{went:?}");
    for (start, _) in &went {
        assert!(went.iter().filter(|(at, _)| (*start..start + 60).contains(at)).count() <= 10);
    }
    assert!((540..=560).contains(&went.last().unwrap().0), "{:?}", went.last());
    shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn limits_that_change_count_for_whoever_waits() {
    let (quotas, rates, _shutdown) = limited();
    rates.lock().unwrap().concurrent_requests = Some(1);
    assert!(matches!(quotas.ask(&asking("a", 0)), Turn::Now));
    let mut second = waits(quotas.ask(&asking("b", 0)));
    let third = waits(quotas.ask(&asking("c", 0)));
    tokio::time::advance(seconds(15)).await;
    let expected = Waits { model: "writer".into(), held_by: Some(HeldBy::ConcurrentRequests), time: seconds(15) };
    assert_eq!(quotas.waits("b-uid"), Some(expected));
    rates.lock().unwrap().concurrent_requests = Some(2);
    quotas.limits_changed();
    second.called().await;
    assert_eq!((quotas.waits("b-uid"), quotas.waits("c-uid").map(|waits| waits.time)), (None, Some(seconds(15))));
    // Whoever leaves the line, or its turn, makes room.
    drop(third);
    assert_eq!(quotas.waits("c-uid"), None);
    let mut fourth = waits(quotas.ask(&asking("d", 0)));
    drop(second);
    fourth.called().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_a_newer_stream_took_over_still_counts_once_the_old_stream_is_gone() {
    let (quotas, rates, _shutdown) = limited();
    rates.lock().unwrap().concurrent_requests = Some(1);
    assert!(matches!(quotas.ask(&asking("a", 0)), Turn::Now));
    let mut old = waits(quotas.ask(&asking("b", 0)));
    quotas.over("a-uid");
    old.called().await;
    // The stream broke before it heard so: its runner came back, and asks.
    assert!(matches!(quotas.ask(&asking("b", 0)), Turn::Now));
    drop(old);
    let _third = waits(quotas.ask(&asking("c", 0)));
}

#[tokio::test(start_paused = true)]
async fn what_one_run_was_refused_the_others_wait_for() {
    let (quotas, _rates, _shutdown) = limited();
    assert!(matches!(quotas.ask(&asking("a", 0)), Turn::Now));
    let failure = |reason| Failure { reason, message: "429".into(), retrying: true, retry_after_seconds: Some(30) };
    let refused =
        Event::ModelFailed { step: 1, attempt: 1, failure: failure(FailureReason::RateLimited), reported: None };
    quotas.note("a-uid", [&refused]);
    let began = Instant::now();
    let mut other = waits(quotas.ask(&asking("b", 0)));
    other.called().await;
    assert_eq!(began.elapsed().as_secs(), 30);
}
