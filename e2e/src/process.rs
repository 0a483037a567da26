//! Programs of this workspace as processes, and the operator on the bare API server with its own rights and no others.
#![allow(clippy::missing_panics_doc, clippy::must_use_candidate, clippy::unwrap_used, clippy::panic)] // a test's own words

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::BareServer;

pub const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// A program of this workspace, killed when dropped.
pub struct Process {
    pub child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// `program` of the folder in `BELAY_BIN`. Its output's lines are read as they come.
    #[must_use]
    pub fn start(program: &str, arguments: &[&str], kubeconfig: &str) -> Self {
        let folder = std::env::var("BELAY_BIN").unwrap();
        let mut child = Command::new(format!("{folder}/{program}"))
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{folder}/{program}: {error}"));
        let (tell, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    // Nobody listens any more: the test is over.
                    let _ = tell.send(line);
                }
            });
        }
        Self { child, lines }
    }

    /// The next line that holds `words`, and how long it took.
    pub fn says(&self, words: &str, within: Duration) -> (String, Duration) {
        let began = Instant::now();
        let mut heard = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(within.saturating_sub(began.elapsed())) {
            if line.contains(words) {
                return (line, began.elapsed());
            }
            heard.push(line);
        }
        panic!("no '{words}' within {within:?}, but {heard:#?}");
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "kill {name}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What manifests hold, deleted when dropped.
pub struct Installed(pub BareServer);

impl Installed {
    #[must_use]
    pub fn new() -> Self {
        let server = BareServer::new().unwrap();
        server.kubectl.run(&["apply", "--server-side", "-k", MANIFESTS]).unwrap();
        Self(server)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = self.0.kubectl.run(&["delete", "-k", MANIFESTS]);
    }
}

impl Default for Installed {
    fn default() -> Self {
        Self::new()
    }
}

/// The whole answer to a GET, headers included.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The server's kubeconfig with the rights of the operator, and no others.
#[must_use]
pub fn kubeconfig_of_the_operator(server: &BareServer, folder: &Path) -> String {
    let admin = fs::read_to_string(&server.kubeconfig).unwrap();
    let user = "user: {";
    assert!(admin.contains(user), "{admin}");
    let operator = admin.replace(user, &format!("{user}as: {OPERATOR}, as-groups: [{OPERATOR_GROUPS}], "));
    let path = folder.join("kubeconfig");
    fs::write(&path, operator).unwrap();
    path.display().to_string()
}

const OPERATOR: &str = "'system:serviceaccount:belay-system:belay-operator'";
const OPERATOR_GROUPS: &str = "'system:serviceaccounts', 'system:authenticated'";

/// A whole operator and where its health is served.
#[must_use]
pub fn operator(uid: &str, data: &Path, kubeconfig: &str) -> (Process, SocketAddr) {
    let (http, grpc) = (free_address(), free_address());
    let arguments = [
        format!("--pod-uid={uid}"),
        format!("--data-dir={}", data.display()),
        format!("--http-address={http}"),
        format!("--grpc-address={grpc}"),
        "--runner-image=none".to_owned(),
        "--log-format=text".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    (Process::start("belay-operator", &arguments, kubeconfig), http)
}
