//! A connection whose client must send its first bytes in time, and read its responses.
//!
//! The first bytes of a connection identify its protocol, and until they arrive no other time limit applies: neither
//! that on the header of a request, nor HTTP/2 pings. If the client reads nothing of what is written to it, or leaves
//! a dropped response unread, the connection is closed: nothing else frees the memory queued for it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::admission::Peer;
use crate::call::UNREAD_SECONDS_MAX;

/// How long a connection may take to identify its protocol.
const GREETING_SECONDS_MAX: u64 = 30;
/// The preface of HTTP/2. A greeting of this length identifies the protocol. RFC 9113, section 3.4.
const GREETING_BYTES: usize = 24;

/// How long a response, or any written bytes, may stay unread, and how often to check.
const UNREAD_MAX: Duration = Duration::from_secs(UNREAD_SECONDS_MAX);
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// A connection that ends if its client does not greet, or does not read its responses.
pub(super) struct Connection {
    stream: TcpStream,
    greeting: Option<Greeting>,
    peer: Peer,
    /// When to check next whether responses are read.
    look: Option<Pin<Box<Sleep>>>,
    /// Since when writing has been blocked.
    blocked_since: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

struct Greeting {
    bytes_left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    /// Keeps its place among the connections until it is dropped.
    pub fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let greeting = Greeting {
            bytes_left: GREETING_BYTES,
            deadline: Box::pin(sleep(Duration::from_secs(GREETING_SECONDS_MAX))),
        };
        Self {
            stream,
            greeting: Some(greeting),
            peer: Peer::default(),
            look: None,
            blocked_since: None,
            _place: place,
        }
    }

    /// Checks now and then whether responses are read. Ready with an error if the connection must close.
    fn poll_read_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.blocked_since.is_none() && !self.peer.is_called() {
            return Poll::Pending;
        }
        let look = self
            .look
            .get_or_insert_with(|| Box::pin(sleep(LOOK_INTERVAL)));
        while look.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            look.as_mut().reset(now + LOOK_INTERVAL);
            let is_blocked = self
                .blocked_since
                .is_some_and(|since| now - since >= UNREAD_MAX);
            if self.peer.drop_unread(now, UNREAD_MAX) || is_blocked {
                tracing::debug!("closed a connection that does not read its responses");
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
        }
        Poll::Pending
    }

    /// The result of a write, or an error if writing has been blocked for too long.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.blocked_since = None;
            return written;
        }
        self.blocked_since.get_or_insert_with(Instant::now);
        self.poll_read_on(cx).map(Err)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(greeting) = &mut self.greeting else {
            return match read {
                Poll::Pending => self.poll_read_on(cx).map(Err),
                Poll::Ready(read) => Poll::Ready(read),
            };
        };
        if read.is_pending() {
            ready!(greeting.deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let bytes = buf.filled().len() - before;
        greeting.bytes_left = greeting.bytes_left.saturating_sub(bytes);
        if greeting.bytes_left == 0 {
            self.greeting = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // A response means that the protocol is known.
        self.greeting = None;
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.greeting = None;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
