//! The first message of a stream: whose run it is, whether this instance may speak for it, and whether the
//! journal still holds what the runner saw acknowledged.

use std::sync::Arc;

use belay_protocol::event::{EndReason, Event, Outcome, RunEnd};
use belay_protocol::fold::{Claim, RunState};
use belay_protocol::plan::ObjectId;
use belay_protocol::wire::{Hello, Welcome};
use belay_protocol::{Digest, PROTOCOL_VERSION};
use tonic::Status;

use super::authenticate::{Caller, Proof};
use super::batch::end_words;
use super::session::Over;
use super::{PeerPod, RunService};
use crate::gate::{ModelRequest, close};
use crate::journal::{Journal, JournalError};

const INSTANCE_BYTES_MAX: usize = 64;
/// How often a claim is tried while the controller appends at the same time.
const CLAIMS_MAX: usize = 8;

/// A stream that may speak for its run.
pub(super) struct Greeted {
    pub run: ObjectId,
    pub epoch: u64,
    pub session: u64,
    /// Whether this runner was here before, so that it may go by an earlier Welcome.
    pub returns: bool,
    pub state: Arc<RunState>,
    pub welcome: Welcome,
}

/// Admits the runner and raises the session: from then on older streams are powerless.
pub(super) async fn greet(service: &RunService, caller: &Caller, hello: &Hello) -> Result<Greeted, Over> {
    check_form(hello)?;
    let (journal, pod) = (&service.journal, &caller.pod);
    let Some(run) = journal.run_of_pod(&pod.namespace, &pod.name) else {
        heed_stranger(journal, pod, hello).await?;
        return Err(Over::bye(format!("the journal knows no live run with the pod {}/{}", pod.namespace, pod.name)));
    };
    check_ticket(&caller.proof, journal.state(&run.uid).await?.as_deref(), hello)?;
    let (state, returns) = claim(journal, &run, pod, hello).await?;
    check_witness(journal, &run, &state, hello).await?;
    let epoch = state.epoch.as_ref().map_or(0, |epoch| epoch.number);
    let session = journal.raise_session(&run.uid, epoch).await?;
    let knows = hello.last_seq > 0;
    let welcome = welcome(journal, &run, Place { epoch, session, knows }).await?;
    Ok(Greeted { run, epoch, session, returns, state, welcome })
}

/// A runner of a pod that the journal does not know may know more of its run than the journal: that was restored
/// from before the pod was made.
async fn heed_stranger(journal: &Journal, pod: &PeerPod, hello: &Hello) -> Result<(), Over> {
    let Some(uid) = &pod.run_uid else { return Ok(()) };
    let Some(state) = journal.state(uid).await? else { return Ok(()) };
    match state.plan.as_ref().map(|plan| plan.run.clone()) {
        Some(run) if state.end.is_none() => check_witness(journal, &run, &state, hello).await,
        Some(_) | None => Ok(()),
    }
}

struct Place {
    epoch: u64,
    session: u64,
    /// A runner that was told of its run is not told all of it again.
    knows: bool,
}

pub(super) fn check_form(hello: &Hello) -> Result<(), Over> {
    if hello.protocol_version != PROTOCOL_VERSION {
        let version = hello.protocol_version;
        return Err(Over::bye(format!(
            "this runner speaks protocol {version}, the operator {PROTOCOL_VERSION}: use images of one release"
        )));
    }
    let instance = &hello.instance;
    let legal = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    if instance.is_empty() || instance.len() > INSTANCE_BYTES_MAX || !instance.bytes().all(legal) {
        return Err(Over::garbage("an instance id is 1 to 64 letters, digits and dashes"));
    }
    Ok(())
}

/// The run's state with this instance as the one that claimed the epoch, and whether it had before.
async fn claim(journal: &Journal, run: &ObjectId, pod: &PeerPod, hello: &Hello) -> Result<(Arc<RunState>, bool), Over> {
    for _ in 0..CLAIMS_MAX {
        let state = journal.state(&run.uid).await?.ok_or_else(|| JournalError::UnknownRun(run.uid.clone()))?;
        if let Some(end) = &state.end {
            return Err(Over::bye(end_words(end)));
        }
        let epoch = state.live_epoch().filter(|epoch| epoch.pod_name == pod.name);
        let epoch = epoch.ok_or_else(|| Over::bye("the epoch of this pod has ended"))?;
        if let Some(claim) = &epoch.claim {
            check_claim(claim, pod, hello)?;
            return Ok((state, true));
        }
        let claimed =
            Event::InstanceClaimed { epoch: epoch.number, instance: hello.instance.clone(), pod_uid: pod.uid.clone() };
        match journal.append(run, state.seq, vec![claimed]).await {
            Err(JournalError::Moved { .. }) => {}
            claimed => return Ok((claimed?, false)),
        }
    }
    Err(Over::Status(Status::unavailable("the run changes too fast to claim: come again")))
}

