//! Who may do what with an Approval, asked of a real API server by impersonation.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use belay_e2e::kubectl::Output;
use belay_e2e::{Kubectl, TempNamespace};
use serde_json::{Value, json};

const OPERATOR: &str = "system:serviceaccount:belay-system:belay-operator";
const LOOKS: usize = 50;
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn approval(name: &str, requirements: &Value) -> Value {
    json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
        "metadata": {"name": name, "labels": {"of": "belay"}},
        "spec": {"request": {
            "purpose": "Unknown", "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": "{}", "destination": "http://x/mcp",
            "callDigest": "sha256:c", "message": "?", "requirements": requirements, "requestedBy": "eve",
            "expiresAt": "2036-11-30T00:00:00Z", "nonce": "n", "digest": "sha256:read-me",
        }},
    })
}

fn decision(name: &str, by: &str, more: &Value) -> String {
    let mut decision =
        json!({"policy": "default", "by": by, "digest": "sha256:read-me", "verdict": "Allow", "answer": {"retry": {}}});
    for (field, value) in more.as_object().unwrap() {
        decision[field] = value.clone();
        if value.is_null() {
            decision.as_object_mut().unwrap().remove(field);
        }
    }
    json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name}, "spec": {"decisions": [decision]}})
        .to_string()
}

fn decide(who: &Kubectl, manager: &str, body: &str) -> Output {
    who.output(&["apply", "--server-side", "--field-manager", manager, "-f", "-"], Some(body)).unwrap()
}

/// RBAC and admission reach the API server's caches a moment later.
fn refused(words: &str, act: impl Fn() -> Output) {
    let mut last = None;
    for _ in 0..LOOKS {
        let output = act();
        assert!(!output.success, "this was accepted, but must be refused with '{words}'");
        if output.stderr.contains(words) {
            return;
        }
        last = Some(output.stderr);
        std::thread::sleep(LOOK_EVERY);
    }
    panic!("expected '{words}' in: {last:?}");
}

fn accepted(act: impl Fn() -> Output) {
    let mut last = None;
    for _ in 0..LOOKS {
        let output = act();
        if output.success {
            return;
        }
        last = Some(output.stderr);
        std::thread::sleep(LOOK_EVERY);
    }
    panic!("{last:?}");
}

/// A namespace where ada and bob may approve for `default`, and mallory may do everything that belay.dev names.
struct Stage {
    namespace: TempNamespace,
    operator: Kubectl,
    ada: Kubectl,
    bob: Kubectl,
    mallory: Kubectl,
}

impl Stage {
    fn new(prefix: &str) -> Self {
        let namespace = TempNamespace::plain(prefix).unwrap();
        let rights = "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: approve}, rules: [\
            {apiGroups: [decide.belay.dev], resources: [approvalpolicies], resourceNames: [default], verbs: [approve]}]}\n---\n\
            {apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: all}, rules: [\
            {apiGroups: [belay.dev], resources: ['*'], verbs: ['*']}]}";
        namespace.kubectl.apply(rights).unwrap();
        for user in ["ada", "bob", "eve"] {
            for (kind, role) in [("Role", "approve"), ("ClusterRole", "belay-approver")] {
                bind(&namespace, user, kind, role);
            }
        }
        bind(&namespace, "mallory", "Role", "all");
        let [ada, bob, mallory] = ["ada", "bob", "mallory"].map(|user| namespace.kubectl.as_user(user));
        let operator = namespace.kubectl.with(&["--as", OPERATOR]);
        Self { namespace, operator, ada, bob, mallory }
    }

    fn ask(&self, name: &str) {
        let object = approval(name, &json!([{"policy": "default", "quorum": 1, "separationOfDuty": true}]));
        accepted(|| self.operator.output(&["create", "-f", "-"], Some(&object.to_string())).unwrap());
    }
}

fn bind(namespace: &TempNamespace, user: &str, kind: &str, role: &str) {
    let flag = if kind == "Role" { "--role" } else { "--clusterrole" };
    let name = format!("{user}-{role}");
    namespace.kubectl.run(&["create", "rolebinding", &name, flag, role, "--user", user]).unwrap();
}

