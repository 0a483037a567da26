//! What servers say besides their answers, that their list changed and how far a call is, and what they are told: that
//! nobody waits for a call any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use belay_protocol::event::{NotSentReason, Outcome as RunOutcome};
use belay_protocol::fold::CallState;
use belay_protocol::plan::{Effects, OnDrift};
use belay_protocol::{Event, LISTINGS_PER_EPOCH_MAX};
use belay_runner::tools::{Outcome, Progress, ToolServer as _};
use futures::StreamExt as _;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use crate::fake_mcp::{Era, FakeMcp, sse};
use crate::fake_operator::{Journal, Script};
use crate::mcp::{call, connect, plan_for};
use crate::plans::{calls, plan, says, scripted, tool};
use crate::runs::{run_plan, run_script};

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// Shared by clones.
#[derive(Clone)]
pub struct News {
    /// Whether the server says that it tells of changes.
    tells: Arc<Mutex<bool>>,
    /// How often an operation was defined anew.
    defined: Arc<Mutex<BTreeMap<String, usize>>>,
    changes: Arc<broadcast::Sender<()>>,
    /// Streams beside the calls, and subscriptions, that were opened.
    pub streams: Arc<watch::Sender<usize>>,
    pub listings: Arc<Mutex<usize>>,
    /// Ids of calls that got no answer, and of those that the client said nobody waits for.
    pub hung: Arc<Mutex<Vec<Value>>>,
    pub cancelled: Arc<watch::Sender<Vec<Value>>>,
    /// Streams of calls that were closed before they ended.
    left: Arc<watch::Sender<usize>>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            tells: Arc::default(),
            defined: Arc::default(),
            changes: Arc::new(broadcast::channel(2048).0),
            streams: Arc::default(),
            listings: Arc::default(),
            hung: Arc::default(),
            cancelled: Arc::default(),
            left: Arc::default(),
        }
    }
}

/// Tells of its end.
struct Left(Arc<watch::Sender<usize>>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.send_modify(|left| *left += 1);
    }
}

impl News {
    fn tell(&self) {
        *self.tells.lock().unwrap() = true;
    }

    pub fn tells(&self) -> bool {
        *self.tells.lock().unwrap()
    }

    pub fn capabilities(&self) -> Value {
        if self.tells() { json!({"tools": {"listChanged": true}}) } else { json!({"tools": {}}) }
    }

    fn redefine(&self, operation: &str) {
        *self.defined.lock().unwrap().entry(operation.to_owned()).or_default() += 1;
    }

    pub fn define(&self, operation: &str, mut definition: Value) -> Value {
        if let Some(times) = self.defined.lock().unwrap().get(operation) {
            definition["description"] = json!(format!("does {operation} otherwise, {times}"));
        }
        definition
    }

    fn say_changed(&self) {
        let _ = self.changes.send(());
    }

    pub fn beside(&self) -> Response<Body> {
        self.stream(Vec::new(), json!({}))
    }

    pub fn subscription(&self, id: &Value) -> Response<Body> {
        let meta = json!({SUBSCRIPTION: id});
        let params = json!({"notifications": {"toolsListChanged": true}, "_meta": meta});
        let first = json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": params});
        self.stream(vec![first], json!({"_meta": meta}))
    }

    /// Ends when a change is said that nobody can be told: see [`News::hang_up`].
    fn stream(&self, first: Vec<Value>, params: Value) -> Response<Body> {
        self.streams.send_modify(|opened| *opened += 1);
        let changes = futures::stream::unfold((self.changes.subscribe(), params), |(mut changes, params)| async move {
            changes.recv().await.ok()?;
            Some((list_changed(&params), (changes, params)))
        });
        let all = futures::stream::iter(first).chain(changes);
        sse(Body::from_stream(all.map(|message| Ok::<_, std::io::Error>(event(&message)))))
    }

