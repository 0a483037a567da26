//! What the operator itself refuses: attacks on Approvals in front of an API server whose admission lets everything
//! through. Whoever attacks may write, delete and make Approvals as they like. The same attacks at the API server alone are
//! in `e2e/tests/attacks`; `docs/threat-model.md` says which layer refuses what.
//!
//! Nobody but admission knows who wrote a decision. Where all depends on that, the guard is what keeps a forgery from
//! counting: those rows are in `behind_the_guard`.

mod before_the_send;
mod behind_the_guard;
mod what_a_server_asks;

use belay_crds::{Approval, ApprovalOutcome, ApprovalStatus};
use belay_policy::{Identity, freeze};
use belay_protocol::Digest;
use belay_protocol::call::{CallBinding, request_digest};
use belay_protocol::cost::Usage;
use belay_protocol::event::{Answer, Approver, Ask, DenyReason, Item, ListedOperation, Listing, ProposedCall, Verdict};
use belay_protocol::fold::RunState;
use belay_protocol::plan::{Effects, Plan, PlanPolicy};
use rstest::rstest;

use super::*;
use crate::agent_run::resolve::id_of;
use crate::fixtures;
use crate::gate::{self, Circumstances, Law, Room, Standing, Words};
use crate::guard::tests::Stage as GuardStage;
use crate::policy::{Current, Judge};

/// What somebody does to an Approval.
type Act = fn(&mut Value);

/// The Approvals of an API server that refuses nothing.
#[derive(Default)]
pub(super) struct Approvals {
    objects: Vec<Value>,
    made: usize,
    reads: usize,
    /// After so many further reads this is done to what was read: somebody was quicker than who read.
    then: Option<(usize, Act)>,
}

impl Approvals {
    /// `place`: what follows the collection's path.
    pub(super) fn answer(&mut self, method: &Method, place: &str, body: &Value) -> (u16, Value) {
        let name = place.trim_start_matches('/').split('/').next().unwrap_or_default();
        match method.as_str() {
            "POST" => self.create(body.clone()),
            "GET" => self.read(name),
            "PATCH" if place.ends_with("/status") => self.write_status(name, body),
            method => panic!("unexpected {method} {place}"),
        }
    }

    fn create(&mut self, mut object: Value) -> (u16, Value) {
        if self.objects.iter().any(|it| it["metadata"]["name"] == object["metadata"]["name"]) {
            return refusal(409, "AlreadyExists", "there is one of that name");
        }
        self.made += 1;
        object["metadata"]["uid"] = json!(format!("uid-approval-{}", self.made));
        object["metadata"]["resourceVersion"] = json!("1");
        self.objects.push(object.clone());
        (201, object)
    }

