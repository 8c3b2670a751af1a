//! The task behind a publisher: one stream at a time, and its unacknowledged requests.
//!
//! Never sends a request before one that was built earlier, on any stream.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryFutureExt as _};
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery,
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

use super::{
    Cause, InvalidEndpoint, MESSAGE_BYTES_MAX,
    backoff::{Backoff, is_transient},
    window::{PublisherOptions, Window},
};
use crate::{grpc::wire::RawPublishRequest, proto::v1};

const PATH: &str = "/oncelog.v1.AggregatorService/StreamingPublish";

/// Why events were not published. After the first error a publisher stays failed.
///
/// Events without an ack may or may not be stored; publishing them again is safe.
#[derive(Clone, Debug, Error)]
pub enum PublishError {
    /// The address of the server is invalid.
    #[error(transparent)]
    InvalidEndpoint(#[from] InvalidEndpoint),
    /// The server refused the stream; retrying will not help.
    #[error("{server} refused the events: {cause}")]
    Refused {
        /// The address of the server.
        server: Arc<str>,
        /// The server's reply.
        #[source]
        cause: Cause,
    },
    /// The connection kept breaking.
    #[error("gave up on {server} after {} s without an ack: {cause}", .after.as_secs_f32())]
    GaveUp {
        /// The address of the server.
        server: Arc<str>,
        /// How long the publisher kept trying.
        after: Duration,
        /// How the last attempt ended.
        #[source]
        cause: Cause,
    },
    /// The server violates the contract.
    #[error("{server} broke the contract: {description}")]
    Protocol {
        /// The address of the server.
        server: Arc<str>,
        /// The violation.
        description: String,
    },
    /// The publisher was finished, or its runtime was shut down.
    #[error("the publisher is finished")]
    Finished,
}

/// A message from the handles to the task.
#[derive(Debug)]
pub(super) enum Command {
    Send(Unacked),
    Finish,
}

/// An unacked request, encoded once for all attempts.
#[derive(Debug)]
pub(super) struct Unacked {
    pub encoded: RawPublishRequest,
    pub event_count: usize,
    pub ack: oneshot::Sender<Vec<v1::EventOutcome>>,
    pub permits: [OwnedSemaphorePermit; 2],
}

/// How a stream ended early.
enum Break {
    Status(Status),
    Protocol(String),
}

impl From<Status> for Break {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The task behind a publisher.
pub(super) struct Worker {
    endpoint: Endpoint,
    server: Arc<str>,
    ack_timeout: Duration,
    give_up_after: Duration,
    backoff: Backoff,
    queue: mpsc::Receiver<Command>,
    window: Window,
    unacked: VecDeque<Unacked>,
}

impl Worker {
    /// A task that sends the requests from `queue`, each with its permits of `window`.
    pub fn new(
        endpoint: Endpoint,
        server: &str,
        options: &PublisherOptions,
        queue: mpsc::Receiver<Command>,
        window: Window,
    ) -> Self {
        Self {
            endpoint,
            server: server.into(),
            ack_timeout: options.ack_timeout,
            give_up_after: options.give_up_after,
            backoff: Backoff::new(options.give_up_after),
            queue,
            window,
            unacked: VecDeque::new(),
        }
    }

    /// Publishes until the last request is acked or the first error; then reports to `end`.
    pub async fn run(mut self, end: watch::Sender<Option<Result<(), PublishError>>>) {
        let result = self.publish().await;
        // Before the window, the queue and the acks close, so that anyone who finds them closed finds the
        // reason.
        end.send_replace(Some(result));
        self.window.close();
    }

    /// Publishes until the last request is acked.
    async fn publish(&mut self) -> Result<(), PublishError> {
        loop {
            if self.unacked.is_empty() {
                match self.next_request().await {
                    Some(request) => self.unacked.push_back(request),
                    None => return Ok(()),
                }
            }
            match self.stream().await {
                Ok(()) => {}
                // Nothing was waiting for this stream; the next request opens another.
                Err(Break::Status(_)) if self.unacked.is_empty() => {}
                Err(Break::Status(status)) if is_transient(status.code()) => {
                    self.wait_to_retry(status).await?;
                }
                Err(Break::Status(status)) => {
                    return Err(PublishError::Refused {
                        server: Arc::clone(&self.server),
                        cause: status.into(),
                    });
                }
                Err(Break::Protocol(description)) => {
                    return Err(PublishError::Protocol {
                        server: Arc::clone(&self.server),
                        description,
                    });
                }
            }
        }
    }

