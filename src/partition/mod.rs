//! A partition: one log, its index and counters, and the threads that serve them.
//!
//! [`Partition`] is a handle, cheap to clone; [`Threads`] owns what runs behind it. Events go handler -> writer ->
//! syncer -> readers. The writer owns the keys of the index and decides what is new; the syncer owns the end of the
//! log and every step after an append: positions, counters, the durable tail, replies. Work passes between the two
//! through `hand_over`, and is done on the syncer's thread or, for a small batch that comes alone, on the writer's.

mod budget;
mod chunks;
mod clock;
mod cursor;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hand_over;
mod health;
mod lanes;
mod look_up;
mod open;
mod reader;
mod recover;
mod request;
mod scan;
mod spawn;
mod stats;
#[cfg(test)]
mod support;
mod syncer;
mod tail;
mod writer;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
};

pub use self::chunks::ChunkAccount;
#[cfg(test)]
pub(crate) use self::chunks::ChunkMemory;
pub(crate) use self::chunks::ChunkShare;
#[cfg(not(any(test, feature = "simulation")))]
use self::look_up::{Find, LookUp};
pub use self::{
    budget::{Account, Budget, Hand, SMALL_BYTES_MAX, Share},
    cursor::CursorError,
    error::{PublishError, ReadError},
    health::Health,
    open::{INGEST_BYTES_MAX, OpenError, PartitionOptions, TOPICS_MAX, lock_data_dir, open},
    reader::{Chunk, Reader, Start},
    recover::Recovery,
    request::{Outcome, Outcomes, Rejection},
    scan::ReadLimits,
    spawn::Threads,
    stats::{Counters, CountersError, Snapshot, TopicCounters},
    writer::BatchLimits,
};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use self::{
    cursor::forged,
    look_up::{Find, Found, LookUp, LookedUp},
    open::{open_files, open_locked},
    spawn::SAVE_INTERVAL,
};
use self::{
    lanes::Lanes,
    request::Message,
    stats::{Dropped, Stats},
    tail::DurableTail,
};
use crate::{
    event::{Event, Key, Sequence, StoredEvent, Topic},
    index::{Entry, IndexReader},
    log::LogReader,
};

/// A handle on a partition.
#[derive(Clone)]
pub struct Partition(Arc<Shared>);

struct Shared {
    log: Arc<dyn LogReader>,
    index: IndexReader,
    stats: Arc<Stats>,
    tail: Arc<DurableTail>,
    queue: mpsc::Sender<Message>,
    health: watch::Receiver<Health>,
    ingest: Budget,
    lanes: Lanes,
    reads: ReadLimits,
}

/// The outcomes of a submitted request, one per event in order, once all of them are durable.
pub struct PendingOutcomes(oneshot::Receiver<request::PublishResult>);

impl Future for PendingOutcomes {
    type Output = Result<Outcomes, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        // The threads answer every request, unless they panicked.
        Poll::Ready(answer.unwrap_or(Err(PublishError::Bug)))
    }
}

impl Partition {
    /// The memory that requests may take, from their first bytes until their responses have been sent. A caller
    /// takes its share from here first, and hands it over with the request.
    pub fn ingest(&self) -> &Budget {
        &self.0.ingest
    }

    /// Puts the events of one request in the queue, after those of earlier calls. Waits while the queue
    /// is full. `share` covers the events, and comes back with the outcomes.
    pub async fn submit(
        &self,
        events: Vec<Event>,
        rejection: Rejection,
        mut share: Share,
    ) -> Result<PendingOutcomes, PublishError> {
        share.arrived();
        let look_up = LookUp::new(&self.0.index, events);
        let looked_up = if look_up.reads_disk() {
            let looked_up = spawn_blocking(move || look_up.run()).await;
            looked_up.map_err(|error| {
                error::of_task(&error, PublishError::Bug, PublishError::Stopping)
            })??
        } else {
            look_up.run()?
        };
        let (message, outcomes) = looked_up.into_message(rejection, share);
        let sent = self.0.queue.send(message).await;
        sent.map_err(|_| self.gone(PublishError::Bug, PublishError::Stopping))?;
        Ok(PendingOutcomes(outcomes))
    }