    fn read(&mut self, name: &str) -> (u16, Value) {
        self.reads += 1;
        let Some(object) = self.objects.iter_mut().find(|it| it["metadata"]["name"] == name) else {
            return refusal(404, "NotFound", "no such Approval");
        };
        let read = object.clone();
        match &mut self.then {
            Some((0, act)) => {
                act(object);
                raise_version(object);
                self.then = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        (200, read)
    }

    fn write_status(&mut self, name: &str, body: &Value) -> (u16, Value) {
        let Some(object) = self.objects.iter_mut().find(|it| it["metadata"]["name"] == name) else {
            return refusal(404, "NotFound", "no such Approval");
        };
        let fits =
            |field: &str| body["metadata"][field].is_null() || body["metadata"][field] == object["metadata"][field];
        if !fits("uid") || !fits("resourceVersion") {
            return refusal(409, "Conflict", "the object has been modified");
        }
        object["status"] = body["status"].clone();
        raise_version(object);
        (200, object.clone())
    }
}

fn raise_version(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

/// Two people, neither of them eve, who created the run.
const TWO_OTHERS: &str = "{rules: [{name: two, tools: [github], action: Ask, ask: {quorum: 2, separationOfDuty: true}}, \
                          {name: rest, tools: [reader], action: Allow}]}";

fn policy(generation: i64, spec: &str) -> PlanPolicy {
    let identity = Identity { name: "careful".into(), uid: "uid-careful".into(), generation };
    freeze(identity, &serde_saphyr::from_str(spec).unwrap())
}

/// Run `nightly` of eve's: `github` is asked about, `reader`, whose operation has the same name and definition, is not.
fn plan() -> Plan {
    let mut plan = fixtures::plan();
    plan.requested_by = Some("eve".into());
    plan.policies = vec![policy(1, TWO_OTHERS)];
    plan.agent_policies = vec!["careful".into()];
    let mut reader = plan.tools[0].clone();
    reader.name = "reader".into();
    plan.tools.push(reader);
    for tool in &mut plan.tools {
        for operation in &mut tool.operations {
            operation.effects = Effects::NonIdempotent;
        }
    }
    plan
}

fn call(tool: &str, args: Value) -> ProposedCall {
    let (plan, definition) = (plan(), Digest::of(b"list_issues"));
    let found = plan.tool(tool).unwrap();
    let digest = CallBinding::new(&plan, found, definition, "list_issues", &args).digest().unwrap();
    ProposedCall { tool: tool.into(), operation: "list_issues".into(), args, definition, digest }
}

/// What people are asked about.
fn the_call() -> ProposedCall {
    call("github", json!({"repo": "caf\u{e9}", "count": 1}))
}

/// What was journaled until the model's answer, which wants two calls.
fn beginning() -> Vec<Event> {
    let plan = plan();
    let listed = vec![ListedOperation { name: "list_issues".into(), definition: Digest::of(b"list_issues") }];
    let listing = |tool: &str| Event::ToolsListed { tool: tool.into(), listing: Listing::Listed(listed.clone()) };
    let wanted = |call_id: &str| Item::ToolCall {
        call_id: call_id.into(),
        provider_id: "p".into(),
        name: "github__list_issues".into(),
        arguments: "{}".into(),
    };
    let mut events = vec![
        Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
        fixtures::opened(),
        fixtures::claimed(),
        listing("github"),
        listing("reader"),
    ];
    events.extend(fixtures::answered(1, vec![wanted("c1"), wanted("c2")], Usage::default()));
    events
}

fn runner_pod() -> Value {
    let mut pod = old_pod("uid-pod");
    pod["metadata"]["name"] = json!("belay-run-a");
    pod
}

/// The run, its question, and everybody's hands on it.
struct Scene {
    stage: Stage,
    guard: GuardStage,
    current: Current,
    judge: Judge,
}

impl Scene {
    /// The model wants two calls, and none is proposed. A runner's stream is open.
    async fn begun() -> Self {
        let server = Server { pods: vec![runner_pod()], ..Server::default() };
        let stage = Box::pin(Stage::over(server)).await;
        let guard = GuardStage::up(&[]).await;
        let stage = Stage { runs: AgentRuns { guard: guard.guard.clone(), ..stage.runs }, ..stage };
        stage.runs.sessions.pretend("uid-nightly");
        let current = Current::default();
        let scene = Self { stage, guard, judge: Judge::new(current.clone()), current };
        scene.append(beginning()).await;
        scene
    }

    /// Call c1 was proposed, and nobody is asked yet.
    async fn proposed() -> Self {
        let scene = Box::pin(Self::begun()).await;
        let verdict = scene.propose("c1", the_call()).await;
        assert!(matches!(verdict, Verdict::Asked { .. }), "{verdict:?}");
        scene
    }

    /// The Approval is there, and open.
    async fn asked() -> Self {
        let scene = Box::pin(Self::proposed()).await;
        scene.passes().await;
        assert_eq!(scene.stage.server.lock().approvals.objects.len(), 1);
        scene
    }

    async fn state(&self) -> Arc<RunState> {
        self.stage.journal.state("uid-nightly").await.unwrap().unwrap()
    }

    async fn append(&self, events: Vec<Event>) {
        let id = id_of(&run("nightly", "triage"));
        let seq = self.stage.journal.state(&id.uid).await.unwrap().map_or(0, |state| state.seq);
        self.stage.journal.append(&id, seq, events).await.unwrap();
    }

    /// What the runner proposes, judged and decided as the service does; journaled.
    async fn propose(&self, call_id: &str, call: ProposedCall) -> Verdict {
        self.propose_at(call_id, call, self.stage.journal.now()).await
    }

    async fn propose_at(&self, call_id: &str, call: ProposedCall, now: i64) -> Verdict {
        let (verdict, decided) = self.decided(call_id, call, now).await;
        self.append(decided).await;
        verdict
    }

    async fn decided(&self, call_id: &str, call: ProposedCall, now: i64) -> (Verdict, Vec<Event>) {
        let (state, attempt) = (self.state().await, 1);
        let word = Law::judge(&self.judge, &state, &call).await;
        let words = Words::from([((call_id.to_owned(), attempt), word)]);
        let circumstances = Circumstances { standing: Standing::Running, room: Room::Left, words: &words, now };
        let proposed = Event::CallProposed { call_id: call_id.into(), attempt, call };
        let decided = gate::decide(&state, vec![proposed], &circumstances).unwrap();
        let verdict = decided.iter().find_map(|event| match event {
            Event::CallDecided { verdict, .. } => Some(verdict.clone()),
            _ => None,
        });
        (verdict.unwrap(), decided)
    }

    /// As many as it takes until nothing more happens; a lost race is tried again, as the controller does.
    async fn passes(&self) {
        for _ in 0..8 {
            match self.stage.pass().await {
                Ok(()) | Err(Failure::Conflict) => {}
                Err(failure) => panic!("{failure:?}"),
            }
        }
    }

    /// The attacker's hand on the newest Approval.
    fn write(&self, act: impl FnOnce(&mut Value)) {
        let mut server = self.stage.server.lock();
        let approval = server.approvals.objects.last_mut().unwrap();
        act(approval);
        raise_version(approval);
    }

    fn approval(&self) -> Approval {
        serde_json::from_value(self.stage.server.lock().approvals.objects.last().unwrap().clone()).unwrap()
    }

    /// Adds decisions, each a change of bob's good yes.
    fn decide(&self, changes: &[Value]) {
        self.write(|approval| add(approval, changes));
    }

    async fn answers(&self) -> Vec<Answer> {
        let records = self.stage.journal.records("uid-nightly", 1).await.unwrap();
        let settled = records.into_iter().filter_map(|sealed| match sealed.record.event {
            Event::AskSettled { answer, .. } => Some(answer),
            _ => None,
        });
        settled.collect()
    }

    /// Nobody's yes was taken, and the runner that proposes the call again is not let through.
    async fn end(self) {
        let answers = self.answers().await;
        assert!(!answers.iter().any(|answer| matches!(answer, Answer::Allowed { .. })), "{answers:?}");
        let decided = self.state().await.calls.get("c1").cloned();
        if !matches!(decided, Some(belay_protocol::fold::CallState::Settled(_))) {
            let verdict = self.propose("c1", the_call()).await;
            assert!(!matches!(verdict, Verdict::Allowed { .. }), "{verdict:?}");
        }
        self.stage.end().await;
    }
}

fn add(approval: &mut Value, changes: &[Value]) {
    let digest = approval["spec"]["request"]["digest"].clone();
    let entries = changes.iter().map(|change| {
        let mut entry = json!({"policy": "careful", "by": "bob", "digest": digest, "verdict": "Allow"});
        for (field, value) in change.as_object().unwrap() {
            entry[field] = value.clone();
        }
        entry
    });
    let decisions = &mut approval["spec"]["decisions"];
    let mut all = decisions.as_array().cloned().unwrap_or_default();
    all.extend(entries);
    *decisions = json!(all);
}

fn ada() -> Value {
    json!({"by": "ada"})
}

fn bob() -> Value {
    json!({})
}

/// The subject of every row: without an attack the same two decisions are taken, once, and the call goes.
#[tokio::test]
async fn two_people_who_may_are_believed() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob()]);
    scene.passes().await;
    let by = ["ada", "bob"].map(|by| Approver { policy: "careful".into(), by: by.into() });
    assert_eq!(scene.answers().await, [Answer::Allowed { by: by.into() }]);
    let status = scene.approval().status.unwrap_or_default();
    assert_eq!((status.sealed, status.outcome), (Some(true), Some(ApprovalOutcome::Allowed)));
    let verdict = scene.propose("c1", the_call()).await;
    assert_eq!(verdict, Verdict::Allowed { digest: the_call().digest });
    scene.stage.end().await;
}

