//! Readers: catch up from the log, follow from memory, and fall back to the log when too slow.
//!
//! A reader is a position that pulls. It holds no events between calls and nothing is pushed to it, so a slow
//! or stalled one costs nobody anything.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{
    Partition, ReadError, Shared,
    chunks::{ChunkAccount, ChunkShare},
    cursor::{self, Cursor, CursorError, Mark},
    scan::{Scan, Scanned},
};
use crate::{
    event::{Sequence, StoredEvent, Topic},
    log::LogReader,
};

/// Where a reader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first event.
    Earliest,
    /// At the durable tail.
    Latest,
    /// After the position of a cursor.
    After(String),
}

/// A position in the log that moves over the events of one topic, or of all topics.
pub struct Reader {
    shared: Arc<Shared>,
    /// Its own reader of the log, which remembers its place in the files.
    log: Arc<dyn LogReader>,
    topic: Option<Topic>,
    at: Mark,
    tail: watch::Receiver<Mark>,
    /// The memory of its connection's readers.
    account: ChunkAccount,
    /// Held until the reader has gone and its last scan has ended.
    pub(super) permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// Some events, in order.
#[derive(Debug)]
pub struct Chunk {
    /// The events. Empty at the durable tail; a chunk of one topic may also be empty before it.
    pub events: Vec<StoredEvent>,
    /// Whether the reader is at the durable tail now.
    pub caught_up: bool,
    /// The memory of the events, to be held as long as they are, in whatever form.
    pub(crate) share: Option<ChunkShare>,
}

/// Where a reader starts, as far as memory shows.
enum Place {
    At(Mark),
    /// The log holds the batch that the cursor must prove.
    InLog(Cursor),
}

impl Partition {
    /// A reader of `topic`, or of all topics. It and its chunks hold `permit`.
    pub async fn reader(
        &self,
        topic: Option<Topic>,
        start: &Start,
        permit: OwnedSemaphorePermit,
        account: &ChunkAccount,
    ) -> Result<Reader, ReadError> {
        let log = self.0.log.fresh();
        let permit = Arc::new(permit);
        let at = match self.place(start)? {
            Place::At(mark) => mark,
            Place::InLog(cursor) => {
                let (log, permit) = (Arc::clone(&log), Arc::clone(&permit));
                let shared = Arc::clone(&self.0);
                let proof = self.0.lanes.scan(move || {
                    let _permit = permit;
                    shared.prove(cursor, &*log)
                });
                proof.await??
            }
        };
        Ok(self.reader_at(log, topic, at, Some(permit), account))
    }

    /// The same without a permit, reading the log on this thread.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn reader_here(
        &self,
        topic: Option<Topic>,
        start: &Start,
    ) -> Result<Reader, ReadError> {
        let log = self.0.log.fresh();
        let at = match self.place(start)? {
            Place::At(mark) => mark,
            Place::InLog(cursor) => self.0.prove(cursor, &*log)?,
        };
        Ok(self.reader_at(log, topic, at, None, &ChunkAccount::default()))
    }

    fn reader_at(
        &self,
        log: Arc<dyn LogReader>,
        topic: Option<Topic>,
        at: Mark,
        permit: Option<Arc<OwnedSemaphorePermit>>,
        account: &ChunkAccount,
    ) -> Reader {
        Reader {
            shared: Arc::clone(&self.0),
            log,
            topic,
            at,
            tail: self.0.tail.watch(),
            account: account.clone(),
            permit,
        }
    }

    fn place(&self, start: &Start) -> Result<Place, ReadError> {
        let tail = self.0.tail.mark();
        let cursor = match start {
            Start::Earliest => return Ok(Place::At(Mark::START)),
            Start::Latest => return Ok(Place::At(tail)),
            Start::After(cursor) => cursor::decode(cursor, self.0.log.id())?,
        };
        if cursor.sequence > tail.sequence {
            return Err(CursorError::PastTail.into());
        }
        let known = match cursor.sequence {
            0 => return Ok(Place::At(Mark::START)),
            sequence if sequence == tail.sequence => Some(tail.checksum),
            sequence => self.0.tail.recent(sequence).map(|batch| batch.checksum()),
        };
        Ok(match known {
            Some(checksum) => Place::At(cursor.prove(checksum)?),
            None => Place::InLog(cursor),
        })
    }
}

impl Shared {
    fn prove(&self, cursor: Cursor, log: &dyn LogReader) -> Result<Mark, ReadError> {
        let found = self.mark(cursor.sequence, log)?;
        Ok(cursor.prove(found.checksum)?)
    }

    /// The mark after the event at `sequence`, which is below the durable tail. Blocks on the disk.
    pub(super) fn mark(&self, sequence: Sequence, log: &dyn LogReader) -> Result<Mark, ReadError> {
        let checksum = match self.tail.recent(sequence) {
            Some(batch) => batch.checksum(),
            None => {
                let checksum = log.batch_checksum(sequence)?;
                checksum.expect("the log holds what is below the durable tail")
            }
        };
        Ok(Mark { sequence, checksum })
    }
}

impl Reader {
    /// The cursor after the last event read.
    pub fn cursor(&self) -> String {
        cursor::encode(self.log.id(), self.at)
    }

    /// The cursor after an event that was read.
    pub fn cursor_after(&self, event: &StoredEvent) -> String {
        let mark = Mark {
            sequence: event.sequence,
            checksum: event.batch_checksum,
        };
        cursor::encode(self.log.id(), mark)
    }

    /// The sequence of the first event not yet passed.
    pub fn next_sequence(&self) -> Sequence {
        self.at.next()
    }

