//! `belay resolve NAME`: a person says what became of a call.

use std::process::ExitCode;

use belay_crds::{ApprovalPurpose, DecisionAnswer, DecisionVerdict, Happened, Retry};
use clap::Args;

use super::deciding::{Answers, Manner, Wish, decide};
use crate::Target;
use crate::exit::CliError;

#[derive(Args)]
#[group(skip)]
pub struct ResolveArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    #[command(flatten)]
    answer: Answer,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Answer {
    /// It took effect; the model is told this result
    #[arg(long, value_name = "RESULT")]
    happened: Option<String>,
    /// It did not, or twice does no harm: send it again
    #[arg(long)]
    retry: bool,
    /// End the run
    #[arg(long)]
    end: bool,
}

pub async fn resolve(target: &Target, arguments: ResolveArguments) -> Result<ExitCode, CliError> {
    let wish = wish(arguments.answer, arguments.reason);
    decide(target, &arguments.name, &wish, &arguments.manner).await
}

fn wish(answer: Answer, reason: Option<String>) -> Wish {
    let (verdict, answer, words) = match answer {
        Answer { happened: Some(result), .. } => {
            let happened = DecisionAnswer { happened: Some(Happened { result }), ..DecisionAnswer::default() };
            (DecisionVerdict::Allow, Some(happened), "Decide that it happened, with that result")
        }
        Answer { retry: true, .. } => {
            let retry = DecisionAnswer { retry: Some(Retry::default()), ..DecisionAnswer::default() };
            (DecisionVerdict::Allow, Some(retry), "Decide that it is sent again")
        }
        Answer { .. } => (DecisionVerdict::Deny, None, "Decide that the run ends"),
    };
    Wish { answers: Answers::Only { purpose: ApprovalPurpose::Unknown, words }, verdict, answer, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_with_a_yes_and_an_end_is_a_no() {
        let answer = |happened: Option<&str>, retry, end| Answer { happened: happened.map(str::to_owned), retry, end };
        let happened = wish(answer(Some("done"), false, false), None);
        assert_eq!(happened.answer.and_then(|answer| answer.happened), Some(Happened { result: "done".to_owned() }));
        let retry = wish(answer(None, true, false), None);
        assert!(retry.verdict == DecisionVerdict::Allow && retry.answer.is_some_and(|answer| answer.retry.is_some()));
        let end = wish(answer(None, false, true), Some("enough".to_owned()));
        assert!(end.verdict == DecisionVerdict::Deny && end.answer.is_none());
    }
}
