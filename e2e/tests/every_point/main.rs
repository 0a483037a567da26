//! The whole operator and the whole runner, as processes, in worlds that the test plays: at every point of a
//! reference run something goes wrong, and what comes of it is compared with the undisturbed run.
//!
//! `BELAY_POINT='runner dies @ after commit RunAccepted #1'` plays one again (two are joined by ` & `), and shows
//! what it prints; `BELAY_POINT=list` names all; `BELAY_PAIRS=1000` tries more pairs, `BELAY_SEED=7` others, and other
//! faults around a child.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod api;
mod api_server;
mod faults;
mod kubelet;
mod operator;
mod person;
mod points;
mod relay;
mod rules;
mod telemetry;
mod tool;
mod verdict;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::faults::{every_point, is_slow, one_at_every_place};
use self::person::When;
use self::points::{Point, Seen};
use self::tool::HEARD;
use self::verdict::{Account, Essence, judge};
use self::world::{Script, Scripts, Setting, World};

/// Worlds at one time, of all tests of this file: most of their time they wait.
static WORLDS: Semaphore = Semaphore::const_new(8);
const PAIRS: usize = 40;

/// A reference run: its world, what it comes to if nothing goes wrong, and the places that it always comes by.
struct Reference {
    setting: Setting,
    essence: Essence,
    seen: Vec<Seen>,
}

impl Reference {
    async fn new(scripts: Scripts, person: When) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let setting = Setting::prepare(scripts, person).await.unwrap();
        let outcome = World::play(&setting, &[]).await.unwrap();
        let (essence, _) = judge(&outcome, None).unwrap();
        let mut seen = outcome.seen;
        // What one run comes by only because it was slow is no point of every run.
        for _ in 0..2 {
            let again = World::play(&setting, &[]).await.unwrap().seen;
            seen.retain(|one| again.iter().any(|other| other.place == one.place));
        }
        // How often it says anew what it waits for before it starts is a matter of time alone.
        seen.retain(|one| one.place.nth == 1 || !one.place.name.contains(" Pending "));
        Self { setting, essence, seen }
    }

    /// Plays every one of `scenarios`, slow ones first, and fails with all that came to another end.
    async fn withstands(self, mut scenarios: Vec<Vec<Point>>) {
        let start = Instant::now();
        let chosen = std::env::var("BELAY_POINT").ok();
        if chosen.as_deref() == Some("list") {
            for points in &scenarios {
                println!("{}", words(points));
            }
            return;
        }
        if let Some(chosen) = &chosen {
            scenarios = vec![chosen.split(" & ").map(|point| point.parse().unwrap()).collect()];
        }
        scenarios.sort_by_key(|points| !points.iter().any(|point| is_slow(point.fault)));
        let (all, reference) = (scenarios.len(), Arc::new(self));
        let mut playing = JoinSet::new();
        for points in scenarios {
            let reference = reference.clone();
            playing.spawn(async move {
                let _place = WORLDS.acquire().await.unwrap();
                let start = Instant::now();
                let played = reference.play(&points).await;
                (points, start.elapsed(), played)
            });
        }
        let (mut failures, mut missed, mut longest) = (Vec::new(), Vec::new(), Duration::ZERO);
        let (mut unknowns, mut whole) = (0, 0);
        while let Some(played) = playing.join_next().await {
            let (points, took, played) = played.unwrap();
            let words = words(&points);
            longest = longest.max(took);
            match played {
                Ok((0, _)) => missed.push(words),
                Ok((struck, account)) => {
                    unknowns += usize::from(account.unknowns > 0);
                    whole += usize::from(struck == points.len());
                }
                Err(error) => {
                    let failure = format!("BELAY_POINT='{words}' after {took:?}: {error:?}");
                    // At once, for whoever watches: the rest may take minutes.
                    eprintln!("{failure}");
                    failures.push(failure);
                }
            }
        }
        eprintln!(
            "{all} scenarios in {:?}, the longest {longest:?}: {unknowns} with a question to people, {whole} with every \
             fault struck, {} not come to: {missed:?}",
            start.elapsed(),
            missed.len()
        );
        assert!(failures.is_empty(), "{} of {all}:\n\n{}", failures.len(), failures.join("\n\n"));
        assert!(missed.len() * 20 <= all, "too many points are no longer come to: {missed:?}");
        assert!(whole > 0 || all == 0, "no scenario was played whole");
    }

    /// How many of the faults struck: none where this time the run came another way.
    async fn play(&self, points: &[Point]) -> anyhow::Result<(usize, Account)> {
        let outcome = World::play(&self.setting, points).await?;
        let (_, account) = judge(&outcome, Some(&self.essence))?;
        Ok((outcome.struck.len(), account))
    }
}

