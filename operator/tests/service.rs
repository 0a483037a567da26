//! The run service as a runner meets it: over TLS, with a token, one stream at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod service_world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use belay_protocol::event::{EndReason, Event, Finish, Outcome};
use belay_protocol::probe::{Presence, ProbeReport, ProbeTask};
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::runner_message::Body as ToOperator;
use belay_protocol::wire::{self, Ack, Batch, probe_message, probe_order};
use belay_protocol::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION, Record, RunState};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use service_world::{
    Runner, World, asks, listed, observed, proposed, requested, responded, said, text, token, with_token, within,
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
    let ack = runner.append(2, &[responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "delete")]).await;
    let words = said(&ack, "c1").unwrap_err();
    assert!(words.contains("does not list files/delete"), "{words}");
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
async fn cancel_reaches_the_runner_and_stops_permits() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    let mut ended = world.sessions.ended();
    runner.append(1, &[listed(), requested(1)]).await;
    let seq = world.journal.head(&run.uid).await.unwrap().unwrap().seq;
    world.journal.append(&run, seq, vec![Event::CancelRequested {}]).await.unwrap();
    assert!(world.sessions.cancel(&run.uid, Duration::from_secs(7)));
    let order = runner.next().await.unwrap();
    assert!(matches!(&order, FromOperator::Cancel(cancel) if cancel.grace_seconds == 7), "{order:?}");
    let ack = runner.append(2, &[responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")]).await;
    assert!(said(&ack, "c1").is_err());
    drop(runner);
    assert_eq!(within(ended.recv()).await.unwrap(), run.uid);
    assert!(!world.sessions.is_live(&run.uid));
}

#[tokio::test]
async fn a_suspended_agents_answer_waits_until_it_is_resumed_and_nothing_is_lost_by_a_reconnect() {
    let world = World::start().await;
    let run = world.accept("a").await;
    let (mut runner, _) = world.welcome("a", "one", None).await;
    runner.append(1, &[listed(), requested(1)]).await;
    world.suspended.store(true, Ordering::SeqCst);
    let events = [responded(1, vec![asks("c1")], Finish::ToolCalls), proposed("c1", "read")];
    let mut changes = world.journal.changes();
    runner.send_batch(2, &events).await;
    within(changes.recv()).await.unwrap();
    assert_eq!(world.journal.state(&run.uid).await.unwrap().unwrap().calls_in_flight().count(), 0);
    drop(runner);
    let (mut runner, welcome) = world.welcome("a", "one", None).await;
    assert_eq!(welcome.last_batch, 2, "the batch is durable although it was not answered");
    runner.send_batch(2, &events).await;
    world.suspended.store(false, Ordering::SeqCst);
    let Ok(FromOperator::Ack(ack)) = runner.next().await else { panic!("no answer") };
    assert!(said(&ack, "c1").is_ok());
    assert_eq!(world.journal.state(&run.uid).await.unwrap().unwrap().calls_in_flight().count(), 1);
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
