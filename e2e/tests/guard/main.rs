//! The operator watches its own guard, as a process with its own rights and no others, on a real API server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod waiting_run;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use belay_e2e::process::{Installed, MANIFESTS, Process, get, kubeconfig_of_the_operator, operator};
use belay_e2e::stage::{
    OPERATOR, accepted, approval, binding, create, decide, deciding, decision, requirements, role, rule,
};
use belay_e2e::{BareServer, Kubectl};
use serde_json::{Value, json};

use crate::waiting_run::{ASKS, RUN, answers, wait_for_people};

/// A patrol that finds something wrong looks again after 5 s; the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

/// An operator that has started, and an Approval that is open.
struct Stage {
    installed: Installed,
    process: Process,
    http: SocketAddr,
    data: tempfile::TempDir,
}

const NAMESPACE: &str = "guarded";

impl Stage {
    fn new() -> Self {
        let installed = Installed::new();
        let server = &installed.0;
        server.kubectl.run(&["create", "namespace", NAMESPACE]).unwrap();
        let data = tempfile::tempdir().unwrap();
        wait_for_people(&server.kubectl.with(&["--namespace", NAMESPACE]), NAMESPACE, data.path());
        let (process, http) = operator("guard", data.path(), &kubeconfig_of_the_operator(server, data.path()));
        let stage = Self { installed, process, http, data };
        let asked = approval("a", &requirements());
        let account = stage.here().with(&["--as", OPERATOR]);
        accepted(|| create(&account, &asked));
        stage
    }

    fn server(&self) -> &BareServer {
        &self.installed.0
    }

    fn here(&self) -> Kubectl {
        self.server().kubectl.with(&["--namespace", NAMESPACE])
    }

    /// Waits until the metric says so.
    fn is(&self, up: u8) {
        let metric = format!("\nbelay_admission_guard_up {up}\n");
        let look = || -> Result<()> {
            let page = get(self.http, "/metrics")?;
            ensure!(page.contains(&metric), "not {metric}: {page}");
            Ok(())
        };
        self.server().soon(look).unwrap();
    }

    /// Waits for the line of the log that says why it is down.
    fn says(&self, why: &str) {
        let (line, _) = self.process.says(why, SOON);
        assert!(line.contains("the admission guard is down: no approval is honoured"), "{line}");
    }

    fn run(&self, arguments: &[&str]) {
        self.server().kubectl.run(arguments).unwrap();
    }

    /// As `belay doctor` says.
    fn restore(&self) {
        let rules = format!("{MANIFESTS}/admission");
        self.run(&["apply", "--server-side", "--force-conflicts", "-k", &rules]);
        self.is(1);
    }

    fn doctor(&self) -> String {
        let folder = std::env::var("BELAY_BIN").unwrap();
        let mut belay = Command::new(format!("{folder}/belay"));
        let output = belay.arg("doctor").env("KUBECONFIG", &self.server().kubeconfig).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.process.child.kill();
        let _ = self.server().kubectl.run(&["delete", "namespace", NAMESPACE, "--timeout=60s"]);
    }
}

fn policy(kubectl: &Kubectl, kind: &str) -> (Value, Value) {
    let object = kubectl.get(kind, "belay-approvals").unwrap();
    (object["metadata"]["uid"].clone(), object["metadata"]["generation"].clone())
}

const BINDING: &str = "validatingadmissionpolicybinding";
const POLICY: &str = "validatingadmissionpolicy";

/// One test, since what it takes away is everybody's.
#[test]
fn the_guard_goes_down_with_any_of_its_rules_and_up_again_when_they_are_back() {
    let stage = Stage::new();
    stage.is(1);
    what_was_forged_is_not_honoured_and_what_people_decide_afterwards_is(&stage);
    a_binding_that_is_deleted(&stage);
    a_binding_that_only_audits(&stage);
    a_policy_that_looks_away(&stage);
    a_rule_about_something_else(&stage);
    an_operator_that_may_not_forge(&stage);
}

