//! The decisions on a run, as tables.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use belay_crds::reason::RunReason;
use belay_crds::{AgentRun, AgentRunStatus, JournalRef, Phase};
use belay_protocol::elicitation::{InputRequired, Inquiry};
use belay_protocol::event::{
    AcceptedDefinition, Answer, Ask, AskPurpose, DeathProof, EndReason, EpochEnd, Event, Limit, Outcome, RunEnd,
    Verdict,
};
use belay_protocol::fold::{CallState, ModelState};
use belay_protocol::judgement::PolicyRequirement;
use belay_protocol::{Digest, Record, RunState};
use jiff::Timestamp;

use super::children::{ChildSeen, ChildState};
use super::drift::DriftSeen;
use super::ending::Ending;
use super::lineage::Lineage;
use super::plan::*;
use super::resolve::limits;
use crate::fixtures::{CREATED_AT, claimed, in_flight, opened, run, state};
use crate::namespaces::Service;
use crate::pod_view::{Exit, PodView};
use crate::quota::{HeldBy, Waits};
use crate::tuning::Times;

const JOURNAL: &str = "journal-1";

/// A look at run `nightly`, five seconds after it was created, to be changed by each test.
#[allow(clippy::struct_excessive_bools)] // each is one thing that is seen
struct Look {
    run: AgentRun,
    state: Option<RunState>,
    agent: AgentView,
    service: Service,
    pod: PodView,
    pod_was_there: bool,
    stream: Stream,
    holds_witness: bool,
    cancelling_for: Duration,
    ended_for: Duration,
    undead: Vec<Undead>,
    asks: Vec<AskSeen>,
    children: Vec<ChildSeen>,
    lineage: Lineage,
    drift: DriftSeen,
    grants: Vec<GrantSeen>,
    guard_down: Option<String>,
    status_doubt: Option<String>,
    active_for: Duration,
    resting_for: Duration,
    idle_for: Duration,
    withheld: bool,
    model_wait: Option<Waits>,
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
            holds_witness: true,
            cancelling_for: Duration::ZERO,
            ended_for: Duration::ZERO,
            undead: vec![],
            asks: vec![],
            children: vec![],
            lineage: Lineage::Root,
            drift: DriftSeen::None,
            grants: vec![],
            guard_down: None,
            status_doubt: None,
            active_for: Duration::ZERO,
            resting_for: Duration::ZERO,
            idle_for: Duration::ZERO,
            withheld: false,
            model_wait: None,
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
            head: state.map(|state| JournalHead {
                seq: state.seq,
                hash: format!("h{}", state.seq),
                holds_witness: self.holds_witness,
            }),
            state,
            agent: self.agent.clone(),
            service: self.service,
            pod: self.pod.clone(),
            pod_was_there: self.pod_was_there,
            stream: self.stream,
            cancelling_for: self.cancelling_for,
            ended_for: self.ended_for,
            undead: self.undead.clone(),
            asks: self.asks.clone(),
            children: self.children.clone(),
            lineage: &self.lineage,
            drift: self.drift.clone(),
            grants: self.grants.clone(),
            guard_down: self.guard_down.clone(),
            status_doubt: self.status_doubt.clone(),
            active_for: self.active_for,
            last_words: Some("ended with OOMKilled, exit code 137".to_owned()),
            resting_for: self.resting_for,
            idle_for: self.idle_for,
            withheld: self.withheld,
            model_wait: self.model_wait.clone(),
            limits: limits(None, None),
            times: Times::default(),
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

fn epoch_end_of(decision: Decision) -> EpochEnding {
    match decision {
        Decision::EndEpoch(ending) => ending,
        other => panic!("the epoch goes on: {other:?}"),
    }
}

/// After these events; a request to the model and everything after it happens in `epoch`.
fn crashed(times: u64) -> RunState {
    let events = (1..=times).flat_map(|epoch| {
        let pod_name = format!("belay-run-{epoch}");
        let pod_uid = format!("uid-{epoch}");
        [
            Event::EpochOpened { epoch, pod_name },
            Event::InstanceClaimed { epoch, instance: "i".to_owned(), pod_uid },
            Event::EpochEnded { epoch, cause: EpochEnd::Exited, active_milliseconds: 1_000 },
            Event::EpochDead { epoch, proof: DeathProof::Reported },
        ]
    });
    state(events.collect())
}

/// `in_flight()` with its epoch ended and the call's end unknown; asked about where `asked` says so.
fn unknown(asked: bool) -> RunState {
    let mut state = in_flight();
    let mut events = vec![
        Event::CallUnknown { call_id: "c1".to_owned(), attempt: 1, message: "its pod was lost".to_owned() },
        Event::EpochEnded { epoch: 1, cause: EpochEnd::PodLost, active_milliseconds: 1_000 },
    ];
    if asked {
        let ask = Ask {
            name: "nightly-c1-x".to_owned(),
            purpose: AskPurpose::Unknown,
            call_id: "c1".to_owned(),
            attempt: 1,
            nonce: "n".to_owned(),
            expires_at: 0,
            digest: Digest::zero(),
            call: None,
            question: None,
            requirements: vec![],
            guard: None,
        };
        events.push(Event::AskOpened { ask });
    }
    for event in events {
        let record = Record { seq: state.seq + 1, at: state.updated_at, event };
        state.apply(&record).unwrap();
    }
    state
}

/// A run whose call `c1` waits for people's yes, with its epoch released where `live` says no.
fn asked_before(live: bool) -> RunState {
    let state = in_flight();
    let Some(CallState::Permitted { call, .. }) = state.calls.get("c1").cloned() else {
        unreachable!("a permit is out")
    };
    let policy = "careful".to_owned();
    let wants = PolicyRequirement {
        policy,
        generation: 1,
        quorum: 2,
        separation_of_duty: true,
        expires_after_seconds: 3600,
        grants: None,
    };
    let ask = Ask {
        name: "nightly-c1-x".to_owned(),
        purpose: AskPurpose::Call,
        call_id: "c1".to_owned(),
        attempt: 1,
        nonce: "n".to_owned(),
        expires_at: CREATED_AT + 3_600_000,
        digest: Digest::zero(),
        call: Some(call.digest),
        question: None,
        requirements: vec![wants.clone()],
        guard: None,
    };
    let (call_id, verdict) = ("c1".to_owned(), Verdict::Asked { requirements: vec![wants] });
    let events = vec![
        Event::PermitReturned { call_id: call_id.clone(), attempt: 1 },
        Event::CallProposed { call_id: call_id.clone(), attempt: 1, call: (*call).clone() },
        Event::CallDecided { call_id, attempt: 1, verdict, judged: None },
        Event::AskOpened { ask },
    ];
    waiting(state, events, live)
}

/// After these events, with its epoch released where `live` says no.
fn waiting(mut state: RunState, mut events: Vec<Event>, live: bool) -> RunState {
    if !live {
        events.push(Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 1_000 });
        events.push(Event::EpochDead { epoch: 1, proof: DeathProof::Reported });
    }
    for event in events {
        let record = Record { seq: state.seq + 1, at: state.updated_at, event };
        state.apply(&record).unwrap();
    }
    state
}

