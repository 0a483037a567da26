//! Many seeds, and the proof that they would notice.

use std::panic::{AssertUnwindSafe, catch_unwind};

use belay_protocol::event::{Answer, Event, Outcome};
use belay_protocol::{CALL_ATTEMPTS_MAX, RunState};

use super::{DELEGATED, Fault, Rng, Without, World};

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
    let (mut sent, mut epochs, mut asked, mut children) = (0, 0, 0, 0);
    for seed in seeds {
        match play(seed, Without::Nothing) {
            Ok(world) => {
                sent += world.sent.len();
                epochs += usize::try_from(world.state.epoch.as_ref().map_or(0, |epoch| epoch.number)).unwrap();
                asked += world.records.iter().filter(|(_, event)| event.name() == "AskOpened").count();
                children += world.begun().len();
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
    assert!(
        one.is_some() || (sent > 500 && epochs > 700 && asked > 20 && children > 100),
        "{sent} sent, {epochs} epochs, {asked} asked, {children} children"
    );
}

/// Whether any of the seeds notices, in these words.
fn is_noticed(without: Without, words: &str) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (0..SEEDS).any(|seed| play(seed, without).is_err_and(|why| why.contains(words)));
    std::panic::set_hook(hook);
    found
}

#[test]
fn without_a_rule_some_seed_finds_what_it_is_for() {
    assert!(is_noticed(Without::Quarantine, "I1"), "quarantine");
    assert!(is_noticed(Without::EpochCheck, ""), "epoch check");
    assert!(is_noticed(Without::Sync, "I2"), "durable before it is sent");
}

const FAULTS: [Fault; 18] = [
    Fault::RunnerDies,
    Fault::OperatorDies,
    Fault::BothDie,
    Fault::PodDeleted,
    Fault::PodForcedAway,
    Fault::NodeCutOff,
    Fault::ConnectionReset,
    Fault::BatchLost,
    Fault::AnswerLost,
    Fault::PodRefused,
    Fault::PowerCut,
    Fault::SyncFails,
    Fault::ApprovalVanishes,
    Fault::ClockSet,
    Fault::ChildDies,
    Fault::ChildRefused,
    Fault::ChildAnswerLost,
    Fault::ChildVanishes,
];

const OF_A_CHILD: [Fault; 4] = [Fault::ChildDies, Fault::ChildRefused, Fault::ChildAnswerLost, Fault::ChildVanishes];

/// Plays the reference run, in which nothing else goes wrong, and strikes at these points.
fn disturbed(strikes: &[(usize, Fault)]) -> World {
    let mut world = World::new(REFERENCE, Without::Nothing);
    world.faults = false;
    let last = strikes.iter().map(|(at, _)| *at).max().unwrap_or(0);
    for step in 0..=last {
        for (_, fault) in strikes.iter().filter(|(at, _)| *at == step) {
            world.strike(*fault);
        }
        world.step();
        world.now += 20;
    }
    world.settle();
    world
}

/// What the world has to look like afterwards: as without the faults, or with what people said of an Unknown.
fn judge(world: &World) {
    let end = world.state.end.as_ref().unwrap();
    let ended_by_people =
        world.records.iter().any(|(_, event)| matches!(event, Event::AskSettled { answer: Answer::End { .. }, .. }));
    assert!(end.outcome == Outcome::Succeeded || ended_by_people, "{end:?}");
    let count = |wanted: fn(&Event) -> bool| world.records.iter().filter(|(_, event)| wanted(event)).count();
    if !ended_by_people {
        assert_eq!(count(|event| matches!(event, Event::ModelResponded { .. })), 5, "no answer was asked for twice");
        let children = world.begun();
        assert!(children.len() == 1 || world.deleted_a_child(), "{} runs for one call", children.len());
        let succeeded = |child: &RunState| child.end.as_ref().is_some_and(|end| end.outcome == Outcome::Succeeded);
        assert!(children.iter().all(|child| succeeded(child)) || world.deleted_a_child(), "{children:?}");
    }
    for number in 1..=8 {
        let call_id = format!("c{number}");
        if call_id == DELEGATED {
            continue;
        }
        let sent = world.sent.iter().filter(|one| one.call_id == call_id).count();
        let again = |event: &Event| matches!(event, Event::AskSettled { answer: Answer::Retry { .. }, .. });
        let retries = world.records.iter().filter(|(_, event)| again(event)).count();
        let most = if number % 2 == 1 { CALL_ATTEMPTS_MAX as usize } else { 1 + retries };
        assert!(sent <= most, "{call_id} was sent {sent} times, and {most} were right");
        // Of one that nobody knew about people said what they said.
        let asked = |event: &Event| matches!(event, Event::AskOpened { ask } if ask.call_id == call_id);
        let asked = world.records.iter().any(|(_, event)| asked(event));
        assert!(sent > 0 || ended_by_people || asked, "{call_id} was never sent");
    }
}

const REFERENCE: u64 = 11;

/// How many steps the reference run takes, and at which of them it calls another Agent.
fn steps_of_the_reference_run() -> (usize, usize) {
    let mut world = World::new(REFERENCE, Without::Nothing);
    world.faults = false;
    let (mut steps, mut delegated) = (0, 0);
    while world.state.end.is_none() {
        world.step();
        world.now += 20;
        steps += 1;
        if world.state.children_total == 0 {
            delegated = steps;
        }
        let last = world.steps.len().saturating_sub(60);
        assert!(steps < 20_000, "the reference run does not end:\n{}", world.steps[last..].join("\n"));
    }
    (steps, delegated)
}

fn struck(strikes: &[(usize, Fault)]) {
    let played = catch_unwind(AssertUnwindSafe(|| judge(&disturbed(strikes))));
    assert!(played.is_ok(), "struck by {strikes:?}; the words are above");
}

#[test]
fn a_fault_at_any_point_of_the_reference_run_changes_nothing_but_what_people_are_asked() {
    let (points, delegated) = steps_of_the_reference_run();
    assert!(points > 100 && delegated < points, "{points} points, and no child before {delegated}");
    for at in 0..points {
        // Before there is a child its faults would only wait for it.
        let faults = FAULTS.iter().filter(|fault| at >= delegated || !OF_A_CHILD.contains(fault));
        for fault in faults {
            struck(&[(at, *fault)]);
        }
    }
}

#[test]
fn nor_do_pairs_of_faults() {
    let points = u64::try_from(steps_of_the_reference_run().0).unwrap();
    let mut rng = Rng(number("BELAY_SEED").unwrap_or(1));
    let mut point = || usize::try_from(rng.below(points)).unwrap();
    let pairs: Vec<[usize; 4]> = (0..600).map(|_| [point(), point(), point(), point()]).collect();
    for [first, second, one, other] in pairs {
        struck(&[(first, FAULTS[one % FAULTS.len()]), (second, FAULTS[other % FAULTS.len()])]);
    }
}
