//! A stream of stored events: catch up, then follow or end.
//!
//! Both edges send these streams, each in its own encoding. The connection pulls a listing, which reads only
//! what is about to be sent.

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    aggregator::Aggregator,
    event::{Sequence, StoredEvent},
    limits::SILENCE_MAX,
    partition::{ChunkShare, ReadError, Reader},
};

/// Some events of a listing.
pub(crate) struct Part {
    /// In the order of their sequence. May be empty.
    pub events: Vec<StoredEvent>,
    /// Resumes after the last event.
    pub cursor: String,
    /// Whether the listing was at the durable tail.
    pub caught_up: bool,
    /// The memory of the events, to be held until they have been sent. A connection asks for the next part before
    /// that.
    pub share: Option<ChunkShare>,
}

/// A stream of stored events.
pub(crate) struct Listing {
    reader: Reader,
    /// Where it ends; with follow, nowhere.
    until: Sequence,
    follow: bool,
    /// How many more events may be sent, if limited.
    left: Option<u64>,
    last_sent: Option<Instant>,
    /// Whether the last part reported the durable tail.
    reported_caught_up: bool,
    stopping: CancellationToken,
    /// How the stream ends, once everything has been sent.
    end: Option<Result<(), ReadError>>,
}

impl Listing {
    /// Lists the events of `reader`: up to the durable tail, and with `follow` from there on.
    pub fn new(aggregator: &Aggregator, reader: Reader, limit: Option<u64>, follow: bool) -> Self {
        Self {
            reader,
            until: if follow {
                Sequence::MAX
            } else {
                aggregator.partition.durable_tail()
            },
            follow,
            left: limit,
            last_sent: None,
            reported_caught_up: false,
            stopping: aggregator.stopping.clone(),
            end: None,
        }
    }

    /// The cursor after an event of this listing.
    pub fn cursor_after(&self, event: &StoredEvent) -> String {
        self.reader.cursor_after(event)
    }

    /// The next part; waits for one when following. The first part always comes, and after some silence one
    /// without events. When the server stops, [`ReadError::Stopping`] follows a last part.
    pub async fn next(&mut self) -> Result<Option<Part>, ReadError> {
        loop {
            if let Some(end) = &mut self.end {
                return std::mem::replace(end, Ok(())).map(|()| None);
            }
            if self.stopping.is_cancelled() {
                self.end = Some(Err(ReadError::Stopping));
                return Ok(Some(self.part(Vec::new(), false, None)));
            }
            let events_max = self.left.map_or(usize::MAX, |left| {
                usize::try_from(left).unwrap_or(usize::MAX)
            });
            let chunk = self.reader.read(self.until, events_max).await;
            // Nothing follows an error.
            let chunk = chunk.inspect_err(|_| self.end = Some(Ok(())))?;
            if !chunk.events.is_empty() {
                if let Some(left) = &mut self.left {
                    *left -= chunk.events.len() as u64;
                    if *left == 0 {
                        self.end = Some(Ok(()));
                    }
                }
                return Ok(Some(self.part(chunk.events, chunk.caught_up, chunk.share)));
            }
            let unreported = chunk.caught_up && !self.reported_caught_up;
            if self.follow && chunk.caught_up {
                if unreported || self.await_more().await {
                    return Ok(Some(self.part(Vec::new(), true, None)));
                }
            } else if self.reader.next_sequence() >= self.until {
                self.end = Some(Ok(()));
                // The first part always carries a cursor, even without events.
                if unreported || self.last_sent.is_none() {
                    return Ok(Some(self.part(Vec::new(), chunk.caught_up, None)));
                }
            }
        }
    }

    /// Waits at the durable tail. Returns whether it is time to send a part without events.
    async fn await_more(&mut self) -> bool {
        let silent_since = self.last_sent.unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => false,
            () = self.reader.wait() => false,
            () = sleep_until(silent_since + SILENCE_MAX) => true,
        }
    }

    fn part(
        &mut self,
        events: Vec<StoredEvent>,
        caught_up: bool,
        share: Option<ChunkShare>,
    ) -> Part {
        self.last_sent = Some(Instant::now());
        self.reported_caught_up = caught_up;
        Part {
            events,
            cursor: self.reader.cursor(),
            caught_up,
            share,
        }
    }
}
