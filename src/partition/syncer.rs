//! The syncer: makes batches durable, one at a time, and only then tells anyone.
//!
//! Owns the log. It is a job of its own, so that the writer gathers the next batch meanwhile; a batch that has
//! nothing behind it is synced by the writer itself, which spares it the way there and back. After the sync of a
//! batch, and in this order: its topics are in the index, it is counted, the durable tail moves, and its requests
//! are answered.

use std::sync::{Arc, Mutex, MutexGuard, mpsc as std_mpsc};

use tokio::sync::{mpsc, oneshot};

use super::{
    PublishError,
    budget::Share,
    health::Monitor,
    request::{Answer, Message, Outcome, Outcomes, Request},
    stats::{Dropped, Stats},
    tail::DurableTail,
};
use crate::{
    event::Sequence,
    index::IndexReader,
    log::{AppendError, Batch, Log},
    platform::{Job, Step},
};

/// A batch, if there is anything new, and the requests that wait for it.
pub(super) struct Work {
    pub batch: Option<Batch>,
    pub replies: Vec<Reply>,
    pub dropped: Dropped,
}

/// What became of a batch.
pub(super) struct Synced {
    pub durable_tail: Sequence,
    pub result: Result<(), PublishError>,
}

/// A request that is decided and not answered yet.
pub(super) struct Reply {
    decided: Result<Vec<Outcome>, PublishError>,
    reply: oneshot::Sender<Answer>,
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

    /// Tells what was decided, now that it is durable.
    fn answer(self) {
        // Nobody listens if the publisher has gone; its events are stored all the same.
        let mut share = self.share;
        _ = self.reply.send(self.decided.map(|outcomes| {
            share.keep_answer(size_of_val(&*outcomes));
            Outcomes { outcomes, share }
        }));
    }

    /// Tells that the batch was not stored.
    pub fn refuse(self, error: PublishError) {
        _ = self.reply.send(Err(error));
    }
}

pub(super) struct Syncer<L> {
    pub log: L,
    pub index: IndexReader,
    pub stats: Arc<Stats>,
    pub tail: Arc<DurableTail>,
    pub monitor: Monitor,
}

/// The syncer of the writer and of the job. Only one of them has work for it at a time.
pub(super) struct Shared<L>(Arc<Mutex<Syncer<L>>>);

impl<L> Clone for Shared<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L> Shared<L> {
    pub fn new(syncer: Syncer<L>) -> Self {
        Self(Arc::new(Mutex::new(syncer)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Syncer<L>> {
        // After a panic the log may be half changed.
        self.0.lock().expect("the syncer has not panicked")
    }
}

impl<L: Log> Syncer<L> {
    /// Makes a batch durable, tells the writer and then those who wait for it.
    pub fn sync(&mut self, work: Work, tell_writer: impl FnOnce(Synced)) {
        let appended = match &work.batch {
            Some(batch) => self.log.append(batch),
            None => Ok(()),
        };
        match appended {
            Ok(()) => {
                self.publish(work.batch, &work.dropped);
                tell_writer(self.synced(Ok(())));
                work.replies.into_iter().for_each(Reply::answer);
            }
            Err(error) => {
                let error = self.failed(&error);
                tell_writer(self.synced(Err(error)));
                for reply in work.replies {
                    reply.refuse(error);
                }
            }
        }
    }

    /// Lets readers see what is durable now.
    fn publish(&self, batch: Option<Batch>, dropped: &Dropped) {
        if let Some(batch) = batch {
            let topics = batch.topics().map(|(topic, _)| topic);
            self.index.add_slices(topics, batch.first_sequence());
            self.stats.add_batch(&batch);
            self.tail.advance(batch);
        }
        self.stats.add_dropped(dropped);
    }

    /// Looks whether the log can take the next batch.
    pub fn probe(&mut self) -> Result<(), PublishError> {
        self.log.prepare().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &AppendError) -> PublishError {
        let told = PublishError::from(error);
        match error {
            AppendError::Full { .. } | AppendError::NotPrepared { .. } => {
                self.monitor.refuse(told, error);
            }
            AppendError::Failed { .. } => self.monitor.fail(told, error),
        }
        told
    }

    fn synced(&self, result: Result<(), PublishError>) -> Synced {
        Synced {
            durable_tail: self.tail.get(),
            result,
        }
    }
}

/// The job that syncs what the writer hands over. Ends when the writer has gone.
pub(super) struct SyncerJob<L> {
    pub syncer: Shared<L>,
    pub work: std_mpsc::Receiver<Work>,
    /// Work that was waited for.
    pub next: Option<Work>,
    pub synced: std_mpsc::Sender<Synced>,
    /// The writer's queue, to wake it.
    pub writer: mpsc::WeakSender<Message>,
}

impl<L: Log> Job for SyncerJob<L> {
    fn step(&mut self) -> Step {
        let work = match self.next.take() {
            Some(work) => Ok(work),
            None => self.work.try_recv(),
        };
        let work = match work {
            Ok(work) => work,
            Err(std_mpsc::TryRecvError::Empty) => return Step::Idle,
            Err(std_mpsc::TryRecvError::Disconnected) => return Step::Ended,
        };
        self.syncer.lock().sync(work, |synced| {
            // The writer outlives this, unless it panicked.
            _ = self.synced.send(synced);
            if let Some(writer) = self.writer.upgrade() {
                // A full queue wakes the writer as well.
                _ = writer.try_send(Message::Synced);
            }
        });
        Step::Worked
    }

    fn wait(&mut self) {
        self.next = self.work.recv().ok();
    }
}