/// `in_flight()` whose server wants to know something, with its epoch released; asked where `asked` says so.
fn inquiring(asked: bool) -> RunState {
    let mut state = in_flight();
    let inquiry = Inquiry::Url { message: "sign in".to_owned(), url: "https://x.example".to_owned() };
    let required = Box::new(InputRequired::in_call(vec![inquiry], "not signed in"));
    let mut events = vec![Event::CallInputRequired { call_id: "c1".to_owned(), attempt: 1, required, milliseconds: 1 }];
    if asked {
        let ask = Ask {
            name: "nightly-c1-x".to_owned(),
            purpose: AskPurpose::Question,
            call_id: "c1".to_owned(),
            attempt: 1,
            nonce: "n".to_owned(),
            expires_at: CREATED_AT + 604_800_000,
            digest: Digest::zero(),
            call: None,
            question: Some(0),
            requirements: vec![],
            guard: None,
        };
        events.push(Event::AskOpened { ask });
        events.push(Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 1_000 });
        events.push(Event::EpochDead { epoch: 1, proof: DeathProof::Reported });
    }
    for event in events {
        let record = Record { seq: state.seq + 1, at: state.updated_at, event };
        state.apply(&record).unwrap();
    }
    state
}

#[test]
fn what_a_calls_server_wants_to_know_is_asked_at_once_and_its_answer_needs_no_runner() {
    assert_eq!(Look::running(inquiring(false)).decide(), Decision::Ask { call_id: "c1".to_owned() });
    let name = || "nightly-c1-x".to_owned();
    let seen = |seen| Look { asks: vec![AskSeen { name: name(), seen }], ..Look::new(Some(inquiring(true))) }.decide();
    assert_eq!(wait_of(seen(Approved::Open)), (RunReason::AnswerPending, "approval/nightly-c1-x".to_owned()));
    assert_eq!(seen(Approved::Answered), Decision::Settle { name: name() });
    let Decision::Follow(Follow::Waiting(wait)) = seen(Approved::Open) else { unreachable!("it waits") };
    assert_eq!(
        wait.message,
        "the server of call c1 of github/list_issues asks something, and is not trusted: belay show nightly-c1-x, then \
         belay answer nightly-c1-x with --field NAME=VALUE, --json, --opened or --decline"
    );
    let Some(CallState::Permitted { call, .. }) = in_flight().calls.get("c1").cloned() else {
        unreachable!("a permit")
    };
    let mut beside = inquiring(true);
    beside.calls.insert("c2".to_owned(), CallState::Permitted { attempt: 1, call, at: 0 });
    let asks = vec![AskSeen { name: name(), seen: Approved::Answered }];
    let busy = Look { asks, stream: Stream::Live, ..Look::running(beside) };
    assert!(
        !matches!(busy.decide(), Decision::Settle { .. }),
        "its pod goes with the answer, and has a call under way"
    );
}

#[test]
fn what_people_allowed_is_taken_only_towards_a_runner_that_is_there() {
    let name = || "nightly-c1-x".to_owned();
    let seen = |look: Look, seen| Look { asks: vec![AskSeen { name: name(), seen }], ..look }.decide();
    let gone = || Look::new(Some(asked_before(false)));
    let there = || Look { stream: Stream::Live, ..Look::running(asked_before(true)) };
    assert_eq!(wait_of(seen(gone(), Approved::Open)), (RunReason::ApprovalPending, "approval/nightly-c1-x".to_owned()));
    assert_eq!(seen(gone(), Approved::Allowed), Decision::Launch, "a runner first");
    assert_eq!(seen(there(), Approved::Allowed), Decision::Settle { name: name() });
    let closed = seen(Look { stream: Stream::Closed, ..there() }, Approved::Allowed);
    assert_eq!(closed, Decision::Follow(Follow::Running), "it comes back, or its pod is lost");
    let suspended = seen(Look { agent: AgentView::Suspended, ..there() }, Approved::Allowed);
    assert!(matches!(suspended, Decision::Follow(Follow::Waiting(_))), "{suspended:?}");
    for seen_as in [Approved::Decided, Approved::Overdue, Approved::OutOfDate, Approved::Gone] {
        assert_eq!(seen(gone(), seen_as), Decision::Settle { name: name() }, "a no needs no runner");
    }
    assert_eq!(seen(gone(), Approved::Uncounted), Decision::Count { name: name() });
    let idle = Look { idle_for: Times::default().wait_grace, ..there() };
    assert!(matches!(seen(idle, Approved::Open), Decision::EndEpoch(_)), "whoever only waits needs no pod");
    let idle = Look { idle_for: Times::default().wait_grace, stream: Stream::Closed, ..there() };
    assert!(!matches!(seen(idle, Approved::Allowed), Decision::EndEpoch(_)), "its runner is about to be needed");
}

