//! Holds an acquired Lease: renews it, notices that it is lost, gives it back. Knows not how it was acquired.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::decision::{Decision, GIVE_UP_AFTER, Loss, Me, RENEW_EVERY, Record, Token, decide};
use super::{Candidate, JOURNAL_COMMITS, JOURNAL_ID, REQUEST};

/// Tries to give a Lease back; after that it runs out by itself.
const RELEASES_MAX: usize = 3;

/// The Lease while it is held.
pub(super) struct Reign {
    pub(super) candidate: Candidate,
    pub(super) token: Token,
    /// As the API server last returned it: its resourceVersion guards the next write.
    pub(super) lease: Lease,
    /// When the last renewal that succeeded was sent.
    pub(super) renewed: Instant,
}

impl Reign {
    /// Renews until `done`, then gives back.
    pub(super) async fn hold(mut self, lost: CancellationToken, done: CancellationToken) -> Result<(), Loss> {
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
