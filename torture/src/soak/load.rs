//! Publishers at full speed, each of which knows the right outcome of every event.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use oncelog::{
    client::{PendingAck, Publisher, PublisherOptions},
    proto::v1::{EventOutcome, Outcome},
};
use tokio::{sync::mpsc, task::JoinSet, time::sleep};

use super::SoakArgs;
use crate::{Result, event::Events};

/// How often to check the progress of the load.
const POLL: Duration = Duration::from_millis(5);

/// Publishers at work.
pub struct Load {
    progress: Arc<Progress>,
    streams: JoinSet<Result<Stream>>,
    count: u64,
}

/// The progress of all streams.
#[derive(Default)]
pub struct Progress {
    pub sent: AtomicU64,
    pub stored: AtomicU64,
    /// One per request since they were last taken.
    latencies_us: Mutex<Vec<u32>>,
    /// Streams that have ended in whatever way.
    ended: AtomicU64,
}

/// All acks.
pub struct Acked {
    pub sent: u64,
    /// By stream, and by number within it.
    sequences: Vec<Vec<u32>>,
}

/// The events of one stream: the numbers that are its own modulo the number of streams.
struct Stream {
    own: u64,
    streams: u64,
    sent: u64,
    /// The sequence of each event; 0 until it is known.
    sequences: Vec<u32>,
}

/// A request that waits for its ack.
struct Waiting {
    /// Numbers within the stream.
    numbers: Vec<u64>,
    sent_at: Instant,
    ack: PendingAck,
}

impl Load {
    /// Starts all streams.
    pub fn start(address: &str, events: Events, args: &SoakArgs) -> Self {
        let progress = Arc::<Progress>::default();
        let mut streams = JoinSet::new();
        for own in 0..args.streams {
            let (address, args) = (address.to_owned(), args.clone());
            let progress = Arc::clone(&progress);
            streams.spawn(async move {
                let ended = run(own, &address, events, &args, &progress).await;
                progress.ended.fetch_add(1, Relaxed);
                ended
            });
        }
        Self {
            progress,
            streams,
            count: args.streams,
        }
    }

    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Waits until this many events are stored, or nobody stores more.
    pub async fn reach(&self, stored: u64) {
        while self.progress.stored.load(Relaxed) < stored
            && self.progress.ended.load(Relaxed) < self.count
        {
            sleep(POLL).await;
        }
    }

    /// Waits for the last ack. An error is a broken promise, or a break.
    pub async fn finish(mut self) -> Result<Acked> {
        let mut acked = Acked {
            sent: 0,
            sequences: vec![Vec::new(); self.count as usize],
        };
        while let Some(ended) = self.streams.join_next().await {
            let stream = ended??;
            acked.sent += stream.sent;
            acked.sequences[stream.own as usize] = stream.sequences;
        }
        Ok(acked)
    }
}

impl Progress {
    /// The latencies of the acks since the last call.
    pub fn take_latencies_us(&self) -> Vec<u32> {
        std::mem::take(&mut self.latencies())
    }

