//! `belay trace`: what a run did, as a waterfall or as JSON. Read like an export, with one's own identity, or from the file
//! of one; it is verified first.

mod json;
mod totals;
mod waterfall;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use belay_protocol::Record;
use belay_protocol::export::verify_each;
use belay_protocol::plan::ObjectId;
use belay_protocol::trace::{Span, spans};
use clap::ValueEnum;
use console::Term;

use self::waterfall::Page;
use crate::Target;
use crate::exit::CliError;
use crate::journal::{self, Journaled};

#[derive(clap::Args)]
pub struct TraceArguments {
    /// Name of the AgentRun
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    run: Option<String>,
    /// What `belay journal export` printed, instead of a run of the cluster
    #[arg(long)]
    pub file: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// uid of the AgentRun, where it is gone
    #[arg(long)]
    uid: Option<String>,
    /// Where the operator is installed
    #[arg(long, default_value = "belay-system")]
    operator_namespace: String,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Output {
    Text,
    /// Spans with their ids and attributes
    Json,
}

/// All that is shown.
struct Trace {
    run: ObjectId,
    /// Time of the newest record, milliseconds since the Unix epoch: how long what is open has been.
    as_of: i64,
    /// In the order in which they began.
    spans: Vec<Span>,
}

pub async fn of_run(target: &Target, arguments: &TraceArguments) -> Result<ExitCode, CliError> {
    let run = arguments.run.as_deref().unwrap_or_default(); // clap asks for it where no file is named
    let (uid, operator_namespace) = (arguments.uid.as_deref(), arguments.operator_namespace.as_str());
    let export = journal::read(target, &Journaled { run, uid, operator_namespace }).await?;
    let trace =
        read(export.as_bytes()).map_err(|fault| CliError::Failed(format!("what the operator sent: {fault}")))?;
    print(&trace, arguments.output)
}

/// Needs no cluster.
pub fn of_file(file: &Path, output: Output) -> Result<ExitCode, CliError> {
    let name = file.display();
    let bytes = std::fs::read(file).map_err(|e| CliError::Usage(format!("{name}: {e}")))?;
    print(&read(&bytes).map_err(|fault| CliError::Failed(format!("{name}: {fault}")))?, output)
}

fn read(export: &[u8]) -> Result<Trace, belay_protocol::export::Fault> {
    let mut records: Vec<Record> = Vec::new();
    let run = verify_each(export, |record| records.push(record.clone()))?.header.run;
    let as_of = records.last().map_or(0, |record| record.at);
    Ok(Trace { spans: spans(&run.uid, &records), run, as_of })
}

fn print(trace: &Trace, output: Output) -> Result<ExitCode, CliError> {
    let mut text = match output {
        Output::Text => waterfall::render(trace, page()).join("\n"),
        Output::Json => json::render(trace),
    };
    text.push('\n');
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    written.map_err(|e| CliError::Failed(format!("writing the trace: {e}")))?;
    Ok(ExitCode::SUCCESS)
}

fn page() -> Page {
    if std::io::stdout().is_terminal() {
        let width = Term::stdout().size_checked().map_or(80, |(_rows, columns)| usize::from(columns));
        Page::Terminal { width }
    } else {
        Page::Plain
    }
}

#[cfg(test)]
mod tests;
