//! GET /stats: the counters.

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use tokio::task::spawn_blocking;

use super::{error::Failure, query};
use crate::{
    aggregator::Aggregator,
    event::Topic,
    json::{
        listed::timestamp_of,
        stats::{Stats, TopicStats},
    },
    limits::{STATS_TOPIC_BYTES_MAX, STATS_TOPICS_DEFAULT, STATS_TOPICS_MAX},
    partition::TopicCounters,
    response::{self, Unread},
};

pub(super) async fn stats(
    State(aggregator): State<Aggregator>,
    Extension(unread): Extension<Unread>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let [prefix, max] = query::parameters(query.as_deref(), ["topic_prefix", "max_topics"])?;
    let max = query::positive("max_topics", max.as_deref(), STATS_TOPICS_MAX as u64)?;
    let max = max.map_or(STATS_TOPICS_DEFAULT, |max| {
        usize::try_from(max).expect("small")
    });
    let partition = aggregator.partition;
    let (_, topic_count) = partition.totals();
    let bytes_max = STATS_TOPIC_BYTES_MAX * (1 + max.min(topic_count));
    let reserved = aggregator.response_memory.reserve(&unread, bytes_max).await;
    let reserved = reserved.map_err(|_| Failure::too_many_unread())?;
    let files = partition.clone();
    let storage_bytes = spawn_blocking(move || files.storage_bytes()).await;
    let topics = partition.topics(&prefix.unwrap_or_default(), max);
    let (counters, topic_count) = partition.totals();
    let stats = Stats {
        received: counters.received,
        unique_processed: counters.unique_processed,
        duplicate_dropped: counters.duplicate_dropped,
        conflicts: counters.conflicts,
        rejected: counters.rejected,
        topics: topics.iter().map(|(topic, _)| topic.as_str()).collect(),
        topic_count: topic_count as u64,
        topic_stats: topics.iter().map(topic_stats).collect(),
        uptime_seconds: aggregator.started.elapsed().as_secs(),
        durable_tail: partition.durable_tail(),
        storage_bytes: storage_bytes.map_err(|_| Failure::stopping())?,
        server_version: env!("CARGO_PKG_VERSION"),
    };
    let json = serde_json::to_vec(&stats).expect("counters are JSON");
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        response::held(json, reserved),
    )
        .into_response())
}

fn topic_stats((topic, counters): &(Topic, TopicCounters)) -> TopicStats<'_> {
    TopicStats {
        topic: topic.as_str(),
        unique_processed: counters.unique_processed,
        duplicate_dropped: counters.duplicate_dropped,
        last_received_at: timestamp_of(counters.last_received_at).to_string(),
    }
}
