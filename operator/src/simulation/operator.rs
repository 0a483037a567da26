//! The operator's side: what it sees, what production decides, and the one thing that is done.

use std::collections::BTreeMap;
use std::time::Duration;

use belay_protocol::event::{Answer, Ask, AskPurpose, DenyReason, Event, Verdict};

use super::{Approval, Fault, Pod, Without, World};
use crate::agent_run::Ending;
use crate::agent_run::plan::{
    AgentView, Approved, AskSeen, Decision, EpochEnding, JournalHead, Observed, Stream, Undead, is_idle,
};
use crate::agent_run::questions::{draft, out_of_date};
use crate::fixtures::CREATED_AT;
use crate::gate::{ModelRequest, close};
use crate::namespaces::Service;
use crate::pod_view::{Exit, PodView};

/// What is lost with the process.
#[derive(Default)]
pub(super) struct Memory {
    undead_since: BTreeMap<u64, u64>,
    cancelling_since: Option<u64>,
    ended_since: Option<u64>,
    resting_since: Option<u64>,
    idle_since: Option<u64>,
    active_since: Option<u64>,
    made: bool,
}

impl World {
    pub(super) fn crash_operator(&mut self) {
        self.note("the operator dies");
        self.open_journal();
        self.memory = Memory::default();
        for process in &mut self.processes {
            process.connected = false;
        }
    }

    fn view(&self, name: &str) -> PodView {
        match self.pods.iter().find(|pod| pod.name == name) {
            None => PodView::Absent,
            Some(pod) if pod.reported_ended && pod.deleting => PodView::Ended(Exit::Stopped),
            Some(pod) if pod.reported_ended => PodView::Ended(Exit::Crashed { why: "Error".to_owned() }),
            Some(pod) if pod.deleting => PodView::Leaving,
            Some(Pod { process: None, .. }) => PodView::Starting,
            Some(_) => PodView::Running { since: jiff::Timestamp::UNIX_EPOCH + Duration::from_hours(24 * 365 * 300) },
        }
    }

    /// One pass of production's decision over everything that is seen now.
    pub(super) fn operate(&mut self) {
        let decision = self.decide();
        let decided = format!("{decision:?}").chars().take(90).collect::<String>();
        self.note(format!("operator: {decided}"));
        match decision {
            Decision::Hold | Decision::Wait(_) | Decision::Follow(_) | Decision::Count { .. } => {}
            Decision::Finish => self.pods.iter_mut().for_each(|pod| pod.deleting = true),
            Decision::Start => unreachable!("it was accepted"),
            Decision::PostGrant { .. } | Decision::RevokeGrant { .. } => unreachable!("nobody allows more than a call"),
            Decision::Launch => self.launch(),
            Decision::RequestCancel => {
                self.append(vec![Event::CancelRequested {}]);
            }
            Decision::End(ending) => self.end(ending),
            Decision::EndEpoch(ending) => self.end_epoch(ending),
            Decision::Bury { epoch, proof } => {
                self.append(vec![Event::EpochDead { epoch, proof }]);
            }
            Decision::Ask { call_id } => self.ask(call_id),
            Decision::Post { name } => {
                let purpose = self.state.asks[&name].ask.purpose;
                let fresh = Approval { uid: format!("uid-{}", self.rng.next()), purpose, answer: None };
                // After a crash before the append it is found under its journaled name.
                let uid = self.approvals.entry(name.clone()).or_insert(fresh).uid.clone();
                self.append(vec![Event::AskPosted { name, uid }]);
            }
            Decision::Settle { name } => self.settle_ask(name),
            Decision::Adopt { .. } => unreachable!("its tool never drifts"),
            Decision::PostChild { name } => self.post_child(name),
            Decision::SettleChild { name } => self.settle_child(&name),
        }
    }

    fn decide(&mut self) -> Decision {
        let now = self.now;
        let live = self.state.live_epoch().cloned();
        let pod = live.as_ref().map_or(PodView::Absent, |epoch| self.view(&epoch.pod_name));
        let keep = |is: bool, since: Option<u64>| is.then(|| since.unwrap_or(now));
        let memory = &mut self.memory;
        memory.ended_since = keep(matches!(pod, PodView::Ended(_)), memory.ended_since);
        memory.cancelling_since = keep(self.state.cancel_requested, memory.cancelling_since);
        memory.resting_since = keep(live.is_none(), memory.resting_since);
        memory.idle_since = keep(is_idle(&self.state, false), memory.idle_since);
        memory.active_since = keep(live.as_ref().is_some_and(|epoch| epoch.claim.is_some()), memory.active_since);
        let undead_since = std::mem::take(&mut memory.undead_since);
        memory.undead_since =
            self.state.undead.keys().map(|epoch| (*epoch, undead_since.get(epoch).copied().unwrap_or(now))).collect();
        let since = |at: Option<u64>| Duration::from_millis(at.map_or(0, |at| now - at));
        let memory = &self.memory;
        let undead = (self.state.undead.iter())
            .map(|(epoch, name)| {
                let waited =
                    if self.without == Without::Quarantine { u64::MAX } else { now - memory.undead_since[epoch] };
                Undead { epoch: *epoch, pod: self.view(name), waited: Duration::from_millis(waited) }
            })
            .collect();
        let stream =
            self.processes.iter().any(|p| p.alive && p.connected && p.epoch == live.as_ref().map(|e| e.number));
        Observed {
            run: &self.run,
            journal_id: "j",
            head: Some(JournalHead { seq: self.state.seq, hash: String::new(), holds_witness: true }),
            state: Some(&self.state),
            agent: AgentView::Ready,
            service: Service::Enabled,
            pod,
            pod_was_there: memory.made,
            stream: if stream { Stream::Live } else { Stream::Closed },
            cancelling_for: since(memory.cancelling_since),
            ended_for: since(memory.ended_since),
            undead,
            asks: self.asks_seen(),
            children: self.children_seen(),
            lineage: &crate::agent_run::lineage::Lineage::Root,
            drift: crate::agent_run::drift::DriftSeen::None,
            grants: Vec::new(),
            guard_down: None,
            status_doubt: None,
            active_for: since(memory.active_since),
            last_words: None,
            resting_for: since(memory.resting_since),
            idle_for: since(memory.idle_since),
            withheld: false,
            model_wait: None,
            limits: self.state.plan.as_ref().unwrap().limits,
            times: crate::tuning::Times::default(),
            now: self.wall(),
        }
        .decide()
    }

