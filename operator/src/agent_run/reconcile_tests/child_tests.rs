//! Runs that carry out calls: made once, whatever answer is lost, and ended with the run that called.

use belay_crds::ParentRun;
use belay_protocol::cost::Usage;
use belay_protocol::event::{Child, ChildEnd, DeathProof, EpochEnd, Item, Outcome, ProposedCall, RunEnd, Verdict};
use belay_protocol::fold::RunState;
use belay_protocol::plan::{Limits, ObjectId, PlanAgent, PlanTool};
use belay_protocol::{Digest, Plan};

use super::super::resolve::id_of;
use super::*;
use crate::fixtures::{answered, claimed, opened, plan};

const CHILD: &str = "nightly-c1-x";

/// What the API server keeps of AgentRuns but the one that is looked at.
#[derive(Default)]
pub struct Runs {
    there: Vec<Value>,
    quota: bool,
}

impl Runs {
    pub fn answer(&mut self, method: &Method, last: &str, body: &Value, writes: &mut Vec<String>) -> (u16, Value) {
        let found = |name: &Value| self.there.iter().find(|run| run["metadata"]["name"] == *name).cloned();
        match method.as_str() {
            "GET" => found(&json!(last)).map_or_else(|| refusal(404, "NotFound", "no such run"), |run| (200, run)),
            _ if self.quota => refusal(403, "Forbidden", "exceeded quota: q"),
            _ if found(&body["metadata"]["name"]).is_some() => refusal(409, "AlreadyExists", "there is one"),
            _ => {
                writes.push("child created".to_owned());
                let mut run = body.clone();
                run["metadata"]["uid"] = json!("uid-child");
                self.there.push(run.clone());
                (201, run)
            }
        }
    }
}

/// Run `nightly`, whose tool is Agent `helper`.
fn delegating() -> Plan {
    let mut plan = plan();
    plan.requested_by = Some("ada".into());
    let limits = Limits { tokens: Some(900), ..plan.limits };
    let agent = PlanAgent { name: "helper".into(), description: String::new(), limits, priced: false };
    let github = plan.tools[0].clone();
    plan.tools = vec![PlanTool { agent: Some(agent), ..github }];
    plan
}

/// Without a pod, and its call c1 is to be carried out by a child.
async fn delegated() -> Stage {
    let stage = Stage::new(&[]).await;
    let item = Item::ToolCall {
        call_id: "c1".into(),
        provider_id: String::new(),
        name: "github__list_issues".into(),
        arguments: "{}".into(),
    };
    let (plan, digest) = (delegating(), Digest::of(b"call"));
    let limits = plan.tools[0].agent.as_ref().unwrap().limits;
    let call = ProposedCall {
        tool: "github".into(),
        operation: "list_issues".into(),
        args: json!({"input": "find it"}),
        definition: Digest::of(b"list_issues"),
        digest,
    };
    let call_id = || "c1".to_owned();
    let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
    let mut events = vec![accepted, opened(), claimed()];
    events.extend(answered(1, vec![item], Usage::default()));
    events.extend([
        Event::CallProposed { call_id: call_id(), attempt: 1, call },
        Event::CallDecided { call_id: call_id(), attempt: 1, verdict: Verdict::Allowed { digest }, judged: None },
        Event::ChildOpened {
            call_id: call_id(),
            attempt: 1,
            child: Child { name: CHILD.into(), agent: "helper".into(), limits },
        },
        Event::EpochEnded { epoch: 1, cause: EpochEnd::Released, active_milliseconds: 1 },
        Event::EpochDead { epoch: 1, proof: DeathProof::Reported },
    ]);
    stage.journal.append(&id_of(&run("nightly", "triage")), 0, events).await.unwrap();
    stage
}

async fn append(stage: &Stage, id: &ObjectId, events: Vec<Event>) {
    let seq = stage.journal.state(&id.uid).await.unwrap().map_or(0, |state| state.seq);
    stage.journal.append(id, seq, events).await.unwrap();
}

async fn state(stage: &Stage) -> Arc<RunState> {
    stage.journal.state("uid-nightly").await.unwrap().unwrap()
}

async fn last_event(stage: &Stage) -> Event {
    stage.journal.records("uid-nightly", 1).await.unwrap().last().unwrap().record.event.clone()
}

fn child_id() -> ObjectId {
    ObjectId { namespace: "triage".into(), name: CHILD.into(), uid: "uid-child".into() }
}

fn parent() -> ParentRun {
    ParentRun { name: "nightly".into(), uid: "uid-nightly".into(), call_id: "c1".into() }
}

