//! What goes from a handler to the writer and back.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    event::{Event, Key, Sequence},
    index::{Entry, IndexError},
    log::AppendError,
};

/// What became of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored now.
    Stored(Sequence),
    /// An event of the same key and content is stored; its sequence.
    Duplicate(Sequence),
    /// An event of the same key and another content is stored; its sequence.
    Conflict(Sequence),
    /// It would begin a topic beyond the limit on topics.
    TopicLimit,
}

/// What an event that cannot be accepted does to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No event of the request is stored.
    OfRequest,
    /// The other events are stored.
    OfEvent,
}

/// Why no event of a request was acknowledged. Some may be stored all the same, unless it says
/// otherwise; resending is safe.
#[derive(Clone, Debug, Error)]
pub enum PublishError {
    /// The request would begin a topic beyond the limit. None of its events is stored.
    #[error(
        "a new topic beyond the limit of {max} topics (--max-topics); no event of the request is stored"
    )]
    TopicLimit {
        /// The limit.
        max: usize,
    },
    /// There is no disk space for the log or its index. Heals when space returns.
    #[error("the server's disk is full; what was acknowledged is safe, send the rest again later")]
    DiskFull,
    /// The index cannot be written, and memory must not grow without it. The server keeps trying.
    #[error("the server cannot write its index at the moment, and keeps trying; send again later")]
    IndexBehind,
    /// A write or sync failed, or the index is damaged; the partition takes no more events until the
    /// server is restarted.
    #[error("the server cannot store events until it is restarted; its log says why")]
    Failed,
    /// The partition is stopping.
    #[error("the server is stopping; connect again and resend what was not acknowledged")]
    Stopping,
}

impl From<&AppendError> for PublishError {
    fn from(error: &AppendError) -> Self {
        match error {
            AppendError::Full { .. } => Self::DiskFull,
            AppendError::Failed { .. } => Self::Failed,
        }
    }
}

/// The events of one request, to be stored in their order.
pub(super) struct Request {
    pub events: Vec<Event>,
    /// What a handler found under their keys in the sealed parts of the index: for each event, or, if there
    /// was nothing, for none.
    pub sealed: Vec<Option<Entry>>,
    /// The handler looked into all sealed parts of the index below it.
    pub looked_to: Sequence,
    pub rejection: Rejection,
    /// Held until the request is answered.
    pub permit: OwnedSemaphorePermit,
    pub reply: oneshot::Sender<Answer>,
}

/// The outcomes of a request, one per event in order.
pub(super) type Answer = Result<Vec<Outcome>, PublishError>;

/// What the writer is told.
pub(super) enum Message {
    Publish(Request),
    /// Finds a key that the sealed parts below `looked_to` do not hold.
    Find {
        key: Key,
        looked_to: Sequence,
        reply: oneshot::Sender<Result<Option<Entry>, Arc<IndexError>>>,
    },
    /// The syncer has finished a batch.
    Synced,
    /// Take no further message: answer what is in the queue, and end.
    Stop,
}