    /// An answer that never comes, and notes that nobody waits for it any more.
    pub fn lingering(&self) -> Body {
        let left = Left(Arc::clone(&self.left));
        let first = futures::stream::once(async { Ok::<_, std::io::Error>(Bytes::from(": working\n\n")) });
        let rest = futures::stream::once(async move {
            let _left = left;
            std::future::pending().await
        });
        Body::from_stream(first.chain(rest))
    }

    /// What is said on the stream of a call before its answer.
    pub fn in_call(&self, operation: &str, token: &Value, answer: Value) -> Body {
        let progress = |done: u32, message: &str| {
            let params = json!({"progressToken": token, "progress": done, "total": 5, "message": message});
            json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        };
        let said: Vec<Value> = match operation {
            "change" => {
                self.redefine("echo");
                vec![list_changed(&json!({})), answer]
            }
            "add" => {
                self.redefine("unplanned");
                vec![list_changed(&json!({})), answer]
            }
            "shout" => vec![list_changed(&json!({})); 1000].into_iter().chain([answer]).collect(),
            "progress" => {
                let long = "x".repeat(100_000);
                vec![progress(1, &long), progress(2, "counting"), answer]
            }
            "progress-for-ever" => {
                let ticks = tokio::time::interval(Duration::from_millis(20));
                let ticks = futures::stream::unfold((ticks, 0), |(mut ticks, done)| async move {
                    ticks.tick().await;
                    Some((done, (ticks, done + 1)))
                });
                let token = token.clone();
                return Body::from_stream(ticks.map(move |done| {
                    let params = json!({"progressToken": token, "progress": done});
                    Ok::<_, std::io::Error>(event(
                        &json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}),
                    ))
                }));
            }
            other => panic!("{other} tells nothing"),
        };
        Body::from(said.iter().flat_map(|message| event(message).to_vec()).collect::<Vec<u8>>())
    }
}

pub fn tells_in_call(operation: &str) -> bool {
    ["change", "add", "shout", "progress", "progress-for-ever"].contains(&operation)
}

fn list_changed(params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": params})
}

fn event(message: &Value) -> Bytes {
    Bytes::from(format!("data: {message}\n\n"))
}

