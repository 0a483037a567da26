//! The operator or the runner as `--test every_point` kills it: the whole of either, as a process of its own, on
//! loopback. What differs from production comes in as values: shorter times, and an observer of commits that asks
//! the test before each goes on. Ends with its standard input, so that nothing outlives the test.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use async_trait::async_trait;
use belay_operator::api_client::api_client;
use belay_operator::config::Config as OperatorConfig;
use belay_operator::journal::CommitObserver;
use belay_operator::tuning::{Times, Tuning};
use belay_runner::config::{Config as RunnerConfig, Mode};
use clap::Parser as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Short enough that a test can wait for them, long enough that nothing depends on it.
const TIMES: Times = Times {
    api_answer: Duration::from_secs(2),
    quarantine_margin: Duration::from_millis(500),
    wait_grace: Duration::from_millis(400),
    log_linger: Duration::ZERO,
};

fn main() -> Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,belay_operator=debug"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a rustls provider is installed already"))?;
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.next().as_deref() {
        Some("operator") => runtime.block_on(operate(arguments.collect())),
        Some("runner") => runtime.block_on(run()),
        other => bail!("neither operator nor runner but {other:?}"),
    }
}

/// `API SEAM FLAG..`: where the API server is, whom to ask about commits, and the operator's own flags.
async fn operate(arguments: Vec<String>) -> Result<()> {
    let [api, seam, flags @ ..] = arguments.as_slice() else { bail!("an operator needs API and SEAM") };
    let config =
        OperatorConfig::try_parse_from(std::iter::once("belay-operator").chain(flags.iter().map(String::as_str)))?;
    let access = kube::Config::new(api.parse()?);
    let client = api_client(access, TIMES.api_answer)?;
    let commits = Asking(Mutex::new(BufReader::new(TcpStream::connect(seam).await?)));
    let tuning = Tuning { times: TIMES, commits: Some(Arc::new(commits)) };
    let shutdown = CancellationToken::new();
    let mut terminated = signal(SignalKind::terminate())?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        terminated.recv().await;
        asked.cancel();
    });
    Ok(Box::pin(belay_operator::operator::run(config, client, tuning, shutdown)).await?)
}

/// The environment is a pod's; where the kubelet mounts things is `SUBJECT_MOUNTS`.
async fn run() -> Result<()> {
    let mounts = PathBuf::from(std::env::var("SUBJECT_MOUNTS").context("SUBJECT_MOUNTS")?);
    let config = RunnerConfig::parse(|name| std::env::var(name).ok())?;
    let config =
        RunnerConfig { token_file: mounts.join("token"), credentials_folder: mounts.join("credentials"), ..config };
    let mut terminated = signal(SignalKind::terminate())?;
    let stop = async move {
        terminated.recv().await;
    };
    match config.mode {
        Mode::Run => {
            let instance = format!("{:032x}", rand::random::<u128>());
            belay_runner::run::run(&config, instance, stop).await?;
        }
        Mode::Probe => tokio::select! {
            probed = belay_runner::probe::probe(&config) => probed?,
            () = stop => {}
        },
    }
    Ok(())
}

/// Tells the test of each commit and goes on when it says so.
struct Asking(Mutex<BufReader<TcpStream>>);

#[async_trait]
impl CommitObserver for Asking {
    async fn before(&self, changes: &[&'static str]) {
        self.ask(&format!("before commit {}\n", changes.join("+"))).await;
    }

    async fn after(&self, changes: &[&'static str]) {
        self.ask(&format!("after commit {}\n", changes.join("+"))).await;
    }
}

impl Asking {
    /// The test is gone where this fails; this process ends with it.
    async fn ask(&self, what: &str) {
        let mut seam = self.0.lock().await;
        let _ = seam.get_mut().write_all(what.as_bytes()).await;
        let _ = seam.read_line(&mut String::new()).await;
    }
}
