//! What a decision has to be, and that it stays.

use belay_e2e::Stage;
use belay_e2e::stage::{accepted, binding, decide, deciding, decision, deny, entry, merge, refused, role, rule};
use serde_json::{Value, json};

const STAYS: &str = "a decision, once written, stays";
const ANOTHER_REQUEST: &str = "the decision names another request: its digest differs";

/// ada decides on `a`, with `more` in her decision.
fn ada_is_refused(prefix: &str, more: &Value, words: &str) {
    let stage = Stage::asked(prefix);
    refused(words, || decide(&stage.ada, "ada", &decision("a", "ada", more)));
    assert_eq!(stage.decisions("a"), Vec::<Value>::new());
}

#[test]
fn a_decision_in_anothers_name_is_refused() {
    ada_is_refused("atk-by", &json!({"by": "bob"}), "a decision is signed by the one who makes it: you are ada");
}

#[test]
fn a_decision_in_a_name_that_looks_like_ones_own_is_refused() {
    for twin in ["Ada", "\u{430}da", "ada ", "ada\u{200b}"] {
        ada_is_refused("atk-twin", &json!({"by": twin}), "a decision is signed by the one who makes it: you are ada");
    }
}

#[test]
fn a_decision_with_another_digest_is_refused() {
    ada_is_refused("atk-digest", &json!({"digest": "sha256:other"}), ANOTHER_REQUEST);
}

#[test]
fn a_decision_without_a_digest_is_refused() {
    ada_is_refused("atk-nodigest", &json!({"digest": null}), "spec.decisions[0].digest: Required value");
    ada_is_refused("atk-empty", &json!({"digest": ""}), "spec.decisions[0].digest");
}

#[test]
fn a_decision_with_a_shortened_digest_is_refused() {
    ada_is_refused("atk-short", &json!({"digest": "sha256:read"}), ANOTHER_REQUEST);
}

#[test]
fn a_decision_with_the_digest_in_other_case_is_refused() {
    ada_is_refused("atk-case", &json!({"digest": "SHA256:READ-ME"}), ANOTHER_REQUEST);
}

#[test]
fn a_decision_for_a_policy_that_did_not_ask_is_refused() {
    let stage = Stage::asked("atk-policy");
    let mine = rule("decide.belay.dev", "approvalpolicies", Some("mine"), "approve");
    stage.grant("ada", &mine);
    refused("not a policy that asked", || decide(&stage.ada, "ada", &decision("a", "ada", &json!({"policy": "mine"}))));
}

#[test]
fn a_role_with_everything_on_belay_dev_decides_nothing() {
    let stage = Stage::asked("atk-star");
    refused("needs the verb approve on approvalpolicies.decide.belay.dev default", || {
        decide(&stage.mallory, "mallory", &decision("a", "mallory", &json!({})))
    });
}

#[test]
fn the_verb_on_another_policy_or_in_the_real_api_group_decides_nothing() {
    let stage = Stage::asked("atk-verb");
    stage.grant("carol", &rule("decide.belay.dev", "approvalpolicies", Some("other"), "approve"));
    stage.grant("dave", &rule("belay.dev", "approvalpolicies", Some("default"), "approve"));
    for user in ["carol", "dave"] {
        let who = stage.admin.as_user(user);
        refused("needs the verb approve on approvalpolicies.decide.belay.dev default", || {
            decide(&who, user, &decision("a", user, &json!({})))
        });
    }
}

#[test]
fn the_verb_in_another_namespace_decides_nothing() {
    let (stage, elsewhere) = (Stage::asked("atk-here"), Stage::new("atk-there"));
    elsewhere.grant("frank", &rule("decide.belay.dev", "approvalpolicies", Some("default"), "approve"));
    stage.grant("frank", &rule("belay.dev", "agents", None, "get"));
    let frank = stage.admin.as_user("frank");
    refused("needs the verb approve", || decide(&frank, "frank", &decision("a", "frank", &json!({}))));
}

#[test]
fn whoever_asked_for_the_run_may_deny_but_not_allow_under_separation_of_duty() {
    let stage = Stage::asked("atk-duty");
    refused("whoever asked for the run tries to approve it", || {
        decide(&stage.eve, "eve", &decision("a", "eve", &json!({})))
    });
    accepted(|| decide(&stage.eve, "eve", &decision("a", "eve", &deny())));
}