    fn latencies(&self) -> MutexGuard<'_, Vec<u32>> {
        self.latencies_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Acked {
    /// The sequence of an event.
    pub fn sequence(&self, number: u64) -> Option<u64> {
        let streams = self.sequences.len() as u64;
        let stream = self.sequences.get((number % streams) as usize)?;
        stream
            .get((number / streams) as usize)
            .map(|at| u64::from(*at))
    }
}

/// Publishes the events of one stream, and resends of them.
async fn run(
    own: u64,
    address: &str,
    events: Events,
    args: &SoakArgs,
    progress: &Arc<Progress>,
) -> Result<Stream> {
    let options = PublisherOptions {
        // One more than may wait below: its publisher never holds back a request.
        requests_in_flight_max: args.in_flight as usize + 1,
        ..PublisherOptions::default()
    };
    let publisher = Publisher::connect(address, options)?;
    let count = (args.unique - own).div_ceil(args.streams);
    let stream = Stream {
        own,
        streams: args.streams,
        sent: 0,
        sequences: vec![0; count as usize],
    };
    // The taker holds one request, the queue the others.
    let (waiting, acks) = mpsc::channel(args.in_flight.saturating_sub(1).max(1) as usize);
    let taker = tokio::spawn(take(stream, acks, Arc::clone(progress)));
    let mut random = Rng::with_seed(args.seed ^ (own + 1) << 32);
    let mut next = 0;
    while next < count {
        let mut numbers = Vec::with_capacity(args.batch as usize);
        while numbers.len() < args.batch as usize && next < count {
            let is_resend = next > 0 && random.u64(..100) < args.resends;
            numbers.push(if is_resend { random.u64(..next) } else { next });
            next += u64::from(!is_resend);
        }
        let make = |number: &u64| events.make(number * args.streams + own, 0);
        let request = numbers.iter().map(make).collect();
        let Ok(place) = waiting.reserve().await else {
            // The taker reports why it has ended.
            break;
        };
        let sent_at = Instant::now();
        let ack = publisher.send(request).await?;
        place.send(Waiting {
            numbers,
            sent_at,
            ack,
        });
    }
    drop(waiting);
    let stream = taker.await??;
    publisher.finish().await?;
    Ok(stream)
}

/// Takes the acks of a stream, which come in the order of its requests.
async fn take(
    mut stream: Stream,
    mut acks: mpsc::Receiver<Waiting>,
    progress: Arc<Progress>,
) -> Result<Stream> {
    while let Some(waiting) = acks.recv().await {
        let outcomes = waiting.ack.await?;
        let latency_us = waiting.sent_at.elapsed().as_micros();
        progress.latencies().push(u32::try_from(latency_us)?);
        let stored = stream.acked(&waiting.numbers, &outcomes)?;
        progress.stored.fetch_add(stored, Relaxed);
        progress.sent.fetch_add(outcomes.len() as u64, Relaxed);
    }
    Ok(stream)
}

impl Stream {
    /// Takes an ack, and returns how many events were stored. An error is a broken promise.
    fn acked(&mut self, numbers: &[u64], outcomes: &[EventOutcome]) -> Result<u64> {
        if numbers.len() != outcomes.len() {
            return Err(format!("{} outcomes for {} events", outcomes.len(), numbers.len()).into());
        }
        let mut stored = 0;
        for (number, outcome) in numbers.iter().zip(outcomes) {
            let known = &mut self.sequences[*number as usize];
            // An event that is new to this stream is new to the server, and nothing breaks.
            let expected = match *known {
                0 => Outcome::Stored,
                _ => Outcome::Duplicate,
            };
            let sequence = u32::try_from(outcome.sequence)?;
            if outcome.outcome() != expected || sequence == 0 || *known != 0 && *known != sequence {
                let number = number * self.streams + self.own;
                return Err(format!(
                    "event {number} must be reported as {expected:?} at {known}, and was reported as {outcome:?}"
                )
                .into());
            }
            *known = sequence;
            stored += u64::from(expected == Outcome::Stored);
        }
        self.sent += outcomes.len() as u64;
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event_outcome(outcome: Outcome, sequence: u64) -> EventOutcome {
        EventOutcome {
            outcome: outcome.into(),
            sequence,
            reason: String::new(),
        }
    }

    #[test]
    fn every_ack_is_known_before() {
        let mut stream = Stream {
            own: 1,
            streams: 2,
            sent: 0,
            sequences: vec![0; 3],
        };
        let new = event_outcome(Outcome::Stored, 7);
        let again = event_outcome(Outcome::Duplicate, 7);
        let stored = stream.acked(&[0, 0], &[new.clone(), again.clone()]);
        assert_eq!((stored.expect("kept"), stream.sent), (1, 2));
        for (number, broken) in [
            (0, new),
            (0, event_outcome(Outcome::Duplicate, 8)),
            (0, event_outcome(Outcome::Conflict, 7)),
            (1, again),
            (1, event_outcome(Outcome::Stored, 0)),
        ] {
            assert!(stream.acked(&[number], &[broken]).is_err());
        }
        assert!(stream.acked(&[1], &[]).is_err());
        let acked = Acked {
            sent: 2,
            sequences: vec![vec![9, 9], stream.sequences],
        };
        assert_eq!(acked.sequence(1), Some(7));
        assert_eq!(acked.sequence(6), None);
    }
}
