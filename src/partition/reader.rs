//! Reading: catch up from the log, follow from memory, and fall back to the log when too slow.
//!
//! A reader is a position that pulls. It holds no events between calls, nothing is pushed to it, and
//! so a slow or stalled one costs nobody anything.

use std::sync::Arc;

use tokio::{sync::watch, task::spawn_blocking};

use super::{Partition, ReadError, Shared, cursor};
use crate::{
    event::{FIRST_SEQUENCE, Sequence, StoredEvent, Topic},
    log::{Batch, LogReader},
};

/// A chunk ends with the first batch that brings it to this many bytes.
const CHUNK_BYTES: usize = 128 * 1024;
/// A chunk ends within a batch before the event that would bring it over this many bytes, unless that
/// is its first. Holds a full batch, so that few are read twice.
const CHUNK_BYTES_MAX: usize = 768 * 1024;
/// What an event counts in a chunk beside its encoding: more than its place and time take when it is sent.
const EVENT_OVERHEAD_BYTES: usize = 64;
/// How many batches of a topic are looked up at once.
const SLICES_MAX: usize = 256;

/// Where a reader begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first event.
    Earliest,
    /// At the durable tail.
    Latest,
    /// After the position of a cursor.
    After(String),
}

/// A position in the log that moves over the events of one topic, or of all.
pub struct Reader<R> {
    shared: Arc<Shared<R>>,
    /// A reader of its own remembers where in the files it is.
    log: Arc<R>,
    topic: Option<Topic>,
    next: Sequence,
    tail: watch::Receiver<Sequence>,
}

/// Some events, in order.
#[derive(Debug)]
pub struct Chunk {
    /// The events. None at the durable tail; a chunk of a topic may have none on its way there too.
    pub events: Vec<StoredEvent>,
    /// Whether the reader is at the durable tail now.
    pub caught_up: bool,
}

impl<R: LogReader> Partition<R> {
    /// A reader of `topic`, or of all topics.
    pub fn reader(&self, topic: Option<Topic>, start: &Start) -> Result<Reader<R>, ReadError> {
        let shared = &self.0;
        let tail = shared.tail.get();
        let next = match start {
            Start::Earliest => FIRST_SEQUENCE,
            Start::Latest => tail,
            Start::After(cursor) => {
                let next = cursor::decode(cursor, shared.log.id())?.saturating_add(1);
                if next > tail {
                    return Err(cursor::CursorError::PastTail.into());
                }
                next
            }
        };
        Ok(Reader {
            shared: Arc::clone(shared),
            log: Arc::new(shared.log.clone()),
            topic,
            next,
            tail: shared.tail.watch(),
        })
    }
}

impl<R: LogReader> Reader<R> {
    /// The cursor after the last event that was read.
    pub fn cursor(&self) -> String {
        cursor::encode(self.shared.log.id(), self.next - 1)
    }

    /// The cursor after the event at `sequence`.
    pub fn cursor_after(&self, sequence: Sequence) -> String {
        cursor::encode(self.shared.log.id(), sequence)
    }

    /// The sequence of the first event that was not looked at.
    pub fn next_sequence(&self) -> Sequence {
        self.next
    }

    /// Reads on, to `until` or the durable tail and to `events_max` events at most. Does not wait for
    /// events.
    pub async fn read(&mut self, until: Sequence, events_max: usize) -> Result<Chunk, ReadError> {
        let mut scan = self.scan_memory(until, events_max)?;
        if scan.is_of_log() {
            let shared = Arc::clone(&self.shared);
            let log = Arc::clone(&self.log);
            let scanned = spawn_blocking(move || {
                scan.over_log(&shared, &*log)?;
                Ok::<_, ReadError>(scan)
            });
            scan = scanned
                .await
                .map_err(|error| ReadError::of_task(&error))??;
        }
        Ok(self.finish(scan))
    }

    /// The same, reading the log here.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn read_here(
        &mut self,
        until: Sequence,
        events_max: usize,
    ) -> Result<Chunk, ReadError> {
        let mut scan = self.scan_memory(until, events_max)?;
        if scan.is_of_log() {
            scan.over_log(&self.shared, &*self.log)?;
        }
        Ok(self.finish(scan))
    }

    fn scan_memory(&mut self, until: Sequence, events_max: usize) -> Result<Scan, ReadError> {
        let mut scan = Scan {
            topic: self.topic.clone(),
            next: self.next,
            until: until.min(*self.tail.borrow_and_update()),
            events: Vec::new(),
            events_max,
            bytes: 0,
        };
        scan.over(|sequence| Ok(self.shared.tail.recent(sequence)))?;
        Ok(scan)
    }

    fn finish(&mut self, scan: Scan) -> Chunk {
        self.next = scan.next;
        Chunk {
            events: scan.events,
            caught_up: self.next >= self.shared.tail.get(),
        }
    }

    /// Waits until the durable tail is past the position.
    pub async fn wait(&mut self) {
        let next = self.next;
        let moved = self.tail.wait_for(|tail| *tail > next).await;
        moved.expect("the shared state holds the tail");
    }
}

