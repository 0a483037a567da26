//! The judge as the gate asks it.

use async_trait::async_trait;
use belay_policy::Spend;
use belay_protocol::event::ProposedCall;
use belay_protocol::fold::RunState;

use super::Judge;
use crate::gate::{Law, Word};

#[async_trait]
impl Law for Judge {
    async fn judge(&self, run: &RunState, call: &ProposedCall) -> Word {
        let Some(plan) = &run.plan else {
            return Word::Stalled("the run has no plan yet".to_owned());
        };
        match Judge::judge(self, plan, call, Spend::of(run)).await {
            Ok(judged) => Word::Judged(judged),
            Err(held) => Word::Stalled(held.to_string()),
        }
    }
}
