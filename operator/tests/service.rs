//! The run service as a runner meets it: over TLS, with a token, one stream at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod service_world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use belay_operator::gate::{ModelRequest, close};
use belay_protocol::event::{
    AcceptedDefinition, Answer, Approver, Artifact, Ask, AskPurpose, DeathProof, DenyReason, EndReason, EpochEnd,
    Event, Failure, FailureReason, Finish, ListedOperation, Listing, Outcome, Verdict,
};
use belay_protocol::fold::CallState;
use belay_protocol::plan::{ObjectId, PlanAgent};
use belay_protocol::probe::{Presence, ProbeReport, ProbeTask};
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::runner_message::Body as ToOperator;
use belay_protocol::wire::{
    self, Ack, ArtifactHead, ArtifactPart, Batch, Welcome, artifact_part, probe_message, probe_order,
};
use belay_protocol::{
    ARTIFACT_BYTES_MAX, Digest, MESSAGE_BYTES_MAX, PROTOCOL_VERSION, RESULT_BYTES_MAX, Record, RunState,
    TICKET_METADATA,
};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use service_world::{
    Runner, World, asks, listed, observed, proposed, requested, responded, said, text, token, wants, with_token, within,
};

/// A runner that has listed its tool and was answered by the model, with call c1 to propose.
async fn asked(world: &World, name: &str) -> (Runner, Ack) {
    let (mut runner, _) = world.welcome(name, "one", None).await;
    runner.append(1, &[listed(), requested(1)]).await;
    let ack = runner.append(2, &[responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")]).await;
    (runner, ack)
}

#[tokio::test]
async fn a_run_goes_from_hello_over_a_permitted_call_to_its_end() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, welcome) = world.welcome("a", "one", None).await;
    assert_eq!((welcome.epoch, welcome.session, welcome.last_batch, welcome.records.len()), (1, 1, 0, 3));
    assert!(world.sessions.is_live(&run.uid));

    let ack = runner.append(1, &[listed(), requested(1)]).await;
    assert_eq!(said(&ack, "m1"), Ok(Vec::new()));
    let Event::CallProposed { call, .. } = proposed("c1", "read") else { unreachable!() };
    let ack = runner.append(2, &[responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")]).await;
    assert_eq!(said(&ack, "c1"), Ok(call.digest.as_bytes().to_vec()));
    runner.append(3, &[observed("c1"), requested(2)]).await;
    let ack = runner.append(4, &[responded(2, vec![text("done")], Finish::Stop)]).await;
    assert_eq!(ack.decisions, []);
    assert_eq!(runner.bye().await, "Succeeded (Completed)");

    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    assert_eq!((state.end.as_ref().unwrap().outcome, state.output.as_deref()), (Outcome::Succeeded, Some("done")));
    let records = world.journal.records(&run.uid, 1).await.unwrap();
    assert_eq!(RunState::replay(records.iter().map(|sealed| &sealed.record)).unwrap(), *state);
    world.stop().await;
}

#[tokio::test]
async fn welcome_holds_the_plan_and_records_that_fold_to_the_journals_state() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (_runner, welcome) = world.welcome("a", "one", None).await;
    assert_eq!(serde_json::from_slice::<belay_protocol::Plan>(&welcome.plan).unwrap(), service_world::plan("a"));
    let records: Vec<Record> = welcome.records.iter().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect();
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    assert_eq!(RunState::replay(&records).unwrap(), *state);
}

#[tokio::test]
async fn an_operation_that_the_agent_does_not_list_is_denied_in_words() {
    let world = World::start().await;
    world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    runner.append(1, &[listed(), requested(1)]).await;
    let ack = runner.append(2, &[responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "purge")]).await;
    let words = said(&ack, "c1").unwrap_err();
    assert!(words.contains("does not list files/purge"), "{words}");
}

#[tokio::test]
async fn a_second_instance_and_a_second_pod_are_refused_for_good() {
    let world = World::start().await;
    world.accept("a").await;
    let (mut first, _) = world.welcome("a", "one", None).await;
    let (_, refusal) = world.greet("a", "two", None).await;
    assert!(matches!(&refusal, FromOperator::Bye(bye) if bye.reason.contains("another instance")), "{refusal:?}");
    let mut usurper = world.connect("ns/belay-run-a/another-pod").await.unwrap();
    usurper.hello("one", None).await;
    assert!(usurper.bye().await.contains("another pod"));
    assert_eq!(said(&first.append(1, &[listed(), requested(1)]).await, "m1"), Ok(Vec::new()), "the first goes on");
}

#[tokio::test]
async fn a_batch_sent_again_is_answered_alike_and_journaled_once() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (_gone, answered) = asked(&world, "a").await;
    let before = world.journal.head(&run.uid).await.unwrap();
    let (mut runner, welcome) = world.welcome("a", "one", None).await;
    assert_eq!(welcome.last_batch, 2);
    let again = [responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")];
    assert_eq!(runner.append(2, &again).await, answered);
    assert_eq!(world.journal.head(&run.uid).await.unwrap(), before);
    runner.append(3, &[observed("c1")]).await;
    let spent = runner.append(2, &again).await;
    assert!(said(&spent, "c1").unwrap_err().contains("used or given back"), "a spent permit is not handed out again");
}