    /// Reads on, to `until` or the durable tail and to at most `events_max` events; may stop earlier, at its
    /// limits on work or memory. Does not wait for events. If the future is dropped, the read ends soon.
    pub async fn read(&mut self, until: Sequence, events_max: usize) -> Result<Chunk, ReadError> {
        let mut waited = None;
        loop {
            let mut scan = self.scan_memory(until, events_max, waited);
            let scanned = if scan.is_of_log() {
                let _cancel = scan.cancel_on_drop();
                let shared = Arc::clone(&self.shared);
                let log = Arc::clone(&self.log);
                let permit = self.permit.clone();
                let scanned = self.shared.lanes.scan(move || {
                    let _permit = permit;
                    scan.over_log(&shared, &*log)?;
                    Ok::<_, ReadError>(scan.finish())
                });
                scanned.await??
            } else {
                scan.finish()
            };
            let Some(bytes) = scanned.wants else {
                return Ok(self.move_to(scanned));
            };
            self.at = scanned.at;
            let chunks = &self.shared.lanes.chunks;
            waited = Some(chunks.take(&self.account, bytes).await);
        }
    }

    /// The same, reading the log on this thread.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn read_here(
        &mut self,
        until: Sequence,
        events_max: usize,
    ) -> Result<Chunk, ReadError> {
        let mut scan = self.scan_memory(until, events_max, None);
        if scan.is_of_log() {
            scan.over_log(&self.shared, &*self.log)?;
        }
        let scanned = scan.finish();
        assert!(scanned.wants.is_none(), "here nothing waits for memory");
        Ok(self.move_to(scanned))
    }

    fn scan_memory(
        &mut self,
        until: Sequence,
        events_max: usize,
        waited: Option<ChunkShare>,
    ) -> Scan {
        let tail = *self.tail.borrow_and_update();
        let topic = self.topic.clone();
        let (shared, account) = (&self.shared, &self.account);
        let mut scan = Scan::new(topic, self.at, until, tail, events_max, shared, account);
        scan.with(waited);
        scan.over_memory(&self.shared);
        scan
    }

    fn move_to(&mut self, scanned: Scanned) -> Chunk {
        self.at = scanned.at;
        Chunk {
            events: scanned.events,
            caught_up: self.at.next() >= self.shared.tail.get(),
            share: scanned.share,
        }
    }

    /// Waits until the durable tail is past the position.
    pub async fn wait(&mut self) {
        let at = self.at.sequence;
        let moved = self.tail.wait_for(|tail| tail.sequence > at).await;
        moved.expect("the shared state holds the tail");
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::partition::{
        PartitionOptions,
        support::{event, opened, opened_with, soon, stop, store},
    };

    #[tokio::test]
    async fn a_cursor_beyond_the_tail_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let tail_is = |sequence| {
            let mark = partition.0.tail.mark();
            assert_eq!(mark.sequence, sequence);
            for beyond in [1, 2, 1000] {
                let cursor = cursor::encode(
                    partition.0.log.id(),
                    Mark {
                        sequence: sequence + beyond,
                        ..mark
                    },
                );
                let refused = partition.reader_here(None, &Start::After(cursor)).err();
                let refused = refused.expect("there is no such event");
                assert!(
                    matches!(refused, ReadError::Cursor(CursorError::PastTail)),
                    "{beyond} beyond {sequence}: {refused}"
                );
            }
            let cursor = cursor::encode(partition.0.log.id(), mark);
            let taken = partition.reader_here(None, &Start::After(cursor));
            assert_eq!(taken.expect("the tail").next_sequence(), sequence + 1);
        };
        tail_is(0);
        store(&partition, vec![event("t", 1, 1), event("t", 2, 1)]).await;
        tail_is(2);
        stop(threads).await;
    }

    #[tokio::test]
    async fn a_cursor_is_proven_wherever_its_batch_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = PartitionOptions {
            tail_cache_bytes_max: 1000,
            ..PartitionOptions::new(dir.path())
        };
        let (partition, threads) = opened_with(options).await;
        for id in 1..=8 {
            store(&partition, vec![event("t", id, 200)]).await;
        }
        let shared = &partition.0;
        assert!(shared.tail.recent(1).is_none() && shared.tail.recent(7).is_some());
        for sequence in [1, 7, 8] {
            let log = shared.log.fresh();
            let mark = shared.mark(sequence, &*log).expect("read");
            let at = |checksum| {
                let mark = Mark { checksum, ..mark };
                let cursor = cursor::encode(shared.log.id(), mark);
                partition.reader_here(None, &Start::After(cursor))
            };
            let taken = at(mark.checksum).expect("of this history");
            assert_eq!(taken.next_sequence(), sequence + 1);
            let refused = at(!mark.checksum).err().expect("of another history");
            assert!(
                matches!(refused, ReadError::Cursor(CursorError::OtherHistory)),
                "{sequence}: {refused}"
            );
        }
        stop(threads).await;
    }

    #[tokio::test]
    async fn a_reader_respects_its_limit_and_waits_at_the_tail() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let events = |ids: Range<usize>| ids.map(|id| event("t", id, 1)).collect();
        store(&partition, events(0..3)).await;
        store(&partition, events(3..6)).await;
        for topic in [None, Some(Topic::new("t").expect("valid"))] {
            let mut reader = partition
                .reader_here(topic, &Start::Earliest)
                .expect("begins");
            for (events_max, next) in [(1, 2), (2, 4), (2, 6), (9, 7)] {
                soon(reader.wait()).await;
                let chunk = reader.read_here(Sequence::MAX, events_max).expect("reads");
                assert!(chunk.events.len() <= events_max);
                assert_eq!(reader.next_sequence(), next);
                assert_eq!(chunk.caught_up, next == 7);
            }
            assert!(reader.wait().now_or_never().is_none(), "there is no more");
        }
        stop(threads).await;
    }
}
