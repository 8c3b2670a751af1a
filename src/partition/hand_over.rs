//! The hand-over between the writer and the syncer.
//!
//! Owns what lies between them: which batches are in flight, how many may be, and the rule that a failure voids
//! all batches decided before it and none after. The writer gives work and takes its outcome; it touches neither
//! the syncer nor the log.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, TryLockError, Weak, mpsc as std_mpsc},
    task::{Context, Wake, Waker},
};

use tokio::sync::mpsc;

use super::{
    PublishError,
    request::Message,
    syncer::{Synced, Syncer, Work},
};
use crate::{
    event::{Sequence, Topic},
    log::Log,
    platform::{Job, Step},
};

/// The writer's end.
pub(super) struct HandOver<L> {
    syncer: SharedSyncer<L>,
    orders: Arc<std_mpsc::SyncSender<Order>>,
    synced: std_mpsc::Receiver<Synced>,
    /// The topics that begin in each batch in flight, oldest first.
    in_flight: VecDeque<Vec<Topic>>,
    in_flight_max: usize,
    /// How many failures the writer has seen.
    attempt: u64,
    /// Whether the syncer has panicked.
    is_gone: bool,
    waker: Waker,
}

/// The syncer has panicked, and will not answer for anything in flight.
pub(super) struct SyncerGone;

/// The outcome of a batch.
pub(super) struct Ended {
    pub durable_tail: Sequence,
    pub refused: Option<Refused>,
}

/// The log refuses a batch: this one, all others in flight and everything decided since are void.
pub(super) struct Refused {
    pub error: PublishError,
    /// The topics that would have begun in these batches.
    pub topics: Vec<Topic>,
}

/// A message to the syncer's job.
enum Order {
    Work(Work),
    /// An append may be complete.
    Wake,
}

/// The syncer, shared by its job and, while that is idle, the writer.
struct SharedSyncer<L>(Arc<Mutex<Syncer<L>>>);

impl<L> Clone for SharedSyncer<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L> SharedSyncer<L> {
    fn lock(&self) -> MutexGuard<'_, Syncer<L>> {
        // After a panic the log may be half changed.
        self.0.lock().expect("the syncer has not panicked")
    }
}

/// Both ends of the hand-over to a syncer. `writer` is the writer's queue, to wake it.
pub(super) fn hand_over<L: Log>(
    syncer: Syncer<L>,
    writer: mpsc::WeakSender<Message>,
) -> (HandOver<L>, SyncerJob<L>) {
    let in_flight_max = syncer.in_flight_max();
    let syncer = SharedSyncer(Arc::new(Mutex::new(syncer)));
    let (orders, orders_end) = std_mpsc::sync_channel(in_flight_max);
    let orders = Arc::new(orders);
    let (synced, synced_end) = std_mpsc::channel();
    let waker = Waker::from(Arc::new(WakeJob(Arc::downgrade(&orders))));
    let job = SyncerJob {
        syncer: syncer.clone(),
        orders: orders_end,
        waiting: VecDeque::new(),
        is_awake: false,
        is_blocked: false,
        synced,
        writer,
        waker: waker.clone(),
    };
    let hand_over = HandOver {
        syncer,
        orders,
        synced: synced_end,
        in_flight: VecDeque::new(),
        in_flight_max,
        attempt: 0,
        is_gone: false,
        waker,
    };
    (hand_over, job)
}

impl<L: Log> HandOver<L> {
    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether no more may be in flight.
    pub fn is_full(&self) -> bool {
        self.in_flight.len() >= self.in_flight_max
    }

    /// Gives work, in which `topics` begin, to the syncer's job. There must be room.
    pub fn give(&mut self, mut work: Work, topics: Vec<Topic>) {
        assert!(!self.is_full(), "what is in flight has a limit");
        work.attempt = self.attempt;
        self.in_flight.push_back(topics);
        // If the syncer has panicked, the next outcome reports it.
        _ = self.orders.send(Order::Work(work));
    }

    /// Does the work on this thread, which spares two hand-overs. Nothing else may be in flight. Returns the outcome if
    /// the log has already completed the append.
    pub fn give_here(&mut self, mut work: Work, topics: Vec<Topic>) -> Option<Ended> {
        assert!(self.is_idle(), "the syncer is free");
        work.attempt = self.attempt;
        self.in_flight.push_back(topics);
        let mut ended = None;
        let mut syncer = self.syncer.lock();
        syncer.begin(work, |synced| ended = Some(synced));
        let mut cx = Context::from_waker(&self.waker);
        syncer.complete(&mut cx, |synced| ended = Some(synced));
        drop(syncer);
        ended.map(|synced| self.end(synced))
    }

