//! What is said over the stream: Hello, batches that are resent until they are answered, orders. Reconnects
//! with jitter as the same instance until the operator says Bye.

use std::time::Duration;

use belay_protocol::PROTOCOL_VERSION;
use belay_protocol::wire::operator_message::Body as FromOperator;
use belay_protocol::wire::runner_message::Body as ToOperator;
use belay_protocol::wire::{Ack, Batch, Hello, OperatorMessage, RunnerMessage, Welcome};
use rand::Rng as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use zeroize::Zeroizing;

use super::{Append, Link, LinkError, Operator, Order, Wakes, cancel_within, raise};

const WELCOME_SECONDS: u64 = 30;
const BACKOFF_FIRST_MILLISECONDS: u64 = 100;
const BACKOFF_MOST_MILLISECONDS: u64 = 5_000;

/// Starts the conversation of one instance in the background.
#[must_use]
pub fn start(link: Link, instance: String) -> Started {
    let (appends, queue) = mpsc::channel(1);
    let (orders, seen) = watch::channel(Order::Go);
    let (welcome, welcomed) = oneshot::channel();
    let wakes = Wakes::default();
    let conversation = Conversation::new(instance, welcome, wakes.clone());
    let conversation = tokio::spawn(link.converse(conversation, queue, orders.clone()));
    Started { operator: Operator::new(appends, seen, wakes), orders, welcomed, conversation }
}

/// A conversation under way.
pub struct Started {
    pub operator: Operator,
    pub orders: watch::Sender<Order>,
    pub welcomed: oneshot::Receiver<Welcome>,
    pub conversation: tokio::task::JoinHandle<Result<(), LinkError>>,
}

/// What outlives a broken stream.
struct Conversation {
    instance: String,
    last_seq: u64,
    last_hash: Vec<u8>,
    next_batch: u64,
    unanswered: Option<Unanswered>,
    /// By which the operator knows this instance again while nobody can check its token.
    ticket: Zeroizing<Vec<u8>>,
    /// Whoever waits for the first Welcome.
    welcome: Option<oneshot::Sender<Welcome>>,
    wakes: Wakes,
}

struct Unanswered {
    batch: Batch,
    append: oneshot::Sender<Ack>,
}

enum Heard {
    Welcome,
    Word,
    Bye,
}

/// Why a stream is over.
enum StreamEnd {
    /// Try again.
    Broken(LinkError),
    /// The run is over here: Bye, or the loop let go.
    Finished,
}

impl Link {
    /// Speaks for one instance until the operator says Bye or the loop lets go of its [`Operator`].
    async fn converse(
        self,
        mut conversation: Conversation,
        mut appends: mpsc::Receiver<Append>,
        orders: watch::Sender<Order>,
    ) -> Result<(), LinkError> {
        let mut failures = 0;
        loop {
            match self.stream(&mut conversation, &mut appends, &orders, &mut failures).await {
                StreamEnd::Finished => return Ok(()),
                StreamEnd::Broken(error) if error.is_final() => {
                    raise(&orders, Order::Leave { reason: error.to_string() });
                    return Err(error);
                }
                StreamEnd::Broken(error) => {
                    failures += 1;
                    let pause = backoff(failures);
                    tracing::warn!(%error, failures, pause_milliseconds = pause.as_millis(), "reconnecting");
                    tokio::time::sleep(pause).await;
                }
            }
            if conversation.unanswered.is_none() && appends.is_closed() && appends.is_empty() {
                return Ok(());
            }
        }
    }

    async fn stream(
        &self,
        conversation: &mut Conversation,
        appends: &mut mpsc::Receiver<Append>,
        orders: &watch::Sender<Order>,
        failures: &mut u32,
    ) -> StreamEnd {
        let (outgoing, mut incoming) = match self.greet(conversation).await {
            Ok(streams) => streams,
            Err(error) => return StreamEnd::Broken(error),
        };
        let mut welcomed = false;
        loop {
            let may_send = welcomed && conversation.unanswered.is_none();
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => {
                        match conversation.take(message, &outgoing, orders).await {
                            Ok(Heard::Welcome) => welcomed = true,
                            Ok(Heard::Word) => {}
                            Ok(Heard::Bye) => return StreamEnd::Finished,
                            Err(error) => return StreamEnd::Broken(error),
                        }
                        if conversation.is_served() {
                            *failures = 0;
                        }
                    }
                    Ok(None) => return StreamEnd::Broken(LinkError::Protocol("the stream ended without a Bye")),
                    Err(status) => return StreamEnd::Broken(status.into()),
                },
                append = appends.recv(), if may_send => {
                    let Some(append) = append else {
                        drop(outgoing);
                        return farewell(incoming).await;
                    };
                    if conversation.send(append, &outgoing).await.is_err() {
                        return StreamEnd::Broken(LinkError::Protocol("the stream takes no more messages"));
                    }
                }
            }
        }
    }

    /// Opens a stream and says Hello.
    async fn greet(
        &self,
        conversation: &Conversation,
    ) -> Result<(mpsc::Sender<RunnerMessage>, Streaming<OperatorMessage>), LinkError> {
        let (outgoing, queue) = mpsc::channel(2);
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            instance: conversation.instance.clone(),
            last_seq: conversation.last_seq,
            last_hash: conversation.last_hash.clone(),
        };
        // The queue is new and empty: this cannot wait.
        let _ = outgoing.send(RunnerMessage { body: Some(ToOperator::Hello(hello)) }).await;
        let opening = async {
            let (mut client, request) = self.call_again(ReceiverStream::new(queue), &conversation.ticket).await?;
            Ok::<_, LinkError>(client.session(request).await?.into_inner())
        };
        let incoming = tokio::time::timeout(Duration::from_secs(WELCOME_SECONDS), opening)
            .await
            .map_err(|_| LinkError::Silent)??;
        Ok((outgoing, incoming))
    }
}

