//! What people may do with an Approval, asked of a real API server by impersonation. What they may not is in attacks/.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, decide, deciding, decision, deny, entry, refused, rule};
use serde_json::{Value, json};

#[test]
fn whoever_holds_the_verb_decides_what_was_read() {
    let stage = Stage::asked("apv-decide");
    accepted(|| decide(&stage.ada, "ada", &decision("a", "ada", &json!({}))));
    assert_eq!(stage.decisions("a").len(), 1);
}

#[test]
fn an_allow_says_what_became_of_the_call() {
    let stage = Stage::asked("apv-answer");
    refused("an Allow carries answer.happened or answer.retry", || {
        decide(&stage.ada, "ada", &decision("a", "ada", &json!({"answer": null})))
    });
    refused("an answer is one of happened, retry, grant and input", || {
        let both = json!({"answer": {"retry": {}, "happened": {"result": "x"}}});
        decide(&stage.ada, "ada", &decision("a", "ada", &both))
    });
}

#[test]
fn a_no_may_follow_ones_own_yes_under_another_field_manager() {
    let stage = Stage::asked("apv-withdraw");
    accepted(|| decide(&stage.ada, "ada", &decision("a", "ada", &json!({}))));
    refused("a decision, once written, stays", || decide(&stage.ada, "ada", &decision("a", "ada", &deny())));
    accepted(|| decide(&stage.ada, "ada-deny", &decision("a", "ada", &deny())));
    accepted(|| decide(&stage.bob, "bob", &decision("a", "bob", &json!({}))));
    assert_eq!(stage.decisions("a").len(), 3);
}

#[test]
fn a_list_of_approvals_says_what_is_asked_of_whom() {
    let stage = Stage::asked("apv-columns");
    stage.seal("a");
    let columns = stage.admin.run(&["get", "approvals"]).unwrap();
    assert!(
        columns.starts_with("NAME   RUN   PURPOSE   TOOL     OPERATION     NEEDS     GIVEN   EXPIRES"),
        "{columns}"
    );
}

/// The API server bounds what a policy may cost: asking for the verb decision by decision has to stay within it.
#[test]
fn one_apply_decides_for_as_many_policies_as_may_ask() {
    let stage = Stage::new("apv-many");
    let policies: Vec<String> = (0..24).map(|number| format!("p{number}")).collect();
    let requirements: Vec<Value> = policies.iter().map(|policy| json!({"policy": policy, "quorum": 1})).collect();
    stage.ask_of("a", &json!(requirements));
    let entries: Vec<Value> = policies.iter().map(|policy| entry("gina", &json!({"policy": policy}))).collect();
    stage.grant("gina", &rule("decide.belay.dev", "approvalpolicies", None, "approve"));
    let gina = stage.admin.as_user("gina");
    accepted(|| decide(&gina, "gina", &deciding("a", &entries)));
    assert_eq!(stage.decisions("a").len(), 24);
    // Without the verb for the last of them, none is taken.
    stage.ask_of("b", &json!(requirements));
    let all_but_one = json!({"apiGroups": ["decide.belay.dev"], "resources": ["approvalpolicies"],
        "resourceNames": policies.get(..23).unwrap(), "verbs": ["approve"]});
    stage.grant("hugo", &all_but_one);
    let hugo = stage.admin.as_user("hugo");
    let entries: Vec<Value> = policies.iter().map(|policy| entry("hugo", &json!({"policy": policy}))).collect();
    refused("needs the verb approve on approvalpolicies.decide.belay.dev p23", || {
        decide(&hugo, "hugo", &deciding("b", &entries))
    });
}
