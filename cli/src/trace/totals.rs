//! What a run's spans add up to.

use belay_protocol::cost::{Cost, Usage};
use belay_protocol::trace::{Decided, ModelOutcome, What};
use serde::Serialize;

use super::Trace;

/// Times in milliseconds. What happens at one time counts as often as it happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Model requests that were answered, and those that were not.
    pub steps: u32,
    pub failed_model_requests: u32,
    pub model_milliseconds: u64,
    pub calls: u32,
    pub call_milliseconds: u64,
    pub denied: u32,
    pub asked: u32,
    pub asked_milliseconds: u64,
    pub epochs: u32,
    pub rest_milliseconds: u64,
    pub usage: Usage,
    /// Absent: not every model of the run has prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd_micros: Option<u64>,
}

pub fn totals(trace: &Trace) -> Totals {
    let mut totals = Totals::default();
    for span in &trace.spans {
        let end = span.end.unwrap_or(trace.as_of);
        let took = u64::try_from(end.saturating_sub(span.start)).unwrap_or(0);
        match &span.what {
            What::Run(run) => {
                totals.usage = run.usage;
                totals.cost_usd_micros = run.cost.map(Cost::micro_usd);
            }
            What::Rest(_) => totals.rest_milliseconds += took,
            What::Epoch(_) => totals.epochs += 1,
            What::PodStart(_) => {}
            What::Model(model) => {
                totals.model_milliseconds += took;
                match &model.outcome {
                    Some(ModelOutcome::Responded { .. }) => totals.steps += 1,
                    Some(ModelOutcome::Failed { .. }) => totals.failed_model_requests += 1,
                    None => {}
                }
            }
            What::Decision(decision) => match &decision.decided {
                Decided::Denied { .. } => totals.denied += 1,
                Decided::Allowed(_) | Decided::Asked(_) | Decided::Later(_) => {}
            },
            What::Ask(_) => {
                totals.asked += 1;
                totals.asked_milliseconds += took;
            }
            What::Call(_) => {
                totals.calls += 1;
                totals.call_milliseconds += took;
            }
        }
    }
    totals
}