const DIGEST_OF_ANOTHER: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// ada said yes; one more is wanted, and this one is none.
#[rstest]
#[case::another_digest(json!({"digest": DIGEST_OF_ANOTHER}))]
#[case::no_digest(json!({"digest": ""}))]
#[case::the_digest_of_the_call_alone(json!({"digest": the_call().digest.to_string()}))]
#[case::a_policy_that_did_not_ask(json!({"policy": "mine"}))]
#[case::the_built_in_policy_that_did_not_ask(json!({"policy": "default"}))]
#[case::whoever_created_the_run(json!({"by": "eve"}))]
#[case::a_service_account(json!({"by": "system:serviceaccount:triage:robot"}))]
#[case::the_operator_itself(json!({"by": "system:serviceaccount:belay-system:belay-operator"}))]
#[case::a_node(json!({"by": "system:node:n1"}))]
#[case::the_administrator_of_the_cluster(json!({"by": "system:admin"}))]
#[case::nobody(json!({"by": ""}))]
#[case::the_same_person_again(json!({"by": "ada", "reason": "again"}))]
#[tokio::test]
async fn what_is_no_second_yes_is_not_counted(#[case] second: Value) {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), second]);
    scene.passes().await;
    assert_eq!(scene.answers().await, []);
    let status = scene.approval().status.unwrap_or_default();
    assert_eq!((status.given.as_deref(), status.sealed), (Some("1/2"), None));
    scene.end().await;
}

