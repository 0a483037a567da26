#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::VecDeque;

use async_trait::async_trait;
use belay_crds::ApprovalStatus;
use belay_crds::admission::Fault;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::*;

pub fn approval(namespace: &str, name: &str) -> Approval {
    serde_json::from_value(json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"request": {
            "purpose": "Unknown", "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": "{}", "destination": "http://x/mcp",
            "callDigest": "sha256:c", "message": "?", "requirements": [{"policy": "default", "quorum": 1}],
            "requestedBy": "eve", "expiresAt": "2036-11-30T00:00:00Z", "nonce": "n", "digest": "sha256:read-me",
        }},
    }))
    .unwrap()
}

/// An API server as the guard sees it.
struct Played {
    policies: HashMap<String, ValidatingAdmissionPolicy>,
    bindings: HashMap<String, ValidatingAdmissionPolicyBinding>,
    /// What is answered to forgeries: each once, then always `Refused`.
    proofs: VecDeque<Proof>,
    unread: Option<Unread>,
    forged: Vec<String>,
}

struct Server {
    played: Mutex<Played>,
    /// One permit lets one forgery be answered.
    gate: Semaphore,
}

#[async_trait]
impl ApiServer for Server {
    async fn rule(&self, name: &str) -> Result<Installed, Unread> {
        let played = self.played.lock();
        if let Some(unread) = &played.unread {
            return Err(unread.clone());
        }
        Ok(Installed { policy: played.policies.get(name).cloned(), binding: played.bindings.get(name).cloned() })
    }

    async fn forge(&self, forgery: &Forgery) -> Proof {
        let kind = if matches!(forgery, Forgery::Birth(_)) { "birth" } else { "decision" };
        let approval = forgery.approval();
        self.played.lock().forged.push(format!("{kind} {}/{}", approval.namespace().unwrap(), approval.name_any()));
        self.gate.acquire().await.unwrap().forget();
        self.played.lock().proofs.pop_front().unwrap_or(Proof::Refused)
    }
}

pub struct Stage {
    pub guard: Guard,
    server: Arc<Server>,
    writer: Writer<Approval>,
    metrics: Metrics,
}

impl Stage {
    fn new(approvals: &[Approval]) -> Self {
        let (mut policies, mut bindings) = (HashMap::new(), HashMap::new());
        for file in
            ["agent-tools", "approval-grants", "approvals", "read-grants", "references", "runner-pods", "status"]
        {
            let path = format!("{}/../manifests/admission/{file}.yaml", env!("CARGO_MANIFEST_DIR"));
            for document in std::fs::read_to_string(path).unwrap().split("\n---\n") {
                let mut object = yaml(document);
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                object["metadata"]["uid"] = json!(format!("{}-{name}", object["kind"].as_str().unwrap()));
                object["metadata"]["generation"] = json!(1);
                if object["kind"] == "ValidatingAdmissionPolicy" {
                    policies.insert(name, serde_json::from_value(object).unwrap());
                } else {
                    bindings.insert(name, serde_json::from_value(object).unwrap());
                }
            }
        }
        let proofs = VecDeque::new();
        let played = Mutex::new(Played { policies, bindings, proofs, unread: None, forged: Vec::new() });
        let server = Arc::new(Server { played, gate: Semaphore::new(1000) });
        let mut writer = Writer::new(());
        writer.apply_watcher_event(&Event::Init);
        for approval in approvals {
            writer.apply_watcher_event(&Event::InitApply(approval.clone()));
        }
        writer.apply_watcher_event(&Event::InitDone);
        let metrics = Metrics::default();
        let rules = Rules::shipped("belay-system").unwrap();
        let api: Arc<dyn ApiServer> = Arc::<Server>::clone(&server);
        Self { guard: Guard::new(api, rules, writer.as_reader(), metrics.clone()), server, writer, metrics }
    }

    /// One that has looked and found everything good.
    pub async fn up(approvals: &[Approval]) -> Self {
        let stage = Self::new(approvals);
        stage.patrol().await;
        assert!(matches!(stage.guard.state(), State::Up { .. }), "{:?}", stage.guard.state());
        stage.server.played.lock().forged.clear();
        stage
    }

    async fn patrol(&self) -> Option<State> {
        let found = self.guard.look_everywhere().await;
        if let Some(state) = found.clone() {
            self.guard.set(state);
        }
        self.guard.forget_the_gone();
        found
    }

    fn play(&self, edit: impl FnOnce(&mut Played)) {
        edit(&mut self.server.played.lock());
    }

    /// With a guard that looked again meanwhile, and found nothing wrong.
    pub async fn make_a_rule_anew(&self) {
        self.play(|it| it.bindings.get_mut(APPROVALS).unwrap().metadata.uid = Some("made anew".into()));
        self.patrol().await;
    }

