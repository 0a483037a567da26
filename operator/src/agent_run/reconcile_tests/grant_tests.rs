//! What people allow for the rest of a run: from their yes to the ApprovalGrant, and until that is gone.

use std::sync::LazyLock;

use belay_protocol::Digest;
use belay_protocol::cost::Usage;
use belay_protocol::event::{Ask, AskPurpose, Item, Outcome, ProposedCall, RunEnd, Verdict};
use belay_protocol::fold::RunState;
use belay_protocol::grant::GrantTerms;
use belay_protocol::judgement::PolicyRequirement;

use super::super::questions::question;
use super::super::resolve::id_of;
use super::*;
use crate::fixtures::answered;
use crate::guard::State;

const ASKED: &str = "nightly-c1-x";

static NIGHTLY: LazyLock<AgentRun> = LazyLock::new(|| run("nightly", "triage"));

/// What the API server keeps of what people are asked and allow.
#[derive(Default)]
pub struct People {
    approval: Value,
    pub grants: Vec<Value>,
    /// Whether an ApprovalGrant is refused by a quota.
    quota: bool,
}

impl People {
    pub fn are_asked(&self) -> bool {
        !self.approval.is_null()
    }

    pub fn answer(&mut self, method: &Method, path: &str, body: &Value, writes: &mut Vec<String>) -> (u16, Value) {
        let named = |one: &&Value| path.ends_with(one["metadata"]["name"].as_str().unwrap());
        match method.as_str() {
            "GET" if path.contains("/approvalgrants/") => match self.grants.iter().find(named) {
                Some(grant) => (200, grant.clone()),
                None => refusal(404, "NotFound", "no such grant"),
            },
            "POST" if self.quota => refusal(403, "Forbidden", "exceeded quota: q"),
            "POST" => {
                writes.push("grant created".to_owned());
                let mut grant = body.clone();
                grant["metadata"]["uid"] = json!(format!("uid-g{}", writes.len()));
                self.grants.push(grant.clone());
                (201, grant)
            }
            "PATCH" if path.contains("/approvalgrants/") => {
                let status = &body["status"];
                writes.push(format!("grant {} {}", status["left"], status["over"].as_str().unwrap_or("goes on")));
                let grant =
                    self.grants.iter_mut().find(|one| one["metadata"]["name"] == body["metadata"]["name"]).unwrap();
                grant["status"] = status.clone();
                (200, grant.clone())
            }
            "PATCH" => {
                writes.push("approval sealed".to_owned());
                self.approval["status"] = body["status"].clone();
                (200, self.approval.clone())
            }
            _ => (200, self.approval.clone()),
        }
    }
}

fn call() -> ProposedCall {
    let (tool, operation) = ("github".to_owned(), "delete_repo".to_owned());
    let args = json!({"repo": "x"});
    ProposedCall { tool, operation, args, definition: Digest::of(b"definition"), digest: Digest::of(b"call") }
}

/// A run whose call waits for ada, who may allow five more in a minute.
async fn asked() -> (Stage, Ask) {
    let stage = Stage::new(&[]).await;
    stage.pass().await.unwrap();
    stage.claim().await;
    let item = Item::ToolCall {
        call_id: "c1".into(),
        provider_id: String::new(),
        name: "github__delete_repo".into(),
        arguments: "{}".into(),
    };
    let wanted = PolicyRequirement {
        policy: "careful".into(),
        generation: 1,
        quorum: 1,
        separation_of_duty: false,
        expires_after_seconds: 3600,
        grants: Some(GrantTerms { max_count: 5, max_seconds: 60 }),
    };
    let (call_id, requirements) = ("c1".to_owned(), vec![wanted]);
    let verdict = Verdict::Asked { requirements: requirements.clone() };
    let mut events = answered(1, vec![item], Usage::default());
    events.extend([
        Event::CallProposed { call_id: call_id.clone(), attempt: 1, call: call() },
        Event::CallDecided { call_id: call_id.clone(), attempt: 1, verdict, judged: None },
    ]);
    let run = append(&stage, events).await;
    let State::Up { stamp, .. } = stage.runs.guard.state() else { panic!("the guard is down") };
    let mut ask = Ask {
        name: ASKED.into(),
        purpose: AskPurpose::Call,
        call_id,
        attempt: 1,
        nonce: "n".into(),
        expires_at: Clock.milliseconds() + 3_600_000,
        digest: Digest::zero(),
        call: Some(call().digest),
        requirements,
        guard: Some(stamp),
        question: None,
    };
    let (request, digest) = crate::approval::request(&question(&run, &ask).unwrap()).unwrap();
    ask.digest = digest;
    let posted = Event::AskPosted { name: ASKED.into(), uid: "uid-a".into() };
    append(&stage, vec![Event::AskOpened { ask: ask.clone() }, posted]).await;
    let mut approval = serde_json::to_value(crate::approval::approval(&NIGHTLY, &ask, request)).unwrap();
    approval["metadata"]["uid"] = json!("uid-a");
    stage.server.lock().people.approval = approval;
    stage.writes();
    (stage, ask)
}

