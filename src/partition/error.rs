//! Why a publish or a read failed, in terms a caller can act on.
//!
//! One variant for each thing a caller can do about it. Errors of the log and the index are converted where
//! they occur; the edges map these variants and nothing below them.

use std::sync::Arc;

use thiserror::Error;
use tokio::task::JoinError;

use super::cursor::CursorError;
use crate::{
    index::IndexError,
    log::{AppendError, LogReadError},
};

/// Why no event of a request was acknowledged. This request stored none of them, unless it is
/// [`MaybeStored`](Self::MaybeStored) or [`Bug`](Self::Bug); resending is safe in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The request would begin a topic beyond the limit. None of its events is stored.
    #[error(
        "a new topic beyond the limit of {max} topics (--max-topics), which only the server's operator can raise; no event \
         of the request is stored"
    )]
    TopicLimit {
        /// The limit.
        max: usize,
    },
    /// The disk is full, for the log or its index. Heals when there is space.
    #[error("the server's disk is full; acknowledged events are safe, send the rest again later")]
    DiskFull,
    /// The index cannot be written, and memory must not grow without bound meanwhile. The server keeps
    /// trying.
    #[error("the server cannot write its index at the moment, and keeps trying; send again later")]
    IndexBehind,
    /// Space for the log cannot be set aside, for a reason other than a full disk. The server keeps trying.
    #[error(
        "the server cannot set space aside for its log at the moment, and keeps trying; send again later"
    )]
    LogBehind,
    /// The index cannot be read at the moment; that says nothing about its content.
    #[error("the server cannot read its index at the moment; send again later")]
    IndexUnreadable,
    /// A write or sync failed, or the index is damaged; the partition accepts no events until a restart.
    #[error("the server cannot store events until it is restarted; its log says why")]
    Failed,
    /// A part of the server panicked; the partition accepts no events until a restart, which shows which of
    /// these are stored.
    #[error(
        "a bug in the server stopped it from storing events until it is restarted; its log says where"
    )]
    Bug,
    /// An append with this request's events failed half-way. The partition accepts no events until a restart, which
    /// shows which of these are stored.
    #[error(
        "the server failed while it stored these events: they may be stored or not, and sending them again is safe; it accepts \
         no more until it is restarted"
    )]
    MaybeStored,
    /// Another server has taken over the log. This one stores nothing more.
    #[error("another server has taken over; connect to it and resend everything unacknowledged")]
    Fenced,
    /// The partition is stopping.
    #[error("the server is stopping; connect again and resend everything unacknowledged")]
    Stopping,
}

impl From<&AppendError> for PublishError {
    fn from(error: &AppendError) -> Self {
        match error {
            AppendError::Full(_) => Self::DiskFull,
            AppendError::NotReady(_) => Self::LogBehind,
            AppendError::Fenced(_) => Self::Fenced,
            AppendError::Unknown(_) => Self::MaybeStored,
        }
    }
}

impl From<&IndexError> for PublishError {
    fn from(error: &IndexError) -> Self {
        match error {
            IndexError::Full { .. } => Self::DiskFull,
            IndexError::Seal { .. } => Self::IndexBehind,
            IndexError::Unreadable { .. } => Self::IndexUnreadable,
            IndexError::Damaged { .. } => Self::Failed,
        }
    }
}

/// Why stored events could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// The cursor is refused.
    #[error("cursor: {0}")]
    Cursor(#[from] CursorError),
    /// Stored events are damaged. The text names the file and the offset.
    #[error("{0}")]
    LogDamaged(Arc<str>),
    /// The log cannot be read at the moment; that says nothing about its content.
    #[error("the server cannot read its log at the moment; try again later")]
    LogUnreadable,
    /// The index is damaged. The next start rebuilds it from the log.
    #[error("the server's index is damaged until it is restarted; its log says where")]
    IndexDamaged,
    /// The index cannot be read at the moment; that says nothing about its content.
    #[error("the server cannot read its index at the moment; try again later")]
    IndexUnreadable,
    /// A part of the server panicked.
    #[error(
        "a bug in the server stopped it from answering until it is restarted; its log says where"
    )]
    Bug,
    /// The partition is stopping.
    #[error("the server is stopping; connect again")]
    Stopping,
}

/// Causes stay in the server's log, where each is written once: here.
impl From<LogReadError> for ReadError {
    fn from(error: LogReadError) -> Self {
        tracing::error!(%error, "stored events cannot be read");
        match error {
            LogReadError::Damaged { .. } => Self::LogDamaged(error.to_string().into()),
            LogReadError::Io { .. } => Self::LogUnreadable,
        }
    }
}

impl From<IndexError> for ReadError {
    fn from(error: IndexError) -> Self {
        tracing::error!(%error, "the index cannot be read");
        match error {
            IndexError::Damaged { .. } => Self::IndexDamaged,
            // The index is occupied with a failed write, which it retries.
            IndexError::Full { .. } | IndexError::Seal { .. } | IndexError::Unreadable { .. } => {
                Self::IndexUnreadable
            }
        }
    }
}

impl PublishError {
    /// Whether the cause may pass without a restart.
    pub(super) fn passes(self) -> bool {
        match self {
            Self::DiskFull | Self::IndexBehind | Self::IndexUnreadable | Self::LogBehind => true,
            Self::TopicLimit { .. }
            | Self::Failed
            | Self::Bug
            | Self::MaybeStored
            | Self::Fenced
            | Self::Stopping => false,
        }
    }
}

impl ReadError {
    /// Why a task did not finish.
    pub(super) fn of_task(error: &JoinError) -> Self {
        of_task(error, Self::Bug, Self::Stopping)
    }
}

/// A task that did not finish has panicked, or the runtime is shutting down.
pub(super) fn of_task<E>(error: &JoinError, bug: E, stopping: E) -> E {
    if error.is_panic() { bug } else { stopping }
}
