//! What to do next with a run, by everything that was looked at. Pure and total: the order of the checks is
//! Tekton's (over, cancelled, out of time, lost its pod, not started) with the journal's word first.

mod drift;
mod epoch;
mod grants;
mod rest;

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, WaitingOn};
use belay_protocol::event::{Ask, DeathProof, EndReason, EpochEnd, Limit};
use belay_protocol::fold::{CallState, RunState};
use belay_protocol::plan::Limits;
use kube::ResourceExt;

pub use self::drift::BACK_AFTER;
pub use self::epoch::{is_idle, quarantine};
pub use self::grants::{GrantSeen, Granted};
use super::children::{self, ChildSeen, ChildState};
use super::drift::DriftSeen;
use super::ending::Ending;
use super::lineage::Lineage;
use super::questions::unasked;
use crate::namespaces::Service;
use crate::pod_view::PodView;
use crate::quota::Waits;
use crate::tuning::Times;

/// A pod that runs for so long without Hello is given up.
pub const SILENT_MAX: Duration = Duration::from_mins(5);
/// That many crashes without any progress in between end the run.
pub const CRASHES_MAX: u32 = 5;
/// What calls in flight get when a run is cancelled.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long a pod may take to leave after its run has ended.
pub const LEAVING_MAX: Duration = Duration::from_secs(15);
/// How long an ended pod's last words may take to be journaled.
pub const LAST_WORDS_MAX: Duration = Duration::from_secs(10);

const CANCELLED: &str = "spec.cancel is true";

/// Everything that a decision depends on.
pub struct Observed<'a> {
    pub run: &'a AgentRun,
    pub journal_id: &'a str,
    pub head: Option<JournalHead>,
    pub state: Option<&'a RunState>,
    pub agent: AgentView,
    pub service: Service,
    pub pod: PodView,
    /// Whether this process has created the epoch's pod, or found it.
    pub pod_was_there: bool,
    pub stream: Stream,
    /// Since this process saw that the run is being cancelled, by the monotonic clock.
    pub cancelling_for: Duration,
    /// Since this process saw the pod's container ended.
    pub ended_for: Duration,
    /// Epochs that ended and may still act.
    pub undead: Vec<Undead>,
    pub asks: Vec<AskSeen>,
    pub children: Vec<ChildSeen>,
    pub lineage: &'a Lineage,
    /// Definitions that the run waits for.
    pub drift: DriftSeen,
    pub grants: Vec<GrantSeen>,
    /// Why no decision of people counts now.
    pub guard_down: Option<String>,
    /// Why what a Tool's status says is accepted is not believed now.
    pub status_doubt: Option<String>,
    /// How long the live epoch was claimed, by the monotonic clock as far as this process saw it.
    pub active_for: Duration,
    /// How the last runner ended, if this process saw it: after the words "its pod".
    pub last_words: Option<String>,
    /// Since this process saw no epoch alive.
    pub resting_for: Duration,
    /// Since this process saw the runner do nothing but wait.
    pub idle_for: Duration,
    /// Whether an answer to the runner is held back.
    pub withheld: bool,
    /// What the runner's request to its Model waits for.
    pub model_wait: Option<Waits>,
    pub limits: Limits,
    pub times: Times,
    /// Milliseconds since the Unix epoch.
    pub now: i64,
}

/// Where the journal stands, as status names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalHead {
    pub seq: u64,
    pub hash: String,
    /// Whether the record that status names is the one that the journal holds there.
    pub holds_witness: bool,
}

/// An ended epoch without proof of its death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undead {
    pub epoch: u64,
    pub pod: PodView,
    /// Since this process first looked at it, by the monotonic clock: a restart counts afresh.
    pub waited: Duration,
}

/// An open question and its Approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskSeen {
    pub name: String,
    pub seen: Approved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approved {
    /// The journal has no uid of it yet.
    Unposted,
    Open,
    /// `status.given` is behind its decisions.
    Uncounted,
    /// Enough decisions are there, or it is sealed: they are taken at once.
    Decided,
    /// Everyone whose yes a call needs said yes: that is taken towards a runner that is there to send it.
    Allowed,
    /// A server's question was answered or declined, is sealed, or its time is up: taken once no other call is under way,
    /// since the pod that waits is let go with it.
    Answered,
    /// The time of a question about a call is up.
    Overdue,
    /// It asks about something that is not so any more.
    OutOfDate,
    /// Someone deleted it.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Live,
    Closed,
}