/// The child's own journal, to its end.
async fn child_ends(stage: &Stage, outcome: Outcome) {
    let plan = Plan { run: child_id(), ..plan() };
    let answer = Item::Text { text: "it is in the attic".into() };
    let usage = Usage { input_tokens: Some(40), output_tokens: Some(2), ..Usage::default() };
    let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
    let mut events = vec![accepted, opened(), claimed()];
    events.extend(answered(1, vec![answer], usage));
    let (reason, message) = (EndReason::Completed, "told".to_owned());
    events.push(Event::RunEnded { end: RunEnd { outcome, reason, message } });
    append(stage, &child_id(), events).await;
}

fn ended(event: &Event) -> &ChildEnd {
    match event {
        Event::ChildEnded { end, .. } => end,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_child_is_made_once_and_its_parent_waits_for_it_without_a_pod() {
    let stage = delegated().await;
    stage.pass().await.unwrap();
    assert_eq!(stage.writes(), ["child created"]);
    let made = stage.server.lock().children.there[0].clone();
    assert_eq!(made["spec"]["parent"], json!({"name": "nightly", "uid": "uid-nightly", "callId": "c1"}));
    assert_eq!(made["spec"]["agentRef"]["name"], "helper");
    assert_eq!((&made["spec"]["input"], &made["spec"]["requestedBy"]), (&json!("find it"), &json!("ada")));
    assert_eq!(made["spec"]["limits"]["tokens"], 900);
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "uid-nightly");
    assert_eq!(made["metadata"]["labels"]["belay.dev/parent"], "nightly");
    assert_eq!(state(&stage).await.children[CHILD].uid.as_deref(), Some("uid-child"));
    for _ in 0..3 {
        stage.pass().await.unwrap();
    }
    assert_eq!(stage.writes(), ["status ChildRunning"], "no pod, and no second child");
    let status = stage.server.lock().status.clone().unwrap();
    assert_eq!(status["waitingOn"]["display"], format!("agentrun/{CHILD}"));
    stage.end().await;
}

#[tokio::test]
async fn what_the_child_answered_becomes_the_result_and_the_parent_goes_on() {
    for (outcome, is_error, words) in [
        (Outcome::Succeeded, false, "it is in the attic"),
        (Outcome::Failed, true, "run nightly-c1-x of agent helper failed (Completed): told"),
    ] {
        let stage = delegated().await;
        stage.pass().await.unwrap();
        child_ends(&stage, outcome).await;
        stage.pass().await.unwrap();
        let event = last_event(&stage).await;
        let end = ended(&event);
        assert_eq!((end.result.is_error, end.result.content.as_str()), (is_error, words));
        assert_eq!((end.outcome, end.tokens), (Some(outcome), 42));
        assert_eq!(state(&stage).await.tokens_spent(), 42);
        stage.writes();
        stage.pass().await.unwrap();
        assert!(stage.writes().contains(&"pod created".to_owned()), "its next pod reads the result");
        stage.end().await;
    }
}

#[tokio::test]
async fn a_child_whose_creation_was_answered_to_nobody_is_found_and_another_run_of_its_name_is_not_taken() {
    let first = delegated().await;
    first.pass().await.unwrap();
    let mut made = first.server.lock().children.there[0].clone();
    first.end().await;
    made["metadata"]["uid"] = json!("uid-there");
    let there = |field: &str, value: Value| {
        let mut there = made.clone();
        there["spec"][field] = value;
        there
    };
    let stage = delegated().await;
    stage.server.lock().children.there = vec![made.clone()];
    stage.pass().await.unwrap();
    assert_eq!(state(&stage).await.children[CHILD].uid.as_deref(), Some("uid-there"));
    stage.end().await;
    let others = ParentRun { uid: "uid-of-an-earlier-nightly".into(), ..parent() };
    for (field, other) in [
        ("parent", Value::Null),
        ("parent", serde_json::to_value(others).unwrap()),
        ("agentRef", json!({"name": "mallory"})),
        ("input", json!("something else")),
        ("limits", Value::Null),
        ("requestedBy", json!("mallory")),
    ] {
        let stage = delegated().await;
        stage.server.lock().children.there = vec![there(field, other)];
        stage.pass().await.unwrap();
        let event = last_event(&stage).await;
        let end = ended(&event);
        assert_eq!((end.outcome, end.result.is_error, end.tokens), (None, true, 0));
        assert!(end.result.content.contains("there is an AgentRun nightly-c1-x already"), "{}", end.result.content);
        stage.end().await;
    }
}

#[tokio::test]
async fn a_child_that_may_not_be_made_is_waited_for_and_made_later() {
    let stage = delegated().await;
    stage.server.lock().children.quota = true;
    stage.pass().await.unwrap();
    let status = stage.server.lock().status.clone().unwrap();
    assert!(status["conditions"][0]["message"].as_str().unwrap().contains("exceeded quota"), "{status:#}");
    stage.server.lock().children.quota = false;
    stage.pass().await.unwrap();
    assert!(stage.writes().contains(&"child created".to_owned()));
    stage.end().await;
}

#[tokio::test]
async fn a_child_that_is_gone_without_records_is_an_error_that_says_so_and_costs_its_share() {
    let stage = delegated().await;
    stage.pass().await.unwrap();
    stage.server.lock().children.there.clear();
    stage.pass().await.unwrap();
    let event = last_event(&stage).await;
    let end = ended(&event);
    assert_eq!((end.outcome, end.result.is_error, end.tokens), (None, true, 900), "its records may have been lost");
    assert!(end.result.content.contains("nightly-c1-x did is not known"), "{}", end.result.content);
    stage.end().await;
}

#[tokio::test]
async fn a_run_that_waits_for_a_child_holds_no_slot_whatever_ended_its_pod() {
    let stage = delegated().await;
    stage.runs.lobby.resume("uid-nightly", "triage", "triage");
    for _ in 0..2 {
        stage.pass().await.unwrap();
    }
    assert_eq!(stage.runs.lobby.len(), 0, "its child may need that slot");
    stage.end().await;
}

#[tokio::test]
async fn a_child_that_is_refused_keeps_no_slot_from_others() {
    let stage = delegated().await;
    stage.server.lock().children.quota = true;
    stage.runs.lobby.resume("uid-nightly", "triage", "triage");
    stage.pass().await.unwrap();
    assert_eq!(stage.runs.lobby.len(), 0);
    stage.end().await;
}

#[tokio::test]
async fn a_child_does_not_begin_before_its_parent_has_named_it() {
    let stage = delegated().await;
    stage.pass_over(child()).await.unwrap();
    assert_eq!(child_events(&stage).await, [""; 0]);
    stage.pass().await.unwrap();
    stage.pass_over(child()).await.unwrap();
    assert_eq!(child_events(&stage).await, ["RunAccepted", "EpochOpened"]);
    stage.end().await;
}

/// The child as the API server has it.
fn child() -> AgentRun {
    let mut child = run(CHILD, "triage");
    child.metadata.uid = Some("uid-child".into());
    child.metadata.resource_version = Some("0".into());
    child.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Clock.now()));
    child.spec.parent = Some(parent());
    child
}

