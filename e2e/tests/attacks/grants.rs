//! More than one call allowed by one yes: who may say so, how far, and who makes and changes what stands for it.

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, approval, create, decide, decision, merge, merge_status, refused, rule};
use serde_json::{Value, json};

const BEYOND: &str = "answer.grant needs a policy that lets people give it";
const ONLY: &str = "only the operator makes an ApprovalGrant";

/// A call of a run that eve asked for: `default` lets people give five more in a minute, `owners` none.
fn asked(prefix: &str) -> Stage {
    let stage = Stage::new(prefix);
    let requirements = json!([
        {"policy": "default", "quorum": 1, "separationOfDuty": true, "grants": {"maxCount": 5, "maxSeconds": 60}},
        {"policy": "owners", "quorum": 1}]);
    let mut call = approval("a", &requirements);
    call["spec"]["request"]["purpose"] = json!("Call");
    accepted(|| create(&stage.operator, &call));
    stage
}

fn grant(count: i32, seconds: i32) -> Value {
    json!({"answer": {"grant": {"when": "args.repo == 'x'", "count": count, "seconds": seconds}}})
}

/// What the operator would make of it.
fn made(name: &str) -> Value {
    json!({
        "apiVersion": "belay.dev/v1alpha1", "kind": "ApprovalGrant", "metadata": {"name": name},
        "spec": {
            "run": {"name": "r", "uid": "u"}, "approval": "a", "by": ["ada"], "policy": "default", "tool": "github",
            "operation": "delete_repo", "definition": "sha256:d", "when": "args.repo == 'x'", "count": 5, "seconds": 60,
            "expiresAt": "2036-11-30T00:00:00Z", "digest": "sha256:g",
        },
    })
}

fn granted(prefix: &str) -> Stage {
    let stage = Stage::new(prefix);
    accepted(|| create(&stage.operator, &made("g")));
    stage
}

#[test]
fn whoever_may_say_yes_may_allow_as_much_more_as_the_policy_says() {
    let stage = asked("atk-grant");
    accepted(|| decide(&stage.ada, "ada", &decision("a", "ada", &grant(5, 60))));
    assert_eq!(stage.decisions("a")[0]["answer"]["grant"]["count"], 5);
}

#[test]
fn more_than_the_policy_says_is_refused() {
    let stage = asked("atk-beyond");
    for (count, seconds) in [(6, 60), (5, 61)] {
        refused(BEYOND, || decide(&stage.ada, "ada", &decision("a", "ada", &grant(count, seconds))));
    }
    refused("spec.decisions[0].answer.grant.count", || decide(&stage.ada, "ada", &decision("a", "ada", &grant(0, 60))));
    refused("spec.decisions[0].answer.grant.count", || {
        decide(&stage.ada, "ada", &decision("a", "ada", &grant(-1, 60)))
    });
    let long = json!({"answer": {"grant": {"when": "a".repeat(1025), "count": 1, "seconds": 1}}});
    refused("spec.decisions[0].answer.grant.when", || decide(&stage.ada, "ada", &decision("a", "ada", &long)));
    assert_eq!(stage.decisions("a"), Vec::<Value>::new());
}

#[test]
fn a_policy_that_lets_nobody_allow_more_is_refused_a_grant() {
    let stage = asked("atk-nogrant");
    stage.grant("zoe", &rule("decide.belay.dev", "approvalpolicies", Some("owners"), "approve"));
    let zoe = stage.admin.as_user("zoe");
    let mut more = grant(1, 1);
    more["policy"] = json!("owners");
    refused(BEYOND, || decide(&zoe, "zoe", &decision("a", "zoe", &more)));
    accepted(|| decide(&zoe, "zoe", &decision("a", "zoe", &json!({"policy": "owners", "answer": null}))));
}