    /// After [`Stage::take_away_a_rule`].
    pub async fn put_the_rule_back_anew(&self) {
        let other = Self::new(&[]);
        let mut binding = other.server.played.lock().bindings.remove(APPROVALS).unwrap();
        binding.metadata.uid = Some("made anew".into());
        self.play(|it| drop(it.bindings.insert(APPROVALS.to_owned(), binding)));
        self.patrol().await;
    }

    /// The next forgery is taken, and no other.
    pub fn take_a_forgery(&self) {
        self.play(|it| it.proofs.push_back(Proof::Accepted));
    }

    pub async fn take_away_a_rule(&self) {
        self.play(|it| drop(it.bindings.remove(APPROVALS)));
        self.patrol().await;
    }

    /// What was forged since the last time.
    pub fn forged(&self) -> Vec<String> {
        std::mem::take(&mut self.server.played.lock().forged)
    }
}

/// A guard that stands, whatever it is asked about.
pub(crate) async fn standing() -> Guard {
    Stage::up(&[]).await.guard
}

fn yaml(document: &str) -> Value {
    serde_saphyr::from_str(document).unwrap()
}

fn missing(kind: RuleKind) -> Why {
    Why::Rules(vec![Difference { kind, name: APPROVALS.to_owned(), fault: Fault::Missing }])
}

#[tokio::test]
async fn nothing_is_honoured_before_the_first_look() {
    let stage = Stage::new(&[]);
    let asked = approval("a", "one");
    assert_eq!(stage.guard.stamp(&asked).await, Err(Why::NotLooked));
    assert_eq!(stage.metrics.admission_guard_up.get(), 0);
    stage.patrol().await;
    assert_eq!(stage.metrics.admission_guard_up.get(), 1);
    assert!(stage.guard.stamp(&asked).await.is_ok());
}

#[tokio::test]
async fn a_patrol_forges_one_decision_in_each_namespace_that_has_an_open_approval() {
    let mut sealed = approval("c", "sealed");
    sealed.status = Some(ApprovalStatus { sealed: Some(true), ..Default::default() });
    let stage = Stage::new(&[approval("a", "two"), approval("a", "one"), approval("b", "three"), sealed]);
    stage.patrol().await;
    assert_eq!(stage.forged(), ["decision a/one", "decision b/three"]);
}

#[tokio::test]
async fn a_decision_made_under_the_rules_of_the_stamp_is_vouched_for() {
    let asked = approval("a", "one");
    let stage = Stage::up(&[]).await;
    let stamp = stage.guard.stamp(&asked).await.unwrap();
    assert_eq!(stage.forged(), ["birth a/one"]);
    let vouched = stage.guard.vouch(&asked, &stamp).await.unwrap();
    assert_eq!(stage.forged(), ["decision a/one"], "a look of its own, after the decision was read");
    assert!(vouched.covers(&asked) && !vouched.covers(&approval("a", "two")));
}

#[tokio::test]
async fn what_was_forged_while_a_rule_was_away_or_other_stays_forged_when_the_rule_is_back() {
    type Edit = fn(&mut Played);
    let asked = approval("a", "one");
    let cases: [(Edit, RuleKind); 4] = [
        (|it| it.bindings.get_mut(APPROVALS).unwrap().metadata.uid = Some("made anew".into()), RuleKind::Binding),
        (|it| it.policies.get_mut(APPROVALS).unwrap().metadata.uid = Some("made anew".into()), RuleKind::Policy),
        (|it| it.bindings.get_mut(APPROVALS).unwrap().metadata.generation = Some(3), RuleKind::Binding),
        (|it| it.policies.get_mut(APPROVALS).unwrap().metadata.generation = Some(3), RuleKind::Policy),
    ];
    for (edit, kind) in cases {
        let stage = Stage::up(&[]).await;
        let stamp = stage.guard.stamp(&asked).await.unwrap();
        stage.play(edit);
        stage.patrol().await;
        assert!(matches!(stage.guard.state(), State::Up { .. }), "a naive probe passes");
        let why = stage.guard.vouch(&asked, &stamp).await.unwrap_err();
        assert_eq!(why, Why::Changed(kind));
        assert!(why.asks_anew());
        let anew = stage.guard.stamp(&approval("a", "two")).await.unwrap();
        assert!(stage.guard.vouch(&approval("a", "two"), &anew).await.is_ok());
    }
}

