//! From records to spans, one record after the other. It refuses nothing: which order is legal is the fold's business, and
//! what does not fit begins or ends no span.

mod calls;

use std::collections::BTreeMap;

use super::content::{Content, answer, cut, message};
use super::id::SpanId;
use super::span::{
    AskSpan, CallSpan, EpochSpan, ModelAsked, ModelOutcome, ModelSpan, PodStartSpan, RestSpan, RunSpan, Span, What,
};
use crate::cost::{Cost, Prices};
use crate::event::{Approver, EpochEnd, Event, FailureReason, ModelResponse, Record, RunEnd};
use crate::export::{EffectOutcome, GrantedBy};
use crate::plan::{Effects, ModelApi, Plan, PlanModel};

/// A run as far as its records were taken in. Small, and as large after a thousand steps as after one.
#[derive(Clone, Debug)]
pub struct Tracer {
    uid: String,
    content: Content,
    root: Option<SpanId>,
    ended: bool,
    /// In the order in which they are asked.
    models: Vec<PricedModel>,
    models_given_up: usize,
    /// What calls of a tool's operation do, where it is not the worst.
    effects: BTreeMap<(String, String), Effects>,
    run: Option<Open<RunSpan>>,
    rest: Option<Open<RestSpan>>,
    epoch: Option<Open<EpochSpan>>,
    pod_start: Option<Open<PodStartSpan>>,
    model: Option<Open<ModelSpan>>,
    calls: BTreeMap<String, Open<CallSpan>>,
    asks: BTreeMap<String, Open<AskSpan>>,
    /// Calls of the newest response, by call id.
    named: BTreeMap<String, Named>,
    /// Who allowed an attempt of a call, by call id.
    approved: BTreeMap<String, (u32, Vec<Approver>)>,
    /// What people gave for the rest of the run, by name.
    given: BTreeMap<String, GrantedBy>,
}

#[derive(Clone, Debug)]
struct PricedModel {
    asked: ModelAsked,
    prices: Option<Prices>,
}

/// How a call is named: by the model first, then by its proposal.
#[derive(Clone, Debug)]
struct Named {
    tool: String,
    operation: String,
    arguments: Option<String>,
}

/// A span that has begun.
#[derive(Clone, Debug)]
struct Open<T> {
    id: SpanId,
    began: u64,
    start: i64,
    of: T,
}

impl<T> Open<T> {
    fn span(self, parent: Option<SpanId>, end: Option<i64>, what: impl FnOnce(T) -> What) -> Span {
        Span { id: self.id, parent, began: self.began, start: self.start, end, what: what(self.of) }
    }
}

impl Tracer {
    #[must_use]
    pub fn new(run_uid: &str, content: Content) -> Self {
        Self {
            uid: run_uid.to_owned(),
            content,
            root: None,
            ended: false,
            models: Vec::new(),
            models_given_up: 0,
            effects: BTreeMap::new(),
            run: None,
            rest: None,
            epoch: None,
            pod_start: None,
            model: None,
            calls: BTreeMap::new(),
            asks: BTreeMap::new(),
            named: BTreeMap::new(),
            approved: BTreeMap::new(),
            given: BTreeMap::new(),
        }
    }

