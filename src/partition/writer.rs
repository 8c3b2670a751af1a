//! The writer: decides, in order of arrival, what is new.
//!
//! One job that owns the index. It gathers requests into a batch while the [syncer](super::syncer) has as many
//! batches as the log takes, and [hands over](super::hand_over) the batch when there is room: a group commit without
//! a timer, whose groups grow with the load. It waits for the disk only for a small batch with nothing queued behind
//! it.
//!
//! Keys enter the index before their batch is durable, so that the next batch can be checked against them.
//! That is sound because the syncer answers batches in order: a duplicate of an event in flight is
//! acknowledged after that event, or not at all.

use std::collections::{BTreeSet, HashSet};

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::{
    PublishError,
    clock::Clock,
    hand_over::{Ended, HandOver, Refused, SyncerGone},
    health::Monitor,
    request::{HashedEvent, Message, Outcome, Rejection, Request},
    stats::Dropped,
    syncer::{Reply, Work},
};
use crate::{
    event::{Event, Sequence, Topic},
    index::{Entry, Index, IndexError},
    log::{BatchBuilder, Log},
    platform::{Job, Step},
};

/// When a batch is full.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// A batch with this many events accepts no further request; at least 1.
    pub events_full: usize,
    /// A batch with this many bytes accepts no further request.
    pub bytes_full: usize,
    /// The writer itself syncs a request of at most this many events that comes alone.
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
    /// All topics, including those of events in flight.
    pub topics: HashSet<Topic>,
    pub topics_max: usize,
    pub limits: BatchLimits,
    pub clock: Clock,
    pub queue: mpsc::Receiver<Message>,
    pub syncer: HandOver<L>,
    pub monitor: Monitor,
    pub durable_tail: Sequence,
    pub batch: Pending,
    /// Why nothing more can be stored, if that is so.
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

/// Ends after a stop message, once every request in the queue is answered.
impl<L: Log> Job for Writer<L> {
    fn step(&mut self) -> Step {
        while let Some(taken) = self.syncer.try_take() {
            self.after_take(taken);
        }
        // First of all: a full batch accepts no further request.
        if self.batch.is_full(&self.limits) {
            if self.syncer.is_full() {
                return Step::Idle;
            }
            self.hand_over();
            return Step::Worked;
        }
        match self.queue.try_recv() {
            Ok(message) => self.take(message),
            // Nothing more to gather: the batch goes as it is.
            Err(_) if self.syncer.is_idle() && self.batch.is_lone(&self.limits) => self.sync_here(),
            Err(_) if !self.syncer.is_full() && !self.batch.replies.is_empty() => self.hand_over(),
            Err(TryRecvError::Disconnected) if self.syncer.is_idle() => return Step::Ended,
            Err(_) => return Step::Idle,
        }
        Step::Worked
    }

    fn wait(&mut self) {
        let is_stuck = self.syncer.is_full() && self.batch.is_full(&self.limits);
        if is_stuck || (!self.syncer.is_idle() && self.queue.is_closed()) {
            let taken = self.syncer.take();
            self.after_take(taken);
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
            // Only wakes this thread; the outcome itself is in `syncer`.
            Message::Synced => {}
            Message::Probe => self.probe(),
            Message::Stop => self.queue.close(),
        }
    }

