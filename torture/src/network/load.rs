//! Publishers and readers that check every promise: every acked event is stored once, and read once in its
//! place.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use oncelog::{
    client::{Publisher, PublisherOptions, Reader, ReaderOptions},
    proto::v1::{Event, ListEventsRequest, Outcome, StoredEvent, event::Payload},
};
use prost_types::Timestamp;
use tokio::sync::Barrier;

use crate::Result;

const TOPICS: u64 = 50;
/// The events of a request.
const REQUEST_EVENTS: u64 = 10;
/// Events numbered from here on are large.
const LARGE: u64 = 1 << 40;
const LARGE_BYTES: usize = 64 * 1024;
/// The most by which small ones differ in size.
const SMALL_BYTES_MAX: u64 = 400;
/// 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: i64 = 1_767_225_600;

/// The event of a number, always the same.
fn event(number: u64) -> Event {
    let bytes = if number >= LARGE {
        LARGE_BYTES
    } else {
        (number % SMALL_BYTES_MAX) as usize
    };
    Event {
        topic: format!("network-{:02}", number % TOPICS),
        event_id: number.to_string(),
        timestamp: Some(Timestamp {
            seconds: EPOCH_SECONDS,
            nanos: 0,
        }),
        source: "torture".to_owned(),
        payload: Some(Payload::Data(vec![number as u8; bytes].into())),
        attributes: Default::default(),
    }
}

/// The acks of a round, by event number.
#[derive(Clone)]
pub struct Round {
    pub address: String,
    sequences: Arc<Mutex<HashMap<u64, u64>>>,
    acked: Arc<AtomicU64>,
    next: Arc<AtomicU64>,
}

impl Round {
    /// A round whose events are numbered from `first` on.
    pub fn new(address: &str, first: u64) -> Self {
        Self {
            address: address.to_owned(),
            sequences: Arc::default(),
            acked: Arc::default(),
            next: Arc::new(AtomicU64::new(first)),
        }
    }

    /// How many events were acked, including resends.
    pub fn acked(&self) -> u64 {
        self.acked.load(Relaxed)
    }

    /// The first number without an event.
    pub fn next(&self) -> u64 {
        self.next.load(Relaxed)
    }

    /// Numbers that nobody else has.
    pub fn numbers(&self, count: u64) -> Range<u64> {
        let first = self.next.fetch_add(count, Relaxed);
        first..first + count
    }

    fn take(&self, number: u64, outcome: Outcome, sequence: u64) -> Result<()> {
        if !matches!(outcome, Outcome::Stored | Outcome::Duplicate) {
            return Err(format!("event {number} was reported as {outcome:?}").into());
        }
        self.acked.fetch_add(1, Relaxed);
        let mut sequences = self
            .sequences
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match sequences.insert(number, sequence) {
            Some(before) if before != sequence => Err(format!(
                "event {number} was acked at sequence {before}, then {sequence}"
            )
            .into()),
            Some(_) | None => Ok(()),
        }
    }

