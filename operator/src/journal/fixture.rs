//! Databases as released versions wrote them, kept under `tests/fixtures` for good: each must open in this one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use belay_protocol::Digest;
use belay_protocol::call::CallBinding;
use belay_protocol::cost::Usage;
use belay_protocol::event::{
    EndReason, EpochEnd, Event, Finish, Item, ListedOperation, Listing, ModelResponse, Outcome, ProposedCall, RunEnd,
    ToolResult,
};
use belay_protocol::fold::RunState;
use belay_protocol::plan::ObjectId;
use rusqlite::Connection;
use serde_json::json;

use super::sqlite::{SCHEMA_VERSION, SqliteStore};
use super::store::BatchSpan;
use super::{Batch, BatchKey, Journal};
use crate::gate::tests::{decide_allowed, plan_of};

/// The folder of the databases, one for each schema.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn run(name: &str) -> ObjectId {
    ObjectId { namespace: "ns".into(), name: name.into(), uid: format!("{name}-uid") }
}

fn request(step: u32) -> Event {
    Event::ModelRequested { step, attempt: 1, request: Digest::of(b"request"), reserved_tokens: 10 }
}

fn response(step: u32, items: Vec<Item>, finish: Finish) -> Event {
    let usage = Usage { input_tokens: Some(3), cached_input_tokens: None, output_tokens: Some(2), ..Usage::default() };
    let response = ModelResponse::new(items, finish, usage, 1);
    Event::ModelResponded { step, attempt: 1, response }
}

fn asks(call_id: &str) -> Item {
    Item::ToolCall {
        call_id: call_id.into(),
        provider_id: "x".into(),
        name: "files__read".into(),
        arguments: r#"{"path":"README.md"}"#.into(),
    }
}

fn proposal(state: &RunState, call_id: &str, operation: &str) -> Event {
    let plan = state.plan.as_ref().unwrap();
    let (tool, args) = (&plan.tools[0], json!({"path": "README.md"}));
    let definition = tool.operations[0].definition;
    let digest = CallBinding::new(plan, tool, definition, operation, &args).digest().unwrap();
    let call = ProposedCall { tool: tool.name.clone(), operation: operation.into(), args, definition, digest };
    Event::CallProposed { call_id: call_id.into(), attempt: 1, call }
}

fn observed(call_id: &str) -> Event {
    let result =
        ToolResult { is_error: false, content: "a result".into(), truncated_from_bytes: None, artifacts: Vec::new() };
    Event::CallObserved { call_id: call_id.into(), attempt: 1, result, milliseconds: 2 }
}

async fn runner_says(journal: &Journal, run: &ObjectId, session: u64, n: u64, events: Vec<Event>) -> Arc<RunState> {
    let batch = Batch { key: BatchKey { epoch: 1, session, n }, events };
    let gate = |state: &RunState, events: &[Event]| decide_allowed(state, events.to_vec());
    journal.append_batch(&run.uid, batch, gate).await.unwrap().state
}

/// Begins `name` and lets its model ask for calls c1 and c2. Answers the session.
async fn begin(journal: &Journal, run: &ObjectId) -> u64 {
    let plan = plan_of(run);
    let (offered, tool) = (&plan.tools[0].operations[0], plan.tools[0].name.clone());
    let listed = vec![ListedOperation { name: offered.name.clone(), definition: offered.definition }];
    let accepted = vec![
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
        Event::EpochOpened { epoch: 1, pod_name: format!("belay-run-{}", run.name) },
    ];
    journal.append(run, 0, accepted).await.unwrap();
    let session = journal.raise_session(&run.uid, 1).await.unwrap();
    let claimed = Event::InstanceClaimed { epoch: 1, instance: "i".into(), pod_uid: "p".into() };
    journal.append(run, 2, vec![claimed]).await.unwrap();
    let listing = Event::ToolsListed { tool, listing: Listing::Listed(listed) };
    runner_says(journal, run, session, 1, vec![listing, request(1)]).await;
    runner_says(journal, run, session, 2, vec![response(1, vec![asks("c1"), asks("c2")], Finish::ToolCalls)]).await;
    session
}

