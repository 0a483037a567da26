//! The judge as the gate asks it.

use async_trait::async_trait;
use belay_policy::Spend;
use belay_protocol::event::ProposedCall;
use belay_protocol::fold::RunState;

use super::Judge;
use crate::gate::{Law, Word, default_word};

#[async_trait]
impl Law for Judge {
    async fn judge(&self, run: &RunState, call: &ProposedCall) -> Word {
        let Some(plan) = &run.plan else {
            // The gate denies what no plan lists, whatever is said here.
            return Word::Judged(default_word(belay_protocol::plan::Effects::default()));
        };
        match Judge::judge(self, plan, call, Spend::of(run)).await {
            Ok(judged) => Word::Judged(judged),
            Err(held) => Word::Stalled(held.to_string()),
        }
    }
}
