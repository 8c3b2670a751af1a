//! The ground under the store: files, threads, the clock, randomness.
//!
//! Owns [`Platform`], through which log, index and partition reach the operating system, so that tests and the
//! simulation can replace it. Knows nothing of formats.

mod disk;
#[doc(hidden)]
pub mod faulty;
mod jobs;

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

pub use self::{
    disk::{Disk, DiskDir, DiskFile, DiskReader, DiskWriter, OsDisk, is_full, parent_of},
    jobs::{Job, Jobs, Running, Step, ThreadPerJob, panic_text},
};
use crate::event::UnixNanos;

/// A source of the current time.
pub type TimeSource = fn() -> UnixNanos;

/// Files, threads, the clock and randomness. Cheap to clone.
#[derive(Clone)]
pub struct Platform {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// The source of background threads.
    pub jobs: Arc<dyn Jobs>,
    /// The wall clock.
    pub time: TimeSource,
    /// A number that nobody can guess.
    pub random: fn() -> u64,
}

impl Default for Platform {
    /// The operating system.
    fn default() -> Self {
        Self {
            disk: Arc::new(OsDisk),
            jobs: Arc::new(ThreadPerJob),
            time: system_time,
            random,
        }
    }
}

fn system_time() -> UnixNanos {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixNanos::try_from(since_epoch.as_nanos()).unwrap_or(UnixNanos::MAX)
}

/// Every `RandomState` has new keys.
fn random() -> u64 {
    RandomState::new().hash_one("oncelog")
}