/// One run of each sort: done with one call allowed and one denied, waiting for an answer, with an end that
/// nobody knows, and refused before it began.
pub(crate) async fn write_runs(journal: &Journal) {
    let done = run("done");
    let session = begin(journal, &done).await;
    let state = journal.state(&done.uid).await.unwrap().unwrap();
    runner_says(journal, &done, session, 3, vec![proposal(&state, "c1", "read")]).await;
    runner_says(journal, &done, session, 4, vec![observed("c1"), proposal(&state, "c2", "delete")]).await;
    let last = response(2, vec![Item::Text { text: "All is read.".into() }], Finish::Stop);
    let state = runner_says(journal, &done, session, 5, vec![request(2), last]).await;
    let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::Completed, active_milliseconds: 0 };
    journal.append(&done, state.seq, vec![over]).await.unwrap();

    for (name, unknown) in [("in-flight", false), ("unknown", true)] {
        let run = run(name);
        let session = begin(journal, &run).await;
        let state = journal.state(&run.uid).await.unwrap().unwrap();
        let state = runner_says(journal, &run, session, 3, vec![proposal(&state, "c1", "read")]).await;
        if unknown {
            let nobody_knows =
                Event::CallUnknown { call_id: "c1".into(), attempt: 1, message: "the pod is gone".into() };
            let over = Event::EpochEnded { epoch: 1, cause: EpochEnd::PodLost, active_milliseconds: 0 };
            journal.append(&run, state.seq, vec![nobody_knows, over]).await.unwrap();
        }
    }

    let end = RunEnd { outcome: Outcome::Failed, reason: EndReason::CredentialUnavailable, message: "none".into() };
    journal.append(&run("refused"), 0, vec![Event::RunEnded { end }]).await.unwrap();
}

/// Run once for each schema, before the next one replaces it:
/// `cargo test -p belay-operator --lib journal::fixture -- --ignored`.
#[tokio::test]
#[ignore = "writes a file of the source tree"]
async fn write_the_fixture_of_this_schema() {
    let path = folder().join(format!("journal-v{SCHEMA_VERSION}.db"));
    assert!(!path.exists(), "{} is there: a released schema's fixture never changes", path.display());
    let store = SqliteStore::open(&path, "f".repeat(32), 64 * 1024).await.unwrap();
    let journal = Journal::over(Arc::new(store), || 1_790_000_000_000, Duration::ZERO, None).await.unwrap();
    write_runs(&journal).await;
    journal.close().await;
    for beside in ["db.lock", "db.reserve"] {
        std::fs::remove_file(path.with_extension(beside)).unwrap();
    }
}

#[tokio::test]
async fn a_journal_of_every_earlier_version_opens_verifies_and_goes_on() {
    for version in 1..SCHEMA_VERSION {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("journal.db");
        std::fs::copy(folder().join(format!("journal-v{version}.db")), &path).unwrap();
        let journal = Journal::open(&path).await.unwrap();
        assert_eq!(journal.id(), "f".repeat(32));
        let mut live: Vec<String> = journal.live_runs().await.unwrap().into_iter().map(|run| run.name).collect();
        live.sort();
        assert_eq!(live, ["in-flight", "unknown"]);
        for (name, records) in [("done", 15), ("in-flight", 8), ("unknown", 10), ("refused", 1)] {
            let uid = run(name).uid;
            assert_eq!(journal.records(&uid, 1).await.unwrap().len(), records, "{name}");
            assert!(journal.state(&uid).await.unwrap().is_some(), "{name}");
        }
        let open = run("in-flight");
        let span = journal.inner.store.batch(&open.uid, 1, 2).await.unwrap();
        assert_eq!(span, Some(BatchSpan { first_seq: 6, last_seq: 6 }), "found though no table tells of it any more");
        assert_eq!(journal.run_of_pod("ns", "belay-run-in-flight"), Some(open.clone()));
        journal.append(&open, 8, vec![Event::CancelRequested {}]).await.unwrap();
        journal.close().await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_brought_up_stays_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("journal.db");
    std::fs::copy(folder().join("journal-v1.db"), &path).unwrap();
    let tables = || -> (i64, i64) {
        let sql = "SELECT (SELECT schema_version FROM meta), (SELECT count(*) FROM pragma_table_info('heads'))";
        let connection = Connection::open(&path).unwrap();
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let before = tables();
    // In the way of the last statement of the step: what the ones before it did must not stay.
    Connection::open(&path).unwrap().execute("CREATE TABLE deleted_heads (x)", []).unwrap();
    let error = Journal::open(&path).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("journal.db"), "{error}");
    assert_eq!(tables(), before);
    assert_eq!(before.0, 1);
}
