//! A yes is there, and what would be sent is not what it was for.

use super::*;

impl Scene {
    /// ada and bob allowed call c1, and that is journaled; the runner has not proposed it again.
    async fn allowed() -> Self {
        let scene = Box::pin(Self::asked()).await;
        scene.decide(&[ada(), bob()]);
        scene.passes().await;
        assert!(matches!(&scene.answers().await[..], [Answer::Allowed { .. }]));
        scene
    }
}

fn is_asked_anew(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Asked { .. })
}

fn is_denied(verdict: &Verdict, why: DenyReason) -> bool {
    matches!(verdict, Verdict::Denied { reason, .. } if *reason == why)
}

/// A runner that crashed between the yes and the send, and whose model said something else this time.
#[rstest]
#[case::other_arguments(json!({"repo": "prod", "count": 1}))]
#[case::one_argument_more(json!({"repo": "caf\u{e9}", "count": 1, "force": true}))]
#[case::a_twin_in_unicode(json!({"repo": "cafe\u{301}", "count": 1}))]
#[case::a_letter_of_another_script(json!({"repo": "\u{441}af\u{e9}", "count": 1}))]
#[case::a_number_as_text(json!({"repo": "caf\u{e9}", "count": "1"}))]
#[case::a_number_next_to_it(json!({"repo": "caf\u{e9}", "count": 1.000_000_000_000_000_2}))]
#[case::the_negative_number(json!({"repo": "caf\u{e9}", "count": -1}))]
#[tokio::test]
async fn other_bytes_are_asked_about_anew(#[case] args: Value) {
    let scene = Scene::allowed().await;
    let verdict = scene.propose("c1", call("github", args)).await;
    assert!(is_asked_anew(&verdict), "{verdict:?}");
    scene.stage.end().await;
}

/// One canonical form, so that people were shown these very bytes.
#[rstest]
#[case("{\"repo\": \"caf\\u00e9\", \"count\": 1.0}")]
#[case("{\"count\": 1e0, \"repo\": \"caf\\u00E9\"}")]
#[tokio::test]
async fn another_spelling_of_the_same_bytes_is_the_same_call(#[case] args: &str) {
    let scene = Scene::allowed().await;
    let verdict = scene.propose("c1", call("github", serde_json::from_str(args).unwrap())).await;
    assert_eq!(verdict, Verdict::Allowed { digest: the_call().digest });
    scene.stage.end().await;
}

/// What a runner that was taken over would propose: a call with the digest that people signed.
#[rstest]
#[case::for_other_arguments(ProposedCall { args: json!({"repo": "prod"}), ..the_call() }, DenyReason::DigestMismatch)]
#[case::for_a_tool_that_is_not_asked_about(ProposedCall { tool: "reader".into(), ..the_call() }, DenyReason::DigestMismatch)]
#[case::for_an_operation_that_is_not_listed(ProposedCall { operation: "delete_repo".into(), ..the_call() }, DenyReason::NotListed)]
#[case::for_another_definition(ProposedCall { definition: Digest::of(b"other"), ..the_call() }, DenyReason::DefinitionChanged)]
#[tokio::test]
async fn the_digest_that_people_signed_is_good_for_nothing_else(#[case] call: ProposedCall, #[case] why: DenyReason) {
    let scene = Scene::allowed().await;
    let verdict = scene.propose("c1", call).await;
    assert!(is_denied(&verdict, why), "{verdict:?}");
    scene.stage.end().await;
}

/// It is another's canonical form as well, so that not even the journal takes it; the runner's batch goes with it.
#[tokio::test]
async fn a_number_that_is_no_double_is_denied_and_reaches_no_journal() {
    let scene = Scene::allowed().await;
    let call = ProposedCall { args: json!({"n": 9_007_199_254_740_993_u64}), ..the_call() };
    let (verdict, decided) = scene.decided("c1", call, scene.stage.journal.now()).await;
    assert!(is_denied(&verdict, DenyReason::DigestMismatch), "{verdict:?}");
    let (id, seq) = (id_of(&run("nightly", "triage")), scene.state().await.seq);
    let refused = scene.stage.journal.append(&id, seq, decided).await.unwrap_err();
    assert!(refused.to_string().contains("9007199254740993"), "{refused}");
    scene.stage.end().await;
}

/// Two readers of one text could each take another of the two: what is judged, shown, digested and sent is one value.
#[tokio::test]
async fn of_a_name_that_comes_twice_one_value_is_digested() {
    let scene = Scene::allowed().await;
    let text = serde_json::to_string(&the_call()).unwrap();
    let twice = text.replacen("\"count\":1", "\"count\":1,\"count\":2", 1);
    assert_ne!(text, twice);
    let verdict = scene.propose("c1", serde_json::from_str(&twice).unwrap()).await;
    assert!(is_denied(&verdict, DenyReason::DigestMismatch), "{verdict:?}");
    scene.stage.end().await;
}

