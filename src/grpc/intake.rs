//! Back-pressure for publish requests, before they are in memory.
//!
//! gRPC gathers a message whole before a handler sees it, so a bound on what handlers hold does not
//! bound the server's memory: every stream may be gathering one, and keeps the buffer for the next. This
//! layer reads the length in front of each message, takes that much from the partition's ingest budget,
//! and only then gathers the message itself. The handler gets it together with its share, which goes
//! with the request until it is answered; what gRPC sees is an empty message. Only a compressed message
//! passes through, for gRPC to decompress.
//!
//! A message gets its share whole or waits outside, in HTTP/2 flow control, and not for ever: who waits
//! keeps others of its connection from arriving.
//! Format: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Frame;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_util::sync::PollSemaphore;
use tonic::{
    Request, Status,
    body::Body,
    codegen::{Body as HttpBody, Service, http},
    server::NamedService,
};

use super::{status, wire::RawPublishRequest};
use crate::{
    aggregator::{ARRIVAL_SECONDS_MAX, SHARE_BYTES_MIN, SHARE_WAIT_SECONDS_MAX},
    event::Violation,
};

/// A compression flag of one byte and a length of four.
const PREFIX_BYTES: usize = 5;
const NOT_COMPRESSED: u8 = 0;
const COMPRESSED: u8 = 1;

/// The service `S`, whose publish requests take their bytes from a budget.
#[derive(Clone)]
pub struct Intake<S> {
    inner: S,
    budget: Arc<Semaphore>,
    request_bytes_max: usize,
}

/// The requests of one stream that have been let in, in their order.
#[derive(Clone, Default)]
pub(super) struct Arrivals(Arc<Mutex<VecDeque<Arrival>>>);

/// A request that has been let in.
struct Arrival {
    share: OwnedSemaphorePermit,
    /// `None` if gRPC has it.
    request: Option<RawPublishRequest>,
}

impl Arrivals {
    /// The arrivals on the stream that begins with `request`.
    pub fn of<T>(request: &Request<T>) -> Self {
        let arrivals = request.extensions().get::<Self>();
        let arrivals = arrivals.expect("publish streams come through Intake");
        arrivals.clone()
    }

    /// The request that gRPC gave as `passed`, and its share.
    pub fn take(&self, passed: RawPublishRequest) -> (RawPublishRequest, OwnedSemaphorePermit) {
        let arrival = self.queue().pop_front();
        let arrival = arrival.expect("gRPC gives what arrived");
        (arrival.request.unwrap_or(passed), arrival.share)
    }

    fn put(&self, share: OwnedSemaphorePermit, request: Option<Bytes>) {
        let request = request.map(RawPublishRequest);
        self.queue().push_back(Arrival { share, request });
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Arrival>> {
        // Nothing between lock and unlock leaves the queue half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Intake<S> {
    /// Guards `inner` with a budget of at least `request_bytes_max` bytes.
    pub fn new(inner: S, budget: Arc<Semaphore>, request_bytes_max: usize) -> Self {
        Self {
            inner,
            budget,
            request_bytes_max,
        }
    }
}

impl<S: NamedService> NamedService for Intake<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Intake<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        if !request.uri().path().ends_with("Publish") {
            return self.inner.call(request);
        }
        let arrivals = Arrivals::default();
        let mut request = request.map(|body| {
            Body::new(MeteredBody {
                inner: body,
                arrived: Bytes::new(),
                message: Message::BEGIN,
                messages: 0,
                budget: PollSemaphore::new(Arc::clone(&self.budget)),
                request_bytes_max: self.request_bytes_max,
                arrivals: arrivals.clone(),
                deadline: None,
            })
        });
        request.extensions_mut().insert(arrivals);
        self.inner.call(request)
    }
}