/// The Agent that the run names, as far as a run needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentView {
    Missing,
    Suspended,
    NotReady(String),
    Ready,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It is over and status says so: the pod goes, then, in time, the AgentRun.
    Finish,
    /// It ends now.
    End(Ending),
    /// It cannot start yet.
    Wait(Wait),
    /// It may start, when its turn comes.
    Start,
    /// What lies between here and a pod is done now.
    Launch,
    /// The epoch is over; the run goes on in another one.
    EndEpoch(EpochEnding),
    /// Nothing of that epoch can act any more.
    Bury { epoch: u64, proof: DeathProof },
    /// Nobody knows what became of that call: people are to be asked.
    Ask { call_id: String },
    /// The Approval is to be made.
    Post { name: String },
    /// The Approval is to be sealed and its decisions taken, or is gone.
    Settle { name: String },
    /// Its status is to say how many said yes.
    Count { name: String },
    /// The AgentRun of that child is to be made.
    PostChild { name: String },
    /// The end of that child is to become a result.
    SettleChild { name: String },
    /// What is accepted of that tool by now becomes what the run goes by.
    Adopt { tool: String },
    /// Its ApprovalGrant is to be made.
    PostGrant { name: String },
    /// It counts no more.
    RevokeGrant { name: String, why: &'static str },
    /// Someone asked for the end.
    RequestCancel,
    /// It goes on by itself.
    Follow(Follow),
    /// Not enough is known to decide; the watches will tell.
    Hold,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    pub on: WaitingOn,
    pub reason: RunReason,
    pub message: String,
}

/// How an epoch ends that is not the run's last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochEnding {
    pub epoch: u64,
    pub cause: EpochEnd,
    /// None: it may still act on a permit.
    pub proof: Option<DeathProof>,
    /// For the log, and for the calls that it leaves behind.
    pub message: String,
}

/// How an accepted run fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follow {
    /// No Hello yet.
    Starting,
    /// Its runner keeps getting lost: the next one waits a little.
    Backoff(Duration),
    Waiting(Wait),
    Running,
    /// Its runner is there, and something that nobody can do anything about keeps it from going on as usual.
    Held {
        reason: RunReason,
        message: String,
    },
    Cancelling,
}

