//! The writer: decides, in order of arrival, what is new.
//!
//! One job that owns the index. It gathers requests into a batch for as long as the
//! [syncer](super::syncer) is busy with the batch before, and hands the batch over when the syncer is
//! free: a group commit without a timer, whose groups grow with the load. It waits for no disk, except for a
//! small batch behind which nothing is queued.
//!
//! Keys are in the index before their batch is durable, so that the next batch can be checked against
//! them. That is sound because the syncer answers batches in their order: a duplicate of an event in
//! flight is acknowledged after that event, or not at all.

use std::{
    collections::{BTreeSet, HashSet},
    sync::mpsc as std_mpsc,
};

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::{
    PublishError,
    clock::Clock,
    health::Monitor,
    look_up::HashedEvent,
    request::{Message, Outcome, Rejection, Request},
    stats::Dropped,
    syncer::{self, Reply, Synced, Work},
};
use crate::{
    event::{Event, Sequence, Topic},
    index::{Entry, Index, IndexError},
    log::{BatchBuilder, Log},
    platform::{Job, Step},
};

/// How much goes into a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// A batch with this many events takes no further request; at least 1.
    pub events_full: usize,
    /// A batch with this many bytes takes no further request.
    pub bytes_full: usize,
    /// A request of at most this many events that comes alone is synced by the writer itself.
    pub lone_events_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            events_full: 4096,
            bytes_full: 512 * 1024,
            lone_events_max: 64,
        }
    }
}

pub(super) struct Writer<L> {
    pub index: Index,
    /// All topics, those of events in flight included.
    pub topics: HashSet<Topic>,
    pub topics_max: usize,
    pub limits: BatchLimits,
    pub clock: Clock,
    pub queue: mpsc::Receiver<Message>,
    pub syncer: syncer::Shared<L>,
    /// To the syncer's thread.
    pub work: std_mpsc::SyncSender<Work>,
    /// One answer of the thread per batch.
    pub synced: std_mpsc::Receiver<Synced>,
    pub monitor: Monitor,
    pub durable_tail: Sequence,
    pub batch: Pending,
    /// The topics that begin in the batch at the syncer; `None` if it is free.
    pub syncing: Option<Vec<Topic>>,
    /// Why nothing more can be stored, once that is so.
    pub failed: Option<PublishError>,
}

/// The batch being gathered, with the requests it answers.
pub(super) struct Pending {
    builder: BatchBuilder,
    replies: Vec<Reply>,
    dropped: Dropped,
    new_topics: Vec<Topic>,
}

impl Pending {
    pub fn new(first_sequence: Sequence) -> Self {
        Self {
            builder: BatchBuilder::new(first_sequence),
            replies: Vec::new(),
            dropped: Dropped::default(),
            new_topics: Vec::new(),
        }
    }

    /// Whether it is one small request.
    fn is_lone(&self, limits: &BatchLimits) -> bool {
        self.replies.len() == 1 && self.builder.count() <= limits.lone_events_max
    }

    fn is_full(&self, limits: &BatchLimits) -> bool {
        let count = self.builder.count();
        count >= limits.events_full || (count > 0 && self.builder.bytes() >= limits.bytes_full)
    }

    fn count(&mut self, event: &Event, outcome: Outcome, topics: &HashSet<Topic>) {
        match outcome {
            Outcome::Stored(_) => {}
            Outcome::TopicLimit => self.dropped.rejected += 1,
            Outcome::Duplicate(_) => self.count_duplicate(event, topics),
            Outcome::Conflict(_) => {
                self.count_duplicate(event, topics);
                self.dropped.conflicts += 1;
            }
        }
    }

    fn count_duplicate(&mut self, event: &Event, topics: &HashSet<Topic>) {
        let name = event.key().topic();
        match self.dropped.duplicates.get_mut(name) {
            Some(duplicates) => *duplicates += 1,
            None => {
                let topic = topics.get(name).expect("a duplicate's topic has an event");
                self.dropped.duplicates.insert(topic.clone(), 1);
            }
        }
    }