#[tokio::test]
async fn a_rule_that_is_away_at_that_moment_is_noticed_without_any_watch_and_honoured_is_nothing() {
    let (asked, other) = (approval("a", "one"), approval("b", "two"));
    for kind in [RuleKind::Policy, RuleKind::Binding] {
        let stage = Stage::up(&[]).await;
        let stamp = stage.guard.stamp(&asked).await.unwrap();
        stage.play(|it| match kind {
            RuleKind::Policy => drop(it.policies.remove(APPROVALS)),
            RuleKind::Binding => drop(it.bindings.remove(APPROVALS)),
        });
        let why = stage.guard.vouch(&asked, &stamp).await.unwrap_err();
        assert_eq!(why, missing(kind));
        assert!(!why.asks_anew() && why.to_string().contains("kubectl apply --server-side"), "{why}");
        assert_eq!(stage.guard.state(), State::Down(missing(kind)));
        assert_eq!(stage.metrics.admission_guard_up.get(), 0);
        assert_eq!(stage.guard.vouch(&other, &stamp).await, Err(missing(kind)), "for every namespace");
    }
}

#[tokio::test]
async fn a_rule_about_something_else_keeps_approvals_waiting_too() {
    let stage = Stage::up(&[]).await;
    stage.play(|it| drop(it.bindings.remove("belay-runner-pods")));
    stage.patrol().await;
    let why = stage.guard.stamp(&approval("a", "one")).await.unwrap_err();
    assert!(why.to_string().starts_with("ValidatingAdmissionPolicyBinding belay-runner-pods is missing"), "{why}");
}

#[tokio::test]
async fn a_forgery_that_is_not_refused_voids_every_open_approval_for_good() {
    let (asked, other) = (approval("a", "one"), approval("b", "two"));
    let stage = Stage::up(&[asked.clone(), other.clone()]).await;
    let stamp = stage.guard.stamp(&asked).await.unwrap();
    stage.play(|it| it.proofs.push_back(Proof::Accepted));
    let why = stage.guard.vouch(&asked, &stamp).await.unwrap_err();
    assert_eq!(why, Why::NotRefused { namespace: "a".into(), name: "one".into() });
    assert!(why.asks_anew());
    stage.patrol().await;
    assert!(matches!(stage.guard.state(), State::Up { .. }));
    for approval in [&asked, &other] {
        let why = stage.guard.vouch(approval, &stamp).await.unwrap_err();
        assert!(why == Why::Doubtful && why.asks_anew(), "{why}");
    }
    assert!(stage.guard.vouch(&approval("a", "three"), &stamp).await.is_ok(), "made since");
}

#[tokio::test]
async fn doubts_are_forgotten_with_their_approvals() {
    let asked = approval("a", "one");
    let mut stage = Stage::up(std::slice::from_ref(&asked)).await;
    stage.play(|it| it.proofs.push_back(Proof::Accepted));
    stage.patrol().await;
    assert_eq!(stage.guard.0.doubtful.lock().len(), 1);
    stage.writer.apply_watcher_event(&Event::Delete(asked));
    stage.patrol().await;
    assert_eq!(stage.guard.0.doubtful.lock().len(), 0);
}

#[tokio::test]
async fn what_was_not_refused_is_looked_at_until_it_is_even_where_no_approval_is_open() {
    let stage = Stage::up(&[]).await;
    stage.play(|it| it.proofs.extend([Proof::Accepted, Proof::Accepted]));
    assert!(stage.guard.stamp(&approval("a", "one")).await.is_err());
    stage.patrol().await;
    assert!(matches!(stage.guard.state(), State::Down(Why::NotRefused { .. })));
    stage.patrol().await;
    assert!(matches!(stage.guard.state(), State::Up { .. }));
    assert_eq!(stage.forged(), ["birth a/one"; 3]);
}

#[tokio::test]
async fn an_answer_that_proves_nothing_takes_the_guard_down_in_its_own_words() {
    let stage = Stage::up(&[approval("a", "one")]).await;
    stage.play(|it| it.proofs.push_back(Proof::Nothing("spec.decisions: Too many".into())));
    stage.patrol().await;
    let State::Down(why) = stage.guard.state() else { panic!("up") };
    assert!(why.to_string().ends_with("cannot be seen: spec.decisions: Too many") && !why.asks_anew(), "{why}");
}

/// Anybody may delete a namespace of his own while a question is open there.
#[tokio::test]
async fn a_namespace_that_is_being_deleted_stops_no_decision_elsewhere() {
    let (ending, other) = (approval("a", "one"), approval("b", "two"));
    let stage = Stage::up(&[ending.clone(), other.clone()]).await;
    let stamp = stage.guard.stamp(&ending).await.unwrap();
    let ends = || Proof::Ending("unable to create new content in namespace a".into());
    stage.play(|it| it.proofs.extend([ends(), ends(), ends()]));
    let why = stage.guard.vouch(&ending, &stamp).await.unwrap_err();
    assert!(why.to_string().starts_with("nothing is decided on Approval a/one any more: unable to create"), "{why}");
    assert!(!why.asks_anew() && stage.guard.stamp(&ending).await.is_err());
    stage.patrol().await;
    assert!(matches!(stage.guard.state(), State::Up { .. }), "{:?}", stage.guard.state());
    assert!(stage.guard.vouch(&other, &stamp).await.is_ok());
}

