//! One stream of a runner, from Hello to its end. Batches in, answers out; orders from controllers between.

use std::time::Duration;

use belay_protocol::Event;
use belay_protocol::chain::SealedRecord;
use belay_protocol::fold::RunState;
use belay_protocol::plan::ObjectId;
use belay_protocol::wire::operator_message::Body as Out;
use belay_protocol::wire::runner_message::Body as In;
use belay_protocol::wire::{self, Bye, Cancel, Drain, OperatorMessage, RunnerMessage};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::authenticate::Caller;
use super::batch::{self, end_words};
use super::hello::{self, Greeted};
use super::sessions::Order;
use super::{HELLO_TIMEOUT, RunService};
use crate::gate::{self, Standing};
use crate::journal::{Batch, BatchKey, JournalError};

/// A peer that takes no message for so long is cut.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a withheld answer asks whether it may go now.
const WITHHELD_POLL: Duration = Duration::from_millis(500);
/// What calls in flight get when a runner comes back to a run that is being cancelled.
const CANCEL_GRACE_SECONDS: u32 = 10;

pub(super) struct Stream {
    pub service: RunService,
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

/// An answer that waits: the Agent is suspended, or an earlier epoch may still act on a permit.
struct Withheld {
    n: u64,
    asked: Vec<Event>,
    records: Vec<SealedRecord>,
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
                let greeted = hello::greet(&self.service, &self.caller.pod, &hello).await?;
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
        let Greeted { run, epoch, session, state, welcome } = greeted;
        tracing::info!(run = run.uid, namespace = run.namespace, name = run.name, epoch, session, "runner connected");
        self.send(Out::Welcome(welcome)).await?;
        if state.cancel_requested {
            self.send(Out::Cancel(Cancel { grace_seconds: CANCEL_GRACE_SECONDS })).await?;
        }
        let mut withheld: Option<Withheld> = None;
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Err(Over::Drain),
                order = orders.recv() => self.obey(order).await?,
                message = self.incoming.message() => match received(message)? {
                    In::Hello(_) => return Err(Over::garbage("a second Hello on one stream")),
                    In::Batch(_) if withheld.is_some() => {
                        return Err(Over::garbage("a batch before the one before it was answered"));
                    }
                    In::Batch(batch) => {
                        let key = BatchKey { epoch, session, n: batch.n };
                        withheld = self.take(&run, key, &batch).await?;
                        self.service.sessions.withhold(&run.uid, session, withheld.is_some());
                    }
                },
                () = tokio::time::sleep(WITHHELD_POLL), if withheld.is_some() => {
                    if let Some(waiting) = withheld.take() {
                        // First, so that nobody takes for held back what is being let go.
                        self.service.sessions.withhold(&run.uid, session, false);
                        withheld = self.release(&run, waiting).await?;
                        self.service.sessions.withhold(&run.uid, session, withheld.is_some());
                    }
                }
            }
        }
    }

    async fn obey(&mut self, order: Option<Order>) -> Result<(), Over> {
        match order {
            Some(Order::Cancel { grace }) => {
                let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
                self.send(Out::Cancel(Cancel { grace_seconds })).await
            }
            Some(Order::Bye { reason }) => Err(Over::Bye(reason)),
            None => Err(Over::Status(Status::aborted("a newer stream of this runner took over"))),
        }
    }

    /// Makes a batch durable and answers it, unless the answer has to wait.
    async fn take(&mut self, run: &ObjectId, key: BatchKey, batch: &wire::Batch) -> Result<Option<Withheld>, Over> {
        let events = batch::parse(batch).map_err(|e| Over::garbage(e.to_string()))?;
        let asked = events.clone();
        let suspended = self.service.suspended.clone();
        let decide =
            move |state: &RunState, events: &[Event]| gate::decide(state, events.to_vec(), standing(&suspended, state));
        let taken = self.service.journal.append_batch(&run.uid, Batch { key, events }, decide).await;
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => return Err(self.why(run, error).await),
        };
        let withheld = Withheld { n: key.n, asked, records: taken.records };
        if batch::asks(&withheld.asked) {
            self.release(run, withheld).await
        } else {
            self.answer(&taken.state, &withheld).await.map(|()| None)
        }
    }

    /// Answers a batch that asks for something, once its Agent lets it go on or the run is ending.
    async fn release(&mut self, run: &ObjectId, mut withheld: Withheld) -> Result<Option<Withheld>, Over> {
        let journal = self.service.journal.clone();
        let mut state = journal.state(&run.uid).await?.unwrap_or_default();
        let goes_on = state.end.is_none() && !state.cancel_requested;
        let proposes = withheld.asked.iter().any(|event| matches!(event, Event::CallProposed { .. }));
        let suspended = standing(&self.service.suspended, &state) == Standing::Suspended;
        if goes_on && (suspended || (proposes && gate::waits(&state, Standing::Running))) {
            return Ok(Some(withheld));
        }
        let decided = gate::decide_late(&state, &withheld.asked, standing(&self.service.suspended, &state));
        if !decided.is_empty() {
            match journal.append(run, state.seq, decided).await {
                Ok(now) => state = now,
                // Something was appended in between: look again.
                Err(JournalError::Moved { .. }) => return Ok(Some(withheld)),
                Err(error) => return Err(error.into()),
            }
        }
        self.add_later_verdicts(run, &mut withheld).await?;
        self.answer(&state, &withheld).await.map(|()| None)
    }

    /// Verdicts on the batch's proposals that were journaled after it.
    async fn add_later_verdicts(&self, run: &ObjectId, answered: &mut Withheld) -> Result<(), Over> {
        let open = |event: &&Event| answered.records.iter().all(|sealed| !decides(&sealed.record.event, event));
        let open: Vec<&Event> =
            answered.asked.iter().filter(|event| matches!(event, Event::CallProposed { .. })).filter(open).collect();
        let (false, Some(last)) = (open.is_empty(), answered.records.last()) else { return Ok(()) };
        let later = self.service.journal.records(&run.uid, last.record.seq + 1).await?;
        let fits = |sealed: &SealedRecord| open.iter().any(|event| decides(&sealed.record.event, event));
        let later: Vec<SealedRecord> = later.into_iter().filter(fits).collect();
        answered.records.extend(later);
        Ok(())
    }

    async fn answer(&mut self, state: &RunState, answered: &Withheld) -> Result<(), Over> {
        self.send(Out::Ack(batch::ack(answered.n, state, &answered.asked, &answered.records))).await?;
        match &state.end {
            Some(end) => Err(Over::Bye(end_words(end))),
            None => Ok(()),
        }
    }

    /// A batch that came after the run's end is no garbage: the runner could not know.
    async fn why(&self, run: &ObjectId, error: JournalError) -> Over {
        match self.service.journal.state(&run.uid).await {
            Ok(Some(state)) => match &state.end {
                Some(end) => Over::Bye(end_words(end)),
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
                tracing::info!(%namespace, %pod, run, reason, "runner let go");
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

/// Whether `verdict` is the one on `proposal`.
fn decides(verdict: &Event, proposal: &Event) -> bool {
    match (verdict, proposal) {
        (Event::CallDecided { call_id, attempt, .. }, Event::CallProposed { call_id: id, attempt: a, .. }) => {
            call_id == id && attempt == a
        }
        _ => false, // only these two belong together
    }
}