#[test]
fn what_people_allowed_gets_a_runner_while_they_are_still_asked_about_another_call() {
    let mut state = asked_before(false);
    let mut other = state.asks.values().next().unwrap().clone();
    other.ask.name = "nightly-c2-x".to_owned();
    other.ask.call_id = "c2".to_owned();
    let answer = Answer::Allowed { by: Vec::new() };
    for event in [
        Event::AskPosted { name: "nightly-c1-x".to_owned(), uid: "uid-x".to_owned() },
        Event::AskSettled { name: "nightly-c1-x".to_owned(), answer },
    ] {
        let record = Record { seq: state.seq + 1, at: state.updated_at, event };
        state.apply(&record).unwrap();
    }
    state.asks.insert("nightly-c2-x".to_owned(), other);
    let asks = vec![AskSeen { name: "nightly-c2-x".to_owned(), seen: Approved::Open }];
    assert_eq!(Look { asks, ..Look::new(Some(state)) }.decide(), Decision::Launch);
}

#[test]
fn a_runner_with_a_call_that_is_only_held_up_stays_although_people_are_asked_about_another() {
    let mut state = asked_before(true);
    let Some(CallState::Asked { call, .. }) = state.calls.get("c1").cloned() else { unreachable!("c1 is asked") };
    state.calls.insert("c2".to_owned(), CallState::Later { attempt: 1, call });
    let asks = vec![AskSeen { name: "nightly-c1-x".to_owned(), seen: Approved::Open }];
    let idle_for = Times::default().wait_grace;
    let there = Look { asks, idle_for, stream: Stream::Live, ..Look::running(state) };
    assert_eq!(there.decide(), Decision::Follow(Follow::Running));
}

#[test]
fn nobody_is_asked_what_became_of_a_call_that_may_still_be_sent() {
    let undead = || vec![Undead { epoch: 1, pod: PodView::Absent, waited: Duration::ZERO }];
    let early = Look { undead: undead(), ..Look::new(Some(unknown(false))) };
    let Decision::Follow(Follow::Waiting(wait)) = early.decide() else { unreachable!("it waits") };
    assert_eq!((wait.reason, wait.on.kind.as_str()), (RunReason::EffectUnknown, "pod"));
    assert!(wait.message.contains("may still send it"), "{}", wait.message);
}

#[test]
fn a_wait_says_that_decisions_do_not_count_while_nobody_checks_them() {
    let look = Look {
        asks: vec![AskSeen { name: "nightly-c1-x".into(), seen: Approved::Open }],
        guard_down: Some("belay-approvals is missing".into()),
        ..Look::new(Some(asked_before(false)))
    };
    let Decision::Follow(Follow::Waiting(wait)) = look.decide() else { unreachable!("it waits") };
    assert!(wait.message.starts_with("no decision counts for now: belay-approvals is missing. "), "{}", wait.message);
}

#[test]
fn a_wait_for_people_says_who_may_decide_and_how() {
    let said = |requested_by: Option<&str>| {
        let mut state = asked_before(false);
        let mut plan = state.plan.as_deref().cloned().unwrap_or_else(|| unreachable!("it was accepted"));
        plan.requested_by = requested_by.map(str::to_owned);
        state.plan = Some(std::sync::Arc::new(plan));
        let look = Look {
            asks: vec![AskSeen { name: "nightly-c1-x".into(), seen: Approved::Open }],
            ..Look::new(Some(state))
        };
        let Decision::Follow(Follow::Waiting(wait)) = look.decide() else { unreachable!("it waits") };
        wait.message
    };
    let for_whom = |who: &str| {
        format!(
            "call c1 of github/list_issues waits until 2026-11-23T11:00:00Z for {who}: belay show nightly-c1-x, then \
             belay approve nightly-c1-x or belay deny nightly-c1-x --reason WHY"
        )
    };
    let two = "2 who may approve on ApprovalPolicy careful, not whoever created the run";
    let three = "3 who may approve on ApprovalPolicy careful, one more since nobody knows who created the run";
    assert_eq!(said(Some("eve")), for_whom(two));
    assert_eq!(said(None), for_whom(three));
    assert_eq!(said(Some("system:serviceaccount:team:cron")), for_whom(three));
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
    assert_eq!(epoch_end_of(later.decide()).cause, EpochEnd::NoHello);
}

#[test]
fn an_epoch_ends_with_its_pod_and_is_dead_only_where_the_kubelet_says_so() {
    let ended = |look: Look| {
        let ending = epoch_end_of(look.decide());
        (ending.cause, ending.proof)
    };
    let reported = Some(DeathProof::Reported);
    let unclaimed = || Look { pod_was_there: true, ..Look::new(Some(state(vec![opened()]))) };
    assert_eq!(ended(unclaimed()), (EpochEnd::PodLost, None));
    let closed = |pod| Look { pod, stream: Stream::Closed, ..Look::running(in_flight()) };
    assert_eq!(ended(closed(PodView::Absent)), (EpochEnd::PodLost, None), "a forced deletion proves nothing");
    assert_eq!(ended(closed(PodView::Foreign)), (EpochEnd::PodLost, None));
    assert_eq!(ended(closed(PodView::Lost { why: "node".into() })), (EpochEnd::PodLost, None));
    assert_eq!(ended(closed(PodView::Ended(Exit::Clean))), (EpochEnd::Exited, reported));
    assert_eq!(ended(closed(PodView::Ended(Exit::Stopped))), (EpochEnd::PodLost, reported));
    let evicted = Exit::Evicted { why: "Evicted: low on memory".into() };
    assert_eq!(ended(closed(PodView::Ended(evicted))), (EpochEnd::PodLost, reported));
    assert_eq!(closed(PodView::Leaving).decide(), Decision::Follow(Follow::Running), "it may still report");
}