/// One pass over batches, from `next` towards `until`.
struct Scan {
    topic: Option<Topic>,
    next: Sequence,
    until: Sequence,
    events: Vec<StoredEvent>,
    events_max: usize,
    bytes: usize,
}

impl Scan {
    /// Whether there is nothing in memory where it begins.
    fn is_of_log(&self) -> bool {
        self.next < self.until && self.events.is_empty()
    }

    fn over_log<R: LogReader>(&mut self, shared: &Shared<R>, log: &R) -> Result<(), ReadError> {
        let Some(topic) = self.topic.clone() else {
            return self.over(|sequence| Ok(log.read(sequence, None)?));
        };
        loop {
            let slices = shared.index.slices(&topic, self.next, SLICES_MAX)?;
            let last_page = slices.len() < SLICES_MAX;
            for slice in slices {
                if slice >= self.until {
                    self.next = self.until;
                    return Ok(());
                }
                let batch = log.read(slice, Some(&topic))?;
                let batch = batch.expect("the index does not run ahead of the durable log");
                // The first batch of a page may end before the position.
                if self.next < batch.end_sequence() && !self.take(&batch) {
                    return Ok(());
                }
            }
            if last_page {
                // Batches are in the index before the tail moves past them: no more of the topic.
                self.next = self.until;
                return Ok(());
            }
        }
    }

    /// Takes the batches that `batch_of` gives, until it has none, the end or a full chunk.
    fn over(
        &mut self,
        mut batch_of: impl FnMut(Sequence) -> Result<Option<Batch>, ReadError>,
    ) -> Result<(), ReadError> {
        while self.next < self.until {
            let Some(batch) = batch_of(self.next)? else {
                break;
            };
            if !self.take(&batch) {
                break;
            }
        }
        Ok(())
    }

    /// Takes what it can of a batch, and tells whether there is room for more.
    fn take(&mut self, batch: &Batch) -> bool {
        match self.topic.clone() {
            Some(topic) => self.take_events(batch.events_of(&topic), batch.end_sequence()),
            None => self.take_events(batch.events(), batch.end_sequence()),
        }
    }

    fn take_events(
        &mut self,
        events: impl IntoIterator<Item = StoredEvent>,
        end: Sequence,
    ) -> bool {
        for event in events {
            if event.sequence < self.next {
                continue;
            }
            let bytes = self.bytes + event.encoded.len() + EVENT_OVERHEAD_BYTES;
            if event.sequence >= self.until {
                break;
            }
            if self.events.len() >= self.events_max
                || (bytes > CHUNK_BYTES_MAX && !self.events.is_empty())
            {
                return false;
            }
            self.bytes = bytes;
            self.next = event.sequence + 1;
            self.events.push(event);
        }
        self.next = end.min(self.until);
        self.events.len() < self.events_max && self.bytes < CHUNK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Event, EventView},
        partition::{PartitionOptions, Rejection, open},
        proto::v1,
    };
    use prost::Message as _;

    fn event(id: usize) -> Event {
        let event = v1::Event {
            topic: "t".to_owned(),
            event_id: id.to_string(),
            timestamp: Some(prost_types::Timestamp::default()),
            source: "s".to_owned(),
            ..v1::Event::default()
        };
        let encoded = bytes::Bytes::from(event.encode_to_vec());
        let view = EventView::parse(&encoded).expect("canonical");
        Event::new(encoded.clone(), &view).expect("valid")
    }

    #[tokio::test]
    async fn a_scan_of_a_topic_ends_where_it_is_told_among_many_later_batches() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = PartitionOptions::new(dir.path());
        let opened = spawn_blocking(|| open(options)).await.expect("no panic");
        let (partition, threads, _) = opened.expect("opened");
        for id in 0..SLICES_MAX + 50 {
            let permit = Arc::clone(partition.ingest()).acquire_owned().await;
            let permit = permit.expect("open");
            let pending = partition.submit(vec![event(id)], Rejection::OfEvent, permit);
            pending.await.expect("queued").await.expect("durable");
        }
        for until in [1, 2, 10, SLICES_MAX as Sequence + 20] {
            let mut scan = Scan {
                topic: Some(Topic::new("t").expect("valid")),
                next: FIRST_SEQUENCE,
                until,
                events: Vec::new(),
                events_max: usize::MAX,
                bytes: 0,
            };
            scan.over_log(&partition.0, &partition.0.log).expect("read");
            assert_eq!(scan.next, until);
            assert_eq!(scan.events.len() as Sequence, until - 1);
        }
        spawn_blocking(|| threads.stop())
            .await
            .expect("no panic")
            .expect("saved");
    }
}
