//! A namespace with an Approval in it and people around it, for tests of who may do what. Everybody is played by
//! impersonation: the API server judges them as it would judge themselves.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // a test's own words

use std::time::Duration;

use serde_json::{Value, json};

use crate::{Kubectl, Output, TempNamespace};

pub const OPERATOR: &str = "system:serviceaccount:belay-system:belay-operator";
/// What the Approvals of a stage are signed with.
pub const DIGEST: &str = "sha256:read-me";

/// RBAC and admission reach the API server's caches a moment later.
const LOOKS: usize = 50;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Succeeds at last.
pub fn accepted(act: impl Fn() -> Output) -> Output {
    let mut last = None;
    for _ in 0..LOOKS {
        let output = act();
        if output.success {
            return output;
        }
        last = Some(output.stderr);
        std::thread::sleep(LOOK_EVERY);
    }
    panic!("{last:?}");
}

/// Never succeeds, and is refused in these words at last.
pub fn refused(words: &str, act: impl Fn() -> Output) {
    let mut last = None;
    for _ in 0..LOOKS {
        let output = act();
        assert!(!output.success, "this was accepted, but must be refused with '{words}': {}", output.stdout);
        if output.stderr.contains(words) {
            return;
        }
        last = Some(output.stderr);
        std::thread::sleep(LOOK_EVERY);
    }
    panic!("expected '{words}' in: {last:?}");
}

/// One policy that asks, with separation of duty.
#[must_use]
pub fn requirements() -> Value {
    json!([{"policy": "default", "quorum": 1, "separationOfDuty": true}])
}

/// An Approval about an unknown call of a run that eve asked for.
#[must_use]
pub fn approval(name: &str, requirements: &Value) -> Value {
    json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval",
        "metadata": {"name": name, "labels": {"of": "belay"}},
        "spec": {"request": {
            "purpose": "Unknown", "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": "{}", "destination": "http://x/mcp",
            "callDigest": "sha256:c", "message": "?", "requirements": requirements, "requestedBy": "eve",
            "expiresAt": "2036-11-30T00:00:00Z", "nonce": "n", "digest": DIGEST,
        }},
    })
}

/// An Approval that asks whether what Tool `github` offers is accepted.
#[must_use]
pub fn drift(name: &str) -> Value {
    json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name},
        "spec": {"request": {
            "purpose": "Drift", "tool": "github", "definition": "sha256:d", "arguments": "{\"operations\":[]}",
            "destination": "http://x/mcp", "message": "?", "requirements": [{"policy": "github", "quorum": 1}],
            "requestedBy": "", "expiresAt": "2036-11-30T00:00:00Z", "nonce": "n", "digest": DIGEST,
        }},
    })
}

/// An entry of `spec.decisions`: an Allow by `by`, with the fields of `more`; null takes one away.
#[must_use]
pub fn entry(by: &str, more: &Value) -> Value {
    let mut entry =
        json!({"policy": "default", "by": by, "digest": DIGEST, "verdict": "Allow", "answer": {"retry": {}}});
    for (field, value) in more.as_object().unwrap() {
        entry[field] = value.clone();
        if value.is_null() {
            entry.as_object_mut().unwrap().remove(field);
        }
    }
    entry
}

/// A Deny, for `entry`.
#[must_use]
pub fn deny() -> Value {
    json!({"verdict": "Deny", "answer": null, "reason": "on second thought"})
}

/// What to apply to Approval `name`.
#[must_use]
pub fn deciding(name: &str, entries: &[Value]) -> String {
    json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name}, "spec": {"decisions": entries}})
        .to_string()
}

/// One decision to apply.
#[must_use]
pub fn decision(name: &str, by: &str, more: &Value) -> String {
    deciding(name, &[entry(by, more)])
}

/// Applies on the server's side in the name of a field manager, as approvers do.
#[must_use]
pub fn decide(who: &Kubectl, manager: &str, body: &str) -> Output {
    who.output(&["apply", "--server-side", "--field-manager", manager, "-f", "-"], Some(body)).unwrap()
}

