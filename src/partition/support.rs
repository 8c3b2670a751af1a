//! Events, partitions, and a log whose appends end on a test's signal, for the tests of this module.

use std::{
    collections::VecDeque,
    future::Future,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::task::spawn_blocking;

use super::{
    Account, Outcome, Partition, PartitionOptions, PublishError, Rejection, Threads, open,
    open::{open_files, open_locked},
};
use crate::{
    event::{Event, Sequence},
    log::{AppendError, Batch, FileLog, Log},
    proto::v1,
};

/// Anything that takes longer is not coming.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// An event with `data` bytes.
pub fn event(topic: &str, id: usize, data: usize) -> Event {
    let event = v1::Event {
        topic: topic.to_owned(),
        event_id: id.to_string(),
        timestamp: Some(prost_types::Timestamp::default()),
        source: "s".to_owned(),
        payload: Some(v1::event::Payload::Data(vec![7; data].into())),
        ..v1::Event::default()
    };
    let encoded = Bytes::from(event.encode_to_vec());
    let event = Event::from_canonical(encoded).expect("canonical");
    event.expect("valid")
}

/// A partition with the defaults.
pub async fn opened(dir: &Path) -> (Partition, Threads) {
    opened_with(PartitionOptions::new(dir)).await
}

pub async fn opened_with(options: PartitionOptions) -> (Partition, Threads) {
    let opened = spawn_blocking(|| open(options)).await.expect("no panic");
    let (partition, threads, _) = opened.expect("opened");
    (partition, threads)
}

pub async fn stop(threads: Threads) {
    spawn_blocking(|| threads.stop())
        .await
        .expect("no panic")
        .expect("saved");
}

/// Fails the test if `awaited` does not finish.
pub async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(WAIT_MAX, awaited).await;
    waited.expect("it comes")
}

/// The outcomes of a request.
pub async fn publish(
    partition: &Partition,
    events: Vec<Event>,
    rejection: Rejection,
) -> Result<Vec<Outcome>, PublishError> {
    let share = partition.ingest().share(&Account::default(), 0);
    let pending = partition.submit(events, rejection, share).await?;
    Ok(soon(pending).await?.outcomes)
}

/// Stores a batch.
pub async fn store(partition: &Partition, events: Vec<Event>) {
    let stored = publish(partition, events, Rejection::OfEvent).await;
    stored.expect("durable");
}

/// Ends the appends of a partition's log, one at a time, and decides whether there is space for the next.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    begun: usize,
    outcomes: VecDeque<Result<(), AppendError>>,
    waker: Option<Waker>,
    is_full: bool,
    prepare_fails: bool,
}

impl Gate {
    /// A partition whose appends end on this gate's signal.
    pub async fn open(&self, options: PartitionOptions) -> (Partition, Threads) {
        let gate = self.clone();
        let opened = spawn_blocking(move || {
            open_locked(&options, None, |tail_min| {
                Ok(GateLog {
                    log: open_files(&options, tail_min)?,
                    begun: None,
                    gate,
                })
            })
        });
        let (partition, threads, _) = opened.await.expect("no panic").expect("opened");
        (partition, threads)
    }

    /// Waits until this many appends have begun.
    pub fn await_begun(&self, appends: usize) {
        let (_, changed) = &*self.0;
        let waits = |state: &mut GateState| state.begun < appends;
        let waited = changed.wait_timeout_while(self.lock(), WAIT_MAX, waits);
        let timed_out = waited.expect("no panic").1.timed_out();
        assert!(!timed_out, "the append is begun");
    }

    /// Ends the oldest unfinished append, or the next one. Wakes its waiter.
    pub fn end(&self, outcome: Result<(), AppendError>) {
        let waker = {
            let mut state = self.lock();
            state.outcomes.push_back(outcome);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends an append for lack of space, which lasts.
    pub fn end_full(&self) {
        self.lock().is_full = true;
        self.end(Err(full()));
    }

    /// There is space again.
    pub fn free(&self) {
        self.lock().is_full = false;
    }

    /// From now on the log fails when it looks for space.
    pub fn fail_prepare(&self) {
        self.lock().prepare_fails = true;
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.0.lock().expect("no panic")
    }
}

fn full() -> AppendError {
    AppendError::Full(Arc::new(std::io::Error::other("by the test")))
}

/// Takes one append at a time.
struct GateLog {
    log: FileLog,
    begun: Option<Batch>,
    gate: Gate,
}

impl Log for GateLog {
    type Reader = <FileLog as Log>::Reader;

    fn tail(&self) -> Sequence {
        self.log.tail()
    }

    fn in_flight_max(&self) -> usize {
        1
    }

    fn begin_append(&mut self, batch: &Batch) {
        assert!(self.begun.is_none(), "one at a time");
        self.begun = Some(batch.clone());
        self.gate.lock().begun += 1;
        self.gate.0.1.notify_all();
    }

    fn poll_append(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AppendError>> {
        let mut state = self.gate.lock();
        let Some(outcome) = state.outcomes.pop_front() else {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let batch = self.begun.take().expect("it was begun");
        if outcome.is_err() {
            return Poll::Ready(outcome);
        }
        self.log.begin_append(&batch);
        self.log.poll_append(cx)
    }

    fn prepare(&mut self) -> Result<(), AppendError> {
        let state = self.gate.lock();
        if state.prepare_fails {
            let cause = std::io::Error::other("by the test");
            return Err(AppendError::Unknown(Arc::new(cause)));
        }
        if state.is_full {
            return Err(full());
        }
        drop(state);
        self.log.prepare()
    }

    fn reader(&self) -> Self::Reader {
        self.log.reader()
    }
}