#[tokio::test]
async fn a_call_of_an_agent_gets_no_permit_and_no_runner_can_say_what_came_of_it() {
    let world = World::start().await;
    let mut plan = service_world::plan("a");
    let agent = PlanAgent { name: "helper".into(), description: String::new(), limits: plan.limits, priced: true };
    plan.tools[0].agent = Some(agent);
    let run = world.accept_plan(plan).await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    runner.append(1, &[listed(), requested(1)]).await;
    let call = service_world::proposed_with("c1", "read", &serde_json::json!({"input": "find it"}));
    let batch = [responded(1, vec![asks("c1")], Finish::ToolCalls), call];
    let ack = runner.append(2, &batch).await;
    assert_eq!(said(&ack, "c1"), Err("asked".to_owned()), "it waits for somebody else");
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    assert!(matches!(state.calls["c1"], CallState::Delegated { .. }), "{:?}", state.calls);
    assert_eq!(state.children.values().next().unwrap().child.agent, "helper");
    let (mut runner, _) = world.welcome("a", "one", None).await;
    assert_eq!(runner.append(2, &batch).await, ack, "also where the answer was lost");
    runner.send_batch(3, &[observed("c1")]).await;
    assert_eq!(runner.cut_with().await, Code::InvalidArgument);
}

#[tokio::test]
async fn a_batch_sent_again_with_other_events_or_out_of_order_is_cut_off() {
    let world = World::start().await;
    world.accept("a").await;
    asked(&world, "a").await;
    for (n, events) in [(2, [requested(1)]), (4, [observed("c1")])] {
        let (mut runner, _) = world.welcome("a", "one", None).await;
        runner.send_batch(n, &events).await;
        assert_eq!(runner.cut_with().await, Code::InvalidArgument, "batch {n}");
    }
}

#[tokio::test]
async fn garbage_is_cut_off_and_no_other_run_notices() {
    let world = World::start().await;
    world.accept("good").await;
    let (mut good, _) = world.welcome("good", "one", None).await;
    let batch = |events: Vec<Vec<u8>>| ToOperator::Batch(Batch { n: 1, events });
    let operators = serde_json::to_vec(&Event::CancelRequested {}).unwrap();
    let illegal = serde_json::to_vec(&observed("c9")).unwrap();
    let garbage = [
        (batch(vec![b"{".to_vec()]), Code::InvalidArgument),
        (batch(vec![operators]), Code::InvalidArgument),
        (batch(vec![illegal.clone()]), Code::InvalidArgument),
        (batch(vec![]), Code::InvalidArgument),
        (batch(vec![illegal; 300]), Code::InvalidArgument),
        (batch(vec![vec![b' '; 2 * 1024 * 1024]]), Code::InvalidArgument),
        (batch(vec![vec![b' '; MESSAGE_BYTES_MAX + 1]]), Code::OutOfRange),
        (ToOperator::Hello(wire::Hello::default()), Code::InvalidArgument),
    ];
    for (i, (message, code)) in garbage.into_iter().enumerate() {
        let name = format!("bad{i}");
        let run = world.accept(&name).await;
        let (mut runner, _) = world.welcome(&name, "one", None).await;
        runner.send(message).await;
        assert_eq!(runner.cut_with().await, code, "message {i}");
        assert_eq!(world.journal.head(&run.uid).await.unwrap().unwrap().seq, 3, "nothing of it was journaled");
    }
    assert_eq!(said(&good.append(1, &[listed(), requested(1)]).await, "m1"), Ok(Vec::new()));
}

#[tokio::test]
async fn a_newer_stream_cuts_the_older_one() {
    let world = World::start().await;
    world.accept("a").await;
    let (mut older, _) = world.welcome("a", "one", None).await;
    let (mut newer, welcome) = world.welcome("a", "one", None).await;
    assert_eq!(welcome.session, 2);
    older.send_batch(1, &[listed()]).await;
    assert_eq!(older.cut_with().await, Code::Aborted);
    assert_eq!(said(&newer.append(1, &[listed(), requested(1)]).await, "m1"), Ok(Vec::new()));
}

#[tokio::test]
async fn a_restarted_operator_goes_on_where_the_journal_ends() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (_gone, ack) = asked(&world, "a").await;
    let id = world.journal.id().to_owned();
    let world = world.restart().await;
    assert_eq!(world.journal.id(), id);
    let (mut runner, welcome) = world.welcome("a", "one", Some(&ack)).await;
    assert_eq!((welcome.session, welcome.last_batch), (2, 2));
    assert!(welcome.records.is_empty(), "it knows its run");
    runner.append(3, &[observed("c1"), requested(2)]).await;
    runner.append(4, &[responded(2, vec![text("done")], Finish::Stop)]).await;
    runner.bye().await;
    assert!(world.journal.state(&run.uid).await.unwrap().unwrap().end.is_some());
}

