//! `belay journal`: what the operator recorded of a run, as a file, and whether such a file holds together.
//! Exporting needs an admin's right to exec in the operator's pod; verifying needs nothing but the file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use belay_protocol::event::RunEnd;
use belay_protocol::export::{Effect, EffectOutcome, PermittedBy, Verified, verify};
use clap::Subcommand;
use jiff::Timestamp;

use crate::Target;
use crate::exit::{CliError, FAILED};
use crate::table;

#[derive(Subcommand)]
pub enum JournalCommand {
    /// Print all that the journal holds of a run, as a file to keep and to verify (needs kubectl)
    Export(ExportArguments),
    /// Check such a file, without a cluster: nothing changed, nothing left out, every permit as the plan allows
    Verify { file: PathBuf },
}

#[derive(clap::Args)]
pub struct ExportArguments {
    run: String,
    /// RUN is the uid of an AgentRun that may be gone
    #[arg(long)]
    uid: bool,
    /// Where the operator is installed
    #[arg(long, default_value = "belay-system")]
    operator_namespace: String,
}

/// Runs kubectl, which speaks the protocols of exec already: in here they would take a dozen more libraries.
pub fn export(target: &Target, context: Option<&str>, arguments: &ExportArguments) -> Result<ExitCode, CliError> {
    let run = if arguments.uid { arguments.run.clone() } else { format!("{}/{}", target.namespace, arguments.run) };
    let words = kubectl(context, &arguments.operator_namespace, &run);
    match Command::new("kubectl").args(&words).status() {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::from(FAILED)), // kubectl and the operator have said why
        Err(error) if error.kind() == ErrorKind::NotFound => Err(CliError::Usage(format!(
            "kubectl is not installed here; where it is, run: kubectl {} > FILE",
            words.join(" ")
        ))),
        Err(error) => Err(CliError::Usage(format!("kubectl cannot be started: {error}"))),
    }
}

fn kubectl(context: Option<&str>, namespace: &str, run: &str) -> Vec<String> {
    let context = context.map(|context| format!("--context={context}"));
    let words = ["-n", namespace, "exec", "deploy/belay-operator", "--", "/belay-operator", "journal", "export", run];
    context.into_iter().chain(words.map(str::to_owned)).collect()
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
        permitted_by(effect.permitted_by),
        time(effect.decided_at),
        outcome(effect.outcome),
        by.to_owned(),
        at,
    ]
}

fn permitted_by(permit: PermittedBy) -> String {
    match permit {
        PermittedBy::AllowList => "allow list".into(),
        PermittedBy::Nobody(reason) => format!("denied: {reason:?}"),
    }
}

fn outcome(outcome: EffectOutcome) -> String {
    match outcome {
        EffectOutcome::UnderWay => "under way".into(),
        EffectOutcome::Denied | EffectOutcome::Returned => "not sent".into(),
        EffectOutcome::NotSent(reason) => format!("not sent: {reason:?}"),
        EffectOutcome::Observed => "answered".into(),
        EffectOutcome::ObservedError => "answered with an error".into(),
        EffectOutcome::Unknown => "UNKNOWN".into(),
        EffectOutcome::Interrupted => "no answer; may be sent again".into(),
        EffectOutcome::Reported => "happened, a person says".into(),
    }
}

fn time(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| milliseconds.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_protocol::event::DenyReason;
    use belay_protocol::export::Settled;

    use super::*;

    #[test]
    fn an_export_is_an_exec_in_the_operators_pod() {
        assert_eq!(
            kubectl(Some("prod"), "belay-system", "team/triage-1").join(" "),
            "--context=prod -n belay-system exec deploy/belay-operator -- /belay-operator journal export team/triage-1"
        );
    }

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
