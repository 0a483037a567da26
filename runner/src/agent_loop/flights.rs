//! Calls that are under way, each in a task of its own. One server has one call at a time.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::call_step::Bound;
use super::milliseconds_since;
use crate::permit::Permit;
use crate::session::Orders;
use crate::tools::{Outcome, ToolServer};

/// A tool's server, as calls and listings share it.
pub type SharedServer = Arc<Mutex<Box<dyn ToolServer>>>;

/// One attempt of a call on its way.
pub(super) struct Flight {
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

/// Dropped, it lets go of all of them; what they came to is not known then.
#[derive(Default)]
pub(super) struct Flights(JoinSet<Landed>);

impl Flights {
    /// Sends the call. It has until the operator's time to stop is up.
    pub fn take_off(&mut self, flight: Flight, server: SharedServer, permit: Permit, orders: Orders) {
        self.0.spawn(async move {
            let mut server = server.lock().await;
            let start = Instant::now();
            let outcome = tokio::select! {
                biased;
                outcome = server.call(&flight.bound.call, permit, flight.bound.timeout) => outcome,
                () = orders.out_of_time() => Outcome::Unknown {
                    message: "the run was stopped before the answer came".to_owned(),
                },
            };
            Landed { flight, outcome, milliseconds: milliseconds_since(start) }
        });
    }

    /// The next one that ends; nothing where none is under way.
    pub async fn land(&mut self) -> Option<Landed> {
        // A task that panicked takes the process with it: nothing here may be guessed.
        match self.0.join_next().await? {
            Ok(landed) => Some(landed),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