#[tokio::test]
async fn a_runner_that_saw_more_than_the_journal_holds_ends_its_run_as_journal_lost() {
    let world = World::start().await;
    for (name, witness) in [
        ("ahead", Ack { seq: 99, hash: vec![7; 32], ..Ack::default() }),
        ("other", Ack { seq: 2, hash: vec![7; 32], ..Ack::default() }),
    ] {
        let run = world.accept(name).await;
        let (_, answer) = world.greet(name, "one", Some(&witness)).await;
        assert!(matches!(&answer, FromOperator::Bye(bye) if bye.reason.contains("JournalLost")), "{answer:?}");
        let end = world.journal.state(&run.uid).await.unwrap().unwrap().end.clone().unwrap();
        assert_eq!((end.outcome, end.reason), (Outcome::Failed, EndReason::JournalLost));
    }
}

#[tokio::test]
async fn a_runner_whose_pod_the_journal_does_not_know_is_a_witness_too() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let mut later = world.connect(&format!("ns/belay-run-later/uid#{}", run.uid)).await.unwrap();
    later.hello("one", Some(&Ack { seq: 99, hash: vec![7; 32], ..Ack::default() })).await;
    assert!(later.bye().await.contains("JournalLost"));
    let end = world.journal.state(&run.uid).await.unwrap().unwrap().end.clone().unwrap();
    assert_eq!(end.reason, EndReason::JournalLost, "the journal is from before that pod was made");
}

#[tokio::test]
async fn only_a_vouched_token_from_its_pods_own_address_opens_a_stream() {
    let world = World::start().await;
    world.accept("a").await;
    let code = async |token: &str| world.connect(token).await.err().map(|status| status.code());
    assert_eq!(code("nonsense").await, Some(Code::Unauthenticated));
    assert_eq!(code("unreachable").await, Some(Code::Unavailable));
    assert_eq!(code("ns/belay-run-a/pod-uid-a@10.9.9.9").await, Some(Code::Unauthenticated));
    assert_eq!(code("ns/belay-run-a/pod-uid-a@unknown").await, Some(Code::Unavailable));
    let mut stranger = world.connect("ns/belay-run-b/pod-uid").await.unwrap();
    stranger.hello("one", None).await;
    assert!(stranger.bye().await.contains("no live run with the pod ns/belay-run-b"));
}

#[tokio::test]
async fn a_runner_that_fills_the_journal_ends_its_run_alone_also_after_a_restart() {
    let world = World::with_room(150_000).await;
    let run = world.accept("greedy").await;
    let other = world.accept("other").await;
    let (mut runner, _) = world.welcome("greedy", "one", None).await;
    let operation = |i| ListedOperation { name: format!("operation-{i}"), definition: belay_protocol::Digest::zero() };
    let listing = Listing::Listed((0..1_000).map(operation).collect());
    let large = Event::ToolsListed { tool: "files".into(), listing };
    let ack = runner.append(1, std::slice::from_ref(&large)).await;
    // What was written before the operator died counts.
    drop(runner);
    let world = world.restart().await;
    let (mut runner, _) = world.welcome("greedy", "one", Some(&ack)).await;
    runner.append(2, &[large.clone(), requested(1)]).await;
    let words = runner.bye().await;
    assert!(words.starts_with("Failed (JournalExceeded): AgentRun greedy wrote 150000 bytes"), "{words}");
    drop(runner);
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    assert_eq!(state.end.as_ref().unwrap().reason, EndReason::JournalExceeded);
    assert!(world.journal.bytes(&run.uid).await.unwrap() < 300_000);
    let (mut runner, _) = asked(&world, "other").await;
    runner.append(3, &[observed("c1"), requested(2)]).await;
    runner.append(4, &[responded(2, vec![text("done")], Finish::Stop)]).await;
    assert_eq!(runner.bye().await, "Succeeded (Completed)");
    assert!(world.journal.bytes(&other.uid).await.unwrap() > 0);
    world.stop().await;
}

const HERE: &str = "127.0.0.1";

#[tokio::test]
async fn a_runner_comes_back_by_its_ticket_while_nobody_can_say_whose_its_token_is() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, welcome) = world.welcome("a", "one", None).await;
    let ack = runner.append(1, &[listed(), requested(1)]).await;
    world.api_server_away.store(true, Ordering::SeqCst);
    let without = world.connect(&token("a")).await.err().unwrap();
    assert_eq!(without.code(), Code::Unavailable);
    let mut again = world.connect_again(&token("a"), &welcome.ticket, HERE).await.unwrap();
    again.hello("one", Some(&ack)).await;
    match again.next().await {
        Ok(FromOperator::Welcome(welcome)) => assert!(welcome.ticket.is_empty(), "a ticket begets no ticket"),
        other => panic!("{other:?}"),
    }
    again.append(2, &[responded(1, vec![text("done")], Finish::Stop)]).await;
    assert_eq!(again.bye().await, "Succeeded (Completed)");
    assert!(world.journal.state(&run.uid).await.unwrap().unwrap().end.is_some());
}