/// The digest that was to be repeated, spelled otherwise.
#[rstest]
#[case::shortened(|digest: &str| digest[..digest.len() - 1].to_owned())]
#[case::in_other_case(|digest: &str| digest.to_uppercase())]
#[case::with_a_space(|digest: &str| format!("{digest} "))]
#[case::without_its_prefix(|digest: &str| digest.trim_start_matches("sha256:").to_owned())]
#[tokio::test]
async fn a_digest_is_compared_to_the_letter(#[case] respell: impl Fn(&str) -> String) {
    let scene = Scene::asked().await;
    let respelled = respell(&scene.approval().spec.request.digest);
    scene.decide(&[ada(), json!({"digest": respelled})]);
    scene.passes().await;
    assert_eq!(scene.answers().await, []);
    scene.end().await;
}

/// The request under both yeses is not the one that the journal holds; whether the digests were made over it or not.
#[rstest]
#[case::other_arguments(json!({"arguments": "{\"count\":1,\"repo\":\"prod\"}"}))]
#[case::the_arguments_in_other_bytes(json!({"arguments": "{\"count\":1,\"repo\":\"cafe\u{301}\"}"}))]
#[case::another_destination(json!({"destination": "http://elsewhere/mcp"}))]
#[case::another_credential(json!({"credential": "admin"}))]
#[case::another_operation(json!({"operation": "delete_repo"}))]
#[case::another_tool(json!({"tool": "reader"}))]
#[case::another_definition(json!({"definition": DIGEST_OF_ANOTHER}))]
#[case::another_call(json!({"callId": "c2"}))]
#[case::another_attempt(json!({"attempt": 2}))]
#[case::another_call_digest(json!({"callDigest": DIGEST_OF_ANOTHER}))]
#[case::a_run_of_the_same_name(json!({"run": {"name": "nightly", "uid": "uid-of-the-first"}}))]
#[case::one_yes_is_enough(json!({"requirements": [{"policy": "careful", "generation": 1, "quorum": 1}]}))]
#[case::another_policy_asks(json!({"requirements": [{"policy": "mine", "quorum": 1}]}))]
#[case::a_later_generation_asks(json!({"requirements": [{"policy": "careful", "generation": 2, "quorum": 2, "separationOfDuty": true}]}))]
#[case::somebody_else_created_the_run(json!({"requestedBy": "mallory"}))]
#[case::more_time(json!({"expiresAt": "2099-01-01T00:00:00Z"}))]
#[case::another_question(json!({"purpose": "Unknown"}))]
#[case::another_nonce(json!({"nonce": "n"}))]
#[case::other_words(json!({"message": "nothing to see here"}))]
#[tokio::test]
async fn a_request_that_was_changed_is_nobodys(#[case] change: Value) {
    for signed_anew in [false, true] {
        let scene = Scene::asked().await;
        scene.write(|approval| {
            let request = &mut approval["spec"]["request"];
            for (field, value) in change.as_object().unwrap() {
                request[field] = value.clone();
            }
            if signed_anew {
                request["digest"] = json!(request_digest(request).unwrap().to_string());
            }
        });
        scene.decide(&[ada(), bob()]);
        scene.passes().await;
        assert_eq!(scene.answers().await, [], "signed anew: {signed_anew}");
        scene.end().await;
    }
}