#[tokio::test]
async fn a_second_call_with_equal_arguments_is_asked_about_anew() {
    let scene = Scene::allowed().await;
    let verdict = scene.propose("c2", the_call()).await;
    assert!(is_asked_anew(&verdict), "{verdict:?}");
    scene.stage.end().await;
}

#[tokio::test]
async fn the_same_call_of_another_tool_is_judged_as_that_tools_and_never_by_this_yes() {
    let scene = Scene::allowed().await;
    // Policies allow what `reader` does; the bytes go to its server, under its own digest.
    let other = call("reader", the_call().args);
    assert_ne!(other.digest, the_call().digest);
    let verdict = scene.propose("c1", other.clone()).await;
    assert_eq!(verdict, Verdict::Allowed { digest: other.digest });
    scene.stage.end().await;
}

#[tokio::test]
async fn what_was_allowed_in_time_and_comes_too_late_is_denied() {
    let scene = Scene::allowed().await;
    let expires_at = scene.state().await.approved.get("c1").unwrap().expires_at;
    let verdict = scene.propose_at("c1", the_call(), expires_at).await;
    assert!(is_denied(&verdict, DenyReason::Expired), "{verdict:?}");
    scene.stage.end().await;
}

/// A question that ran out: the yeses on it are not looked at.
#[tokio::test]
async fn decisions_on_a_question_that_ran_out_are_not_taken() {
    let scene = Scene::proposed().await;
    let state = scene.state().await;
    let requirements = match state.calls.get("c1") {
        Some(belay_protocol::fold::CallState::Asked { requirements, .. }) => requirements.clone(),
        other => panic!("{other:?}"),
    };
    let stamp = scene.guard.guard.stamp(&crate::guard::tests::approval("triage", "x")).await.unwrap();
    let mut ask = Ask {
        name: "nightly-c1-late".into(),
        purpose: belay_protocol::event::AskPurpose::Call,
        call_id: "c1".into(),
        attempt: 1,
        nonce: "n".into(),
        expires_at: state.updated_at - 1000,
        digest: Digest::zero(),
        call: Some(the_call().digest),
        question: None,
        requirements,
        guard: Some(stamp),
    };
    let question = crate::agent_run::questions::question(&state, &ask).unwrap();
    let (request, digest) = crate::approval::request(&question).unwrap();
    ask.digest = digest;
    let made = serde_json::to_value(crate::approval::approval(&run("nightly", "triage"), &ask, request)).unwrap();
    scene.stage.server.lock().approvals.create(made);
    let posted = Event::AskPosted { name: ask.name.clone(), uid: "uid-approval-1".into() };
    scene.append(vec![Event::AskOpened { ask }, posted]).await;
    scene.decide(&[ada(), bob()]);
    scene.passes().await;
    assert_eq!(scene.answers().await, [Answer::Expired {}]);
    assert!(scene.approval().is_sealed());
    scene.end().await;
}

const ALLOWS_ALL: &str = "{rules: [{name: all, action: Allow}]}";
const DENIES_ALL: &str = "{rules: [{name: none, action: Deny, reason: not today}]}";
const ONE_IS_ENOUGH: &str = "{rules: [{name: one, action: Ask, ask: {quorum: 1}}]}";

#[rstest]
#[case(ALLOWS_ALL)]
#[case(ONE_IS_ENOUGH)]
#[tokio::test]
async fn a_policy_that_was_loosened_since_asks_as_the_plan_has_it(#[case] looser: &str) {
    let scene = Scene::asked().await;
    scene.current.set("triage", policy(2, looser));
    scene.decide(&[ada()]);
    scene.passes().await;
    assert_eq!(scene.answers().await, [], "two are wanted still");
    scene.end().await;
}

#[tokio::test]
async fn a_policy_that_was_tightened_since_denies_what_people_allowed() {
    let scene = Scene::allowed().await;
    scene.current.set("triage", policy(2, DENIES_ALL));
    let verdict = scene.propose("c1", the_call()).await;
    assert!(is_denied(&verdict, DenyReason::Policy), "{verdict:?}");
    scene.stage.end().await;
}

/// Documented: the question is the run's, and whoever holds the verb for that name decides.
#[tokio::test]
async fn a_policy_that_was_deleted_while_people_are_asked_asks_on() {
    let scene = Scene::asked().await;
    scene.current.set("triage", policy(1, TWO_OTHERS));
    scene.current.remove("triage", "careful");
    scene.decide(&[ada()]);
    scene.passes().await;
    assert_eq!(scene.answers().await, []);
    scene.decide(&[bob()]);
    scene.passes().await;
    assert!(matches!(&scene.answers().await[..], [Answer::Allowed { .. }]));
    let verdict = scene.propose("c1", the_call()).await;
    assert_eq!(verdict, Verdict::Allowed { digest: the_call().digest });
    scene.stage.end().await;
}