    /// Starts looking events up, for a caller that submits them step by step.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn look_up(&self, events: Vec<Event>) -> LookUp {
        LookUp::new(&self.0.index, events)
    }

    /// Puts looked up events in the queue; none if it is full or closed.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn try_submit(
        &self,
        looked_up: LookedUp,
        rejection: Rejection,
        share: Share,
    ) -> Option<PendingOutcomes> {
        let (message, outcomes) = looked_up.into_message(rejection, share);
        self.0.queue.try_send(message).ok()?;
        Some(PendingOutcomes(outcomes))
    }

    /// Counts events that broke a limit and were not submitted.
    pub fn count_rejected(&self, rejected: u64) {
        self.0.stats.add_dropped(&Dropped {
            rejected,
            ..Dropped::default()
        });
    }

    /// The stored event with this key, if there is one and it is durable.
    pub async fn get(&self, key: Key) -> Result<Option<StoredEvent>, ReadError> {
        let Some(entry) = self.find(key.clone()).await? else {
            return Ok(None);
        };
        let partition = self.clone();
        let read = move || partition.read_event(&key, entry.sequence);
        self.0.lanes.get(read).await?
    }

    async fn find(&self, key: Key) -> Result<Option<Entry>, ReadError> {
        let mut find = Find::new(&self.0.index, key);
        if find.reads_disk() {
            let looked = self.0.lanes.get(move || {
                let sealed = find.run();
                (find, sealed)
            });
            let (rest, sealed) = looked.await?;
            if let Some(entry) = sealed? {
                return Ok(Some(entry));
            }
            find = rest;
        }
        let (message, found) = find.into_message();
        let sent = self.0.queue.send(message).await;
        sent.map_err(|_| self.gone(ReadError::Bug, ReadError::Stopping))?;
        // The writer answers everyone, unless it panicked.
        found.await.map_err(|_| ReadError::Bug)?
    }

    /// Starts finding a key, for a caller that does it step by step.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn look_for(&self, key: Key) -> Find {
        Find::new(&self.0.index, key)
    }

    /// Asks the writer for keys that are not sealed; none if the queue is full or closed.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn try_find(&self, find: Find) -> Option<Found> {
        let (message, found) = find.into_message();
        self.0.queue.try_send(message).ok()?;
        Some(found)
    }

    /// Why the writer accepts no more messages.
    fn gone<E>(&self, bug: E, stopping: E) -> E {
        match *self.0.health.borrow() {
            Health::Failed(PublishError::Bug) => bug,
            Health::Failed(_) | Health::Refusing(_) | Health::Serving => stopping,
        }
    }

    /// The event at a sequence found for its key, if it is durable. Blocks on the disk.
    pub(crate) fn read_event(
        &self,
        key: &Key,
        at: Sequence,
    ) -> Result<Option<StoredEvent>, ReadError> {
        if at >= self.durable_tail() {
            return Ok(None);
        }
        let topic = Topic::new(key.topic()).expect("a key is made of valid names");
        let batch = match self.0.tail.recent(at) {
            Some(batch) => Some(batch),
            None => self.0.log.read(at, Some(&topic))?,
        };
        let mut events = batch.iter().flat_map(|batch| batch.events_of(&topic));
        let found = events.find(|event| event.sequence == at);
        // An event found in flight may have been refused since, and another may have its sequence.
        Ok(found.filter(|event| {
            Event::from_stored(event.encoded.clone()).is_ok_and(|event| event.key() == key)
        }))
    }

    /// Every event below it is durable.
    pub fn durable_tail(&self) -> Sequence {
        self.0.tail.get()
    }

    /// Whether events can be stored, now and on each change.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.clone()
    }

    /// The counters over all topics, and the number of topics.
    pub fn totals(&self) -> (Counters, usize) {
        self.0.stats.totals()
    }

    /// The counters of the first `max` topics by name that begin with `prefix`.
    pub fn topics(&self, prefix: &str, max: usize) -> Vec<(Topic, TopicCounters)> {
        self.0.stats.topics(prefix, max)
    }

    /// The bytes of the log and the index on disk. Asks the file system; call it on a blocking thread.
    pub fn storage_bytes(&self) -> u64 {
        self.0.log.storage_bytes() + self.0.index.storage_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        index::IndexOptions,
        partition::support::{event, opened, opened_with, soon, stop, store},
    };

    /// A filter that cannot exclude a key does not say where the key is.
    #[tokio::test]
    async fn an_event_behind_a_false_alarm_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut options = PartitionOptions::new(dir.path());
        options.index = IndexOptions {
            keys_per_generation: 1000,
            ..IndexOptions::default()
        };
        let (partition, threads) = opened_with(options).await;
        for first in [0, 1000] {
            let events = (first..first + 1000).map(|id| event("t", id, 0));
            store(&partition, events.collect()).await;
        }
        while partition.0.index.generations().is_empty() {
            tokio::task::yield_now().await;
        }
        let (view, secret) = (partition.0.index.view(), partition.0.index.secret());
        let alarms = (10_000..1_000_000)
            .map(|id| event("t", id, 0))
            .filter(|event| view.may_contain(event.key(), secret.key_hash(event.key())));
        let [stored, absent]: [Event; 2] = alarms
            .take(2)
            .collect::<Vec<_>>()
            .try_into()
            .expect("there are two");
        store(&partition, vec![stored.clone()]).await;
        let found = soon(partition.get(stored.key().clone())).await;
        let found = found.expect("read").expect("it is stored");
        assert_eq!(found.encoded, *stored.encoded());
        let found = soon(partition.get(absent.key().clone())).await;
        assert!(found.expect("read").is_none());
        drop((view, partition));
        stop(threads).await;
    }

    #[tokio::test]
    async fn an_event_in_a_reused_sequence_is_not_returned() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let (stored, refused) = (event("t", 1, 0), event("t", 2, 0));
        store(&partition, vec![stored.clone()]).await;
        let found = partition.read_event(stored.key(), 1).expect("read");
        assert_eq!(
            found.map(|event| event.encoded),
            Some(stored.encoded().clone())
        );
        let found = partition.read_event(refused.key(), 1).expect("read");
        assert!(found.is_none());
        stop(threads).await;
    }
}
