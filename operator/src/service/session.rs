//! One stream of a runner, from Hello to its end. Batches in, answers out; orders from controllers between.

use std::sync::Arc;
use std::time::Duration;

use belay_protocol::Event;
use belay_protocol::chain::SealedRecord;
use belay_protocol::fold::RunState;
use belay_protocol::plan::ObjectId;
use belay_protocol::wire::operator_message::Body as Out;
use belay_protocol::wire::runner_message::Body as In;
use belay_protocol::wire::{self, Bye, Cancel, Drain, OperatorMessage, RunnerMessage, Wake};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::authenticate::{Caller, Proof};
use super::batch::{self, end_words};
use super::hello::{self, Greeted};
use super::parked::{Parked, Tell};
use super::sessions::Order;
use super::tickets::Tickets;
use super::{HELLO_TIMEOUT, RunService};
use crate::gate::{self, Circumstances, Room, Standing, Word, Words};
use crate::journal::{Batch, BatchKey, JournalError};
use crate::quota::{Place, Turn};

/// A peer that takes no message for so long is cut.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a withheld answer, or a call that waits, asks whether it may go now.
const WAITING_POLL: Duration = Duration::from_millis(500);
/// What calls in flight get when a runner comes back to a run that is being cancelled.
const CANCEL_GRACE_SECONDS: u32 = 10;

pub(super) struct Stream {
    pub service: RunService,
    pub tickets: Arc<Tickets>,
    pub caller: Caller,
    pub incoming: Streaming<RunnerMessage>,
    pub outgoing: mpsc::Sender<Result<OperatorMessage, Status>>,
    pub shutdown: CancellationToken,
}

/// Why a stream is over.
#[derive(Debug)]
pub(super) enum Over {
    /// The peer closed it, or does not read.
    Left,
    /// Refused or done for good: the runner exits.
    Bye(String),
    /// Cut off, with a status that says whether to come again.
    Status(Status),
    Drain,
}

impl Over {
    pub(super) fn bye(reason: impl Into<String>) -> Self {
        Self::Bye(reason.into())
    }

    pub(super) fn garbage(reason: impl Into<String>) -> Self {
        Self::Status(Status::invalid_argument(reason))
    }
}

impl From<JournalError> for Over {
    fn from(error: JournalError) -> Self {
        let words = error.to_string();
        Self::Status(match error {
            JournalError::Illegal(_)
            | JournalError::Digest(_)
            | JournalError::BatchOutOfOrder { .. }
            | JournalError::BatchDiffers { .. } => Status::invalid_argument(words),
            JournalError::SessionReplaced { .. } => Status::aborted(words),
            // Nothing mends that while the runner waits.
            JournalError::Damaged { .. } => return Self::Bye(words),
            JournalError::Moved { .. }
            | JournalError::UnknownRun(_)
            | JournalError::OtherRun { .. }
            | JournalError::NotEnded { .. }
            | JournalError::Full
            | JournalError::Fenced
            | JournalError::FenceRefused { .. }
            | JournalError::Unavailable(_)
            | JournalError::Closed
            | JournalError::Open(_) => Status::unavailable(words),
        })
    }
}

/// An answer that waits: the model is not asked meanwhile.
struct Withheld {
    n: u64,
    asked: Vec<Event>,
    records: Vec<SealedRecord>,
    /// In the line of those who want to ask the same Model. Without one the Agent is suspended, or a definition is not
    /// what was accepted.
    place: Option<Place>,
}

impl Stream {
    /// Serves the stream to its end and says goodbye.
    pub(super) async fn run(mut self) {
        let over = match self.hello().await {
            Ok(greeted) => {
                let (uid, session) = (greeted.run.uid.clone(), greeted.session);
                let orders = self.service.sessions.enter(&uid, session);
                let over = match self.converse(greeted, orders).await {
                    Ok(never) => match never {},
                    Err(over) => over,
                };
                self.farewell(&over, Some(&uid)).await;
                return self.service.sessions.leave(&uid, session);
            }
            Err(over) => over,
        };
        self.farewell(&over, None).await;
    }

