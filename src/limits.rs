//! Limits of the edges: each is named once, and holds for both together.

use std::time::Duration;

/// The most events of one request.
pub(crate) const REQUEST_EVENTS_MAX: usize = 16_384;
/// How many requests of one stream may wait for their acknowledgement; beyond that, the stream is not read.
pub(crate) const STREAM_REQUESTS_MAX: usize = 32;
/// How long a request may wait for its share of the budget.
pub(crate) const SHARE_WAIT_SECONDS_MAX: u64 = 10;
/// The least a request takes from the budget, for its overhead. Up to this size its received bytes are free.
pub(crate) const SHARE_BYTES_MIN: usize = 1024;
/// The memory of an event beside its encoding, until it is answered: more than the event, its key, its index entry
/// and its outcome.
pub(crate) const EVENT_MEMORY_BYTES: usize = 192;
/// How many topics a request for counters lists by default.
pub(crate) const STATS_TOPICS_DEFAULT: usize = 1000;
/// Seconds to wait before sending again: for a short problem, a longer one, and a restart.
pub(crate) const RETRY_SOON_SECONDS: u64 = 1;
pub(crate) const RETRY_LATER_SECONDS: u64 = 10;
pub(crate) const RETRY_MUCH_LATER_SECONDS: u64 = 60;
/// How many topics a request for counters may list.
pub(crate) const STATS_TOPICS_MAX: usize = 10_000;
/// The most that a topic takes in a response with counters, in bytes.
pub(crate) const STATS_TOPIC_BYTES_MAX: usize = 1024;
/// How long a stream that follows may be silent.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);

/// The limits of the edges.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest encoded event, in bytes.
    pub event_bytes_max: usize,
    /// The largest encoded publish request, in bytes.
    pub request_bytes_max: usize,
    /// The most streams of stored events at a time.
    pub readers_max: usize,
    /// The most topics.
    pub topics_max: usize,
}
