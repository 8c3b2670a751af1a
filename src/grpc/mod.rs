//! The gRPC edge: one file an RPC, and between them and the partition only conversions.

mod convert;
mod get_event;
mod get_stats;
mod intake;
mod list_events;
mod publish;
mod status;
mod streaming_publish;
pub mod wire;

use std::{pin::Pin, sync::Arc, time::Instant};

use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, codec::CompressionEncoding};

use self::{
    intake::Intake,
    wire::{RawListEventsResponse, RawPublishRequest},
};
use crate::{
    partition::Partition,
    proto::{
        server::aggregator_service_server::{AggregatorService, AggregatorServiceServer},
        v1,
    },
};

/// How many requests of one stream may wait for their acknowledgement; then it is not read on.
const STREAM_REQUESTS_MAX: usize = 32;

/// The limits of the edge.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest encoded event, in bytes.
    pub event_bytes_max: usize,
    /// The largest encoded publish request, in bytes.
    pub request_bytes_max: usize,
    /// The most ListEvents streams at a time.
    pub readers_max: usize,
    /// The most topics.
    pub topics_max: usize,
}

/// The implementation of `oncelog.v1.AggregatorService`.
#[derive(Clone)]
pub(crate) struct Aggregator {
    partition: Partition,
    limits: Limits,
    readers: Arc<Semaphore>,
    /// Cancelled when the server stops: streams end by themselves.
    stopping: CancellationToken,
    started: Instant,
}

/// The service over `partition`. Its streams end when `stopping` is cancelled.
pub(crate) fn service(
    partition: Partition,
    limits: Limits,
    stopping: CancellationToken,
) -> Intake<AggregatorServiceServer<Aggregator>> {
    let budget = Arc::clone(partition.ingest());
    let aggregator = Aggregator {
        partition,
        limits,
        readers: Arc::new(Semaphore::new(limits.readers_max)),
        stopping,
        started: Instant::now(),
    };
    let server = AggregatorServiceServer::new(aggregator)
        .max_decoding_message_size(limits.request_bytes_max)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    Intake::new(server, budget, limits.request_bytes_max)
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatorService for Aggregator {
    type StreamingPublishStream = ResponseStream<v1::StreamingPublishResponse>;
    type ListEventsStream = ResponseStream<RawListEventsResponse>;

    async fn publish(
        &self,
        request: Request<Streaming<RawPublishRequest>>,
    ) -> Result<Response<v1::PublishResponse>, Status> {
        publish::publish(self, request).await.map(Response::new)
    }

    async fn streaming_publish(
        &self,
        request: Request<Streaming<RawPublishRequest>>,
    ) -> Result<Response<Self::StreamingPublishStream>, Status> {
        let responses = streaming_publish::streaming_publish(self.clone(), request);
        Ok(Response::new(Box::pin(responses)))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<Self::ListEventsStream>, Status> {
        let responses = list_events::list_events(self, request.into_inner())?;
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_event(
        &self,
        request: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        let response = get_event::get_event(self, &request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn get_stats(
        &self,
        request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        let response = get_stats::get_stats(self, &request.into_inner()).await?;
        Ok(Response::new(response))
    }
}