#[tokio::test]
async fn a_no_beats_a_list_that_is_full_of_yes() {
    let scene = Scene::asked().await;
    let mut crowd: Vec<Value> = (0..31).map(|number| json!({"by": format!("user{number}")})).collect();
    crowd.push(json!({"by": "zoe", "verdict": "Deny", "reason": "stop"}));
    scene.decide(&crowd);
    scene.passes().await;
    assert_eq!(scene.answers().await, [Answer::Denied { by: "zoe".into(), reason: "stop".into() }]);
    scene.end().await;
}

#[tokio::test]
async fn whoever_created_the_run_may_not_say_yes_and_may_say_no() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob(), json!({"by": "eve", "verdict": "Deny"})]);
    scene.passes().await;
    assert_eq!(scene.answers().await, [Answer::Denied { by: "eve".into(), reason: String::new() }]);
    scene.end().await;
}

#[tokio::test]
async fn a_status_that_says_how_many_said_yes_is_not_believed_and_put_right() {
    let scene = Scene::asked().await;
    scene.decide(&[ada()]);
    scene.write(|approval| approval["status"] = json!({"given": "2/2"}));
    scene.passes().await;
    assert_eq!(scene.answers().await, []);
    assert_eq!(scene.approval().status.unwrap().given.as_deref(), Some("1/2"));
    scene.end().await;
}

#[tokio::test]
async fn a_seal_that_somebody_else_set_decides_nothing_and_people_are_asked_anew() {
    for decisions in [&[][..], &[ada()]] {
        let scene = Scene::asked().await;
        scene.decide(decisions);
        scene.write(|approval| approval["status"] = json!({"sealed": true, "given": "2/2"}));
        scene.passes().await;
        let why = "it was sealed before enough people had decided".to_owned();
        assert_eq!(scene.answers().await, [Answer::Withdrawn { why }]);
        assert_eq!(scene.stage.server.lock().approvals.objects.len(), 2, "another one is open");
        scene.end().await;
    }
}

#[tokio::test]
async fn one_of_the_same_name_that_was_made_after_the_first_was_deleted_is_another() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob()]);
    scene.write(|approval| approval["metadata"]["uid"] = json!("uid-of-the-second"));
    scene.passes().await;
    assert_eq!(
        scene.answers().await,
        [Answer::Withdrawn { why: "the Approval before this one was deleted".to_owned() }]
    );
    scene.end().await;
}

#[tokio::test]
async fn decisions_on_a_question_that_was_withdrawn_do_not_fit_the_one_that_follows() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob()]);
    let decided = scene.approval().spec.decisions;
    scene.write(|approval| approval["metadata"]["uid"] = json!("uid-of-the-second"));
    scene.passes().await;
    assert_eq!(scene.stage.server.lock().approvals.objects.len(), 2);
    scene.write(|approval| approval["spec"]["decisions"] = json!(decided));
    scene.passes().await;
    assert_eq!(scene.answers().await.len(), 1, "the old decisions are for another nonce");
    scene.end().await;
}

