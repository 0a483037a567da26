//! People are asked about a Tool that drifted, against a played API server: which writes, and what each answer comes to.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use belay_crds::{Approval, Tool, ToolStatus};
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Tools;
use super::drift::{summary, take};
use crate::clock::Clock;
use crate::fixtures::tool;
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::played::{self, empty_world, queues, refusal, settings};
use crate::probe_pod::{Parts, ProbePods};
use crate::service::Probes;
use crate::watches::Pulses;
use crate::world::Relations;
use crate::writes::Writes;

/// Approvals by name, and what was done.
#[derive(Default)]
struct Server {
    approvals: Vec<Value>,
    writes: Vec<String>,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        let parts: Vec<&str> = path.rsplit('/').collect();
        let at = |approvals: &[Value], name: &str| approvals.iter().position(|one| one["metadata"]["name"] == name);
        match (method.as_str(), parts[0]) {
            ("POST", "approvals") => {
                let mut made = body.clone();
                made["metadata"]["uid"] = json!(format!("uid-{}", self.approvals.len()));
                made["metadata"]["resourceVersion"] = json!("1");
                self.writes.push("approval made".to_owned());
                self.approvals.push(made.clone());
                (201, made)
            }
            ("POST", "events") => (201, body.clone()),
            ("GET", name) => match at(&self.approvals, name) {
                Some(at) => (200, self.approvals[at].clone()),
                None => refusal(404, "NotFound", "no such Approval"),
            },
            ("PATCH", "status") => {
                let at = at(&self.approvals, parts[1]).unwrap();
                self.approvals[at]["status"] = body["status"].clone();
                let sealed = body["status"]["sealed"] == true;
                assert_eq!(sealed, body["status"]["outcome"].is_string(), "{body}");
                self.writes.push(if sealed { "sealed" } else { "counted" }.to_owned());
                (200, self.approvals[at].clone())
            }
            (method, _) => panic!("unexpected {method} {path}"),
        }
    }
}

/// Tool `github`, of which the server changed `set_labels` after it was accepted.
struct Stage {
    tools: Tools,
    tool: Tool,
    server: Arc<Mutex<Server>>,
}

fn offered(description: &str) -> Vec<belay_crds::ToolOperation> {
    let operation =
        json!({"name": "set_labels", "digest": format!("sha256:{description}"), "description": description});
    vec![serde_json::from_value(operation).unwrap()]
}

fn at(second: i64) -> MicroTime {
    MicroTime(jiff::Timestamp::from_second(second).unwrap())
}

impl Stage {
    async fn new() -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let (world, queues, shutdown) = (empty_world(), queues(), CancellationToken::new());
        let client = {
            let server = Arc::clone(&server);
            played::client(move |method, path, body| server.lock().answer(method, path, body))
        };
        let relations = Relations { world: world.clone(), queues: queues.clone(), shared: Arc::default() };
        let metrics = Metrics::default();
        let namespaces =
            Namespaces::new(client.clone(), relations, Pulses::default(), metrics.clone(), shutdown.clone());
        let writes = Writes::new(client.clone());
        let fences = crate::network::fences::Fences::new(
            writes.clone(),
            namespaces.clone(),
            crate::network::NetworkSettings::default(),
        );
        let probes = ProbePods::new(Parts {
            client,
            writes: writes.clone(),
            namespaces: namespaces.clone(),
            probes: Probes::default(),
            queues,
            settings: settings(),
            fences,
            metrics,
            shutdown,
        });
        let guard = crate::guard::tests::standing().await;
        let network = crate::network::NetworkSettings::default();
        let tools = Tools { world, network, namespaces, probes, guard, writes, clock: Clock };
        let mut stage = Self { tools, tool: tool("github", &[]), server };
        stage.tool.status = Some(ToolStatus::default());
        stage.lists("Sets labels.", 1);
        stage.lists("Sets labels. And more.", 2);
        stage
    }

    /// What a probe found is in status.
    fn lists(&mut self, description: &str, second: i64) {
        let mut status = self.tool.status.clone().unwrap();
        take(&mut status, &self.tool.spec, offered(description), at(second));
        self.tool.status = Some(status);
    }

    /// Looks until nothing is to be done at once; why people could not be asked, if they could not.
    async fn settle(&mut self) -> Option<String> {
        for _ in 0..10 {
            let mut status = self.tool.status.clone().unwrap();
            let asked = self.tools.settle(&self.tool, &mut status).await.unwrap();
            let changed = self.tool.status.as_ref() != Some(&status);
            self.tool.status = Some(status);
            if !changed && asked.again != Some(std::time::Duration::from_millis(200)) {
                return asked.unasked;
            }
        }
        panic!("it never comes to rest: {:?}", self.tool.status)
    }

    /// A probe finds this, in the pass that settles what was asked before; then as [`Stage::settle`].
    async fn changes(&mut self, description: &str, second: i64) -> Option<String> {
        let mut status = self.status().clone();
        take(&mut status, &self.tool.spec, offered(description), at(second));
        self.tools.settle(&self.tool, &mut status).await.unwrap();
        self.tool.status = Some(status);
        self.settle().await
    }

    fn status(&self) -> &ToolStatus {
        self.tool.status.as_ref().unwrap()
    }

    fn approval(&self) -> Approval {
        serde_json::from_value(self.server.lock().approvals.last().unwrap().clone()).unwrap()
    }

    fn decides(&self, change: &Value) {
        let mut decision = json!({"policy": "github", "by": "ada", "verdict": "Allow"});
        for (field, value) in change.as_object().unwrap() {
            decision[field] = value.clone();
        }
        let mut server = self.server.lock();
        let approval = server.approvals.last_mut().unwrap();
        if decision["digest"].is_null() {
            decision["digest"] = approval["spec"]["request"]["digest"].clone();
        }
        let decisions = approval["spec"].as_object_mut().unwrap().entry("decisions").or_insert_with(|| json!([]));
        decisions.as_array_mut().unwrap().push(decision);
    }

    fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().writes)
    }

    fn accepted(&self) -> &str {
        &self.status().operations[0].digest
    }
}

