//! Definitions: who may accept what a Tool's server offers, and that nobody forges what was accepted.

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, create, decide, decision, deny, drift, merge_status, refused, rule};
use serde_json::{Value, json};

const NEEDS: &str = "needs the verb approve on tools.decide.belay.dev github";

/// What a decision on a Drift of Tool `github` says.
fn on_the_tool(more: &Value) -> Value {
    let mut entry = json!({"policy": "github", "answer": null});
    for (field, value) in more.as_object().unwrap() {
        entry[field] = value.clone();
    }
    entry
}

/// With the question `d` about Tool `github`, on which carol may approve.
fn drifted(prefix: &str) -> Stage {
    let stage = Stage::new(prefix);
    accepted(|| create(&stage.operator, &drift("d")));
    stage.grant("carol", &rule("decide.belay.dev", "tools", Some("github"), "approve"));
    stage
}

#[test]
fn whoever_may_approve_on_the_tool_accepts_and_still_denies() {
    let stage = drifted("atk-drift");
    let carol = stage.admin.as_user("carol");
    accepted(|| decide(&carol, "carol", &decision("d", "carol", &on_the_tool(&json!({})))));
    accepted(|| decide(&carol, "carol-deny", &decision("d", "carol", &on_the_tool(&deny()))));
    assert_eq!(stage.decisions("d").len(), 2);
}

#[test]
fn the_verb_on_policies_on_another_tool_or_in_the_real_group_accepts_nothing() {
    let stage = drifted("atk-drift-verb");
    // ada may approve on the policy `default`, mallory everything that belay.dev names.
    stage.grant("dave", &rule("decide.belay.dev", "approvalpolicies", Some("github"), "approve"));
    stage.grant("erin", &rule("decide.belay.dev", "tools", Some("files"), "approve"));
    stage.grant("fred", &rule("belay.dev", "tools", Some("github"), "approve"));
    stage.grant("gina", &rule("decide.belay.dev", "tools", Some("github"), "use"));
    for user in ["ada", "mallory", "dave", "erin", "fred", "gina"] {
        let who = stage.admin.as_user(user);
        refused(NEEDS, || decide(&who, user, &decision("d", user, &on_the_tool(&json!({})))));
    }
    assert_eq!(stage.decisions("d"), Vec::<Value>::new());
}

#[test]
fn the_verb_on_a_tool_decides_no_call_of_it() {
    let stage = drifted("atk-drift-call");
    stage.ask("a");
    let carol = stage.admin.as_user("carol");
    refused("needs the verb approve on approvalpolicies.decide.belay.dev default", || {
        decide(&carol, "carol", &decision("a", "carol", &json!({})))
    });
}

#[test]
fn a_decision_on_a_drift_is_signed_by_its_person_on_that_digest_and_for_that_tool() {
    let stage = drifted("atk-drift-sign");
    stage.grant("carol", &rule("decide.belay.dev", "tools", None, "approve"));
    let carol = stage.admin.as_user("carol");
    let table = [
        (json!({"digest": "sha256:other"}), "the decision names another request: its digest differs"),
        (json!({"by": "ada"}), "a decision is signed by the one who makes it: you are carol"),
        (json!({"policy": "files"}), "not a policy that asked"),
        (json!({"answer": {"retry": {}}}), "on a Drift a decision carries no answer"),
    ];
    for (more, words) in table {
        refused(words, || decide(&carol, "carol", &decision("d", "carol", &on_the_tool(&more))));
    }
    let robot = "system:serviceaccount:default:robot";
    stage.grant(robot, &rule("decide.belay.dev", "tools", Some("github"), "approve"));
    let who = stage.admin.with(&["--as", robot]);
    refused("only people decide", || decide(&who, "robot", &decision("d", robot, &on_the_tool(&json!({})))));
}

#[test]
fn a_sealed_drift_takes_no_decision_and_nobody_else_makes_one() {
    let stage = drifted("atk-drift-seal");
    stage.seal("d");
    let carol = stage.admin.as_user("carol");
    refused("too late: this Approval is sealed", || {
        decide(&carol, "carol", &decision("d", "carol", &on_the_tool(&json!({}))))
    });
    for who in [&stage.mallory, &stage.admin] {
        refused("only the operator creates, deletes or writes the status", || create(who, &drift("mine")));
    }
}

#[test]
fn a_drift_that_names_a_call_or_another_requirement_is_no_question() {
    let stage = Stage::new("atk-drift-shape");
    let with = |change: &Value| {
        let mut object = drift("d");
        for (field, value) in change.as_object().unwrap() {
            object["spec"]["request"][field] = value.clone();
        }
        object
    };
    let about_a_tool = "a Drift is about a Tool: it names no run, callId";
    let table = [
        (json!({"callId": "c1"}), about_a_tool),
        (json!({"run": {"name": "r", "uid": "u"}}), about_a_tool),
        (
            json!({"requirements": [{"policy": "default", "quorum": 1}]}),
            "on a Drift the one requirement names the Tool",
        ),
        (json!({"purpose": "Call"}), "a question about a call names run, callId"),
        (json!({"purpose": "Unknown"}), "a question about a call names run, callId"),
    ];
    for (change, words) in table {
        refused(words, || create(&stage.operator, &with(&change)));
    }
}

#[test]
fn nobody_forges_what_a_tool_has_accepted_or_what_it_asks() {
    let stage = Stage::new("atk-drift-status");
    let tool = json!({"apiVersion": "belay.dev/v1alpha1", "kind": "Tool", "metadata": {"name": "github"},
        "spec": {"mcp": {"url": "http://x/mcp"}},
        "status": {"operations": [{"name": "drop", "digest": "sha256:mine"}]}});
    stage.apply(&[tool]);
    // A Belay on this cluster may have written a status of its own by now.
    let made = stage.admin.get("tool", "github").unwrap();
    assert!(made.pointer("/status/operations").is_none(), "nor when it is made: {}", made["status"]);
    let guard = json!({"policyUid": "p", "policyGeneration": 1, "bindingUid": "b", "bindingGeneration": 1});
    let question = json!({"approval": "d", "uid": "u", "nonce": "n", "digest": "sha256:d", "expiresAt": "2036-11-30T00:00:00Z",
        "guard": guard});
    let forged = [
        json!({"operations": [{"name": "set_labels", "digest": "sha256:mine"}]}),
        json!({"drift": {"digest": "sha256:d", "question": question}}),
        json!({"drift": null, "acceptance": {"approval": "d", "by": ["ada"], "at": "2026-11-30T00:00:00Z"}}),
    ];
    for status in forged {
        for who in [&stage.mallory, &stage.admin] {
            refused("only the operator writes the status of what belongs to belay.dev", || {
                merge_status(who, "tool", "github", &status)
            });
        }
        accepted(|| merge_status(&stage.operator, "tool", "github", &status));
    }
}
