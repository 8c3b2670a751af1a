//! State shared by the edges: the partition, and the limits on requests.
//!
//! The gRPC edge implements the contract on it; the HTTP edge uses it as its state. So a limit holds for both
//! together, and is named once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{partition::Partition, response::ResponseMemory};

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

/// A partition being served. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Aggregator {
    pub partition: Partition,
    pub limits: Limits,
    readers: Arc<Semaphore>,
    /// The memory of responses that are built whole.
    pub response_memory: ResponseMemory,
    /// Cancelled when the server stops; streams then end by themselves.
    pub stopping: CancellationToken,
    pub started: Instant,
}

/// The limit on readers is reached.
pub(crate) struct TooManyReaders;

impl Aggregator {
    /// Serves `partition`, until `stopping` is cancelled.
    pub fn new(partition: Partition, limits: Limits, stopping: CancellationToken) -> Self {
        Self {
            partition,
            limits,
            readers: Arc::new(Semaphore::new(limits.readers_max)),
            response_memory: ResponseMemory::default(),
            stopping,
            started: Instant::now(),
        }
    }

    /// Permission to read, for as long as the permit is held.
    pub fn admit_reader(&self) -> Result<OwnedSemaphorePermit, TooManyReaders> {
        let permit = Arc::clone(&self.readers).try_acquire_owned();
        permit.map_err(|_| TooManyReaders)
    }
}
