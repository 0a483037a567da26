//! How long rows outlive their AgentRun, and how they go: in small steps, between the writes of others.

use std::time::Duration;

use belay_protocol::plan::ObjectId;
use tokio_util::sync::CancellationToken;

use super::store::{Change, Outcome};
use super::{ArtifactError, Journal, JournalError};

/// How often somebody looks for rows whose time is over.
const LOOK: Duration = Duration::from_mins(10);
/// The most runs of one look at the table.
const RUNS: u32 = 64;

impl Journal {
    /// The AgentRun is gone: the rows of a run that has ended stay for the retention time, or go now where
    /// that is zero. Asked again, the first time counts.
    pub async fn mark_deleted(&self, uid: &str) -> Result<(), JournalError> {
        if self.inner.retention.is_zero() {
            return self.forget(uid).await;
        }
        if self.has_ended(uid).await? {
            let change = Change::MarkDeleted { run: uid.to_owned(), at: (self.inner.clock)() };
            self.write(change, None).await?;
        }
        Ok(())
    }

    /// Removes the rows of a run that has ended, and before them the artifacts that they name: what is left after a crash
    /// is found again by its rows.
    pub async fn forget(&self, uid: &str) -> Result<(), JournalError> {
        if self.has_ended(uid).await? {
            let forgotten = self.artifacts().forget(uid).await;
            forgotten.map_err(|error| JournalError::Unavailable(error.to_string()))?;
            while self.write(Change::Forget { run: uid.to_owned() }, None).await? == Outcome::More {}
        }
        Ok(())
    }

    /// Runs with rows whose AgentRun was not seen to be deleted, ended ones included.
    pub async fn kept_runs(&self) -> Result<Vec<ObjectId>, JournalError> {
        Ok(self.inner.store.kept().await?)
    }

    /// Forgets runs whose retention time is over. Answers how many.
    pub async fn forget_expired(&self) -> Result<usize, JournalError> {
        let retention = i64::try_from(self.inner.retention.as_millis()).unwrap_or(i64::MAX);
        let before = (self.inner.clock)().saturating_sub(retention);
        let mut forgotten = 0;
        loop {
            let runs = self.inner.store.deleted_before(before, RUNS).await?;
            let mut gone = 0;
            for run in runs {
                match self.forget(&run).await {
                    Ok(()) => gone += 1,
                    // One that cannot be removed keeps no other from going.
                    Err(JournalError::Damaged { run, damage }) => {
                        tracing::warn!(run, %damage, "rows of a deleted run cannot be removed");
                    }
                    Err(error) => return Err(error),
                }
            }
            if gone == 0 {
                return Ok(forgotten);
            }
            forgotten += gone;
        }
    }

    /// Removes artifacts of runs without rows: one may have arrived while its run was forgotten.
    pub async fn sweep_artifacts(&self) -> Result<usize, JournalError> {
        let unavailable = |error: ArtifactError| JournalError::Unavailable(error.to_string());
        let mut swept = 0;
        for run in self.artifacts().runs().await.map_err(unavailable)? {
            if self.stored_head(&run).await?.is_none() {
                self.artifacts().forget(&run).await.map_err(unavailable)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Looks for expired rows now and then until `shutdown`, and once for artifacts without rows.
    pub async fn keep_house(self, shutdown: CancellationToken) {
        match self.sweep_artifacts().await {
            Ok(0) => {}
            Ok(runs) => tracing::info!(runs, "artifacts of forgotten runs removed"),
            Err(error) => tracing::warn!(%error, "artifacts of forgotten runs stay for now"),
        }
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = looks.tick() => {}
            }
            let forgotten = tokio::select! {
                () = shutdown.cancelled() => return,
                forgotten = self.forget_expired() => forgotten,
            };
            match forgotten {
                Ok(0) => {}
                Ok(runs) => tracing::info!(runs, "rows of deleted runs forgotten"),
                Err(error) => tracing::warn!(%error, "rows of deleted runs stay for now"),
            }
        }
    }

    /// Whether there is something to remove, and may be.
    async fn has_ended(&self, uid: &str) -> Result<bool, JournalError> {
        match self.stored_head(uid).await? {
            None => Ok(false),
            Some(head) if !head.ended => Err(JournalError::NotEnded { run: uid.to_owned() }),
            Some(_) => Ok(true),
        }
    }
}
