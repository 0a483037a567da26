//! Plays the Deployment: keeps one operator process running, under one identity, over one folder.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::points::{Points, Process};
use super::world::SUBJECT;

pub struct Operator {
    folder: PathBuf,
    arguments: Vec<String>,
    /// Whether it is asked to end first, so that what it tells others arrives.
    drains: bool,
    /// The process that runs now, and how many ran before it.
    running: watch::Sender<(Option<i32>, u32)>,
    stopping: watch::Sender<bool>,
}

/// Where an operator finds everybody, and is found.
pub struct Places<'a> {
    pub api: SocketAddr,
    pub seam: SocketAddr,
    pub relay: SocketAddr,
    pub grpc: SocketAddr,
    pub outlets: &'a Outlets,
}

/// From where the operator is looked at, and where it sends what it tells of runs.
#[derive(Clone, Default)]
pub struct Outlets {
    /// None: a port that nobody knows.
    pub http: Option<SocketAddr>,
    /// Of a collector; None: nobody is told.
    pub otlp: Option<String>,
}

impl Operator {
    pub fn new(folder: PathBuf, places: &Places<'_>) -> Arc<Self> {
        let Places { api, seam, relay, grpc, outlets } = places;
        let http = outlets.http.map_or_else(|| "127.0.0.1:0".to_owned(), |address| address.to_string());
        let flag = |name: &str, value: &str| [format!("--{name}"), value.to_owned()];
        let mut arguments = vec!["operator".to_owned(), format!("http://{api}"), seam.to_string()];
        for pair in [
            flag("runner-image", "runner:test"),
            flag("pod-uid", "operator"),
            flag("grpc-address", &grpc.to_string()),
            flag("http-address", &http),
            flag("runner-operator-address", &format!("https://{relay}")),
            flag("certificate-names", "127.0.0.1"),
            // Where the fake tool and chat server listen.
            flag("allowed-private-hosts", "127.0.0.1"),
            flag("journal-reserve-mebibytes", "1"),
            flag("data-dir", folder.to_str().unwrap()),
        ] {
            arguments.extend(pair);
        }
        if let Some(otlp) = &outlets.otlp {
            arguments.extend(flag("otlp-endpoint", otlp));
        }
        let drains = outlets.otlp.is_some();
        Arc::new(Self {
            folder,
            arguments,
            drains,
            running: watch::channel((None, 0)).0,
            stopping: watch::channel(false).0,
        })
    }

    /// Starts it, and again whenever it ends.
    pub async fn work(self: Arc<Self>) {
        let mut stopping = self.stopping.subscribe();
        let mut before = 0;
        while !*stopping.borrow() {
            let mut child = self.start();
            // Waiting would close it, and the process ends with it.
            let _alive = child.stdin.take();
            let pid = i32::try_from(child.id().unwrap()).unwrap();
            self.running.send_replace((Some(pid), before));
            let stopped = tokio::select! {
                _ = child.wait() => false,
                _ = stopping.wait_for(|stopping| *stopping) => true,
            };
            if stopped {
                if self.drains {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                    let _ = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
                }
                child.kill().await.unwrap();
            }
            before += 1;
            self.running.send_replace((None, before));
        }
    }

    /// Ends as `kill -9` ends it; returns when it is dead.
    pub async fn kill(&self) {
        let (pid, before) = *self.running.borrow();
        let Some(pid) = pid else { return };
        let mut running = self.running.subscribe();
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = running.wait_for(|(_, now)| *now > before).await;
    }

    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        let _ = self.running.subscribe().wait_for(|(pid, _)| pid.is_none()).await;
    }

    fn start(&self) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("operator.log")).unwrap();
        Command::new(SUBJECT)
            .args(&self.arguments)
            .env("HOSTNAME", "belay-operator")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

/// Hears of every commit of the operator, and lets it go on.
pub async fn serve_seam(points: Arc<Points>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let points = points.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                    points.pass(line.trim_end(), Process::Operator).await;
                    if stream.get_mut().write_all(b"\n").await.is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
    address
}
