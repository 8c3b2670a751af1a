//! The log: batches of events, durable in order. It decides what is stored; all else is derived from it.
//!
//! Owns [`Log`] and [`LogReader`], what every log can do, their errors, and batches, the bytes that every log
//! stores. `files` has the log in files. Knows nothing of duplicates, acks or streams.

mod batch;
mod builder;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod header;
#[cfg(test)]
mod support;

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

pub use batch::Batch;
pub use builder::{BATCH_BYTES_MAX, BatchBuilder};
pub use files::{Checked, Damage, FileLog, FileLogOptions, FileReader, OpenError, check};
pub use header::NotABatch;

use crate::event::{Sequence, Topic};

/// An append-only sequence of batches with one writer.
pub trait Log: Send + 'static {
    /// What reads this log.
    type Reader: LogReader;

    /// The sequence that the next batch must begin with; everything below it is in the log.
    fn tail(&self) -> Sequence;

    /// Appends `batch`; it is durable on return. Blocks for as long as that takes.
    ///
    /// # Panics
    /// If the batch does not begin at [`tail`](Self::tail).
    fn append(&mut self, batch: &Batch) -> Result<(), AppendError>;

    /// Whether the next append has its space, for all that is known. Tries again what an append was refused
    /// for, when it is time, and does not wait for it.
    fn prepare(&mut self) -> Result<(), AppendError>;

    /// A reader of this log. It stays usable beside the writer and after it.
    fn reader(&self) -> Self::Reader;
}

/// Reads a log beside its writer. Give each stream its own: a reader remembers where it is.
pub trait LogReader: Send + Sync + 'static {
    /// The batch that contains `sequence`, or `None` if the log does not hold it. Blocks on the disk.
    ///
    /// With a topic, at least that topic's events of the batch are loaded and checked; without, all are.
    fn read(&self, sequence: Sequence, topic: Option<&Topic>) -> Result<Option<Batch>, ReadError>;

    /// The [checksum](Batch::checksum) of the batch that contains `sequence`, or `None` if the log does not hold
    /// it. Blocks on the disk, and reads no events.
    fn batch_checksum(&self, sequence: Sequence) -> Result<Option<u32>, ReadError>;

    /// Another reader of the same log, with nothing read ahead.
    fn fresh(&self) -> Arc<dyn LogReader>;

    /// The id of this log, drawn at random when it was created: a cursor of another log is told by it.
    fn id(&self) -> u64;

    /// The bytes of the log's files, with what is set aside for coming batches.
    fn storage_bytes(&self) -> u64;
}

/// Why a batch is not in the log.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// There is no space for the next segment. Nothing was written; the same batch may be tried again
    /// later, and succeeds when there is space.
    #[error("no space for the next {bytes} bytes of the log in {}: {source}", path.display())]
    Full {
        /// The directory of the log.
        path: PathBuf,
        /// What the next segment needs.
        bytes: u64,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// The next segment cannot be set aside, for another reason than a full disk. Nothing was written; the
    /// same batch may be tried again later.
    #[error("the next segment of the log cannot be set aside at {}: {source}", path.display())]
    NotPrepared {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// A write or sync failed. Whether the batch is in the log shows when it is opened again: every later
    /// append fails with this same error, because what a failed sync lost does not come back by a second.
    #[error("writing the log failed at {}: {source}", path.display())]
    Failed {
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        source: Arc<io::Error>,
    },
}

/// Why a batch cannot be read.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("reading the log failed at {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// What was read is not what was written.
    #[error(
        "the log is damaged: {} at offset {offset}: {what}; `oncelog verify` lists all damage",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the batch begins in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}
