//! Leads at most one operator at a time: holds the Lease `belay-operator` of the operator's namespace. Knows
//! nothing of what a leader does; the journal's fence covers what a paused one may still try.

mod decision;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

pub use self::decision::{Decision, GIVE_UP_AFTER, LEASE, Loss, Me, RENEW_EVERY, Record, Token, decide};

/// Name of the Lease.
pub const NAME: &str = "belay-operator";
/// Annotations of the Lease: how far the journal of the holder was at the last renewal.
pub const JOURNAL_ID: &str = "belay.dev/journal-id";
pub const JOURNAL_COMMITS: &str = "belay.dev/journal-commits";

/// One request may not eat up the time in which others could succeed.
const REQUEST: Duration = Duration::from_secs(4);
/// Tries to give a Lease back; after that it runs out by itself.
const RELEASES_MAX: usize = 3;

/// How far a journal was. A witness against a journal that was put back to an earlier state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub journal: String,
    pub commits: u64,
}

type Testify = Box<dyn Fn() -> Option<(String, u64)> + Send + Sync>;

/// One that would lead.
#[derive(Clone)]
struct Candidate {
    leases: Api<Lease>,
    identity: String,
    testify: Arc<OnceLock<Testify>>,
}

/// Leadership, held until it is resigned or lost. Dropped, it runs out by itself.
pub struct Leadership {
    /// What the journal's fence is raised with.
    pub token: Token,
    /// What an earlier holder had written of his journal.
    pub previous: Option<Witness>,
    /// Cancelled as soon as this process leads no more.
    pub lost: CancellationToken,
    testify: Arc<OnceLock<Testify>>,
    done: CancellationToken,
    held: JoinHandle<Result<(), Loss>>,
}

/// Contends for the Lease and returns when it is held; `None` where `shutdown` came first.
pub async fn lead(
    client: Client,
    namespace: &str,
    identity: String,
    shutdown: &CancellationToken,
) -> Option<Leadership> {
    let candidate = Candidate { leases: Api::namespaced(client, namespace), identity, testify: Arc::default() };
    shutdown.run_until_cancelled(candidate.contend()).await
}

impl Leadership {
    /// From now on each renewal writes what `testify` says: journal and number of commits. Only the first counts.
    pub fn bear_witness(&self, testify: impl Fn() -> Option<(String, u64)> + Send + Sync + 'static) {
        let _ = self.testify.set(Box::new(testify));
    }

    /// Gives the Lease back, so that another may lead at once. Call it when nothing is written any more.
    ///
    /// # Errors
    /// It had been lost before.
    pub async fn resign(mut self) -> Result<(), Loss> {
        self.done.cancel();
        (&mut self.held).await.unwrap_or(Err(Loss::Stopped))
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.held.abort();
    }
}

/// The Lease as it was last seen, and since when by this process's clock.
struct Sight {
    record: Option<Record>,
    since: Instant,
}

impl Candidate {
    async fn contend(self) -> Leadership {
        let mut sight: Option<Sight> = None;
        loop {
            let Some(lease) = self.look().await else {
                sleep(RENEW_EVERY).await;
                continue;
            };
            let record = lease.as_ref().map(Record::of);
            let since = match sight.as_ref().filter(|sight| sight.record == record) {
                Some(sight) => sight.since,
                None => Instant::now(),
            };
            let me = Me { identity: &self.identity, reign: None };
            let decision = decide(record.as_ref(), since.elapsed(), me);
            if sight.is_none() {
                tracing::info!(identity = self.identity, ?record, ?decision, "contending for the Lease");
            }
            sight = Some(Sight { record, since });
            match (decision, lease) {
                (Decision::Acquire, Some(lease)) => {
                    if let Some(leadership) = self.acquire(lease).await {
                        return leadership;
                    }
                }
                (Decision::Create, _) => self.create().await,
                (Decision::Wait(rest), _) => sleep(rest.min(RENEW_EVERY)).await,
                // Only who leads renews or loses, and nothing that is missing can be acquired.
                (Decision::Acquire | Decision::Renew | Decision::Lost(_), _) => sleep(RENEW_EVERY).await,
            }
        }
    }

    /// The Lease, or that there is none; `None` where it could not be found out.
    async fn look(&self) -> Option<Option<Lease>> {
        match timeout(REQUEST, self.leases.get_opt(NAME)).await {
            Ok(Ok(lease)) => Some(lease),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the Lease cannot be read");
                None
            }
            Err(_) => {
                tracing::warn!("the Lease cannot be read: no answer");
                None
            }
        }
    }

    /// An empty Lease, which anyone may then acquire.
    async fn create(&self) {
        let lease =
            Lease { metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }, ..Lease::default() };
        match timeout(REQUEST, self.leases.create(&PostParams::default(), &lease)).await {
            Ok(Ok(_)) => tracing::info!("the Lease was missing and is made anew"),
            // Somebody was quicker.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the Lease cannot be made");
                sleep(RENEW_EVERY).await;
            }
            Err(_) => tracing::warn!("the Lease cannot be made: no answer"),
        }
    }

    async fn acquire(&self, mut lease: Lease) -> Option<Leadership> {
        let previous = read_witness(lease.metadata.annotations.as_ref());
        let now = Some(MicroTime(Timestamp::now()));
        let spec = lease.spec.take().unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            acquire_time: now.clone(),
            renew_time: now,
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            lease_transitions: Some(spec.lease_transitions.unwrap_or_default().saturating_add(1)),
            ..spec
        });
        let sent = Instant::now();
        let lease = match timeout(REQUEST, self.replace(&lease)).await {
            Ok(Ok(lease)) => lease,
            // Somebody was quicker: look at once.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the Lease cannot be acquired");
                sleep(RENEW_EVERY).await;
                return None;
            }
            Err(_) => {
                tracing::warn!("the Lease cannot be acquired: no answer");
                return None;
            }
        };
        let token = Record::of(&lease).token?;
        tracing::info!(identity = self.identity, lease = token.lease_uid, token.transitions, "leading");
        let (lost, done) = (CancellationToken::new(), CancellationToken::new());
        let reign = Reign { candidate: self.clone(), token: token.clone(), lease, renewed: sent };
        let held = tokio::spawn(reign.hold(lost.clone(), done.clone()));
        Some(Leadership { token, previous, lost, testify: Arc::clone(&self.testify), done, held })
    }

    async fn replace(&self, lease: &Lease) -> kube::Result<Lease> {
        self.leases.replace(NAME, &PostParams::default(), lease).await
    }
}

