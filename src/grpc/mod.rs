//! The gRPC edge: one file per RPC, with nothing but conversions between them and the partition.

mod compression;
mod convert;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod get_event;
mod get_stats;
mod intake;
mod list_events;
mod publish;
mod reason;
mod status;
mod streaming_publish;
pub mod wire;

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, codec::CompressionEncoding};

pub(crate) use self::status::{response_not_read, too_many_calls};
use self::wire::{RawListEventsResponse, RawPublishRequest, RawStreamingPublishResponse};
use crate::{
    aggregator::Aggregator,
    call::CALL_BYTES_MAX,
    limits::STREAM_REQUESTS_MAX,
    proto::{
        server::aggregator_service_server::{AggregatorService, AggregatorServiceServer},
        v1,
    },
};

/// The service of `oncelog.v1.AggregatorService` over `aggregator`.
pub(crate) fn service(aggregator: Aggregator) -> AggregatorServiceServer<Aggregator> {
    // The publish calls read their messages themselves; gRPC reads only small ones.
    AggregatorServiceServer::new(aggregator)
        .max_decoding_message_size(CALL_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatorService for Aggregator {
    type StreamingPublishStream = ResponseStream<RawStreamingPublishResponse>;
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
        let responses = list_events::list_events(self, request).await?;
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_event(
        &self,
        request: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        get_event::get_event(self, request).await
    }

    async fn get_stats(
        &self,
        request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        get_stats::get_stats(self, request).await
    }
}
