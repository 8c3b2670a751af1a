//! What reads may take of the machine: threads, and memory for their results.
//!
//! Readers' scans, look-ups of single events and look-ups for publishes run on the same pool of blocking threads.
//! The first two each have a lane far narrower than the pool, so that a publish finds a thread however many readers
//! there are. A job in a lane keeps its place until it ends, even if nobody waits for it any more.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{ReadError, chunks::ChunkMemory};

/// How many scans of the log may run at a time. Others wait, in order.
pub(super) const SCANS_MAX: usize = 32;
/// How many look-ups of single events may run at a time.
pub(super) const GETS_MAX: usize = 64;

/// One for each partition.
pub(super) struct Lanes {
    scans: Arc<Semaphore>,
    gets: Arc<Semaphore>,
    pub chunks: ChunkMemory,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            scans: Arc::new(Semaphore::new(SCANS_MAX)),
            gets: Arc::new(Semaphore::new(GETS_MAX)),
            chunks: ChunkMemory::default(),
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

    /// How many scans could start now.
    #[cfg(test)]
    pub fn free_scans(&self) -> usize {
        self.scans.available_permits()
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
