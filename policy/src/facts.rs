//! What a rule can ask about a call, and about the run that makes it.

use std::collections::HashMap;
use std::sync::Arc;

use belay_protocol::event::ProposedCall;
use belay_protocol::fold::RunState;
use belay_protocol::plan::{Effects, Plan};
use cel::objects::{Key, Map};
use cel::{Context, Value as Cel};
use serde_json::Value;

use crate::source::environment;
use crate::values::{ArgsFault, to_cel};

/// What the run has used when the call is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spend {
    /// Answers of the model.
    pub steps: u32,
    pub tokens: u64,
    /// Absent where the model has no prices: what is unknown is not 0.
    pub cost_micro_usd: Option<u64>,
}

/// One call, as rules see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub tool: String,
    pub operation: String,
    pub args: Value,
    pub effects: Effects,
    pub namespace: String,
    pub agent: String,
    pub run: String,
    /// Empty where nobody vouched for it.
    pub requested_by: String,
    pub spend: Spend,
}

impl Facts {
    /// Those of a call that a run proposes.
    #[must_use]
    pub fn of(plan: &Plan, call: &ProposedCall, spend: Spend) -> Self {
        Self {
            tool: call.tool.clone(),
            operation: call.operation.clone(),
            args: call.args.clone(),
            effects: plan.effects(&call.tool, &call.operation),
            namespace: plan.run.namespace.clone(),
            agent: plan.agent.name.clone(),
            run: plan.run.name.clone(),
            requested_by: plan.requested_by.clone().unwrap_or_default(),
            spend,
        }
    }
}

impl Spend {
    /// What a run has used, the requests of lost runners included.
    #[must_use]
    pub fn of(state: &RunState) -> Self {
        let priced = state.plan.as_ref().is_some_and(|plan| plan.is_priced());
        Self {
            steps: state.steps,
            tokens: state.tokens_spent(),
            cost_micro_usd: priced.then(|| state.cost_spent().micro_usd()),
        }
    }
}

/// A call made ready for evaluation: done once, for all rules of all policies.
pub struct Scene<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) fault: Option<ArgsFault>,
    pub(crate) context: Context<'static, 'static>,
}

impl<'a> Scene<'a> {
    #[must_use]
    pub fn new(facts: &'a Facts) -> Self {
        let mut context = Context::with_env(environment());
        let fault = match to_cel(&facts.args) {
            Ok(args) => {
                context.add_variable_from_value("args", args);
                None
            }
            Err(fault) => Some(fault),
        };
        context.add_variable_from_value("tool", facts.tool.as_str());
        context.add_variable_from_value("operation", facts.operation.as_str());
        context.add_variable_from_value("effects", effects_word(facts.effects));
        context.add_variable_from_value(
            "agent",
            record([("name", text(&facts.agent)), ("namespace", text(&facts.namespace))]),
        );
        context.add_variable_from_value(
            "run",
            record([("name", text(&facts.run)), ("requestedBy", text(&facts.requested_by))]),
        );
        context.add_variable_from_value("spend", spend(facts.spend));
        Self { facts, fault, context }
    }
}

/// As API and CEL spell it.
pub(crate) fn effects_word(effects: Effects) -> &'static str {
    match effects {
        Effects::None => "None",
        Effects::Idempotent => "Idempotent",
        Effects::NonIdempotent => "NonIdempotent",
    }
}

fn spend(spend: Spend) -> Cel {
    let count = |number: u64| Cel::Int(i64::try_from(number).unwrap_or(i64::MAX));
    let known = [("steps", count(spend.steps.into())), ("tokens", count(spend.tokens))];
    record(known.into_iter().chain(spend.cost_micro_usd.map(|cost| ("costMicroUSD", count(cost)))))
}

fn text(text: &str) -> Cel {
    Cel::String(Arc::new(text.to_owned()))
}

fn record(fields: impl IntoIterator<Item = (&'static str, Cel)>) -> Cel {
    let fields: HashMap<Key, Cel> =
        fields.into_iter().map(|(name, value)| (Key::String(Arc::new(name.to_owned())), value)).collect();
    Cel::Map(Map { map: Arc::new(fields) })
}
