//! `belay tool accept NAME` and `belay tool deny NAME`: people's word on what a Tool's server offers otherwise than it was
//! accepted. The question is an Approval like any other; this finds it by the Tool's name.

use std::process::ExitCode;

use belay_crds::DecisionVerdict;
use clap::{Args, Subcommand};

use crate::Target;
use crate::approvals::{Manner, Wish, decide, drift_of};
use crate::exit::CliError;

#[derive(Subcommand)]
pub enum ToolCommand {
    /// Show what differs, line by line, and accept it: runs that wait for it go on with it
    Accept(AcceptArguments),
    /// Show what differs, and do not accept it: calls to it stay held
    Deny(DenyArguments),
}

#[derive(Args)]
pub struct AcceptArguments {
    /// Name of the Tool
    name: String,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args)]
pub struct DenyArguments {
    /// Name of the Tool
    name: String,
    /// Why, for the record: the Tool's status shows it
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    manner: Manner,
}

pub async fn tool(target: &Target, command: ToolCommand) -> Result<ExitCode, CliError> {
    let (name, verdict, reason, manner) = match command {
        ToolCommand::Accept(AcceptArguments { name, reason, manner }) => (name, DecisionVerdict::Allow, reason, manner),
        ToolCommand::Deny(DenyArguments { name, reason, manner }) => {
            (name, DecisionVerdict::Deny, Some(reason), manner)
        }
    };
    let approval = drift_of(target, &name).await?;
    decide(target, &approval, &Wish::plain(verdict, reason), &manner).await
}