    fn refuse(self, error: PublishError) {
        for reply in self.replies {
            reply.refuse(error);
        }
    }
}

/// Ends when it was told to stop and everything in the queue is answered.
impl<L: Log> Job for Writer<L> {
    fn step(&mut self) -> Step {
        match self.synced.try_recv() {
            Ok(synced) => self.after_sync(synced),
            Err(std_mpsc::TryRecvError::Empty) => {}
            Err(std_mpsc::TryRecvError::Disconnected) => self.after_syncer_panic(),
        }
        if self.syncing.is_some() && self.batch.is_full(&self.limits) {
            return Step::Idle;
        }
        match self.queue.try_recv() {
            Ok(message) => self.take(message),
            // Nothing more to gather: the batch goes as it is.
            Err(_) if self.syncing.is_none() && self.batch.is_lone(&self.limits) => {
                self.sync_here()
            }
            Err(_) if self.syncing.is_none() && !self.batch.replies.is_empty() => self.hand_over(),
            Err(TryRecvError::Disconnected) if self.syncing.is_none() => return Step::Ended,
            Err(_) => return Step::Idle,
        }
        if self.syncing.is_none() && self.batch.is_full(&self.limits) {
            self.hand_over();
        }
        Step::Worked
    }

    fn wait(&mut self) {
        if self.syncing.is_some() && (self.batch.is_full(&self.limits) || self.queue.is_closed()) {
            self.await_sync();
        } else if let Some(message) = self.queue.blocking_recv() {
            self.take(message);
        }
    }
}

impl<L: Log> Writer<L> {
    fn take(&mut self, message: Message) {
        match message {
            Message::Publish(request) => match &self.failed {
                Some(error) => _ = request.reply.send(Err(*error)),
                None => self.check(request),
            },
            Message::Find {
                key,
                hash,
                looked_to,
                reply,
            } => _ = reply.send(self.index.get(&key, hash, looked_to).map_err(Into::into)),
            // Only wakes this thread; the answer itself is in `synced`.
            Message::Synced => {}
            Message::Probe => self.probe(),
            Message::Stop => self.queue.close(),
        }
    }

