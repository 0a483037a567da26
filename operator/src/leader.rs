//! Leads at most one operator at a time: holds the Lease `belay-operator` of the operator's namespace. Knows
//! nothing of what a leader does; the journal's fence covers what a paused one may still try.

mod decision;
mod reign;
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
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use self::decision::{Decision, GIVE_UP_AFTER, LEASE, Loss, Me, RENEW_EVERY, Record, Token, decide};
use self::reign::Reign;

/// Name of the Lease.
pub const NAME: &str = "belay-operator";
/// Annotations of the Lease: how far the journal of the holder was at the last renewal.
pub const JOURNAL_ID: &str = "belay.dev/journal-id";
pub const JOURNAL_COMMITS: &str = "belay.dev/journal-commits";

/// One request may not eat up the time in which others could succeed.
const REQUEST: Duration = Duration::from_secs(4);

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

fn read_witness(annotations: Option<&BTreeMap<String, String>>) -> Option<Witness> {
    let journal = annotations?.get(JOURNAL_ID)?.clone();
    let commits = annotations?.get(JOURNAL_COMMITS)?.parse().ok()?;
    Some(Witness { journal, commits })
}