/// The name holds a random part and is journaled first: one that is there before is not what was asked.
#[tokio::test]
async fn an_approval_that_somebody_made_beforehand_under_the_operators_name_is_never_a_yes() {
    let scene = Scene::proposed().await;
    scene.stage.pass().await.unwrap();
    let name = scene.state().await.asks.keys().next().unwrap().clone();
    let mut made: Value = serde_json::to_value(crate::guard::tests::approval("triage", &name)).unwrap();
    made["spec"]["request"]["purpose"] = json!("Call");
    made["spec"]["request"]["requirements"] = json!([{"policy": "careful", "quorum": 1}]);
    made["spec"]["request"]["digest"] = json!(request_digest(&made["spec"]["request"]).unwrap().to_string());
    add(&mut made, &[ada(), bob()]);
    scene.stage.server.lock().approvals.create(made);
    scene.passes().await;
    assert_eq!(scene.answers().await, []);
    scene.end().await;
}

/// The operator read two yeses; before it can seal, a no is there.
#[tokio::test]
async fn a_no_that_comes_between_the_look_and_the_seal_wins() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob()]);
    // The first read is to see what there is, the second to settle it.
    let no: Act = |approval| add(approval, &[json!({"by": "zoe", "verdict": "Deny", "reason": "stop"})]);
    scene.stage.server.lock().approvals.then = Some((1, no));
    assert!(matches!(scene.stage.pass().await, Err(Failure::Conflict)), "sealing what was read is a conflict");
    assert_eq!(scene.answers().await, []);
    scene.passes().await;
    assert_eq!(scene.answers().await, [Answer::Denied { by: "zoe".into(), reason: "stop".into() }]);
    scene.end().await;
}

/// Both read the same yeses, and both mean to take them.
#[tokio::test]
async fn two_operators_take_one_approval_once() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob()]);
    let run = scene.stage.object();
    let sight = scene.stage.runs.observe(&run).await.unwrap();
    let name = scene.approval().metadata.name.unwrap();
    let one = || scene.stage.runs.settle(&run, &sight, &name);
    let (first, second) = tokio::join!(one(), one());
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    scene.passes().await;
    assert_eq!(scene.answers().await.len(), 1);
    scene.stage.end().await;
}

/// One sealed it and died; another one, whose journal is the same, takes what is sealed, once.
#[tokio::test]
async fn a_crash_between_seal_and_journal_is_made_good_once() {
    let scene = Scene::asked().await;
    scene.decide(&[ada(), bob()]);
    let sealed = ApprovalStatus { sealed: Some(true), given: Some("2/2".into()), ..ApprovalStatus::default() };
    scene.write(|approval| approval["status"] = json!(sealed));
    scene.passes().await;
    assert!(matches!(&scene.answers().await[..], [Answer::Allowed { .. }]), "{:?}", scene.answers().await);
    scene.stage.end().await;
}

/// Ten thousand questions of others are open, and all of them are in the cache.
#[tokio::test]
async fn a_pass_over_a_run_looks_at_its_own_questions_and_no_others() {
    let mut scene = Scene::asked().await;
    let mut cache = Writer::new(());
    let mut other = crate::guard::tests::approval("triage", "other");
    for number in 0..10_000 {
        other.metadata.name = Some(format!("other-{number}"));
        let other = other.clone();
        cache.apply_watcher_event(&watcher::Event::Apply(other));
    }
    cache.apply_watcher_event(&watcher::Event::Apply(scene.approval()));
    scene.stage.runs.world.approvals = cache.as_reader();
    scene.passes().await;
    scene.stage.writes();
    scene.stage.server.lock().approvals.reads = 0;
    scene.passes().await;
    let reads = scene.stage.server.lock().approvals.reads;
    assert_eq!((reads, scene.stage.writes()), (0, Vec::<String>::new()));
    scene.end().await;
}