#[test]
fn a_decision_for_an_earlier_request_of_the_same_name_is_refused() {
    let stage = Stage::asked("atk-again");
    let early = stage.admin.get("approval", "a").unwrap();
    // The operator holds no right to delete one, so that the run's deletion does it, as the garbage collector would.
    let collector = "system:serviceaccount:kube-system:generic-garbage-collector";
    stage
        .apply(&[role("collect", &[rule("belay.dev", "approvals", None, "*")]), binding(collector, "Role", "collect")]);
    let collector = stage.admin.with(&["--as", collector]);
    accepted(|| collector.output(&["delete", "approval", "a"], None).unwrap());
    let mut anew = belay_e2e::stage::approval("a", &belay_e2e::stage::requirements());
    anew["spec"]["request"]["digest"] = json!("sha256:read-me-too");
    accepted(|| belay_e2e::stage::create(&stage.operator, &anew));
    refused(ANOTHER_REQUEST, || decide(&stage.ada, "ada", &decision("a", "ada", &json!({}))));
    let mut with_uid: Value =
        serde_json::from_str(&decision("a", "ada", &json!({"digest": "sha256:read-me-too"}))).unwrap();
    with_uid["metadata"]["uid"] = early["metadata"]["uid"].clone();
    refused("metadata.uid: Invalid value", || decide(&stage.ada, "ada", &with_uid.to_string()));
}

#[test]
fn a_request_is_never_changed() {
    let stage = Stage::asked("atk-request");
    for change in [json!({"arguments": "{\"force\":true}"}), json!({"digest": "sha256:other"}), json!({"nonce": "m"})] {
        for who in [&stage.ada, &stage.mallory, &stage.admin] {
            let patch = json!({"spec": {"request": change}});
            refused("spec.request cannot change", || merge(who, "approval", "a", &patch));
        }
    }
}

/// With ada's Allow in it.
fn allowed(prefix: &str) -> Stage {
    let stage = Stage::asked(prefix);
    accepted(|| decide(&stage.ada, "ada", &decision("a", "ada", &json!({}))));
    stage
}

#[test]
fn a_decision_is_never_removed() {
    let stage = allowed("atk-remove");
    for who in [&stage.ada, &stage.bob, &stage.mallory, &stage.admin] {
        refused("decisions cannot be removed", || merge(who, "approval", "a", &json!({"spec": {"decisions": null}})));
        refused(STAYS, || merge(who, "approval", "a", &json!({"spec": {"decisions": []}})));
    }
    // An apply without it takes back what the same manager wrote.
    refused(STAYS, || decide(&stage.ada, "ada", &deciding("a", &[entry("ada", &deny())])));
}

#[test]
fn a_decision_is_never_edited() {
    let stage = allowed("atk-edit");
    let happened = entry("ada", &json!({"answer": {"happened": {"result": "x"}}}));
    for who in [&stage.ada, &stage.bob, &stage.mallory] {
        refused(STAYS, || merge(who, "approval", "a", &json!({"spec": {"decisions": [happened]}})));
    }
    refused(STAYS, || decide(&stage.ada, "ada", &deciding("a", std::slice::from_ref(&happened))));
}

#[test]
fn a_decision_is_never_given_twice() {
    let stage = allowed("atk-twice");
    let twice = [entry("ada", &json!({})), entry("ada", &json!({"reason": "again"}))];
    refused("duplicate", || decide(&stage.ada, "ada-more", &deciding("a", &twice)));
    refused("Duplicate value", || merge(&stage.ada, "approval", "a", &json!({"spec": {"decisions": twice}})));
    accepted(|| decide(&stage.ada, "ada-again", &decision("a", "ada", &json!({}))));
    assert_eq!(stage.decisions("a").len(), 1);
}

#[test]
fn a_merge_patch_in_ones_own_name_does_not_push_out_anothers_decision() {
    let stage = allowed("atk-merge");
    let only = json!({"spec": {"decisions": [entry("bob", &json!({}))]}});
    refused(STAYS, || merge(&stage.bob, "approval", "a", &only));
}

