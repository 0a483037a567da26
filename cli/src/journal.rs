//! `belay journal`: what the operator recorded of a run, as a file, and whether such a file holds together.
//! Exporting needs the right to see the run and to reach the operator; verifying needs nothing but the file.

mod export;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use belay_crds::visible;
use belay_protocol::event::RunEnd;
use belay_protocol::export::{Effect, EffectOutcome, Verified, verify};
use clap::Subcommand;
use jiff::Timestamp;

pub use self::export::{ExportArguments, Journaled, export, fetch, read};
use crate::exit::{CliError, FAILED};
use crate::table;

#[derive(Subcommand)]
pub enum JournalCommand {
    /// Print all that the journal holds of a run, as a file to keep and to verify
    Export(ExportArguments),
    /// Check such a file, without a cluster: nothing changed, nothing left out, every permit as the plan allows
    Verify { file: PathBuf },
}

/// Prints the verdict and what the run did.
pub fn print_verdict(file: &Path) -> Result<ExitCode, CliError> {
    let bytes = std::fs::read(file).map_err(|e| CliError::Usage(format!("{}: {e}", file.display())))?;
    match verify(&bytes) {
        Ok(verified) => {
            print_good(&verified);
            Ok(ExitCode::SUCCESS)
        }
        Err(fault) => {
            eprintln!("BAD   {}: {fault}", file.display());
            Ok(ExitCode::from(FAILED))
        }
    }
}

fn print_good(verified: &Verified) {
    let run = &verified.header.run;
    println!("ok    run {}/{} ({}) of journal {}", run.namespace, run.name, run.uid, verified.header.journal);
    println!("      {} records, the last is {}", verified.head.seq, verified.head.hash);
    if let Some(plan) = &verified.state.plan_digest {
        println!("      plan {plan}");
    }
    println!("      {}", ending(verified.state.end.as_ref()));
    println!(
        "      The file proves itself, not its origin: status.journal of the AgentRun names a record by seq and hash,"
    );
    println!("      and the line of that seq has to hold that hash. Records after it are newer than the status.");
    if verified.effects.is_empty() {
        println!("\nNo call was decided.");
        return;
    }
    println!();
    let header = ["CALL", "ATTEMPT", "OPERATION", "PERMITTED-BY", "DECIDED-AT", "OUTCOME", "SAID-BY", "SAID-AT"];
    table::print(&header, verified.effects.iter().map(row).collect());
}

fn ending(end: Option<&RunEnd>) -> String {
    end.map_or_else(
        || "the run had not ended when this was exported".into(),
        |end| format!("{:?} ({:?}) {}", end.outcome, end.reason, end.message).trim_end().to_owned(),
    )
}

fn row(effect: &Effect) -> Vec<String> {
    let (by, at) = effect.settled.as_ref().map_or(("nobody", String::new()), |said| (&*said.by, time(said.at)));
    vec![
        effect.call_id.clone(),
        effect.attempt.to_string(),
        format!("{}/{}", effect.tool, effect.operation),
        effect.permitted_by.to_string(),
        time(effect.decided_at),
        outcome(effect.outcome),
        visible(by),
        at,
    ]
}

/// What became of a call, in words.
pub fn outcome(outcome: EffectOutcome) -> String {
    match outcome {
        EffectOutcome::UnderWay => "under way".into(),
        EffectOutcome::Denied | EffectOutcome::Returned => "not sent".into(),
        EffectOutcome::NotSent(reason) => format!("not sent: {reason:?}"),
        EffectOutcome::Observed => "answered".into(),
        EffectOutcome::ObservedError => "answered with an error".into(),
        EffectOutcome::Unknown => "UNKNOWN".into(),
        EffectOutcome::Interrupted => "no answer; may be sent again".into(),
        EffectOutcome::Reported => "happened, a person says".into(),
        EffectOutcome::InputRequired => "asked for input first".into(),
    }
}

fn time(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| milliseconds.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_protocol::event::DenyReason;
    use belay_protocol::export::{PermittedBy, Settled};

    use super::*;

    #[test]
    fn a_row_says_who_let_a_call_through_and_what_became_of_it() {
        let effect = Effect {
            call_id: "c1".into(),
            attempt: 2,
            tool: "files".into(),
            operation: "write".into(),
            permitted_by: PermittedBy::AllowList,
            decided_at: 0,
            outcome: EffectOutcome::Observed,
            settled: Some(Settled { by: "runner".into(), at: 1500 }),
        };
        let cells = ["c1", "2", "files/write", "allow list", "1970-01-01T00:00:00Z", "answered", "runner"];
        assert_eq!(row(&effect), [&cells[..], &["1970-01-01T00:00:01.5Z"]].concat());
        let denied = Effect { permitted_by: PermittedBy::Nobody(DenyReason::NotListed), settled: None, ..effect };
        let cells = row(&denied);
        assert_eq!(cells.get(3).unwrap(), "denied: NotListed");
        assert_eq!(cells.get(6..).unwrap(), ["nobody", ""]);
    }
}
