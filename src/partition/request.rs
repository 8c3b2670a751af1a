//! What goes from a handler to the writer and back.

use tokio::sync::oneshot;

use super::{PublishError, ReadError, budget::Share, look_up::HashedEvent};
use crate::{
    event::{Key, Sequence},
    index::{Entry, KeyHash},
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

/// The outcomes of a request, one per event in order.
pub struct Outcomes {
    /// The outcomes.
    pub outcomes: Vec<Outcome>,
    /// Covers them, and the answer that is made of them.
    pub share: Share,
}

/// What an event that cannot be accepted does to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No event of the request is stored.
    OfRequest,
    /// The other events are stored.
    OfEvent,
}

/// The events of one request, to be stored in their order.
pub(super) struct Request {
    pub events: Vec<HashedEvent>,
    /// What a handler found under their keys in the sealed parts of the index: for each event, or, if there
    /// was nothing, for none.
    pub sealed: Vec<Option<Entry>>,
    /// The handler looked into all sealed parts of the index below it.
    pub looked_to: Sequence,
    pub rejection: Rejection,
    /// Covers the events, and goes on with the answer.
    pub share: Share,
    pub reply: oneshot::Sender<PublishResult>,
}

/// What a request is answered with.
pub(super) type PublishResult = Result<Outcomes, PublishError>;

/// What the writer is told.
pub(super) enum Message {
    Publish(Request),
    /// Finds a key that the sealed parts below `looked_to` do not hold.
    Find {
        key: Key,
        hash: KeyHash,
        looked_to: Sequence,
        reply: oneshot::Sender<Result<Option<Entry>, ReadError>>,
    },
    /// The syncer has finished a batch, or panicked.
    Synced,
    /// Look whether what had publishes refused has passed.
    Probe,
    /// Take no further message: answer what is in the queue, and end.
    Stop,
}