#[tokio::test]
async fn a_ticket_is_good_for_its_own_instance_epoch_pod_and_address_alone() {
    let world = World::start().await;
    let run = world.accept("a").await;
    world.accept("b").await;
    let (_runner, Welcome { ticket, .. }) = world.welcome("a", "one", None).await;
    world.api_server_away.store(true, Ordering::SeqCst);
    // Another instance; whoever it is may come again once tokens can be checked.
    let mut other = world.connect_again(&token("a"), &ticket, HERE).await.unwrap();
    other.hello("two", None).await;
    assert_eq!(other.cut_with().await, Code::Unavailable);
    // From another address than the one that was vouched for.
    let elsewhere = world.connect_again(&token("a"), &ticket, "127.0.0.2").await.err().unwrap();
    assert_eq!(elsewhere.code(), Code::Unauthenticated);
    // With a token that the API server refuses.
    let revoked = world.connect_again("revoked", &ticket, HERE).await.err().unwrap();
    assert_eq!(revoked.code(), Code::Unauthenticated);
    // Bent.
    let mut bent = ticket.clone();
    bent[40] ^= 1;
    assert_eq!(world.connect_again(&token("a"), &bent, HERE).await.err().unwrap().code(), Code::Unavailable);
    // Whatever token comes with it, it speaks for the run that it was made for.
    let mut b = world.connect_again(&token("b"), &ticket, HERE).await.unwrap();
    b.hello("one", None).await;
    assert!(
        matches!(b.next().await, Ok(FromOperator::Welcome(welcome)) if welcome.plan.windows(5).any(|w| w == b"a-uid"))
    );
    // After its epoch.
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::PodLost, active_milliseconds: 0 };
    world.journal.append(&run, state.seq, vec![over]).await.unwrap();
    let mut late = world.connect_again(&token("a"), &ticket, HERE).await.unwrap();
    late.hello("one", None).await;
    assert!(late.bye().await.contains("no live run"));
}

#[tokio::test]
async fn a_ticket_of_an_operator_that_is_gone_is_none_and_a_probes_stream_takes_none() {
    let world = World::start().await;
    world.accept("a").await;
    let (runner, Welcome { ticket, .. }) = world.welcome("a", "one", None).await;
    drop(runner);
    let world = world.restart().await;
    world.api_server_away.store(true, Ordering::SeqCst);
    assert_eq!(world.connect_again(&token("a"), &ticket, HERE).await.err().unwrap().code(), Code::Unavailable);
    world.api_server_away.store(false, Ordering::SeqCst);
    let (_runner, Welcome { ticket, .. }) = world.welcome("a", "one", None).await;
    world.api_server_away.store(true, Ordering::SeqCst);
    let mut request = with_token(tokio_stream::empty(), &token("a"));
    request.metadata_mut().insert_bin(TICKET_METADATA, tonic::metadata::MetadataValue::from_bytes(&ticket));
    assert_eq!(within(world.client().await.probe(request)).await.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test]
async fn cancel_reaches_the_runner_and_stops_permits() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    let mut changed = world.sessions.changed();
    runner.append(1, &[listed(), requested(1)]).await;
    let seq = world.journal.head(&run.uid).await.unwrap().unwrap().seq;
    world.journal.append(&run, seq, vec![Event::CancelRequested {}]).await.unwrap();
    assert!(world.sessions.cancel(&run.uid, Duration::from_secs(7)));
    let order = runner.next().await.unwrap();
    assert!(matches!(&order, FromOperator::Cancel(cancel) if cancel.grace_seconds == 7), "{order:?}");
    let ack = runner.append(2, &[responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")]).await;
    assert!(said(&ack, "c1").is_err());
    drop(runner);
    assert_eq!(within(changed.recv()).await.unwrap(), run.uid);
    assert!(!world.sessions.is_live(&run.uid));
}

#[tokio::test]
async fn a_suspended_agents_model_request_waits_until_it_is_resumed_and_nothing_is_lost_by_a_reconnect() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    runner.append(1, &[listed()]).await;
    world.suspended.store(true, Ordering::SeqCst);
    let mut changes = world.journal.changes();
    runner.send_batch(2, &[requested(1)]).await;
    within(changes.recv()).await.unwrap();
    drop(runner);
    let (mut runner, welcome) = world.welcome("a", "one", None).await;
    assert_eq!(welcome.last_batch, 2, "the batch is durable although it was not answered");
    runner.send_batch(2, &[requested(1)]).await;
    world.suspended.store(false, Ordering::SeqCst);
    let Ok(FromOperator::Ack(ack)) = runner.next().await else { panic!("no answer") };
    assert!(said(&ack, "m1").is_ok());
    assert!(world.sessions.is_live(&run.uid));
}

#[tokio::test]
async fn a_call_of_a_suspended_agent_is_told_to_wait_and_to_come_again_once_it_is_resumed() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    runner.append(1, &[listed(), requested(1)]).await;
    world.suspended.store(true, Ordering::SeqCst);
    let events = [responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")];
    let ack = runner.append(2, &events).await;
    assert_eq!(said(&ack, "c1"), Err("later".into()));
    assert_eq!(world.journal.state(&run.uid).await.unwrap().unwrap().calls_in_flight().count(), 0);
    world.suspended.store(false, Ordering::SeqCst);
    assert_eq!(runner.woken().await, [("c1".to_owned(), 1, "again".to_owned())]);
    let ack = runner.append(3, &[proposed("c1", "read")]).await;
    assert!(said(&ack, "c1").is_ok());
    assert_eq!(world.journal.state(&run.uid).await.unwrap().unwrap().calls_in_flight().count(), 1);
}

/// People are asked about call c1 of this run; what its Approval says is `answer`.
async fn people_say(world: &World, run: &ObjectId, answer: Answer) {
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    let Some(CallState::Asked { call, .. }) = state.calls.get("c1") else { panic!("{:?}", state.calls) };
    let ask = Ask {
        name: "a-c1-x".into(),
        purpose: AskPurpose::Call,
        call_id: "c1".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: 4_000_000_000_000,
        digest: call.digest,
        call: Some(call.digest),
        question: None,
        requirements: wants(),
        guard: None,
    };
    let denied = matches!(answer, Answer::Denied { .. }).then(|| Event::CallDecided {
        call_id: "c1".into(),
        attempt: 1,
        verdict: Verdict::Denied { reason: DenyReason::Refused, message: "a person said no".into() },
        judged: None,
    });
    let mut events = vec![
        Event::AskOpened { ask },
        Event::AskPosted { name: "a-c1-x".into(), uid: "u".into() },
        Event::AskSettled { name: "a-c1-x".into(), answer },
    ];
    events.extend(denied);
    world.journal.append(run, state.seq, events).await.unwrap();
}

#[tokio::test]
async fn a_call_that_people_are_asked_about_gets_its_permit_once_they_said_yes() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    runner.append(1, &[listed(), requested(1)]).await;
    let events = [responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "delete")];
    assert_eq!(said(&runner.append(2, &events).await, "c1"), Err("asked".into()));
    assert_eq!(
        said(&runner.append(3, &[proposed("c1", "delete")]).await, "c1"),
        Err("asked".into()),
        "not by asking twice"
    );
    let by = vec![Approver { policy: "careful".into(), by: "ada".into() }];
    people_say(&world, &run, Answer::Allowed { by }).await;
    assert!(world.sessions.look(&run.uid));
    assert_eq!(runner.woken().await, [("c1".to_owned(), 1, "again".to_owned())]);
    assert!(said(&runner.append(4, &[proposed("c1", "delete")]).await, "c1").is_ok());
}

