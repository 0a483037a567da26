//! A span's attributes under OpenTelemetry's GenAI names, and under `belay.` where it has none.

use serde::Serialize;

use super::content::finish_word;
use super::span::{
    AskSpan, CallName, CallSpan, Decided, DecisionSpan, EpochSpan, ModelAsked, ModelOutcome, ModelSpan, PodStartSpan,
    RestSpan, RunSpan, Span, What,
};
use crate::cost::{Cost, Usage};
use crate::event::{Answer, Approver};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Text(String),
    Number(u64),
    /// Told in seconds, as OpenTelemetry counts time.
    Milliseconds(#[serde(serialize_with = "in_seconds")] u64),
    Flag(bool),
    Texts(Vec<String>),
}

/// Seconds, exact to the millisecond.
#[must_use]
pub fn seconds(milliseconds: u64) -> f64 {
    std::time::Duration::from_millis(milliseconds).as_secs_f64()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over like that")]
fn in_seconds<S: serde::Serializer>(milliseconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(seconds(*milliseconds))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub key: &'static str,
    pub value: Value,
}

impl Span {
    /// What is known by now. Text of models, servers and people is among the values.
    #[must_use]
    pub fn attributes(&self) -> Vec<Attribute> {
        let mut to = List(Vec::new());
        match &self.what {
            What::Run(run) => run.tell(&mut to),
            What::Rest(RestSpan { after }) => to.maybe("belay.epoch.end", after.map(|cause| format!("{cause:?}"))),
            What::Epoch(epoch) => epoch.tell(&mut to),
            What::PodStart(PodStartSpan { epoch, claimed }) => {
                to.number("belay.epoch", *epoch);
                to.add("belay.epoch.claimed", Value::Flag(*claimed));
            }
            What::Model(model) => model.tell(&mut to),
            What::Decision(decision) => decision.tell(&mut to),
            What::Ask(ask) => ask.tell(&mut to),
            What::Call(call) => call.tell(&mut to),
        }
        to.maybe("error.type", self.error());
        to.0
    }
}

/// Attributes so far.
struct List(Vec<Attribute>);

impl List {
    fn add(&mut self, key: &'static str, value: Value) {
        self.0.push(Attribute { key, value });
    }

    fn text(&mut self, key: &'static str, text: impl Into<String>) {
        self.add(key, Value::Text(text.into()));
    }

    fn number(&mut self, key: &'static str, number: impl Into<u64>) {
        self.add(key, Value::Number(number.into()));
    }

    fn maybe(&mut self, key: &'static str, text: Option<String>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn known(&mut self, key: &'static str, number: Option<u64>) {
        if let Some(number) = number {
            self.number(key, number);
        }
    }

    fn usage(&mut self, usage: &Usage, cost: Option<Cost>) {
        self.known("gen_ai.usage.input_tokens", usage.input_tokens);
        self.known("gen_ai.usage.output_tokens", usage.output_tokens);
        self.known("gen_ai.usage.cache_read.input_tokens", usage.cached_input_tokens);
        self.known("gen_ai.usage.cache_creation.input_tokens", usage.cache_write_tokens);
        self.known("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens);
        self.known("belay.cost.usd_micros", cost.map(Cost::micro_usd));
    }

    fn model(&mut self, model: &ModelAsked) {
        self.text("gen_ai.provider.name", model.provider.as_str());
        self.text("gen_ai.request.model", model.id.as_str());
        self.text("belay.model.name", model.name.as_str());
    }

    fn call(&mut self, call: &CallName) {
        self.text("gen_ai.tool.name", call.path());
        self.text("gen_ai.tool.call.id", call.call_id.as_str());
        self.number("belay.call.attempt", call.attempt);
    }
}

impl RunSpan {
    fn tell(&self, to: &mut List) {
        to.text("gen_ai.operation.name", "invoke_agent");
        to.text("gen_ai.agent.id", self.agent.uid.as_str());
        to.text("gen_ai.agent.name", self.agent.name.as_str());
        to.text("gen_ai.agent.version", self.agent_generation.to_string());
        to.text("gen_ai.conversation.id", self.run.uid.as_str());
        to.model(&self.model);
        to.usage(&self.usage, self.cost);
        to.text("belay.run.namespace", self.run.namespace.as_str());
        to.text("belay.run.name", self.run.name.as_str());
        to.maybe("belay.run.requested_by", self.requested_by.clone());
        if let Some(parent) = &self.parent {
            to.text("belay.parent.run.name", parent.run.name.as_str());
            to.text("belay.parent.conversation.id", parent.run.uid.as_str());
            to.text("belay.parent.call.id", parent.call_id.as_str());
        }
        to.number("belay.run.steps", self.steps);
        if let Some(end) = &self.end {
            to.text("belay.run.outcome", format!("{:?}", end.outcome));
            to.text("belay.run.reason", format!("{:?}", end.reason));
        }
        to.maybe("gen_ai.input.messages", self.input.clone());
        to.maybe("gen_ai.output.messages", self.output.clone());
    }
}

impl EpochSpan {
    fn tell(&self, to: &mut List) {
        to.number("belay.epoch", self.number);
        to.text("k8s.pod.name", self.pod_name.as_str());
        to.maybe("belay.epoch.end", self.cause.map(|cause| format!("{cause:?}")));
    }
}

impl ModelSpan {
    fn tell(&self, to: &mut List) {
        to.text("gen_ai.operation.name", "chat");
        to.model(&self.model);
        to.number("belay.step", self.step);
        to.number("belay.model.attempt", self.attempt);
        match &self.outcome {
            Some(ModelOutcome::Responded { finish, usage, cost, response_id, model, output, .. }) => {
                if let Some(milliseconds) = self.first_chunk_milliseconds() {
                    to.add("gen_ai.response.time_to_first_chunk", Value::Milliseconds(milliseconds));
                }
                to.add("gen_ai.response.finish_reasons", Value::Texts(vec![finish_word(*finish).to_owned()]));
                to.maybe("gen_ai.response.id", response_id.clone());
                to.maybe("gen_ai.response.model", model.clone());
                to.usage(usage, *cost);
                to.maybe("gen_ai.output.messages", output.clone());
            }
            // The reason is `error.type`; what the provider wrote may hold what it was asked.
            None | Some(ModelOutcome::Failed { .. }) => {}
        }
    }
}

impl ModelSpan {
    /// Until the first piece of the answer arrived, where it came in pieces.
    #[must_use]
    pub fn first_chunk_milliseconds(&self) -> Option<u64> {
        match self.outcome.as_ref()? {
            ModelOutcome::Responded { first_chunk_milliseconds, .. } => *first_chunk_milliseconds,
            ModelOutcome::Failed { .. } => None,
        }
    }
}

impl DecisionSpan {
    fn tell(&self, to: &mut List) {
        to.call(&self.call);
        match &self.decided {
            Decided::Allowed(by) => {
                to.text("belay.decision", "Allowed");
                to.text("belay.decision.by", by.to_string());
            }
            Decided::Denied { reason, .. } => {
                to.text("belay.decision", "Denied");
                to.text("belay.decision.reason", format!("{reason:?}"));
            }
            Decided::Asked(policies) => {
                to.text("belay.decision", "Asked");
                to.add("belay.decision.policies", Value::Texts(policies.clone()));
            }
            Decided::Later(reason) => {
                to.text("belay.decision", "Later");
                to.text("belay.decision.reason", format!("{reason:?}"));
            }
        }
    }
}

impl AskSpan {
    fn tell(&self, to: &mut List) {
        to.text("belay.approval.name", self.name.as_str());
        to.text("belay.approval.purpose", format!("{:?}", self.purpose));
        to.call(&self.call);
        if let Some(answer) = &self.answer {
            to.text("belay.approval.answer", answer_word(answer));
            to.add("belay.approval.by", Value::Texts(answered_by(answer)));
        }
    }

    /// The answer in one word; None: there is none.
    #[must_use]
    pub fn answered(&self) -> Option<&'static str> {
        self.answer.as_ref().map(answer_word)
    }

    /// Who gave it.
    #[must_use]
    pub fn by(&self) -> Vec<String> {
        self.answer.as_ref().map(answered_by).unwrap_or_default()
    }
}

impl CallSpan {
    fn tell(&self, to: &mut List) {
        to.text("gen_ai.operation.name", "execute_tool");
        to.text("gen_ai.tool.type", "extension");
        to.call(&self.call);
        to.text("belay.call.effects", format!("{:?}", self.effects));
        to.text("belay.call.outcome", format!("{:?}", self.outcome));
        to.maybe("belay.child.run.name", self.child.clone());
        to.maybe("gen_ai.tool.call.arguments", self.arguments.clone());
        to.maybe("gen_ai.tool.call.result", self.result.clone());
    }
}

fn answer_word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Happened { .. } => "Happened",
        Answer::Retry { .. } => "Retry",
        Answer::End { .. } => "End",
        Answer::Withdrawn { .. } => "Withdrawn",
        Answer::Allowed { .. } => "Allowed",
        Answer::Denied { .. } => "Denied",
        Answer::Expired {} => "Expired",
        Answer::Answered { .. } => "Answered",
        Answer::Misfit { .. } => "Misfit",
    }
}

fn answered_by(answer: &Answer) -> Vec<String> {
    let name = |one: &Approver| one.by.clone();
    match answer {
        Answer::Happened { by, .. } | Answer::Retry { by } | Answer::End { by, .. } | Answer::Denied { by, .. } => {
            vec![by.clone()]
        }
        Answer::Allowed { by } | Answer::Answered { by, .. } => by.iter().map(name).collect(),
        Answer::Withdrawn { .. } | Answer::Expired {} | Answer::Misfit { .. } => Vec::new(),
    }
}
