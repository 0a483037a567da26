//! The loop: looks at the run's state, does the next step, records what happened, and starts over. Every
//! event goes through [`Progress`] first, so that the state is always the fold of what was reported.

mod call_step;
mod listing;
mod model_step;
mod next;
mod progress;

use std::collections::BTreeMap;
use std::sync::Arc;

use belay_protocol::digest::DigestError;
use belay_protocol::fold::IllegalEvent;
use belay_protocol::{Event, Plan};

use self::next::{Next, next};
pub use self::progress::{Progress, WelcomeError};
use crate::log::StepLog;
use crate::models::{Model, OfferedTool};
use crate::permit::Decided;
use crate::redact::Redactor;
use crate::session::{AppendError, Operator, Order};
use crate::tools::ToolServer;

/// Everything that a run works with.
pub struct Agent {
    plan: Arc<Plan>,
    progress: Progress,
    operator: Operator,
    model: Box<dyn Model>,
    servers: BTreeMap<String, Box<dyn ToolServer>>,
    redactor: Redactor,
    log: StepLog,
    /// What this process was shown; nothing before the servers were asked.
    offered: Option<Vec<OfferedTool>>,
    /// Recorded and not sent yet: they ride with the next batch.
    outbox: Vec<Event>,
    /// The operator said no to going on; its Bye is on the way.
    denied: bool,
    /// Permits of the present call that ran out unsent.
    permits_returned: u32,
}

/// What an agent is made of, besides its run.
pub struct Parts {
    pub model: Box<dyn Model>,
    pub servers: BTreeMap<String, Box<dyn ToolServer>>,
    pub redactor: Redactor,
}

#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    #[error("an event that cannot follow was about to be reported: {0}")]
    Illegal(#[from] IllegalEvent),
    #[error(transparent)]
    Append(AppendError),
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
        Self {
            plan,
            progress,
            operator,
            model: parts.model,
            servers: parts.servers,
            redactor: parts.redactor,
            log: StepLog,
            offered: None,
            outbox: Vec::new(),
            denied: false,
            permits_returned: 0,
        }
    }

    /// Drives the run until the operator or a signal ends it.
    pub async fn run(mut self) -> Result<Parting, LoopError> {
        let ended = match self.drive().await {
            // What was observed and not yet sent; permits were returned where they were held.
            Ok(()) => self.flush().await.map(|_| ()),
            halt => halt,
        };
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
                Next::Call { call_id, attempt } => self.call(&call_id, attempt).await?,
                Next::Wait => {
                    self.flush().await?;
                    self.operator.stopped().await;
                }
            }
        }
        Ok(())
    }

    fn next(&self) -> Next {
        if self.denied {
            return Next::Wait;
        }
        next(self.progress.state(), self.offered.is_some())
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
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