#[test]
fn only_the_operator_makes_deletes_and_seals_one_and_people_change_decisions_alone() {
    let stage = Stage::new("apv-operator");
    let object = approval("forged", &json!([{"policy": "default", "quorum": 1}])).to_string();
    let only = "only the operator creates, deletes or writes the status";
    for who in [&stage.mallory, &stage.namespace.kubectl] {
        refused(only, || who.output(&["create", "-f", "-"], Some(&object)).unwrap());
    }
    stage.ask("a");
    let status = r#"{"status":{"sealed":true}}"#;
    for who in [&stage.mallory, &stage.namespace.kubectl] {
        refused(only, || who.output(&["delete", "approval", "a"], None).unwrap());
        // Two policies guard it: which one speaks first is not said.
        refused("only the operator", || {
            who.output(&["patch", "approval", "a", "--subresource=status", "--type=merge", "-p", status], None).unwrap()
        });
    }
    let owner = r#"{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"gone","uid":"u"}]}}"#;
    for change in
        [r#"{"metadata":{"labels":{"of":"me"}}}"#, owner, r#"{"metadata":{"finalizers":["example.com/stay"]}}"#]
    {
        refused("labels, owners and finalizers", || {
            stage.mallory.output(&["patch", "approval", "a", "--type=merge", "-p", change], None).unwrap()
        });
    }
    let request = r#"{"spec":{"request":{"arguments":"{\"force\":true}"}}}"#;
    refused("spec.request cannot change", || {
        stage.mallory.output(&["patch", "approval", "a", "--type=merge", "-p", request], None).unwrap()
    });
}

#[test]
fn a_decision_is_a_persons_own_on_what_was_read_with_the_verb() {
    let stage = Stage::new("apv-decide");
    stage.ask("a");
    let ada = |more: Value| decision("a", "ada", &more);
    refused("needs the verb approve on approvalpolicies.decide.belay.dev default", || {
        decide(&stage.mallory, "mallory", &decision("a", "mallory", &json!({})))
    });
    refused("a decision is signed by the one who makes it: you are ada", || {
        decide(&stage.ada, "ada", &decision("a", "bob", &json!({})))
    });
    refused("its digest differs", || decide(&stage.ada, "ada", &ada(json!({"digest": "sha256:other"}))));
    refused("not a policy that asked", || decide(&stage.ada, "ada", &ada(json!({"policy": "mine"}))));
    refused("an Allow carries answer.happened or answer.retry", || {
        decide(&stage.ada, "ada", &ada(json!({"answer": null})))
    });
    refused("an answer is either happened or retry", || {
        decide(&stage.ada, "ada", &ada(json!({"answer": {"retry": {}, "happened": {"result": "x"}}})))
    });
    let eve = stage.namespace.kubectl.as_user("eve");
    refused("whoever asked for the run tries to approve it", || decide(&eve, "eve", &decision("a", "eve", &json!({}))));
    let robot = stage.namespace.kubectl.with(&[
        "--as",
        "robot",
        "--as-group",
        "system:serviceaccounts",
        "--as-group",
        "system:authenticated",
    ]);
    bind(&stage.namespace, "robot", "Role", "approve");
    bind(&stage.namespace, "robot", "ClusterRole", "belay-approver");
    refused("only people decide", || decide(&robot, "robot", &decision("a", "robot", &json!({}))));
    accepted(|| decide(&stage.ada, "ada", &ada(json!({}))));
}

#[test]
fn a_decision_stays_and_a_no_may_follow_a_yes_until_the_approval_is_sealed() {
    let stage = Stage::new("apv-stay");
    stage.ask("a");
    let deny = json!({"verdict": "Deny", "answer": null, "reason": "on second thought"});
    accepted(|| decide(&stage.ada, "ada", &decision("a", "ada", &json!({}))));
    let same_manager = decide(&stage.ada, "ada", &decision("a", "ada", &deny));
    assert!(
        !same_manager.success && same_manager.stderr.contains("a decision, once written, stays"),
        "{same_manager:?}"
    );
    let replaced = r#"{"spec":{"decisions":[]}}"#;
    refused("decisions cannot be removed", || {
        stage
            .bob
            .output(&["patch", "approval", "a", "--type=merge", "-p", r#"{"spec":{"decisions":null}}"#], None)
            .unwrap()
    });
    refused("once written, stays", || {
        stage.bob.output(&["patch", "approval", "a", "--type=merge", "-p", replaced], None).unwrap()
    });
    accepted(|| decide(&stage.ada, "ada-deny", &decision("a", "ada", &deny)));
    let decisions = stage.namespace.kubectl.get("approval", "a").unwrap()["spec"]["decisions"].clone();
    assert_eq!(decisions.as_array().unwrap().len(), 2, "{decisions}");

    let sealed = r#"{"status":{"sealed":true,"given":"1/1"}}"#;
    accepted(|| {
        stage
            .operator
            .output(&["patch", "approval", "a", "--subresource=status", "--type=merge", "-p", sealed], None)
            .unwrap()
    });
    refused("too late: this Approval is sealed", || decide(&stage.bob, "bob", &decision("a", "bob", &json!({}))));
    let columns = stage.namespace.kubectl.run(&["get", "approvals"]).unwrap();
    assert!(
        columns.starts_with("NAME   RUN   PURPOSE   TOOL     OPERATION     NEEDS     GIVEN   EXPIRES"),
        "{columns}"
    );
}
