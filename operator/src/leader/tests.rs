//! Leadership against a scripted API server, in time that the test moves.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use http::{Method, Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::service_fn;

use super::*;

/// How the API server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Failing,
    Silent,
}

/// Keeps one Lease as the API server does: a write needs the version that it read.
struct Server {
    lease: Option<Value>,
    version: u64,
    health: Health,
}

impl Server {
    fn holding(lease: Option<Value>) -> Arc<Mutex<Self>> {
        let mut server = Self { lease: None, version: 0, health: Health::Well };
        if let Some(lease) = lease {
            server.keep(lease);
        }
        Arc::new(Mutex::new(server))
    }

    fn keep(&mut self, mut lease: Value) -> Value {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        lease
    }

    /// As somebody else would write to it.
    fn change(&mut self, change: impl FnOnce(&mut Value)) {
        let mut lease = self.lease.clone().unwrap();
        change(&mut lease);
        self.keep(lease);
    }

    fn answer(&mut self, method: &Method, mut body: Value) -> (u16, Value) {
        if self.health == Health::Failing {
            return refusal(500, "InternalError");
        }
        match (method.as_str(), &self.lease) {
            ("GET", Some(lease)) => (200, lease.clone()),
            ("PUT", Some(lease)) if lease["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"] => {
                (200, self.keep(body))
            }
            ("PUT", Some(_)) => refusal(409, "Conflict"),
            ("GET" | "PUT", None) => refusal(404, "NotFound"),
            ("POST", None) => {
                body["metadata"]["uid"] = json!("uid-made");
                (201, self.keep(body))
            }
            (method, _) => panic!("unexpected {method}"),
        }
    }
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": reason,
    });
    (code, status)
}

fn client(server: &Arc<Mutex<Server>>) -> Client {
    let server = Arc::clone(server);
    let service = service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let (parts, body) = request.into_parts();
            if server.lock().health == Health::Silent {
                return std::future::pending().await;
            }
            let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
            let (code, answer) = server.lock().answer(&parts.method, body);
            let body = Body::from(serde_json::to_vec(&answer)?);
            Ok::<_, tower::BoxError>(Response::builder().status(code).body(body)?)
        }
    });
    Client::new(service, "belay-system")
}

fn lease(holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": NAME, "namespace": "belay-system", "uid": "uid-lease"},
        "spec": {"holderIdentity": holder, "leaseTransitions": 4, "renewTime": "2026-11-23T10:00:00.000000Z"},
    })
}

async fn leader(server: &Arc<Mutex<Server>>) -> Leadership {
    lead(client(server), "belay-system", "me".to_owned(), &CancellationToken::new()).await.unwrap()
}

