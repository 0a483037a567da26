//! The operator's process: settings, log, signals. Everything else is in the library.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use belay_operator::api_client::api_client;
use belay_operator::config::{Arguments, Command, Config, JournalCommand, LogFormat, journal_path};
use belay_operator::tuning::Tuning;
use belay_operator::{journal, operator};
use clap::Parser;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    if let Err(error) = keep_memory() {
        eprintln!("belay-operator: cannot keep its memory to itself: {error}");
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::parse();
    match (arguments.command, arguments.config) {
        (Some(Command::Journal(JournalCommand::Export { run, data_dir })), _) => print_export(&run, &data_dir),
        (None, Some(config)) => operate(config),
        // clap has said what is missing before it comes to this.
        (None, None) => ExitCode::FAILURE,
    }
}

/// A crash leaves no core on the node, and no other process of the same user reads this one's memory: the keys of the
/// operator's authority are there.
fn keep_memory() -> nix::Result<()> {
    // A core that the node pipes into a handler of its own knows no limit: it is this that stops it.
    set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

fn operate(config: Config) -> ExitCode {
    log(config.log_format);
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator ends");
            ExitCode::FAILURE
        }
    }
}

/// The whole export or nothing, on standard output.
fn print_export(run: &str, data_dir: &Path) -> ExitCode {
    let exported = || -> anyhow::Result<()> {
        let file = journal::export(&journal_path(data_dir), run)?;
        std::io::stdout().lock().write_all(&file).context("writing the export")
    };
    match exported() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("belay-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => lines.json().with_current_span(false).with_span_list(false).init(),
        LogFormat::Text => lines.init(),
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a rustls provider is installed already"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminated = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupted = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let asked = shutdown.clone();
        // The first signal drains, the second gives up.
        tokio::spawn(async move {
            for calls in 1..=2 {
                tokio::select! {
                    _ = terminated.recv() => {}
                    _ = interrupted.recv() => {}
                }
                tracing::info!(calls, "shutting down");
                if calls == 2 {
                    std::process::exit(1);
                }
                asked.cancel();
            }
        });
        let tuning = Tuning::default();
        let access = kube::Config::infer().await.context("no way to the API server")?;
        let client = api_client(access, tuning.times.api_answer).context("no way to the API server")?;
        Ok(Box::pin(operator::run(config, client, tuning, shutdown)).await?)
    })
}