/// A ticket lets in the instance that it was given to, into the epoch that this one has claimed: nobody else, and
/// nobody new.
fn check_ticket(proof: &Proof, state: Option<&RunState>, hello: &Hello) -> Result<(), Over> {
    let Proof::Ticket(ticket) = proof else { return Ok(()) };
    let epoch = state.and_then(RunState::live_epoch);
    let claimed = epoch.is_some_and(|epoch| epoch.number == ticket.epoch && epoch.claim.is_some());
    if claimed && ticket.instance == hello.instance {
        return Ok(());
    }
    // Its token may be good: that is for the API server to say, once it is back.
    Err(Over::Status(Status::unavailable("the ticket is another's, and your token cannot be checked now: come again")))
}

/// A restarted container keeps its pod's uid and has an empty memory of what it sent; a pod made anew under
/// the name has another uid.
pub(super) fn check_claim(claim: &Claim, pod: &PeerPod, hello: &Hello) -> Result<(), Over> {
    if claim.pod_uid != pod.uid {
        return Err(Over::bye("another pod has claimed this epoch"));
    }
    if claim.instance != hello.instance {
        return Err(Over::bye("another instance has claimed this epoch: a container does not come back"));
    }
    Ok(())
}

/// What the runner saw acknowledged must still be there; otherwise the journal was rolled back and the run
/// stops, since nobody can tell what was done meanwhile.
async fn check_witness(journal: &Journal, run: &ObjectId, state: &RunState, hello: &Hello) -> Result<(), Over> {
    if hello.last_seq == 0 {
        return Ok(());
    }
    let witness = Digest::try_from(hello.last_hash.as_slice()).map_err(|_| Over::garbage("last_hash is no digest"))?;
    let held = if hello.last_seq <= state.seq {
        let records = journal.records(&run.uid, hello.last_seq).await?;
        records.first().map(|sealed| sealed.hash)
    } else {
        None
    };
    if held == Some(witness) {
        return Ok(());
    }
    tracing::error!(
        run = run.uid,
        namespace = run.namespace,
        name = run.name,
        witness_seq = hello.last_seq,
        head_seq = state.seq,
        "the journal lacks what the runner saw acknowledged: it was rolled back"
    );
    let end = journal_lost(run, hello.last_seq, state.seq);
    let words = end_words(&end);
    let newest = journal.state(&run.uid).await?.unwrap_or_default();
    let mut events = close(&newest, ModelRequest::Given, "the journal lost what became of it");
    events.push(Event::RunEnded { end });
    journal.append(run, newest.seq, events).await?;
    Err(Over::bye(words))
}

fn journal_lost(run: &ObjectId, witness: u64, head: u64) -> RunEnd {
    let message = format!(
        "AgentRun {}: its runner saw record {witness} acknowledged, and the journal (head {head}) does not hold it: the \
         journal was rolled back or lost. What the run did after that is unknown; look at its tools before you run it again",
        run.name
    );
    RunEnd { outcome: Outcome::Failed, reason: EndReason::JournalLost, message }
}

async fn welcome(journal: &Journal, run: &ObjectId, place: Place) -> Result<Welcome, Over> {
    // Read after the session was raised: no older stream can add to it any more.
    let state = journal.state(&run.uid).await?.unwrap_or_default();
    let last_batch = journal.run_head(&run.uid).await?.map_or(0, |head| head.batch);
    let records = if place.knows { Vec::new() } else { journal.records(&run.uid, 1).await? };
    let plan = serde_json::to_vec(&state.plan.as_deref()).map_err(|e| Over::Status(Status::internal(e.to_string())))?;
    Ok(Welcome {
        plan,
        epoch: place.epoch,
        session: place.session,
        last_batch,
        records: records.into_iter().map(|sealed| sealed.bytes).collect(),
        ticket: Vec::new(),
    })
}