impl Observed<'_> {
    /// The first check that applies decides.
    #[must_use]
    pub fn decide(&self) -> Decision {
        let checks = [Self::over, Self::lost, Self::deleted, Self::buried, Self::cancelled, Self::out_of_time];
        let first = checks.iter().find_map(|check| check(self));
        first.unwrap_or_else(|| match self.state {
            None => self.not_accepted(),
            Some(state) => self.accepted(state),
        })
    }

    fn over(&self) -> Option<Decision> {
        // A status that says so is believed where the journal knows nothing: anyone with the verb may write it.
        let over = self.state.map_or_else(|| crate::world::has_ended(self.run), |state| state.end.is_some());
        over.then_some(Decision::Finish)
    }

    /// Status is a witness: where it knows more than the journal, the journal was lost or rolled back.
    fn lost(&self) -> Option<Decision> {
        let witness = self.run.status.as_ref()?.journal.as_ref()?;
        let seq = u64::try_from(witness.seq).unwrap_or_default();
        let what = if witness.id == self.journal_id {
            match &self.head {
                None => format!("status.journal stands at record {seq}, the journal has none"),
                Some(head) if head.seq < seq => {
                    format!("status.journal stands at record {seq}, the journal at {}", head.seq)
                }
                Some(head) if !head.holds_witness => {
                    format!("record {seq} of the journal is not the one that status.journal names")
                }
                Some(_) => return None,
            }
        } else {
            format!("status.journal names journal {}, this one is {}", witness.id, self.journal_id)
        };
        let message = format!(
            "the journal was lost or rolled back: {what}; what this run did is not known; look at its effects before \
             you create another AgentRun"
        );
        Some(Decision::End(Ending::failed(EndReason::JournalLost, EpochEnd::PodLost, message)))
    }

    fn deleted(&self) -> Option<Decision> {
        self.run.metadata.deletion_timestamp.as_ref()?;
        let ending = Ending::cancelled("the AgentRun was deleted");
        Some(Decision::End(match self.state {
            Some(state) => ending.naming_unknowns(state),
            None => ending,
        }))
    }

    /// One that carries out a call is cancelled with whoever called. A run that nothing can act for any more ends at once. A
    /// live one gets the grace; one whose calls may still be sent or under way ends when its pod has, or after the quarantine.
    fn cancelled(&self) -> Option<Decision> {
        let requested = self.state.is_some_and(|state| state.cancel_requested);
        if self.run.spec.cancel != Some(true) && !requested && self.lineage.cut_off().is_none() {
            return None;
        }
        let why = self.lineage.cut_off().filter(|_| self.run.spec.cancel != Some(true)).unwrap_or(CANCELLED);
        let end = |state: &RunState| Decision::End(Ending::cancelled(why).naming_unknowns(state));
        let Some(state) = self.state else { return Some(Decision::End(Ending::cancelled(why))) };
        let Some(epoch) = state.live_epoch().filter(|epoch| epoch.claim.is_some()) else {
            // Children hear of it at once, whatever this run waits for.
            return Some(match (self.undead.is_empty(), requested) {
                (true, _) => end(state),
                (false, true) => Decision::Follow(Follow::Cancelling),
                (false, false) => Decision::RequestCancel,
            });
        };
        if !requested {
            return Some(Decision::RequestCancel);
        }
        let patient = self.cancelling_for < CANCEL_GRACE;
        let in_flight = state.calls_in_flight().next().is_some();
        let ended = matches!(self.pod, PodView::Ended(_)) && self.stream == Stream::Closed;
        Some(if ended || (!in_flight && (self.stream == Stream::Closed || !patient)) {
            end(state)
        } else if patient {
            Decision::Follow(Follow::Cancelling)
        } else {
            let message = "the run was cancelled before its end was known".to_owned();
            Decision::EndEpoch(EpochEnding { epoch: epoch.number, cause: EpochEnd::Cancelled, proof: None, message })
        })
    }

    fn out_of_time(&self) -> Option<Decision> {
        let claimed = self.state.filter(|state| state.live_epoch().is_some_and(|epoch| epoch.claim.is_some()));
        let ending = match claimed {
            Some(state) => self.out_of_activity(state)?.naming_unknowns(state),
            None => self.out_of_patience()?,
        };
        Some(Decision::End(ending))
    }

    fn out_of_activity(&self, state: &RunState) -> Option<Ending> {
        let limit = self.limits.active_seconds;
        let active = Duration::from_millis(state.active_milliseconds) + self.active_for;
        (active >= Duration::from_secs(u64::from(limit))).then(|| {
            let agent = &self.run.spec.agent_ref.name;
            let message =
                format!("limits.activeSeconds of {limit} is used up; raise it in Agent {agent} or in the run's spec");
            Ending::out_of_time(Some(Limit::ActiveSeconds), EndReason::DeadlineExceeded, message)
        })
    }

    /// One wait is bounded: the first from creation to the first runner, each later one from an epoch's end. A child has
    /// limits of its own.
    fn out_of_patience(&self) -> Option<Ending> {
        if self.state.is_some_and(RunState::has_child_at_work) {
            return None;
        }
        let limit = self.limits.wait_seconds;
        let since = waiting_since(self.run, self.state);
        (seconds_since(since, self.now) >= u64::from(limit)).then(|| {
            let waited = self.run.status.as_ref().and_then(|status| status.waiting_on.as_ref());
            let waited = waited.map_or_else(String::new, |on| format!(" on {}", on.display));
            let started = self.state.is_some_and(|state| state.started_at.is_some());
            let how = if started { "and nobody came" } else { "and never started" };
            let message = format!("the run waited{waited} for limits.waitSeconds of {limit} {how}");
            // A journal without a plan takes no limit: the end says it.
            let limit = self.state.is_some().then_some(Limit::WaitSeconds);
            let ending = Ending::out_of_time(limit, EndReason::WaitExceeded, message);
            match self.state {
                Some(state) => ending.naming_unknowns(state),
                None => ending,
            }
        })
    }

    fn not_accepted(&self) -> Decision {
        let namespace = self.run.namespace().unwrap_or_default();
        match self.service {
            Service::Starting => return Decision::Hold,
            Service::NotEnabled | Service::Forbidden => {
                let message = self.service.complaint(&namespace).unwrap_or_default();
                let on = WaitingOn::new("namespace", &namespace);
                return Decision::Wait(Wait { on, reason: RunReason::NamespaceNotEnabled, message });
            }
            Service::Enabled => {}
        }
        match self.agent_wait() {
            // It is woken by whoever names it.
            _ if *self.lineage == Lineage::Unnamed => Decision::Hold,
            Some(wait) => Decision::Wait(wait),
            None => Decision::Start,
        }
    }

    fn agent_wait(&self) -> Option<Wait> {
        let name = &self.run.spec.agent_ref.name;
        let (reason, message) = match &self.agent {
            AgentView::Ready => return None,
            AgentView::Missing => {
                let namespace = self.run.namespace().unwrap_or_default();
                let subject = format!("AgentRun {}: spec.agentRef", self.run.name_any());
                (RunReason::AgentMissing, crate::references::missing(&subject, "Agent", name, &namespace))
            }
            AgentView::Suspended => (RunReason::Suspended, suspended(name)),
            AgentView::NotReady(why) => (RunReason::AgentNotReady, why.clone()),
        };
        Some(Wait { on: WaitingOn::new("agent", name), reason, message })
    }

    /// An epoch whose pod is lost ends. Then what people allowed for the rest of the run is seen to. Then questions are put,
    /// answers taken, and the ends of children. Then the run goes on, with its pod or towards the next one. A child is made
    /// where nothing else is to be done: it can be refused for long, and holds up neither its siblings nor the run's pods.
    fn accepted(&self, state: &RunState) -> Decision {
        let lost = state.live_epoch().and_then(|epoch| self.lost_epoch(epoch));
        let due = lost.or_else(|| self.grant()).or_else(|| self.question(state)).or_else(|| self.child_over(state));
        let next = due.unwrap_or_else(|| match state.live_epoch() {
            Some(epoch) => self.live(epoch, state),
            None => self.resting(state),
        });
        let idle = matches!(next, Decision::Follow(_) | Decision::Hold | Decision::Wait(_));
        self.child_unposted().filter(|_| idle).unwrap_or(next)
    }

    /// An end is taken once no other call is under way, since the pod that waits is let go with it.
    fn child_over(&self, state: &RunState) -> Option<Decision> {
        let over = self.children.iter().find(|child| child.seen == ChildState::Over);
        let free = state.calls_in_flight().next().is_none();
        over.filter(|_| free).map(|child| Decision::SettleChild { name: child.name.clone() })
    }

    fn child_unposted(&self) -> Option<Decision> {
        let unposted = self.children.iter().find(|child| child.seen == ChildState::Unposted);
        unposted.map(|child| Decision::PostChild { name: child.name.clone() })
    }

    /// What has to be asked, and what was answered.
    fn question(&self, state: &RunState) -> Option<Decision> {
        if let Some(call_id) = unasked(state).filter(|call_id| !self.may_still_be_sent(state, call_id)) {
            return Some(Decision::Ask { call_id: call_id.to_owned() });
        }
        let claimed = state.live_epoch().is_some_and(|epoch| epoch.claim.is_some());
        let there = claimed && self.stream == Stream::Live && self.agent != AgentView::Suspended;
        self.asks.iter().find_map(|ask| match ask.seen {
            Approved::Unposted => Some(Decision::Post { name: ask.name.clone() }),
            Approved::Decided | Approved::Gone | Approved::Overdue | Approved::OutOfDate => {
                Some(Decision::Settle { name: ask.name.clone() })
            }
            Approved::Allowed => there.then(|| Decision::Settle { name: ask.name.clone() }),
            Approved::Answered => {
                state.calls_in_flight().next().is_none().then(|| Decision::Settle { name: ask.name.clone() })
            }
            Approved::Uncounted => Some(Decision::Count { name: ask.name.clone() }),
            Approved::Open => None,
        })
    }

    /// A call whose end is unknown and whose epoch may still act on its permit: whoever looked for its effect now
    /// might look too early.
    fn may_still_be_sent(&self, state: &RunState, call_id: &str) -> bool {
        !self.undead.is_empty() && matches!(state.calls.get(call_id), Some(CallState::Unknown { .. }))
    }

    /// Why the run waits for someone although nothing is wrong with it.
    fn wait(&self, state: &RunState) -> Option<Wait> {
        // What people allowed is not waited for: a runner is wanted that sends it.
        let allowed = self.asks.iter().any(|ask| ask.seen == Approved::Allowed) || wants_a_runner(state);
        let ask = state.asks.values().next().filter(|_| !allowed);
        let asked = ask.map(|open| Wait {
            on: WaitingOn::new("approval", &open.ask.name),
            reason: super::asks::reason(open.ask.purpose),
            message: self.question_words(state, &open.ask),
        });
        let child = state.children.values().next().filter(|_| !allowed).map(children::wait);
        asked.or(child).or_else(|| self.quarantined(state)).or_else(|| match self.agent {
            AgentView::Suspended => {
                let name = &self.run.spec.agent_ref.name;
                let on = WaitingOn::new("agent", name);
                Some(Wait { on, reason: RunReason::Suspended, message: suspended(name) })
            }
            AgentView::Missing | AgentView::NotReady(_) | AgentView::Ready => self.drift_wait(),
        })
    }

    fn question_words(&self, state: &RunState, ask: &Ask) -> String {
        let words = super::questions::words(state, ask);
        match &self.guard_down {
            Some(why) => format!("no decision counts for now: {why}. Once they do: {words}"),
            None => words,
        }
    }

    /// People are asked about a call only once nothing can send it any more.
    fn quarantined(&self, state: &RunState) -> Option<Wait> {
        let call_id = unasked(state).filter(|call_id| self.may_still_be_sent(state, call_id))?;
        let pod = state.undead.values().next()?;
        let message = format!(
            "whether call {call_id} took effect is not known, and pod {pod} may still send it: people are asked once it \
             cannot any more"
        );
        Some(Wait { on: WaitingOn::new("pod", pod), reason: RunReason::EffectUnknown, message })
    }
}

