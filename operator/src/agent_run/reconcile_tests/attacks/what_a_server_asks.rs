//! Questions of a call's server that people leave, or answer with what it did not ask for: no run waits on one for ever, and
//! none is asked without end.

use belay_protocol::elicitation::{Asked, InputRequired, Inquiry, MISFITS_MAX};
use belay_protocol::event::AskPurpose;
use belay_protocol::fold::{CallState, Settlement};

use super::*;
use crate::agent_run::plan::Approved;
use crate::agent_run::questions::{Draft, draft, question};
use crate::guard::State;

const CALL: &str = "c1";
const LATE: &str = "nightly-c1-late";

/// A call that needed nobody's yes was sent, and its server wants to know a name so many times.
async fn inquiring(questions: usize) -> Scene {
    let scene = Box::pin(Scene::begun()).await;
    let verdict = scene.propose(CALL, call("reader", json!({}))).await;
    assert!(matches!(verdict, Verdict::Allowed { .. }), "{verdict:?}");
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]});
    let asked = |number| Asked {
        key: String::new(),
        inquiry: Inquiry::Form { message: format!("name {number}?"), schema: schema.clone() },
    };
    let said = Some("not yet".to_owned());
    let required = InputRequired { questions: (0..questions).map(asked).collect(), state: None, said };
    let event =
        Event::CallInputRequired { call_id: CALL.into(), attempt: 1, required: Box::new(required), milliseconds: 1 };
    scene.append(vec![event]).await;
    scene
}

/// The question is open until then, which may be over.
async fn asked_until(scene: &Scene, expires_at: i64, is_posted: bool) {
    let state = scene.state().await;
    let Draft { purpose, attempt, call, question: number, requirements, .. } = draft(&state, CALL, 1).unwrap();
    assert_eq!(purpose, AskPurpose::Question);
    let State::Up { stamp, .. } = scene.guard.guard.state() else { panic!("the guard is down") };
    let mut ask = Ask {
        name: LATE.into(),
        purpose,
        call_id: CALL.into(),
        attempt,
        nonce: "n".into(),
        expires_at,
        digest: Digest::zero(),
        call,
        question: number,
        requirements,
        guard: Some(stamp),
    };
    let (request, digest) = crate::approval::request(&question(&state, &ask).unwrap()).unwrap();
    ask.digest = digest;
    let mut events = vec![Event::AskOpened { ask: ask.clone() }];
    if is_posted {
        let approval = crate::approval::approval(&run("nightly", "triage"), &ask, request);
        let (_, made) = scene.stage.server.lock().approvals.create(serde_json::to_value(approval).unwrap());
        let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
        events.push(Event::AskPosted { name: LATE.into(), uid });
    }
    scene.append(events).await;
}

fn says(content: &str) -> Value {
    json!({"answer": {"input": {"content": content}}})
}

async fn denial(scene: &Scene) -> Option<(DenyReason, String)> {
    let records = scene.stage.journal.records("uid-nightly", 1).await.unwrap();
    records.into_iter().find_map(|sealed| match sealed.record.event {
        Event::CallDecided { verdict: Verdict::Denied { reason, message }, .. } => Some((reason, message)),
        _ => None,
    })
}

async fn is_closed(scene: &Scene) -> bool {
    let state = scene.state().await;
    let settled = state.calls.get(CALL) == Some(&CallState::Settled(Settlement::Denied));
    settled && state.asks.is_empty() && state.live_epoch().is_none_or(|epoch| epoch.number > 1)
}

#[tokio::test]
async fn an_answer_that_fits_is_taken_and_sends_the_call_again() {
    let scene = inquiring(1).await;
    scene.passes().await;
    scene.decide(&[says(r#"{"name":"Ada"}"#)]);
    scene.passes().await;
    assert!(matches!(scene.answers().await[..], [Answer::Answered { .. }]));
    assert_eq!(scene.state().await.calls.get(CALL), Some(&CallState::Due { attempt: 2 }));
    scene.stage.end().await;
}

/// Nobody answered, somebody did but too late, or nobody could ever be asked.
#[rstest]
#[case::nobody_answered(true, false)]
#[case::answered_too_late(true, true)]
#[case::never_posted(false, false)]
#[tokio::test]
async fn a_question_whose_time_is_up_is_closed_and_the_model_told(#[case] is_posted: bool, #[case] is_answered: bool) {
    let scene = inquiring(1).await;
    asked_until(&scene, scene.stage.journal.now() - 1, is_posted).await;
    if is_answered {
        scene.decide(&[says(r#"{"name":"Ada"}"#)]);
    }
    let sight = scene.stage.runs.observe(&scene.stage.object()).await.unwrap();
    assert_eq!(sight.asks[0].seen, Approved::Answered);
    scene.passes().await;
    assert_eq!(scene.answers().await, [Answer::Expired {}]);
    let (reason, told) = denial(&scene).await.unwrap();
    assert_eq!(reason, DenyReason::Expired);
    assert_eq!(
        told,
        "its server asked people for input, and nobody answered in time. Told that nobody answers, the server said: not yet"
    );
    assert!(is_closed(&scene).await);
    let all_sealed = scene.stage.server.lock().approvals.objects.iter().all(|it| it["status"]["sealed"] == true);
    assert!(all_sealed, "no answer is added any more");
    scene.stage.end().await;
}

#[tokio::test]
async fn answers_that_do_not_fit_are_asked_about_anew_so_often_and_no_more() {
    let scene = inquiring(1).await;
    scene.passes().await;
    for misfits in 1..=MISFITS_MAX {
        assert!(!is_closed(&scene).await, "after {misfits}");
        scene.decide(&[says("no JSON")]);
        scene.passes().await;
    }
    assert!(is_closed(&scene).await);
    let answers = scene.answers().await;
    assert_eq!(answers.len(), 5);
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Misfit { .. })), "{answers:?}");
    assert_eq!(scene.stage.server.lock().approvals.objects.len(), 5);
    let (reason, told) = denial(&scene).await.unwrap();
    assert_eq!(reason, DenyReason::Refused);
    let words = "5 times what they answered could not be sent, the last time since what bob answered does not fit";
    assert!(told.contains(words), "{told}");
    scene.stage.end().await;
}

#[tokio::test]
async fn whoever_answers_the_second_question_is_shown_what_was_answered_to_the_first() {
    let scene = inquiring(2).await;
    scene.passes().await;
    assert!(scene.approval().spec.request.answered.is_empty());
    scene.decide(&[says(r#"{"name":"Ada"}"#)]);
    scene.passes().await;
    let request = scene.approval().spec.request;
    assert_eq!(request.question.unwrap().message, "name 1?");
    let shown: Vec<_> = request.answered.iter().map(|one| (one.message.as_str(), one.content.as_deref())).collect();
    assert_eq!(shown, [("name 0?", Some(r#"{"name":"Ada"}"#))]);
    scene.stage.end().await;
}
