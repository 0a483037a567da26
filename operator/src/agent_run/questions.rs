//! What a run asks people, as plan and journal tell it. Pure.

use belay_crds::wants_one_more;
use belay_protocol::event::{Ask, AskPurpose};
use belay_protocol::fold::{CallState, RunState};

use crate::approval::{About, Inquired, Question, inquiry_requirements};

/// The question of `ask`, if it is still one.
#[must_use]
pub fn question<'a>(state: &'a RunState, ask: &'a Ask) -> Option<Question<'a>> {
    let (plan, now) = (state.plan.as_deref()?, state.calls.get(&ask.call_id)?);
    let (call, about) = match (ask.purpose, now) {
        (AskPurpose::Unknown, CallState::Unknown { attempt, call, at, message }) if *attempt == ask.attempt => {
            let ran_under = state.ran_under.get(&ask.call_id).map_or(&[][..], Vec::as_slice);
            (call, About::Unknown { sent_at: *at, message, ran_under })
        }
        (AskPurpose::Call, CallState::Asked { attempt, call, .. })
            if *attempt == ask.attempt && ask.call.is_none_or(|asked| asked == call.digest) =>
        {
            let inputs = state.inputs.get(&ask.call_id);
            (call, About::Call { requirements: &ask.requirements, inputs })
        }
        (AskPurpose::Question, CallState::InputRequired { attempt, call, required, answers, note, .. })
            if *attempt == ask.attempt =>
        {
            let (number, inquiry) = state.open_question(&ask.call_id).filter(|(it, _)| ask.question == Some(*it))?;
            let asked = Inquired { inquiry, number, required, answers, note: note.as_deref() };
            let inputs = state.inputs.get(&ask.call_id);
            (call, About::Question { asked, requirements: &ask.requirements, inputs })
        }
        (AskPurpose::Unknown | AskPurpose::Call | AskPurpose::Question, _) => return None,
    };
    Some(Question {
        plan,
        call_id: &ask.call_id,
        attempt: ask.attempt,
        call,
        about,
        expires_at: ask.expires_at,
        nonce: &ask.nonce,
    })
}

/// Why an open question is none any more: what it asks about went another way, or is something else now.
#[must_use]
pub fn out_of_date(state: &RunState, ask: &Ask) -> Option<String> {
    let fits = match (ask.purpose, state.calls.get(&ask.call_id)) {
        // One that is due is proposed anew by the next pod, most likely as it was.
        (AskPurpose::Unknown, Some(CallState::Unknown { attempt, .. }))
        | (AskPurpose::Call, Some(CallState::Due { attempt })) => *attempt == ask.attempt,
        (AskPurpose::Call, Some(CallState::Asked { attempt, call, requirements, .. })) => {
            let same = *attempt == ask.attempt && ask.call == Some(call.digest);
            same && ask.requirements == *requirements && !state.is_stale(call)
        }
        (AskPurpose::Call, Some(CallState::Proposed { attempt, call } | CallState::Later { attempt, call })) => {
            *attempt == ask.attempt && ask.call == Some(call.digest)
        }
        (AskPurpose::Question, Some(CallState::InputRequired { attempt, .. })) => {
            let open = state.open_question(&ask.call_id).map(|(number, _)| number);
            *attempt == ask.attempt && open.is_some() && ask.question == open
        }
        (AskPurpose::Unknown | AskPurpose::Call | AskPurpose::Question, _) => false,
    };
    (!fits).then(|| format!("call {} is not what was asked about any more", ask.call_id))
}

/// A call that people have to be asked about and are not.
#[must_use]
pub fn unasked(state: &RunState) -> Option<&str> {
    let asked = |call_id: &str| state.asks.values().any(|open| open.ask.call_id == call_id);
    // A call whose definition was accepted anew since is proposed anew first.
    let wants = |call: &CallState| match call {
        CallState::Unknown { .. } | CallState::InputRequired { .. } => true,
        CallState::Asked { call, .. } => !state.is_stale(call),
        CallState::Due { .. }
        | CallState::Proposed { .. }
        | CallState::Later { .. }
        | CallState::Permitted { .. }
        | CallState::Delegated { .. }
        | CallState::Settled(_) => false,
    };
    state.calls.iter().find(|(id, call)| wants(call) && !asked(id)).map(|(id, _)| id.as_str())
}

/// What is asked, and until when, before it has a name and a nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub purpose: AskPurpose,
    pub attempt: u32,
    pub call: Option<belay_protocol::Digest>,
    /// Which of the server's questions.
    pub question: Option<u32>,
    pub requirements: Vec<belay_protocol::judgement::PolicyRequirement>,
    /// Milliseconds since the Unix epoch. Asked anew, it expires when it would have expired.
    pub expires_at: i64,
}

