//! The decisions on a run, as tables.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, AgentRunStatus, JournalRef, Phase};
use belay_protocol::RunState;
use belay_protocol::event::{EndReason, EpochEnd, Event, Limit, Outcome, RunEnd};
use jiff::Timestamp;

use super::ending::Ending;
use super::plan::*;
use super::resolve::limits;
use crate::fixtures::{CREATED_AT, claimed, in_flight, opened, run, state};
use crate::namespaces::Service;
use crate::pod_view::{Exit, PodView};

const JOURNAL: &str = "journal-1";

/// A look at run `nightly`, five seconds after it was created, to be changed by each test.
struct Look {
    run: AgentRun,
    state: Option<RunState>,
    agent: AgentView,
    service: Service,
    pod: PodView,
    pod_was_there: bool,
    stream: Stream,
    cancelling_for: Duration,
    ended_for: Duration,
    now: i64,
}

impl Look {
    fn new(state: Option<RunState>) -> Self {
        Self {
            run: run("nightly", "triage"),
            state,
            agent: AgentView::Ready,
            service: Service::Enabled,
            pod: PodView::Absent,
            pod_was_there: false,
            stream: Stream::Closed,
            cancelling_for: Duration::ZERO,
            ended_for: Duration::ZERO,
            now: CREATED_AT + 5_000,
        }
    }

    fn running(state: RunState) -> Self {
        Self {
            pod: PodView::Running { since: Timestamp::from_millisecond(CREATED_AT).unwrap() },
            pod_was_there: true,
            stream: Stream::Live,
            ..Self::new(Some(state))
        }
    }

    fn decide(&self) -> Decision {
        let state = self.state.as_ref();
        Observed {
            run: &self.run,
            journal_id: JOURNAL,
            head: state.map(|state| JournalHead { seq: state.seq, hash: format!("h{}", state.seq) }),
            state,
            agent: self.agent.clone(),
            service: self.service,
            pod: self.pod.clone(),
            pod_was_there: self.pod_was_there,
            stream: self.stream,
            cancelling_for: self.cancelling_for,
            ended_for: self.ended_for,
            limits: limits(None, None),
            now: self.now,
        }
        .decide()
    }
}

fn end_of(decision: Decision) -> Ending {
    match decision {
        Decision::End(ending) => ending,
        other => panic!("no end: {other:?}"),
    }
}

fn wait_of(decision: Decision) -> (RunReason, String) {
    match decision {
        Decision::Wait(wait) | Decision::Follow(Follow::Waiting(wait)) => (wait.reason, wait.on.display),
        other => panic!("no wait: {other:?}"),
    }
}

#[test]
fn a_run_starts_only_when_namespace_and_agent_are_ready() {
    assert_eq!(Look::new(None).decide(), Decision::Start);
    assert_eq!(Look { service: Service::Starting, ..Look::new(None) }.decide(), Decision::Hold);
    let table = [
        (Look { service: Service::NotEnabled, ..Look::new(None) }, RunReason::NamespaceNotEnabled, "namespace/triage"),
        (Look { agent: AgentView::Missing, ..Look::new(None) }, RunReason::AgentMissing, "agent/triage"),
        (Look { agent: AgentView::Suspended, ..Look::new(None) }, RunReason::Suspended, "agent/triage"),
        (
            Look { agent: AgentView::NotReady("why".into()), ..Look::new(None) },
            RunReason::AgentNotReady,
            "agent/triage",
        ),
    ];
    for (look, reason, on) in table {
        assert_eq!(wait_of(look.decide()), (reason, on.to_owned()));
    }
}

#[test]
fn an_accepted_run_is_launched_whatever_its_agent_became_except_suspended() {
    for accepted in [state(vec![]), state(vec![opened()])] {
        for agent in [AgentView::Ready, AgentView::Missing, AgentView::NotReady("why".into())] {
            assert_eq!(Look { agent, ..Look::new(Some(accepted.clone())) }.decide(), Decision::Launch);
        }
        let suspended = Look { agent: AgentView::Suspended, ..Look::new(Some(accepted)) };
        assert_eq!(wait_of(suspended.decide()), (RunReason::Suspended, "agent/triage".to_owned()));
    }
}

