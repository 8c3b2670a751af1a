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

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll},
};

use thiserror::Error;

pub use batch::Batch;
pub use builder::{BATCH_BYTES_MAX, BatchBuilder};
pub use files::{
    Checked, Damage, FileLog, FileLogOptions, FileReader, LogOpenError, ReadWindows, check,
};
pub use header::NotABatch;

use crate::event::{Sequence, Topic};

/// An append-only sequence of batches with one writer.
///
/// Appends may overlap: a replicated log takes the next batch before it knows what became of the last. They complete in
/// the order in which they were begun, and once one fails, all that are begun before its outcome is given out fail as
/// well. The log in files completes each before [`begin_append`](Self::begin_append) returns.
pub trait Log: Send + 'static {
    /// What reads this log.
    type Reader: LogReader;

    /// The sequence after the last batch that is complete; everything below it is durable.
    fn tail(&self) -> Sequence;

    /// How many appends may be begun and not given out as complete, at least one.
    fn in_flight_max(&self) -> usize;

    /// Begins to append `batch`. May block on the disk; does not wait for other appends.
    ///
    /// # Panics
    /// If `batch` does not begin where the last one that was begun ends, or, when none is in flight, at
    /// [`tail`](Self::tail); or if too many are in flight.
    fn begin_append(&mut self, batch: &Batch);

    /// What became of the oldest append that was not given out yet; on `Ok` its batch is durable. If that is not known,
    /// `cx` is woken when it is. A log whose answer was lost finds out what it holds before it says anything.
    fn poll_append(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AppendError>>;

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
    fn read(
        &self,
        sequence: Sequence,
        topic: Option<&Topic>,
    ) -> Result<Option<Batch>, LogReadError>;

    /// The [checksum](Batch::checksum) of the batch that contains `sequence`, or `None` if the log does not hold
    /// it. Blocks on the disk, and reads no events.
    fn batch_checksum(&self, sequence: Sequence) -> Result<Option<u32>, LogReadError>;

    /// Another reader of the same log, with nothing read ahead.
    fn fresh(&self) -> Arc<dyn LogReader>;

    /// The id of this log, drawn at random when it was created: a cursor of another log is told by it.
    fn id(&self) -> u64;

    /// The sequence of the first event that is in the log; the tail if there is none.
    fn head(&self) -> Sequence;

    /// The bytes of the log's files, with what is set aside for coming batches.
    fn storage_bytes(&self) -> u64;
}

/// What lies behind an error, in words for the server's log.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an append did not end well.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// There is no space. The batch is not in the log; it may be appended again, and succeeds when there is
    /// space.
    #[error("the log has no space: {0}")]
    Full(Cause),
    /// The space of the next append cannot be set aside, for another reason than a lack of it. The batch is not in the
    /// log; it may be appended again later.
    #[error("the log cannot set space aside: {0}")]
    NotReady(Cause),
    /// Another writer has appended to the log. The batch is not in it, nor will be any other of this writer.
    #[error("another writer has appended to the log: {0}")]
    Fenced(Cause),
    /// Whether the batch is in the log shows when the log is opened again. Every later append fails with this same
    /// error.
    #[error("an append to the log failed, and its batch may be stored or not: {0}")]
    Unknown(Cause),
}

/// Why a batch cannot be read.
#[derive(Clone, Debug, Error)]
pub enum LogReadError {
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
