//! What a span is of. Times are the operator's, milliseconds since the Unix epoch.

use super::id::SpanId;
use crate::cost::{Cost, Usage};
use crate::event::{Answer, AskPurpose, DenyReason, EpochEnd, FailureReason, Finish, LaterReason, RunEnd};
use crate::export::{EffectOutcome, PermittedBy};
use crate::plan::{Effects, ModelApi, ObjectId, PlanParent};

#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub id: SpanId,
    /// None: the run's own.
    pub parent: Option<SpanId>,
    /// Number of the record that began it.
    pub began: u64,
    pub start: i64,
    /// None: it is still open.
    pub end: Option<i64>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The whole run.
    Run(Box<RunSpan>),
    /// No pod: the run waits for its turn, or for people.
    Rest(RestSpan),
    /// One pod, from when it may be created to its end.
    Epoch(EpochSpan),
    /// Until the pod's runner said hello.
    PodStart(PodStartSpan),
    /// One request to a model.
    Model(Box<ModelSpan>),
    /// The gate's word on a proposed call. Takes no time.
    Decision(Box<DecisionSpan>),
    /// People are asked.
    Ask(Box<AskSpan>),
    /// One attempt at a call, from its permit to what came of it.
    Call(Box<CallSpan>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpan {
    pub run: ObjectId,
    pub agent: ObjectId,
    pub agent_generation: i64,
    pub requested_by: Option<String>,
    /// Whose call it carries out, where it is a child.
    pub parent: Option<PlanParent>,
    /// The model that is asked first.
    pub model: ModelAsked,
    /// Model requests that were answered.
    pub steps: u32,
    pub usage: Usage,
    /// None: not every model of the run has prices.
    pub cost: Option<Cost>,
    pub end: Option<RunEnd>,
    /// JSON messages, where content is kept.
    pub input: Option<String>,
    pub output: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestSpan {
    /// How the epoch before ended. None: there was none yet.
    pub after: Option<EpochEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochSpan {
    pub number: u64,
    pub pod_name: String,
    pub cause: Option<EpochEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodStartSpan {
    pub epoch: u64,
    /// Whether its runner came.
    pub claimed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelAsked {
    /// Of the Model object.
    pub name: String,
    pub api: ModelApi,
    pub provider: String,
    /// As the provider calls it.
    pub id: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpan {
    pub step: u32,
    pub attempt: u32,
    pub model: ModelAsked,
    /// None: under way.
    pub outcome: Option<ModelOutcome>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelOutcome {
    Responded {
        finish: Finish,
        usage: Usage,
        cost: Option<Cost>,
        /// As the runner measured it.
        milliseconds: u64,
        /// Of these, until the first piece of the answer arrived, where it came in pieces.
        first_chunk_milliseconds: Option<u64>,
        response_id: Option<String>,
        /// The model that really answered, where the provider says so.
        model: Option<String>,
        /// JSON messages, where content is kept.
        output: Option<String>,
    },
    Failed {
        reason: FailureReason,
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallName {
    pub call_id: String,
    pub attempt: u32,
    pub tool: String,
    /// Empty: the model named a tool that the plan does not have.
    pub operation: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionSpan {
    pub call: CallName,
    pub decided: Decided,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    Allowed(PermittedBy),
    Denied {
        reason: DenyReason,
        message: String,
    },
    /// These policies want people's yes.
    Asked(Vec<String>),
    Later(LaterReason),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskSpan {
    /// Of the Approval.
    pub name: String,
    pub purpose: AskPurpose,
    pub call: CallName,
    /// None: nobody has answered.
    pub answer: Option<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSpan {
    pub call: CallName,
    pub effects: Effects,
    pub outcome: EffectOutcome,
    /// As the runner measured it, where an answer came.
    pub milliseconds: Option<u64>,
    /// JSON, and what the tool answered, where content is kept.
    pub arguments: Option<String>,
    pub result: Option<String>,
    /// The run that carries it out, by the name of its AgentRun; its own spans are in its own trace.
    pub child: Option<String>,
}

impl CallName {
    /// As people write it: `tool/operation`.
    #[must_use]
    pub fn path(&self) -> String {
        if self.operation.is_empty() { self.tool.clone() } else { format!("{}/{}", self.tool, self.operation) }
    }
}

impl Span {
    /// Few different ones: what varies from run to run is among the attributes.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.what {
            What::Run(run) => format!("invoke_agent {}", run.agent.name),
            What::Rest(_) => "wait for a pod".into(),
            What::Epoch(_) => "epoch".into(),
            What::PodStart(_) => "start a pod".into(),
            What::Model(model) => format!("chat {}", model.model.id),
            What::Decision(decision) => format!("decide {}", decision.call.path()),
            What::Ask(_) => "ask people".into(),
            What::Call(call) => format!("execute_tool {}", call.call.path()),
        }
    }

    /// How many spans it lies within.
    #[must_use]
    pub fn depth(&self) -> usize {
        match &self.what {
            What::Run(_) => 0,
            What::PodStart(_) => 2,
            What::Rest(_) | What::Epoch(_) | What::Model(_) | What::Decision(_) | What::Ask(_) | What::Call(_) => 1,
        }
    }

    /// Milliseconds; None: it is still open.
    #[must_use]
    pub fn took(&self) -> Option<u64> {
        self.end.map(|end| u64::try_from(end.saturating_sub(self.start)).unwrap_or(0))
    }

    /// Why it counts as failed, in one word: `error.type`.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match &self.what {
            What::Run(run) => {
                let end = run.end.as_ref()?;
                (end.outcome == crate::event::Outcome::Failed).then(|| format!("{:?}", end.reason))
            }
            What::Model(model) => match model.outcome.as_ref()? {
                ModelOutcome::Failed { reason, .. } => Some(format!("{reason:?}")),
                ModelOutcome::Responded { .. } => None,
            },
            What::Call(call) => match call.outcome {
                EffectOutcome::ObservedError => Some("ToolError".into()),
                EffectOutcome::NotSent(reason) => Some(format!("{reason:?}")),
                EffectOutcome::Unknown | EffectOutcome::Interrupted => Some(format!("{:?}", call.outcome)),
                EffectOutcome::UnderWay
                | EffectOutcome::Denied
                | EffectOutcome::Observed
                | EffectOutcome::Returned
                | EffectOutcome::Reported
                | EffectOutcome::InputRequired => None,
            },
            What::Epoch(epoch) => match epoch.cause? {
                cause @ (EpochEnd::Exited | EpochEnd::PodLost | EpochEnd::NoHello | EpochEnd::DeadlineExceeded) => {
                    Some(format!("{cause:?}"))
                }
                EpochEnd::Completed | EpochEnd::Released | EpochEnd::Cancelled => None,
            },
            // A no is an answer, and waiting is no failure.
            What::Rest(_) | What::PodStart(_) | What::Decision(_) | What::Ask(_) => None,
        }
    }
}