    fn asks_seen(&self) -> Vec<AskSeen> {
        let see = |(name, open): (&String, &belay_protocol::fold::OpenAsk)| {
            let found = self.approvals.get(name).filter(|approval| Some(&approval.uid) == open.uid.as_ref());
            let seen = match (&open.uid, found) {
                _ if out_of_date(&self.state, &open.ask).is_some() => Approved::OutOfDate,
                (None, _) => Approved::Unposted,
                (Some(_), None) => Approved::Gone,
                (Some(_), Some(Approval { answer: Some(Answer::Allowed { .. }), .. })) => Approved::Allowed,
                (Some(_), Some(Approval { answer: Some(_), purpose: AskPurpose::Question, .. })) => Approved::Answered,
                (Some(_), Some(Approval { answer: Some(_), .. })) => Approved::Decided,
                (Some(_), Some(_)) => Approved::Open,
            };
            AskSeen { name: name.clone(), seen }
        };
        self.state.asks.iter().map(see).collect()
    }

    fn launch(&mut self) {
        if self.state.live_epoch().is_none() {
            let epoch = self.state.epoch.as_ref().map_or(0, |epoch| epoch.number) + 1;
            self.memory.made = false;
            self.append(vec![Event::EpochOpened { epoch, pod_name: format!("belay-run-{epoch}") }]);
        }
        let Some(name) = self.state.live_epoch().map(|epoch| epoch.pod_name.clone()) else { return };
        // Between the two a crash may lie: the next pass creates it under the journaled name.
        if !self.strikes(Fault::PodRefused) && !self.rng.chance(5) && self.pods.iter().all(|pod| pod.name != name) {
            self.pods.push(Pod { name, process: None, reported_ended: false, deleting: false });
            self.memory.made = true;
        }
    }

    fn end(&mut self, ending: Ending) {
        let events = ending.events(Some(&self.state), Duration::from_millis(1));
        self.append(events);
    }

    fn end_epoch(&mut self, ending: EpochEnding) {
        let EpochEnding { epoch, cause, proof, message } = ending;
        let claimed = self.state.live_epoch().is_some_and(|epoch| epoch.claim.is_some());
        let mut events = close(&self.state, ModelRequest::Given, &message);
        events.push(Event::EpochEnded { epoch, cause, active_milliseconds: 1 });
        events.extend(proof.filter(|_| claimed).map(|proof| Event::EpochDead { epoch, proof }));
        if !self.append(events) {
            return;
        }
        self.memory.made = false;
        self.pods.iter_mut().for_each(|pod| pod.deleting = true);
    }

    fn ask(&mut self, call_id: String) {
        let Some(draft) = draft(&self.state, &call_id, 1) else { return };
        let ask = Ask {
            name: format!("ask-{}", self.rng.next()),
            purpose: draft.purpose,
            attempt: draft.attempt,
            call_id,
            nonce: String::new(),
            expires_at: CREATED_AT * 2,
            digest: belay_protocol::Digest::zero(),
            call: draft.call,
            question: draft.question,
            requirements: draft.requirements,
            guard: None,
        };
        self.append(vec![Event::AskOpened { ask }]);
    }

    fn settle_ask(&mut self, name: String) {
        let answer = self.approvals.get(&name).and_then(|approval| approval.answer.clone());
        let answer = answer.unwrap_or(Answer::Withdrawn { why: "it was deleted".to_owned() });
        let ends = matches!(answer, Answer::End { .. });
        let ask = self.state.asks[&name].ask.clone();
        let another_pod = match answer {
            Answer::Happened { .. } | Answer::Retry { .. } | Answer::Answered { .. } => true,
            Answer::Denied { .. } | Answer::Expired {} => ask.purpose == AskPurpose::Question,
            _ => false, // its runner hears of it where it is, or the question is put again
        };
        let live = self.state.live_epoch().map(|epoch| epoch.number);
        let denied = matches!(answer, Answer::Denied { .. } | Answer::Expired {}).then(|| Event::CallDecided {
            call_id: ask.call_id,
            attempt: ask.attempt,
            verdict: Verdict::Denied { reason: DenyReason::Refused, message: "no".to_owned() },
            judged: None,
        });
        let mut events: Vec<Event> = std::iter::once(Event::AskSettled { name, answer }).chain(denied).collect();
        if ends {
            events.extend(Ending::cancelled("ada ended it").events(Some(&self.state), Duration::from_millis(1)));
        } else if let Some(epoch) = live.filter(|_| another_pod) {
            let cause = belay_protocol::event::EpochEnd::Released;
            events.push(Event::EpochEnded { epoch, cause, active_milliseconds: 1 });
        }
        let released = events.iter().any(|event| matches!(event, Event::EpochEnded { .. })) && !ends;
        if self.append(events) && released {
            self.pods.iter_mut().for_each(|pod| pod.deleting = true);
        }
    }
}
