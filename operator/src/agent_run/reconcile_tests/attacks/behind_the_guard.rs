//! Forgeries that look right: nothing but admission can tell them from what people wrote. They count for as long as the
//! guard stands, since then admission has refused them; what is shown here is that nothing counts once it does not.

use super::*;
use crate::guard::State;

/// How the rules were switched off.
#[derive(Clone, Copy, Debug)]
enum Off {
    /// A rule is away, and stays away.
    Away,
    /// It was away and is back, as another object: a naive probe passes.
    AndOnAgain,
    /// The rules look as ever, and what they should refuse is taken.
    Toothless,
}

/// What was done to an Approval on which ada, who may, said yes.
#[derive(Clone, Copy, Debug)]
enum Forgery {
    InAnothersName,
    InANameThatLooksLikeOnesOwn,
    ByWhoMayNot,
    ANoTakenAway,
    ANoMadeAYes,
    MadeBeforehandWithDecisions,
}

impl Forgery {
    async fn commit(self) -> Scene {
        if matches!(self, Self::MadeBeforehandWithDecisions) {
            return Box::pin(made_beforehand()).await;
        }
        let (scene, no) = (Box::pin(Scene::asked()).await, json!({"by": "zoe", "verdict": "Deny"}));
        match self {
            Self::InAnothersName => scene.decide(&[ada(), bob()]),
            Self::InANameThatLooksLikeOnesOwn => scene.decide(&[ada(), json!({"by": "\u{430}da"})]),
            Self::ByWhoMayNot => scene.decide(&[ada(), json!({"by": "mallory"})]),
            Self::ANoTakenAway => {
                scene.decide(&[ada(), no]);
                scene.write(|approval| drop(approval["spec"]["decisions"].as_array_mut().unwrap().pop()));
                scene.decide(&[bob()]);
            }
            Self::ANoMadeAYes => {
                scene.decide(&[ada(), no]);
                scene.write(|approval| approval["spec"]["decisions"][1]["verdict"] = json!("Allow"));
            }
            Self::MadeBeforehandWithDecisions => {}
        }
        scene
    }
}

/// By somebody who reads the journal: name, nonce and all.
async fn made_beforehand() -> Scene {
    let scene = Scene::proposed().await;
    scene.stage.pass().await.unwrap();
    let state = scene.state().await;
    let ask = &state.asks.values().next().unwrap().ask;
    let question = crate::agent_run::questions::question(&state, ask).unwrap();
    let (request, _) = crate::approval::request(&question).unwrap();
    let mut made = serde_json::to_value(crate::approval::approval(&run("nightly", "triage"), ask, request)).unwrap();
    add(&mut made, &[ada(), bob()]);
    scene.stage.server.lock().approvals.create(made);
    scene.stage.pass().await.unwrap();
    scene
}

async fn switch_off(guard: &GuardStage, off: Off) {
    match off {
        Off::Away => guard.take_away_a_rule().await,
        Off::AndOnAgain => guard.make_a_rule_anew().await,
        Off::Toothless => guard.take_a_forgery(),
    }
}

#[rstest]
#[tokio::test]
async fn what_was_forged_while_nobody_checked_is_not_honoured(
    #[values(
        Forgery::InAnothersName,
        Forgery::InANameThatLooksLikeOnesOwn,
        Forgery::ByWhoMayNot,
        Forgery::ANoTakenAway,
        Forgery::ANoMadeAYes,
        Forgery::MadeBeforehandWithDecisions
    )]
    forgery: Forgery,
    #[values(Off::Away, Off::AndOnAgain, Off::Toothless)] off: Off,
) {
    let scene = forgery.commit().await;
    switch_off(&scene.guard, off).await;
    scene.passes().await;
    let told: Vec<String> = (scene.answers().await.into_iter())
        .map(|answer| match answer {
            Answer::Withdrawn { why } => why,
            other => panic!("{other:?}"),
        })
        .collect();
    match off {
        Off::Away => {
            assert_eq!(told, Vec::<String>::new(), "it waits until somebody checks again");
            let status = scene.stage.server.lock().status.clone().unwrap();
            let words = status["conditions"][0]["message"].as_str().unwrap();
            assert!(words.contains("ValidatingAdmissionPolicyBinding belay-approvals is missing"), "{words}");
        }
        Off::AndOnAgain => {
            assert!(matches!(scene.guard.guard.state(), State::Up { .. }), "a naive probe passes");
            assert_eq!(
                told,
                ["ValidatingAdmissionPolicyBinding belay-approvals was changed or made anew after people were asked"]
            );
        }
        Off::Toothless => {
            assert!(told.len() == 1 && told[0].starts_with("a forged decision on Approval triage/"), "{told:?}");
        }
    }
    scene.end().await;
}

/// Not a promise: it says why the rows above need the guard.
#[rstest]
#[tokio::test]
async fn under_a_guard_that_stands_they_look_like_any_yes(
    #[values(Forgery::InAnothersName, Forgery::MadeBeforehandWithDecisions)] forgery: Forgery,
) {
    let scene = forgery.commit().await;
    scene.passes().await;
    assert!(matches!(&scene.answers().await[..], [Answer::Allowed { .. }]), "{:?}", scene.answers().await);
    scene.stage.end().await;
}

/// Honest ones too: nobody can tell, so that people are asked anew, and what they say then counts.
#[tokio::test]
async fn while_a_rule_is_away_nobody_is_believed_and_afterwards_people_are_asked_anew() {
    let scene = Scene::asked().await;
    scene.guard.take_away_a_rule().await;
    scene.decide(&[ada(), bob()]);
    scene.passes().await;
    assert_eq!(scene.answers().await, []);
    assert!(!scene.approval().is_sealed());
    scene.guard.put_the_rule_back_anew().await;
    scene.passes().await;
    assert!(matches!(&scene.answers().await[..], [Answer::Withdrawn { .. }]));
    assert!(scene.approval().spec.decisions.is_empty(), "another one is open");
    scene.decide(&[ada(), bob()]);
    scene.passes().await;
    assert!(matches!(&scene.answers().await[..], [Answer::Withdrawn { .. }, Answer::Allowed { .. }]));
    scene.stage.end().await;
}

/// The rules are away already when people would be asked.
#[tokio::test]
async fn while_a_rule_is_away_nobody_is_asked() {
    let scene = Scene::proposed().await;
    scene.guard.take_away_a_rule().await;
    scene.passes().await;
    assert!(scene.stage.server.lock().approvals.objects.is_empty());
    assert!(scene.state().await.asks.is_empty());
    scene.end().await;
}

/// A look takes as long as the read from quorum, so both go on at one time; but it vouches for no decision that came after
/// it began.
#[rstest]
#[case::nothing_came_after_it(false, 1)]
#[case::one_more_decision_did(true, 2)]
#[tokio::test]
async fn a_look_beside_the_read_vouches_for_what_was_seen_before_it_alone(#[case] more: bool, #[case] looks: usize) {
    let mut scene = Box::pin(Scene::asked()).await;
    scene.decide(&[ada(), bob()]);
    let mut cached = Writer::new(());
    scene.stage.runs.world.approvals = cached.as_reader();
    cached.apply_watcher_event(&watcher::Event::Apply(scene.approval()));
    if more {
        scene.decide(&[json!({"by": "zoe"})]);
    }
    scene.guard.forged();
    scene.passes().await;
    assert!(matches!(scene.answers().await[..], [Answer::Allowed { .. }]));
    let seen = scene.guard.forged();
    assert_eq!(seen.len(), looks, "{seen:?}");
    scene.stage.end().await;
}