async fn append(stage: &Stage, events: Vec<Event>) -> Arc<RunState> {
    let id = id_of(&*NIGHTLY);
    let seq = stage.journal.state(&id.uid).await.unwrap().unwrap().seq;
    stage.journal.append(&id, seq, events).await.unwrap()
}

/// ada says yes with this pattern, and the operator takes it.
async fn allow(stage: &Stage, ask: &Ask, when: &str) {
    stage.server.lock().people.approval["spec"]["decisions"] = json!([{"policy": "careful", "by": "ada",
        "digest": ask.digest.to_string(), "verdict": "Allow", "answer": {"grant": {"when": when, "count": 5, "seconds": 60}}}]);
    let run = stage.object();
    let sight = stage.runs.observe(&run).await.unwrap();
    stage.runs.settle(&run, &sight, ASKED).await.unwrap();
}

async fn last_events(stage: &Stage, count: usize) -> Vec<&'static str> {
    let events = stage.events().await;
    events[events.len() - count..].to_vec()
}

async fn state(stage: &Stage) -> Arc<RunState> {
    stage.journal.state("uid-nightly").await.unwrap().unwrap()
}

#[tokio::test]
async fn what_is_allowed_for_the_run_is_journaled_then_made_and_counts_by_the_uid_that_it_got() {
    let (stage, ask) = asked().await;
    allow(&stage, &ask, "args.repo == 'x'").await;
    assert_eq!(last_events(&stage, 3).await, ["AskSettled", "GrantOpened", "GrantPosted"]);
    assert_eq!(stage.writes(), ["approval sealed", "grant created"]);
    let made = stage.server.lock().people.grants[0].clone();
    let run = state(&stage).await;
    let held = run.grants.values().next().unwrap();
    assert_eq!(made["metadata"]["uid"].as_str(), held.uid.as_deref());
    assert_eq!(made["metadata"]["name"], held.grant.name);
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "uid-nightly");
    let spec = &made["spec"];
    assert_eq!(spec["run"], json!({"name": "nightly", "uid": "uid-nightly"}));
    assert_eq!((&spec["approval"], &spec["by"], &spec["policy"]), (&json!(ASKED), &json!(["ada"]), &json!("careful")));
    assert_eq!((&spec["tool"], &spec["operation"]), (&json!("github"), &json!("delete_repo")));
    assert_eq!((&spec["when"], &spec["count"], &spec["seconds"]), (&json!("args.repo == 'x'"), &json!(5), &json!(60)));
    assert_eq!(spec["definition"], call().definition.to_string());
    assert_eq!(spec["digest"], held.grant.digest.to_string());
    stage.end().await;
}

#[tokio::test]
async fn a_grant_whose_object_is_gone_is_revoked_for_good() {
    let (stage, ask) = asked().await;
    allow(&stage, &ask, "true").await;
    let run = stage.object();
    let sight = stage.runs.observe(&run).await.unwrap();
    assert!(
        sight
            .observed(&run, stage.journal.id(), Times::default(), 0)
            .grants
            .iter()
            .all(|one| { one.seen == super::super::plan::Granted::Stands })
    );
    stage.server.lock().people.grants[0]["metadata"]["deletionTimestamp"] = json!("2026-11-30T10:00:00Z");
    stage.pass().await.unwrap();
    assert_eq!(last_events(&stage, 1).await, ["GrantRevoked"], "whoever deletes it need not wait until it is gone");
    assert!(state(&stage).await.grants.is_empty());
    stage.end().await;
}