async fn telling(era: Era, operations: &[&'static str]) -> FakeMcp {
    let server = FakeMcp::start(era, operations).await;
    server.news.tell();
    server
}

fn listings(journal: &Journal) -> usize {
    journal.events().filter(|event| matches!(event, Event::ToolsListed { .. })).count()
}

/// Waits for what a server's word comes to, which the client hears in its own time.
async fn until(mut is_so: impl FnMut() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.expect("it comes to be so");
}

#[rstest]
#[tokio::test]
async fn a_server_that_changes_an_operation_in_mid_run_is_listed_again_before_the_next_call(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let server = telling(era, &["change", "echo"]).await;
    let turns = vec![calls(&[("change", json!({})), ("echo", json!({}))]), says("done")];
    let journal = run_script(&server, &["change", "echo"], turns, Script::default()).await;
    assert_eq!(server.called_operations(), ["change"], "what it offers now is not what was accepted");
    assert_eq!((listings(&journal), *server.news.listings.lock().unwrap()), (2, 2));
    assert_eq!(journal.state.differs["server"], ["echo"]);
    assert_eq!(journal.end().outcome, RunOutcome::Succeeded, "it goes on without");
}

#[tokio::test]
async fn a_run_that_waits_for_definitions_proposes_nothing_more_once_one_has_changed() {
    let server = telling(Era::Sessions, &["change", "echo"]).await;
    let turns = vec![calls(&[("change", json!({})), ("echo", json!({}))]), says("never said")];
    let mut plan = plan(scripted(turns), vec![tool(&server.url(), &["change", "echo"])]);
    plan.tools[0].on_drift = OnDrift::Wait;
    let script = Script { stop_when_drifted: true, ..Script::default() };
    let journal = run_plan(plan, script, &[]).await;
    assert_eq!(journal.names().last().unwrap().as_slice(), ["CallObserved", "ToolsListed"]);
    assert!(matches!(journal.state.calls["c2"], CallState::Later { .. } | CallState::Due { .. }));
    assert_eq!((server.called_operations(), journal.state.steps), (vec!["change".to_owned()], 1));
}

#[rstest]
#[tokio::test]
async fn a_change_that_is_said_a_thousand_times_is_one_listing_and_no_event_where_nothing_differs(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let server = telling(era, &["shout", "add", "unplanned"]).await;
    let shout = || calls(&[("shout", json!({}))]);
    let turns = vec![shout(), shout(), calls(&[("add", json!({}))]), shout(), says("done")];
    let journal = run_script(&server, &["shout", "add"], turns, Script::default()).await;
    assert_eq!(server.called_operations(), ["shout", "shout", "add", "shout"]);
    assert_eq!(listings(&journal), 1);
    assert_eq!(*server.news.listings.lock().unwrap(), 2, "found the same once, it is not asked again at once");
}

#[tokio::test]
async fn a_server_that_never_stops_changing_is_sent_nothing_more_in_that_pod() {
    let server = telling(Era::Sessions, &["change", "echo"]).await;
    let turns = (0..20).map(|_| calls(&[("change", json!({}))])).chain([says("done")]).collect();
    let journal = run_script(&server, &["change", "echo"], turns, Script::default()).await;
    assert_eq!(listings(&journal), LISTINGS_PER_EPOCH_MAX as usize);
    assert_eq!(server.called_operations().len(), LISTINGS_PER_EPOCH_MAX as usize);
    let why = journal.events().find_map(|event| match event {
        Event::CallNotSent { reason: NotSentReason::Unreachable, message, .. } => Some(message.as_str()),
        _ => None,
    });
    assert!(why.unwrap().starts_with("Tool server: its server changed operations of this run 8 times"), "{why:?}");
    assert_eq!(journal.end().outcome, RunOutcome::Succeeded, "the model is told, and goes on");
}

#[rstest]
#[tokio::test]
async fn a_change_is_heard_beside_the_calls_and_where_nobody_could_hear(
    #[values(Era::Sessions, Era::Stateless)] era: Era,
) {
    let fake = telling(era, &["echo"]).await;
    let mut server = connect(&plan_for(&fake.url(), &["echo"]));
    server.list().await.unwrap();
    fake.news.streams.subscribe().wait_for(|opened| *opened == 1).await.unwrap();
    assert!(!server.has_changed());
    fake.news.say_changed();
    until(|| server.has_changed()).await;
    server.list().await.unwrap();
    let outcome = call(&mut server, "hang", json!({}), None).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    server.abandon().await;
    assert!(server.has_changed(), "a conversation that ended hears nothing");
}

#[tokio::test]
async fn a_server_that_promises_no_changes_has_no_stream_beside_its_calls() {
    let fake = FakeMcp::start(Era::Sessions, &["echo"]).await;
    let mut server = connect(&plan_for(&fake.url(), &["echo"]));
    server.list().await.unwrap();
    let _ = call(&mut server, "echo", json!({}), None).await;
    assert_eq!((*fake.news.streams.borrow(), server.has_changed()), (0, false));
}

#[rstest]
#[tokio::test]
async fn progress_is_heard_and_bounded(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let fake = FakeMcp::start(era, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &["progress"]));
    let mut heard = server.progress().unwrap();
    let outcome = call(&mut server, "progress", json!({}), None).await;
    assert!(matches!(outcome, Outcome::Observed(_)), "{outcome:?}");
    let newest = heard.wait_for(|progress| progress.done > 1.5).await.unwrap().clone();
    assert_eq!(newest, Progress { done: 2.0, total: Some(5.0), message: "counting".into() });
}