    /// The outcome of the oldest work, if known.
    pub fn try_take(&mut self) -> Option<Result<Ended, SyncerGone>> {
        match self.synced.try_recv() {
            Ok(synced) => Some(Ok(self.end(synced))),
            Err(std_mpsc::TryRecvError::Empty) => None,
            // Reported once.
            Err(std_mpsc::TryRecvError::Disconnected) if self.is_gone => None,
            Err(std_mpsc::TryRecvError::Disconnected) => Some(Err(self.after_panic())),
        }
    }

    /// The outcome of the oldest work. Waits for it.
    pub fn take(&mut self) -> Result<Ended, SyncerGone> {
        match self.synced.recv() {
            Ok(synced) => Ok(self.end(synced)),
            Err(std_mpsc::RecvError) => Err(self.after_panic()),
        }
    }

    /// Checks whether the log can take the next batch. Nothing may be in flight.
    pub fn probe(&mut self) -> Result<(), PublishError> {
        assert!(self.is_idle(), "the syncer is free");
        self.syncer.lock().probe()
    }

    fn after_panic(&mut self) -> SyncerGone {
        self.is_gone = true;
        self.in_flight.clear();
        SyncerGone
    }

    fn end(&mut self, synced: Synced) -> Ended {
        let in_flight = self.in_flight.pop_front();
        let topics = in_flight.expect("an outcome is of what was given");
        let refused = match synced.result {
            // One failure refuses everything then in flight; later errors only follow from it.
            Err(error) if synced.attempt == self.attempt => {
                self.attempt += 1;
                let others = self.in_flight.iter_mut().flat_map(std::mem::take);
                Some(Refused {
                    error,
                    topics: topics.into_iter().chain(others).collect(),
                })
            }
            Ok(()) | Err(_) => None,
        };
        Ended {
            durable_tail: synced.durable_tail,
            refused,
        }
    }
}

/// Wakes the syncer's job; does not keep it alive.
struct WakeJob(Weak<std_mpsc::SyncSender<Order>>);

impl Wake for WakeJob {
    fn wake(self: Arc<Self>) {
        if let Some(orders) = self.0.upgrade() {
            // A full channel of orders wakes it as well.
            _ = orders.try_send(Order::Wake);
        }
    }
}

/// The job of the syncer. Ends when the writer has gone.
pub(super) struct SyncerJob<L> {
    syncer: SharedSyncer<L>,
    orders: std_mpsc::Receiver<Order>,
    /// Received and not yet begun.
    waiting: VecDeque<Work>,
    /// Whether there may be something to do.
    is_awake: bool,
    /// Whether the writer was using the syncer.
    is_blocked: bool,
    synced: std_mpsc::Sender<Synced>,
    /// The writer's queue, to wake it.
    writer: mpsc::WeakSender<Message>,
    waker: Waker,
}

impl<L: Log> Job for SyncerJob<L> {
    fn step(&mut self) -> Step {
        match self.orders.try_recv() {
            Ok(order) => self.receive(order),
            Err(std_mpsc::TryRecvError::Disconnected) => return Step::Ended,
            Err(std_mpsc::TryRecvError::Empty) if self.is_awake => {}
            Err(std_mpsc::TryRecvError::Empty) => return Step::Idle,
        }
        let mut syncer = match self.syncer.0.try_lock() {
            Ok(syncer) => syncer,
            Err(TryLockError::WouldBlock) => {
                self.is_blocked = true;
                return Step::Idle;
            }
            Err(TryLockError::Poisoned(_)) => panic!("the writer panicked with the syncer"),
        };
        let notify_writer = |synced| {
            // The writer outlives this job unless it panicked.
            _ = self.synced.send(synced);
            if let Some(writer) = self.writer.upgrade() {
                // A full queue wakes the writer as well.
                _ = writer.try_send(Message::Synced);
            }
        };
        if syncer.complete(&mut Context::from_waker(&self.waker), notify_writer) {
            self.is_awake = true;
            return Step::Worked;
        }
        self.is_awake = false;
        if syncer.has_room()
            && let Some(work) = self.waiting.pop_front()
        {
            syncer.begin(work, notify_writer);
            self.is_awake = true;
        }
        // The log may have woken this job in the meantime.
        Step::Worked
    }

    fn wait(&mut self) {
        if std::mem::take(&mut self.is_blocked) {
            drop(self.syncer.lock());
        } else if let Ok(order) = self.orders.recv() {
            self.receive(order);
        }
    }
}

impl<L> SyncerJob<L> {
    fn receive(&mut self, order: Order) {
        self.is_awake = true;
        if let Order::Work(work) = order {
            self.waiting.push_back(work);
        }
    }
}