    async fn wait_to_retry(&mut self, status: Status) -> Result<(), PublishError> {
        let cause = Cause::from(status);
        let Some(delay) = self.backoff.failure() else {
            return Err(PublishError::GaveUp {
                server: Arc::clone(&self.server),
                after: self.give_up_after,
                cause,
            });
        };
        if self.backoff.is_first() {
            tracing::warn!(
                server = &*self.server,
                %cause,
                unacked_requests = self.unacked.len(),
                "the stream broke; reconnecting"
            );
        }
        sleep(delay).await;
        Ok(())
    }

    /// The next new request; `None` after the last.
    async fn next_request(&mut self) -> Option<Unacked> {
        loop {
            match self.queue.recv().await? {
                Command::Send(request) => return Some(request),
                Command::Finish => {
                    self.window.close();
                    self.queue.close();
                }
            }
        }
    }

    /// Sends the unacked requests on a new stream, and new ones as they come, until the stream ends.
    async fn stream(&mut self) -> Result<(), Break> {
        let (outgoing, requests) = mpsc::channel(self.window.requests_max);
        for request in &self.unacked {
            pass_on(&outgoing, request);
        }
        let mut outgoing = Some(outgoing);
        let responses = open(self.endpoint.clone(), requests).map_ok(Response::into_inner);
        let mut responses = pin!(responses.try_flatten_stream());
        let mut acked = 0;
        let mut deadline = Instant::now() + self.ack_timeout;
        loop {
            tokio::select! {
                response = responses.next() => match response {
                    Some(response) => {
                        acked += 1;
                        self.acknowledge(response?, acked)?;
                        deadline = Instant::now() + self.ack_timeout;
                    }
                    None if self.unacked.is_empty() => return Ok(()),
                    None => return Err(Status::unavailable("the server ended the stream").into()),
                },
                request = self.next_request(), if outgoing.is_some() => match (request, &outgoing) {
                    (Some(request), Some(outgoing)) => {
                        if self.unacked.is_empty() {
                            deadline = Instant::now() + self.ack_timeout;
                        }
                        pass_on(outgoing, &request);
                        self.unacked.push_back(request);
                    }
                    // Nothing more will come: half-close, and wait for the acks and the server.
                    (None, _) | (_, None) => outgoing = None,
                },
                () = sleep_until(deadline), if outgoing.is_none() || !self.unacked.is_empty() => {
                    let timeout = self.ack_timeout.as_secs_f32();
                    return Err(Status::deadline_exceeded(format!("no ack for {timeout} s")).into());
                }
            }
        }
    }

    /// Accepts the `acked`th response of a stream for the oldest request.
    fn acknowledge(
        &mut self,
        response: v1::StreamingPublishResponse,
        acked: u64,
    ) -> Result<(), Break> {
        if response.acknowledged_requests != acked {
            return Err(Break::Protocol(format!(
                "response {acked} of a stream acknowledges {} requests",
                response.acknowledged_requests
            )));
        }
        let Some(request) = self.unacked.pop_front() else {
            return Err(Break::Protocol(format!(
                "response {acked} of a stream answers no request"
            )));
        };
        if response.outcomes.len() != request.event_count {
            return Err(Break::Protocol(format!(
                "{} outcomes for a request of {} events",
                response.outcomes.len(),
                request.event_count
            )));
        }
        self.backoff.progress();
        // The sender of the request may not care for its outcomes.
        let _ = request.ack.send(response.outcomes);
        drop(request.permits);
        Ok(())
    }
}

/// Passes `request` to the stream. The channel has room for all requests of the window.
fn pass_on(outgoing: &mpsc::Sender<RawPublishRequest>, request: &Unacked) {
    match outgoing.try_send(request.encoded.clone()) {
        Ok(()) => {}
        // The stream has ended; its responses show why.
        Err(mpsc::error::TrySendError::Closed(_)) => {}
        Err(mpsc::error::TrySendError::Full(_)) => {
            unreachable!("the window bounds the requests of a stream")
        }
    }
}

/// Opens a stream on its own connection, so that no attempt reuses a dead one.
async fn open(
    endpoint: Endpoint,
    requests: mpsc::Receiver<RawPublishRequest>,
) -> Result<Response<Streaming<v1::StreamingPublishResponse>>, Status> {
    let connected = endpoint.connect().await;
    let channel = connected.map_err(|error| Status::from_error(error.into()))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let ready = client.ready().await;
    ready.map_err(|error| Status::from_error(error.into()))?;
    // Not the generated method, which only takes requests that it must encode again each time.
    let codec = ProstCodec::<RawPublishRequest, v1::StreamingPublishResponse>::default();
    let requests = Request::new(ReceiverStream::new(requests));
    let path = PathAndQuery::from_static(PATH);
    client.streaming(requests, path, codec).await
}
