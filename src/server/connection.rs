//! A connection that must begin to speak in time.
//!
//! Which of its protocols a connection speaks is told by its first bytes, and until they are there no
//! other limit on time applies: not that on the header of a request, nor the pings of HTTP/2.

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
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::admission::Peer;

/// How long a connection may take to tell its protocol.
const GREETING_SECONDS_MAX: u64 = 30;
/// The preface of HTTP/2. A greeting this long identifies the protocol. RFC 9113, section 3.4.
const GREETING_BYTES: usize = 24;

/// A connection that ends if it does not greet.
pub(super) struct Connection {
    stream: TcpStream,
    greeting: Option<Greeting>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

struct Greeting {
    bytes_left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    /// Holds its place among the connections until it is dropped.
    pub fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let greeting = Greeting {
            bytes_left: GREETING_BYTES,
            deadline: Box::pin(sleep(Duration::from_secs(GREETING_SECONDS_MAX))),
        };
        Self {
            stream,
            greeting: Some(greeting),
            peer: Peer::default(),
            _place: place,
        }
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
            return read;
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.greeting = None;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