struct MeteredBody {
    inner: Body,
    /// What is left of the frame that arrived last.
    arrived: Bytes,
    message: Message,
    /// Messages that were let in.
    messages: u64,
    budget: PollSemaphore,
    request_bytes_max: usize,
    arrivals: Arrivals,
    /// When the message at hand must have its share, or must have arrived.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Where in a message the body is.
enum Message {
    /// Before the end of its prefix, of which there are `len` bytes.
    Prefix {
        prefix: [u8; PREFIX_BYTES],
        len: usize,
    },
    /// Its prefix is there, its share is not.
    Waiting { bytes: usize, compressed: bool },
    /// It is being gathered.
    Gathering {
        share: OwnedSemaphorePermit,
        bytes: usize,
        gathered: BytesMut,
    },
    /// It is passed to gRPC as it arrives.
    Passing { bytes_left: usize },
}

impl Message {
    /// Before its first byte.
    const BEGIN: Self = Self::Prefix {
        prefix: [0; PREFIX_BYTES],
        len: 0,
    };
}

impl MeteredBody {
    /// Lets in what it can of what has arrived: returns what gRPC is to see of it. `None` if all of it is
    /// taken, and more must arrive first.
    fn let_in(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match &mut self.message {
                Message::Prefix { prefix, len } => {
                    let part = self.arrived.len().min(PREFIX_BYTES - *len);
                    self.arrived.copy_to_slice(&mut prefix[*len..*len + part]);
                    *len += part;
                    if *len < PREFIX_BYTES {
                        return Poll::Ready(None);
                    }
                    let prefix = *prefix;
                    let bytes = (&prefix[1..]).get_u32() as usize;
                    if bytes > self.request_bytes_max {
                        return Poll::Ready(Some(Err(self.too_large(bytes))));
                    }
                    let compressed = match prefix[0] {
                        NOT_COMPRESSED => false,
                        COMPRESSED => true,
                        flag => return Poll::Ready(Some(Err(self.unknown_flag(flag)))),
                    };
                    self.message = Message::Waiting { bytes, compressed };
                    self.deadline = Some(deadline(SHARE_WAIT_SECONDS_MAX));
                }
                Message::Waiting { bytes, compressed } => {
                    let (bytes, compressed) = (*bytes, *compressed);
                    let share = ready!(self.poll_share(cx, bytes, compressed));
                    let share = match share {
                        Ok(share) => share,
                        Err(status) => return Poll::Ready(Some(Err(status))),
                    };
                    self.messages += 1;
                    self.deadline = Some(deadline(ARRIVAL_SECONDS_MAX));
                    if compressed {
                        self.arrivals.put(share, None);
                        self.message = Message::Passing { bytes_left: bytes };
                        return Poll::Ready(Some(Ok(prefix(COMPRESSED, bytes))));
                    }
                    self.message = Message::Gathering {
                        share,
                        bytes,
                        gathered: BytesMut::with_capacity(bytes),
                    };
                }
                Message::Gathering {
                    bytes, gathered, ..
                } => {
                    let part = self.arrived.len().min(*bytes - gathered.len());
                    gathered.extend_from_slice(&self.arrived[..part]);
                    self.arrived.advance(part);
                    if gathered.len() < *bytes {
                        return Poll::Ready(None);
                    }
                    let message = std::mem::replace(&mut self.message, Message::BEGIN);
                    self.deadline = None;
                    if let Message::Gathering {
                        share, gathered, ..
                    } = message
                    {
                        self.arrivals.put(share, Some(gathered.freeze()));
                    }
                    return Poll::Ready(Some(Ok(prefix(NOT_COMPRESSED, 0))));
                }
                Message::Passing { bytes_left } => {
                    if self.arrived.is_empty() && *bytes_left > 0 {
                        return Poll::Ready(None);
                    }
                    let part = self.arrived.split_to((*bytes_left).min(self.arrived.len()));
                    *bytes_left -= part.len();
                    if *bytes_left == 0 {
                        self.message = Message::BEGIN;
                        self.deadline = None;
                    }
                    return Poll::Ready(Some(Ok(part)));
                }
            }
        }
    }

    /// Takes the share of a message from the budget: what it has in memory, decompressed.
    fn poll_share(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        compressed: bool,
    ) -> Poll<Result<OwnedSemaphorePermit, Status>> {
        let in_memory = if compressed {
            self.request_bytes_max
        } else {
            bytes.max(SHARE_BYTES_MIN)
        };
        let share = u32::try_from(in_memory).expect("a request is under 4 GiB");
        match self.budget.poll_acquire_many(cx, share) {
            Poll::Ready(share) => Poll::Ready(share.ok_or_else(status::stopping)),
            Poll::Pending => {
                ready!(self.poll_deadline(cx));
                Poll::Ready(Err(status::overloaded(SHARE_WAIT_SECONDS_MAX)))
            }
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn unknown_flag(&self, flag: u8) -> Status {
        let description = format!("compression flag {flag}; it is 0 or 1");
        status::invalid_request(self.messages, &Violation::new("request", description))
    }

    fn too_large(&self, bytes: usize) -> Status {
        let max = self.request_bytes_max;
        let description =
            format!("{bytes} bytes; the limit of a request is {max} bytes (--max-request-bytes)");
        status::invalid_request(self.messages, &Violation::new("request", description))
    }
}

fn deadline(seconds: u64) -> Pin<Box<Sleep>> {
    Box::pin(sleep(Duration::from_secs(seconds)))
}

fn prefix(compressed: u8, bytes: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
    prefix.put_u8(compressed);
    prefix.put_u32(u32::try_from(bytes).expect("it was read from 32 bits"));
    prefix.freeze()
}

impl HttpBody for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(part) = ready!(self.let_in(cx)) {
                return Poll::Ready(Some(part.map(Frame::data)));
            }
            // Even empty, it would keep the connection's buffer alive.
            self.arrived = Bytes::new();
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
                ready!(self.poll_deadline(cx));
                let stalled = self.messages - 1;
                let stalled = status::stalled_request(stalled, ARRIVAL_SECONDS_MAX);
                return Poll::Ready(Some(Err(stalled)));
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.arrived = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if matches!(self.message, Message::Prefix { len: 0, .. }) => {
                    return Poll::Ready(None);
                }
                None => return Poll::Ready(Some(Err(status::cut_request(self.messages)))),
            }
        }
    }
}