impl Conversation {
    fn new(instance: String, welcome: oneshot::Sender<Welcome>, wakes: Wakes) -> Self {
        Self {
            instance,
            last_seq: 0,
            last_hash: Vec::new(),
            next_batch: 1,
            unanswered: None,
            ticket: Zeroizing::default(),
            welcome: Some(welcome),
            wakes,
        }
    }

    /// Takes in one message of the newest stream.
    async fn take(
        &mut self,
        message: OperatorMessage,
        outgoing: &mpsc::Sender<RunnerMessage>,
        orders: &watch::Sender<Order>,
    ) -> Result<Heard, LinkError> {
        match message.body.ok_or(LinkError::Protocol("an empty message"))? {
            FromOperator::Welcome(mut welcome) => {
                let ticket = Zeroizing::new(std::mem::take(&mut welcome.ticket));
                if !ticket.is_empty() {
                    self.ticket = ticket;
                }
                if let Some(first) = self.welcome.take() {
                    self.next_batch = welcome.last_batch + 1;
                    let _ = first.send(welcome);
                }
                // Answered from the journal where it is already held.
                if let Some(unanswered) = &self.unanswered {
                    let body = Some(ToOperator::Batch(unanswered.batch.clone()));
                    let sent = outgoing.send(RunnerMessage { body }).await;
                    sent.map_err(|_| LinkError::Protocol("the stream takes no more messages"))?;
                }
                return Ok(Heard::Welcome);
            }
            FromOperator::Ack(ack) => {
                let Some(unanswered) = self.unanswered.take_if(|unanswered| unanswered.batch.n == ack.n) else {
                    return Err(LinkError::Protocol("an answer to a batch that is not waiting for one"));
                };
                self.last_seq = ack.seq;
                self.last_hash.clone_from(&ack.hash);
                // The loop may have run out of time meanwhile; the events are durable all the same.
                let _ = unanswered.append.send(ack);
            }
            FromOperator::Cancel(cancel) => {
                raise(orders, cancel_within(Duration::from_secs(u64::from(cancel.grace_seconds))));
            }
            FromOperator::Wake(wake) => self.wakes.hear(wake.decisions),
            // The stream ends when the operator does; the loop goes on with what is in flight until then.
            FromOperator::Drain(_) => tracing::info!("the operator drains"),
            FromOperator::Bye(bye) => {
                raise(orders, Order::Leave { reason: bye.reason });
                return Ok(Heard::Bye);
            }
        }
        Ok(Heard::Word)
    }

    /// Whether the operator does what it is there for: one whose journal takes nothing welcomes all the same.
    fn is_served(&self) -> bool {
        self.unanswered.is_none()
    }

    async fn send(&mut self, append: Append, outgoing: &mpsc::Sender<RunnerMessage>) -> Result<(), ()> {
        let batch = Batch { n: self.next_batch, events: append.events };
        self.next_batch += 1;
        let body = Some(ToOperator::Batch(batch.clone()));
        // Kept first: whatever happens to this stream, the next one sends it again.
        self.unanswered = Some(Unanswered { batch, append: append.answer });
        outgoing.send(RunnerMessage { body }).await.map_err(|_| ())
    }
}

/// Leaves in order: our half is closed, the operator closes its own.
async fn farewell(mut incoming: Streaming<OperatorMessage>) -> StreamEnd {
    let rest = async { while let Ok(Some(_)) = incoming.message().await {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    StreamEnd::Finished
}

/// Full jitter: many runners that lost one operator do not come back together.
fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_FIRST_MILLISECONDS << failures.min(10);
    let most = most.min(BACKOFF_MOST_MILLISECONDS);
    Duration::from_millis(rand::rng().random_range(most / 2..=most))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_welcome_that_leaves_a_batch_unanswered_is_no_success_to_a_runner_that_keeps_coming_back() {
        let (append, _answer) = oneshot::channel();
        let batch = Batch { n: 1, events: Vec::new() };
        let mut conversation = Conversation {
            instance: "i".to_owned(),
            last_seq: 0,
            last_hash: Vec::new(),
            next_batch: 2,
            unanswered: Some(Unanswered { batch, append }),
            ticket: Zeroizing::default(),
            welcome: None,
            wakes: Wakes::default(),
        };
        let (outgoing, mut sent) = mpsc::channel(2);
        let (orders, _seen) = watch::channel(Order::Go);
        let welcome = OperatorMessage { body: Some(FromOperator::Welcome(Welcome::default())) };
        conversation.take(welcome, &outgoing, &orders).await.unwrap();
        assert!(sent.recv().await.is_some(), "the batch is sent again");
        assert!(!conversation.is_served());
        let ack = OperatorMessage { body: Some(FromOperator::Ack(Ack { n: 1, ..Ack::default() })) };
        conversation.take(ack, &outgoing, &orders).await.unwrap();
        assert!(conversation.is_served());
    }
}
