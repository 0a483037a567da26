//! Many seeds, and the proof that they would notice.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Without, World};

const STEPS: usize = 900;
const SEEDS: u64 = 500;

/// Runs one seed to its end. What went wrong, with the last steps before it.
fn play(seed: u64, without: Without) -> Result<World, String> {
    let mut world = World::new(seed, without);
    let played = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
    }));
    match played {
        Ok(()) => Ok(world),
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let last: Vec<String> = world.steps.iter().rev().take(40).rev().cloned().collect();
            Err(format!("{}\n{}", words.unwrap_or_default(), last.join("\n")))
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

#[test]
fn whatever_goes_wrong_the_promises_hold_and_the_run_comes_to_an_end() {
    let one = number("BELAY_SEED");
    let seeds = one.map_or(0..number("BELAY_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (mut sent, mut epochs, mut asked) = (0, 0, 0);
    for seed in seeds {
        match play(seed, Without::default()) {
            Ok(world) => {
                sent += world.sent.len();
                epochs += usize::try_from(world.state.epoch.as_ref().map_or(0, |epoch| epoch.number)).unwrap();
                asked += world.records.iter().filter(|(_, event)| event.name() == "AskOpened").count();
                if one.is_some() {
                    println!("{}", world.steps.join("\n"));
                }
            }
            Err(why) => panic!(
                "seed {seed}: {why}\nreplay: BELAY_SEED={seed} cargo test -p belay-operator simulation -- --nocapture"
            ),
        }
    }
    // A world in which nothing happens would hold every promise.
    assert!(one.is_some() || (sent > 500 && epochs > 700 && asked > 20), "{sent} sent, {epochs} epochs, {asked} asked");
}

/// How many of the seeds notice, and in which words.
fn noticed(without: Without, words: &str) -> usize {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (0..SEEDS).filter(|seed| play(*seed, without).is_err_and(|why| why.contains(words))).count();
    std::panic::set_hook(hook);
    found
}

#[test]
fn without_a_rule_some_seed_finds_what_it_is_for() {
    assert!(noticed(Without { quarantine: true, ..Without::default() }, "I1") > 0, "quarantine");
    assert!(noticed(Without { epoch_check: true, ..Without::default() }, "") > 0, "epoch check");
}
