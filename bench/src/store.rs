//! The stores to compare, oncelog and its alternatives, behind one trait.

mod grpc;
#[cfg(feature = "peers")]
pub mod nats;
pub mod null;
pub mod oncelog;
#[cfg(feature = "peers")]
pub mod postgres;
#[cfg(feature = "peers")]
pub mod redis;
#[cfg(feature = "peers")]
pub mod sqlite;

#[cfg(feature = "peers")]
use std::time::{Duration, Instant};
use std::{path::Path, sync::Arc};

use oncelog_harness::process::Process;
use serde::{Deserialize, Serialize};

use crate::{Result, event::Events, plan::Plan, recorder::Recorder};

/// A store that can be started on a directory.
#[tonic::async_trait(?Send)]
pub trait Store: Send + Sync {
    /// Its name on the command line and in the report.
    fn name(&self) -> &'static str;

    /// The value of its acks.
    fn promise(&self) -> Promise;

    /// Whether it is so slow that it gets fewer events.
    #[cfg(feature = "peers")]
    fn is_slow(&self) -> bool {
        false
    }

    /// What can be read back.
    fn keeps(&self) -> Keeps {
        Keeps::Events
    }

    /// Starts it on `dir`, new or as the last one left it, and returns once it serves.
    async fn start(&self, dir: &Path) -> Result<Box<dyn Running>>;
}

/// The value of a store's acknowledgement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Promise {
    /// What has happened before the ack.
    pub durability: String,
    /// How far back duplicates are found.
    pub horizon: String,
    /// Whether it equals oncelog's promise: synced, and over the whole history.
    pub is_equal: bool,
}

impl Promise {
    fn new(durability: &str, horizon: &str, is_equal: bool) -> Self {
        Self {
            durability: durability.to_owned(),
            horizon: horizon.to_owned(),
            is_equal,
        }
    }
}

/// How much of the data a store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Events,
    /// It exists for comparison.
    Nothing,
}

/// A store that serves.
#[tonic::async_trait]
pub trait Running: Send + Sync {
    /// Its process.
    fn process(&mut self) -> &mut Process;

    /// Opens a stream's connection in advance, so that connecting is not measured.
    async fn stream(&self, events: Arc<Events>) -> Result<Box<dyn Stream>>;
}

/// A connection that publishes, or reads.
#[tonic::async_trait]
pub trait Stream: Send {
    /// Sends a plan to its end, and returns once all of it is acknowledged.
    async fn publish(&mut self, plan: Plan, recorder: Arc<Recorder>) -> Result<()>;

    /// Passes every event, of one topic or of all, to `seen`.
    async fn read(&mut self, topic: Option<usize>, seen: &mut Seen) -> Result<()>;
}

/// How long a store may take to serve.
#[cfg(feature = "peers")]
const READY_MAX: Duration = Duration::from_secs(600);
#[cfg(feature = "peers")]
const READY_INTERVAL: Duration = Duration::from_millis(5);

/// Repeats `attempt` until it succeeds, or the process has ended.
#[cfg(feature = "peers")]
async fn until_ready<T>(process: &mut Process, attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        let error = match attempt().await {
            Ok(ready) => return Ok(ready),
            Err(error) => error,
        };
        if process.has_ended()? || began.elapsed() > READY_MAX {
            return Err(format!("it does not serve: {error}").into());
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

/// Sends a plan by `send`, which returns how many events of a request were new, with as many requests in flight
/// as the plan allows.
#[cfg(feature = "peers")]
async fn pipelined<Sending>(
    mut plan: Plan,
    recorder: &Recorder,
    send: impl Fn(&[u64]) -> Sending,
) -> Result<()>
where
    Sending: Future<Output = Result<u64>>,
{
    let mut waiting = futures_util::stream::FuturesOrdered::new();
    let mut numbers = Vec::new();
    loop {
        while waiting.len() < plan.load.in_flight {
            plan.next(&mut numbers);
            if numbers.is_empty() {
                break;
            }
            let (sending, events, sent) = (send(&numbers), numbers.len() as u64, Instant::now());
            waiting.push_back(async move {
                let stored = sending.await?;
                recorder.acked(events, stored, sent.elapsed());
                Ok::<_, crate::Error>(())
            });
        }
        match futures_util::StreamExt::next(&mut waiting).await {
            Some(result) => result?,
            None => return Ok(()),
        }
    }
}

/// The events below `end` that a reader has seen.
#[derive(Debug)]
pub struct Seen {
    events: Arc<Events>,
    end: u64,
    /// The topic they must all have.
    topic: Option<usize>,
    /// A bit per event.
    bits: Vec<u64>,
    count: u64,
    /// If present, every event is compared byte for byte.
    scratch: Option<Vec<u8>>,
}

impl Seen {
    /// Nothing seen yet. With `compare`, any differing byte is an error; without it, ids decide.
    pub fn new(events: Arc<Events>, end: u64, topic: Option<usize>, compare: bool) -> Self {
        Self {
            events,
            end,
            topic,
            bits: vec![0; end.div_ceil(64) as usize],
            count: 0,
            scratch: compare.then(Vec::new),
        }
    }

    /// Takes an event that was read: its key, and the rest of it, encoded.
    pub fn take(&mut self, topic: &[u8], id: &[u8], body: &[u8]) -> Result<()> {
        let number = self.events.number(id)?;
        if number >= self.end
            || self
                .topic
                .is_some_and(|topic| topic != self.events.topic_of(number))
        {
            return Err(format!("event {number} was read and does not belong here").into());
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.bits[word] & bit != 0 {
            return Err(format!("event {number} was read twice").into());
        }
        self.bits[word] |= bit;
        self.count += 1;
        if let Some(scratch) = &mut self.scratch
            && !self.events.is(number, [topic, id, body], scratch)
        {
            return Err(format!("event {number} is not what was sent").into());
        }
        Ok(())
    }

    /// How many events were read; an error unless all were.
    pub fn complete(self) -> Result<u64> {
        let expected = match self.topic {
            Some(topic) => self.events.count_of_topic(topic, self.end),
            None => self.end,
        };
        if self.count == expected {
            return Ok(self.count);
        }
        let lost = (0..self.end)
            .filter(|number| {
                self.topic
                    .is_none_or(|topic| topic == self.events.topic_of(*number))
            })
            .find(|number| self.bits[(number / 64) as usize] >> (number % 64) & 1 == 0);
        Err(format!(
            "read {} of {expected} events; event {lost:?} is lost",
            self.count
        )
        .into())
    }
}
