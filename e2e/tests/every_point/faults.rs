//! What can go wrong at which place.

use super::points::{Fault, Place, Point, Seen};

/// Every single fault at every place of an undisturbed run.
pub fn every_point(seen: &[Seen]) -> Vec<Point> {
    seen.iter()
        .flat_map(|seen| faults(seen).into_iter().map(|fault| Point { fault, place: seen.place.clone() }))
        .collect()
}

/// One fault at each place: which, the place's name and `seed` say. As many seeds in a row as a place has faults play all
/// of them there.
pub fn one_at_every_place(places: &[Seen], seed: u64) -> Vec<Point> {
    let one = |seen: &Seen| {
        let (faults, place) = (faults(seen), seen.place.clone());
        let number = place.to_string().bytes().fold(seed, |sum, byte| sum.wrapping_add(u64::from(byte)));
        let at = usize::try_from(number % u64::try_from(faults.len()).unwrap()).unwrap();
        Point { fault: faults[at], place }
    };
    places.iter().map(one).collect()
}

/// Whether it takes a quarantine to come through it.
pub fn is_slow(fault: Fault) -> bool {
    matches!(fault, Fault::RunnerFreezes | Fault::RunnerPauses | Fault::PodVanishes)
}

fn faults(seen: &Seen) -> Vec<Fault> {
    let Seen { place: Place { name, .. }, runner_lives } = seen;
    let (moment, what) = name.split_once(' ').unwrap_or_default();
    let mut faults = vec![Fault::OperatorDies];
    if *runner_lives {
        faults.push(Fault::RunnerDies);
    }
    let before = moment == "before";
    match kind(what) {
        Kind::Commit => {
            if *runner_lives && !before {
                faults.push(Fault::BothDie);
            }
        }
        Kind::Write if before => faults.extend([Fault::Conflict, Fault::Unavailable]),
        Kind::Write => faults.extend([
            Fault::TimesOut,
            Fault::Swallows,
            Fault::WatchesBreak,
            Fault::WatchesFreeze,
            Fault::WatchesExpire,
        ]),
        Kind::Message => {
            faults.push(Fault::StreamBreaks);
            if what.starts_with("ack") || what == "Welcome" {
                // Before: the runner waits for this very message, and reads it once it is thawed.
                faults.extend(if before {
                    [Fault::SecondInstance, Fault::RunnerFreezes, Fault::RunnerPauses]
                } else {
                    [Fault::ContainerRestarts, Fault::BothDie, Fault::PodVanishes]
                });
            }
        }
        Kind::Request => faults.extend([Fault::Reset, Fault::BadGateway]),
        Kind::Answer => faults.push(Fault::Reset),
    }
    // A server that lists nothing is waited for half a minute.
    if matches!(kind(what), Kind::Request | Kind::Answer) && !what.contains('/') {
        faults.push(Fault::Silence);
    }
    if !before && what.starts_with("call ") {
        faults.extend([Fault::RunnerFreezes, Fault::RunnerPauses, Fault::PodVanishes]);
    }
    faults
}

enum Kind {
    /// Of the journal.
    Commit,
    /// To the API server.
    Write,
    /// Between runner and operator.
    Message,
    /// To the model or a tool, which arrives.
    Request,
    /// A piece of what comes back.
    Answer,
}

fn kind(what: &str) -> Kind {
    let starts = |beginnings: &[&str]| beginnings.iter().any(|beginning| what.starts_with(beginning));
    if starts(&["commit "]) {
        Kind::Commit
    } else if starts(&["status ", "create ", "delete ", "Event", "TokenReview"]) {
        Kind::Write
    } else if starts(&["piece "]) {
        Kind::Answer
    } else if starts(&["call ", "model request", "server/", "tools/"]) {
        Kind::Request
    } else {
        Kind::Message
    }
}