/// A merge patch.
#[must_use]
pub fn merge(who: &Kubectl, kind: &str, name: &str, patch: &Value) -> Output {
    who.output(&["patch", kind, name, "--type=merge", "-p", &patch.to_string()], None).unwrap()
}

/// A merge patch of status.
#[must_use]
pub fn merge_status(who: &Kubectl, kind: &str, name: &str, status: &Value) -> Output {
    let patch = json!({"status": status}).to_string();
    who.output(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch], None).unwrap()
}

/// Creates.
#[must_use]
pub fn create(who: &Kubectl, object: &Value) -> Output {
    who.output(&["create", "-f", "-"], Some(&object.to_string())).unwrap()
}

/// A namespace where ada, bob and eve may approve for `default`, and mallory may do everything that belay.dev names.
pub struct Stage {
    pub namespace: TempNamespace,
    pub admin: Kubectl,
    pub operator: Kubectl,
    pub ada: Kubectl,
    pub bob: Kubectl,
    pub eve: Kubectl,
    pub mallory: Kubectl,
}

impl Stage {
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        let namespace = TempNamespace::plain(prefix).unwrap();
        let mut objects = vec![
            role("approve", &[rule("decide.belay.dev", "approvalpolicies", Some("default"), "approve")]),
            role("all", &[rule("belay.dev", "*", None, "*")]),
            binding("mallory", "Role", "all"),
        ];
        for user in ["ada", "bob", "eve"] {
            objects.extend([binding(user, "Role", "approve"), binding(user, "ClusterRole", "belay-approver")]);
        }
        let kubectl = namespace.kubectl.clone();
        let stage = Self {
            operator: kubectl.with(&["--as", OPERATOR]),
            ada: kubectl.as_user("ada"),
            bob: kubectl.as_user("bob"),
            eve: kubectl.as_user("eve"),
            mallory: kubectl.as_user("mallory"),
            admin: kubectl,
            namespace,
        };
        stage.apply(&objects);
        stage
    }

    /// With one Approval, `a`, that is asked.
    #[must_use]
    pub fn asked(prefix: &str) -> Self {
        let stage = Self::new(prefix);
        stage.ask("a");
        stage
    }

    pub fn ask(&self, name: &str) {
        self.ask_of(name, &requirements());
    }

    pub fn ask_of(&self, name: &str, requirements: &Value) {
        accepted(|| create(&self.operator, &approval(name, requirements)));
    }

    pub fn seal(&self, name: &str) {
        accepted(|| merge_status(&self.operator, "approval", name, &json!({"sealed": true, "given": "1/1"})));
    }

    /// Applies objects as the cluster's administrator.
    pub fn apply(&self, objects: &[Value]) {
        self.admin.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).unwrap();
    }

    /// Gives `user` this rule, and what it takes to see and change Approvals.
    pub fn grant(&self, user: &str, rule: &Value) {
        let name = format!("{user}-may");
        self.apply(&[
            role(&name, std::slice::from_ref(rule)),
            binding(user, "Role", &name),
            binding(user, "ClusterRole", "belay-approver"),
        ]);
    }

    /// The decisions that Approval `name` holds.
    #[must_use]
    pub fn decisions(&self, name: &str) -> Vec<Value> {
        let object = self.admin.get("approval", name).unwrap();
        object["spec"]["decisions"].as_array().cloned().unwrap_or_default()
    }
}

/// One rule of a Role.
#[must_use]
pub fn rule(group: &str, resource: &str, name: Option<&str>, verb: &str) -> Value {
    let mut rule = json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]});
    if let Some(name) = name {
        rule["resourceNames"] = json!([name]);
    }
    rule
}

#[must_use]
pub fn role(name: &str, rules: &[Value]) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules})
}

#[must_use]
pub fn binding(user: &str, kind: &str, role: &str) -> Value {
    let name = format!("{}-{role}", user.replace(':', "."));
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
    })
}

/// A pod as `restricted` Pod Security takes it, of the account `anyone`; its image is nowhere, so that it never starts.
#[must_use]
pub fn pod(metadata: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {
        "serviceAccountName": "anyone", "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "localhost/nowhere:0", "imagePullPolicy": "Never",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    }})
}
