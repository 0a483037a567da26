//! Accepts connections: TLS within ten seconds, a first Hello within ten more, and no more than a fixed
//! number at one time. A peer that dawdles holds up nobody else.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;

use super::HELLO_TIMEOUT;

/// Connections whose handshake is done and which the server has not taken yet.
const READY: usize = 16;
/// After a failure to accept (no file descriptor left): the next try would fail as well.
const PAUSE: Duration = Duration::from_millis(100);

/// A TLS connection that is cut if nobody admits it in time.
pub(super) struct Connection {
    io: TlsStream<TcpStream>,
    origin: Origin,
    deadline: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

/// Where a request came from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub address: SocketAddr,
    admitted: Arc<AtomicBool>,
}

impl Origin {
    /// The peer has proved itself: the connection may stay.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Release);
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

/// Accepts until `shutdown`; at most `connections_max` are open at one time.
pub(super) fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections_max: usize,
    shutdown: CancellationToken,
    tasks: &TaskTracker,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY);
    let slots = Arc::new(Semaphore::new(connections_max));
    let handshakes = tasks.clone();
    tasks.spawn(async move {
        let next = async || Some((Arc::clone(&slots).acquire_owned().await.ok()?, listener.accept().await));
        while let Some(Some((slot, accepted))) = shutdown.run_until_cancelled(next()).await {
            match accepted {
                Ok((stream, address)) => {
                    let handshake = handshake(acceptor.clone(), stream, address, slot, ready.clone());
                    handshakes.spawn(shutdown.clone().run_until_cancelled_owned(handshake));
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    slot: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    // Small messages that somebody waits for; without it they may wait for an acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let io = match tokio::time::timeout(HELLO_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => return tracing::info!(%address, %error, "TLS handshake failed"),
        Err(_) => return tracing::info!(%address, "TLS handshake timed out"),
    };
    let origin = Origin { address, admitted: Arc::new(AtomicBool::new(false)) };
    let deadline = Box::pin(tokio::time::sleep(HELLO_TIMEOUT));
    // The server is gone if this fails; so is the connection.
    let _ = ready.send(Ok(Connection { io, origin, deadline, _slot: slot })).await;
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let admitted = self.origin.admitted.load(Ordering::Acquire);
        if !admitted && self.deadline.as_mut().poll(cx).is_ready() {
            tracing::info!(address = %self.origin.address, "connection without a Hello cut");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
