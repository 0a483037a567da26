//! One operator leads at a time, as processes that are killed, paused and asked to go, on a real API server.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use belay_e2e::{BareServer, Kubectl};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// A Lease that nobody renews is free after this.
const LEASE: Duration = Duration::from_secs(15);
/// For everything that must happen at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(8);

/// A program of this workspace, killed when dropped.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// `program` of the folder in `BELAY_BIN`. Its output's lines are read as they come.
    fn start(program: &str, arguments: &[&str], kubeconfig: &str) -> Self {
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

    fn contend(identity: &str, namespace: &str, witness: &[&str], server: &BareServer) -> Self {
        let arguments: Vec<&str> = [namespace, identity].into_iter().chain(witness.iter().copied()).collect();
        Self::start("examples/contend", &arguments, &server.kubeconfig)
    }

    /// The next line that holds `words`, and how long it took.
    fn says(&self, words: &str, within: Duration) -> (String, Duration) {
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

    fn signal(&self, name: &str) {
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

/// A namespace with a Lease that was never held, as an installation brings it.
struct Place {
    server: BareServer,
    name: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let server = BareServer::new().unwrap();
        let name = format!("{name}-{}", std::process::id());
        server.kubectl.run(&["create", "namespace", &name]).unwrap();
        let place = Self { server, name };
        let lease = "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: belay-operator}}";
        place.kubectl().apply(lease).unwrap();
        place
    }

    fn kubectl(&self) -> Kubectl {
        self.server.kubectl.with(&["--namespace", &self.name])
    }

    fn contend(&self, identity: &str) -> Process {
        Process::contend(identity, &self.name, &[], &self.server)
    }

    fn holder(&self) -> String {
        self.kubectl().run(&["get", "lease", "belay-operator", "-o", "jsonpath={.spec.holderIdentity}"]).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.server.kubectl.run(&["delete", "namespace", &self.name, "--timeout=30s"]);
    }
}

#[test]
fn when_the_leader_is_killed_another_leads_after_the_lease_time() {
    let place = Place::new("leader-killed");
    let first = place.contend("first");
    let (led, _) = first.says("leading", AT_ONCE);
    assert!(led.ends_with(" 1 -"), "{led}");
    let second = place.contend("second");
    first.signal("-KILL");
    let (led, took) = second.says("leading", LEASE + AT_ONCE);
    assert!(led.ends_with(" 2 -"), "{led}");
    assert!(took > LEASE / 2, "nobody may lead so soon: {took:?}");
    assert_eq!(place.holder(), "second");
}

#[test]
fn a_leader_that_was_paused_finds_that_it_lost_and_stops() {
    let place = Place::new("leader-paused");
    let mut first = place.contend("first");
    first.says("leading", AT_ONCE);
    let second = place.contend("second");
    first.signal("-STOP");
    second.says("leading", LEASE + AT_ONCE);
    first.signal("-CONT");
    first.says("lost: ", AT_ONCE);
    assert!(!first.child.wait().unwrap().success());
    assert_eq!(place.holder(), "second");
}

#[test]
fn a_leader_that_is_asked_to_go_hands_over_at_once() {
    let place = Place::new("leader-asked");
    let mut first = Process::contend("first", &place.name, &["journal-a", "42"], &place.server);
    first.says("leading", AT_ONCE);
    let second = place.contend("second");
    first.signal("-TERM");
    first.says("released", AT_ONCE);
    assert!(first.child.wait().unwrap().success());
    let (led, _) = second.says("leading", AT_ONCE);
    assert!(led.ends_with(" 2 journal-a/42"), "{led}");
}

#[test]
fn a_leader_whose_lease_was_deleted_stops() {
    let place = Place::new("leader-deleted");
    let first = place.contend("first");
    first.says("leading", AT_ONCE);
    place.kubectl().run(&["delete", "lease", "belay-operator"]).unwrap();
    let (lost, _) = first.says("lost: ", AT_ONCE);
    assert!(lost.contains("deleted"), "{lost}");
}

/// What manifests hold, deleted when dropped.
struct Installed(BareServer);

impl Installed {
    fn new() -> Self {
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

/// What /readyz answers.
fn readiness(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The server's kubeconfig with the rights of the operator, and no others.
fn kubeconfig_of_the_operator(server: &BareServer, folder: &Path) -> String {
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
fn operator(uid: &str, data: &Path, kubeconfig: &str) -> (Process, SocketAddr) {
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

fn is_ready(address: SocketAddr) -> Result<()> {
    let answer = readiness(address)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

#[test]
fn an_operator_that_does_not_lead_says_so_and_takes_over_and_one_that_lost_ends_with_the_reason() {
    let installed = Installed::new();
    let server = &installed.0;
    let data = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig_of_the_operator(server, data.path());
    let start = |uid| operator(uid, data.path(), &kubeconfig);
    let (mut first, http) = start("first");
    server.soon(|| is_ready(http)).unwrap();
    let (second, http) = start("second");
    // It would be ready by now, as the first was, if it opened the journal and watched.
    second.says("contending", AT_ONCE);
    let answer = readiness(http).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("not the leader"), "{answer}");

    first.signal("-TERM");
    assert!(first.child.wait().unwrap().success());
    second.says("leading", AT_ONCE);
    server.soon(|| is_ready(http)).unwrap();
    let (mut third, http) = start("third");
    third.says("contending", AT_ONCE);
    second.signal("-KILL");
    third.says("leading", LEASE + AT_ONCE);
    server.soon(|| is_ready(http)).unwrap();

    let system = server.kubectl.with(&["--namespace", "belay-system"]);
    let taken = r#"{"spec":{"holderIdentity":"someone"}}"#;
    system.run(&["patch", "lease", "belay-operator", "--type=merge", "-p", taken]).unwrap();
    third.says("not the leader any more: the Lease was taken by someone", AT_ONCE);
    assert!(!third.child.wait().unwrap().success());
}