fn holder(server: &Arc<Mutex<Server>>) -> Value {
    server.lock().lease.clone().unwrap()["spec"]["holderIdentity"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_free_lease_is_acquired_at_once_and_counts_the_reign() {
    let began = Instant::now();
    let server = Server::holding(Some(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME, "uid": "uid-lease"},
    })));
    let leadership = leader(&server).await;
    assert_eq!(leadership.token, Token { lease_uid: "uid-lease".into(), transitions: 1 });
    assert_eq!(leadership.previous, None);
    assert_eq!(holder(&server), "me");
    assert!(began.elapsed() < RENEW_EVERY);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_renews_is_taken_after_its_time_whatever_its_clock_says() {
    for renewed in ["1999-01-01T00:00:00.000000Z", "2199-01-01T00:00:00.000000Z"] {
        let mut held = lease("she");
        held["spec"]["renewTime"] = json!(renewed);
        let server = Server::holding(Some(held));
        let began = Instant::now();
        let leadership = leader(&server).await;
        assert_eq!(leadership.token.transitions, 5);
        assert!(began.elapsed() >= LEASE && began.elapsed() < LEASE + RENEW_EVERY, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_leads_beside_a_leader_who_renews() {
    let server = Server::holding(Some(lease("")));
    let first = leader(&server).await;
    let other = lead(client(&server), "belay-system", "other".to_owned(), &first.lost);
    assert!(timeout(LEASE * 20, other).await.is_err(), "two lead");
    assert_eq!(holder(&server), "me");
    assert!(!first.lost.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_the_lease_is_free() {
    for health in [Health::Failing, Health::Silent] {
        let server = Server::holding(Some(lease("")));
        let leadership = leader(&server).await;
        let began = Instant::now();
        server.lock().health = health;
        leadership.lost.cancelled().await;
        assert!(began.elapsed() <= GIVE_UP_AFTER, "{health:?}: {:?}", began.elapsed());
        assert_eq!(leadership.resign().await, Err(Loss::NotRenewed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_costs_no_leadership() {
    let server = Server::holding(Some(lease("")));
    let leadership = leader(&server).await;
    for health in [Health::Failing, Health::Silent] {
        server.lock().health = health;
        assert!(timeout(Duration::from_secs(5), leadership.lost.cancelled()).await.is_err());
        server.lock().health = Health::Well;
        assert!(timeout(LEASE * 2, leadership.lost.cancelled()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_deleted_or_made_anew_is_lost() {
    type Change<'a> = &'a dyn Fn(&mut Server);
    let taken = |server: &mut Server| server.change(|lease| lease["spec"]["holderIdentity"] = json!("she"));
    let released = |server: &mut Server| server.change(|lease| lease["spec"]["holderIdentity"] = json!(null));
    let deleted = |server: &mut Server| server.lease = None;
    let anew = |server: &mut Server| server.change(|lease| lease["metadata"]["uid"] = json!("uid-other"));
    let table: [(Change<'_>, Loss); 4] = [
        (&taken, Loss::Taken("she".into())),
        (&released, Loss::Released),
        (&deleted, Loss::Deleted),
        (&anew, Loss::Deleted),
    ];
    for (change, loss) in table {
        let server = Server::holding(Some(lease("")));
        let leadership = leader(&server).await;
        change(&mut server.lock());
        let began = Instant::now();
        leadership.lost.cancelled().await;
        assert!(began.elapsed() <= RENEW_EVERY, "{loss:?}");
        assert_eq!(leadership.resign().await, Err(loss));
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_write_beside_it_costs_no_leadership_and_is_kept() {
    let server = Server::holding(Some(lease("")));
    let leadership = leader(&server).await;
    server.lock().change(|lease| lease["metadata"]["labels"] = json!({"team": "platform"}));
    assert!(timeout(LEASE, leadership.lost.cancelled()).await.is_err());
    assert_eq!(server.lock().lease.as_ref().unwrap()["metadata"]["labels"]["team"], "platform");
    assert_eq!(leadership.resign().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn each_renewal_says_how_far_the_journal_is_and_the_next_leader_reads_it() {
    let server = Server::holding(Some(lease("")));
    let first = leader(&server).await;
    let commits = Arc::new(std::sync::atomic::AtomicU64::new(41));
    let counted = Arc::clone(&commits);
    let order = std::sync::atomic::Ordering::SeqCst;
    first.bear_witness(move || Some(("journal-a".to_owned(), counted.load(order))));
    sleep(RENEW_EVERY * 2).await;
    let annotations = server.lock().lease.as_ref().unwrap()["metadata"]["annotations"].clone();
    assert_eq!(annotations, json!({JOURNAL_ID: "journal-a", JOURNAL_COMMITS: "41"}));
    // Whatever was committed since the last renewal is in the last word.
    commits.store(42, order);
    assert_eq!(first.resign().await, Ok(()));
    assert_eq!(holder(&server), Value::Null);

    let began = Instant::now();
    let second = leader(&server).await;
    assert!(began.elapsed() < RENEW_EVERY, "a released Lease is free at once");
    assert_eq!(second.previous, Some(Witness { journal: "journal-a".into(), commits: 42 }));
    // One that has nothing to say leaves the witness alone.
    sleep(RENEW_EVERY * 2).await;
    assert_eq!(second.resign().await, Ok(()));
    assert_eq!(server.lock().lease.as_ref().unwrap()["metadata"]["annotations"][JOURNAL_COMMITS], "42");
}

#[tokio::test(start_paused = true)]
async fn a_missing_lease_is_made_once_nobody_can_hold_it_any_more() {
    let server = Server::holding(None);
    let began = Instant::now();
    let leadership = leader(&server).await;
    assert!(began.elapsed() >= LEASE);
    assert_eq!(leadership.token, Token { lease_uid: "uid-made".into(), transitions: 1 });
}

#[tokio::test(start_paused = true)]
async fn who_is_told_to_stop_contends_no_more() {
    let server = Server::holding(Some(lease("she")));
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    assert!(lead(client(&server), "belay-system", "me".to_owned(), &shutdown).await.is_none());
    assert_eq!(holder(&server), "she");
}
