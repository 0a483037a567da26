//! `belay`: what people type. It holds nothing but the user's own kubeconfig; the API server decides what
//! that may do.

mod approvals;
mod artifacts;
mod can_i;
mod cancel;
mod doctor;
mod exit;
mod follow;
mod get;
mod grants;
mod journal;
mod logs;
mod namespace;
mod place;
mod policy;
mod run;
mod table;
mod tool;
mod trace;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use crate::exit::CliError;
use crate::journal::JournalCommand;
use crate::place::{Place, Target};

/// Runs AI agents on Kubernetes, governed. Exit codes: 0 succeeded, 1 failed, 2 usage, 3 cancelled or
/// not confirmed, 4 timed out.
#[derive(Parser)]
#[command(name = "belay", version)]
struct Arguments {
    /// Namespace; the current context's otherwise
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true)]
    context: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a run of an Agent
    Run(run::RunArguments),
    /// Show runs, or one run in full
    Get { name: Option<String> },
    /// Print the steps of a run
    Logs {
        name: String,
        /// Keep printing until the run ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Cancel a run: no further step starts, and a call in flight has a short grace time
    Cancel { name: String },
    /// Show what waits for a person's decision
    Approvals,
    /// Show one question whole, as it would be decided
    Show(approvals::ShowArguments),
    /// Say yes to a call that waits, or to what a Tool's server offers
    Approve(approvals::ApproveArguments),
    /// Show what people allowed for the rest of a run
    Grants,
    /// Take back what is left of what people allowed for the rest of a run
    Revoke {
        /// Name of the ApprovalGrant, as `belay grants` shows it
        name: String,
    },
    /// Say no to it; also after a yes, until the Approval is sealed
    Deny(approvals::DenyArguments),
    /// Say what became of a call whose end nobody knows
    Resolve(approvals::ResolveArguments),
    /// Tell the server of a call what it wants to know, or decline to
    Answer(approvals::AnswerArguments),
    /// Accept what a Tool's server offers otherwise than it was accepted, or do not
    #[command(subcommand)]
    Tool(tool::ToolCommand),
    /// Ask whether you may decide for a policy, or tool/NAME; kubectl cannot ask that
    CanI {
        #[arg(value_parser = ["approve"])]
        verb: String,
        policy: String,
    },
    /// Opt a namespace in or out
    #[command(subcommand)]
    Namespace(namespace::NamespaceCommand),
    /// Export what was recorded of a run, or verify such a file
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// List what results of a run hold besides the text that is shown, or print the bytes of one
    Artifacts(artifacts::ArtifactsArguments),
    /// Show what a run did, step by step: times, tokens, cost, and who decided what
    Trace(trace::TraceArguments),
    /// Check an ApprovalPolicy and run its tests, or judge by it what runs proposed; needs no cluster
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Check the installation and say what to do about what is wrong
    Doctor,
    /// Print the versions of this program and of the cluster
    Version,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = arguments();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("belay: another TLS provider was installed first");
        return ExitCode::FAILURE;
    }
    match dispatch(arguments).await {
        Ok(code) => code,
        Err(error) => {
            // It may quote what a server or a file says.
            let words: Vec<String> = error.to_string().lines().map(belay_crds::visible).collect();
            eprintln!("belay: {}", words.join("\n"));
            error.exit_code()
        }
    }
}

/// Parsed under the name that was typed: `kubectl belay` runs a file named `kubectl-belay`.
fn arguments() -> Arguments {
    let command = Arguments::command().bin_name(typed_name(std::env::args_os().next().as_deref()));
    Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn typed_name(file: Option<&OsStr>) -> &'static str {
    let stem = file.map(Path::new).and_then(Path::file_stem);
    if stem == Some(OsStr::new("kubectl-belay")) { "kubectl belay" } else { "belay" }
}

