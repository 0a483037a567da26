//! The model whose answers stand in the Model: for demos and tests without a key.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use belay_protocol::call::model_name;
use belay_protocol::cost::Usage;
use belay_protocol::digest::Digest;
use belay_protocol::event::{FailureReason, Finish};
use belay_protocol::plan::{Plan, PlanModel, ScriptedCall, ScriptedTurn};
use serde_json::Value;

use super::{AnswerItem, Context, Model, ModelAnswer, ModelError, Prepared};
use crate::permit::ModelPermit;

/// Gives the script's turn for each answered request, whatever was said.
pub struct Scripted {
    model: String,
    turns: Vec<Turn>,
    total: Duration,
}

struct Turn {
    answer: Result<ModelAnswer, ModelError>,
    delay: Duration,
}

impl Scripted {
    #[must_use]
    pub fn new(plan: &Plan, model: &PlanModel) -> Self {
        let turns = model.script.iter().map(|turn| Turn {
            answer: answer(plan, &model.name, turn),
            delay: Duration::from_millis(u64::from(turn.delay_milliseconds)),
        });
        let total = Duration::from_secs(u64::from(model.timeouts.total_seconds));
        Self { model: model.name.clone(), turns: turns.collect(), total }
    }
}

#[async_trait]
impl Model for Scripted {
    fn prepare(&self, context: &Context<'_>) -> Result<Prepared, ModelError> {
        let turn = usize::try_from(context.answered).unwrap_or(usize::MAX);
        if turn >= self.turns.len() {
            return Err(ModelError::new(
                FailureReason::ScriptExhausted,
                format!(
                    "Model {}: spec.scripted.turns holds {} turns and the run asked for one more: \
                     end the script with a turn that has text and no toolCalls",
                    self.model,
                    self.turns.len()
                ),
            ));
        }
        // The turn stands for the request: nothing else decides the answer.
        let body = turn.to_be_bytes().to_vec();
        let digest = Digest::of(&body);
        Ok(Prepared { body, digest, reserved_tokens: 0 })
    }

    async fn ask(&self, prepared: Prepared, permit: ModelPermit) -> Result<ModelAnswer, ModelError> {
        permit.spend();
        let turn = prepared.body.as_slice().try_into().ok().map(usize::from_be_bytes);
        let turn = turn.and_then(|turn| self.turns.get(turn)).ok_or_else(|| {
            ModelError::new(FailureReason::ScriptExhausted, format!("Model {}: no such turn", self.model))
        })?;
        tokio::time::sleep(turn.delay.min(self.total)).await;
        if turn.delay > self.total {
            let message = format!(
                "Model {}: the turn did not come within {} s: raise spec.timeouts.totalSeconds or lower its delayMilliseconds",
                self.model,
                self.total.as_secs()
            );
            return Err(ModelError::new(FailureReason::TimedOut, message));
        }
        turn.answer.clone()
    }
}

fn answer(plan: &Plan, model: &str, turn: &ScriptedTurn) -> Result<ModelAnswer, ModelError> {
    if let Some(error) = &turn.error {
        let message = format!("Model {model}: its script says to fail here: {error}");
        return Err(ModelError::new(FailureReason::Scripted, message));
    }
    let text = turn.text.iter().map(|text| AnswerItem::Text(text.clone()));
    let calls = turn.tool_calls.iter().map(|call| scripted_call(plan, call));
    Ok(ModelAnswer {
        items: text.chain(calls).collect(),
        finish: if turn.tool_calls.is_empty() { Finish::Stop } else { Finish::ToolCalls },
        usage: Usage::default(),
        response_id: None,
        model: None,
        first_chunk: None,
    })
}

fn scripted_call(plan: &Plan, call: &ScriptedCall) -> AnswerItem {
    let operation = plan.tool(&call.tool).and_then(|tool| tool.operation(&call.operation));
    let name = operation.map_or_else(
        // Not in the plan: the run tells the script so, as it would tell any model.
        || model_name(&call.tool, &call.operation, &BTreeSet::new()),
        |operation| operation.model_name.clone(),
    );
    let arguments = if call.args == Value::Null { "{}".to_owned() } else { call.args.to_string() };
    AnswerItem::Call { provider_id: String::new(), name, arguments }
}
