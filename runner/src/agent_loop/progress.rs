//! The run as this process knows it: state, conversation, and what else the next step depends on, all
//! folded from the same events. Pure.

use std::sync::Arc;

use belay_protocol::chain::{ChainError, Head};
use belay_protocol::event::{DeathProof, DenyReason, Finish, Item, LaterReason, Record, Verdict};
use belay_protocol::fold::IllegalEvent;
use belay_protocol::plan::PLAN_VERSION;
use belay_protocol::transcript::Transcript;
use belay_protocol::wire::Welcome;
use belay_protocol::{Digest, Event, Plan, RunState};

use crate::redact::Redactor;

#[derive(Clone, Debug, Default)]
pub struct Progress {
    state: RunState,
    transcript: Transcript,
    /// The last call of an answer that was cut at the output limit: its arguments may be half of them.
    cut_call: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum WelcomeError {
    #[error("the plan cannot be read: {0}")]
    Plan(#[source] serde_json::Error),
    #[error("the plan has version {found}, this runner reads {PLAN_VERSION}")]
    Version { found: u32 },
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("the journal holds an event that cannot follow: {0}")]
    Illegal(#[from] IllegalEvent),
}

impl Progress {
    /// Reads a Welcome: the frozen plan, and the run as far as its journal tells.
    pub fn read(welcome: &Welcome) -> Result<(Arc<Plan>, Self), WelcomeError> {
        let plan: Plan = serde_json::from_slice(&welcome.plan).map_err(WelcomeError::Plan)?;
        if plan.version != PLAN_VERSION {
            return Err(WelcomeError::Version { found: plan.version });
        }
        let mut progress = Self::default();
        let mut head = Head::empty();
        for bytes in &welcome.records {
            let sealed = head.open(bytes, None)?;
            head = sealed.head();
            progress.apply(&sealed.record)?;
        }
        Ok((Arc::new(plan), progress))
    }

    #[must_use]
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Keeps this run's credentials from its model, whoever wrote what the journal holds.
    #[must_use]
    pub fn redacted(mut self, redactor: &Redactor) -> Self {
        self.transcript.rewrite_results(|content| redactor.redact(content).into_owned());
        self
    }

    #[must_use]
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Takes in an event of this process, ahead of the operator's numbering.
    pub fn take(&mut self, event: &Event) -> Result<(), IllegalEvent> {
        let record = Record { seq: self.state.seq + 1, at: self.state.updated_at, event: event.clone() };
        self.apply(&record)
    }

    /// Takes in the operator's yes to a call.
    pub fn allow(&mut self, call_id: &str, attempt: u32, digest: Digest) -> Result<(), IllegalEvent> {
        // This process hears of no other epoch's death but by the permit, which is given only after it.
        let undead: Vec<u64> = self.state.undead.keys().copied().collect();
        for epoch in undead {
            self.take(&Event::EpochDead { epoch, proof: DeathProof::Quarantine })?;
        }
        let verdict = Verdict::Allowed { digest };
        self.take(&Event::CallDecided { call_id: call_id.to_owned(), attempt, verdict, judged: None })
    }

    /// Takes in the operator's no to a call. The ack carries its words; the reason stays in the journal.
    pub fn deny(&mut self, call_id: &str, attempt: u32, message: String) -> Result<(), IllegalEvent> {
        let verdict = Verdict::Denied { reason: DenyReason::NotListed, message };
        self.take(&Event::CallDecided { call_id: call_id.to_owned(), attempt, verdict, judged: None })
    }

    /// People are asked about the call: whose yes it needs is the operator's business.
    pub fn wait_for_people(&mut self, call_id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        let verdict = Verdict::Asked { requirements: Vec::new() };
        self.take(&Event::CallDecided { call_id: call_id.to_owned(), attempt, verdict, judged: None })
    }

    /// The call may not go just now; what holds it up stays in the journal.
    pub fn wait(&mut self, call_id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        let verdict = Verdict::Later { reason: LaterReason::CallsUnderWay };
        self.take(&Event::CallDecided { call_id: call_id.to_owned(), attempt, verdict, judged: None })
    }

    /// Takes over the operator's count: it may have appended events of its own.
    pub fn catch_up(&mut self, seq: u64) {
        self.state.seq = seq;
    }

    /// The model's words for a call of the newest response.
    #[must_use]
    pub fn requested(&self, call_id: &str) -> Option<Requested> {
        let items = &self.transcript.turns().last()?.items;
        items.iter().find_map(|item| match item {
            Item::ToolCall { call_id: id, name, arguments, .. } if id == call_id => Some(Requested {
                name: name.clone(),
                arguments: arguments.clone(),
                was_cut: self.cut_call.as_deref() == Some(call_id),
            }),
            Item::ToolCall { .. } | Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
        })
    }

    fn apply(&mut self, record: &Record) -> Result<(), IllegalEvent> {
        self.state.apply(record)?;
        self.transcript.apply(&record.event);
        if let Event::ModelResponded { response, .. } = &record.event {
            let last = response.items.iter().rev().find_map(|item| match item {
                Item::ToolCall { call_id, .. } => Some(call_id.clone()),
                Item::Text { .. } | Item::Reasoning { .. } | Item::Block { .. } => None,
            });
            self.cut_call = last.filter(|_| response.finish == Finish::Length);
        }
        Ok(())
    }
}

/// A call as the model asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    pub name: String,
    pub arguments: String,
    pub was_cut: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use belay_protocol::event::{EpochEnd, ModelResponse, ProposedCall, ToolResult};
    use serde_json::json;

    use super::super::{Agent, Parts};
    use super::*;
    use crate::credential::tests::{credential, mounted};

    /// As a Welcome would tell it: the epoch before ended, and nobody knows yet whether it is dead.
    fn after_a_lost_pod() -> Progress {
        let plan = json!({
            "version": PLAN_VERSION, "run": {"namespace": "n", "name": "r", "uid": "u"},
            "agent": {"namespace": "n", "name": "a", "uid": "v"}, "agentGeneration": 1, "input": "go",
            "model": {"name": "m", "api": "Scripted", "model": "s",
                "timeouts": {"connectSeconds": 1, "firstByteSeconds": 1, "idleSeconds": 1, "totalSeconds": 1}},
            "limits": {"steps": 9, "activeSeconds": 9, "waitSeconds": 9},
        });
        let plan: Plan = serde_json::from_value(plan).unwrap();
        let claimed =
            |epoch| Event::InstanceClaimed { epoch, instance: format!("i{epoch}"), pod_uid: format!("p{epoch}") };
        let call = Item::ToolCall {
            call_id: "c1".into(),
            provider_id: "x".into(),
            name: "t__o".into(),
            arguments: "{}".into(),
        };
        let response = ModelResponse::new(vec![call], Finish::ToolCalls, belay_protocol::cost::Usage::default(), 1);
        let mut progress = Progress::default();
        for event in [
            Event::RunAccepted { plan_digest: plan.digest().unwrap(), plan: Box::new(plan) },
            Event::EpochOpened { epoch: 1, pod_name: "belay-run-a".into() },
            claimed(1),
            Event::ModelRequested { step: 1, attempt: 1, request: Digest::zero(), reserved_tokens: 0 },
            Event::ModelResponded { step: 1, attempt: 1, response },
            Event::EpochEnded { epoch: 1, cause: EpochEnd::PodLost, active_milliseconds: 1 },
            Event::EpochOpened { epoch: 2, pod_name: "belay-run-b".into() },
            claimed(2),
        ] {
            progress.take(&event).unwrap();
        }
        progress
    }

    struct Nobody;

    #[async_trait::async_trait]
    impl crate::session::Keeper for Nobody {
        async fn keep(&self, _: &belay_protocol::event::Artifact, _: &[u8]) -> Result<(), String> {
            Err("nobody keeps it".to_owned())
        }
    }

    #[test]
    fn what_another_run_answered_reaches_the_model_without_this_runs_credentials() {
        let mut progress = permitted();
        let content = "the key is hunter2hunter2".to_owned();
        let result = ToolResult { is_error: false, content, truncated_from_bytes: None, artifacts: Vec::new() };
        progress.take(&Event::CallObserved { call_id: "c1".into(), attempt: 1, result, milliseconds: 1 }).unwrap();
        let plan = progress.state().plan.clone().unwrap();
        let (_folder, credentials) = mounted(&[("a", b"hunter2hunter2")]);
        let parts = Parts {
            models: Vec::new(),
            servers: BTreeMap::new(),
            redactor: Redactor::new(credentials, &[credential("a", &[])]),
            keeper: Arc::new(Nobody),
        };
        let (appends, _queue) = tokio::sync::mpsc::channel(1);
        let (_orders, seen) = tokio::sync::watch::channel(crate::session::Order::Go);
        let operator = crate::session::Operator::new(appends, seen, crate::session::Wakes::default());
        let agent = Agent::new(plan, progress, operator, parts);
        let shown = &agent.progress.transcript().turns().first().unwrap().results.get("c1").unwrap().content;
        assert_eq!(shown, "the key is [credential a redacted]");
    }

    fn permitted() -> Progress {
        let mut progress = after_a_lost_pod();
        let call = ProposedCall {
            tool: "t".into(),
            operation: "o".into(),
            args: json!({}),
            definition: Digest::zero(),
            digest: Digest::zero(),
        };
        progress.take(&Event::CallProposed { call_id: "c1".into(), attempt: 1, call }).unwrap();
        progress.allow("c1", 1, Digest::zero()).unwrap();
        progress
    }

    #[test]
    fn a_permit_that_came_after_the_quarantine_can_be_used() {
        assert_eq!(permitted().state().calls_in_flight().count(), 1);
    }
}