    /// Decides what is new in a request and adds it to the batch.
    fn check(&mut self, mut request: Request) {
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
        if let Err(error) = self.finish_look_up(&mut request) {
            let error = self.after_index_error(&error);
            _ = request.reply.send(Err(error));
            return;
        }
        let mut outcomes = Vec::with_capacity(request.events.len());
        for (at, event) in request.events.iter().enumerate() {
            let sealed = request.sealed.get(at).copied().flatten();
            match self.decide(event, sealed, request.looked_to) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    let mut error = self.after_index_error(&error);
                    if matches!(error, PublishError::Failed) {
                        // The events before it are in the batch.
                        error = PublishError::MaybeStored;
                    }
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

    /// Searches the parts sealed since the handler looked, first of all: reading the disk may fail, and afterwards
    /// events of the request are in the batch.
    fn finish_look_up(&self, request: &mut Request) -> Result<(), IndexError> {
        let sealed_to = self.index.sealed_to();
        if sealed_to <= request.looked_to {
            return Ok(());
        }
        request.sealed.resize(request.events.len(), None);
        for (hashed, sealed) in request.events.iter().zip(&mut request.sealed) {
            if sealed.is_none() {
                let (key, hash) = (hashed.event.key(), hashed.key_hash);
                *sealed = self.index.get_sealed(key, hash, request.looked_to)?;
            }
        }
        request.looked_to = sealed_to;
        Ok(())
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

    fn hand_over(&mut self) {
        let (work, topics) = self.finish_batch();
        self.syncer.give(work, topics);
    }

    fn sync_here(&mut self) {
        let (work, topics) = self.finish_batch();
        if let Some(ended) = self.syncer.give_here(work, topics) {
            self.after_sync(ended);
        }
    }

    fn finish_batch(&mut self) -> (Work, Vec<Topic>) {
        let next = self.batch.builder.next_sequence();
        let batch = std::mem::replace(&mut self.batch, Pending::new(next));
        let work = Work {
            batch: (!batch.builder.is_empty()).then(|| batch.builder.finish(self.clock.now())),
            replies: batch.replies,
            dropped: batch.dropped,
            attempt: 0,
        };
        (work, batch.new_topics)
    }

    fn after_take(&mut self, taken: Result<Ended, SyncerGone>) {
        match taken {
            Ok(ended) => self.after_sync(ended),
            // Nobody is left to answer its batches.
            Err(SyncerGone) => {
                self.failed.get_or_insert(PublishError::Bug);
                let batch = std::mem::replace(&mut self.batch, Pending::new(self.durable_tail));
                batch.refuse(PublishError::Bug);
            }
        }
    }

    fn after_sync(&mut self, ended: Ended) {
        self.durable_tail = ended.durable_tail;
        let Some(Refused { error, topics }) = ended.refused else {
            self.probe();
            return;
        };
        for topic in topics.iter().chain(&self.batch.new_topics) {
            self.topics.remove(topic);
        }
        self.index.truncate(self.durable_tail);
        let batch = std::mem::replace(&mut self.batch, Pending::new(self.durable_tail));
        batch.refuse(error);
        if !error.passes() {
            self.fail(error);
        }
    }

    /// Refuses all later requests for `error`.
    fn fail(&mut self, error: PublishError) {
        // Nothing from now on is stored.
        let is_unknown = error == PublishError::MaybeStored;
        self.failed = Some(if is_unknown {
            PublishError::Failed
        } else {
            error
        });
    }

    /// Checks whether the cause of refusals has passed: the log and the index both have room again.
    fn probe(&mut self) {
        if !self.monitor.is_refusing() || !self.syncer.is_idle() {
            return;
        }
        if let Err(error) = self.index.seal_if_full(self.durable_tail) {
            self.after_index_error(&error);
            return;
        }
        match self.syncer.probe() {
            Ok(()) => self.monitor.heal(),
            Err(error) if error.passes() => {}
            Err(error) => self.fail(error),
        }
    }

    fn after_index_error(&mut self, error: &IndexError) -> PublishError {
        let public = error.into();
        match error {
            IndexError::Full { .. } | IndexError::Seal { .. } => self.monitor.refuse(public, error),
            // The next look-up may succeed: only this request is refused.
            IndexError::Unreadable { .. } => tracing::error!(%error, "a request was refused"),
            IndexError::Damaged { .. } => {
                self.failed = Some(public);
                self.monitor.fail(public, error);
            }
        }
        public
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::AppendError;
    use crate::partition::{
        Account, Health, Partition, PartitionOptions, PendingOutcomes, TopicCounters,
        support::{Gate, event, opened, opened_with, publish, soon, stop, store},
    };

    fn key_of(event: &Event) -> crate::event::Key {
        event.key().clone()
    }

    async fn submit(partition: &Partition, event: Event) -> PendingOutcomes {
        let share = partition.ingest().share(&Account::default(), 0);
        let submitted = partition.submit(vec![event], Rejection::OfEvent, share);
        submitted.await.expect("queued")
    }

    /// Two requests: the first in the log, the second in the batch behind it.
    async fn one_behind_the_other(gate: &Gate, partition: &Partition) -> [PendingOutcomes; 2] {
        let (one, other) = (event("a", 1, 1), event("b", 1, 1));
        let key = key_of(&other);
        let first = submit(partition, one).await;
        gate.await_begun(1);
        let second = submit(partition, other).await;
        // The writer answers in the order of its queue, so it has decided the second as well.
        let found = soon(partition.get(key)).await.expect("found out");
        assert!(found.is_none(), "it is not durable");
        [first, second]
    }

    #[tokio::test]
    async fn a_batch_gathered_behind_a_refused_one_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::default();
        let options = PartitionOptions {
            topics_max: 2,
            ..PartitionOptions::new(dir.path())
        };
        let (partition, threads) = gate.open(options).await;
        let mut health = partition.health();
        let requests = one_behind_the_other(&gate, &partition).await;
        gate.end_full();
        for request in requests {
            let refused = soon(request).await.err();
            assert_eq!(refused, Some(PublishError::DiskFull));
        }
        let refusing = Health::Refusing(PublishError::DiskFull);
        assert_eq!(*health.borrow_and_update(), refusing);
        // None of it counts: neither keys nor sequences nor topics.
        gate.free();
        for (at, topic) in ["c", "d"].into_iter().enumerate() {
            gate.end(Ok(()));
            let stored = publish(&partition, vec![event(topic, 1, 1)], Rejection::OfEvent).await;
            assert_eq!(stored, Ok(vec![Outcome::Stored(1 + at as Sequence)]));
        }
        soon(health.wait_for(|health| *health == Health::Serving))
            .await
            .expect("there is a partition");
        let beyond = publish(&partition, vec![event("e", 1, 1)], Rejection::OfEvent).await;
        assert_eq!(beyond, Ok(vec![Outcome::TopicLimit]));
        drop(partition);
        stop(threads).await;
    }

    /// A log that fails while it looks for space stores no later request.
    #[tokio::test]
    async fn a_failure_without_an_append_stores_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::default();
        let (partition, threads) = gate.open(PartitionOptions::new(dir.path())).await;
        let mut health = partition.health();
        let refused = submit(&partition, event("a", 1, 1)).await;
        gate.fail_prepare();
        gate.end_full();
        assert_eq!(soon(refused).await.err(), Some(PublishError::DiskFull));
        let failed = Health::Failed(PublishError::Failed);
        let seen = soon(health.wait_for(|health| *health == failed)).await;
        drop(seen.expect("there is a partition"));
        let refused = publish(&partition, vec![event("a", 2, 1)], Rejection::OfEvent).await;
        assert_eq!(refused, Err(PublishError::Failed));
        drop(partition);
        stop(threads).await;
    }

    /// Somebody else may write the log from now on, so not even a duplicate is answered.
    #[tokio::test]
    async fn a_fenced_partition_answers_nothing_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::default();
        let (partition, threads) = gate.open(PartitionOptions::new(dir.path())).await;
        gate.end(Ok(()));
        let stored = publish(&partition, vec![event("a", 1, 1)], Rejection::OfEvent).await;
        assert_eq!(stored, Ok(vec![Outcome::Stored(1)]));
        let refused = submit(&partition, event("a", 2, 1)).await;
        let cause = std::io::Error::other("by the test");
        gate.end(Err(AppendError::Fenced(std::sync::Arc::new(cause))));
        assert_eq!(soon(refused).await.err(), Some(PublishError::Fenced));
        let refused = publish(&partition, vec![event("a", 1, 1)], Rejection::OfEvent).await;
        assert_eq!(refused, Err(PublishError::Fenced));
        drop(partition);
        stop(threads).await;
    }

    #[tokio::test]
    async fn a_batch_goes_when_the_one_before_it_has_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::default();
        let (partition, threads) = gate.open(PartitionOptions::new(dir.path())).await;
        let [first, second] = one_behind_the_other(&gate, &partition).await;
        // From here on nobody else wakes the writer or the syncer.
        gate.end(Ok(()));
        let stored = soon(first).await.expect("durable");
        assert_eq!(stored.outcomes, [Outcome::Stored(1)]);
        gate.await_begun(2);
        gate.end(Ok(()));
        let stored = soon(second).await.expect("durable");
        assert_eq!(stored.outcomes, [Outcome::Stored(2)]);
        drop(partition);
        stop(threads).await;
    }

