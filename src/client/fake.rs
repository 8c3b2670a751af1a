//! A server for the client's tests: it passes every call to the test, which plays the server.

use std::net::TcpListener;

use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    grpc::wire::{RawListEventsResponse, RawPublishRequest, RawStreamingPublishResponse},
    proto::{
        server::aggregator_service_server::{AggregatorService, AggregatorServiceServer},
        v1,
    },
};

/// More than any test has in flight.
const CHANNEL_CAPACITY: usize = 64;

type Responses<T> = mpsc::Sender<Result<T, Status>>;

/// A StreamingPublish call.
pub(super) struct PublishCall {
    requests: Streaming<RawPublishRequest>,
    responses: Responses<RawStreamingPublishResponse>,
    acked: u64,
}

impl PublishCall {
    /// The events of the next request; `None` once the client has half-closed.
    pub async fn next(&mut self) -> Option<Vec<v1::Event>> {
        let request = self.requests.next().await?.expect("a whole stream");
        let request = v1::StreamingPublishRequest::decode(request.0).expect("a request");
        Some(request.events)
    }

    /// Acknowledges the oldest request with one outcome of sequence `sequence`.
    pub async fn ack(&mut self, sequence: u64) {
        self.acked += 1;
        let outcome = v1::EventOutcome {
            outcome: v1::Outcome::Stored.into(),
            sequence,
            reason: String::new(),
        };
        self.answer(self.acked, vec![outcome]).await;
    }

    /// Sends any response.
    pub async fn answer(&mut self, acknowledged_requests: u64, outcomes: Vec<v1::EventOutcome>) {
        let response = v1::StreamingPublishResponse {
            acknowledged_requests,
            outcomes,
        };
        let raw = RawStreamingPublishResponse(response.encode_to_vec().into());
        self.responses.send(Ok(raw)).await.expect("a client");
    }

    /// Ends the call with `status`.
    pub async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.expect("a client");
    }
}

/// A ListEvents call.
pub(super) struct ListCall {
    pub request: v1::ListEventsRequest,
    responses: Responses<RawListEventsResponse>,
}

impl ListCall {
    /// Sends the events `sequences` with a cursor.
    pub async fn send(&self, sequences: std::ops::Range<u64>, cursor: &str) {
        let events = sequences.map(|sequence| v1::StoredEvent {
            sequence,
            ..v1::StoredEvent::default()
        });
        let response = v1::ListEventsResponse {
            events: events.collect(),
            cursor: cursor.to_owned(),
            caught_up: false,
        };
        let raw = RawListEventsResponse(response.encode_to_vec().into());
        self.responses.send(Ok(raw)).await.expect("a client");
    }

    /// Ends the call with `status`.
    pub async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.expect("a client");
    }
}

/// A server with its own runtime, so that it can be killed together with its connections.
pub(super) struct Fake {
    pub url: String,
    pub publishes: mpsc::Receiver<PublishCall>,
    pub lists: mpsc::Receiver<ListCall>,
    runtime: Option<Runtime>,
}

impl Fake {
    /// A server on a port chosen by the system.
    pub fn start() -> Self {
        Self::on(&listener())
    }

    /// A server on `listener`, which stays open when the server is killed.
    pub fn on(listener: &TcpListener) -> Self {
        let address = listener.local_addr().expect("bound");
        let listener = listener.try_clone().expect("a listener");
        let (publishes_tx, publishes) = mpsc::channel(CHANNEL_CAPACITY);
        let (lists_tx, lists) = mpsc::channel(CHANNEL_CAPACITY);
        let runtime = Runtime::new().expect("a runtime");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("non-blocking");
            let handler = Handler {
                publishes: publishes_tx,
                lists: lists_tx,
            };
            let server = Server::builder().add_service(AggregatorServiceServer::new(handler));
            server
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Self {
            url: format!("http://{address}"),
            publishes,
            lists,
            runtime: Some(runtime),
        }
    }

    pub async fn publish_call(&mut self) -> PublishCall {
        self.publishes.recv().await.expect("a running server")
    }

    pub async fn list_call(&mut self) -> ListCall {
        self.lists.recv().await.expect("a running server")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A listener that outlives the servers on it.
pub(super) fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

struct Handler {
    publishes: mpsc::Sender<PublishCall>,
    lists: mpsc::Sender<ListCall>,
}

#[tonic::async_trait]
impl AggregatorService for Handler {
    type StreamingPublishStream = ReceiverStream<Result<RawStreamingPublishResponse, Status>>;
    type ListEventsStream = ReceiverStream<Result<RawListEventsResponse, Status>>;

    async fn publish(
        &self,
        _: Request<Streaming<RawPublishRequest>>,
    ) -> Result<Response<v1::PublishResponse>, Status> {
        Err(Status::unimplemented("the client does not call it"))
    }

    async fn streaming_publish(
        &self,
        request: Request<Streaming<RawPublishRequest>>,
    ) -> Result<Response<Self::StreamingPublishStream>, Status> {
        let (responses, stream) = mpsc::channel(CHANNEL_CAPACITY);
        let call = PublishCall {
            requests: request.into_inner(),
            responses,
            acked: 0,
        };
        let taken = self.publishes.send(call).await;
        taken.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<Self::ListEventsStream>, Status> {
        let (responses, stream) = mpsc::channel(CHANNEL_CAPACITY);
        let call = ListCall {
            request: request.into_inner(),
            responses,
        };
        let taken = self.lists.send(call).await;
        taken.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_event(
        &self,
        _: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        Err(Status::unimplemented("the client does not call it"))
    }

    async fn get_stats(
        &self,
        _: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        Err(Status::unimplemented("the client does not call it"))
    }
}
