//! Who is no person, and who pretends to be another.

use std::fs;

use belay_e2e::stage::{
    OPERATOR, accepted, binding, decide, decision, deny, entry, merge, merge_status, refused, role, rule,
};
use belay_e2e::{Kubectl, Stage, TempNamespace};
use serde_json::{Value, json};

const PEOPLE_ONLY: &str = "only people decide";

/// `user` in `groups`, with all that an approver holds.
fn as_approver(stage: &Stage, user: &str, groups: &[&str]) -> Kubectl {
    stage.apply(&[binding(user, "Role", "approve"), binding(user, "ClusterRole", "belay-approver")]);
    let mut arguments = vec!["--as", user];
    for group in groups {
        arguments.extend(["--as-group", group]);
    }
    stage.admin.with(&arguments)
}

#[test]
fn a_service_account_decides_nothing_whatever_it_was_granted() {
    let stage = Stage::asked("atk-account");
    let user = format!("system:serviceaccount:{}:robot", stage.namespace.name);
    let robot = as_approver(&stage, &user, &["system:serviceaccounts", "system:authenticated"]);
    for more in [json!({}), deny()] {
        refused(PEOPLE_ONLY, || decide(&robot, "robot", &decision("a", &user, &more)));
    }
}

#[test]
fn a_user_in_the_groups_of_accounts_or_nodes_decides_nothing() {
    let stage = Stage::asked("atk-groups");
    for group in ["system:serviceaccounts", "system:nodes"] {
        let robot = as_approver(&stage, "robot", &[group, "system:authenticated"]);
        refused(PEOPLE_ONLY, || decide(&robot, "robot", &decision("a", "robot", &json!({}))));
    }
}

#[test]
fn a_component_of_the_cluster_decides_nothing() {
    let stage = Stage::asked("atk-system");
    for user in ["system:admin", "system:node:n1"] {
        let robot = as_approver(&stage, user, &["system:authenticated"]);
        refused(PEOPLE_ONLY, || decide(&robot, "robot", &decision("a", user, &json!({}))));
    }
}

#[test]
fn the_operator_decides_nothing_in_its_own_name_or_in_anothers() {
    let stage = Stage::asked("atk-operator");
    stage.apply(&[binding(OPERATOR, "Role", "approve"), binding(OPERATOR, "ClusterRole", "belay-approver")]);
    refused(PEOPLE_ONLY, || decide(&stage.operator, "belay", &decision("a", OPERATOR, &json!({}))));
    refused("a decision is signed by the one who makes it: you are system:serviceaccount:belay-system", || {
        decide(&stage.operator, "belay", &decision("a", "ada", &json!({})))
    });
}

/// The operator's own dry run reaches admission with no more rights than it is shipped with, and is refused by name.
#[test]
fn a_forged_decision_as_a_dry_run_of_the_operator_is_refused_by_the_name_of_the_policy() {
    let stage = Stage::asked("atk-probe");
    let body = decision("a", "nobody", &deny());
    refused("ValidatingAdmissionPolicy 'belay-approvals' with binding 'belay-approvals' denied request: ", || {
        let arguments = ["apply", "--server-side", "--dry-run=server", "--field-manager=belay-guard", "-f", "-"];
        stage.operator.output(&arguments, Some(&body)).unwrap()
    });
}

/// Somebody with a token of his own, and nothing else to show: no impersonation by the administrator.
fn by_token(stage: &Stage, account: &str) -> (Kubectl, tempfile::TempDir) {
    stage.apply(&[json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}})]);
    let token = stage.admin.run(&["create", "token", account]).unwrap();
    let config = stage.admin.run(&["config", "view", "--raw", "--minify", "-o", "json"]).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["users"][0]["user"] = json!({"token": token.trim()});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    fs::write(&path, config.to_string()).unwrap();
    let kubectl = Kubectl::new().with(&["--kubeconfig", path.to_str().unwrap(), "--namespace", &stage.namespace.name]);
    (kubectl, folder)
}

#[test]
fn impersonating_an_approver_without_the_right_to_is_refused() {
    let stage = Stage::asked("atk-mask");
    let (mallory, _folder) = by_token(&stage, "mallory");
    refused("cannot impersonate resource \"users\"", || {
        let mask = mallory.with(&["--as", "ada"]);
        merge(&mask, "approval", "a", &json!({"spec": {"decisions": [entry("ada", &json!({}))]}}))
    });
}

#[test]
fn a_token_of_our_audience_minted_by_an_editor_is_refused() {
    let namespace = TempNamespace::plain("atk-token").unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "anyone"}});
    let mint = rule("", "serviceaccounts/token", None, "create");
    for object in [account, role("mint", &[mint]), binding("ada", "Role", "mint")] {
        namespace.kubectl.apply(&object.to_string()).unwrap();
    }
    let ada = namespace.kubectl.as_user("ada");
    let token = |who: &Kubectl, audience: &[&str]| {
        let mut arguments = vec!["create", "token", "anyone"];
        for one in audience {
            arguments.extend(["--audience", one]);
        }
        who.output(&arguments, None).unwrap()
    };
    for who in [&ada, &namespace.kubectl] {
        for audience in [&["belay-operator"][..], &["elsewhere", "belay-operator"]] {
            refused("only a kubelet may ask for a token with the audience belay-operator", || token(who, audience));
        }
    }
    accepted(|| token(&ada, &["elsewhere"]));
}

#[test]
fn nobody_but_the_operator_writes_the_status_of_a_run() {
    let stage = Stage::new("atk-run");
    let run = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "AgentRun", "metadata": {"name": "r"},
        "spec": {"agentRef": {"name": "a"}, "input": "go"}});
    stage.apply(&[run]);
    for who in [&stage.mallory, &stage.admin] {
        refused("only the operator writes the status of what belongs to belay.dev", || {
            merge_status(who, "agentrun", "r", &json!({"phase": "Succeeded"}))
        });
    }
}
