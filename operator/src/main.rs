//! The operator's process: settings, log, signals. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context as _;
use belay_operator::config::{Config, LogFormat};
use belay_operator::operator;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    log(config.log_format);
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the operator ends");
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
        let client = kube::Client::try_default().await.context("no way to the API server")?;
        Ok(operator::run(config, client, shutdown).await?)
    })
}
