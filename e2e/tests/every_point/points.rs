//! Places at which something can go wrong, and what goes wrong there. Everything that passes between the processes
//! of a world passes here first.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::kubelet::{FROZEN, PAUSED};
use super::world::World;

/// A place by its name, and which time it is come to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub name: String,
    pub nth: u32,
}

/// A place as the undisturbed run came to it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub place: Place,
    pub runner_lives: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Runner,
    Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    RunnerDies,
    OperatorDies,
    BothDie,
    /// The stream between runner and operator breaks, and both live.
    StreamBreaks,
    /// The API server says 409 and does nothing.
    Conflict,
    /// It says 503 and does nothing.
    Unavailable,
    /// It has done it and says 504.
    TimesOut,
    /// It has done it and never answers.
    Swallows,
    WatchesBreak,
    WatchesFreeze,
    WatchesExpire,
    /// The connection to a tool or model is reset, and the runner lives.
    Reset,
    /// Nothing more comes.
    Silence,
    BadGateway,
    /// SIGSTOP, its pod object gone, and SIGCONT after the quarantine.
    RunnerFreezes,
    /// The same, and SIGCONT while its permits are still good.
    RunnerPauses,
    /// Its container is started again in the same pod, with an empty memory.
    ContainerRestarts,
    /// A second process with the same token, beside the first.
    SecondInstance,
    /// The pod object is gone, the process lives on.
    PodVanishes,
}

const WORDS: [(Fault, &str); 19] = [
    (Fault::RunnerDies, "runner dies"),
    (Fault::OperatorDies, "operator dies"),
    (Fault::BothDie, "both die"),
    (Fault::StreamBreaks, "stream breaks"),
    (Fault::Conflict, "API says 409"),
    (Fault::Unavailable, "API says 503"),
    (Fault::TimesOut, "API says 504"),
    (Fault::Swallows, "API never answers"),
    (Fault::WatchesBreak, "watches break"),
    (Fault::WatchesFreeze, "watches freeze"),
    (Fault::WatchesExpire, "watches expire"),
    (Fault::Reset, "connection is reset"),
    (Fault::Silence, "silence"),
    (Fault::BadGateway, "bad gateway"),
    (Fault::RunnerFreezes, "runner freezes"),
    (Fault::RunnerPauses, "runner pauses"),
    (Fault::ContainerRestarts, "container restarts"),
    (Fault::SecondInstance, "second instance"),
    (Fault::PodVanishes, "pod vanishes"),
];

/// What goes wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    pub fault: Fault,
    pub place: Place,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.name, self.nth)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, words) = WORDS.iter().find(|(fault, _)| *fault == self.fault).unwrap();
        write!(f, "{words} @ {}", self.place)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not FAULT @ PLACE #NTH");
        let (fault, place) = text.split_once(" @ ").ok_or_else(wrong)?;
        let (name, nth) = place.rsplit_once(" #").ok_or_else(wrong)?;
        let (fault, _) = WORDS.iter().find(|(_, words)| *words == fault).ok_or_else(wrong)?;
        let place = Place { name: name.to_owned(), nth: nth.parse().map_err(|_| wrong())? };
        Ok(Self { fault: *fault, place })
    }
}

/// What whoever came to a place does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Go,
    /// It never came this far.
    Lost,
    Answer(u16),
    /// Nothing more is heard of it.
    Never,
    /// Its connection breaks.
    Cut,
}

/// The faults of one world, each of which strikes once.
#[derive(Default)]
pub struct Points {
    pending: Mutex<Vec<Point>>,
    struck: Mutex<Vec<Point>>,
    counts: Mutex<HashMap<String, u32>>,
    seen: Mutex<Vec<Seen>>,
    world: OnceLock<Arc<World>>,
}

impl Points {
    pub fn new(faults: &[Point]) -> Self {
        Self { pending: Mutex::new(faults.to_vec()), ..Self::default() }
    }

    pub fn belong_to(&self, world: Arc<World>) {
        let _ = self.world.set(world);
    }

    pub fn struck(&self) -> Vec<Point> {
        self.struck.lock().clone()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// `actor` is about to do something, if `name` begins with `before`, or has just done it.
    pub async fn pass(&self, name: &str, actor: Process) -> Next {
        let Some(world) = self.world.get() else { return Next::Go };
        let place = {
            let mut counts = self.counts.lock();
            let nth = counts.entry(name.to_owned()).or_default();
            *nth += 1;
            Place { name: name.to_owned(), nth: *nth }
        };
        self.seen.lock().push(Seen { place: place.clone(), runner_lives: world.kubelet.runner_lives() });
        let fault = {
            let mut pending = self.pending.lock();
            let at = pending.iter().position(|point| point.place == place);
            at.map(|at| pending.remove(at))
        };
        let Some(point) = fault else { return Next::Go };
        let fault = point.fault;
        self.struck.lock().push(point);
        strike(world, fault, actor, name.starts_with("before")).await
    }
}

async fn strike(world: &Arc<World>, fault: Fault, actor: Process, before: bool) -> Next {
    let lost_with = |process: Process| if before && actor == process { Next::Lost } else { Next::Go };
    match fault {
        Fault::RunnerDies => {
            world.kubelet.kill_runner();
            lost_with(Process::Runner)
        }
        Fault::OperatorDies => {
            world.operator.kill().await;
            lost_with(Process::Operator)
        }
        Fault::BothDie => {
            world.kubelet.kill_runner();
            world.operator.kill().await;
            if before { Next::Lost } else { Next::Go }
        }
        Fault::StreamBreaks | Fault::Reset => Next::Cut,
        Fault::Conflict => Next::Answer(409),
        Fault::Unavailable => Next::Answer(503),
        Fault::TimesOut => Next::Answer(504),
        Fault::BadGateway => Next::Answer(502),
        Fault::Swallows | Fault::Silence => Next::Never,
        Fault::WatchesBreak | Fault::WatchesFreeze | Fault::WatchesExpire => {
            world.api.disturb_watches(fault);
            Next::Go
        }
        Fault::RunnerFreezes => {
            world.kubelet.freeze_runner(FROZEN);
            Next::Go
        }
        Fault::RunnerPauses => {
            world.kubelet.freeze_runner(PAUSED);
            Next::Go
        }
        Fault::ContainerRestarts => {
            world.kubelet.restart_container();
            lost_with(Process::Runner)
        }
        Fault::SecondInstance => {
            world.kubelet.start_second().await;
            Next::Go
        }
        Fault::PodVanishes => {
            world.kubelet.forget_pod();
            Next::Go
        }
    }
}
