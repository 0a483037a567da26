//! Who starts next: limits of the installation, of namespaces and of Agents, first come first served. The
//! order is a pure function of who waits and who is active; the lobby only remembers who is active.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A pod that has not said Hello for so long no longer holds up others: it waits for something else.
const STARTING_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    pub installation: usize,
    pub namespace: usize,
    /// Pods that start at the same time.
    pub starting: usize,
}

/// A run that could start, in the order in which it may: oldest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    pub created: Timestamp,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub agent: String,
    /// `Agent.spec.maxConcurrentRuns`.
    pub agent_limit: Option<usize>,
}

/// Which limit a run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Installation(usize),
    Namespace(usize),
    Agent(usize),
    Starting(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Granted,
    Queued(Full),
}

/// A run that holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Active {
    namespace: String,
    agent: String,
    /// None once its runner has said Hello.
    starting_since: Option<Instant>,
}

/// The runs that hold a slot. Cheap to clone.
#[derive(Clone)]
pub struct Lobby {
    active: Arc<Mutex<HashMap<String, Active>>>,
    limits: QueueLimits,
}

impl Lobby {
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self { active: Arc::default(), limits }
    }

    /// Takes a slot for `me`, unless someone of `waiting` comes first or a limit is reached. Who has a slot
    /// keeps it.
    #[must_use]
    pub fn take_turn(&self, me: &Ticket, waiting: Vec<Ticket>, now: Instant) -> Turn {
        let mut active = self.active.lock();
        if active.contains_key(&me.uid) {
            return Turn::Granted;
        }
        let waiting = waiting.into_iter().filter(|ticket| !active.contains_key(&ticket.uid)).collect();
        let mine = turns(waiting, &active, self.limits, now).into_iter().find(|(ticket, _)| ticket.uid == me.uid);
        let turn = mine.map_or(Turn::Queued(Full::Starting(self.limits.starting)), |(_, turn)| turn);
        if turn == Turn::Granted {
            let slot = Active { namespace: me.namespace.clone(), agent: me.agent.clone(), starting_since: Some(now) };
            active.insert(me.uid.clone(), slot);
        }
        turn
    }

    /// A run that was under way before this process started.
    pub fn resume(&self, uid: &str, namespace: &str, agent: &str) {
        let slot = Active { namespace: namespace.to_owned(), agent: agent.to_owned(), starting_since: None };
        self.active.lock().entry(uid.to_owned()).or_insert(slot);
    }

    /// The run's pod no longer counts as starting. Tells whether it did.
    #[must_use]
    pub fn started(&self, uid: &str) -> bool {
        self.active.lock().get_mut(uid).and_then(|slot| slot.starting_since.take()).is_some()
    }

    /// Gives the slot back. Tells whether there was one.
    #[must_use]
    pub fn leave(&self, uid: &str) -> bool {
        self.active.lock().remove(uid).is_some()
    }

    /// Those of `waiting` that may start now.
    #[must_use]
    pub fn next(&self, waiting: Vec<Ticket>, now: Instant) -> Vec<Ticket> {
        let active = self.active.lock();
        let waiting = waiting.into_iter().filter(|ticket| !active.contains_key(&ticket.uid)).collect();
        let turns = turns(waiting, &active, self.limits, now);
        turns.into_iter().filter(|(_, turn)| *turn == Turn::Granted).map(|(ticket, _)| ticket).collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.active.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What each of `waiting` gets: oldest first, and nobody is held up by someone else's namespace or Agent.
fn turns(
    mut waiting: Vec<Ticket>,
    active: &HashMap<String, Active>,
    limits: QueueLimits,
    now: Instant,
) -> Vec<(Ticket, Turn)> {
    let mut total = active.len();
    let mut starting = active.values().filter(|slot| is_starting(slot, now)).count();
    let mut namespaces: HashMap<String, usize> = HashMap::new();
    let mut agents: HashMap<(String, String), usize> = HashMap::new();
    for slot in active.values() {
        *namespaces.entry(slot.namespace.clone()).or_default() += 1;
        *agents.entry((slot.namespace.clone(), slot.agent.clone())).or_default() += 1;
    }
    waiting.sort();
    waiting.dedup_by(|a, b| a.uid == b.uid);
    let turn_of = |ticket: Ticket| {
        let in_namespace = namespaces.entry(ticket.namespace.clone()).or_default();
        let of_agent = agents.entry((ticket.namespace.clone(), ticket.agent.clone())).or_default();
        let turn = if total >= limits.installation {
            Turn::Queued(Full::Installation(limits.installation))
        } else if *in_namespace >= limits.namespace {
            Turn::Queued(Full::Namespace(limits.namespace))
        } else if let Some(limit) = ticket.agent_limit.filter(|limit| *of_agent >= *limit) {
            Turn::Queued(Full::Agent(limit))
        } else if starting >= limits.starting {
            Turn::Queued(Full::Starting(limits.starting))
        } else {
            *in_namespace += 1;
            *of_agent += 1;
            total += 1;
            starting += 1;
            Turn::Granted
        };
        (ticket, turn)
    };
    waiting.into_iter().map(turn_of).collect()
}

fn is_starting(slot: &Active, now: Instant) -> bool {
    slot.starting_since.is_some_and(|since| now.duration_since(since) < STARTING_MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    const ROOMY: QueueLimits = QueueLimits { installation: 100, namespace: 50, starting: 10 };

    fn ticket(second: i64, name: &str, agent: &str) -> Ticket {
        Ticket {
            created: Timestamp::from_second(second).unwrap(),
            name: name.to_owned(),
            namespace: "triage".to_owned(),
            uid: format!("uid-{name}"),
            agent: agent.to_owned(),
            agent_limit: None,
        }
    }

    fn names(tickets: &[Ticket]) -> Vec<&str> {
        tickets.iter().map(|ticket| ticket.name.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_start_first_and_names_break_ties() {
        let lobby = Lobby::new(QueueLimits { installation: 2, ..ROOMY });
        let waiting = vec![ticket(2, "b", "x"), ticket(1, "c", "x"), ticket(1, "a", "x")];
        assert_eq!(names(&lobby.next(waiting.clone(), Instant::now())), ["a", "c"]);
        let (youngest, oldest) = (waiting[0].clone(), waiting[2].clone());
        assert_eq!(
            lobby.take_turn(&youngest, waiting.clone(), Instant::now()),
            Turn::Queued(Full::Installation(2)),
            "asking first does not help"
        );
        assert_eq!(lobby.take_turn(&oldest, waiting, Instant::now()), Turn::Granted);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_at_its_limit_holds_up_nobody_else() {
        let lobby = Lobby::new(ROOMY);
        let limited = |second, name: &str| Ticket { agent_limit: Some(1), ..ticket(second, name, "slow") };
        let waiting = vec![limited(1, "a"), limited(2, "b"), ticket(3, "c", "quick")];
        assert_eq!(names(&lobby.next(waiting.clone(), Instant::now())), ["a", "c"]);
        assert_eq!(lobby.take_turn(&waiting[0], waiting.clone(), Instant::now()), Turn::Granted);
        assert_eq!(lobby.take_turn(&waiting[1], waiting.clone(), Instant::now()), Turn::Queued(Full::Agent(1)));
        assert!(lobby.leave("uid-a"));
        assert_eq!(lobby.take_turn(&waiting[1], waiting[1..].to_vec(), Instant::now()), Turn::Granted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_at_its_limit_queues_its_own_runs_only() {
        let lobby = Lobby::new(QueueLimits { namespace: 1, ..ROOMY });
        lobby.resume("uid-old", "triage", "x");
        let elsewhere = Ticket { namespace: "other".to_owned(), ..ticket(9, "z", "x") };
        let waiting = vec![ticket(1, "a", "x"), elsewhere];
        assert_eq!(names(&lobby.next(waiting, Instant::now())), ["z"]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_pods_start_at_once_and_one_that_is_stuck_stops_counting() {
        let lobby = Lobby::new(QueueLimits { starting: 1, ..ROOMY });
        let waiting = vec![ticket(1, "a", "x"), ticket(2, "b", "x"), ticket(3, "c", "x")];
        assert_eq!(lobby.take_turn(&waiting[0], waiting.clone(), Instant::now()), Turn::Granted);
        let full = Turn::Queued(Full::Starting(1));
        assert_eq!(lobby.take_turn(&waiting[1], waiting.clone(), Instant::now()), full);
        assert!(lobby.started("uid-a") && !lobby.started("uid-a"));
        assert_eq!(lobby.take_turn(&waiting[1], waiting.clone(), Instant::now()), Turn::Granted);
        assert_eq!(lobby.take_turn(&waiting[2], waiting.clone(), Instant::now()), full);
        tokio::time::advance(STARTING_MAX).await;
        assert_eq!(lobby.take_turn(&waiting[2], waiting.clone(), Instant::now()), Turn::Granted);
        assert_eq!(lobby.len(), 3);
    }
}
