//! What reads may take of the machine: threads, and memory for their results.
//!
//! Readers' scans, look-ups of single events and look-ups for publishes run on the same pool of blocking threads.
//! The first two each have a lane far narrower than the pool, so that a publish finds a thread however many readers
//! there are. A job in a lane keeps its place until it ends, even if nobody waits for it any more.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::ReadError;

/// How many scans of the log may run at a time. Others wait, in order.
pub(super) const SCANS_MAX: usize = 32;
/// How many look-ups of single events may run at a time.
pub(super) const GETS_MAX: usize = 64;
/// The memory for chunks of the usual size, in bytes. Beyond that, chunks are small.
const CHUNKS_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A share of the memory for chunks; released when dropped.
pub(crate) type ChunkShare = OwnedSemaphorePermit;

/// One for each partition.
pub(super) struct Lanes {
    scans: Arc<Semaphore>,
    gets: Arc<Semaphore>,
    chunks: Arc<Semaphore>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            gets: Arc::new(Semaphore::new(GETS_MAX)),
            chunks: Arc::new(Semaphore::new(CHUNKS_BYTES_MAX)),
        }
    }
}

impl Lanes {
    /// Runs a scan for a reader.
    pub async fn scan<T: Send + 'static>(
        &self,
        scan: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        run(&self.scans, scan).await
    }

    /// Looks up one event.
    pub async fn get<T: Send + 'static>(
        &self,
        get: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        run(&self.gets, get).await
    }

    /// The memory for a chunk of `bytes`, if available.
    pub fn chunk(&self, bytes: usize) -> Option<ChunkShare> {
        let bytes = u32::try_from(bytes).expect("a chunk is small");
        Arc::clone(&self.chunks).try_acquire_many_owned(bytes).ok()
    }

    /// How many scans could start now.
    #[cfg(test)]
    pub fn free_scans(&self) -> usize {
        self.scans.available_permits()
    }

    /// Takes all memory for chunks.
    #[cfg(test)]
    pub fn take_all_chunks(&self) -> ChunkShare {
        self.chunk(CHUNKS_BYTES_MAX).expect("nobody else reads")
    }
}

async fn run<T: Send + 'static>(
    lane: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadError> {
    let place = Arc::clone(lane).acquire_owned().await;
    let place = place.expect("a lane is never closed");
    let run = spawn_blocking(move || {
        let _place = place;
        work()
    });
    run.await.map_err(|error| ReadError::of_task(&error))
}