#[test]
fn an_apply_under_anothers_field_manager_takes_nothing_over() {
    let stage = allowed("atk-manager");
    refused(STAYS, || decide(&stage.bob, "ada", &decision("a", "bob", &json!({}))));
    let over = entry("ada", &json!({"reason": "mine now"}));
    let forced = ["apply", "--server-side", "--force-conflicts", "--field-manager", "bob", "-f", "-"];
    let body = deciding("a", std::slice::from_ref(&over));
    refused(STAYS, || stage.bob.output(&forced, Some(&body)).unwrap());
    assert_eq!(stage.decisions("a"), [entry("ada", &json!({}))]);
}

#[test]
fn a_deny_finds_room_in_a_list_that_was_filled_with_allows() {
    let stage = Stage::new("atk-full");
    let policies: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    let requirements: Vec<Value> = policies.iter().map(|policy| json!({"policy": policy, "quorum": 8})).collect();
    stage.ask_of("a", &json!(requirements));
    let each = |user: &str, more: &Value| -> Vec<Value> {
        let of = |policy: &String| {
            let mut one = entry(user, more);
            one["policy"] = json!(policy);
            one
        };
        policies.iter().map(of).collect()
    };
    let any = rule("decide.belay.dev", "approvalpolicies", None, "approve");
    for user in ["f1", "f2", "f3"] {
        stage.grant(user, &any);
        let (who, body) = (stage.admin.as_user(user), deciding("a", &each(user, &json!({}))));
        accepted(|| decide(&who, user, &body));
    }
    stage.grant("f4", &any);
    let who = stage.admin.as_user("f4");
    let one = deciding("a", each("f4", &json!({})).get(..1).unwrap());
    refused("so that a Deny always finds room", || decide(&who, "f4", &one));
    let no = deciding("a", each("f4", &deny()).get(..1).unwrap());
    accepted(|| decide(&who, "f4", &no));
}

#[test]
fn a_decision_at_creation_is_refused_even_from_the_operator() {
    let stage = Stage::new("atk-born");
    let mut born = belay_e2e::stage::approval("a", &belay_e2e::stage::requirements());
    born["spec"]["decisions"] = json!([entry("ada", &json!({}))]);
    refused("an Approval is made without decisions", || belay_e2e::stage::create(&stage.operator, &born));
    for who in [&stage.ada, &stage.mallory, &stage.admin] {
        // Whom RBAC lets create Approvals, admission does not.
        let output = belay_e2e::stage::create(who, &born);
        assert!(!output.success, "{}", output.stdout);
    }
}

#[test]
fn nothing_is_decided_once_it_is_sealed() {
    let stage = allowed("atk-sealed");
    stage.seal("a");
    refused("too late: this Approval is sealed", || decide(&stage.bob, "bob", &decision("a", "bob", &json!({}))));
    refused("too late: this Approval is sealed", || decide(&stage.bob, "bob", &decision("a", "bob", &deny())));
    refused("too late: this Approval is sealed", || decide(&stage.ada, "ada-deny", &decision("a", "ada", &deny())));
}

#[test]
fn a_deny_before_the_seal_makes_sealing_what_was_read_before_a_conflict() {
    let stage = allowed("atk-race");
    let read = stage.admin.get("approval", "a").unwrap()["metadata"]["resourceVersion"].clone();
    accepted(|| decide(&stage.bob, "bob", &decision("a", "bob", &deny())));
    let seal = json!({"metadata": {"resourceVersion": read}, "status": {"sealed": true}}).to_string();
    refused("the object has been modified", || {
        stage
            .operator
            .output(&["patch", "approval", "a", "--subresource=status", "--type=merge", "-p", &seal], None)
            .unwrap()
    });
}

#[test]
fn two_operators_do_not_both_seal_what_they_read() {
    let stage = allowed("atk-replicas");
    let read = stage.admin.get("approval", "a").unwrap()["metadata"]["resourceVersion"].clone();
    let seal = |given: &str| {
        let seal =
            json!({"metadata": {"resourceVersion": read}, "status": {"sealed": true, "given": given}}).to_string();
        let arguments = ["patch", "approval", "a", "--subresource=status", "--type=merge", "-p", &seal];
        stage.operator.output(&arguments, None).unwrap()
    };
    assert!(seal("1/1").success);
    refused("the object has been modified", || seal("1/2"));
}
