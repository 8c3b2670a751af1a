//! The syncer: appends batches to the log, and shows and answers only what is durable.
//!
//! Owns the log's end and every step after an append, in this order: the batch's topics enter the index, it is counted,
//! the durable tail moves, the writer learns of it, and its requests are answered.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use super::{
    PublishError,
    budget::Share,
    health::Monitor,
    request::{Outcome, Outcomes, PublishResult, Request},
    stats::{Dropped, Stats},
    tail::DurableTail,
};
use crate::{
    event::Sequence,
    index::PositionsWriter,
    log::{AppendError, Batch, Log},
    platform::Jobs,
};

/// A batch, if there is anything new, and the requests that wait for it.
pub(super) struct Work {
    pub batch: Option<Batch>,
    pub replies: Vec<Reply>,
    pub dropped: Dropped,
    /// How many failures the writer had seen.
    pub attempt: u64,
}

/// The outcome of work, for the writer.
pub(super) struct Synced {
    pub durable_tail: Sequence,
    pub attempt: u64,
    pub result: Result<(), PublishError>,
}

/// A request that is decided but not yet answered.
pub(super) struct Reply {
    decided: Result<Vec<Outcome>, PublishError>,
    reply: oneshot::Sender<PublishResult>,
    share: Share,
}

impl Reply {
    pub fn new(request: Request, decided: Result<Vec<Outcome>, PublishError>) -> Self {
        Self {
            decided,
            reply: request.reply,
            share: request.share,
        }
    }

    /// Sends the outcomes, now that they are durable.
    fn answer(self) {
        // If the publisher has gone nobody listens; its events are stored anyway.
        let mut share = self.share;
        _ = self.reply.send(self.decided.map(|outcomes| {
            share.keep_answer(size_of_val(&*outcomes));
            Outcomes { outcomes, share }
        }));
    }

    /// Reports why it is not acknowledged.
    pub fn refuse(self, error: PublishError) {
        _ = self.reply.send(Err(error));
    }
}

pub(super) struct Syncer<L> {
    log: L,
    positions: PositionsWriter,
    stats: Arc<Stats>,
    tail: Arc<DurableTail>,
    monitor: Monitor,
    jobs: Arc<dyn Jobs>,
    /// Oldest first. The log has the batch of each.
    in_flight: VecDeque<Work>,
    /// How many failures there have been.
    attempt: u64,
    /// The last failure.
    failure: Option<PublishError>,
}

impl<L: Log> Syncer<L> {
    pub fn new(
        log: L,
        positions: PositionsWriter,
        stats: Arc<Stats>,
        tail: Arc<DurableTail>,
        monitor: Monitor,
        jobs: Arc<dyn Jobs>,
    ) -> Self {
        Self {
            log,
            positions,
            stats,
            tail,
            monitor,
            jobs,
            in_flight: VecDeque::new(),
            attempt: 0,
            failure: None,
        }
    }

    pub fn in_flight_max(&self) -> usize {
        self.log.in_flight_max()
    }

    /// Whether work may begin. After a failure, everything in flight must end first.
    pub fn has_room(&self) -> bool {
        let is_failing = |work: &Work| work.attempt < self.attempt;
        self.in_flight.len() < self.log.in_flight_max()
            && !self.in_flight.front().is_some_and(is_failing)
    }

    /// Starts making a batch durable. Refuses it if it was decided before the last failure: it builds on void work.
    pub fn begin(&mut self, work: Work, notify_writer: impl FnOnce(Synced)) {
        if work.attempt < self.attempt {
            let failure = self.failure.unwrap_or(PublishError::Failed);
            return self.refuse(work, failure, notify_writer);
        }
        if let Some(batch) = &work.batch {
            self.log.begin_append(batch);
        }
        self.in_flight.push_back(work);
    }

    /// Ends the oldest work in flight if its batch is durable or refused, informing first the writer and then the
    /// waiting requests. False if there is none to end; `cx` is then woken when there may be.
    pub fn complete(&mut self, cx: &mut Context<'_>, notify_writer: impl FnOnce(Synced)) -> bool {
        let Some(work) = self.in_flight.front() else {
            return false;
        };
        let appended = match &work.batch {
            Some(_) => match self.log.poll_append(cx) {
                Poll::Ready(appended) => appended.map_err(|error| self.fail(&error)),
                Poll::Pending => return false,
            },
            None => Ok(()),
        };
        let work = self.in_flight.pop_front().expect("there is one");
        match appended {
            Ok(()) if work.attempt == self.attempt => {
                self.make_visible(work.batch, &work.dropped);
                notify_writer(self.synced(work.attempt, Ok(())));
                work.replies.into_iter().for_each(Reply::answer);
            }
            Ok(()) => {
                assert!(work.batch.is_none(), "nothing is appended after a failure");
                let failure = self.failure.unwrap_or(PublishError::Failed);
                self.refuse(work, failure, notify_writer);
            }
            Err(error) => {
                // Those behind it fail as well; these are not failures of their own.
                if work.attempt == self.attempt {
                    self.attempt += 1;
                    self.failure = Some(error);
                }
                self.refuse(work, error, notify_writer);
            }
        }
        true
    }