#[tokio::test]
async fn an_api_server_that_is_away_changes_nothing_but_nothing_is_honoured_by_memory() {
    let asked = approval("a", "one");
    let stage = Stage::up(&[]).await;
    let stamp = stage.guard.stamp(&asked).await.unwrap();
    stage.play(|it| it.unread = Some(Unread::Unanswered("timeout".into())));
    assert_eq!(stage.patrol().await, None);
    assert!(matches!(stage.guard.state(), State::Up { .. }));
    assert_eq!(stage.guard.vouch(&asked, &stamp).await, Err(Why::Unanswered("timeout".into())));
    stage.play(|it| it.unread = Some(Unread::Forbidden("cannot get".into())));
    stage.patrol().await;
    assert_eq!(stage.guard.state(), State::Down(Why::Forbidden("cannot get".into())));
}

/// Nothing else keeps somebody from writing what is accepted of a Tool.
#[tokio::test]
async fn a_status_is_doubted_until_its_rule_was_seen_and_while_it_is_away_and_no_longer() {
    let stage = Stage::new(&[]);
    assert_eq!(stage.guard.doubts_status(), Some(Why::NotLooked));
    stage.patrol().await;
    assert_eq!(stage.guard.doubts_status(), None);
    stage.play(|it| drop(it.bindings.remove(APPROVALS)));
    stage.patrol().await;
    assert_eq!(stage.guard.doubts_status(), None, "that one is about decisions");
    let mut away = None;
    stage.play(|it| away = it.policies.remove(STATUS));
    stage.patrol().await;
    let why = stage.guard.doubts_status().map(|why| why.to_string()).unwrap_or_default();
    assert!(why.contains(STATUS), "{why}");
    stage.play(|it| drop(it.policies.insert(STATUS.to_owned(), away.unwrap())));
    stage.patrol().await;
    assert_eq!(stage.guard.doubts_status(), None);
    stage.play(|it| it.unread = Some(Unread::Forbidden("cannot get".into())));
    stage.patrol().await;
    assert_eq!(stage.guard.doubts_status(), Some(Why::Forbidden("cannot get".into())));
}

#[tokio::test]
async fn only_a_change_of_how_it_stands_is_told() {
    let stage = Stage::up(&[]).await;
    let mut changes = stage.guard.changes();
    stage.patrol().await;
    assert!(!changes.has_changed().unwrap());
    stage.play(|it| drop(it.bindings.remove(APPROVALS)));
    stage.patrol().await;
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    stage.patrol().await;
    assert!(!changes.has_changed().unwrap());
}

#[tokio::test]
async fn a_hundred_decisions_at_one_time_cost_two_looks() {
    let stage = Arc::new(Stage::up(&[]).await);
    let asked = approval("a", "one");
    let stamp = stage.guard.stamp(&asked).await.unwrap();
    stage.forged();
    let all = stage.server.gate.acquire_many(u32::try_from(stage.server.gate.available_permits()).unwrap());
    all.await.unwrap().forget();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let (stage, asked, stamp) = (Arc::clone(&stage), asked.clone(), stamp.clone());
            tokio::spawn(async move { stage.guard.vouch(&asked, &stamp).await.is_ok() })
        })
        .collect();
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    stage.server.gate.add_permits(100);
    for call in calls {
        assert!(call.await.unwrap());
    }
    assert_eq!(stage.forged().len(), 2);
}

/// One look and one forged decision a namespace, however many questions are open; and each is known by its uid alone.
#[tokio::test]
async fn ten_thousand_open_questions_cost_a_look_what_one_does() {
    let open: Vec<Approval> = (0..10_000).map(|n| approval(["a", "b"][n % 2], &format!("q{n:05}"))).collect();
    let stage = Stage::new(&open);
    stage.patrol().await;
    assert_eq!(stage.forged(), ["decision a/q00000", "decision b/q00001"]);
    stage.play(|it| it.proofs.push_back(Proof::Accepted));
    stage.patrol().await;
    assert_eq!(stage.guard.0.doubtful.lock().len(), 10_000);
    stage.forged();
    stage.patrol().await;
    assert!(matches!(stage.guard.state(), State::Up { .. }));
    assert_eq!(stage.forged().len(), 2, "nor do ten thousand doubts cost more");
}
