//! Calls that are under way, each in a task of its own. One server has one call at a time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use belay_protocol::event::ToolResult;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::call_step::Bound;
use super::milliseconds_since;
use crate::log::StepLog;
use crate::permit::Permit;
use crate::session::{Keeper, Orders};
use crate::tools::{Attachment, FAREWELL, Outcome, Progress, ToolServer, noted};

/// A server may say more often how far it is: the newest word is shown, and no more than one in so long.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// An answer is journaled no later than this, with or without what could be kept of it.
const KEEPING: Duration = Duration::from_secs(15);

/// A tool's server, as calls and listings share it.
pub type SharedServer = Arc<Mutex<Box<dyn ToolServer>>>;

/// One attempt of a call on its way.
pub(super) struct Flight {
    pub step: u32,
    pub call_id: String,
    pub attempt: u32,
    pub bound: Bound,
}

/// What became of it.
pub(super) struct Landed {
    pub flight: Flight,
    pub outcome: Outcome,
    pub milliseconds: u64,
}

struct Arrival {
    landed: Landed,
    server: OwnedMutexGuard<Box<dyn ToolServer>>,
}

/// Dropped, it lets go of all of them; what they came to is not known then.
pub(super) struct Flights {
    keeper: Arc<dyn Keeper>,
    under_way: JoinSet<Arrival>,
    /// Servers that are being told that nobody waits for their answer any more. Nothing else waits for that.
    farewells: JoinSet<()>,
}

impl Flights {
    pub fn new(keeper: Arc<dyn Keeper>) -> Self {
        Self { keeper, under_way: JoinSet::new(), farewells: JoinSet::new() }
    }

    /// Sends the call. It has until the operator's time to stop is up.
    pub fn take_off(&mut self, flight: Flight, server: SharedServer, permit: Permit, orders: Orders) {
        let keeper = Arc::clone(&self.keeper);
        self.under_way.spawn(async move {
            let mut server = server.lock_owned().await;
            let start = Instant::now();
            let progress = server.progress();
            let outcome = tokio::select! {
                biased;
                outcome = server.call(&flight.bound.call, permit, flight.bound.timeout) => outcome,
                () = orders.out_of_time() => stopped(),
                // What only reads, or may be done again, is worth no more waiting; the end of any other call is.
                () = orders.cancelled(), if flight.bound.may_repeat() => stopped(),
                never = show(progress, &flight) => match never {},
            };
            let milliseconds = milliseconds_since(start);
            let outcome = match outcome {
                Outcome::Observed(result) => {
                    Outcome::Observed(kept(result, server.take_attachments(), keeper.as_ref(), &orders).await)
                }
                other => other,
            };
            Arrival { landed: Landed { flight, outcome, milliseconds }, server }
        });
    }

    /// The next one that ends; nothing where none is under way.
    pub async fn land(&mut self) -> Option<Landed> {
        // A task that panicked takes the process with it: nothing here may be guessed.
        let Arrival { landed, mut server } = match self.under_way.join_next().await? {
            Ok(arrival) => arrival,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        if server.owes_answer() {
            while self.farewells.try_join_next().is_some() {}
            self.farewells.spawn(async move { server.abandon().await });
        }
        Some(landed)
    }

    /// Lets go of what is still under way, once their servers were told, or did not listen.
    pub async fn leave(&mut self) {
        let told = async {
            while self.land().await.is_some() {}
            while self.farewells.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(FAREWELL, told).await;
    }
}

fn stopped() -> Outcome {
    Outcome::Unknown { message: "the run was stopped before the answer came".to_owned() }
}

/// The result with what is kept of it besides the text that is shown: it names nothing that is not. An answer that is known
/// must not be lost to what it carries: nothing is kept longer than [`KEEPING`], nor once the run is cancelled or out of time.
async fn kept(result: ToolResult, attached: Vec<Attachment>, keeper: &dyn Keeper, orders: &Orders) -> ToolResult {
    let mut result = result;
    let deadline = Instant::now() + KEEPING;
    for Attachment { artifact, bytes } in attached {
        let answer = tokio::select! {
            biased;
            answer = keeper.keep(&artifact, &bytes) => answer,
            () = orders.out_of_time() => Err("the run was stopped before it was".to_owned()),
            () = orders.cancelled() => Err("the run was cancelled before it was".to_owned()),
            () = tokio::time::sleep_until(deadline) => Err(format!("the operator took longer than {} s", KEEPING.as_secs())),
        };
        match answer {
            Ok(()) => result.artifacts.push(artifact),
            Err(why) => result = noted(result, &format!("artifact {} was not kept: {why}", artifact.digest)),
        }
    }
    result
}

/// Shows what the call's server says of how far it is.
async fn show(progress: Option<watch::Receiver<Progress>>, flight: &Flight) -> Infallible {
    let Some(mut progress) = progress else { return std::future::pending().await };
    let Flight { step, bound, .. } = flight;
    while progress.changed().await.is_ok() {
        let newest = progress.borrow_and_update().clone();
        StepLog.progressed(*step, &bound.tool, &bound.call.operation, &newest);
        tokio::time::sleep(PROGRESS_PAUSE).await;
    }
    std::future::pending().await
}