#[rstest]
#[tokio::test]
async fn progress_does_not_lengthen_a_calls_time(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let fake = FakeMcp::start(era, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &["progress-for-ever"]));
    let outcome = call(&mut server, "progress-for-ever", json!({}), None).await;
    let Outcome::Unknown { message } = outcome else { panic!("{outcome:?}") };
    assert!(message.contains("no answer within"), "{message}");
    assert!(server.progress().unwrap().borrow().done > 1.5, "it was heard all the while");
}

#[rstest]
#[case::without_an_answer("hang")]
#[case::with_a_stream("linger")]
#[tokio::test]
async fn an_older_server_is_told_by_its_id_of_a_call_that_nobody_waits_for(#[case] operation: &'static str) {
    let fake = FakeMcp::start(Era::Sessions, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &[operation]));
    let outcome = call(&mut server, operation, json!({}), None).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    server.abandon().await;
    assert_eq!(*fake.news.cancelled.borrow(), *fake.news.hung.lock().unwrap());
    assert_eq!(fake.news.cancelled.borrow().len(), 1);
    let outcome = call(&mut server, "echo", json!({"text": "again"}), None).await;
    assert!(matches!(outcome, Outcome::Observed(_)), "the next call has a conversation of its own: {outcome:?}");
}

#[rstest]
#[tokio::test]
async fn the_stream_of_a_call_that_nobody_waits_for_is_closed(#[values(Era::Sessions, Era::Stateless)] era: Era) {
    let fake = FakeMcp::start(era, &[]).await;
    let mut server = connect(&plan_for(&fake.url(), &["linger"]));
    let outcome = call(&mut server, "linger", json!({}), None).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    server.abandon().await;
    fake.news.left.subscribe().wait_for(|left| *left == 1).await.unwrap();
}

#[tokio::test]
async fn a_server_hears_of_a_call_that_a_stopped_run_leaves_behind() {
    let server = FakeMcp::start(Era::Sessions, &["hang"]).await;
    let script = Script { stop_when_called: Some(server.clone()), grace: Duration::ZERO, ..Script::default() };
    let turns = vec![calls(&[("hang", json!({}))]), says("never said")];
    let journal = run_script(&server, &["hang"], turns, script).await;
    assert!(matches!(journal.state.calls["c1"], CallState::Unknown { .. }), "its effect is not known");
    assert_eq!(*server.news.cancelled.borrow(), *server.news.hung.lock().unwrap());
    assert_eq!(server.news.cancelled.borrow().len(), 1);
}

#[tokio::test]
async fn a_call_that_may_be_repeated_is_given_up_at_once_when_its_run_is_cancelled_and_any_other_gets_its_time() {
    for effects in [Effects::None, Effects::Idempotent, Effects::NonIdempotent] {
        let server = FakeMcp::start(Era::Sessions, &["hang"]).await;
        let turns = vec![calls(&[("hang", json!({}))]), says("never said")];
        let mut plan = plan(scripted(turns), vec![tool(&server.url(), &["hang"])]);
        plan.tools[0].operations[0].effects = effects;
        let grace = Duration::from_millis(if effects.may_repeat() { 60_000 } else { 300 });
        let script = Script { stop_when_called: Some(server.clone()), cancels: true, grace, ..Script::default() };
        let start = tokio::time::Instant::now();
        let journal = run_plan(plan, script, &[]).await;
        assert_eq!(start.elapsed() >= grace, !effects.may_repeat(), "{effects:?}: {:?}", start.elapsed());
        let expected = if effects.may_repeat() { "CallInterrupted" } else { "CallUnknown" };
        assert_eq!(journal.names().last().unwrap().as_slice(), [expected], "{effects:?}");
        assert_eq!(*server.news.cancelled.borrow(), *server.news.hung.lock().unwrap());
        assert_eq!(server.news.cancelled.borrow().len(), 1);
    }
}
