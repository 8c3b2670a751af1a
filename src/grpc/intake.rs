//! Back-pressure for publish requests, before they are in memory.
//!
//! gRPC gathers a message whole before a handler sees it, so a bound on what handlers hold does not
//! bound the server's memory: every stream may be gathering one. This layer reads the length in front of
//! each message and takes that much from the partition's ingest budget before it lets the message in.
//! A message gets its share whole or waits outside, in HTTP/2 flow control, so streams cannot block
//! each other with halves of messages. The share goes with the request until it is answered.
//! Format: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
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

use super::status;
use crate::event::Violation;

/// How long a request may take to arrive once it has begun; it holds its share of the budget meanwhile.
const ARRIVAL_SECONDS_MAX: u64 = 60;
/// What the smallest request takes from the budget, for the memory it takes beside its bytes.
const SHARE_BYTES_MIN: usize = 1024;
/// A compression flag of one byte and a length of four.
const PREFIX_BYTES: usize = 5;
const COMPRESSED: u8 = 1;

/// The service `S`, whose publish requests take their bytes from a budget.
#[derive(Clone)]
pub struct Intake<S> {
    inner: S,
    budget: Arc<Semaphore>,
    request_bytes_max: usize,
}

/// The shares of the requests of one stream that have been let in, in their order.
#[derive(Clone, Default)]
pub(super) struct Shares(Arc<Mutex<VecDeque<OwnedSemaphorePermit>>>);

impl Shares {
    /// The shares of the stream that begins with `request`.
    pub fn of<T>(request: &Request<T>) -> Self {
        let shares = request.extensions().get::<Self>();
        shares.expect("publish streams come through Intake").clone()
    }

    /// The share of the next request.
    pub fn take(&self) -> OwnedSemaphorePermit {
        let share = self.queue().pop_front();
        share.expect("a message is let in with its share")
    }

    fn put(&self, share: OwnedSemaphorePermit) {
        self.queue().push_back(share);
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<OwnedSemaphorePermit>> {
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
        let shares = Shares::default();
        let budget = PollSemaphore::new(Arc::clone(&self.budget));
        let max = self.request_bytes_max;
        let mut request = request.map(|body| {
            Body::new(MeteredBody {
                inner: body,
                arrived: BytesMut::new(),
                message: Message::Prefix,
                messages: 0,
                budget,
                request_bytes_max: max,
                shares: shares.clone(),
                deadline: None,
            })
        });
        request.extensions_mut().insert(shares);
        self.inner.call(request)
    }
}

struct MeteredBody {
    inner: Body,
    /// What has arrived and is not let in.
    arrived: BytesMut,
    message: Message,
    /// Messages that have begun.
    messages: u64,
    budget: PollSemaphore,
    request_bytes_max: usize,
    shares: Shares,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Where in a message the body is.
enum Message {
    /// Before the end of its prefix.
    Prefix,
    /// Its prefix is there, its share is not.
    Waiting { share_bytes: usize, bytes: usize },
    /// It is being let in.
    Inside { bytes_left: usize },
}

impl MeteredBody {
    /// Lets in what it can of what has arrived. `None` if more must arrive first.
    fn let_in(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match self.message {
                Message::Prefix => {
                    if self.arrived.len() < PREFIX_BYTES {
                        return Poll::Ready(None);
                    }
                    let bytes = (&self.arrived[1..PREFIX_BYTES]).get_u32() as usize;
                    if bytes > self.request_bytes_max {
                        return Poll::Ready(Some(Err(self.too_large(bytes))));
                    }
                    let compressed = self.arrived[0] == COMPRESSED;
                    let in_memory = if compressed {
                        self.request_bytes_max
                    } else {
                        bytes
                    };
                    self.message = Message::Waiting {
                        share_bytes: in_memory.max(SHARE_BYTES_MIN),
                        bytes,
                    };
                }
                Message::Waiting { share_bytes, bytes } => {
                    let share = u32::try_from(share_bytes).expect("a request is under 4 GiB");
                    let Some(share) = ready!(self.budget.poll_acquire_many(cx, share)) else {
                        return Poll::Ready(Some(Err(status::stopping())));
                    };
                    self.shares.put(share);
                    self.messages += 1;
                    let arrival = Duration::from_secs(ARRIVAL_SECONDS_MAX);
                    self.deadline = Some(Box::pin(sleep(arrival)));
                    let bytes_left = PREFIX_BYTES + bytes;
                    self.message = Message::Inside { bytes_left };
                }
                Message::Inside { bytes_left } => {
                    if self.arrived.is_empty() {
                        return Poll::Ready(None);
                    }
                    let part = self.arrived.split_to(bytes_left.min(self.arrived.len()));
                    if part.len() == bytes_left {
                        self.message = Message::Prefix;
                        self.deadline = None;
                    } else {
                        let bytes_left = bytes_left - part.len();
                        self.message = Message::Inside { bytes_left };
                    }
                    return Poll::Ready(Some(Ok(part.freeze())));
                }
            }
        }
    }

    fn too_large(&self, bytes: usize) -> Status {
        let max = self.request_bytes_max;
        let description =
            format!("{bytes} bytes; the limit of a request is {max} bytes (--max-request-bytes)");
        status::invalid_request(self.messages, &Violation::new("request", description))
    }
}

impl HttpBody for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        loop {
            if let Some(part) = ready!(self.let_in(cx)) {
                return Poll::Ready(Some(part.map(http_body::Frame::data)));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
                let Some(deadline) = &mut self.deadline else {
                    return Poll::Pending;
                };
                ready!(deadline.as_mut().poll(cx));
                let stalled = self.messages - 1;
                return Poll::Ready(Some(Err(status::stalled_request(
                    stalled,
                    ARRIVAL_SECONDS_MAX,
                ))));
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if self.arrived.is_empty() => self.arrived = data.into(),
                    Ok(data) => self.arrived.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
