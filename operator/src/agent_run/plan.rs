//! What to do next with a run, by everything that was looked at. Pure and total: the order of the checks is
//! Tekton's (over, cancelled, out of time, lost its pod, not started) with the journal's word first.

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, WaitingOn};
use belay_protocol::event::{EndReason, EpochEnd, Limit};
use belay_protocol::fold::{Epoch, RunState};
use belay_protocol::plan::Limits;
use kube::ResourceExt;

use super::ending::Ending;
use crate::namespaces::Service;
use crate::pod_view::PodView;

/// A pod that runs for so long without Hello is given up.
pub const SILENT_MAX: Duration = Duration::from_mins(5);
/// What calls in flight get when a run is cancelled.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long a pod may take to leave after its run has ended.
pub const LEAVING_MAX: Duration = Duration::from_secs(15);
/// How long an ended pod's last words may take to be journaled.
pub const LAST_WORDS_MAX: Duration = Duration::from_secs(10);

const CANCELLED: &str = "spec.cancel is true";
const FOREIGN: &str = "is another pod, that the operator did not create";

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
    pub limits: Limits,
    /// Milliseconds since the Unix epoch.
    pub now: i64,
}

/// Where the journal stands, as status names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalHead {
    pub seq: u64,
    pub hash: String,
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
    /// Accepted: what lies between acceptance and a pod is done now.
    Launch,
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

/// How an accepted run fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Follow {
    /// No Hello yet.
    Starting,
    Waiting(Wait),
    Running,
    Cancelling,
}

