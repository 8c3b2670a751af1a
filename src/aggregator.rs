//! State shared by the edges: the partition, the permits of its readers and the memory of responses.
//!
//! The gRPC edge implements the contract on it; the HTTP edge uses it as its state.

use std::{sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{limits::Limits, partition::Partition, response::ResponseMemory};

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
