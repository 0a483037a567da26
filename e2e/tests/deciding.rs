//! How people decide with `belay`, in their own names, on a real API server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use belay_e2e::{Kubectl, TempNamespace};
use serde_json::{Value, json};

const OPERATOR: &str = "system:serviceaccount:belay-system:belay-operator";
/// RBAC and admission reach the API server's caches a moment later.
const SOON: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const REFUSED: i32 = 1;
const USAGE: i32 = 2;

/// A namespace with people in it: eve creates runs; eve, ada and bob may approve for `careful`, ada for `owners` too, and
/// mallory for none.
struct Office {
    namespace: TempNamespace,
    operator: Kubectl,
    folder: tempfile::TempDir,
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Office {
    fn new(prefix: &str) -> Self {
        let namespace = TempNamespace::plain(prefix).unwrap();
        for policy in ["careful", "owners"] {
            let role = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": policy},
                "rules": [{"apiGroups": ["decide.belay.dev"], "resources": ["approvalpolicies"], "resourceNames": [policy], "verbs": ["approve"]}],
            });
            namespace.kubectl.apply(&role.to_string()).unwrap();
        }
        let bind = |user: &str, flag: &str, role: &str| {
            let name = format!("{user}-{role}");
            namespace.kubectl.run(&["create", "rolebinding", &name, flag, role, "--user", user]).unwrap();
        };
        for user in ["ada", "bob", "eve", "mallory"] {
            bind(user, "--clusterrole", "belay-approver");
        }
        for (user, policy) in [("ada", "careful"), ("ada", "owners"), ("bob", "careful"), ("eve", "careful")] {
            bind(user, "--role", policy);
        }
        let operator = namespace.kubectl.with(&["--as", OPERATOR]);
        Self { namespace, operator, folder: tempfile::tempdir().unwrap() }
    }

    /// As the operator asks, with the digest over the request. Canonical as it is: keys are sorted, all is ASCII.
    fn ask(&self, name: &str, arguments: &str) {
        let mut request = json!({
            "purpose": "Call", "run": {"name": "r", "uid": "u"}, "callId": "c1", "attempt": 1, "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "arguments": arguments, "destination": "http://x/mcp",
            "callDigest": "sha256:c", "message": "?", "requestedBy": "eve", "expiresAt": "2036-11-30T00:00:00Z",
            "requirements": [{"policy": "careful", "quorum": 2, "separationOfDuty": true}, {"policy": "owners", "quorum": 1}],
            "nonce": name,
        });
        request["digest"] = json!(belay_protocol::Digest::of(request.to_string().as_bytes()).to_string());
        let object = json!({
            "apiVersion": "belay.dev/v1alpha1", "kind": "Approval", "metadata": {"name": name}, "spec": {"request": request},
        });
        soon(|| self.operator.output(&["create", "-f", "-"], Some(&object.to_string())).unwrap().success);
    }

    fn seal(&self, name: &str) {
        let status = r#"{"status":{"sealed":true}}"#;
        self.operator.run(&["patch", "approval", name, "--subresource=status", "--type=merge", "-p", status]).unwrap();
    }

    /// belay as `user` runs it, with a kubeconfig of their own and no terminal.
    fn belay(&self, user: &str, arguments: &[&str]) -> Said {
        let folder = std::env::var("BELAY_BIN").unwrap();
        let output = Command::new(format!("{folder}/belay"))
            .args(["--namespace", &self.namespace.name])
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig(user))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        let path = self.folder.path().join(user);
        if !path.exists() {
            let whole =
                Kubectl::new().run(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]).unwrap();
            let mut config: Value = serde_json::from_str(&whole).unwrap();
            config["users"][0]["user"]["as"] = json!(user);
            std::fs::write(&path, config.to_string()).unwrap();
        }
        path
    }

    fn decisions(&self, name: &str) -> Vec<String> {
        let approval = self.namespace.kubectl.get("approval", name).unwrap();
        let decisions = approval["spec"]["decisions"].as_array().cloned().unwrap_or_default();
        let word = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
        let words = |one: &Value| ["by", "verdict", "policy"].map(|field| word(one, field)).join(" ");
        decisions.iter().map(words).collect()
    }
}