#[test]
fn a_container_that_ended_gets_a_moment_for_its_last_words() {
    let crashed = PodView::Ended(Exit::Crashed { why: "OOMKilled, exit code 137".into() });
    let look = Look { pod: crashed.clone(), ..Look::running(in_flight()) };
    assert_eq!(look.decide(), Decision::Follow(Follow::Running));
    let ending = epoch_end_of(Look { stream: Stream::Closed, ..look }.decide());
    assert_eq!(ending.message, "pod belay-run-a ended with OOMKilled, exit code 137");
    let hung = Look { pod: crashed, ended_for: LAST_WORDS_MAX, ..Look::running(in_flight()) };
    assert_eq!(epoch_end_of(hung.decide()).cause, EpochEnd::Exited);
}

#[test]
fn the_next_epoch_opens_at_once_then_ever_later_and_after_five_crashes_not_at_all() {
    assert_eq!(Look::new(Some(crashed(1))).decide(), Decision::Launch);
    let second = Look::new(Some(crashed(2)));
    assert_eq!(second.decide(), Decision::Follow(Follow::Backoff(Duration::from_secs(1))));
    assert_eq!(Look { resting_for: Duration::from_secs(1), ..second }.decide(), Decision::Launch);
    let fourth = Look::new(Some(crashed(4)));
    assert_eq!(fourth.decide(), Decision::Follow(Follow::Backoff(Duration::from_secs(4))));
    let ending = end_of(Look::new(Some(crashed(5))).decide());
    assert_eq!(ending.end.reason, EndReason::RunnerCrashed);
    assert_eq!(
        ending.end.message,
        "5 runners in a row ended before the run came any further; the last, in pod belay-run-5, ended with OOMKilled, \
         exit code 137"
    );
}

#[test]
fn an_epoch_is_buried_when_its_pod_is_reported_ended_or_its_permits_ran_out() {
    let look = |pod, seconds| {
        let undead = vec![Undead { epoch: 1, pod, waited: Duration::from_secs(seconds) }];
        Look { undead, ..Look::new(Some(unknown(true))) }
    };
    // 10 s of a permit, 60 s of a call, 30 s for clocks and networks.
    let buried = |proof| Decision::Bury { epoch: 1, proof };
    assert_eq!(look(PodView::Absent, 100).decide(), buried(DeathProof::Quarantine));
    assert_eq!(look(PodView::Ended(Exit::Stopped), 0).decide(), buried(DeathProof::Reported));
    for pod in [PodView::Absent, PodView::Leaving, PodView::Unseen, PodView::Foreign] {
        assert!(!matches!(look(pod, 99).decide(), Decision::Bury { .. }));
    }
}

