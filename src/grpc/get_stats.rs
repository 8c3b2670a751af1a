//! GetStats: the counters.

use tokio::task::spawn_blocking;
use tonic::Status;

use super::{Aggregator, convert, status};
use crate::{aggregator::STATS_TOPICS_DEFAULT, proto::v1};

pub(super) async fn get_stats(
    aggregator: &Aggregator,
    request: &v1::GetStatsRequest,
) -> Result<v1::GetStatsResponse, Status> {
    let partition = &aggregator.partition;
    let max_topics = match request.max_topics {
        0 => STATS_TOPICS_DEFAULT,
        max => max as usize,
    };
    let files = partition.clone();
    let storage_bytes = spawn_blocking(move || files.storage_bytes()).await;
    let topics = partition.topics(&request.topic_prefix, max_topics);
    let (counters, topic_count) = partition.totals();
    Ok(v1::GetStatsResponse {
        topics: topics.into_iter().map(convert::topic_stats).collect(),
        uptime_seconds: aggregator.started.elapsed().as_secs(),
        durable_tail: partition.durable_tail(),
        storage_bytes: storage_bytes.map_err(|_| status::stopping())?,
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        topic_count: topic_count as u64,
        ..convert::stats(counters)
    })
}
