//! The messages between a handler and the writer.

use tokio::sync::oneshot;

use super::{PublishError, ReadError, budget::Share};
use crate::{
    event::{Event, Key, Sequence},
    index::{Entry, KeyHash, Secret},
};

/// The outcome of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored now, with this sequence.
    Stored(Sequence),
    /// An event with the same key and content was already stored; its sequence.
    Duplicate(Sequence),
    /// An event with the same key and different content was already stored; its sequence.
    Conflict(Sequence),
    /// It would begin a topic beyond the limit on topics.
    TopicLimit,
}

/// The outcomes of a request, one per event in order.
pub struct Outcomes {
    /// The outcomes.
    pub outcomes: Vec<Outcome>,
    /// Covers them, and the response made from them.
    pub share: Share,
}

/// What a rejected event means for its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No event of the request is stored.
    OfRequest,
    /// The other events are stored.
    OfEvent,
}

/// An event with the hashes the index uses. They are computed here because there is only one writer.
pub(super) struct HashedEvent {
    pub event: Event,
    pub key_hash: KeyHash,
    pub content_hash: u64,
}

impl HashedEvent {
    pub fn new(event: Event, secret: &Secret) -> Self {
        Self {
            key_hash: secret.key_hash(event.key()),
            content_hash: secret.content_hash(event.encoded()),
            event,
        }
    }
}

/// The events of one request, to be stored in their order.
pub(super) struct Request {
    pub events: Vec<HashedEvent>,
    /// The handler's finds for their keys in the sealed parts of the index: one per event, or empty if there
    /// were none.
    pub sealed: Vec<Option<Entry>>,
    /// The handler searched all sealed parts of the index below this sequence.
    pub looked_to: Sequence,
    pub rejection: Rejection,
    /// Covers the events, then the response.
    pub share: Share,
    pub reply: oneshot::Sender<PublishResult>,
}

/// The reply to a request.
pub(super) type PublishResult = Result<Outcomes, PublishError>;

/// A message to the writer.
pub(super) enum Message {
    Publish(Request),
    /// Finds a key that the sealed parts below `looked_to` do not have.
    Find {
        key: Key,
        hash: KeyHash,
        looked_to: Sequence,
        reply: oneshot::Sender<Result<Option<Entry>, ReadError>>,
    },
    /// The syncer has finished a batch, or panicked.
    Synced,
    /// Check whether the cause of refusals has passed.
    Probe,
    /// Accept no more messages: answer those in the queue, and end.
    Stop,
}