fn words(points: &[Point]) -> String {
    points.iter().map(ToString::to_string).collect::<Vec<_>>().join(" & ")
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

fn seed() -> u64 {
    number("BELAY_SEED").unwrap_or(1)
}

fn call(index: u32, operation: &str, id: &str) -> Value {
    call_of(index, &format!("counter__{operation}"), &json!({"id": id}))
}

fn call_of(index: u32, name: &str, arguments: &Value) -> Value {
    let function = json!({"name": name, "arguments": arguments.to_string()});
    json!({"index": index, "id": format!("call-{index}"), "type": "function", "function": function})
}

/// What the model says in a turn with calls.
fn calls(calls: &[Value]) -> Vec<Value> {
    vec![
        json!({"index": 0, "delta": {"content": "I will."}}),
        json!({"index": 0, "delta": {"tool_calls": calls}}),
        json!({"index": 0, "delta": {}, "finish_reason": "tool_calls"}),
    ]
}

fn answer() -> Vec<Value> {
    says("Done.")
}

fn says(text: &str) -> Vec<Value> {
    vec![json!({"index": 0, "delta": {"content": text}}), json!({"index": 0, "delta": {}, "finish_reason": "stop"})]
}

/// One Agent, which calls no other.
fn alone(own: Script) -> Scripts {
    Scripts { own, lead: None }
}

/// An idempotent and a non-idempotent call in one response.
fn two_calls() -> Script {
    vec![calls(&[call(0, "put", "p"), call(1, "add", "a")]), answer()]
}

/// A call without an answer, about which people are asked.
fn an_unknown() -> Script {
    vec![calls(&[call(0, "drop", "d")]), answer()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_at_any_point_a_run_comes_to_the_same_end() {
    let reference = Reference::new(alone(two_calls()), When::InTurn).await;
    let points = every_point(&reference.seen).into_iter().map(|point| vec![point]).collect();
    reference.withstands(points).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_while_people_are_asked_their_answer_counts_once() {
    let reference = Reference::new(alone(an_unknown()), When::Later).await;
    // What comes before the call is no other than in the run with two calls.
    let asked = reference.seen.iter().position(|seen| seen.place.name == "before call drop").unwrap();
    let points = every_point(&reference.seen[asked..]).into_iter().map(|point| vec![point]).collect();
    reference.withstands(points).await;
}

/// A call whose server wants to know something first.
fn a_question() -> Script {
    vec![calls(&[call(0, "ask", "q")]), answer()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_while_a_server_asks_people_it_gets_their_answer_and_does_it_once() {
    let reference = Reference::new(alone(a_question()), When::InTurn).await;
    // What comes before the first call is no other than in the run with two calls.
    let asked = reference.seen.iter().position(|seen| seen.place.name == "before call ask").unwrap();
    let points = every_point(&reference.seen[asked..]).into_iter().map(|point| vec![point]).collect();
    reference.withstands(points).await;
}

/// A call of another Agent, whose run makes one call and answers; its answer is the first one's too.
fn a_child() -> Scripts {
    let delegated = call_of(0, "helper__run", &json!({"input": "Add one."}));
    Scripts {
        own: vec![calls(&[call(0, "add", "a")]), says("One was added.")],
        lead: Some(vec![calls(&[delegated]), says(HEARD)]),
    }
}

/// At each place one of its faults, for time's sake; another seed takes others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_wrong_around_a_child_it_is_made_once_and_its_parent_ends_with_its_answer() {
    let reference = Reference::new(a_child(), When::InTurn).await;
    assert_eq!(reference.essence.outputs(), ["One was added.", "One was added."]);
    // What comes before the call is no other than in the run with two calls.
    let proposes = |name: &str| name.starts_with("before batch") && name.contains("CallProposed");
    let called = reference.seen.iter().position(|seen| proposes(&seen.place.name)).unwrap();
    let points = one_at_every_place(&reference.seen[called..], seed()).into_iter().map(|point| vec![point]).collect();
    reference.withstands(points).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_faults_in_one_run_change_nothing_either() {
    let pairs = number("BELAY_PAIRS").map_or(PAIRS, |pairs| usize::try_from(pairs).unwrap());
    let reference = Reference::new(alone(two_calls()), When::InTurn).await;
    let all: Vec<Point> = every_point(&reference.seen).into_iter().filter(|point| !is_slow(point.fault)).collect();
    let mut random = StdRng::seed_from_u64(seed());
    let mut pair = || {
        let first = random.random_range(0..all.len() - 1);
        vec![all[first].clone(), all[first + 1..].choose(&mut random).unwrap().clone()]
    };
    reference.withstands((0..pairs).map(|_| pair()).collect()).await;
}