    /// Makes a durable batch visible to readers.
    fn make_visible(&mut self, batch: Option<Batch>, dropped: &Dropped) {
        if let Some(batch) = batch {
            let topics = batch.topics().map(|(topic, _)| topic);
            self.positions.add_batch(topics, batch.first_sequence());
            self.jobs.make_way();
            self.stats.add_batch(&batch);
            self.jobs.make_way();
            self.tail.advance(batch);
            self.jobs.make_way();
        }
        self.stats.add_dropped(dropped);
    }

    fn refuse(&self, work: Work, error: PublishError, notify_writer: impl FnOnce(Synced)) {
        notify_writer(self.synced(work.attempt, Err(error)));
        for reply in work.replies {
            reply.refuse(error);
        }
    }

    fn synced(&self, attempt: u64, result: Result<(), PublishError>) -> Synced {
        Synced {
            durable_tail: self.tail.get(),
            attempt,
            result,
        }
    }

    /// Checks whether the log can take the next batch.
    pub fn probe(&mut self) -> Result<(), PublishError> {
        self.log.prepare().map_err(|error| self.fail(&error))
    }

    fn fail(&self, error: &AppendError) -> PublishError {
        let public = PublishError::from(error);
        match error {
            AppendError::Full(_) | AppendError::NotReady(_) => self.monitor.refuse(public, error),
            AppendError::Fenced(_) => self.monitor.fail(public, error),
            // Only batches in flight may be stored.
            AppendError::Unknown(_) => self.monitor.fail(PublishError::Failed, error),
        }
        public
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::{Pin, pin},
        sync::Mutex,
        task::{Wake, Waker},
    };

    use tokio::sync::Notify;

    use super::*;
    use crate::{
        event::Topic,
        partition::{
            Account, Partition, PartitionOptions, PendingOutcomes, Rejection,
            support::{Gate, event, soon, stop},
        },
    };

    /// Inspects a partition when the tail moves, on the thread that moves it.
    struct Look {
        partition: Partition,
        request: Mutex<PendingOutcomes>,
        seen: Mutex<Option<Seen>>,
        moved: Notify,
    }

    #[derive(Clone, Debug, PartialEq)]
    struct Seen {
        tail: Sequence,
        positions: Vec<Sequence>,
        unique: u64,
        is_recent: bool,
        is_answered: bool,
    }

    impl Wake for Look {
        fn wake(self: Arc<Self>) {
            let shared = &self.partition.0;
            let topic = Topic::new("t").expect("valid");
            let mut request = self.request.lock().expect("no panic");
            let answer = Pin::new(&mut *request).poll(&mut Context::from_waker(Waker::noop()));
            let positions = shared.index.positions(&topic, 1, 16).expect("in memory");
            *self.seen.lock().expect("no panic") = Some(Seen {
                tail: shared.tail.get(),
                positions,
                unique: self.partition.totals().0.unique_processed,
                is_recent: shared.tail.recent(1).is_some(),
                is_answered: answer.is_ready(),
            });
            self.moved.notify_one();
        }
    }

    #[tokio::test]
    async fn when_the_tail_moves_all_that_readers_need_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = Gate::default();
        let (partition, threads) = gate.open(PartitionOptions::new(dir.path())).await;
        let share = partition.ingest().share(&Account::default(), 0);
        let request = partition.submit(vec![event("t", 1, 1)], Rejection::OfEvent, share);
        let request = request.await.expect("queued");
        gate.await_begun(1);
        let look = Arc::new(Look {
            partition: partition.clone(),
            request: Mutex::new(request),
            seen: Mutex::default(),
            moved: Notify::new(),
        });
        let mut tail = partition.0.tail.watch();
        {
            let mut moved = pin!(tail.changed());
            let waker = Waker::from(Arc::clone(&look));
            let polled = moved.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            gate.end(Ok(()));
            soon(look.moved.notified()).await;
        }
        let expected = Seen {
            tail: 2,
            positions: vec![1],
            unique: 1,
            is_recent: true,
            is_answered: false,
        };
        let seen = look.seen.lock().expect("no panic").clone();
        assert_eq!(seen, Some(expected));
        drop((look, partition));
        stop(threads).await;
    }
}