async fn child_events(stage: &Stage) -> Vec<&'static str> {
    let records = stage.journal.records("uid-child", 1).await.unwrap();
    records.iter().map(|sealed| sealed.record.event.name()).collect()
}

#[tokio::test]
async fn a_child_starts_under_its_parent_and_ends_with_it() {
    let stage = delegated().await;
    stage.pass().await.unwrap();
    stage.pass_over(child()).await.unwrap();
    assert_eq!(child_events(&stage).await, ["RunAccepted", "EpochOpened"]);
    let plan = stage.journal.state("uid-child").await.unwrap().unwrap().plan.clone().unwrap();
    let above = plan.parent.as_ref().unwrap();
    assert_eq!((above.run.name.as_str(), above.call_id.as_str(), above.depth), ("nightly", "c1", 1));
    let end = RunEnd { outcome: Outcome::Cancelled, reason: EndReason::Cancelled, message: String::new() };
    append(&stage, &id_of(&run("nightly", "triage")), vec![Event::RunEnded { end }]).await;
    stage.pass_over(child()).await.unwrap();
    let after = stage.journal.state("uid-child").await.unwrap().unwrap();
    let end = after.end.as_ref().unwrap();
    assert_eq!(end.outcome, Outcome::Cancelled);
    assert_eq!(end.message, "AgentRun nightly, whose call it carries out, has ended");
    stage.end().await;
}

#[tokio::test]
async fn a_run_that_claims_a_parent_which_does_not_wait_for_it_never_starts() {
    let stage = Stage::new(&[]).await;
    stage.pass_over(child()).await.unwrap();
    assert_eq!(child_events(&stage).await, ["RunEnded"]);
    assert!(!stage.writes().contains(&"pod created".to_owned()));
    stage.end().await;
}
