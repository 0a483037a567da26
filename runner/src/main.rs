//! The program in every run's and probe's pod. Takes no arguments and listens on nothing.

use std::process::ExitCode;

use anyhow::Context as _;
use belay_runner::config::{Config, Mode};
use belay_runner::log::WarningLine;
use belay_runner::{probe, process, run};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let kept = process::keep_to_itself();
    // People read these between the lines of steps.
    tracing_subscriber::fmt()
        .with_ansi(false)
        .event_format(WarningLine)
        .with_env_filter(filter())
        .with_writer(std::io::stderr)
        .init();
    match kept.context("cannot keep its memory to itself").and_then(|()| start()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the runner ends");
            ExitCode::FAILURE
        }
    }
}

/// `RUST_LOG`, or warnings. rmcp logs what servers say, as often as they say it, and that may be anything: what matters of
/// it is in the journal.
fn filter() -> EnvFilter {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    match "rmcp=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => EnvFilter::new("warn"),
    }
}

fn start() -> anyhow::Result<()> {
    // Before anything speaks TLS; a second provider in the tree would make the first use ambiguous.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a rustls provider is installed already"))?;
    let config = Config::parse(|name| std::env::var(name).ok())?;
    // One thread: a run waits nearly all of its life, and memory is what a pod a run costs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first process of a container has no default reaction to signals: without this it ignores them.
        let mut terminated = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let stop = async move {
            terminated.recv().await;
        };
        match config.mode {
            Mode::Run => {
                let instance = uuid::Uuid::new_v4().to_string();
                run::run(&config, instance, stop).await?;
            }
            Mode::Probe => tokio::select! {
                probed = probe::probe(&config) => probed?,
                () = stop => {}
            },
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_what_servers_say_reaches_the_log_through_rmcp() {
        let filter = filter().to_string();
        assert!(filter.split(',').any(|directive| directive == "rmcp=off"), "{filter}");
    }
}
