//! Questions of a tool's server: what people are shown, who has to answer, and what their answers come to.

use std::collections::BTreeSet;

use belay_crds::{ApprovalQuestion, ApprovalRequest, Decision, DecisionVerdict, EarlierAnswer};
use belay_protocol::elicitation::{Asked, InputRequired, Inputs, Inquiry, check_answer};
use belay_protocol::event::{Answer, Approver, ProposedCall};
use belay_protocol::fold::RunState;
use belay_protocol::judgement::{DEFAULT_POLICY, PolicyRequirement};

use super::Settled;
use crate::writes::cut;

/// What of the server's last words goes into the operator's.
const SAID_BYTES_MAX: usize = 1024;
const NOTE_BYTES_MAX: usize = 1024;

/// One question of a server, where it stands among its others.
#[derive(Clone, Copy, Debug)]
pub struct Inquired<'a> {
    pub inquiry: &'a Inquiry,
    /// Counted from 0.
    pub number: u32,
    pub required: &'a InputRequired,
    /// What people answered to those before it.
    pub answers: &'a [Option<String>],
    /// Why it is asked anew, where it is.
    pub note: Option<&'a str>,
}

impl Inquired<'_> {
    /// As the Approval carries it.
    #[must_use]
    pub fn shown(&self) -> ApprovalQuestion {
        ApprovalQuestion {
            message: self.inquiry.message().to_owned(),
            schema: self.inquiry.schema(),
            url: self.inquiry.url().map(str::to_owned),
        }
    }

    /// The operator's own words about it.
    #[must_use]
    pub fn words(&self, call: &ProposedCall) -> String {
        let InputRequired { questions, said, .. } = self.required;
        let first = format!(
            "an untrusted server asks: that of {}/{}, in the middle of a call that was permitted. Give it no secret. An answer \
             sends the call again with it",
            call.tool, call.operation
        );
        let several = (questions.len() > 1).then(|| {
            let (of, number) = (questions.len(), self.number + 1);
            format!(", once all of its {of} questions are answered; this is number {number}")
        });
        let ended = said.as_deref().map(|said| {
            let said = cut(said, SAID_BYTES_MAX);
            format!(
                ". It could not wait, was told that nobody answers yet, and ended the call with: {said:?}. See that this did \
                 nothing that must not be done twice"
            )
        });
        let again = self.note.map(|note| format!(". Asked again: {}", cut(note, NOTE_BYTES_MAX)));
        std::iter::once(first).chain(several).chain(ended).chain(again).collect()
    }
}

/// What people answered this call's server before `asked`, or before the call is sent again: all of it goes with the call,
/// so whoever decides is shown all of it. Bounded by what one call may ask, and by what one answer may hold.
#[must_use]
pub fn answered_before(inputs: Option<&Inputs>, asked: Option<Inquired<'_>>) -> Vec<EarlierAnswer> {
    let rounds = inputs.into_iter().flat_map(|inputs| &inputs.rounds);
    let earlier = rounds.flat_map(|round| round.required.questions.iter().zip(&round.answers));
    let now = asked.into_iter().flat_map(|asked| asked.required.questions.iter().zip(asked.answers));
    let one = |(asked, content): (&Asked, &Option<String>)| EarlierAnswer {
        message: asked.inquiry.message().to_owned(),
        content: content.clone(),
        url: asked.inquiry.url().map(str::to_owned),
    };
    earlier.chain(now).map(one).collect()
}

/// For who is asked about a call that is sent again.
pub(super) fn going_with(inputs: &Inputs) -> String {
    format!(". It goes with {} earlier answers of people to its server: spec.request.answered", inputs.questions())
}

/// Who has to answer: whoever may approve under each policy that let the call through. One that had asked people before
/// the call wants as many of them again, since their answer is a yes to what is sent then.
#[must_use]
pub fn requirements(state: &RunState, call_id: &str, attempt: u32) -> Vec<PolicyRequirement> {
    let approved = state.approved.get(call_id).filter(|approved| approved.attempt == attempt);
    let asked = approved.map_or(&[][..], |approved| &approved.requirements);
    let ran_under = state.ran_under.get(call_id).map_or(&[][..], Vec::as_slice);
    let names: BTreeSet<&str> =
        ran_under.iter().map(String::as_str).filter(|name| asked.iter().all(|one| one.policy != **name)).collect();
    let one = |policy: &str| PolicyRequirement {
        policy: policy.to_owned(),
        generation: 0,
        quorum: 1,
        separation_of_duty: false,
        expires_after_seconds: 0,
        grants: None,
    };
    let wanted: Vec<PolicyRequirement> = asked.iter().cloned().chain(names.into_iter().map(one)).collect();
    if wanted.is_empty() { vec![one(DEFAULT_POLICY)] } else { wanted }
}

/// What enough people answered: all the same, and what was asked for. Otherwise they are asked anew, and told why.
pub(super) fn answered(request: &ApprovalRequest, decisions: &[&Decision], by: Vec<Approver>) -> Settled {
    let question = request.question.as_ref();
    let schema = question.and_then(|question| question.schema.as_deref());
    let mut agreed: Option<(&str, Option<String>)> = None;
    for decision in decisions.iter().filter(|decision| decision.verdict == DecisionVerdict::Allow) {
        let input = decision.answer.as_ref().and_then(|answer| answer.input.as_ref());
        let Some(input) = input.filter(|_| question.is_some()) else {
            return Settled::Misfit(format!("{} gave no answer.input", decision.by));
        };
        let content = match check_answer(schema, input.content.as_deref()) {
            Ok(content) => content,
            Err(why) => return Settled::Misfit(format!("what {} answered does not fit: {why}", decision.by)),
        };
        match &agreed {
            Some((other, said)) if *said != content => {
                return Settled::Misfit(format!("{other} and {} answered differently", decision.by));
            }
            Some(_) => {}
            None => agreed = Some((decision.by.as_str(), content)),
        }
    }
    match agreed {
        Some((_, content)) => Settled::Answer(Answer::Answered { content, by }),
        None => Settled::Nothing("nobody answered".to_owned()),
    }
}

#[cfg(test)]
mod tests;