#[test]
fn a_call_whose_end_is_unknown_is_asked_about_and_no_pod_waits_for_the_answer() {
    assert_eq!(Look::new(Some(unknown(false))).decide(), Decision::Ask { call_id: "c1".to_owned() });
    let seen = |seen| {
        let asks = vec![AskSeen { name: "nightly-c1-x".to_owned(), seen }];
        Look { asks, ..Look::new(Some(unknown(true))) }.decide()
    };
    let name = || "nightly-c1-x".to_owned();
    assert_eq!(seen(Approved::Unposted), Decision::Post { name: name() });
    assert_eq!(seen(Approved::Decided), Decision::Settle { name: name() });
    assert_eq!(seen(Approved::Gone), Decision::Settle { name: name() });
    assert_eq!(wait_of(seen(Approved::Open)), (RunReason::EffectUnknown, "approval/nightly-c1-x".to_owned()));
    let late = Look { now: CREATED_AT + 604_900_000, ..Look::new(Some(unknown(true))) };
    let ending = end_of(late.decide());
    assert_eq!(ending.end.reason, EndReason::WaitExceeded);
    assert!(ending.end.message.ends_with("unknown: c1 (github/list_issues)"), "{}", ending.end.message);
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
    // A runner that does not let go loses its pod, and the run ends when nothing of it can act any more.
    let graceless = cancel(Look { cancelling_for: CANCEL_GRACE, ..Look::running(requested.clone()) });
    assert_eq!(epoch_end_of(graceless.decide()).cause, EpochEnd::Cancelled);
    let mut left = unknown(false);
    left.cancel_requested = true;
    let undead = vec![Undead { epoch: 1, pod: PodView::Leaving, waited: Duration::ZERO }];
    let leaving = cancel(Look { undead: undead.clone(), ..Look::new(Some(left.clone())) });
    assert_eq!(leaving.decide(), Decision::Follow(Follow::Cancelling));
    // It is journaled whatever is waited for: children hear of it.
    let unheard = cancel(Look { undead, ..Look::new(Some(unknown(false))) });
    assert_eq!(unheard.decide(), Decision::RequestCancel);
    assert_eq!(
        end_of(cancel(Look::new(Some(left))).decide()).end.message,
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
    let active = |seconds| Look { active_for: Duration::from_secs(seconds), ..Look::running(in_flight()) };
    assert_eq!(active(1_799).decide(), Decision::Follow(Follow::Running));
    let ending = end_of(active(1_800).decide());
    assert_eq!((ending.limit, ending.end.reason), (Some(Limit::ActiveSeconds), EndReason::DeadlineExceeded));
    assert!(ending.end.message.contains("limits.activeSeconds of 1800"), "{}", ending.end.message);
    let mut before = in_flight();
    before.active_milliseconds = 1_000;
    let sum = Look { active_for: Duration::from_secs(1_799), ..Look::running(before) };
    assert_eq!(end_of(sum.decide()).end.reason, EndReason::DeadlineExceeded, "earlier epochs count");

    let late = CREATED_AT + 604_800_000;
    for early in [None, Some(state(vec![opened()]))] {
        let ending = end_of(Look { now: late, agent: AgentView::Missing, ..Look::new(early) }.decide());
        assert_eq!(ending.end.reason, EndReason::WaitExceeded);
    }
}

#[test]
fn pods_that_never_say_hello_do_not_make_a_wait_begin_again() {
    let mut events = vec![opened(), claimed()];
    let lost = |epoch| Event::EpochEnded { epoch, cause: EpochEnd::PodLost, active_milliseconds: 1_000 };
    events.push(lost(1));
    for epoch in 2..9 {
        events.extend([Event::EpochOpened { epoch, pod_name: format!("belay-run-{epoch}") }, lost(epoch)]);
    }
    let lost_at = CREATED_AT + 4_000;
    let late = Look { now: lost_at + 604_800_000, ..Look::new(Some(state(events))) };
    assert_eq!(end_of(late.decide()).end.reason, EndReason::WaitExceeded);
}

#[test]
fn a_suspended_agents_run_waits_and_lets_its_pod_go_once_nothing_is_under_way() {
    let suspended =
        |state| Look { agent: AgentView::Suspended, idle_for: Times::default().wait_grace, ..Look::running(state) };
    let waits = (RunReason::Suspended, "agent/triage".to_owned());
    assert_eq!(wait_of(suspended(in_flight()).decide()), waits, "a call is in flight");
    let mut asking = state(vec![opened(), claimed()]);
    asking.model = ModelState::InFlight { step: 1, attempt: 1, reserved_tokens: 9 };
    assert_eq!(wait_of(suspended(asking.clone()).decide()), waits, "the model may be answering");
    let withheld = Look { withheld: true, ..suspended(asking) };
    assert_eq!(epoch_end_of(withheld.decide()).cause, EpochEnd::Released);
    let early = Look { idle_for: Duration::from_secs(1), ..suspended(state(vec![opened(), claimed()])) };
    assert_eq!(wait_of(early.decide()), waits);
    let resting = Look { agent: AgentView::Suspended, ..Look::new(Some(crashed(1))) };
    assert_eq!(wait_of(resting.decide()), waits);
}

fn waits_for_people() -> DriftSeen {
    DriftSeen::Waits { tool: "github".to_owned(), why: "belay tool accept github".to_owned() }
}

fn accepted_since() -> DriftSeen {
    DriftSeen::Accepted { tool: "github".to_owned(), operations: vec![], approval: None }
}

fn back() -> DriftSeen {
    DriftSeen::Back { tool: "github".to_owned() }
}

#[test]
fn a_run_that_waits_for_a_definition_lets_its_pod_go_and_goes_on_when_that_is_over() {
    let waits = (RunReason::DefinitionDrifted, "tool/github".to_owned());
    let idle = || state(vec![opened(), claimed()]);
    let unseen = DriftSeen::Unseen { tool: "github".to_owned() };
    for drift in [waits_for_people(), unseen] {
        let live = |idle_for| Look { drift: drift.clone(), idle_for, ..Look::running(idle()) };
        assert_eq!(wait_of(live(Duration::from_secs(1)).decide()), waits);
        assert_eq!(epoch_end_of(live(Times::default().wait_grace).decide()).cause, EpochEnd::Released);
        let resting = Look { drift: drift.clone(), ..Look::new(Some(crashed(1))) };
        assert_eq!(wait_of(resting.decide()), waits);
        let busy = Look { drift, idle_for: Times::default().wait_grace, ..Look::running(in_flight()) };
        assert_eq!(wait_of(busy.decide()), waits, "a call is in flight");
    }
    for over in [accepted_since(), back()] {
        let live = Look { drift: over, ..Look::running(idle()) };
        assert_eq!(epoch_end_of(live.decide()).cause, EpochEnd::Released, "at once: the next one lists anew");
    }
    let resting =
        |drift, seconds| Look { drift, resting_for: Duration::from_secs(seconds), ..Look::new(Some(crashed(1))) };
    assert_eq!(resting(accepted_since(), 0).decide(), Decision::Adopt { tool: "github".to_owned() });
    let doubted =
        Look { status_doubt: Some("belay-status is missing".into()), ..resting(accepted_since(), 0) }.decide();
    let Decision::Follow(Follow::Waiting(wait)) = doubted else { panic!("a forged status was taken over") };
    assert!(wait.message.ends_with("is not certain for now: belay-status is missing"), "{}", wait.message);
    assert_eq!(wait_of(resting(back(), 29).decide()), waits, "a server that is now this and now that costs no pods");
    assert_eq!(resting(back(), 30).decide(), Decision::Launch);
    let late = Look { now: CREATED_AT + 604_900_000, ..resting(waits_for_people(), 0) };
    assert_eq!(end_of(late.decide()).end.reason, EndReason::WaitExceeded);
}

#[test]
fn people_who_are_asked_about_a_call_come_before_a_definition_and_the_agents_suspension_too() {
    let asks = vec![AskSeen { name: "nightly-c1-x".to_owned(), seen: Approved::Open }];
    let asked = Look { asks, drift: waits_for_people(), ..Look::new(Some(asked_before(false))) };
    assert_eq!(wait_of(asked.decide()).0, RunReason::ApprovalPending);
    let allowed = vec![AskSeen { name: "nightly-c1-x".to_owned(), seen: Approved::Allowed }];
    let allowed = Look { asks: allowed, drift: waits_for_people(), ..Look::new(Some(asked_before(false))) };
    assert_eq!(wait_of(allowed.decide()).0, RunReason::DefinitionDrifted, "no pod is started to send it");
    let suspended = Look {
        agent: AgentView::Suspended,
        drift: back(),
        resting_for: Duration::from_mins(1),
        ..Look::new(Some(crashed(1)))
    };
    assert_eq!(wait_of(suspended.decide()).0, RunReason::Suspended);
}

#[test]
fn what_people_are_asked_about_a_call_is_out_of_date_once_its_definition_is() {
    let mut state = asked_before(false);
    let ask = state.asks.values().next().unwrap().ask.clone();
    assert_eq!(super::questions::out_of_date(&state, &ask), None);
    let definition = Some(Digest::of(b"new"));
    let operations = vec![AcceptedDefinition { name: "list_issues".to_owned(), definition }];
    let event = Event::DefinitionsAccepted { tool: "github".to_owned(), operations, approval: None };
    state.apply(&Record { seq: state.seq + 1, at: state.updated_at, event }).unwrap();
    assert!(super::questions::out_of_date(&state, &ask).is_some());
    state.asks.clear();
    assert_eq!(super::questions::unasked(&state), None, "it is proposed anew first");
    let wanted = Look::new(Some(state)).decide();
    assert_eq!(wanted, Decision::Launch, "by another runner");
}

#[test]
fn a_call_that_waits_for_an_earlier_pods_end_says_so() {
    let mut held = in_flight();
    held.undead.insert(1, "belay-run-old".to_owned());
    assert_eq!(Look::running(held.clone()).decide(), Decision::Follow(Follow::Running), "nothing waits for it yet");
    let call = match held.calls.remove("c1") {
        Some(CallState::Permitted { call, .. }) => call,
        other => panic!("{other:?}"),
    };
    held.calls.insert("c1".to_owned(), CallState::Later { attempt: 1, call });
    match Look::running(held).decide() {
        Decision::Follow(Follow::Held { reason: RunReason::Quarantine, message }) => {
            assert!(message.contains("pod belay-run-old") && message.contains("100 s at most"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pods_that_cannot_be_seen_lead_to_no_conclusion() {
    let unseen = |look| Look { pod: PodView::Unseen, service: Service::NotEnabled, ..look };
    let held = match unseen(Look::running(in_flight())).decide() {
        Decision::Follow(Follow::Held { reason, message }) => {
            (reason, message.contains("belay namespace enable triage"))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(held, (RunReason::NamespaceNotEnabled, true), "it goes on, and says that nobody looks after it");
    let unclaimed = unseen(Look::new(Some(state(vec![opened()])))).decide();
    assert_eq!(wait_of(unclaimed), (RunReason::NamespaceNotEnabled, "namespace/triage".to_owned()));
    let starting = Look { service: Service::Starting, ..unseen(Look::new(Some(state(vec![opened()])))) };
    assert_eq!(starting.decide(), Decision::Hold, "its pods are being listed");
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
    let forked = Look { holds_witness: false, ..witness(JOURNAL, 3, "other") };
    for lost in [witness("journal-2", 3, "h3"), witness(JOURNAL, 99, "h99"), forked] {
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
        let ending = end_of(look.decide()).end;
        assert!(ending.message.starts_with("the AgentRun was deleted"), "{}", ending.message);
        assert_eq!(ending.message.contains("unknown: c1"), look.state.is_some());
    }
}

#[test]
fn the_closing_events_follow_in_every_state() {
    let end = RunEnd { outcome: Outcome::Failed, reason: EndReason::PodLost, message: "m".into() };
    let ending = Ending { limit: Some(Limit::ActiveSeconds), epoch: EpochEnd::PodLost, end };
    for before in [state(vec![]), state(vec![opened()]), state(vec![opened(), claimed()]), in_flight()] {
        let mut state = before.clone();
        for event in ending.clone().events(Some(&before), Duration::ZERO) {
            let record = belay_protocol::Record { seq: state.seq + 1, at: state.updated_at, event };
            state.apply(&record).unwrap();
        }
        assert!(state.end.is_some() && state.live_epoch().is_none());
        assert_eq!(state.calls_in_flight().count(), 0);
    }
    assert_eq!(ending.clone().events(None, Duration::ZERO), [Event::RunEnded { end: ending.end }]);
}

/// For each state of docs/run-lifecycle.md: the run in it, as the time that the table allows is over.
fn overdue_states() -> Vec<(&'static str, Look)> {
    let late = || CREATED_AT + 604_800_000;
    let waits = |look: Look| Look { now: late() + 60_000, ..look };
    let accepted = |events| Look::new(Some(state(events)));
    let pod = |pod, seconds| Look {
        pod,
        stream: Stream::Closed,
        ended_for: Duration::from_secs(seconds),
        ..Look::running(in_flight())
    };
    let asked =
        |seen| Look { asks: vec![AskSeen { name: "nightly-c1-x".to_owned(), seen }], ..Look::new(Some(unknown(true))) };
    let allowed = |seen| Look {
        asks: vec![AskSeen { name: "nightly-c1-x".to_owned(), seen }],
        ..Look::new(Some(asked_before(false)))
    };
    let inquired = |seen| Look {
        asks: vec![AskSeen { name: "nightly-c1-x".to_owned(), seen }],
        ..Look::new(Some(inquiring(true)))
    };
    let undead = |state| Look {
        undead: vec![Undead { epoch: 1, pod: PodView::Absent, waited: Duration::from_secs(100) }],
        ..Look::new(Some(state))
    };
    let blocked = PodView::Blocked { why: "Unschedulable".into() };
    let opened_pod = |pod| Look { pod, pod_was_there: true, ..accepted(vec![opened()]) };
    let mut cancelled = in_flight();
    cancelled.cancel_requested = true;
    let mut gone = unknown(false);
    gone.cancel_requested = true;
    let mut deleted = Look::running(in_flight());
    deleted.run.metadata.deletion_timestamp = deleted.run.metadata.creation_timestamp.clone();
    let mut lost = Look { holds_witness: false, ..Look::running(in_flight()) };
    let journal = JournalRef { id: JOURNAL.into(), seq: 3, hash: "other".into() };
    lost.run.status = Some(AgentRunStatus { journal: Some(journal), ..AgentRunStatus::default() });
    let mut ended = in_flight();
    ended.end = Some(RunEnd { outcome: Outcome::Failed, reason: EndReason::PodLost, message: String::new() });
    let suspended = |look: Look| Look { agent: AgentView::Suspended, ..look };
    vec![
        ("namespace-not-served", waits(Look { service: Service::NotEnabled, ..Look::new(None) })),
        ("agent-not-ready", waits(Look { agent: AgentView::Missing, ..Look::new(None) })),
        ("agent-suspended", waits(suspended(Look::new(None)))),
        ("queued", waits(Look::new(None))),
        ("accepted", accepted(vec![])),
        ("pod-blocked", waits(opened_pod(blocked))),
        ("pod-starting", waits(opened_pod(PodView::Starting))),
        ("pod-silent", Look { now: CREATED_AT + 300_000, ..Look::running(state(vec![opened()])) }),
        ("running", Look { active_for: Duration::from_mins(30), ..Look::running(in_flight()) }),
        (
            "rate-limited",
            Look {
                active_for: Duration::from_mins(30),
                withheld: true,
                model_wait: Some(Waits {
                    model: "writer".into(),
                    held_by: Some(HeldBy::RequestsPerMinute),
                    time: Duration::from_mins(30),
                }),
                ..Look::running(state(vec![opened(), claimed()]))
            },
        ),
        ("pod-ended", Look { stream: Stream::Live, ..pod(PodView::Ended(Exit::Clean), 10) }),
        ("pod-vanished", pod(PodView::Absent, 0)),
        ("pod-lost-with-its-node", pod(PodView::Lost { why: "its node is gone".into() }, 0)),
        ("undead", undead(unknown(true))),
        ("backing-off", Look { resting_for: Duration::from_mins(1), ..Look::new(Some(crashed(4))) }),
        ("crashed-five-times", Look::new(Some(crashed(5)))),
        ("approval-pending", waits(allowed(Approved::Open))),
        ("approval-given", allowed(Approved::Allowed)),
        ("approval-overdue", allowed(Approved::Overdue)),
        ("input-required", Look::running(inquiring(false))),
        ("answer-pending", waits(inquired(Approved::Open))),
        ("answer-given", inquired(Approved::Answered)),
        // Taken like an answer: `what_a_server_asks` shows what comes of it.
        ("answer-overdue", inquired(Approved::Answered)),
        ("call-unknown", Look::new(Some(unknown(false)))),
        ("question-not-posted", asked(Approved::Unposted)),
        ("people-asked", waits(asked(Approved::Open))),
        ("people-decided", asked(Approved::Decided)),
        ("approval-vanished", asked(Approved::Gone)),
        (
            "idle-with-a-pod",
            suspended(Look {
                idle_for: Times::default().wait_grace,
                ..Look::running(state(vec![opened(), claimed()]))
            }),
        ),
        (
            "definition-unseen",
            waits(Look { drift: DriftSeen::Unseen { tool: "github".to_owned() }, ..Look::new(Some(crashed(1))) }),
        ),
        ("definition-drifted", waits(Look { drift: waits_for_people(), ..Look::new(Some(crashed(1))) })),
        ("definition-accepted", Look { drift: accepted_since(), ..Look::new(Some(crashed(1))) }),
        ("definition-back", Look { drift: back(), resting_for: BACK_AFTER, ..Look::new(Some(crashed(1))) }),
        ("suspended-without-a-pod", waits(suspended(Look::new(Some(crashed(1)))))),
        ("cancelling", Look { cancelling_for: CANCEL_GRACE, ..Look::running(cancelled) }),
        ("cancelled-and-undead", undead(gone)),
        ("deleted", deleted),
        ("journal-lost", lost),
        ("ended", Look::running(ended)),
    ]
}

/// Likewise, with a child; one that works ends in its own time.
fn overdue_with_children() -> [(&'static str, Look); 4] {
    let mut unmade = delegated(false);
    unmade.children.values_mut().for_each(|open| open.uid = None);
    let unmade = || with_child(Look::new(Some(unmade.clone())), ChildState::Unposted);
    let over = || with_child(Look::new(Some(delegated(false))), ChildState::Over);
    let late = Look { now: CREATED_AT + 604_860_000, ..unmade() };
    [("child-not-made", unmade()), ("child-refused", late), ("child-at-work", over()), ("child-ended", over())]
}

#[test]
fn every_state_of_the_documents_table_has_an_exit_within_its_time() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/run-lifecycle.md")).unwrap();
    let documented: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let states: Vec<_> = overdue_states().into_iter().chain(overdue_with_children()).collect();
    assert_eq!(documented, states.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, look) in states {
        let decision = look.decide();
        let stays = matches!(decision, Decision::Hold | Decision::Wait(_) | Decision::Follow(_));
        assert!(!stays, "{name} goes on for ever: {decision:?}");
    }
}

#[test]
fn what_was_allowed_for_the_run_is_made_and_taken_back_whatever_else_the_run_does() {
    let seen = |look: Look, seen| Look { grants: vec![GrantSeen { name: "g".to_owned(), seen }], ..look }.decide();
    for look in
        [|| Look::running(in_flight()), || Look::new(Some(asked_before(false))), || Look::running(asked_before(true))]
    {
        assert_eq!(seen(look(), Granted::Unposted), Decision::PostGrant { name: "g".to_owned() });
        for gone in [Granted::Gone, Granted::Void] {
            let decision = seen(look(), gone);
            assert!(matches!(&decision, Decision::RevokeGrant { name, .. } if name == "g"), "{decision:?}");
        }
        assert_eq!(seen(look(), Granted::Stands), look().decide());
    }
    let mut cancelled = Look::running(in_flight());
    cancelled.run.spec.cancel = Some(true);
    assert_eq!(seen(cancelled, Granted::Unposted), Decision::RequestCancel, "nothing is given to a run that ends");
}

#[test]
fn a_request_that_waits_for_long_for_its_turn_says_for_which_limit() {
    let seconds = |time| Duration::from_secs(time);
    let waits = |held_by, time| Some(Waits { model: "writer".into(), held_by: Some(held_by), time: seconds(time) });
    let look = |model_wait| {
        let look = Look { model_wait, ..Look::running(state(vec![opened(), claimed()])) };
        match look.decide() {
            Decision::Follow(Follow::Running) => None,
            Decision::Follow(Follow::Held { reason, message }) => Some((reason, message)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(look(waits(HeldBy::RequestsPerMinute, 9)), None, "nobody asks why yet");
    for (held_by, words) in [
        (HeldBy::RequestsPerMinute, "Model writer: spec.rateLimits.requestsPerMinute is reached"),
        (HeldBy::TokensPerMinute, "Model writer: spec.rateLimits.tokensPerMinute is reached"),
        (HeldBy::ConcurrentRequests, "Model writer: spec.rateLimits.concurrentRequests is reached"),
        (HeldBy::Refusal, "Model writer: its provider asked for patience (429)"),
    ] {
        let (reason, message) = look(waits(held_by, 10)).unwrap();
        assert_eq!(reason, RunReason::RateLimited);
        assert!(message.starts_with(words), "{message}");
    }
}

/// `in_flight()` whose call is carried out by a child, with its epoch released where `live` says no.
fn delegated(live: bool) -> RunState {
    let mut state = in_flight();
    let mut plan = (**state.plan.as_ref().unwrap()).clone();
    plan.tools.first_mut().unwrap().agent = Some(belay_protocol::plan::PlanAgent {
        name: "helper".to_owned(),
        description: String::new(),
        limits: plan.limits,
        priced: true,
    });
    let child = belay_protocol::event::Child {
        name: "nightly-c1-x".to_owned(),
        agent: "helper".to_owned(),
        limits: plan.limits,
    };
    state.plan = Some(std::sync::Arc::new(plan));
    let events = vec![
        Event::ChildOpened { call_id: "c1".to_owned(), attempt: 1, child },
        Event::ChildPosted { name: "nightly-c1-x".to_owned(), uid: "uid-child".to_owned() },
    ];
    waiting(state, events, live)
}

fn with_child(look: Look, seen: ChildState) -> Look {
    Look { children: vec![ChildSeen { name: "nightly-c1-x".to_owned(), seen }], ..look }
}

#[test]
fn a_child_is_made_and_its_end_taken_and_in_between_it_is_waited_for_without_a_pod() {
    let name = || "nightly-c1-x".to_owned();
    let resting = |seen| with_child(Look::new(Some(delegated(false))), seen);
    assert_eq!(resting(ChildState::Unposted).decide(), Decision::PostChild { name: name() });
    assert_eq!(resting(ChildState::Over).decide(), Decision::SettleChild { name: name() });
    let waits = (RunReason::ChildRunning, "agentrun/nightly-c1-x".to_owned());
    assert_eq!(wait_of(resting(ChildState::AtWork).decide()), waits);
    let live = with_child(Look::running(delegated(true)), ChildState::AtWork);
    let Decision::EndEpoch(ending) = live.decide() else { panic!("its pod goes at once: it would wait in vain") };
    assert_eq!((ending.epoch, ending.cause), (1, EpochEnd::Released));
}

#[test]
fn a_run_does_not_run_out_of_patience_with_a_child_at_work_and_does_once_it_has_ended() {
    let a_year = CREATED_AT + 365 * 86_400_000;
    let late = |seen| Look { now: a_year, ..with_child(Look::new(Some(delegated(false))), seen) };
    assert_eq!(wait_of(late(ChildState::AtWork).decide()).0, RunReason::ChildRunning);
    let asked = Look { now: a_year, ..Look::new(Some(asked_before(false))) };
    assert!(matches!(asked.decide(), Decision::End(_)), "as with people");
}

#[test]
fn a_child_whose_parent_is_gone_is_cancelled_like_one_that_somebody_cancels() {
    let why = || Lineage::CutOff("AgentRun up, whose call it carries out, has ended".to_owned());
    let fresh = Look { lineage: why(), ..Look::new(None) };
    let Decision::End(ending) = fresh.decide() else { panic!("it never starts") };
    assert_eq!((ending.end.outcome, ending.end.message), (Outcome::Cancelled, why().cut_off().unwrap().to_owned()));
    let working = Look { lineage: why(), ..Look::running(in_flight()) };
    assert_eq!(working.decide(), Decision::RequestCancel);
    let cancelled = Look { run: Look::new(None).run, lineage: why(), ..Look::new(Some(delegated(false))) };
    assert!(matches!(cancelled.decide(), Decision::End(_)), "one that waits for a child of its own ends at once");
}

#[test]
fn a_child_that_cannot_be_made_holds_up_neither_its_siblings_nor_the_pod() {
    let seen = |name: &str, seen| ChildSeen { name: name.to_owned(), seen };
    let children = vec![seen("a", ChildState::Unposted), seen("b", ChildState::Over)];
    let settled = Look { children, ..Look::new(Some(delegated(false))) };
    assert_eq!(settled.decide(), Decision::SettleChild { name: "b".to_owned() });
    let mut unmade = delegated(true);
    unmade.children.values_mut().for_each(|open| open.uid = None);
    let idle = with_child(Look::running(unmade.clone()), ChildState::Unposted);
    assert_eq!(epoch_end_of(idle.decide()).cause, EpochEnd::Released, "its pod waits for nothing that it could do");
    unmade.model = ModelState::InFlight { step: 2, attempt: 1, reserved_tokens: 0 };
    let busy = with_child(Look::running(unmade), ChildState::Unposted);
    assert_eq!(busy.decide(), Decision::PostChild { name: "nightly-c1-x".to_owned() }, "and meanwhile it is made");
}

#[test]
fn a_child_that_its_parent_has_not_named_is_neither_started_nor_given_up() {
    let unnamed = Look { lineage: Lineage::Unnamed, ..Look::new(None) };
    assert_eq!(unnamed.decide(), Decision::Hold);
    assert_eq!(Look { lineage: Lineage::Root, ..unnamed }.decide(), Decision::Start);
}
