//! One operator leads at a time, as processes that are killed, paused and asked to go, on a real API server.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use belay_e2e::process::{Installed, Process, get, kubeconfig_of_the_operator, operator};
use belay_e2e::{BareServer, Kubectl};

/// A Lease that nobody renews is free after this.
const LEASE: Duration = Duration::from_secs(15);
/// For everything that must happen at once, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(8);

fn contend(identity: &str, namespace: &str, witness: &[&str], server: &BareServer) -> Process {
    let arguments: Vec<&str> = [namespace, identity].into_iter().chain(witness.iter().copied()).collect();
    Process::start("examples/contend", &arguments, &server.kubeconfig)
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
        contend(identity, &self.name, &[], &self.server)
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
    let mut first = contend("first", &place.name, &["journal-a", "42"], &place.server);
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

fn is_ready(address: SocketAddr) -> Result<()> {
    let answer = get(address, "/readyz")?;
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
    let answer = get(http, "/readyz").unwrap();
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