async fn dispatch(arguments: Arguments) -> Result<ExitCode, CliError> {
    if let Command::Journal(JournalCommand::Verify { file }) = &arguments.command {
        return journal::print_verdict(file); // works where no cluster is
    }
    if let Command::Policy(command) = &arguments.command {
        return policy::policy(command);
    }
    if let Command::Trace(trace) = &arguments.command
        && let Some(file) = &trace.file
    {
        return trace::of_file(file, trace.output);
    }
    let target = connect(arguments.namespace, arguments.context.clone()).await?;
    match arguments.command {
        Command::Run(run) => run::run(&target, run).await,
        Command::Get { name: None } => get::list(&target).await,
        Command::Get { name: Some(name) } => get::one(&target, &name).await,
        Command::Logs { name, follow } => logs::logs(&target, &name, follow).await,
        Command::Cancel { name } => cancel::cancel(&target, &name).await,
        Command::Approvals => approvals::list(&target).await,
        Command::Show(arguments) => approvals::show(&target, &arguments).await,
        Command::Approve(arguments) => approvals::approve(&target, arguments).await,
        Command::Grants => grants::list(&target).await,
        Command::Revoke { name } => grants::revoke(&target, &name).await,
        Command::Deny(arguments) => approvals::deny(&target, arguments).await,
        Command::Resolve(arguments) => approvals::resolve(&target, arguments).await,
        Command::Answer(arguments) => approvals::answer(&target, arguments).await,
        Command::Tool(command) => tool::tool(&target, command).await,
        Command::CanI { verb, policy } => can_i::can_i(&target, &verb, &policy).await,
        Command::Namespace(command) => namespace::namespace(&target, command).await,
        Command::Journal(JournalCommand::Export(export)) => {
            journal::export(&target, arguments.context.as_deref(), &export).await
        }
        Command::Journal(JournalCommand::Verify { file }) => journal::print_verdict(&file),
        Command::Policy(command) => policy::policy(&command),
        Command::Artifacts(arguments) => artifacts::artifacts(&target, &arguments).await,
        Command::Trace(trace) => trace::of_run(&target, &trace).await,
        Command::Doctor => doctor::doctor(&target).await,
        Command::Version => version(&target).await,
    }
}

async fn connect(namespace: Option<String>, context: Option<String>) -> Result<Target, CliError> {
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    let config = match &context {
        Some(_) => Config::from_kubeconfig(&options).await.map_err(CliError::kubeconfig)?,
        None => Config::infer().await.map_err(CliError::kubeconfig)?,
    };
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let place = Place::new(context.as_deref(), &namespace, &config.default_namespace);
    let client = Client::try_from(config).map_err(|e| CliError::api("connecting", e))?;
    Ok(Target { client, namespace, place })
}

async fn version(target: &Target) -> Result<ExitCode, CliError> {
    println!("belay {}", env!("CARGO_PKG_VERSION"));
    let server =
        target.client.apiserver_version().await.map_err(|e| CliError::api("asking the server's version", e))?;
    println!("Kubernetes {}", server.git_version);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::ffi::OsString;

    use belay_crds::Decision;

    use super::*;

    const DOCS: &str = include_str!("../../docs/approvals.md");

    /// Words of a line of the docs: quotes keep words together, and a comment ends it.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" #").next().unwrap_or_default().split(" > ").next().unwrap_or_default();
        let (mut words, mut rest) = (Vec::new(), line);
        while let Some(start) = rest.find(['"', '\'']) {
            let (before, quoted) = rest.split_at(start);
            let quote = quoted.chars().next().unwrap();
            let (inside, after) = quoted.get(1..).and_then(|rest| rest.split_once(quote)).unwrap();
            words.extend(before.split_whitespace().map(str::to_owned));
            words.push(inside.to_owned());
            rest = after;
        }
        words.extend(rest.split_whitespace().map(str::to_owned));
        words
    }

    #[test]
    fn every_command_in_the_docs_is_one() {
        for (docs, least) in [(DOCS, 9), (include_str!("../../docs/tracing.md"), 3)] {
            let commands: Vec<&str> = (docs.lines())
                .map(|line| line.strip_prefix("$ ").unwrap_or(line))
                .filter(|line| line.starts_with("belay "))
                .collect();
            assert!(commands.len() >= least, "{commands:?}");
            for command in commands {
                assert!(Arguments::try_parse_from(words(command)).is_ok(), "{command}");
            }
        }
    }

    #[test]
    fn the_decision_in_the_docs_for_approvers_is_one() {
        let yaml = DOCS.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let object: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
        let decisions: Vec<Decision> =
            serde_json::from_value(object.pointer("/spec/decisions").unwrap().clone()).unwrap();
        assert_eq!(decisions.len(), 1);
    }

    #[test]
    fn the_name_is_what_kubectl_was_told() {
        for (file, name) in [
            ("/usr/bin/kubectl-belay", "kubectl belay"),
            ("kubectl-belay.exe", "kubectl belay"),
            ("belay", "belay"),
            ("/opt/belay-0.1", "belay"),
        ] {
            assert_eq!(typed_name(Some(&OsString::from(file))), name);
        }
        assert_eq!(typed_name(None), "belay");
    }
}
