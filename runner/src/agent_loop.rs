//! The loop: looks at the run's state, does the next step, records what happened, and starts over. Every
//! event goes through [`Progress`] first, so that the state is always the fold of what was reported.

mod call_step;
mod fitting;
mod flights;
mod listing;
mod model_step;
mod next;
mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use belay_protocol::digest::DigestError;
use belay_protocol::fold::{CallState, IllegalEvent};
use belay_protocol::{Event, Plan};

use tokio::sync::Mutex;

use self::fitting::Schemas;
use self::flights::{Flights, SharedServer};
use self::listing::Idle;
use self::next::{Next, next};
pub use self::progress::{Progress, WelcomeError};
use crate::log::StepLog;
use crate::models::{Model, OfferedTool};
use crate::output::Output;
use crate::permit::Decided;
use crate::redact::Redactor;
use crate::session::{AppendError, Keeper, Operator, Order};
use crate::tools::{ListError, ToolServer};

/// Everything that a run works with.
pub struct Agent {
    plan: Arc<Plan>,
    progress: Progress,
    operator: Operator,
    /// In the plan's order.
    models: Vec<Box<dyn Model>>,
    servers: BTreeMap<String, SharedServer>,
    redactor: Redactor,
    output: Output,
    log: StepLog,
    /// What this process was shown; nothing before the servers were asked.
    offered: Option<Vec<OfferedTool>>,
    schemas: Schemas,
    /// Recorded and not sent yet: they ride with the next batch.
    outbox: Vec<Event>,
    /// The operator said no to going on; its Bye is on the way.
    denied: bool,
    /// Calls that are under way.
    flights: Flights,
    /// Calls that the operator told to wait, until it says more.
    parked: BTreeSet<String>,
    /// Permits of a call of the newest response that ran out unsent.
    permits_returned: BTreeMap<String, u32>,
    /// Tools whose servers changed too often for this process to go on calling them.
    given_up: BTreeMap<String, ListError>,
    /// Servers that said that their list changed, when it had not.
    idle: BTreeMap<String, Idle>,
}

/// What an agent is made of, besides its run.
pub struct Parts {
    /// One for each of the plan's models, in its order; at least one.
    pub models: Vec<Box<dyn Model>>,
    pub servers: BTreeMap<String, Box<dyn ToolServer>>,
    pub redactor: Redactor,
    /// Keeps what results hold besides the text that is shown.
    pub keeper: Arc<dyn Keeper>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    #[error("an event that cannot follow was about to be reported: {0}")]
    Illegal(#[from] IllegalEvent),
    #[error(transparent)]
    Append(AppendError),
    #[error("the plan's model {0} has no client")]
    NoModel(String),
    #[error("a call cannot be bound to a digest: {0}")]
    Digest(#[from] DigestError),
}

/// How the loop came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parting {
    /// The operator's last word.
    Dismissed { reason: String },
    /// Asked to stop; everything known was reported as far as the operator could be reached.
    Stopped,
}

/// No answer will come any more: the loop ends, and that is no failure of its own.
enum Halt {
    Gone,
    Failed(LoopError),
}

impl<E: Into<LoopError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Agent {
    #[must_use]
    pub fn new(plan: Arc<Plan>, progress: Progress, operator: Operator, parts: Parts) -> Self {
        let progress = progress.redacted(&parts.redactor);
        let servers = parts.servers.into_iter().map(|(tool, server)| (tool, Arc::new(Mutex::new(server)))).collect();
        // What people are asked about, another pod proposed: this one hears when they have decided.
        // About one whose definition people accepted anew they have to be asked again.
        let asked =
            |call: &CallState| matches!(call, CallState::Asked { call, .. } if !progress.state().is_stale(call));
        let calls = progress.state().calls.iter();
        let parked = calls.filter(|(_, call)| asked(call)).map(|(call_id, _)| call_id.clone()).collect();
        Self {
            output: Output::of(&plan),
            plan,
            progress,
            operator,
            models: parts.models,
            servers,
            redactor: parts.redactor,
            log: StepLog,
            offered: None,
            schemas: Schemas::default(),
            outbox: Vec::new(),
            denied: false,
            flights: Flights::new(parts.keeper),
            parked,
            permits_returned: BTreeMap::new(),
            given_up: BTreeMap::new(),
            idle: BTreeMap::new(),
        }
    }

    /// Drives the run until the operator or a signal ends it.
    pub async fn run(mut self) -> Result<Parting, LoopError> {
        let ended = match self.drive().await {
            // What was observed and not yet sent; permits were returned where they were held.
            Ok(()) => self.wind_up().await,
            halt => halt,
        };
        self.flights.leave().await;
        if let Err(Halt::Failed(error)) = ended {
            return Err(error);
        }
        let parting = match self.operator.order() {
            Order::Leave { reason } => Parting::Dismissed { reason },
            Order::Go | Order::Stop { .. } => Parting::Stopped,
        };
        match &parting {
            Parting::Dismissed { reason } => self.log.end(reason),
            Parting::Stopped => self.log.end("stopped"),
        }
        Ok(parting)
    }

    async fn drive(&mut self) -> Result<(), Halt> {
        while self.operator.order() == Order::Go {
            match self.next() {
                Next::List => self.list().await?,
                Next::Ask { step, attempt } => self.ask(step, attempt).await?,
                Next::Propose(due) => self.propose(due).await?,
                Next::Busy | Next::Wait => {
                    self.flush().await?;
                    self.hear().await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until a call ends, the operator says something, or the time to stop has come.
    async fn hear(&mut self) -> Result<(), Halt> {
        tokio::select! {
            Some(landed) = self.flights.land() => self.land(landed),
            woken = self.operator.woken() => self.wake(woken),
            () = self.operator.stopped() => Ok(()),
        }
    }

    /// Calls in flight end, each within the time that is left; every observation is sent when it arrives.
    async fn wind_up(&mut self) -> Result<(), Halt> {
        self.flush().await?;
        while let Some(landed) = self.flights.land().await {
            self.land(landed)?;
            self.flush().await?;
        }
        Ok(())
    }

    fn next(&self) -> Next {
        if self.denied {
            return Next::Wait;
        }
        next(self.progress.state(), self.offered.is_some(), &self.parked)
    }

    /// Takes an event into the state and puts it up for the next batch.
    fn record(&mut self, event: Event) -> Result<(), Halt> {
        self.progress.take(&event)?;
        self.outbox.push(event);
        Ok(())
    }

    /// Sends what is waiting; returns when it is durable.
    async fn flush(&mut self) -> Result<Vec<Decided>, Halt> {
        if self.outbox.is_empty() {
            return Ok(Vec::new());
        }
        match self.operator.append(&self.outbox).await {
            Ok(answer) => {
                self.outbox.clear();
                self.progress.catch_up(answer.seq);
                Ok(answer.decisions)
            }
            Err(AppendError::Gone) => Err(Halt::Gone),
            Err(error @ (AppendError::TooLarge { .. } | AppendError::Unwritable(_))) => {
                Err(Halt::Failed(LoopError::Append(error)))
            }
        }
    }
}

fn milliseconds_since(start: tokio::time::Instant) -> u64 {
    milliseconds_of(start.elapsed())
}

fn milliseconds_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