#[tokio::test]
async fn people_are_asked_once_about_what_differs_and_shown_both_definitions() {
    let mut stage = Stage::new().await;
    assert_eq!(stage.settle().await, None);
    assert_eq!(stage.writes(), ["approval made"]);
    let (approval, question) = (stage.approval(), stage.status().drift.clone().unwrap().question.unwrap());
    let request = &approval.spec.request;
    assert_eq!(approval.metadata.name.as_deref(), Some(question.approval.as_str()));
    assert_eq!((&request.digest, &request.nonce), (&question.digest, &question.nonce));
    assert_eq!((question.uid.as_deref(), request.tool.as_str()), (Some("uid-0"), "github"));
    assert_eq!(approval.metadata.owner_references.unwrap()[0].kind, "Tool");
    let signed: Value = serde_json::from_str(&request.arguments).unwrap();
    let expected = json!({"operations": [{
        "name": "set_labels", "change": "Changed",
        "accepted": {"digest": "sha256:Sets labels.", "description": "Sets labels."},
        "offered": {"digest": "sha256:Sets labels. And more.", "description": "Sets labels. And more."},
    }]});
    assert_eq!(signed, expected);
    assert_eq!(request.definition, stage.status().drift.as_ref().unwrap().digest);
    stage.settle().await;
    assert_eq!(stage.writes(), Vec::<String>::new(), "nothing is asked twice");
}

#[tokio::test]
async fn a_yes_is_sealed_and_makes_the_offer_the_accepted_definition() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    stage.decides(&json!({}));
    stage.settle().await;
    assert_eq!(stage.writes(), ["approval made", "sealed"]);
    assert_eq!((stage.accepted(), stage.status().drift.is_none()), ("sha256:Sets labels. And more.", true));
    assert_eq!(stage.status().acceptance.as_ref().unwrap().by, ["ada"]);
}

#[tokio::test]
async fn a_no_beats_a_yes_holds_the_offer_and_is_not_asked_again_until_something_changes() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    stage.decides(&json!({}));
    stage.decides(&json!({"by": "bob", "verdict": "Deny", "reason": "no"}));
    stage.settle().await;
    assert_eq!(stage.writes(), ["approval made", "sealed"]);
    assert_eq!(stage.server.lock().approvals.first().unwrap()["status"]["outcome"], "Denied");
    assert_eq!(stage.accepted(), "sha256:Sets labels.");
    let drift = stage.status().drift.clone().unwrap();
    assert_eq!((drift.refused.as_ref().unwrap().by.as_str(), drift.question), ("bob", None));
    stage.lists("Sets labels. And more.", 3);
    stage.settle().await;
    assert_eq!(stage.writes(), Vec::<String>::new(), "the same offer is not asked about again");
    stage.tool.metadata.generation = Some(2);
    stage.settle().await;
    assert_eq!(stage.writes(), ["approval made"], "an edit of the Tool asks again");
}

