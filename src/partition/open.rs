//! Opens a data directory: the steps, in order.
//!
//! First the tail that the files beside the log prove, then the log, then [recovery](super::recover), and last
//! the [jobs](super::spawn).

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    Partition,
    recover::{self, Recovery},
    scan::ReadLimits,
    spawn::{self, Threads},
    stats::CountersError,
    writer::BatchLimits,
};
use crate::{
    event::Sequence,
    index::{self, IndexError, IndexOptions},
    log::{self, FileLog, FileLogOptions, Log, LogReadError},
    platform::{Disk as _, OsDisk, Platform},
};

/// How long to wait for another holder's lock on the data directory, and how often to retry. A process that has
/// just ended, or closed its file while a child of another thread was between fork and exec, may hold it a moment
/// longer.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(1);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The default limit on topics.
pub const TOPICS_MAX: usize = 100_000;
/// The default limit on batches kept in memory for followers, in bytes.
const TAIL_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The default budget of requests in the server, in bytes.
pub const INGEST_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The options of a partition.
#[derive(Clone)]
pub struct PartitionOptions {
    /// The folder of its files; created if missing.
    pub data_dir: PathBuf,
    /// The most topics it may have.
    pub topics_max: usize,
    /// The budget of [`Partition::ingest`], in bytes.
    pub ingest_bytes_max: usize,
    /// When a batch is full.
    pub batch: BatchLimits,
    /// The most bytes of batches kept in memory for followers. The newest batch is kept whatever its size.
    pub tail_cache_bytes_max: usize,
    /// How much a reader gets at a time.
    pub reads: ReadLimits,
    /// The sizes of log segments.
    pub log: FileLogOptions,
    /// The sizes of generations.
    pub index: IndexOptions,
    /// The operating system, or its simulation.
    pub platform: Platform,
}

impl PartitionOptions {
    /// The defaults, for `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            topics_max: TOPICS_MAX,
            ingest_bytes_max: INGEST_BYTES_MAX,
            batch: BatchLimits::default(),
            tail_cache_bytes_max: TAIL_CACHE_BYTES_MAX,
            reads: ReadLimits::default(),
            log: FileLogOptions::default(),
            index: IndexOptions::default(),
            platform: Platform::default(),
        }
    }
}

/// Why a data directory cannot be served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another server has it.
    #[error("{}: another oncelog has this data directory; stop it, or choose another --data-dir", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory cannot be created or locked.
    #[error("{}: {source}; --data-dir must be a directory that can be created and written", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system cannot start another thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] log::LogOpenError),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] LogReadError),
    /// The index cannot be opened.
    #[error(transparent)]
    Index(#[from] index::IndexOpenError),
    /// The index cannot be rebuilt from the log.
    #[error("rebuilding the index from the log: {0}")]
    Rebuild(#[from] IndexError),
    /// The counters cannot be read.
    #[error(transparent)]
    Counters(#[from] CountersError),
}

/// Locks a data directory, creating it if missing. Locked until the file is closed. Blocks for a moment while
/// another holds the lock.
pub fn lock_data_dir(data_dir: &Path) -> Result<File, OpenError> {
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    lock_while(data_dir, || {
        thread::sleep(LOCK_RETRY_INTERVAL);
        Instant::now() < deadline
    })
}

/// Takes the lock, trying again while `waits` returns true.
fn lock_while(data_dir: &Path, mut waits: impl FnMut() -> bool) -> Result<File, OpenError> {
    let path = data_dir.join("LOCK");
    let create = || {
        OsDisk.create_dir(data_dir)?;
        File::create(&path)
    };
    let file = create().map_err(|source| OpenError::Io {
        path: path.clone(),
        source,
    })?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if waits() => {}
            Err(TryLockError::WouldBlock) => {
                let path = data_dir.to_owned();
                return Err(OpenError::Locked { path });
            }
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
    }
}

/// Opens a data directory and starts its threads. Blocks while it recovers.
pub fn open(options: PartitionOptions) -> Result<(Partition, Threads, Recovery), OpenError> {
    let lock = lock_data_dir(&options.data_dir)?;
    open_locked(&options, Some(lock), |tail_min| {
        open_files(&options, tail_min)
    })
}

/// The log in the files of a data directory. Everything below `tail_min` was once durable.
pub(crate) fn open_files(
    options: &PartitionOptions,
    tail_min: Sequence,
) -> Result<FileLog, OpenError> {
    let dir = options.data_dir.join("log");
    let log = FileLogOptions {
        tail_min,
        ..options.log.clone()
    };
    Ok(FileLog::open(&options.platform, &dir, &log)?)
}

/// Opens a data directory that is locked, over the log that `open_log` opens. That log must reach the sequence
/// passed to `open_log`.
pub(crate) fn open_locked<L: Log>(
    options: &PartitionOptions,
    lock: Option<File>,
    open_log: impl FnOnce(Sequence) -> Result<L, OpenError>,
) -> Result<(Partition, Threads, Recovery), OpenError> {
    let data_dir = &options.data_dir;
    let ensured = options.platform.disk.ensure_dir(data_dir);
    ensured.map_err(|source| OpenError::Io {
        path: data_dir.clone(),
        source,
    })?;
    let known = recover::known(&options.platform, data_dir)?;
    let log = open_log(known.tail_min)?;
    let recovered = recover::recover(options, known, &log)?;
    let recovery = recovered.recovery;
    let (partition, threads) = spawn::spawn(options, lock, log, recovered)?;
    Ok((partition, threads, recovery))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_given_up_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut other = Some(lock_data_dir(dir.path()).expect("is free"));
        let mut tries = 0;
        let lock = lock_while(dir.path(), || {
            tries += 1;
            if tries == 3 {
                other = None;
            }
            true
        });
        let _lock = lock.expect("is free again");
        assert_eq!(tries, 3);
        let refused = lock_while(dir.path(), || false);
        assert!(matches!(refused, Err(OpenError::Locked { .. })));
    }
}