/// `wait_seconds`: how long one wait of the run may last.
#[must_use]
pub fn draft(state: &RunState, call_id: &str, wait_seconds: u32) -> Option<Draft> {
    let after = |at: i64, seconds: u32| at.saturating_add(i64::from(seconds).saturating_mul(1000));
    match state.calls.get(call_id)? {
        CallState::Unknown { attempt, at, .. } => Some(Draft {
            purpose: AskPurpose::Unknown,
            attempt: *attempt,
            call: None,
            question: None,
            requirements: Vec::new(),
            expires_at: after(*at, wait_seconds),
        }),
        CallState::InputRequired { attempt, at, .. } => Some(Draft {
            purpose: AskPurpose::Question,
            attempt: *attempt,
            call: None,
            question: Some(state.open_question(call_id)?.0),
            requirements: inquiry_requirements(state, call_id, *attempt),
            expires_at: after(*at, wait_seconds),
        }),
        CallState::Asked { attempt, call, at, requirements } => {
            // Every one of them has to be met before the first of them runs out.
            let soonest = requirements.iter().map(|one| one.expires_after_seconds).min();
            Some(Draft {
                purpose: AskPurpose::Call,
                attempt: *attempt,
                call: Some(call.digest),
                question: None,
                requirements: requirements.clone(),
                expires_at: after(*at, soonest.unwrap_or(wait_seconds)),
            })
        }
        CallState::Due { .. }
        | CallState::Proposed { .. }
        | CallState::Later { .. }
        | CallState::Permitted { .. }
        | CallState::Delegated { .. }
        | CallState::Settled(_) => None,
    }
}

/// For people who look at the run: what is wanted of whom, and what to type.
#[must_use]
pub fn words(state: &RunState, ask: &Ask) -> String {
    let name = &ask.name;
    let call = match state.calls.get(&ask.call_id) {
        Some(
            CallState::Proposed { call, .. }
            | CallState::Later { call, .. }
            | CallState::Asked { call, .. }
            | CallState::Permitted { call, .. }
            | CallState::InputRequired { call, .. }
            | CallState::Delegated { call, .. }
            | CallState::Unknown { call, .. },
        ) => format!(" of {}/{}", call.tool, call.operation),
        Some(CallState::Due { .. } | CallState::Settled(_)) | None => String::new(),
    };
    match ask.purpose {
        AskPurpose::Unknown => format!(
            "whether call {}{call} took effect is not known: look there, then belay resolve {name} --happened RESULT, \
             --retry or --end",
            ask.call_id
        ),
        AskPurpose::Question => format!(
            "the server of call {}{call} asks something, and is not trusted: belay show {name}, then belay answer {name} \
             with --field NAME=VALUE, --json, --opened or --decline",
            ask.call_id
        ),
        AskPurpose::Call => {
            let requested_by = state.plan.as_ref().and_then(|plan| plan.requested_by.as_deref()).unwrap_or_default();
            let who = |one: &belay_protocol::judgement::PolicyRequirement| {
                let more = wants_one_more(one.separation_of_duty, requested_by);
                let duty = match (one.separation_of_duty, more) {
                    (true, false) => ", not whoever created the run",
                    (true, true) => ", one more since nobody knows who created the run",
                    (false, _) => "",
                };
                let needed = one.quorum.saturating_add(more.into());
                format!("{needed} who may approve on ApprovalPolicy {}{duty}", one.policy)
            };
            let who: Vec<String> = ask.requirements.iter().map(who).collect();
            let until = crate::clock::from_milliseconds(ask.expires_at);
            format!(
                "call {}{call} waits until {until} for {}: belay show {name}, then belay approve {name} or belay deny \
                 {name} --reason WHY",
                ask.call_id,
                who.join(" and ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use belay_protocol::Digest;
    use belay_protocol::event::ProposedCall;
    use belay_protocol::judgement::PolicyRequirement;
    use serde_json::json;

    use super::*;

    fn asked(terms: &[u32]) -> CallState {
        let (definition, digest) = (Digest::of(b"d"), Digest::of(b"call"));
        let call = ProposedCall { tool: "t".into(), operation: "o".into(), args: json!({}), definition, digest };
        let requirement = |expires_after_seconds: &u32| PolicyRequirement {
            policy: format!("p{expires_after_seconds}"),
            generation: 1,
            quorum: 1,
            separation_of_duty: false,
            expires_after_seconds: *expires_after_seconds,
            grants: None,
        };
        let requirements = terms.iter().map(requirement).collect();
        CallState::Asked { attempt: 1, call: Arc::new(call), at: 1000, requirements }
    }

    #[test]
    fn a_question_stands_as_long_as_the_shortest_policy_says() {
        let until = |terms: &[u32]| {
            let state = RunState { calls: [("c1".to_owned(), asked(terms))].into(), ..RunState::default() };
            draft(&state, "c1", 7).unwrap().expires_at
        };
        assert_eq!((until(&[60]), until(&[90, 30, 60]), until(&[])), (61_000, 31_000, 8_000));
    }
}