#[tokio::test]
async fn decisions_that_do_not_count_accept_nothing() {
    for decision in [json!({"digest": "sha256:other"}), json!({"policy": "default"})] {
        let mut stage = Stage::new().await;
        stage.settle().await;
        stage.decides(&decision);
        stage.settle().await;
        assert_eq!((stage.accepted(), stage.status().drift.is_some()), ("sha256:Sets labels.", true), "{decision}");
    }
    let mut changed = Stage::new().await;
    changed.settle().await;
    changed.decides(&json!({}));
    changed.server.lock().approvals[0]["spec"]["request"]["arguments"] = json!("{}");
    changed.settle().await;
    assert_eq!(changed.accepted(), "sha256:Sets labels.", "the request is not the one that was written down");
}

#[tokio::test]
async fn an_offer_that_changed_meanwhile_is_asked_about_anew_and_the_old_yes_is_void() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    stage.decides(&json!({}));
    stage.lists("Sets labels. And everything.", 3);
    stage.settle().await;
    assert_eq!(stage.accepted(), "sha256:Sets labels.");
    assert_eq!(stage.server.lock().approvals.len(), 2);
    assert!(stage.approval().spec.request.arguments.contains("And everything."));
}

/// Each question is an Approval that stays as long as the Tool: a server that never rests gets no new one each time.
#[tokio::test]
async fn a_server_that_does_not_come_to_rest_is_asked_about_later_and_held_meanwhile() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    assert_eq!(stage.changes("Sets labels. Or not.", 3).await, None, "the first change is asked about at once");
    for second in 4..14 {
        let why = stage.changes(&format!("Sets labels. {second}"), second).await.unwrap();
        assert!(why.contains("2 times while people were asked: they are asked again at "), "{why}");
    }
    assert_eq!(stage.server.lock().approvals.len(), 2);
    assert!(stage.server.lock().approvals.iter().all(|approval| approval["status"]["sealed"] == true));
    assert_eq!(stage.accepted(), "sha256:Sets labels.", "calls are held");

    let unrest = stage.tool.status.as_mut().unwrap().unrest.as_mut().unwrap();
    unrest.at.0 -= jiff::SignedDuration::from_mins(1);
    assert_eq!(stage.settle().await, None);
    assert_eq!(stage.server.lock().approvals.len(), 3);
    stage.decides(&json!({}));
    stage.settle().await;
    assert_eq!((stage.accepted(), stage.status().unrest.is_none()), ("sha256:Sets labels. 13", true), "people decided");
}

#[tokio::test]
async fn a_question_that_is_not_one_any_more_is_sealed_in_the_pass_that_finds_out() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    let mut status = stage.status().clone();
    take(&mut status, &stage.tool.spec, offered("Sets labels."), at(3));
    stage.tools.settle(&stage.tool, &mut status).await.unwrap();
    assert_eq!((stage.writes(), status.drift), (vec!["approval made".to_owned(), "sealed".to_owned()], None));
}

#[tokio::test]
async fn an_approval_that_was_deleted_or_ran_out_is_no_decision_and_is_made_again() {
    let mut deleted = Stage::new().await;
    deleted.settle().await;
    let nonce = deleted.approval().spec.request.nonce;
    deleted.server.lock().approvals.clear();
    deleted.settle().await;
    assert_ne!(deleted.approval().spec.request.nonce, nonce);
    assert!(deleted.status().drift.is_some());

    let mut late = Stage::new().await;
    late.settle().await;
    late.decides(&json!({}));
    let past = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
    late.tool.status.as_mut().unwrap().drift.as_mut().unwrap().question.as_mut().unwrap().expires_at = past;
    late.settle().await;
    assert_eq!(late.accepted(), "sha256:Sets labels.", "too late");
    assert_eq!(late.server.lock().approvals.len(), 2);
    assert_eq!(late.server.lock().approvals[0]["status"]["sealed"], true);
}

#[tokio::test]
async fn a_decision_under_other_rules_than_those_that_stood_is_asked_anew() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    stage.decides(&json!({}));
    let question = stage.tool.status.as_mut().unwrap().drift.as_mut().unwrap().question.as_mut().unwrap();
    question.guard.binding_generation += 1;
    stage.settle().await;
    assert_eq!(stage.accepted(), "sha256:Sets labels.");
    assert_eq!(stage.server.lock().approvals.len(), 2);
}

#[tokio::test]
async fn a_tool_that_names_another_server_asks_no_more_about_the_one_before() {
    let mut stage = Stage::new().await;
    stage.settle().await;
    assert_eq!(stage.status().drift.as_ref().map(summary).as_deref(), Some("set_labels changed"));
    stage.tool.spec.mcp.as_mut().unwrap().url = "http://other/mcp".to_owned();
    stage.decides(&json!({}));
    stage.settle().await;
    assert_eq!(stage.writes(), ["approval made", "sealed"]);
    assert_eq!((stage.accepted(), stage.status().drift.is_none()), ("sha256:Sets labels.", true));
}