fn soon(act: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !act() {
        assert!(Instant::now() < deadline, "it does not come about");
        std::thread::sleep(LOOK_EVERY);
    }
}

#[test]
fn people_say_yes_each_for_what_they_may_and_a_no_follows_a_yes() {
    let office = Office::new("deciding");
    office.ask("a", r#"{"name":"a"}"#);
    let listed = office.belay("ada", &["approvals"]).stdout;
    assert!(listed.contains("careful(2),owners   0/3"), "{listed}");

    soon(|| office.belay("bob", &["approve", "a", "--yes"]).code == 0);
    assert_eq!(office.decisions("a"), ["bob Allow careful"]);
    let again = office.belay("bob", &["approve", "a", "--yes"]);
    assert!(again.code == 0 && again.stdout.contains("you said so already for careful"), "{}", again.stdout);

    let own = office.belay("eve", &["approve", "a", "--yes"]);
    assert!(
        own.code == REFUSED && own.stderr.contains("you created the run, and careful wants others"),
        "{}",
        own.stderr
    );
    let none = office.belay("mallory", &["approve", "a", "--yes"]);
    assert!(none.code == REFUSED && none.stderr.contains("it needs the verb approve"), "{}", none.stderr);
    let blind = office.belay("ada", &["approve", "a"]);
    assert!(blind.code == USAGE && blind.stderr.contains("no terminal"), "{}", blind.stderr);
    let other = office.belay("ada", &["resolve", "a", "--retry", "--yes"]);
    let at = &office.namespace.name;
    let instead = format!("use belay -n {at} approve a, or belay -n {at} deny a");
    assert!(other.code == REFUSED && other.stderr.contains(&instead), "{}", other.stderr);

    let owners = office.belay("ada", &["approve", "a", "--policy", "owners", "--yes"]);
    assert!(owners.code == 0 && owners.stdout.contains("Given so far: 2/3"), "{}{}", owners.stdout, owners.stderr);
    let both = office.belay("ada", &["approve", "a", "--yes", "--reason", "read it"]);
    assert!(both.code == 0 && both.stdout.contains("Given so far: 3/3"), "{}{}", both.stdout, both.stderr);
    let no = office.belay("ada", &["deny", "a", "--yes", "--reason", "thought again"]);
    assert!(no.code == 0 && no.stdout.contains("a Deny beats every Allow"), "{}{}", no.stdout, no.stderr);
    let mut decisions = office.decisions("a");
    decisions.sort();
    let expected =
        ["ada Allow careful", "ada Allow owners", "ada Deny careful", "ada Deny owners", "bob Allow careful"];
    assert_eq!(decisions, expected);

    office.seal("a");
    let late = office.belay("eve", &["deny", "a", "--yes", "--reason", "late"]);
    assert!(late.code == REFUSED && late.stderr.contains("Approval a is sealed"), "{}", late.stderr);
}

#[test]
fn the_yaml_that_belay_writes_is_applied_by_kubectl_and_the_next_call_is_compared() {
    let office = Office::new("deciding-yaml");
    office.ask("first", r#"{"force":false,"name":"a"}"#);
    let alone = office.belay("ada", &["show", "first"]).stdout;
    assert!(alone.contains("No earlier approved call of github/delete_repo"), "{alone}");
    for user in ["ada", "bob"] {
        soon(|| office.belay(user, &["can-i", "approve", "careful"]).code == 0);
        let yaml = office.belay(user, &["show", "first", "-o", "yaml-decision"]).stdout;
        let person = office.namespace.kubectl.as_user(user);
        let apply = ["apply", "--server-side", "--field-manager", user, "-f", "-"];
        soon(|| person.output(&apply, Some(&yaml)).unwrap().success);
        // Said again in the same manager's name, as whoever adds a decision does, it takes nothing back.
        assert!(person.output(&apply, Some(&yaml)).unwrap().success);
    }
    assert_eq!(office.decisions("first").len(), 3);
    office.seal("first");
    office.ask("second", r#"{"force":true,"name":"a"}"#);
    let compared = office.belay("ada", &["show", "second"]).stdout;
    assert!(compared.contains("Changed since the last approved call of this operation (first"), "{compared}");
    assert!(compared.contains("-   \"force\":false,\n  +   \"force\":true,"), "{compared}");
}