    async fn hello(&mut self) -> Result<Greeted, Over> {
        let late = |_| Over::Status(Status::deadline_exceeded("no Hello in time"));
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.incoming.message()).await.map_err(late)?;
        match received(first)? {
            In::Hello(hello) => {
                let mut greeted = hello::greet(&self.service, &self.caller, &hello).await?;
                // A ticket begets no ticket: what the API server said once does not count for ever.
                if self.caller.proof == Proof::Token {
                    greeted.welcome.ticket = self.tickets.issue(&self.caller.pod, greeted.epoch, &hello.instance);
                }
                self.caller.origin.admit();
                Ok(greeted)
            }
            In::Batch(_) => Err(Over::garbage("a stream begins with Hello")),
        }
    }

    async fn converse(
        &mut self,
        greeted: Greeted,
        mut orders: mpsc::Receiver<Order>,
    ) -> Result<std::convert::Infallible, Over> {
        let Greeted { run, epoch, session, returns, state, welcome } = greeted;
        tracing::info!(run = run.uid, namespace = run.namespace, name = run.name, epoch, session, "runner connected");
        self.send(Out::Welcome(welcome)).await?;
        if state.cancel_requested {
            self.send(Out::Cancel(Cancel { grace_seconds: CANCEL_GRACE_SECONDS })).await?;
        }
        let mut withheld: Option<Withheld> = None;
        let mut parked = if returns { Parked::returning(&state) } else { Parked::welcomed(&state) };
        loop {
            self.wake(&run, &mut parked).await?;
            // One whose turn had come while its runner was to be let go is called by nobody again.
            let is_uncalled = |withheld: &Withheld| withheld.place.as_ref().is_none_or(Place::is_called);
            let looks = withheld.as_ref().is_some_and(is_uncalled) || !parked.is_empty();
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Over::Drain),
                order = orders.recv() => {
                    self.obey(order).await?;
                    withheld = self.look_again(&run, session, withheld).await?;
                }
                message = self.incoming.message() => match received(message)? {
                    In::Hello(_) => return Err(Over::garbage("a second Hello on one stream")),
                    In::Batch(_) if withheld.is_some() => {
                        return Err(Over::garbage("a batch before the one before it was answered"));
                    }
                    In::Batch(batch) => {
                        let key = BatchKey { epoch, session, n: batch.n };
                        withheld = self.take(&run, key, &batch, &mut parked).await?;
                        self.note(&run, session, withheld.as_ref());
                    }
                },
                () = called(withheld.as_mut()) => {
                    withheld = self.look_again(&run, session, withheld).await?;
                }
                () = tokio::time::sleep(WAITING_POLL), if looks => {
                    withheld = self.look_again(&run, session, withheld).await?;
                }
            }
        }
    }

    /// Whether what is withheld may be answered by now.
    async fn look_again(
        &mut self,
        run: &ObjectId,
        session: u64,
        withheld: Option<Withheld>,
    ) -> Result<Option<Withheld>, Over> {
        let Some(waiting) = withheld else { return Ok(None) };
        let waited = waiting.place.is_some();
        let withheld = self.release(run, session, waiting).await?;
        self.note(run, session, withheld.as_ref());
        if waited && withheld.is_none() {
            self.service.sessions.tell_of(&run.uid);
        }
        Ok(withheld)
    }

    fn note(&self, run: &ObjectId, session: u64, withheld: Option<&Withheld>) {
        let Some(withheld) = withheld else { return };
        self.service.sessions.withhold(&run.uid, session);
        // Its run says what it waits for, if that takes long.
        if withheld.place.is_some() {
            self.service.sessions.tell_of(&run.uid);
        }
    }

    async fn obey(&mut self, order: Option<Order>) -> Result<(), Over> {
        match order {
            Some(Order::Cancel { grace }) => {
                let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
                self.send(Out::Cancel(Cancel { grace_seconds })).await
            }
            Some(Order::Bye { reason }) => Err(Over::Bye(reason)),
            // The loop looks before it waits again.
            Some(Order::Look) => Ok(()),
            None => Err(Over::Status(Status::aborted("a newer stream of this runner took over"))),
        }
    }

    /// Makes a batch durable and answers it, unless the answer has to wait.
    async fn take(
        &mut self,
        run: &ObjectId,
        key: BatchKey,
        batch: &wire::Batch,
        parked: &mut Parked,
    ) -> Result<Option<Withheld>, Over> {
        let events = batch::parse(batch).map_err(|e| Over::garbage(e.to_string()))?;
        self.check_artifacts(run, &events).await?;
        let asked = events.clone();
        let words = self.words(run, &events).await?;
        let room = self.room(run, batch).await?;
        let (suspended, journal) = (self.service.suspended.clone(), self.service.journal.clone());
        let decide = move |state: &RunState, events: &[Event]| {
            let now = journal.now().max(state.updated_at);
            let circumstances = Circumstances { standing: standing(&suspended, state), room, words: &words, now };
            gate::decide(state, events.to_vec(), &circumstances)
        };
        let taken = self.service.journal.append_batch(&run.uid, Batch { key, events }, decide).await;
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => return Err(self.why(run, key.epoch, error).await),
        };
        parked.note(&taken.records);
        self.service.quotas.note(&run.uid, taken.records.iter().map(|sealed| &sealed.record.event));
        let withheld = Withheld { n: key.n, asked, records: taken.records, place: None };
        if batch::asks(&withheld.asked) {
            self.release(run, key.session, withheld).await
        } else {
            self.answer(&taken.state, &withheld).await.map(|()| None)
        }
    }

    /// The journal names no artifact that is not kept.
    async fn check_artifacts(&self, run: &ObjectId, events: &[Event]) -> Result<(), Over> {
        let results = events.iter().filter_map(|event| match event {
            Event::CallObserved { result, .. } => Some(result),
            _ => None, // no other event names any
        });
        for artifact in results.flat_map(|result| &result.artifacts) {
            let digest = artifact.digest;
            match self.service.journal.artifacts().holds(&run.uid, digest).await {
                Ok(true) => {}
                Ok(false) => return Err(Over::garbage(format!("a result names {digest}, which was not kept before"))),
                Err(error) => return Err(Over::Status(Status::unavailable(error.to_string()))),
            }
        }
        Ok(())
    }

    /// What the policies say of each proposal. They take their time before the transaction, not within.
    async fn words(&self, run: &ObjectId, events: &[Event]) -> Result<Words, Over> {
        let mut words = Words::new();
        let proposals = events.iter().filter_map(|event| match event {
            Event::CallProposed { call_id, attempt, call } => Some((call_id, *attempt, call)),
            _ => None, // nothing else needs leave of a policy
        });
        for (call_id, attempt, call) in proposals {
            let key = (call_id.clone(), attempt);
            // A word is on one call: no other one under its name goes by it.
            let word = if words.contains_key(&key) {
                Word::Stalled(format!("{call_id} is proposed twice in one batch"))
            } else {
                let state = self.service.journal.state(&run.uid).await?.unwrap_or_default();
                self.service.law.judge(&state, call).await
            };
            words.insert(key, word);
        }
        Ok(words)
    }

    /// Whether the run may write this batch as well. Only this stream adds any to speak of.
    async fn room(&self, run: &ObjectId, batch: &wire::Batch) -> Result<Room, Over> {
        let adds: u64 = batch.events.iter().map(|event| event.len() as u64).sum();
        let used = self.service.journal.bytes(&run.uid).await?;
        let bytes_max = self.service.options.run_bytes_max;
        Ok(if used.saturating_add(adds) > bytes_max { Room::Used { bytes_max } } else { Room::Left })
    }

    /// Answers a batch that asks for the model, once its Agent and its tools' definitions let it go on and its turn has
    /// come, or the run is ending.
    async fn release(
        &mut self,
        run: &ObjectId,
        session: u64,
        mut withheld: Withheld,
    ) -> Result<Option<Withheld>, Over> {
        // Before the look at the journal: whoever lets the runner go after it counts what it asked for as begun.
        if !self.service.sessions.take_up(&run.uid, session) {
            return Ok(Some(withheld));
        }
        let state = self.service.journal.state(&run.uid).await?.unwrap_or_default();
        let goes_on = state.end.is_none() && !state.cancel_requested;
        let drifted = state.drifted().next().is_some();
        if goes_on && (drifted || standing(&self.service.suspended, &state) == Standing::Suspended) {
            // Its turn is for others meanwhile.
            return Ok(Some(Withheld { place: None, ..withheld }));
        }
        if goes_on {
            match withheld.place.take() {
                Some(place) if place.is_called() => place.go(),
                Some(place) => return Ok(Some(Withheld { place: Some(place), ..withheld })),
                None => match self.service.quotas.ask(&state) {
                    Turn::Now => {}
                    Turn::Waits(place) => return Ok(Some(Withheld { place: Some(place), ..withheld })),
                },
            }
        }
        self.answer(&state, &withheld).await.map(|()| None)
    }

    /// Tells the runner what was decided about calls that it waits with.
    async fn wake(&mut self, run: &ObjectId, parked: &mut Parked) -> Result<(), Over> {
        if parked.is_empty() {
            return Ok(());
        }
        let state = self.service.journal.state(&run.uid).await?.unwrap_or_default();
        let told = parked.look(&state, standing(&self.service.suspended, &state));
        if told.is_empty() {
            return Ok(());
        }
        let denied = told.iter().any(|told| told.what == Tell::Denied);
        let records = if denied { self.service.journal.records(&run.uid, 1).await? } else { Vec::new() };
        let decisions = told.iter().filter_map(|told| match told.what {
            Tell::Again => Some(batch::later_word(&told.call_id, told.attempt, None)),
            Tell::Denied => batch::denial(&records, &told.call_id),
        });
        let decisions: Vec<_> = decisions.collect();
        self.send(Out::Wake(Wake { decisions })).await
    }

    async fn answer(&mut self, state: &RunState, answered: &Withheld) -> Result<(), Over> {
        self.send(Out::Ack(batch::ack(answered.n, state, &answered.asked, &answered.records))).await?;
        match &state.end {
            Some(end) => Err(Over::Bye(end_words(end))),
            None => Ok(()),
        }
    }

    /// A batch that came after the end of the run or of its epoch is no garbage: the runner could not know.
    async fn why(&self, run: &ObjectId, epoch: u64, error: JournalError) -> Over {
        match self.service.journal.state(&run.uid).await {
            Ok(Some(state)) => match &state.end {
                Some(end) => Over::Bye(end_words(end)),
                None if state.live_epoch().is_none_or(|live| live.number != epoch) => {
                    Over::bye("the epoch of this pod has ended")
                }
                None => error.into(),
            },
            Ok(None) | Err(_) => error.into(),
        }
    }

    async fn send(&self, body: Out) -> Result<(), Over> {
        let message = OperatorMessage { body: Some(body) };
        self.outgoing.send_timeout(Ok(message), SEND_TIMEOUT).await.map_err(|_| Over::Left)
    }

    /// Says why the stream ends, to the peer and to the log.
    async fn farewell(&self, over: &Over, run: Option<&str>) {
        let pod = &self.caller.pod;
        let (namespace, pod, run) = (&pod.namespace, &pod.name, run.unwrap_or_default());
        let said = match over {
            Over::Left => {
                tracing::info!(%namespace, %pod, run, "runner left");
                return;
            }
            Over::Bye(reason) => {
                // The reason may quote the model, which the log is no place for: the journal and the status have it.
                tracing::info!(%namespace, %pod, run, "runner let go");
                Ok(Out::Bye(Bye { reason: reason.clone() }))
            }
            Over::Drain => Ok(Out::Drain(Drain {})),
            Over::Status(status) => {
                let (code, message) = (status.code(), status.message());
                tracing::warn!(%namespace, %pod, run, ?code, message, "stream cut off");
                Err(status.clone())
            }
        };
        let said = said.map(|body| OperatorMessage { body: Some(body) });
        // The peer may be gone before us.
        let _ = self.outgoing.send_timeout(said, SEND_TIMEOUT).await;
    }
}

/// Returns when the turn of what is withheld has come.
async fn called(withheld: Option<&mut Withheld>) {
    match withheld.and_then(|withheld| withheld.place.as_mut()).filter(|place| !place.is_called()) {
        Some(place) => place.called().await,
        None => std::future::pending().await,
    }
}

fn received(message: Result<Option<RunnerMessage>, Status>) -> Result<In, Over> {
    match message {
        // A message that is too large or no protobuf at all ends here, with the status that says so.
        Err(status) => Err(Over::Status(status)),
        Ok(None) => Err(Over::Left),
        Ok(Some(message)) => message.body.ok_or_else(|| Over::garbage("a message without a body")),
    }
}

fn standing(suspended: &super::SuspendCheck, state: &RunState) -> Standing {
    match &state.plan {
        Some(plan) if suspended(&plan.agent) => Standing::Suspended,
        Some(_) | None => Standing::Running,
    }
}