    /// Tells what is new in a request and adds it to the batch.
    fn check(&mut self, request: Request) {
        if let Err(error) = self.index.seal_if_full(self.durable_tail) {
            let error = self.after_index_error(&error);
            _ = request.reply.send(Err(error));
            return;
        }
        if request.rejection == Rejection::OfRequest && !self.topics_fit(&request.events) {
            let rejected = request.events.len() as u64;
            self.batch.dropped.rejected += rejected;
            let reply = Reply::new(
                request,
                Err(PublishError::TopicLimit {
                    max: self.topics_max,
                }),
            );
            self.batch.replies.push(reply);
            return;
        }
        let mut outcomes = Vec::with_capacity(request.events.len());
        for (at, event) in request.events.iter().enumerate() {
            let sealed = request.sealed.get(at).copied().flatten();
            match self.decide(event, sealed, request.looked_to) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    let error = self.after_index_error(&error);
                    _ = request.reply.send(Err(error));
                    return;
                }
            }
        }
        for (HashedEvent { event, .. }, outcome) in request.events.iter().zip(&outcomes) {
            self.batch.count(event, *outcome, &self.topics);
        }
        self.batch.replies.push(Reply::new(request, Ok(outcomes)));
    }

    fn decide(
        &mut self,
        hashed: &HashedEvent,
        sealed: Option<Entry>,
        looked_to: Sequence,
    ) -> Result<Outcome, IndexError> {
        let HashedEvent {
            event,
            key_hash,
            content_hash,
        } = hashed;
        let stored = match sealed {
            Some(entry) => Some(entry),
            None => self.index.get(event.key(), *key_hash, looked_to)?,
        };
        if let Some(stored) = stored {
            let is_same = stored.content_hash == *content_hash;
            return Ok(if is_same {
                Outcome::Duplicate(stored.sequence)
            } else {
                Outcome::Conflict(stored.sequence)
            });
        }
        if self.topics.len() >= self.topics_max && !self.topics.contains(event.key().topic()) {
            return Ok(Outcome::TopicLimit);
        }
        let topics_before = self.batch.builder.topic_count();
        let sequence = self.batch.builder.push(event);
        let first_of_topic = self.batch.builder.topic_count() > topics_before;
        if first_of_topic && !self.topics.contains(event.key().topic()) {
            let topic = Topic::new(event.key().topic()).expect("an event's topic is valid");
            self.batch.new_topics.push(topic.clone());
            self.topics.insert(topic);
        }
        let entry = Entry {
            sequence,
            content_hash: *content_hash,
        };
        self.index.insert(event.key(), *key_hash, entry);
        Ok(Outcome::Stored(sequence))
    }

    /// Whether the limit on topics has room for those that these events would begin.
    fn topics_fit(&self, events: &[HashedEvent]) -> bool {
        if self.topics.len() + events.len() <= self.topics_max {
            return true;
        }
        let begun: BTreeSet<&str> = events
            .iter()
            .map(|hashed| hashed.event.key().topic())
            .filter(|topic| !self.topics.contains(*topic))
            .collect();
        begun.is_empty() || self.topics.len() + begun.len() <= self.topics_max
    }

    /// Gives the batch to the syncer's thread, which is free.
    fn hand_over(&mut self) {
        let work = self.finish_batch();
        // If the syncer has panicked, the next step says so.
        _ = self.work.send(work);
    }

    fn sync_here(&mut self) {
        let work = self.finish_batch();
        let mut answer = None;
        let syncer = self.syncer.clone();
        syncer.lock().sync(work, |synced| answer = Some(synced));
        self.after_sync(answer.expect("one answer per batch"));
    }

    fn finish_batch(&mut self) -> Work {
        let next = self.batch.builder.next_sequence();
        let batch = std::mem::replace(&mut self.batch, Pending::new(next));
        self.syncing = Some(batch.new_topics);
        Work {
            batch: (!batch.builder.is_empty()).then(|| batch.builder.finish(self.clock.now())),
            replies: batch.replies,
            dropped: batch.dropped,
        }
    }

    fn await_sync(&mut self) {
        match self.synced.recv() {
            Ok(synced) => self.after_sync(synced),
            Err(std_mpsc::RecvError) => self.after_syncer_panic(),
        }
    }

    fn after_sync(&mut self, synced: Synced) {
        let begun = self.syncing.take().expect("one answer per batch");
        self.durable_tail = synced.durable_tail;
        let Err(error) = synced.result else {
            self.probe();
            return;
        };
        for topic in begun.iter().chain(&self.batch.new_topics) {
            self.topics.remove(topic);
        }
        self.index.truncate(self.durable_tail);
        let batch = std::mem::replace(&mut self.batch, Pending::new(self.durable_tail));
        batch.refuse(error);
        if !error.passes() {
            self.failed = Some(error);
        }
    }

    /// The syncer has gone, and with it who answers its batch.
    fn after_syncer_panic(&mut self) {
        self.failed.get_or_insert(PublishError::Bug);
        self.syncing = None;
        let batch = std::mem::replace(&mut self.batch, Pending::new(self.durable_tail));
        batch.refuse(PublishError::Bug);
    }

    /// Looks whether what had publishes refused has passed: the log and the index have both room again.
    fn probe(&mut self) {
        if !self.monitor.is_refusing() || self.syncing.is_some() {
            return;
        }
        if let Err(error) = self.index.seal_if_full(self.durable_tail) {
            self.after_index_error(&error);
            return;
        }
        match self.syncer.clone().lock().probe() {
            Ok(()) => self.monitor.heal(),
            Err(error) if error.passes() => {}
            Err(error) => self.failed = Some(error),
        }
    }

    fn after_index_error(&mut self, error: &IndexError) -> PublishError {
        let told = error.into();
        match error {
            IndexError::Full { .. } | IndexError::Seal { .. } => self.monitor.refuse(told, error),
            IndexError::Damaged { .. } => {
                self.failed = Some(told);
                self.monitor.fail(told, error);
            }
        }
        told
    }
}