/// Whether some call waits for nothing that people have to say: a runner is wanted that sends it, now or once nothing
/// holds it up. While one's end is unknown none is proposed.
fn wants_a_runner(state: &RunState) -> bool {
    let asked = |call_id: &str| state.asks.values().any(|open| open.ask.call_id == call_id);
    let unknown = state.calls.values().any(|call| matches!(call, CallState::Unknown { .. }));
    let to_send = |call: &CallState| match call {
        CallState::Due { .. } | CallState::Later { .. } | CallState::Proposed { .. } => true,
        CallState::Asked { call, .. } => state.is_stale(call),
        CallState::Permitted { .. }
        | CallState::Unknown { .. }
        | CallState::InputRequired { .. }
        | CallState::Delegated { .. }
        | CallState::Settled(_) => false,
    };
    !unknown && state.calls.iter().any(|(call_id, call)| to_send(call) && !asked(call_id))
}

fn suspended(agent: &str) -> String {
    format!("Agent {agent}: spec.suspend is true: no permit and no new pod until it is false")
}

/// When the present wait of a run without a runner began; milliseconds since the Unix epoch.
#[must_use]
pub fn waiting_since(run: &AgentRun, state: Option<&RunState>) -> i64 {
    // Pods that never said Hello are part of the wait.
    state.and_then(|state| state.rested_at).unwrap_or_else(|| created_at(run))
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn created_at(run: &AgentRun) -> i64 {
    run.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_millisecond())
}

fn seconds_since(then: i64, now: i64) -> u64 {
    u64::try_from(now.saturating_sub(then) / 1000).unwrap_or_default()
}