    /// Takes in the next record. Answers the spans that it ends.
    pub fn take(&mut self, record: &Record) -> Vec<Span> {
        let at = record.at;
        match &record.event {
            Event::RunAccepted { plan, .. } => self.accept(plan, record),
            Event::EpochOpened { epoch, pod_name } => self.open_epoch(*epoch, pod_name, record),
            Event::InstanceClaimed { .. } => self.start_pod(at).into_iter().collect(),
            Event::EpochEnded { cause, .. } => self.end_epoch(*cause, record),
            Event::ModelRequested { step, attempt, .. } => self.request(*step, *attempt, record),
            Event::ModelResponded { response, .. } => self.respond(response, at),
            Event::ModelFailed { failure, .. } => self.fail(failure.reason, &failure.message, at).into_iter().collect(),
            Event::ModelReplaced { .. } => {
                self.models_given_up += 1;
                Vec::new()
            }
            Event::CallProposed { call_id, call, .. } => self.name(call_id, call),
            Event::CallDecided { call_id, attempt, verdict, judged } => {
                vec![self.decide(call_id, *attempt, (verdict, judged.as_deref()), record)]
            }
            Event::CallObserved { call_id, result, milliseconds, .. } => {
                let outcome = if result.is_error { EffectOutcome::ObservedError } else { EffectOutcome::Observed };
                let content = self.content.keep(|| cut(&result.content));
                self.settle(call_id, at, |call| {
                    (call.outcome, call.milliseconds, call.result) = (outcome, Some(*milliseconds), content);
                })
            }
            Event::CallInputRequired { call_id, milliseconds, .. } => self.settle(call_id, at, |call| {
                (call.outcome, call.milliseconds) = (EffectOutcome::InputRequired, Some(*milliseconds));
            }),
            Event::CallNotSent { call_id, attempt, reason, .. } => {
                self.begin_unpermitted(call_id, *attempt, record);
                self.settle(call_id, at, |call| call.outcome = EffectOutcome::NotSent(*reason))
            }
            Event::PermitReturned { call_id, .. } => self.come_to(call_id, at, EffectOutcome::Returned),
            Event::CallUnknown { call_id, .. } => self.come_to(call_id, at, EffectOutcome::Unknown),
            Event::CallInterrupted { call_id, .. } => self.come_to(call_id, at, EffectOutcome::Interrupted),
            Event::ChildOpened { call_id, child, .. } => {
                if let Some(call) = self.calls.get_mut(call_id) {
                    call.of.child = Some(child.name.clone());
                }
                Vec::new()
            }
            Event::ChildEnded { call_id, end, .. } => {
                let outcome = if end.result.is_error { EffectOutcome::ObservedError } else { EffectOutcome::Observed };
                let content = self.content.keep(|| cut(&end.result.content));
                self.settle(call_id, at, |call| (call.outcome, call.result) = (outcome, content))
            }
            Event::AskOpened { ask } => self.ask(ask, record),
            Event::AskSettled { name, answer } => self.settle_ask(name, answer, at),
            Event::GrantOpened { grant } => {
                let (policy, people) = (grant.pattern.policy.clone(), grant.by.clone());
                self.given.insert(grant.name.clone(), GrantedBy { grant: grant.name.clone(), policy, people });
                Vec::new()
            }
            Event::RunEnded { end } => self.end(end, at),
            Event::ToolsListed { .. }
            | Event::ChildPosted { .. }
            | Event::AskPosted { .. }
            | Event::DefinitionsAccepted { .. }
            | Event::GrantRefused { .. }
            | Event::GrantPosted { .. }
            | Event::GrantRevoked { .. }
            | Event::LimitReached { .. }
            | Event::CancelRequested {}
            | Event::EpochDead { .. } => Vec::new(),
        }
    }

    /// Spans that have begun and not ended.
    pub fn open(&self) -> impl Iterator<Item = Span> + use<> {
        let (root, epoch) = (self.root, self.epoch.as_ref().map(|epoch| epoch.id));
        let boxed = |call: CallSpan| What::Call(Box::new(call));
        let run = self.run.clone().map(|run| run.span(None, None, |run| What::Run(Box::new(run))));
        let rest = self.rest.clone().map(|rest| rest.span(root, None, What::Rest));
        let pod = self.pod_start.clone().map(|start| start.span(epoch, None, What::PodStart));
        let epoch = self.epoch.clone().map(|epoch| epoch.span(root, None, What::Epoch));
        let model = self.model.clone().map(|model| model.span(root, None, |model| What::Model(Box::new(model))));
        let calls: Vec<Span> = self.calls.values().cloned().map(|call| call.span(root, None, boxed)).collect();
        let ask = |ask: Open<AskSpan>| ask.span(root, None, |ask| What::Ask(Box::new(ask)));
        let asks: Vec<Span> = self.asks.values().cloned().map(ask).collect();
        [run, rest, epoch, pod, model].into_iter().flatten().chain(calls).chain(asks)
    }