/// The Approval that the run waits for, once it is another one than `before`.
fn asked(stage: &Stage, before: &str) -> String {
    let look = || -> Result<String> {
        let run = stage.here().get("agentrun", RUN)?;
        let on = &run["status"]["waitingOn"];
        let name = on["name"].as_str().unwrap_or_default();
        ensure!(on["kind"] == "approval" && name != before, "{run}");
        stage.here().get("approval", name)?;
        Ok(name.to_owned())
    };
    stage.server().soon(look).unwrap()
}

/// Decisions of everybody, written by mallory, who may change Approvals and decide nothing.
fn forge(stage: &Stage, approval: &str) {
    let digest = stage.here().get("approval", approval).unwrap()["spec"]["request"]["digest"].clone();
    let by = |user: &str, verdict: &str| json!({"policy": ASKS, "by": user, "digest": digest, "verdict": verdict});
    let service_account = format!("system:serviceaccount:{NAMESPACE}:robot");
    let decisions = [by("ada", "Allow"), by("bob", "Allow"), by(&service_account, "Allow"), by("zoe", "Deny")];
    let mallory = stage.here().as_user("mallory");
    accepted(|| decide(&mallory, "mallory", &deciding(approval, &decisions)));
}

/// A run of the operator's own: without the guard, the Deny would settle its question at once.
fn what_was_forged_is_not_honoured_and_what_people_decide_afterwards_is(stage: &Stage) {
    let may = rule("decide.belay.dev", "approvalpolicies", Some(ASKS), "approve");
    let all = role("all", &[rule("belay.dev", "*", None, "*")]);
    let objects = [
        all,
        binding("mallory", "Role", "all"),
        role("may", &[may]),
        binding("ada", "Role", "may"),
        binding("ada", "ClusterRole", "belay-approver"),
    ];
    for object in objects {
        stage.here().apply(&object.to_string()).unwrap();
    }
    let first = asked(stage, "");
    stage.run(&["delete", BINDING, "belay-approvals"]);
    stage.is(0);
    forge(stage, &first);
    let waits = || -> Result<()> {
        let run = stage.here().get("agentrun", RUN)?;
        ensure!(
            run.to_string().contains("do not count for now") || run.to_string().contains("no decision counts"),
            "{run}"
        );
        Ok(())
    };
    stage.server().soon(waits).unwrap();
    assert_eq!(answers(NAMESPACE, stage.data.path()), Vec::<Value>::new());
    stage.restore();
    let second = asked(stage, &first);
    let sealed = |name: &str| stage.here().get("approval", name).unwrap()["status"]["sealed"].clone();
    assert_eq!((sealed(&first), sealed(&second)), (json!(true), Value::Null));
    let settled = answers(NAMESPACE, stage.data.path());
    assert!(settled.len() == 1 && settled[0]["Withdrawn"].is_object(), "{settled:?}");

    let request = stage.here().get("approval", &second).unwrap()["spec"]["request"].clone();
    let no =
        json!({"policy": ASKS, "by": "ada", "digest": request["digest"], "verdict": "Deny", "reason": "not this one"});
    let ada = stage.here().as_user("ada");
    accepted(|| decide(&ada, "ada", &deciding(&second, std::slice::from_ref(&no))));
    let honoured = || -> Result<()> {
        let settled = answers(NAMESPACE, stage.data.path());
        ensure!(settled.len() == 2 && settled[1]["Denied"]["by"] == "ada", "{settled:?}");
        Ok(())
    };
    stage.server().soon(honoured).unwrap();
}