    #[tokio::test]
    async fn the_limit_on_topics_is_exact() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = PartitionOptions {
            topics_max: 2,
            ..PartitionOptions::new(dir.path())
        };
        let (partition, threads) = opened_with(options).await;
        let too_many = ["a", "b", "c"].map(|topic| event(topic, 0, 1)).to_vec();
        let refused = publish(&partition, too_many, Rejection::OfRequest).await;
        assert_eq!(refused, Err(PublishError::TopicLimit { max: 2 }));
        let both = vec![event("a", 1, 1), event("a", 2, 1), event("b", 1, 1)];
        let stored = publish(&partition, both, Rejection::OfRequest).await;
        let expected = [1, 2, 3].map(Outcome::Stored);
        assert_eq!(stored.as_deref(), Ok(&expected[..]));
        let beyond = || vec![event("a", 3, 1), event("c", 1, 1)];
        let refused = publish(&partition, beyond(), Rejection::OfRequest).await;
        assert_eq!(refused, Err(PublishError::TopicLimit { max: 2 }));
        let outcomes = publish(&partition, beyond(), Rejection::OfEvent).await;
        assert_eq!(outcomes, Ok(vec![Outcome::Stored(4), Outcome::TopicLimit]));
        let (counters, topics) = partition.totals();
        assert_eq!((counters.received, counters.rejected, topics), (10, 6, 2));
        stop(threads).await;
    }

    #[tokio::test]
    async fn topics_that_exist_take_no_room_of_the_limit() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = PartitionOptions {
            topics_max: 3,
            ..PartitionOptions::new(dir.path())
        };
        let (partition, threads) = opened_with(options).await;
        store(&partition, vec![event("a", 1, 1), event("b", 1, 1)]).await;
        let one_new = ["a", "b", "c"].map(|topic| event(topic, 2, 1)).to_vec();
        let stored = publish(&partition, one_new, Rejection::OfRequest).await;
        assert_eq!(stored, Ok([3, 4, 5].map(Outcome::Stored).to_vec()));
        drop(partition);
        stop(threads).await;
    }

    /// Behind a busy log, requests are gathered into batches no larger than the limits, and not all into one.
    #[tokio::test]
    async fn a_batch_ends_at_its_limits_while_the_log_is_busy() {
        let (events, bytes) = (
            BatchLimits {
                events_full: 2,
                ..BatchLimits::default()
            },
            BatchLimits {
                bytes_full: 1000,
                ..BatchLimits::default()
            },
        );
        // Two events of 600 bytes fill 1000 bytes.
        for limits in [events, bytes] {
            let dir = tempfile::tempdir().expect("a directory");
            let gate = Gate::default();
            let options = PartitionOptions {
                batch: limits,
                ..PartitionOptions::new(dir.path())
            };
            let (partition, threads) = gate.open(options).await;
            let mut requests = vec![submit(&partition, event("t", 0, 600)).await];
            gate.await_begun(1);
            for id in 1..7 {
                requests.push(submit(&partition, event("t", id, 600)).await);
            }
            for append in 1..=4 {
                gate.await_begun(append);
                gate.end(Ok(()));
            }
            for request in requests {
                soon(request).await.expect("durable");
            }
            let first_of = |sequence| {
                let batch = partition.0.tail.recent(sequence);
                batch.expect("in memory").first_sequence()
            };
            assert_eq!(
                [1, 2, 3, 4, 5, 6, 7].map(first_of),
                [1, 2, 2, 4, 4, 6, 6],
                "{limits:?}"
            );
            drop(partition);
            stop(threads).await;
        }
    }

    /// A probe finds out whether there is space, and neither believes it nor gives up for good.
    #[tokio::test]
    async fn a_probe_heals_only_when_there_is_space() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::default();
        let (partition, threads) = gate.open(PartitionOptions::new(dir.path())).await;
        let health = partition.health();
        let probe = async || {
            let probed = partition.0.queue.send(Message::Probe).await;
            probed.expect("there is a writer");
            // The writer answers in the order of its queue.
            let found = soon(partition.get(key_of(&event("a", 1, 1)))).await;
            assert!(found.expect("found out").is_none());
            *health.borrow()
        };
        let first = submit(&partition, event("a", 1, 1)).await;
        gate.await_begun(1);
        gate.end_full();
        assert_eq!(soon(first).await.err(), Some(PublishError::DiskFull));
        assert_eq!(probe().await, Health::Refusing(PublishError::DiskFull));
        gate.free();
        assert_eq!(probe().await, Health::Serving);
        gate.end(Ok(()));
        store(&partition, vec![event("a", 2, 1)]).await;
        drop(partition);
        stop(threads).await;
    }

    #[tokio::test]
    async fn each_duplicate_counts_for_its_topic() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        store(&partition, vec![event("a", 1, 1), event("b", 1, 1)]).await;
        let again = vec![
            event("a", 1, 1),
            event("a", 1, 1),
            event("b", 1, 1),
            event("a", 1, 2),
            event("a", 2, 1),
        ];
        store(&partition, again.clone()).await;
        store(&partition, again).await;
        let counts: Vec<_> = partition
            .topics("", 10)
            .into_iter()
            .map(|(topic, counters)| {
                let TopicCounters {
                    unique_processed,
                    duplicate_dropped,
                    ..
                } = counters;
                (
                    topic.as_str().to_owned(),
                    unique_processed,
                    duplicate_dropped,
                )
            })
            .collect();
        assert_eq!(counts, [("a".to_owned(), 2, 7), ("b".to_owned(), 1, 2)]);
        let (counters, _) = partition.totals();
        assert_eq!(counters.duplicate_dropped, 9);
        assert_eq!(counters.conflicts, 2);
        assert_eq!(counters.received, 12);
        stop(threads).await;
    }
}