#[test]
fn a_no_allows_nothing_more_and_an_unknown_call_is_no_occasion() {
    let stage = asked("atk-denygrant");
    let mut no = grant(1, 1);
    no["verdict"] = json!("Deny");
    refused("or an Allow answer.grant", || decide(&stage.ada, "ada", &decision("a", "ada", &no)));
    let unknown = Stage::new("atk-unkgrant");
    unknown.ask_of("a", &json!([{"policy": "default", "quorum": 1, "grants": {"maxCount": 5, "maxSeconds": 60}}]));
    refused(BEYOND, || decide(&unknown.ada, "ada", &decision("a", "ada", &grant(1, 1))));
}

#[test]
fn a_grant_wants_the_verb_the_own_name_and_no_requester_like_every_yes() {
    let stage = asked("atk-grantwho");
    refused("needs the verb approve on approvalpolicies.decide.belay.dev default", || {
        decide(&stage.mallory, "mallory", &decision("a", "mallory", &grant(1, 1)))
    });
    refused("a decision is signed by the one who makes it", || {
        decide(&stage.ada, "ada", &decision("a", "bob", &grant(1, 1)))
    });
    refused("whoever asked for the run tries to approve it", || {
        decide(&stage.eve, "eve", &decision("a", "eve", &grant(1, 1)))
    });
}

#[test]
fn a_plain_yes_does_not_become_more_afterwards() {
    let stage = asked("atk-grantlate");
    accepted(|| decide(&stage.ada, "ada", &decision("a", "ada", &json!({"answer": null}))));
    refused("a decision, once written, stays", || decide(&stage.ada, "ada", &decision("a", "ada", &grant(5, 60))));
}

#[test]
fn nobody_but_the_operator_makes_an_approvalgrant() {
    let stage = Stage::new("atk-forgegrant");
    for who in [&stage.mallory, &stage.admin] {
        refused(ONLY, || create(who, &made("g")));
    }
    refused("cannot create resource", || create(&stage.ada, &made("g")));
}

#[test]
fn nobody_changes_an_approvalgrant_its_owner_or_what_is_left() {
    let stage = granted("atk-editgrant");
    for who in [&stage.mallory, &stage.admin] {
        for patch in [
            json!({"metadata": {"finalizers": ["example.com/stay"]}}),
            json!({"metadata": {"labels": {"team": "mine"}}}),
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "u"}]}}),
        ] {
            refused(ONLY, || merge(who, "approvalgrant", "g", &patch));
        }
        for spec in [json!({"count": 1000}), json!({"when": "true"}), json!({"run": {"name": "other", "uid": "v"}})] {
            refused("spec cannot change", || merge(who, "approvalgrant", "g", &json!({"spec": spec})));
        }
        refused("only the operator writes the status", || {
            merge_status(who, "approvalgrant", "g", &json!({"left": 1000}))
        });
    }
    refused("cannot patch resource", || {
        merge(&stage.operator, "approvalgrant", "g", &json!({"metadata": {"labels": {"a": "b"}}}))
    });
    accepted(|| merge_status(&stage.operator, "approvalgrant", "g", &json!({"left": 4})));
    let columns = stage.admin.run(&["get", "approvalgrants"]).unwrap();
    assert!(columns.starts_with("NAME   RUN   POLICY    TOOL     OPERATION     LEFT   EXPIRES"), "{columns}");
}

#[test]
fn an_approver_takes_back_what_was_allowed_by_deleting_it_and_a_stranger_does_not() {
    let stage = granted("atk-revoke");
    let stranger = stage.admin.as_user("stranger");
    refused("cannot delete resource", || stranger.output(&["delete", "approvalgrant", "g"], None).unwrap());
    refused("cannot delete resource", || stage.operator.output(&["delete", "approvalgrant", "g"], None).unwrap());
    accepted(|| stage.ada.output(&["delete", "approvalgrant", "g"], None).unwrap());
    refused("not found", || stage.admin.output(&["get", "approvalgrant", "g"], None).unwrap());
}
