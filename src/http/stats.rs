//! GET /stats: the counters.

use axum::{
    extract::{RawQuery, State},
    http::StatusCode,
    response::Response,
};
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::{error::Failure, event::timestamp_of, json_response, query};
use crate::{
    aggregator::{Aggregator, STATS_TOPICS_DEFAULT},
    event::Topic,
    partition::TopicCounters,
};

/// How many topics a request may ask for.
pub(super) const TOPICS_MAX: u64 = 10_000;

#[derive(Serialize)]
struct Stats<'a> {
    received: u64,
    unique_processed: u64,
    duplicate_dropped: u64,
    conflicts: u64,
    rejected: u64,
    topics: Vec<&'a str>,
    topic_count: usize,
    topic_stats: Vec<TopicStats<'a>>,
    uptime_seconds: u64,
    durable_tail: u64,
    storage_bytes: u64,
    server_version: &'static str,
}

#[derive(Serialize)]
struct TopicStats<'a> {
    topic: &'a str,
    unique_processed: u64,
    duplicate_dropped: u64,
    last_received_at: String,
}

pub(super) async fn stats(
    State(aggregator): State<Aggregator>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let [prefix, max] = query::parameters(query.as_deref(), ["topic_prefix", "max_topics"])?;
    let max = query::positive("max_topics", max.as_deref(), TOPICS_MAX)?;
    let max = max.map_or(STATS_TOPICS_DEFAULT, |max| {
        usize::try_from(max).expect("small")
    });
    let partition = aggregator.partition;
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
        topic_count,
        topic_stats: topics.iter().map(topic_stats).collect(),
        uptime_seconds: aggregator.started.elapsed().as_secs(),
        durable_tail: partition.durable_tail(),
        storage_bytes: storage_bytes.map_err(|_| Failure::stopping())?,
        server_version: env!("CARGO_PKG_VERSION"),
    };
    Ok(json_response(StatusCode::OK, &stats))
}

fn topic_stats((topic, counters): &(Topic, TopicCounters)) -> TopicStats<'_> {
    TopicStats {
        topic: topic.as_str(),
        unique_processed: counters.unique_processed,
        duplicate_dropped: counters.duplicate_dropped,
        last_received_at: timestamp_of(counters.last_received_at).to_string(),
    }
}
