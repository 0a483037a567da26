//! `belay approve NAME` and `belay deny NAME`: whether a call may be made, or what a server offers is accepted.

use std::process::ExitCode;

use belay_crds::{ApprovalPurpose, DecisionAnswer, DecisionVerdict, GrantAnswer};
use clap::Args;

use super::deciding::{Answers, Manner, Wish, decide};
use crate::Target;
use crate::exit::CliError;

#[derive(Args)]
pub struct ApproveArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    /// Allow more calls of this operation in this run without asking: those of whose arguments this CEL condition is true,
    /// as it must be of this call's. Such as "args.repo == 'x'"
    #[arg(long, value_name = "CONDITION", requires = "count", requires = "seconds")]
    for_run: Option<String>,
    /// How many calls more, at most as many as the policy says
    #[arg(long, value_name = "CALLS", requires = "for_run")]
    count: Option<i32>,
    /// For how long, in seconds from when the decisions are taken, at most as long as the policy says
    #[arg(long, requires = "for_run")]
    seconds: Option<i32>,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args)]
pub struct DenyArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    /// Why: for the record, and for the agent, which is told about its call
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    manner: Manner,
}

pub async fn approve(target: &Target, arguments: ApproveArguments) -> Result<ExitCode, CliError> {
    let grant = (arguments.for_run.zip(arguments.count).zip(arguments.seconds))
        .map(|((when, count), seconds)| GrantAnswer { when, count, seconds });
    let wish = match grant {
        Some(grant) => Wish {
            answers: Answers::Only { purpose: ApprovalPurpose::Call, words: "Allow this call, and those" },
            verdict: DecisionVerdict::Allow,
            answer: Some(DecisionAnswer { grant: Some(grant), ..DecisionAnswer::default() }),
            reason: arguments.reason,
        },
        None => Wish::plain(DecisionVerdict::Allow, arguments.reason),
    };
    decide(target, &arguments.name, &wish, &arguments.manner).await
}

pub async fn deny(target: &Target, arguments: DenyArguments) -> Result<ExitCode, CliError> {
    let wish = Wish::plain(DecisionVerdict::Deny, Some(arguments.reason));
    decide(target, &arguments.name, &wish, &arguments.manner).await
}