#[tokio::test]
async fn a_runner_that_was_away_when_people_decided_is_told_when_it_is_back() {
    let denied = || (Answer::Denied { by: "ada".into(), reason: String::new() }, "a person said no");
    let allowed = || (Answer::Allowed { by: vec![] }, "again");
    // It may not have heard a single answer before: it still goes by its first Welcome.
    for ((answer, word), heard) in [(denied(), true), (allowed(), true), (denied(), false), (allowed(), false)] {
        let world = World::start().await;
        let run = world.accept("a").await;
        let (mut runner, _) = world.welcome("a", "one", None).await;
        runner.append(1, &[listed(), requested(1)]).await;
        let events = [responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "delete")];
        let ack = runner.append(2, &events).await;
        drop(runner);
        people_say(&world, &run, answer).await;
        let (mut runner, _) = world.welcome("a", "one", heard.then_some(&ack)).await;
        assert_eq!(runner.woken().await, [("c1".to_owned(), 1, word.to_owned())], "heard: {heard}");
    }
}

#[tokio::test]
async fn a_request_that_was_held_back_when_its_runner_is_let_go_gets_no_leave_however_the_suspension_ends() {
    let world = World::start().await;
    let run = world.accept("a").await;
    world.suspended.store(true, Ordering::SeqCst);
    let (runner, _) = world.welcome("a", "one", None).await;
    let request =
        Event::ModelRequested { step: 1, attempt: 1, request: belay_protocol::Digest::zero(), reserved_tokens: 7 };
    let batch = [listed(), request];
    runner.send_batch(1, &batch).await;
    within(async {
        while !world.sessions.is_withheld(&run.uid) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(world.sessions.let_go(&run.uid));
    world.suspended.store(false, Ordering::SeqCst);
    // Neither this stream nor another one of the runner answers while its epoch is being ended.
    let (mut again, _) = world.welcome("a", "one", None).await;
    again.send_batch(1, &batch).await;
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    let mut events = close(&state, ModelRequest::Withheld, "let go");
    events.push(Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 1 });
    world.journal.append(&run, state.seq, events).await.unwrap();
    world.sessions.let_gone(&run.uid);
    match again.next().await {
        Ok(FromOperator::Ack(ack)) => assert_eq!(said(&ack, "m1"), Err("this request was answered before".into())),
        other => panic!("{other:?}"),
    }
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    assert_eq!(state.tokens_spent(), 0, "nobody asked the model");
}

#[tokio::test]
async fn a_model_request_is_held_back_while_a_definition_is_not_what_was_accepted() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (runner, _) = world.welcome("a", "one", None).await;
    let Event::ToolsListed { tool, listing: Listing::Listed(mut operations) } = listed() else { panic!("no listing") };
    operations[0].definition = belay_protocol::Digest::of(b"changed");
    let changed = Event::ToolsListed { tool, listing: Listing::Listed(operations) };
    runner.send_batch(1, &[changed, requested(1)]).await;
    within(async {
        while !world.sessions.is_withheld(&run.uid) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let state = world.journal.state(&run.uid).await.unwrap().unwrap();
    assert_eq!(state.drifted().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["files"]);
    // Its epoch ends, and the next one is welcomed with what people accepted.
    assert!(world.sessions.let_go(&run.uid));
    let failure = Failure {
        reason: FailureReason::Withheld,
        message: "it waits".into(),
        retrying: true,
        retry_after_seconds: None,
    };
    let accepted = AcceptedDefinition { name: "read".into(), definition: Some(belay_protocol::Digest::of(b"changed")) };
    let events = vec![
        Event::ModelFailed { step: 1, attempt: 1, failure, reported: None },
        Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 1 },
        Event::EpochDead { epoch: 1, proof: DeathProof::Reported },
        Event::DefinitionsAccepted { tool: "files".into(), operations: vec![accepted], approval: None },
    ];
    let state = world.journal.append(&run, state.seq, events).await.unwrap();
    world.sessions.let_gone(&run.uid);
    let definition = state.plan.as_ref().unwrap().tool("files").unwrap().operation("read").unwrap().definition;
    assert_eq!((definition, state.tokens_spent()), (belay_protocol::Digest::of(b"changed"), 0));
}

#[tokio::test]
async fn a_run_that_was_ended_meanwhile_says_bye_to_the_next_batch() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    let seq = world.journal.head(&run.uid).await.unwrap().unwrap().seq;
    let end = belay_protocol::event::RunEnd {
        outcome: Outcome::Failed,
        reason: EndReason::DeadlineExceeded,
        message: "too long".into(),
    };
    world.journal.append(&run, seq, vec![Event::RunEnded { end }]).await.unwrap();
    runner.send_batch(1, &[listed()]).await;
    assert_eq!(runner.bye().await, "Failed (DeadlineExceeded): too long");
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_cut_after_ten_seconds() {
    let world = World::start().await;
    let mut silent = tokio::net::TcpStream::connect(world.socket()).await.unwrap();
    let begun = tokio::time::Instant::now();
    // From here on time passes by itself whenever everybody waits.
    tokio::time::pause();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0, "closed by the service");
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stream_without_a_hello_is_cut() {
    let world = World::start().await;
    world.accept("a").await;
    let mut mute = world.connect(&token("a")).await.unwrap();
    tokio::time::pause();
    // Either clock may be the first to notice: the stream's own or the connection's.
    let code = mute.cut_with().await;
    assert!(matches!(code, Code::DeadlineExceeded | Code::Unknown | Code::Unavailable), "{code:?}");
}

#[tokio::test]
async fn streams_are_told_to_drain_at_shutdown() {
    let world = World::start().await;
    world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    world.shut_down();
    assert!(matches!(runner.next().await, Ok(FromOperator::Drain(_))));
    drop(runner);
    world.stop().await;
}

#[tokio::test]
async fn a_probe_gets_its_task_and_its_report_arrives() {
    let world = World::start().await;
    let task = ProbeTask::Credential { name: "key".into() };
    let reported = world.probes.expect("ns", "belay-run-probe-1", task.clone());
    let (outgoing, queue) = mpsc::channel(4);
    let send = async |body| outgoing.send(wire::ProbeMessage { body: Some(body) }).await.unwrap();
    let request = with_token(ReceiverStream::new(queue), "ns/belay-run-probe-1/uid");
    let mut orders = within(world.client().await.probe(request)).await.unwrap().into_inner();
    send(probe_message::Body::Hello(wire::ProbeHello { protocol_version: PROTOCOL_VERSION })).await;
    let Some(probe_order::Body::Task(bytes)) = within(orders.message()).await.unwrap().unwrap().body else {
        panic!("no task")
    };
    assert_eq!(serde_json::from_slice::<ProbeTask>(&bytes).unwrap(), task);
    let report = ProbeReport::Credential(Presence::TrailingNewline);
    send(probe_message::Body::Report(serde_json::to_vec(&report).unwrap())).await;
    assert_eq!(within(reported).await.unwrap(), report);
    let done = within(orders.message()).await.unwrap().unwrap().body;
    assert!(matches!(done, Some(probe_order::Body::Done(_))), "{done:?}");
    assert!(world.connect(&token("nobody")).await.is_ok(), "the service goes on");
}

#[tokio::test]
async fn two_runs_of_a_model_ask_it_one_after_the_other() {
    let world = World::start().await;
    world.rates.lock().unwrap().concurrent_requests = Some(1);
    world.accept("a").await;
    let second = world.accept("b").await;
    let (mut first, _) = world.welcome("a", "one", None).await;
    let ack = first.append(1, &[listed(), requested(1)]).await;
    assert_eq!(said(&ack, "m1"), Ok(vec![]));
    let (mut runner, _) = world.welcome("b", "one", None).await;
    runner.send_batch(1, &[listed(), requested(1)]).await;
    in_line(&world, &second).await;
    assert!(world.sessions.is_withheld(&second.uid), "it may be let go meanwhile");
    first.append(2, &[responded(1, vec![text("done")], Finish::Stop)]).await;
    match runner.next().await {
        Ok(FromOperator::Ack(ack)) => assert_eq!(said(&ack, "m1"), Ok(vec![])),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.quotas.waits(&second.uid), None);
}

#[tokio::test]
async fn a_run_that_waits_its_turn_can_be_cancelled_suspended_and_lost() {
    let world = World::start().await;
    world.rates.lock().unwrap().concurrent_requests = Some(1);
    world.accept("a").await;
    let (cancelled, suspended, lost) = (world.accept("b").await, world.accept("c").await, world.accept("d").await);
    let (mut first, _) = world.welcome("a", "one", None).await;
    first.append(1, &[listed(), requested(1)]).await;
    let mut runners = Vec::new();
    for (name, run) in [("b", &cancelled), ("c", &suspended), ("d", &lost)] {
        let (runner, _) = world.welcome(name, "one", None).await;
        runner.send_batch(1, &[listed(), requested(1)]).await;
        in_line(&world, run).await;
        runners.push(runner);
    }
    let (lost_runner, mut held, mut told) = (runners.pop().unwrap(), runners.pop().unwrap(), runners.pop().unwrap());

    // Cancelled: answered at once, and with no.
    let seq = world.journal.head(&cancelled.uid).await.unwrap().unwrap().seq;
    world.journal.append(&cancelled, seq, vec![Event::CancelRequested {}]).await.unwrap();
    assert!(world.sessions.cancel(&cancelled.uid, Duration::from_secs(5)));
    assert!(matches!(told.next().await, Ok(FromOperator::Cancel(_))));
    match told.next().await {
        Ok(FromOperator::Ack(ack)) => assert_eq!(said(&ack, "m1"), Err("the run is being cancelled".into())),
        other => panic!("{other:?}"),
    }
    // Suspended when its turn comes: the turn goes to the next one, and that one is gone: nobody keeps it.
    drop(lost_runner);
    world.suspended.store(true, Ordering::SeqCst);
    first.append(2, &[responded(1, vec![text("done")], Finish::Stop)]).await;
    within(async {
        while world.quotas.waits(&suspended.uid).is_some() || world.quotas.waits(&lost.uid).is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(world.sessions.is_withheld(&suspended.uid));
    world.suspended.store(false, Ordering::SeqCst);
    match held.next().await {
        Ok(FromOperator::Ack(ack)) => assert_eq!(said(&ack, "m1"), Ok(vec![])),
        other => panic!("{other:?}"),
    }
}

async fn in_line(world: &World, run: &belay_protocol::plan::ObjectId) {
    within(async {
        while world.quotas.waits(&run.uid).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Sends an artifact as the pod of run `name`: what its head says, and the bytes.
async fn keep(world: &World, token: &str, head: ArtifactHead, bytes: &[u8]) -> Result<(), Code> {
    let parts = bytes.chunks(bytes.len().div_ceil(3)).map(|part| artifact_part::Body::Bytes(part.to_vec()));
    let parts = std::iter::once(artifact_part::Body::Head(head)).chain(parts);
    let parts: Vec<ArtifactPart> = parts.map(|body| ArtifactPart { body: Some(body) }).collect();
    let request = with_token(tokio_stream::iter(parts), token);
    let kept = within(world.client().await.keep(request)).await;
    kept.map(|_| ()).map_err(|status| status.code())
}

fn head(instance: &str, bytes: &[u8]) -> ArtifactHead {
    let digest = Digest::of(bytes).as_bytes().to_vec();
    ArtifactHead { protocol_version: PROTOCOL_VERSION, instance: instance.into(), digest, bytes: bytes.len() as u64 }
}

fn with_artifact(bytes: &[u8]) -> Event {
    let Event::CallObserved { call_id, attempt, mut result, milliseconds } = observed("c1") else { unreachable!() };
    let (digest, bytes) = (Digest::of(bytes), bytes.len() as u64);
    result.artifacts = vec![Artifact { digest, bytes, media_type: "image/png".into(), name: String::new() }];
    Event::CallObserved { call_id, attempt, result, milliseconds }
}

#[tokio::test]
async fn an_artifact_of_the_instance_that_claimed_is_kept_and_goes_with_the_rows_of_its_run() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = asked(&world, "a").await;
    let picture = b"a picture";
    assert_eq!(keep(&world, &token("a"), head("one", picture), picture).await, Ok(()));
    assert_eq!(keep(&world, &token("a"), head("one", picture), picture).await, Ok(()), "twice is once");
    let held = || world.journal.artifacts().fetch(&run.uid, Digest::of(picture));
    assert_eq!(held().await.unwrap().as_deref(), Some(&picture[..]));
    runner.append(3, &[with_artifact(picture), requested(2)]).await;
    runner.append(4, &[responded(2, vec![text("done")], Finish::Stop)]).await;
    runner.bye().await;
    assert_eq!(keep(&world, &token("a"), head("one", b"late"), b"late").await, Err(Code::FailedPrecondition));
    world.journal.forget(&run.uid).await.unwrap();
    assert_eq!(held().await.unwrap(), None);
}

/// As long as either may be: what is shown in one batch, and what is kept beside it.
#[tokio::test]
async fn the_whole_of_a_text_that_was_cut_is_kept_and_journaled_by_its_name() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = asked(&world, "a").await;
    let whole = vec![b'\x01'; ARTIFACT_BYTES_MAX];
    assert_eq!(keep(&world, &token("a"), head("one", &whole), &whole).await, Ok(()));
    let Event::CallObserved { call_id, attempt, mut result, milliseconds } = with_artifact(&whole) else {
        unreachable!()
    };
    result.content = "\u{1}".repeat(RESULT_BYTES_MAX / 2);
    result.truncated_from_bytes = Some(whole.len() as u64);
    let event = Event::CallObserved { call_id, attempt, result, milliseconds };
    runner.append(3, &[event.clone(), requested(2)]).await;
    let records = world.journal.records(&run.uid, 1).await.unwrap();
    assert!(records.iter().any(|sealed| sealed.record.event == event));
    let kept = world.journal.artifacts().fetch(&run.uid, Digest::of(&whole)).await.unwrap();
    assert!(kept.is_some_and(|kept| kept == whole));
}

#[tokio::test]
async fn a_pod_whose_artifact_does_not_arrive_keeps_no_other_pod_waiting() {
    let world = World::start().await;
    world.accept("a").await;
    world.accept("b").await;
    let (_slow, _) = asked(&world, "a").await;
    let (_quick, _) = asked(&world, "b").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let begin = ArtifactPart { body: Some(artifact_part::Body::Head(head("one", b"never sent"))) };
        let parts = tokio_stream::StreamExt::chain(tokio_stream::once(begin), tokio_stream::pending());
        let mut client = world.client().await;
        let request = with_token(parts, &token("a"));
        held.push(tokio::spawn(async move { client.keep(request).await.map(drop).map_err(|status| status.code()) }));
    }
    // All but one of the pod's own are told to come again.
    for _ in 0..7 {
        let (told, _, others) = futures::future::select_all(held).await;
        assert_eq!(told.unwrap(), Err(Code::Unavailable));
        held = others;
    }
    assert_eq!(keep(&world, &token("b"), head("one", b"b"), b"b").await, Ok(()));
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn artifacts_of_runs_without_rows_are_swept_and_others_stay() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let artifacts = world.journal.artifacts();
    for uid in [run.uid.as_str(), "never-accepted"] {
        artifacts.keep(uid, Digest::of(b"x"), b"x".to_vec()).await.unwrap();
    }
    assert_eq!(world.journal.sweep_artifacts().await.unwrap(), 1);
    assert_eq!(artifacts.runs().await.unwrap(), [run.uid]);
}

#[tokio::test]
async fn nobody_else_keeps_anything_and_nothing_else_is_kept() {
    let world = World::start().await;
    world.accept("a").await;
    world.accept("b").await;
    let unclaimed = keep(&world, &token("a"), head("one", b"x"), b"x").await;
    assert_eq!(unclaimed, Err(Code::FailedPrecondition), "nobody has claimed the epoch");
    let (_runner, _) = asked(&world, "a").await;
    let refused = [
        (token("a"), head("two", b"x"), Code::FailedPrecondition),
        ("ns/belay-run-a/another-uid".into(), head("one", b"x"), Code::FailedPrecondition),
        (token("b"), head("one", b"x"), Code::FailedPrecondition),
        (token("stranger"), head("one", b"x"), Code::FailedPrecondition),
        ("nonsense".into(), head("one", b"x"), Code::Unauthenticated),
        (format!("{}@127.0.0.9", token("a")), head("one", b"x"), Code::Unauthenticated),
        (token("a"), head("one", b"y"), Code::InvalidArgument),
        (token("a"), ArtifactHead { bytes: 2, ..head("one", b"x") }, Code::InvalidArgument),
        (token("a"), ArtifactHead { bytes: 0, ..head("one", b"x") }, Code::InvalidArgument),
        (token("a"), ArtifactHead { bytes: 9 << 20, ..head("one", b"x") }, Code::InvalidArgument),
        (token("a"), ArtifactHead { digest: vec![1], ..head("one", b"x") }, Code::InvalidArgument),
        (token("a"), ArtifactHead { protocol_version: 9, ..head("one", b"x") }, Code::FailedPrecondition),
    ];
    for (token, head, code) in refused {
        let words = format!("{token} {head:?}");
        assert_eq!(keep(&world, &token, head, b"x").await, Err(code), "{words}");
    }
    for run in ["a-uid", "b-uid"] {
        assert!(!world.journal.artifacts().holds(run, Digest::of(b"x")).await.unwrap());
    }
}

#[tokio::test]
async fn a_result_that_names_what_is_not_kept_is_cut_off() {
    let world = World::start().await;
    world.accept("a").await;
    let (mut runner, _) = asked(&world, "a").await;
    runner.send_batch(3, &[with_artifact(b"never sent")]).await;
    assert_eq!(runner.cut_with().await, Code::InvalidArgument);
}