    /// Asserts that the events after `cursor` are exactly those acked, once each. Returns the cursor after them,
    /// and how many there are.
    pub async fn check(&self, cursor: String, first: u64) -> Result<(String, u64)> {
        let request = ListEventsRequest {
            cursor,
            ..ListEventsRequest::default()
        };
        let mut reader = Reader::connect(&self.address, request, ReaderOptions::default())?;
        let mut left = std::mem::take(
            &mut *self
                .sequences
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let mut expected = first;
        while let Some(response) = reader.next().await? {
            for stored in response.events {
                let number = read(&stored, &mut expected)?;
                // Every event sent was acked: one without an ack, or without one left, is stored twice or was
                // never sent.
                let acked_at = left.remove(&number);
                if acked_at != Some(stored.sequence) {
                    let sequence = stored.sequence;
                    return Err(format!(
                        "event {number} is at {sequence}, and was acked at {acked_at:?}"
                    )
                    .into());
                }
            }
        }
        match left.keys().next() {
            Some(number) => {
                Err(format!("{} acked events are lost, such as {number}", left.len()).into())
            }
            None => Ok((reader.cursor().to_owned(), expected - first)),
        }
    }
}

/// The number of a stored event, which must be the next and unchanged.
fn read(stored: &StoredEvent, expected: &mut u64) -> Result<u64> {
    if stored.sequence != *expected {
        return Err(format!(
            "sequence {} was read instead of {expected}",
            stored.sequence
        )
        .into());
    }
    *expected += 1;
    let found = stored
        .event
        .as_ref()
        .ok_or("a stored event without event")?;
    let number = found.event_id.parse()?;
    if *found != event(number) {
        return Err(format!("event {number} is stored with other bytes").into());
    }
    Ok(number)
}

/// One stream of requests.
pub struct Stream {
    publisher: Publisher,
    round: Round,
}

impl Stream {
    /// Publishes to `address`, which leads to the server of `round`.
    pub fn open(address: &str, round: &Round, options: PublisherOptions) -> Result<Self> {
        Ok(Self {
            publisher: Publisher::connect(address, options)?,
            round: round.clone(),
        })
    }

    /// Publishes events, one request at a time.
    pub async fn publish(&self, numbers: Range<u64>) -> Result<()> {
        for first in numbers.clone().step_by(REQUEST_EVENTS as usize) {
            let request = first..(first + REQUEST_EVENTS).min(numbers.end);
            let ack = self
                .publisher
                .send(request.clone().map(event).collect())
                .await?;
            for (number, outcome) in request.zip(ack.await?) {
                self.round
                    .take(number, outcome.outcome(), outcome.sequence)?;
            }
        }
        Ok(())
    }

    pub async fn finish(self) -> Result<()> {
        Ok(self.publisher.finish().await?)
    }
}

/// When all streams are open, and when they may continue.
pub struct Together {
    pub open: Barrier,
    pub go_on: Barrier,
}

/// One of many streams open at once: small requests before that point, a large one after it.
pub async fn publish_together(
    round: Round,
    numbers: Range<u64>,
    together: Arc<Together>,
) -> Result<()> {
    let stream = Stream::open(&round.address, &round, PublisherOptions::default())?;
    stream.publish(numbers.clone()).await?;
    together.open.wait().await;
    together.go_on.wait().await;
    let large = LARGE + numbers.start;
    stream.publish(large..large + 1).await?;
    stream.finish().await
}

/// The latencies of many acks.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The latency that this share of them stayed within, in milliseconds; 0 without any.
    pub fn share_ms(&self, share: f64) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = (share * sorted.len() as f64).ceil() as usize;
        let took = sorted.get(at.saturating_sub(1).min(last)).copied();
        u64::try_from(took.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Publishes event after event, each once the previous one is acked, while something else goes wrong.
pub async fn watch(round: Round, stop: Arc<AtomicBool>) -> Result<Latencies> {
    let stream = Stream::open(&round.address, &round, PublisherOptions::default())?;
    let mut latencies = Latencies::default();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        stream.publish(round.numbers(1)).await?;
        latencies.0.push(began.elapsed());
    }
    stream.finish().await?;
    Ok(latencies)
}

/// Follows all topics from a cursor, after which the sequence `next` comes, until the sequence `end` arrives.
pub async fn follow(
    address: String,
    cursor: String,
    mut next: u64,
    end: Arc<AtomicU64>,
    silence_max: Duration,
) -> Result<()> {
    let request = ListEventsRequest {
        cursor,
        follow: true,
        ..ListEventsRequest::default()
    };
    let options = ReaderOptions {
        silence_max,
        ..ReaderOptions::default()
    };
    let mut reader = Reader::connect(&address, request, options)?;
    while next < end.load(Relaxed) {
        let response = reader
            .next()
            .await?
            .ok_or("a list that follows has ended")?;
        for stored in response.events {
            read(&stored, &mut next)?;
        }
    }
    Ok(())
}
