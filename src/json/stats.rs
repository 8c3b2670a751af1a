//! The counters as JSON.

use serde::Serialize;

/// The counters of a server.
#[derive(Serialize)]
pub(crate) struct Stats<'a> {
    pub received: u64,
    pub unique_processed: u64,
    pub duplicate_dropped: u64,
    pub conflicts: u64,
    pub rejected: u64,
    /// The names of the topics in `topic_stats`.
    pub topics: Vec<&'a str>,
    /// How many topics there are in total.
    pub topic_count: u64,
    pub topic_stats: Vec<TopicStats<'a>>,
    pub uptime_seconds: u64,
    pub durable_tail: u64,
    pub storage_bytes: u64,
    pub server_version: &'a str,
}

/// The counters of a topic.
#[derive(Serialize)]
pub(crate) struct TopicStats<'a> {
    pub topic: &'a str,
    pub unique_processed: u64,
    pub duplicate_dropped: u64,
    /// ISO 8601 in UTC.
    pub last_received_at: String,
}
