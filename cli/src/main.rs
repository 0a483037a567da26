//! `belay`: what people type. It holds nothing but the user's own kubeconfig; the API server decides what
//! that may do.

mod approvals;
mod can_i;
mod cancel;
mod doctor;
mod exit;
mod follow;
mod get;
mod journal;
mod logs;
mod namespace;
mod run;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use crate::exit::CliError;
use crate::journal::JournalCommand;

/// Runs AI agents on Kubernetes, governed. Exit codes: 0 succeeded, 1 failed, 2 usage, 3 cancelled, 4 timed out.
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
    Show { name: String },
    /// Say what became of a call whose end nobody knows
    Resolve(approvals::ResolveArguments),
    /// Ask whether you may decide for a policy; kubectl cannot ask that
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
    /// Check the installation and say what to do about what is wrong
    Doctor,
    /// Print the versions of this program and of the cluster
    Version,
}

/// A connection to the API server and the namespace that commands work in.
pub struct Target {
    pub client: Client,
    pub namespace: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("belay: another TLS provider was installed first");
        return ExitCode::FAILURE;
    }
    match dispatch(arguments).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("belay: {error}");
            error.exit_code()
        }
    }
}

async fn dispatch(arguments: Arguments) -> Result<ExitCode, CliError> {
    if let Command::Journal(JournalCommand::Verify { file }) = &arguments.command {
        return journal::print_verdict(file); // works where no cluster is
    }
    let target = connect(arguments.namespace, arguments.context.clone()).await?;
    match arguments.command {
        Command::Run(run) => run::run(&target, run).await,
        Command::Get { name: None } => get::list(&target).await,
        Command::Get { name: Some(name) } => get::one(&target, &name).await,
        Command::Logs { name, follow } => logs::logs(&target, &name, follow).await,
        Command::Cancel { name } => cancel::cancel(&target, &name).await,
        Command::Approvals => approvals::list(&target).await,
        Command::Show { name } => approvals::show(&target, &name).await,
        Command::Resolve(arguments) => approvals::resolve(&target, arguments).await,
        Command::CanI { verb, policy } => can_i::can_i(&target, &verb, &policy).await,
        Command::Namespace(command) => namespace::namespace(&target, command).await,
        Command::Journal(JournalCommand::Export(export)) => {
            journal::export(&target, arguments.context.as_deref(), &export)
        }
        Command::Journal(JournalCommand::Verify { file }) => journal::print_verdict(&file),
        Command::Doctor => doctor::doctor(&target).await,
        Command::Version => version(&target).await,
    }
}

async fn connect(namespace: Option<String>, context: Option<String>) -> Result<Target, CliError> {
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    let config = match context {
        Some(_) => Config::from_kubeconfig(&options).await.map_err(CliError::kubeconfig)?,
        None => Config::infer().await.map_err(CliError::kubeconfig)?,
    };
    let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|e| CliError::api("connecting", e))?;
    Ok(Target { client, namespace })
}

async fn version(target: &Target) -> Result<ExitCode, CliError> {
    println!("belay {}", env!("CARGO_PKG_VERSION"));
    let server =
        target.client.apiserver_version().await.map_err(|e| CliError::api("asking the server's version", e))?;
    println!("Kubernetes {}", server.git_version);
    Ok(ExitCode::SUCCESS)
}
