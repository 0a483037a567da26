//! `belay approve NAME` and `belay deny NAME`: whether a call may be made, or what a server offers is accepted.

use std::process::ExitCode;

use belay_crds::DecisionVerdict;
use clap::Args;

use super::deciding::{Manner, Wish, decide};
use crate::Target;
use crate::exit::CliError;

#[derive(Args)]
pub struct ApproveArguments {
    /// Name of the Approval, as `belay approvals` shows it
    name: String,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
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
    let wish = Wish::plain(DecisionVerdict::Allow, arguments.reason);
    decide(target, &arguments.name, &wish, &arguments.manner).await
}

pub async fn deny(target: &Target, arguments: DenyArguments) -> Result<ExitCode, CliError> {
    let wish = Wish::plain(DecisionVerdict::Deny, Some(arguments.reason));
    decide(target, &arguments.name, &wish, &arguments.manner).await
}