/// The Lease while it is held.
struct Reign {
    candidate: Candidate,
    token: Token,
    /// As the API server last returned it: its resourceVersion guards the next write.
    lease: Lease,
    /// When the last renewal that succeeded was sent.
    renewed: Instant,
}

impl Reign {
    /// Renews until `done`, then gives back.
    async fn hold(mut self, lost: CancellationToken, done: CancellationToken) -> Result<(), Loss> {
        // However this task ends, this process leads no more.
        let _lost = lost.drop_guard();
        loop {
            let next = Instant::now() + RENEW_EVERY;
            tokio::select! {
                biased;
                () = done.cancelled() => return self.release().await,
                () = sleep_until(next.min(self.renewed + GIVE_UP_AFTER)) => {}
            }
            if let Err(loss) = self.renew().await {
                tracing::error!(%loss, "no longer the leader");
                return Err(loss);
            }
        }
    }

    /// One renewal. A failure that leaves time for another is none.
    async fn renew(&mut self) -> Result<(), Loss> {
        loop {
            self.may_go_on(Some(&Record::of(&self.lease)))?;
            let sent = Instant::now();
            let deadline = (sent + REQUEST).min(self.renewed + GIVE_UP_AFTER);
            let renewed = self.renewal();
            match timeout_at(deadline, self.candidate.replace(&renewed)).await {
                Ok(Ok(lease)) => {
                    (self.lease, self.renewed) = (lease, sent);
                    return Ok(());
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                    // Somebody wrote to it: an annotation, or his name.
                    let Some(lease) = self.candidate.look().await else { return Ok(()) };
                    self.may_go_on(lease.as_ref().map(Record::of).as_ref())?;
                    self.lease = lease.ok_or(Loss::Deleted)?;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the Lease was not renewed");
                    return Ok(());
                }
                Err(_) => {
                    tracing::warn!("the Lease was not renewed: no answer");
                    return Ok(());
                }
            }
        }
    }

    /// Whether this process still leads, by what the Lease says.
    fn may_go_on(&self, seen: Option<&Record>) -> Result<(), Loss> {
        let me = Me { identity: &self.candidate.identity, reign: Some(&self.token) };
        match decide(seen, self.renewed.elapsed(), me) {
            Decision::Renew => Ok(()),
            Decision::Lost(loss) => Err(loss),
            Decision::Create | Decision::Acquire | Decision::Wait(_) => Err(Loss::Stopped),
        }
    }

    fn renewal(&self) -> Lease {
        let mut lease = self.lease.clone();
        if let Some(spec) = lease.spec.as_mut() {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        if let Some((journal, commits)) = self.candidate.testify.get().and_then(|testify| testify()) {
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(JOURNAL_ID.to_owned(), journal);
            annotations.insert(JOURNAL_COMMITS.to_owned(), commits.to_string());
        }
        lease
    }

    /// Empties the holder's name. Where that fails the Lease runs out by itself, so nobody needs to hear of it.
    async fn release(&mut self) -> Result<(), Loss> {
        self.may_go_on(Some(&Record::of(&self.lease)))?;
        for _ in 0..RELEASES_MAX {
            let mut released = self.renewal();
            if let Some(spec) = released.spec.as_mut() {
                spec.holder_identity = None;
            }
            match timeout(REQUEST, self.candidate.replace(&released)).await {
                Ok(Ok(_)) => {
                    tracing::info!("the Lease is released");
                    return Ok(());
                }
                Ok(Err(error)) => tracing::info!(%error, "the Lease was not released"),
                Err(_) => tracing::info!("the Lease was not released: no answer"),
            }
            match self.candidate.look().await {
                Some(Some(lease)) if self.may_go_on(Some(&Record::of(&lease))).is_ok() => self.lease = lease,
                // Not ours any more: nothing to give back.
                Some(_) => return Ok(()),
                None => {}
            }
        }
        Ok(())
    }
}

fn read_witness(annotations: Option<&BTreeMap<String, String>>) -> Option<Witness> {
    let journal = annotations?.get(JOURNAL_ID)?.clone();
    let commits = annotations?.get(JOURNAL_COMMITS)?.parse().ok()?;
    Some(Witness { journal, commits })
}
