//! Calls that need no resending, over a single connection.

use oncelog::{
    client::endpoint,
    proto::v1::{
        GetStatsRequest, GetStatsResponse, aggregator_service_client::AggregatorServiceClient,
    },
};
use tonic::{Status, transport::Channel};

use crate::Result;

/// Connects to a server.
pub async fn connect(address: &str) -> Result<AggregatorServiceClient<Channel>, Status> {
    let endpoint =
        endpoint(address).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::from_error(error.into()))?;
    Ok(AggregatorServiceClient::new(channel))
}

/// The counters, which must balance.
pub async fn stats(address: &str) -> Result<GetStatsResponse> {
    let request = GetStatsRequest {
        max_topics: u32::MAX,
        ..GetStatsRequest::default()
    };
    let stats = connect(address)
        .await?
        .get_stats(request)
        .await?
        .into_inner();
    let of_topics: u64 = stats
        .topics
        .iter()
        .map(|topic| topic.unique_processed)
        .sum();
    if stats.received != stats.unique_processed + stats.duplicate_dropped + stats.rejected
        || stats.unique_processed != of_topics
        || stats.conflicts > stats.duplicate_dropped
    {
        return Err(format!("the counters do not balance: {stats:?}").into());
    }
    Ok(stats)
}
