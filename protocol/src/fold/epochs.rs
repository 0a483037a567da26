//! Epochs: opened, claimed once, ended, and dead.

use super::{CallState, Claim, Ended, Epoch, IllegalEvent, RunState, out_of_order};
use crate::cost::Usage;
use crate::event::EpochEnd;

impl RunState {
    pub(super) fn open_epoch(&mut self, number: u64, pod_name: &str, at: i64) -> Result<(), IllegalEvent> {
        if self.live_epoch().is_some() {
            return Err(out_of_order("EpochOpened", "an epoch is open"));
        }
        if number != self.epoch.as_ref().map_or(0, |epoch| epoch.number) + 1 {
            return Err(out_of_order("EpochOpened", "epochs count up by one"));
        }
        self.listings.clear();
        self.listed_at = None;
        self.differs.clear();
        self.listed.clear();
        self.epoch = Some(Epoch { number, pod_name: pod_name.to_owned(), opened_at: at, claim: None, ended: None });
        Ok(())
    }

    pub(super) fn claim(&mut self, number: u64, instance: &str, pod_uid: &str, at: i64) -> Result<(), IllegalEvent> {
        let epoch = self.epoch.as_mut().filter(|epoch| epoch.number == number && epoch.ended.is_none());
        let epoch = epoch.ok_or(out_of_order("InstanceClaimed", "that epoch is not open"))?;
        if epoch.claim.is_some() {
            return Err(out_of_order("InstanceClaimed", "the epoch was claimed before"));
        }
        epoch.claim = Some(Claim { instance: instance.to_owned(), pod_uid: pod_uid.to_owned(), at });
        self.started_at.get_or_insert(at);
        Ok(())
    }

    /// What is in flight has to be closed first. A proposal without a verdict is due again, and so is
    /// one that was told to wait.
    pub(super) fn end_epoch(&mut self, number: u64, ended: Ended, active: u64) -> Result<(), IllegalEvent> {
        if self.calls_in_flight().next().is_some() {
            return Err(out_of_order("EpochEnded", "a permit is out"));
        }
        let epoch = self.epoch.as_mut().filter(|epoch| epoch.number == number && epoch.ended.is_none());
        let epoch = epoch.ok_or(out_of_order("EpochEnded", "that epoch is not open"))?;
        epoch.ended = Some(ended);
        if epoch.claim.is_some() {
            // Without a claim it never held a permit.
            self.undead.insert(number, epoch.pod_name.clone());
            self.rested_at = Some(ended.at);
        }
        for call in self.calls.values_mut() {
            if let CallState::Proposed { attempt, .. } | CallState::Later { attempt, .. } = call {
                *call = CallState::Due { attempt: *attempt };
            }
        }
        self.interrupt_model(&Usage::default());
        self.active_milliseconds = self.active_milliseconds.saturating_add(active);
        match ended.cause {
            EpochEnd::Released => {}
            EpochEnd::Exited | EpochEnd::NoHello => {
                self.restarts = self.restarts.saturating_add(1);
                self.crashes = self.crashes.saturating_add(1);
            }
            EpochEnd::Completed | EpochEnd::PodLost | EpochEnd::Cancelled | EpochEnd::DeadlineExceeded => {
                self.restarts = self.restarts.saturating_add(1);
            }
        }
        Ok(())
    }

    pub(super) fn bury(&mut self, number: u64) -> Result<(), IllegalEvent> {
        self.undead.remove(&number).map(drop).ok_or(out_of_order("EpochDead", "that epoch has not ended, or is dead"))
    }
}