#[test]
fn a_pod_that_cannot_start_is_a_wait_and_one_without_hello_is_given_up() {
    let blocked = PodView::Blocked { why: "Unschedulable: 0/1 nodes".into() };
    let blocked = Look { pod: blocked, pod_was_there: true, ..Look::new(Some(state(vec![opened()]))) };
    assert_eq!(wait_of(blocked.decide()), (RunReason::PodBlocked, "pod/belay-run-a".to_owned()));

    let silent = Look { stream: Stream::Closed, ..Look::running(state(vec![opened()])) };
    assert_eq!(silent.decide(), Decision::Follow(Follow::Starting));
    let later = Look { now: CREATED_AT + 300_000, ..silent };
    assert_eq!(end_of(later.decide()).end.reason, EndReason::RunnerSilent);
}

#[test]
fn a_pod_that_was_there_and_went_ends_the_run_and_is_never_made_again() {
    let unclaimed = Look { pod_was_there: true, ..Look::new(Some(state(vec![opened()]))) };
    assert_eq!(end_of(unclaimed.decide()).end.reason, EndReason::PodLost);
    let ending = end_of(Look { pod: PodView::Absent, ..Look::running(in_flight()) }.decide());
    assert_eq!((ending.epoch, ending.end.reason), (EpochEnd::PodLost, EndReason::PodLost));
    assert_eq!(
        ending.end.message,
        "pod belay-run-a was deleted while the run went on; calls whose end is unknown: c1 (github/list_issues)"
    );
    let foreign = Look { pod: PodView::Foreign, ..Look::running(in_flight()) };
    assert_eq!(end_of(foreign.decide()).end.reason, EndReason::PodLost);
}

#[test]
fn a_container_that_ended_gets_a_moment_for_its_last_words() {
    let crashed = PodView::Ended(Exit::Crashed { why: "OOMKilled, exit code 137".into() });
    let look = Look { pod: crashed.clone(), ..Look::running(in_flight()) };
    assert_eq!(look.decide(), Decision::Follow(Follow::Running));
    let ending = end_of(Look { stream: Stream::Closed, ..look }.decide());
    assert_eq!((ending.epoch, ending.end.reason), (EpochEnd::Exited, EndReason::RunnerCrashed));
    assert!(ending.end.message.contains("OOMKilled, exit code 137"), "{}", ending.end.message);
    let hung = Look { pod: crashed, ended_for: LAST_WORDS_MAX, ..Look::running(in_flight()) };
    assert_eq!(end_of(hung.decide()).end.reason, EndReason::RunnerCrashed);
    let evicted = PodView::Ended(Exit::Evicted { why: "Evicted: low on memory".into() });
    let evicted = Look { pod: evicted, stream: Stream::Closed, ..Look::running(in_flight()) };
    assert_eq!(end_of(evicted.decide()).end.reason, EndReason::PodLost);
}

#[test]
fn cancel_works_in_every_phase() {
    let cancel = |mut look: Look| {
        look.run.spec.cancel = Some(true);
        look
    };
    for early in [None, Some(state(vec![])), Some(state(vec![opened()]))] {
        assert_eq!(end_of(cancel(Look::new(early)).decide()).end.outcome, Outcome::Cancelled);
    }
    assert_eq!(cancel(Look::running(in_flight())).decide(), Decision::RequestCancel);

    let mut requested = in_flight();
    requested.cancel_requested = true;
    assert_eq!(cancel(Look::running(requested.clone())).decide(), Decision::Follow(Follow::Cancelling));
    let graceless = cancel(Look { cancelling_for: CANCEL_GRACE, ..Look::running(requested.clone()) });
    assert_eq!(
        end_of(graceless.decide()).end.message,
        "spec.cancel is true; calls whose end is unknown: c1 (github/list_issues)"
    );
    // A closed stream proves nothing about a call that is in flight; a pod that ended does.
    let closed = || Look { stream: Stream::Closed, ..Look::running(requested.clone()) };
    assert_eq!(cancel(closed()).decide(), Decision::Follow(Follow::Cancelling));
    let gone = cancel(Look { pod: PodView::Ended(Exit::Clean), ..closed() });
    assert_eq!(end_of(gone.decide()).end.outcome, Outcome::Cancelled);

    let mut idle = state(vec![opened(), claimed()]);
    idle.cancel_requested = true;
    let idle = cancel(Look { stream: Stream::Closed, ..Look::running(idle) });
    assert_eq!(end_of(idle.decide()).end.outcome, Outcome::Cancelled);
}

