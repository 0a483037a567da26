//! Whether the journal is the one that this installation wrote last. The Lease says how far it was; a journal that
//! is behind was restored from an older copy, and nobody can tell what its runs did since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use belay_protocol::event::{EndReason, EpochEnd};
use tokio_util::sync::CancellationToken;

use crate::agent_run::Ending;
use crate::journal::{Journal, JournalError};
use crate::leader::{RENEW_EVERY, Witness};

/// What the Lease tells of the journal that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Same,
    /// A new volume, or another installation's: runs that it does not know are stopped one by one.
    Other {
        before: String,
    },
    Behind {
        by: u64,
    },
}

/// Compares the journal with what the leader before wrote into the Lease.
#[must_use]
pub fn compare(previous: Option<&Witness>, id: &str, commits: u64) -> Finding {
    match previous {
        Some(witness) if witness.journal != id => Finding::Other { before: witness.journal.clone() },
        Some(witness) if witness.commits > commits => Finding::Behind { by: witness.commits - commits },
        Some(_) | None => Finding::Same,
    }
}

/// Stops what nobody can vouch for any more. Runs that ended in the copy have ended; every other one may have gone
/// on since. Safe to repeat: the Lease keeps its words until all is done.
pub async fn heed(journal: &Journal, finding: &Finding) -> Result<(), JournalError> {
    let by = match finding {
        Finding::Same => return Ok(()),
        Finding::Other { before } => {
            tracing::error!(
                before,
                now = journal.id(),
                "this is another journal than the last one: runs of that one stop"
            );
            return Ok(());
        }
        Finding::Behind { by } => *by,
    };
    tracing::error!(by, "the journal was restored to an older copy: every run that it takes for open is stopped");
    for run in journal.live_runs().await? {
        let state = match journal.state(&run.uid).await {
            Err(JournalError::Damaged { run, damage }) => {
                tracing::error!(run, %damage, "a damaged run cannot be stopped in the journal; its status will say so");
                continue;
            }
            state => state?,
        };
        let Some(state) = state else { continue };
        let message = format!(
            "the journal was restored to an older copy: {by} of its commits are missing, and what this run did in them is \
             not known; look at its effects before you create another AgentRun"
        );
        let ending = Ending::failed(EndReason::JournalLost, EpochEnd::PodLost, message).naming_unknowns(&state);
        journal.append(&run, state.seq, ending.events(Some(&state), Duration::ZERO)).await?;
    }
    Ok(())
}

/// The count that the Lease is told. It is never ahead of the journal.
pub struct Tally {
    journal: Journal,
    counted: Arc<AtomicU64>,
}

impl Tally {
    /// Keeps count until `shutdown`.
    #[must_use]
    pub fn keep(journal: &Journal, shutdown: CancellationToken) -> Self {
        let tally = Self { journal: journal.clone(), counted: Arc::default() };
        let counting = Self { journal: journal.clone(), counted: Arc::clone(&tally.counted) };
        tokio::spawn(async move {
            loop {
                counting.count().await;
                if shutdown.run_until_cancelled(tokio::time::sleep(RENEW_EVERY)).await.is_none() {
                    return;
                }
            }
        });
        tally
    }

    /// To be called once nothing is written any more, and before the Lease is given back: an older copy that lacks
    /// only the last moments would go unnoticed otherwise.
    pub async fn count(&self) {
        match self.journal.commits().await {
            // Two counts at one time may end in either order.
            Ok(commits) => _ = self.counted.fetch_max(commits, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "commits not counted"),
        }
    }

    pub fn testimony(&self) -> impl Fn() -> Option<(String, u64)> + use<> {
        let (counted, id) = (Arc::clone(&self.counted), self.journal.id().to_owned());
        move || {
            let commits = counted.load(Ordering::Relaxed);
            (commits > 0).then(|| (id.clone(), commits))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use belay_protocol::Event;
    use belay_protocol::plan::ObjectId;

    use super::*;
    use crate::fixtures::plan;

    #[test]
    fn a_journal_is_behind_when_the_lease_knows_more_of_the_same() {
        let witness = |journal: &str, commits| Some(Witness { journal: journal.to_owned(), commits });
        let table = [
            (None, Finding::Same),
            (witness("a", 7), Finding::Same),
            (witness("a", 6), Finding::Same),
            (witness("a", 9), Finding::Behind { by: 2 }),
            (witness("b", 9), Finding::Other { before: "b".to_owned() }),
        ];
        for (previous, expected) in table {
            assert_eq!(compare(previous.as_ref(), "a", 7), expected);
        }
    }

    #[tokio::test]
    async fn every_open_run_of_an_older_copy_is_stopped_with_words() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.sqlite")).await.unwrap();
        let plan = plan();
        let run: ObjectId = plan.run.clone();
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        journal.append(&run, 0, vec![accepted]).await.unwrap();
        heed(&journal, &Finding::Other { before: "b".to_owned() }).await.unwrap();
        assert_eq!(journal.live_runs().await.unwrap().len(), 1, "runs that it knows are its own");
        heed(&journal, &Finding::Behind { by: 3 }).await.unwrap();
        let end = journal.state(&run.uid).await.unwrap().unwrap().end.clone().unwrap();
        assert_eq!(end.reason, EndReason::JournalLost);
        assert!(end.message.contains("3 of its commits are missing"), "{}", end.message);
        heed(&journal, &Finding::Behind { by: 3 }).await.unwrap();
        journal.close().await;
    }

    #[tokio::test]
    async fn the_last_count_before_the_lease_is_given_back_holds_what_was_written_after_the_shutdown() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.sqlite")).await.unwrap();
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let tally = Tally::keep(&journal, shutdown);
        let told = tally.testimony();
        let plan = plan();
        let run: ObjectId = plan.run.clone();
        let accepted = Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) };
        journal.append(&run, 0, vec![accepted]).await.unwrap();
        tally.count().await;
        assert_eq!(told(), Some((journal.id().to_owned(), journal.commits().await.unwrap())));
        journal.close().await;
    }
}
