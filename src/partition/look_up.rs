//! Looks up the events of a request, or one key, in the sealed parts of the index, before the writer sees them.
//!
//! Sealed parts never change, so this needs no lock and runs beside the writer, which then looks only where
//! this cannot.

use tokio::sync::oneshot;

use super::{
    PublishError, ReadError,
    budget::Share,
    request::{HashedEvent, Message, PublishResult, Rejection, Request},
};
use crate::{
    event::{Event, FIRST_SEQUENCE, Key, Sequence},
    index::{Entry, IndexError, IndexReader, KeyHash, View},
};

/// Events whose keys have been checked against the filters.
pub(crate) struct LookUp {
    events: Vec<HashedEvent>,
    view: View,
    /// Those that the filters do not exclude.
    maybe: Vec<usize>,
}

/// Events and their sealed entries.
pub(crate) struct LookedUp {
    events: Vec<HashedEvent>,
    sealed: Vec<Option<Entry>>,
    looked_to: Sequence,
}

impl LookUp {
    /// Hashes events and probes the filters, in memory.
    pub fn new(index: &IndexReader, events: Vec<Event>) -> Self {
        let (view, secret) = (index.view(), index.secret());
        let hash = |event| HashedEvent::new(event, &secret);
        let events: Vec<_> = events.into_iter().map(hash).collect();
        let may_contain = |at: &usize| {
            let HashedEvent {
                event, key_hash, ..
            } = &events[*at];
            view.may_contain(event.key(), *key_hash)
        };
        let maybe = (0..events.len()).filter(may_contain).collect();
        Self {
            events,
            view,
            maybe,
        }
    }

    /// Whether [`LookUp::run`] reads the disk, and so does not belong on an async worker.
    pub fn reads_disk(&self) -> bool {
        !self.maybe.is_empty()
    }

    /// Looks up the rest. Fails if the index cannot be read at the moment; the request must be sent again.
    pub fn run(self) -> Result<LookedUp, PublishError> {
        let Self {
            events,
            view,
            maybe,
        } = self;
        if maybe.is_empty() {
            return Ok(LookedUp {
                events,
                sealed: Vec::new(),
                looked_to: view.sealed_to(),
            });
        }
        let mut sealed = vec![None; events.len()];
        let found = maybe.into_iter().try_for_each(|at| {
            let HashedEvent {
                event, key_hash, ..
            } = &events[at];
            sealed[at] = view.get(event.key(), *key_hash)?;
            Ok::<_, IndexError>(())
        });
        let looked_to = match found {
            Ok(()) => view.sealed_to(),
            // The writer handles damage, and fails for everyone.
            Err(IndexError::Damaged { .. }) => FIRST_SEQUENCE,
            Err(error) => {
                tracing::error!(%error, "a request was refused");
                return Err((&error).into());
            }
        };
        Ok(LookedUp {
            events,
            sealed,
            looked_to,
        })
    }
}

impl LookedUp {
    /// The message for the writer, and the channel for its reply.
    pub(super) fn into_message(
        self,
        rejection: Rejection,
        share: Share,
    ) -> (Message, oneshot::Receiver<PublishResult>) {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            events: self.events,
            sealed: self.sealed,
            looked_to: self.looked_to,
            rejection,
            share,
            reply,
        };
        (Message::Publish(request), answer)
    }
}

/// The writer's reply.
pub(crate) type Found = oneshot::Receiver<Result<Option<Entry>, ReadError>>;

/// A key to find: first in the sealed parts, then by the writer.
pub(crate) struct Find {
    key: Key,
    hash: KeyHash,
    view: View,
}

impl Find {
    pub fn new(index: &IndexReader, key: Key) -> Self {
        Self {
            hash: index.secret().key_hash(&key),
            view: index.view(),
            key,
        }
    }

    /// Whether [`Find::run`] reads the disk, and so does not belong on an async worker. If not, no sealed
    /// part has the key.
    pub fn reads_disk(&self) -> bool {
        self.view.may_contain(&self.key, self.hash)
    }

    /// Looks in the sealed parts. Filters give false alarms: the writer knows the keys this does not find.
    pub fn run(&self) -> Result<Option<Entry>, IndexError> {
        self.view.get(&self.key, self.hash)
    }

    /// The message for the writer, and the channel for its reply.
    pub(super) fn into_message(self) -> (Message, Found) {
        let (reply, found) = oneshot::channel();
        let find = Message::Find {
            key: self.key,
            hash: self.hash,
            looked_to: self.view.sealed_to(),
            reply,
        };
        (find, found)
    }
}