#[tokio::test]
async fn a_grant_that_was_journaled_and_not_made_is_made_in_the_next_pass_and_found_under_its_name() {
    let (stage, ask) = asked().await;
    allow(&stage, &ask, "true").await;
    let opened =
        stage.journal.records("uid-nightly", 1).await.unwrap().into_iter().find_map(|it| match it.record.event {
            Event::GrantOpened { grant } => Some(grant),
            _ => None,
        });
    let mut grant = opened.unwrap();
    grant.name = "nightly-c1-gother".to_owned();
    append(&stage, vec![Event::GrantOpened { grant }]).await;
    stage.writes();
    stage.pass().await.unwrap();
    assert_eq!(last_events(&stage, 2).await, ["GrantOpened", "GrantPosted"]);
    assert_eq!(stage.writes(), ["grant created"]);
    assert_eq!(stage.server.lock().people.grants.len(), 2);
    stage.end().await;
}

/// As the watch of the operator sees the grants now.
fn see_grants(stage: &mut Stage) {
    let mut cache = Writer::new(());
    for grant in &stage.server.lock().people.grants {
        cache.apply_watcher_event(&watcher::Event::Apply(serde_json::from_value(grant.clone()).unwrap()));
    }
    stage.runs.world.grants = cache.as_reader();
}

#[tokio::test]
async fn a_grant_says_once_that_its_run_has_ended() {
    let (mut stage, ask) = asked().await;
    allow(&stage, &ask, "true").await;
    let end = RunEnd { outcome: Outcome::Succeeded, reason: EndReason::Completed, message: String::new() };
    append(&stage, vec![Event::RunEnded { end }]).await;
    stage.writes();
    let mut told = Vec::new();
    for watched in [false, false, true, true] {
        if watched {
            see_grants(&mut stage);
        }
        stage.pass().await.unwrap();
        told.extend(stage.writes().into_iter().filter(|write| write.starts_with("grant ")));
    }
    assert_eq!(told, ["grant null RunEnded"], "also where the watch was late");
    stage.end().await;
}

/// Whoever looks at it would take it for one that counts.
#[tokio::test]
async fn a_grant_that_the_rules_of_another_day_guarded_says_that_it_is_revoked() {
    let (mut stage, ask) = asked().await;
    allow(&stage, &ask, "true").await;
    see_grants(&mut stage);
    let (run, name) = (stage.object(), state(&stage).await.grants.keys().next().unwrap().clone());
    let sight = stage.runs.observe(&run).await.unwrap();
    stage.writes();
    stage.runs.revoke_grant(&run, &sight, &name, "the rules are others").await.unwrap();
    assert_eq!(stage.writes(), ["grant null Revoked"]);
    stage.end().await;
}

#[tokio::test]
async fn a_pattern_that_is_no_good_is_refused_visibly_and_the_call_is_allowed_all_the_same() {
    for (when, words) in [
        ("args.repo == 'y'", "not true for the call itself"),
        ("args.owner == 'x'", "cannot be used"),
        ("tool == 'github'", "cannot be used"),
        ("nonsense(", "cannot be used"),
    ] {
        let (stage, ask) = asked().await;
        allow(&stage, &ask, when).await;
        assert_eq!(last_events(&stage, 2).await, ["AskSettled", "GrantRefused"], "{when}");
        let records = stage.journal.records("uid-nightly", 1).await.unwrap();
        let Event::GrantRefused { why, by, .. } = &records.last().unwrap().record.event else { panic!("not refused") };
        assert!(why.contains(words) && *by == ["ada"], "{when}: {why}");
        assert!(state(&stage).await.approved.contains_key("c1"));
        assert_eq!(stage.writes(), ["approval sealed"]);
        stage.end().await;
    }
}

#[tokio::test]
async fn a_grant_that_cannot_be_made_is_revoked_and_holds_nothing_up() {
    let (stage, ask) = asked().await;
    stage.server.lock().people.quota = true;
    allow(&stage, &ask, "true").await;
    assert_eq!(last_events(&stage, 3).await, ["AskSettled", "GrantOpened", "GrantRevoked"]);
    stage.end().await;
}