#[test]
fn time_with_a_runner_and_time_before_it_are_bounded_apart() {
    let claimed_at = CREATED_AT + 3_000;
    let in_time = Look { now: claimed_at + 1_799_000, ..Look::running(in_flight()) };
    assert_eq!(in_time.decide(), Decision::Follow(Follow::Running));
    let ending = end_of(Look { now: claimed_at + 1_800_000, ..Look::running(in_flight()) }.decide());
    assert_eq!((ending.limit, ending.end.reason), (Some(Limit::ActiveSeconds), EndReason::DeadlineExceeded));
    assert!(ending.end.message.contains("limits.activeSeconds of 1800"), "{}", ending.end.message);

    let late = CREATED_AT + 604_800_000;
    for early in [None, Some(state(vec![opened()]))] {
        let ending = end_of(Look { now: late, agent: AgentView::Missing, ..Look::new(early) }.decide());
        assert_eq!(ending.end.reason, EndReason::WaitExceeded);
    }
}

#[test]
fn a_suspended_agents_live_run_waits_and_keeps_its_pod() {
    let look = Look { agent: AgentView::Suspended, ..Look::running(in_flight()) };
    assert_eq!(wait_of(look.decide()), (RunReason::Suspended, "agent/triage".to_owned()));
}

#[test]
fn pods_that_cannot_be_seen_lead_to_no_conclusion() {
    let unseen = |look| Look { pod: PodView::Unseen, service: Service::NotEnabled, ..look };
    assert_eq!(unseen(Look::running(in_flight())).decide(), Decision::Follow(Follow::Running));
    assert_eq!(unseen(Look::new(Some(state(vec![opened()])))).decide(), Decision::Hold);
}

#[test]
fn a_journal_that_knows_less_than_status_is_lost() {
    let witness = |id: &str, seq: i64, hash: &str| {
        let mut look = Look::running(in_flight());
        let journal = JournalRef { id: id.into(), seq, hash: hash.into() };
        look.run.status = Some(AgentRunStatus { journal: Some(journal), ..AgentRunStatus::default() });
        look
    };
    assert_eq!(witness(JOURNAL, 7, "h7").decide(), Decision::Follow(Follow::Running), "the head itself");
    assert_eq!(witness(JOURNAL, 3, "h3").decide(), Decision::Follow(Follow::Running), "an older record");
    for lost in [witness("journal-2", 3, "h3"), witness(JOURNAL, 99, "h99"), witness(JOURNAL, 7, "other")] {
        assert_eq!(end_of(lost.decide()).end.reason, EndReason::JournalLost);
    }
    let never_again = Look { state: None, ..witness(JOURNAL, 1, "h1") };
    assert_eq!(end_of(never_again.decide()).end.reason, EndReason::JournalLost);
}

#[test]
fn terminal_is_terminal() {
    let end = RunEnd { outcome: Outcome::Failed, reason: EndReason::PodLost, message: String::new() };
    let mut ended = in_flight();
    ended.end = Some(end);
    let mut cancelled_late = Look { now: i64::MAX, ..Look::running(ended) };
    cancelled_late.run.spec.cancel = Some(true);
    assert_eq!(cancelled_late.decide(), Decision::Finish);
    let mut by_status = Look::new(None);
    by_status.run.status = Some(AgentRunStatus { phase: Some(Phase::Succeeded), ..AgentRunStatus::default() });
    assert_eq!(by_status.decide(), Decision::Finish, "even where the journal has no row of it");
    let mut forged = Look::running(in_flight());
    forged.run.status = by_status.run.status;
    assert_eq!(forged.decide(), Decision::Follow(Follow::Running), "the journal knows better");
}

#[test]
fn a_deleted_run_ends_instead_of_starting() {
    for state in [None, Some(in_flight())] {
        let mut look = Look::new(state);
        look.run.metadata.deletion_timestamp = look.run.metadata.creation_timestamp.clone();
        assert_eq!(end_of(look.decide()).end.message, "the AgentRun was deleted");
    }
}

#[test]
fn the_closing_events_follow_in_every_state() {
    let end = RunEnd { outcome: Outcome::Failed, reason: EndReason::PodLost, message: "m".into() };
    let ending = Ending { limit: Some(Limit::ActiveSeconds), epoch: EpochEnd::PodLost, end };
    for before in [state(vec![]), state(vec![opened()]), state(vec![opened(), claimed()]), in_flight()] {
        let mut state = before.clone();
        for event in ending.clone().events(Some(&before)) {
            let record = belay_protocol::Record { seq: state.seq + 1, at: state.updated_at, event };
            state.apply(&record).unwrap();
        }
        assert!(state.end.is_some() && state.live_epoch().is_none());
        assert_eq!(state.calls_in_flight().count(), 0);
    }
    assert_eq!(ending.clone().events(None), [Event::RunEnded { end: ending.end }]);
}
