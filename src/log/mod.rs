//! The log: batches of events, durable in order. It decides what is stored; all else is derived from it.
//!
//! Owns [`Log`] and [`LogReader`], the interface of every log, their errors, and batches, the bytes that
//! every log stores. `files` has the log in files. Knows nothing of duplicates, acks or streams.

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
/// Appends may overlap: a replicated log accepts the next batch before it knows the outcome of the last. They complete
/// in the order in which they began, and once one fails, all that began before its outcome is handed out fail as well.
/// The log in files completes each before [`begin_append`](Self::begin_append) returns.
pub trait Log: Send + 'static {
    /// The reader of this log.
    type Reader: LogReader;

    /// The sequence after the last completed batch; everything below it is durable.
    fn tail(&self) -> Sequence;

    /// How many appends may be in flight, that is, begun without their outcome handed out; at least one.
    fn in_flight_max(&self) -> usize;

    /// Starts to append `batch`. May block on the disk; does not wait for other appends.
    ///
    /// # Panics
    /// If `batch` does not start where the last one begun ends, or, when none is in flight, at
    /// [`tail`](Self::tail); or if too many are in flight.
    fn begin_append(&mut self, batch: &Batch);

    /// The outcome of the oldest append whose outcome has not been handed out; on `Ok` its batch is durable. While it
    /// is unknown, `cx` is woken once it is known. A log that lost a reply finds out what it holds before it reports an
    /// outcome.
    fn poll_append(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AppendError>>;

    /// Whether there is space for the next append, as far as known. Retries a refused append's preparation
    /// when it is time, and does not wait for it.
    fn prepare(&mut self) -> Result<(), AppendError>;

    /// A reader of this log. It stays usable beside the writer and after it.
    fn reader(&self) -> Self::Reader;
}

/// Reads a log beside its writer. Give each stream its own: a reader remembers where it is.
pub trait LogReader: Send + Sync + 'static {
    /// The batch with `sequence`, or `None` if the log does not have it. Blocks on the disk.
    ///
    /// With a topic, at least that topic's events are loaded and checked; without one, all are.
    fn read(
        &self,
        sequence: Sequence,
        topic: Option<&Topic>,
    ) -> Result<Option<Batch>, LogReadError>;

    /// The [checksum](Batch::checksum) of the batch with `sequence`, or `None` if the log does not have it.
    /// Blocks on the disk, and reads no events.
    fn batch_checksum(&self, sequence: Sequence) -> Result<Option<u32>, LogReadError>;

    /// Another reader of the same log, with nothing read ahead.
    fn fresh(&self) -> Arc<dyn LogReader>;

    /// The id of this log, drawn at random when it was created; it identifies cursors of other logs.
    fn id(&self) -> u64;

    /// The sequence of the first event in the log; the tail if there is none.
    fn head(&self) -> Sequence;

    /// The bytes of the log's files, including space set aside for coming batches.
    fn storage_bytes(&self) -> u64;
}

/// The underlying error, for the server's log.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an append failed.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// There is no space. The batch is not in the log; it may be appended again, which succeeds when there is
    /// space.
    #[error("the log has no space: {0}")]
    Full(Cause),
    /// Space for the next append cannot be set aside, for a reason other than a full disk. The batch is not in the
    /// log; it may be appended again later.
    #[error("the log cannot set space aside: {0}")]
    NotReady(Cause),
    /// Another writer has appended to the log. It has neither this batch nor any later one of this writer.
    #[error("another writer has appended to the log: {0}")]
    Fenced(Cause),
    /// Only reopening the log shows whether it has the batch. Every later append fails with this same error.
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
    /// The bytes read are not those written.
    #[error(
        "the log is damaged: {} at offset {offset}: {what}; `oncelog verify` lists all damage",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the batch starts in it, in bytes.
        offset: u64,
        /// The fault.
        what: String,
    },
}