fn a_binding_that_is_deleted(stage: &Stage) {
    let kubectl = &stage.server().kubectl;
    let before = (policy(kubectl, POLICY), policy(kubectl, BINDING));
    stage.run(&["delete", BINDING, "belay-approvals"]);
    stage.is(0);
    stage.says("ValidatingAdmissionPolicyBinding belay-approvals is missing: kubectl apply --server-side");
    let report = stage.doctor();
    let bad = "BAD   ValidatingAdmissionPolicyBinding belay-approvals is missing\n      no approval is honoured until: \
               kubectl apply --server-side --force-conflicts -k manifests/admission";
    assert!(report.contains(bad), "{report}");
    let events = || -> Result<()> {
        let events = kubectl.run(&["-n", "belay-system", "get", "events", "-o", "json"])?;
        ensure!(events.contains("AdmissionGuardDown") && events.contains("no approval is honoured"), "{events}");
        Ok(())
    };
    stage.server().soon(events).unwrap();
    // Nobody is asked whether mallory may, and in whose name she does.
    let mallory = stage.here().as_user("mallory");
    accepted(|| decide(&mallory, "mallory", &decision("a", "ada", &serde_json::json!({}))));
    stage.restore();
    let forged = stage.here().get("approval", "a").unwrap()["spec"]["decisions"].clone();
    assert_eq!(forged.as_array().map(Vec::len), Some(1), "the forgery stays, and the probe is good: the stamp tells");
    let after = (policy(kubectl, POLICY), policy(kubectl, BINDING));
    assert!(before.0 == after.0 && before.1 != after.1, "{before:?} {after:?}");
}

fn a_binding_that_only_audits(stage: &Stage) {
    let kubectl = &stage.server().kubectl;
    let before = policy(kubectl, BINDING);
    stage.run(&[
        "patch",
        BINDING,
        "belay-approvals",
        "--type=merge",
        "-p",
        r#"{"spec":{"validationActions":["Audit"]}}"#,
    ]);
    stage.is(0);
    stage.says("ValidatingAdmissionPolicyBinding belay-approvals is not as it was shipped");
    stage.restore();
    let after = policy(kubectl, BINDING);
    assert!(before.0 == after.0 && before.1 != after.1, "changed and changed back: {before:?} {after:?}");
}

fn a_policy_that_looks_away(stage: &Stage) {
    let kubectl = &stage.server().kubectl;
    let before = policy(kubectl, POLICY);
    let away = r#"[{"op":"add","path":"/spec/matchConditions/-","value":{"name":"away","expression":"request.userInfo.username != 'mallory'"}}]"#;
    stage.run(&["patch", POLICY, "belay-approvals", "--type=json", "-p", away]);
    stage.is(0);
    stage.says("ValidatingAdmissionPolicy belay-approvals is not as it was shipped");
    let back = r#"[{"op":"remove","path":"/spec/matchConditions/2"}]"#;
    stage.run(&["patch", POLICY, "belay-approvals", "--type=json", "-p", back]);
    stage.is(1);
    let after = policy(kubectl, POLICY);
    assert!(before.0 == after.0 && before.1 != after.1, "{before:?} {after:?}");
}

fn a_rule_about_something_else(stage: &Stage) {
    stage.run(&["delete", BINDING, "belay-runner-pods"]);
    stage.is(0);
    stage.says("ValidatingAdmissionPolicyBinding belay-runner-pods is missing");
    stage.restore();
}

/// A Forbidden is no proof, though the forgery was refused.
fn an_operator_that_may_not_forge(stage: &Stage) {
    let system = &stage.server().kubectl;
    let role = system.get("clusterrole", "belay-operator").unwrap();
    let mut less = role.clone();
    for rule in less["rules"].as_array_mut().unwrap() {
        if rule["resources"][0] == "approvals" {
            rule["verbs"].as_array_mut().unwrap().retain(|verb| verb != "patch");
        }
    }
    let patch = serde_json::json!({"rules": less["rules"]}).to_string();
    stage.run(&["patch", "clusterrole", "belay-operator", "--type=merge", "-p", &patch]);
    // A change of a rule has it look at once.
    stage.run(&["annotate", BINDING, "belay-approvals", "look=now", "--overwrite"]);
    stage.is(0);
    stage.says("cannot be seen");
    let patch = serde_json::json!({"rules": role["rules"]}).to_string();
    stage.run(&["patch", "clusterrole", "belay-operator", "--type=merge", "-p", &patch]);
    stage.is(1);
}