    /// Whether no further record can begin or end a span.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ended && self.epoch.is_none() && self.calls.is_empty()
    }

    fn begin<T>(&self, kind: &str, record: &Record, of: T) -> Open<T> {
        Open { id: SpanId::of(&self.uid, kind, record.seq), began: record.seq, start: record.at, of }
    }

    fn accept(&mut self, plan: &Plan, record: &Record) -> Vec<Span> {
        self.models = plan.models().map(priced).collect();
        for tool in &plan.tools {
            for operation in tool.operations.iter().filter(|operation| operation.effects != Effects::default()) {
                self.effects.insert((tool.name.clone(), operation.name.clone()), operation.effects);
            }
        }
        let run = self.begin(
            "run",
            record,
            RunSpan {
                run: plan.run.clone(),
                agent: plan.agent.clone(),
                agent_generation: plan.agent_generation,
                requested_by: plan.requested_by.clone(),
                parent: plan.parent.clone(),
                model: priced(&plan.model).asked,
                steps: 0,
                usage: crate::cost::Usage::default(),
                cost: plan.is_priced().then(Cost::default),
                end: None,
                input: self.content.keep(|| message("user", &plan.input)),
                output: None,
            },
        );
        self.root = Some(run.id);
        self.run = Some(run);
        self.rest = Some(self.begin("rest", record, RestSpan { after: None }));
        Vec::new()
    }

    fn open_epoch(&mut self, number: u64, pod_name: &str, record: &Record) -> Vec<Span> {
        let rested = self.end_rest(record.at);
        let epoch = EpochSpan { number, pod_name: pod_name.to_owned(), cause: None };
        self.epoch = Some(self.begin("epoch", record, epoch));
        self.pod_start = Some(self.begin("pod", record, PodStartSpan { epoch: number, claimed: false }));
        rested.into_iter().collect()
    }

    fn start_pod(&mut self, at: i64) -> Option<Span> {
        let mut start = self.pod_start.take()?;
        start.of.claimed = true;
        Some(start.span(self.epoch.as_ref().map(|epoch| epoch.id), Some(at), What::PodStart))
    }

    /// What the epoch's runner was about ends with it. Calls have ended before: the fold sees to that.
    fn end_epoch(&mut self, cause: EpochEnd, record: &Record) -> Vec<Span> {
        let at = Some(record.at);
        let asked = self.fail(FailureReason::Interrupted, "the runner that asked is gone", record.at);
        let Some(mut epoch) = self.epoch.take() else { return asked.into_iter().collect() };
        let start = self.pod_start.take().map(|start| start.span(Some(epoch.id), at, What::PodStart));
        epoch.of.cause = Some(cause);
        if self.run.is_some() {
            self.rest = Some(self.begin("rest", record, RestSpan { after: Some(cause) }));
        }
        asked.into_iter().chain(start).chain([epoch.span(self.root, at, What::Epoch)]).collect()
    }

    fn end_rest(&mut self, at: i64) -> Option<Span> {
        Some(self.rest.take()?.span(self.root, Some(at), What::Rest))
    }

    fn request(&mut self, step: u32, attempt: u32, record: &Record) -> Vec<Span> {
        let last = self.models.len().saturating_sub(1);
        if let Some(model) = self.models.get(self.models_given_up.min(last)) {
            let asked = ModelSpan { step, attempt, model: model.asked.clone(), outcome: None };
            self.model = Some(self.begin("model", record, asked));
        }
        Vec::new()
    }

    fn respond(&mut self, response: &ModelResponse, at: i64) -> Vec<Span> {
        self.named = response.items.iter().filter_map(|item| self.named_by_model(item)).collect();
        self.approved.clear();
        let last = self.models.len().saturating_sub(1);
        let prices = self.models.get(self.models_given_up.min(last)).and_then(|model| model.prices);
        // Of what the provider did not count nothing is known, also not that it cost nothing.
        let counted = response.usage.input_tokens.is_some() || response.usage.output_tokens.is_some();
        let cost = prices.filter(|_| counted).map(|prices| prices.cost(&response.usage));
        let output = self.content.keep(|| answer(&response.items, response.finish));
        if let Some(run) = self.run.as_mut().map(|run| &mut run.of) {
            run.steps = run.steps.saturating_add(1);
            run.usage = run.usage.plus(&response.usage);
            run.cost = run.cost.map(|sum| sum.plus(cost.unwrap_or_default()));
            run.output.clone_from(&output);
        }
        let outcome = ModelOutcome::Responded {
            finish: response.finish,
            usage: response.usage,
            cost,
            milliseconds: response.milliseconds,
            first_chunk_milliseconds: response.first_chunk_milliseconds,
            response_id: response.response_id.as_deref().and_then(|id| self.content.name(id)),
            model: response.model.as_deref().and_then(|model| self.content.name(model)),
            output,
        };
        self.end_model(outcome, at).into_iter().collect()
    }

    fn fail(&mut self, reason: FailureReason, message: &str, at: i64) -> Option<Span> {
        self.end_model(ModelOutcome::Failed { reason, message: message.to_owned() }, at)
    }

    fn end_model(&mut self, outcome: ModelOutcome, at: i64) -> Option<Span> {
        let mut model = self.model.take()?;
        model.of.outcome = Some(outcome);
        Some(model.span(self.root, Some(at), |model| What::Model(Box::new(model))))
    }

    /// What people were asked is over with the run, and what it hears of its children. Pod, request and calls may outlast
    /// it.
    fn end(&mut self, end: &RunEnd, at: i64) -> Vec<Span> {
        self.ended = true;
        let root = self.root;
        let rest = self.end_rest(at);
        let asks = std::mem::take(&mut self.asks).into_values();
        let asks = asks.map(|ask| ask.span(root, Some(at), |ask| What::Ask(Box::new(ask))));
        let (delegated, calls) =
            std::mem::take(&mut self.calls).into_iter().partition::<BTreeMap<_, _>, _>(|(_, it)| it.of.child.is_some());
        self.calls = calls;
        let delegated =
            delegated.into_values().map(|call| call.span(root, Some(at), |call| What::Call(Box::new(call))));
        let run = self.run.take().map(|mut run| {
            run.of.end = Some(end.clone());
            run.span(None, Some(at), |run| What::Run(Box::new(run)))
        });
        rest.into_iter().chain(asks).chain(delegated).chain(run).collect()
    }
}

fn priced(model: &PlanModel) -> PricedModel {
    let provider = model.provider.clone().unwrap_or_else(|| provider_of(model.api).to_owned());
    let asked = ModelAsked { name: model.name.clone(), api: model.api, provider, id: model.model.clone() };
    PricedModel { asked, prices: model.prices }
}

/// Whose wire format it is, where the Model does not say who is asked.
fn provider_of(api: ModelApi) -> &'static str {
    match api {
        ModelApi::ChatCompletions | ModelApi::Responses => "openai",
        ModelApi::Messages => "anthropic",
        ModelApi::Scripted => "scripted",
    }
}
