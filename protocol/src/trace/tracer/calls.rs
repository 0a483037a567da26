//! Calls and what people are asked about them.

use super::{Named, Tracer};
use crate::event::{Answer, Ask, Item, ProposedCall, Record, Verdict};
use crate::export::{EffectOutcome, PermittedBy};
use crate::judgement::Judged;
use crate::trace::content::{cut, word};
use crate::trace::span::{AskSpan, CallName, CallSpan, Decided, DecisionSpan, Span, What};

impl Tracer {
    pub(super) fn name(&mut self, call_id: &str, call: &ProposedCall) -> Vec<Span> {
        let arguments = self.content.keep(|| cut(&call.args.to_string()));
        let named = Named { tool: call.tool.clone(), operation: call.operation.clone(), arguments };
        self.named.insert(call_id.to_owned(), named);
        Vec::new()
    }

    pub(super) fn call_name(&self, call_id: &str, attempt: u32) -> CallName {
        let named = self.named.get(call_id);
        let (tool, operation) = named.map(|named| (named.tool.clone(), named.operation.clone())).unwrap_or_default();
        CallName { call_id: call_id.to_owned(), attempt, tool, operation }
    }

    pub(super) fn decide(
        &mut self,
        call_id: &str,
        attempt: u32,
        (verdict, judged): (&Verdict, Option<&Judged>),
        record: &Record,
    ) -> Span {
        let decided = match verdict {
            Verdict::Allowed { .. } => {
                self.begin_call(call_id, attempt, record);
                let approved = self.approved.get(call_id).filter(|(approved, _)| *approved == attempt);
                Decided::Allowed(PermittedBy::tell(judged, approved.map(|(_, by)| by.as_slice()), &self.given))
            }
            Verdict::Denied { reason, message } => Decided::Denied { reason: *reason, message: message.clone() },
            Verdict::Asked { requirements } => {
                Decided::Asked(requirements.iter().map(|it| it.policy.clone()).collect())
            }
            Verdict::Later { reason } => Decided::Later(*reason),
        };
        let decision = DecisionSpan { call: self.call_name(call_id, attempt), decided };
        let begun = self.begin("decision", record, decision);
        begun.span(self.root, Some(record.at), |decision| What::Decision(Box::new(decision)))
    }

    pub(super) fn begin_call(&mut self, call_id: &str, attempt: u32, record: &Record) {
        let call = self.call_name(call_id, attempt);
        let effects = self.effects.get(&(call.tool.clone(), call.operation.clone())).copied().unwrap_or_default();
        let arguments = self.named.get(call_id).and_then(|named| named.arguments.clone());
        let outcome = EffectOutcome::UnderWay;
        let call = CallSpan { call, effects, outcome, milliseconds: None, arguments, result: None, child: None };
        self.calls.insert(call_id.to_owned(), self.begin("call", record, call));
    }

    /// What fails before it is proposed, or between proposal and permit, is a call all the same.
    pub(super) fn begin_unpermitted(&mut self, call_id: &str, attempt: u32, record: &Record) {
        if !self.calls.contains_key(call_id) {
            self.begin_call(call_id, attempt, record);
        }
    }

    pub(super) fn come_to(&mut self, call_id: &str, at: i64, outcome: EffectOutcome) -> Vec<Span> {
        self.settle(call_id, at, |call| call.outcome = outcome)
    }

    pub(super) fn settle(&mut self, call_id: &str, at: i64, how: impl FnOnce(&mut CallSpan)) -> Vec<Span> {
        let Some(mut call) = self.calls.remove(call_id) else { return Vec::new() };
        how(&mut call.of);
        vec![call.span(self.root, Some(at), |call| What::Call(Box::new(call)))]
    }

    pub(super) fn ask(&mut self, ask: &Ask, record: &Record) -> Vec<Span> {
        let call = self.call_name(&ask.call_id, ask.attempt);
        let open = AskSpan { name: ask.name.clone(), purpose: ask.purpose, call, answer: None };
        self.asks.insert(ask.name.clone(), self.begin("ask", record, open));
        Vec::new()
    }

    pub(super) fn settle_ask(&mut self, name: &str, answer: &Answer, at: i64) -> Vec<Span> {
        let Some(mut ask) = self.asks.remove(name) else { return Vec::new() };
        let CallName { call_id, attempt, .. } = &ask.of.call;
        match answer {
            Answer::Allowed { by } => {
                self.approved.insert(call_id.clone(), (*attempt, by.clone()));
            }
            // Where people had said yes to the call, these said yes to the next attempt.
            Answer::Answered { by, .. } => {
                if let Some(approved) = self.approved.get_mut(call_id).filter(|(approved, _)| approved == attempt) {
                    *approved = (attempt.saturating_add(1), by.clone());
                }
            }
            Answer::Happened { .. }
            | Answer::Retry { .. }
            | Answer::End { .. }
            | Answer::Withdrawn { .. }
            | Answer::Denied { .. }
            | Answer::Expired {}
            | Answer::Misfit { .. } => {}
        }
        ask.of.answer = Some(answer.clone());
        vec![ask.span(self.root, Some(at), |ask| What::Ask(Box::new(ask)))]
    }

    pub(super) fn named_by_model(&self, item: &Item) -> Option<(String, Named)> {
        match item {
            Item::ToolCall { call_id, name, arguments, .. } => {
                let arguments = self.content.keep(|| cut(arguments));
                // The model's own word for a tool that there is not may say anything.
                let tool = self.content.keep(|| word(name)).unwrap_or_else(|| "unknown".to_owned());
                Some((call_id.clone(), Named { tool, operation: String::new(), arguments }))
            }
            Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
        }
    }
}
