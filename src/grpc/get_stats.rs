//! GetStats: the counters.

use prost::Message as _;
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use super::{Aggregator, convert, status};
use crate::{
    limits::{STATS_TOPIC_BYTES_MAX, STATS_TOPICS_DEFAULT, STATS_TOPICS_MAX},
    proto::v1,
    response::{self, ResponseShare},
};

pub(super) async fn get_stats(
    aggregator: &Aggregator,
    request: Request<v1::GetStatsRequest>,
) -> Result<Response<v1::GetStatsResponse>, Status> {
    let unread = response::unread(request.extensions());
    let request = request.into_inner();
    let partition = &aggregator.partition;
    let max_topics = match request.max_topics {
        0 => STATS_TOPICS_DEFAULT,
        max => (max as usize).min(STATS_TOPICS_MAX),
    };
    let (_, topic_count) = partition.totals();
    let bytes_max = STATS_TOPIC_BYTES_MAX * (1 + max_topics.min(topic_count));
    let reserved = aggregator.response_memory.reserve(&unread, bytes_max).await;
    let reserved = reserved.map_err(|_| status::too_many_unread())?;
    let files = partition.clone();
    let storage_bytes = spawn_blocking(move || files.storage_bytes()).await;
    let topics = partition.topics(&request.topic_prefix, max_topics);
    let (counters, topic_count) = partition.totals();
    let stats = v1::GetStatsResponse {
        topics: topics.into_iter().map(convert::topic_stats).collect(),
        uptime_seconds: aggregator.started.elapsed().as_secs(),
        durable_tail: partition.durable_tail(),
        storage_bytes: storage_bytes.map_err(|_| status::stopping())?,
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        topic_count: topic_count as u64,
        ..convert::stats(counters)
    };
    let share = ResponseShare::keep(reserved, stats.encoded_len());
    let mut response = Response::new(stats);
    response.extensions_mut().insert(share);
    Ok(response)
}