impl Observed<'_> {
    /// The first check that applies decides.
    #[must_use]
    pub fn decide(&self) -> Decision {
        let checks = [Self::over, Self::lost, Self::deleted, Self::cancelled, Self::out_of_time];
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
                Some(head) if head.seq == seq && head.hash != witness.hash => {
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
        Some(Decision::End(Ending::cancelled("the AgentRun was deleted")))
    }

    /// A run without a pod ends at once; a live one gets the grace, unless nothing is under way.
    fn cancelled(&self) -> Option<Decision> {
        let requested = self.state.is_some_and(|state| state.cancel_requested);
        if self.run.spec.cancel != Some(true) && !requested {
            return None;
        }
        let state = self.state.filter(|state| state.live_epoch().is_some_and(|epoch| epoch.claim.is_some()));
        let Some(state) = state else {
            return Some(Decision::End(Ending::cancelled(CANCELLED)));
        };
        if !requested {
            return Some(Decision::RequestCancel);
        }
        let idle = self.stream == Stream::Closed && state.calls_in_flight().next().is_none();
        let gone = match &self.pod {
            PodView::Ended(_) | PodView::Absent | PodView::Foreign => self.stream == Stream::Closed,
            PodView::Unseen
            | PodView::Blocked { .. }
            | PodView::Starting
            | PodView::Running { .. }
            | PodView::Leaving => false,
        };
        if idle || gone || self.cancelling_for >= CANCEL_GRACE {
            return Some(Decision::End(Ending::cancelled(CANCELLED).naming_unknowns(state)));
        }
        Some(Decision::Follow(Follow::Cancelling))
    }

    fn out_of_time(&self) -> Option<Decision> {
        let claimed = self.state.and_then(|state| Some((state, state.live_epoch()?.claim.as_ref()?)));
        let ending = match claimed {
            Some((state, claim)) => self.out_of_activity(claim.at)?.naming_unknowns(state),
            None => self.out_of_patience()?,
        };
        Some(Decision::End(ending))
    }

    fn out_of_activity(&self, claimed_at: i64) -> Option<Ending> {
        let limit = self.limits.active_seconds;
        (seconds_since(claimed_at, self.now) >= u64::from(limit)).then(|| {
            let agent = &self.run.spec.agent_ref.name;
            let message =
                format!("limits.activeSeconds of {limit} is used up; raise it in Agent {agent} or in the run's spec");
            Ending::out_of_time(Some(Limit::ActiveSeconds), EndReason::DeadlineExceeded, message)
        })
    }

    fn out_of_patience(&self) -> Option<Ending> {
        let limit = self.limits.wait_seconds;
        (seconds_since(created_at(self.run), self.now) >= u64::from(limit)).then(|| {
            let waited = self.run.status.as_ref().and_then(|status| status.waiting_on.as_ref());
            let waited = waited.map_or_else(String::new, |on| format!(" on {}", on.display));
            let message = format!("the run waited{waited} for limits.waitSeconds of {limit} and never started");
            // A journal without a plan takes no limit: the end says it.
            let limit = self.state.is_some().then_some(Limit::WaitSeconds);
            Ending::out_of_time(limit, EndReason::WaitExceeded, message)
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

    fn accepted(&self, state: &RunState) -> Decision {
        let Some(epoch) = state.epoch.as_ref() else {
            return self.unlaunched();
        };
        if epoch.claim.is_some() { self.claimed(epoch, state) } else { self.unclaimed(epoch) }
    }

    /// Accepted, and no pod may exist yet.
    fn unlaunched(&self) -> Decision {
        match (self.service, &self.agent) {
            (Service::Starting, _) => Decision::Hold,
            (Service::NotEnabled | Service::Forbidden, _) => self.not_accepted(),
            (Service::Enabled, AgentView::Suspended) => {
                let name = &self.run.spec.agent_ref.name;
                let on = WaitingOn::new("agent", name);
                Decision::Wait(Wait { on, reason: RunReason::Suspended, message: suspended(name) })
            }
            (Service::Enabled, AgentView::Missing | AgentView::NotReady(_) | AgentView::Ready) => Decision::Launch,
        }
    }

    /// A pod without Hello: nothing was sent yet, so what went wrong is a wait or an end without Unknowns.
    fn unclaimed(&self, epoch: &Epoch) -> Decision {
        match &self.pod {
            PodView::Unseen => Decision::Hold,
            PodView::Absent if self.pod_was_there => {
                Decision::End(Ending::pod_lost(epoch, "was deleted before its runner said Hello"))
            }
            PodView::Absent => self.unlaunched(),
            PodView::Foreign => Decision::End(Ending::pod_lost(epoch, FOREIGN)),
            PodView::Blocked { why } => Decision::Follow(Follow::Waiting(Wait {
                on: WaitingOn::new("pod", &epoch.pod_name),
                reason: RunReason::PodBlocked,
                message: format!("pod {} cannot start: {why}", epoch.pod_name),
            })),
            PodView::Starting | PodView::Leaving => Decision::Follow(Follow::Starting),
            PodView::Running { since } => {
                if seconds_since(since.as_millisecond(), self.now) < SILENT_MAX.as_secs() {
                    return Decision::Follow(Follow::Starting);
                }
                let message = format!(
                    "pod {} ran for {} s without saying Hello to the operator: see its log, and whether the network \
                     lets it reach the operator",
                    epoch.pod_name,
                    SILENT_MAX.as_secs()
                );
                Decision::End(Ending::failed(EndReason::RunnerSilent, EpochEnd::NoHello, message))
            }
            PodView::Ended(exit) => {
                Decision::End(Ending::pod_ended(epoch, exit, "before its runner said Hello: see its log"))
            }
        }
    }

    fn claimed(&self, epoch: &Epoch, state: &RunState) -> Decision {
        let ending = match &self.pod {
            PodView::Absent => Ending::pod_lost(epoch, "was deleted while the run went on"),
            PodView::Foreign => Ending::pod_lost(epoch, FOREIGN),
            PodView::Ended(_) if self.stream == Stream::Live && self.ended_for < LAST_WORDS_MAX => {
                return Decision::Follow(Follow::Running);
            }
            PodView::Ended(exit) => Ending::pod_ended(epoch, exit, "while the run went on"),
            PodView::Unseen
            | PodView::Blocked { .. }
            | PodView::Starting
            | PodView::Running { .. }
            | PodView::Leaving => return Decision::Follow(self.running()),
        };
        Decision::End(ending.naming_unknowns(state))
    }

    fn running(&self) -> Follow {
        match self.agent {
            AgentView::Suspended => {
                let name = &self.run.spec.agent_ref.name;
                let on = WaitingOn::new("agent", name);
                Follow::Waiting(Wait { on, reason: RunReason::Suspended, message: suspended(name) })
            }
            AgentView::Missing | AgentView::NotReady(_) | AgentView::Ready => Follow::Running,
        }
    }
}

fn suspended(agent: &str) -> String {
    format!("Agent {agent}: spec.suspend is true: no permit and no new pod until it is false")
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn created_at(run: &AgentRun) -> i64 {
    run.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_millisecond())
}

fn seconds_since(then: i64, now: i64) -> u64 {
    u64::try_from(now.saturating_sub(then) / 1000).unwrap_or_default()
}
