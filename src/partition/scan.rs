//! One pass over batches, from a mark towards an end.
//!
//! Owns the size of a chunk, and the work of one pass: a pass ends with a full chunk, after a page of a topic's
//! batches, or when nobody waits for it any more. A chunk holds about as much memory as it counts.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;

use super::{
    ReadError, Shared,
    chunks::{ChunkAccount, ChunkMemory, ChunkShare},
    cursor::Mark,
};
use crate::{
    event::{Sequence, StoredEvent, Topic},
    log::{Batch, LogReader},
};

/// The default of [`ReadLimits::chunk_bytes_max`]: holds a full batch, so that few are read twice.
const CHUNK_BYTES_MAX: usize = 768 * 1024;

/// How much a reader gets at a time.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// A chunk ends with the first batch that brings it to this many bytes.
    pub chunk_bytes: usize,
    /// A chunk ends inside a batch before the event that would take it over this many bytes, unless it is the
    /// first.
    pub chunk_bytes_max: usize,
    /// The same two when memory for chunks is short.
    pub small_chunk_bytes: usize,
    /// How many batches of a topic one pass looks up, and reads at most; at least 2.
    pub positions_max: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            chunk_bytes: 128 * 1024,
            chunk_bytes_max: CHUNK_BYTES_MAX,
            small_chunk_bytes: 16 * 1024,
            positions_max: 256,
        }
    }
}

/// What an event counts in a chunk beside its encoding: more than its sequence and time take when sent.
const EVENT_OVERHEAD_BYTES: usize = 64;
/// What a batch counts in a chunk beside its events.
const BATCH_OVERHEAD_BYTES: usize = 64;

/// How many bytes a chunk may have.
struct Room {
    bytes: usize,
    bytes_max: usize,
    /// None for a small chunk.
    share: Option<ChunkShare>,
}

impl Room {
    fn take(shared: &Shared, account: &ChunkAccount) -> Self {
        let limits = &shared.reads;
        let chunks = &shared.lanes.chunks;
        match chunks.try_take(account, limits.chunk_bytes_max) {
            Some(share) => Self {
                bytes: limits.chunk_bytes,
                bytes_max: limits.chunk_bytes_max,
                share: Some(share),
            },
            None => Self {
                bytes: limits.small_chunk_bytes,
                bytes_max: limits.small_chunk_bytes,
                share: None,
            },
        }
    }
}

/// Signals to a scan, when dropped, that nobody waits for it.
#[derive(Default)]
pub(super) struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) struct Scan {
    topic: Option<Topic>,
    /// What it has passed.
    at: Mark,
    until: Sequence,
    /// The durable tail when it began.
    tail: Mark,
    events: Vec<StoredEvent>,
    events_max: usize,
    bytes: usize,
    room: Option<Room>,
    /// The memory for chunks, and the reader's connection's part of it.
    chunks: ChunkMemory,
    account: ChunkAccount,
    /// The share that the reader has waited for: room for an event larger than a chunk.
    waited: Option<ChunkShare>,
    /// The size of such an event, if it ended the scan.
    wants: Option<usize>,
    cancelled: Arc<AtomicBool>,
}

/// The result of a scan.
pub(super) struct Scanned {
    pub at: Mark,
    pub events: Vec<StoredEvent>,
    pub share: Option<ChunkShare>,
    /// How many bytes the next event needs, if so many that they must be awaited.
    pub wants: Option<usize>,
}

impl Scan {
    /// A scan from `at` to `until` or `tail`, whichever comes first, and to at most `events_max` events.
    pub fn new(
        topic: Option<Topic>,
        at: Mark,
        until: Sequence,
        tail: Mark,
        events_max: usize,
        shared: &Shared,
        account: &ChunkAccount,
    ) -> Self {
        Self {
            topic,
            at,
            until: until.min(tail.next()),
            tail,
            events: Vec::new(),
            events_max,
            bytes: 0,
            room: None,
            chunks: shared.lanes.chunks.clone(),
            account: account.clone(),
            waited: None,
            wants: None,
            cancelled: Arc::default(),
        }
    }

    /// Ends soon after the returned guard is dropped.
    pub fn cancel_on_drop(&mut self) -> CancelOnDrop {
        let cancel = CancelOnDrop::default();
        self.cancelled = Arc::clone(&cancel.0);
        cancel
    }

    /// Uses a share that the reader has waited for, because of [`Scanned::wants`].
    pub fn with(&mut self, waited: Option<ChunkShare>) {
        self.waited = waited;
    }

    /// Whether memory lacks the batch where it starts.
    pub fn is_of_log(&self) -> bool {
        self.at.next() < self.until && self.events.is_empty() && self.wants.is_none()
    }

    pub fn finish(mut self) -> Scanned {
        self.events.shrink_to_fit();
        let share = self.room.and_then(|room| room.share);
        let mut share = share.filter(|_| !self.events.is_empty());
        if let Some(share) = &mut share {
            share.shrink(self.bytes);
        }
        Scanned {
            at: self.at,
            share,
            events: self.events,
            wants: self.wants,
        }
    }

    pub fn over_memory(&mut self, shared: &Shared) {
        self.room = Some(Room::take(shared, &self.account));
        let scanned = self.over(|sequence| Ok(shared.tail.recent(sequence)));
        scanned.expect("memory can be read");
        if self.events.is_empty() {
            self.room = None;
        }
    }

    pub fn over_log(&mut self, shared: &Shared, log: &dyn LogReader) -> Result<(), ReadError> {
        self.room = Some(Room::take(shared, &self.account));
        let Some(topic) = self.topic.clone() else {
            return self.over(|sequence| Ok(log.read(sequence, None)?));
        };
        let positions_max = shared.reads.positions_max;
        let positions = shared
            .index
            .positions(&topic, self.at.next(), positions_max)?;
        let is_last_page = positions.len() < positions_max;
        for position in positions {
            if position >= self.until {
                return self.pass_to_end(shared, log);
            }
            if self.is_cancelled() {
                return Ok(());
            }
            let batch = log.read(position, Some(&topic))?;
            let batch = batch.expect("the index does not run ahead of the durable log");
            // The first batch of a page may end before the position.
            if self.at.next() < batch.end_sequence() && !self.take(&batch) {
                return Ok(());
            }
        }
        if is_last_page {
            // Batches are in the index before the tail moves past them: the topic has no more.
            return self.pass_to_end(shared, log);
        }
        Ok(())
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Passes batches without events of the topic; it has not seen the last of them.
    fn pass_to_end(&mut self, shared: &Shared, log: &dyn LogReader) -> Result<(), ReadError> {
        if self.at.next() < self.until {
            let last = self.until - 1;
            self.at = match self.tail {
                tail if tail.sequence == last => tail,
                _ => shared.mark(last, log)?,
            };
        }
        Ok(())
    }

    /// Takes batches from `batch_of` until there are none, at the end, or when the chunk is full.
    fn over(
        &mut self,
        mut batch_of: impl FnMut(Sequence) -> Result<Option<Batch>, ReadError>,
    ) -> Result<(), ReadError> {
        while self.at.next() < self.until && !self.is_cancelled() {
            let Some(batch) = batch_of(self.at.next())? else {
                break;
            };
            if !self.take(&batch) {
                break;
            }
        }
        Ok(())
    }

    /// Takes what fits of a batch. Returns whether there is room for more.
    fn take(&mut self, batch: &Batch) -> bool {
        let first = self.events.len();
        let has_room = match self.topic.clone() {
            Some(topic) => self.take_events(batch.events_of(&topic), batch),
            None => self.take_events(batch.events(), batch),
        };
        let taken = &mut self.events[first..];
        let bytes = taken.iter().map(|event| event.encoded.len()).sum::<usize>();
        // An event keeps its whole batch in memory: too much for a few of them.
        if bytes < batch.shared_bytes() / 2 {
            copy_out(taken, bytes);
        }
        has_room
    }

    fn take_events(
        &mut self,
        events: impl IntoIterator<Item = StoredEvent>,
        batch: &Batch,
    ) -> bool {
        let Some(Room {
            bytes: bytes_enough,
            bytes_max,
            ..
        }) = self.room
        else {
            unreachable!("a scan takes room first");
        };
        let mut overhead = BATCH_OVERHEAD_BYTES;
        for event in events {
            if event.sequence <= self.at.sequence {
                continue;
            }
            if event.sequence >= self.until {
                break;
            }
            let bytes = self.bytes + event.encoded.len() + EVENT_OVERHEAD_BYTES + overhead;
            if self.events.len() >= self.events_max
                || (bytes > bytes_max && !self.makes_room(bytes))
            {
                return false;
            }
            overhead = 0;
            self.bytes = bytes;
            self.at = Mark {
                sequence: event.sequence,
                checksum: batch.checksum(),
            };
            self.events.push(event);
        }
        self.at = Mark {
            sequence: batch.end_sequence().min(self.until) - 1,
            checksum: batch.checksum(),
        };
        self.events.len() < self.events_max && self.bytes < bytes_enough
    }

    /// Makes room for a single event larger than a chunk, if there is memory for it now.
    fn makes_room(&mut self, bytes: usize) -> bool {
        if !self.events.is_empty() {
            return false;
        }
        self.room = None;
        let waited = self.waited.take();
        let share = waited.or_else(|| self.chunks.try_take(&self.account, bytes));
        self.wants = share.is_none().then_some(bytes);
        self.room = share.map(|share| Room {
            bytes: 0,
            bytes_max: bytes,
            share: Some(share),
        });
        self.room.is_some()
    }
}

/// Copies events to memory of their own, `bytes` in all.
fn copy_out(events: &mut [StoredEvent], bytes: usize) {
    let mut copy = Vec::with_capacity(bytes);
    for event in &*events {
        copy.extend_from_slice(&event.encoded);
    }
    let mut copy = Bytes::from(copy);
    for event in events {
        let rest = copy.split_off(event.encoded.len());
        event.encoded = mem::replace(&mut copy, rest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::partition::{
        Partition, PartitionOptions, Start,
        support::{event, opened, opened_with, stop, store},
    };

    fn scan(partition: &Partition, topic: Option<&str>, until: Sequence) -> Scan {
        let topic = topic.map(|topic| Topic::new(topic).expect("valid"));
        Scan::new(
            topic,
            Mark::START,
            until,
            partition.0.tail.mark(),
            usize::MAX,
            &partition.0,
            &ChunkAccount::default(),
        )
    }

    /// The memory that events hold; each buffer counts once.
    fn held_bytes(scanned: &Scanned, buffers: impl Fn(&StoredEvent) -> (usize, usize)) -> usize {
        let mut held: Vec<_> = scanned.events.iter().map(buffers).collect();
        held.sort_unstable();
        held.dedup();
        held.iter().map(|(_, bytes)| bytes).sum()
    }

    #[tokio::test]
    async fn a_scan_of_a_topic_ends_at_its_bound_and_takes_a_page_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let positions_max = partition.0.reads.positions_max;
        for id in 0..positions_max + 50 {
            store(&partition, vec![event("t", id, 0)]).await;
        }
        let log = partition.0.log.fresh();
        for until in [
            1,
            2,
            10,
            positions_max as Sequence,
            positions_max as Sequence + 20,
        ] {
            let mut scan = scan(&partition, Some("t"), until);
            scan.over_log(&partition.0, &*log).expect("read");
            let passed = until.min(positions_max as Sequence + 1);
            let scanned = scan.finish();
            assert_eq!(scanned.at.next(), passed);
            assert_eq!(scanned.events.len() as Sequence, passed - 1);
            let expected = match passed - 1 {
                0 => 0,
                last => log.batch_checksum(last).expect("read").expect("there"),
            };
            assert_eq!(scanned.at.checksum, expected);
        }
        // Passing batches of other topics ends with a proof as well.
        for until in [2, 10, partition.durable_tail()] {
            let mut scan = scan(&partition, Some("u"), until);
            scan.over_log(&partition.0, &*log).expect("read");
            let scanned = scan.finish();
            assert!(scanned.events.is_empty());
            let checksum = log.batch_checksum(until - 1).expect("read");
            assert_eq!(Some(scanned.at.checksum), checksum);
        }
        stop(threads).await;
    }

    #[tokio::test]
    async fn a_cut_scan_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        for id in 0..4 {
            store(&partition, vec![event("t", id, 0)]).await;
        }
        let log = partition.0.log.fresh();
        for topic in [None, Some("t")] {
            let mut scan = scan(&partition, topic, Sequence::MAX);
            drop(scan.cancel_on_drop());
            scan.over_log(&partition.0, &*log).expect("read");
            assert!(scan.finish().events.is_empty());
        }
        stop(threads).await;
    }

    /// A topic with one small event in each of many large batches.
    #[tokio::test]
    async fn a_chunk_counts_the_memory_it_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        for id in 0..20 {
            store(
                &partition,
                vec![event("t", id, 10), event("other", id, 100_000)],
            )
            .await;
        }
        let log = partition.0.log.fresh();
        let mut of_memory = scan(&partition, Some("t"), Sequence::MAX);
        of_memory.over_memory(&partition.0);
        let mut of_log = scan(&partition, Some("t"), Sequence::MAX);
        of_log.over_log(&partition.0, &*log).expect("read");
        for scan in [of_memory, of_log] {
            let counted = scan.bytes;
            let scanned = scan.finish();
            assert_eq!(scanned.events.len(), 20);
            let held = held_bytes(&scanned, |event| {
                // If a buffer can be reclaimed as one piece, the event is all there is of it.
                let bytes = event.encoded.len();
                let whole = event.encoded.clone().try_into_mut();
                assert!(whole.is_err(), "it is shared with the chunk");
                (event.encoded.as_ptr() as usize, bytes)
            });
            assert!(held <= counted);
            let share = scanned.share.as_ref().expect("there is memory");
            assert_eq!(share.bytes(), counted);
            for event in scanned.events {
                let encoded = event.encoded.try_into_mut();
                let encoded = encoded.expect("no other event or batch holds its memory");
                assert!(encoded.capacity() <= 2 * encoded.len());
            }
        }
        stop(threads).await;
    }

    #[tokio::test]
    async fn chunks_are_small_when_memory_is_short() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let events = (0..100).map(|id| event("t", id, 4000)).collect();
        store(&partition, events).await;
        let all = partition.0.lanes.chunks.take_all();
        let mut reader = partition
            .reader_here(None, &Start::Earliest)
            .expect("begins");
        let mut read = 0;
        loop {
            let chunk = reader.read_here(Sequence::MAX, usize::MAX).expect("reads");
            let bytes = chunk.events.iter().map(|event| event.encoded.len());
            assert!(bytes.sum::<usize>() <= ReadLimits::default().small_chunk_bytes);
            assert!(chunk.share.is_none());
            read += chunk.events.len();
            if chunk.caught_up {
                break;
            }
        }
        assert_eq!(read, 100);
        drop(all);
        stop(threads).await;
    }

    #[tokio::test]
    async fn an_event_larger_than_a_chunk_waits_for_its_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = PartitionOptions {
            tail_cache_bytes_max: CHUNK_BYTES_MAX,
            ..PartitionOptions::new(dir.path())
        };
        let (partition, threads) = opened_with(options).await;
        // Only the log has the first, and only memory the last.
        let bytes = [20_000, CHUNK_BYTES_MAX + 1, 20_000];
        for (id, bytes) in bytes.into_iter().enumerate() {
            store(&partition, vec![event("t", id, bytes)]).await;
        }
        assert!(partition.0.tail.recent(1).is_none() && partition.0.tail.recent(3).is_some());
        for topic in [None, Some(Topic::new("t").expect("valid"))] {
            let permits = Arc::new(tokio::sync::Semaphore::new(1));
            let permit = permits.acquire_owned().await.expect("open");
            let account = ChunkAccount::default();
            let reader = partition.reader(topic, &Start::Earliest, permit, &account);
            let mut reader = reader.await.expect("begins");
            let memory = &partition.0.lanes.chunks;
            let free = memory.free();
            for bytes in bytes {
                let all = memory.take_all();
                let mut reading = Box::pin(reader.read(Sequence::MAX, usize::MAX));
                let early = timeout(Duration::from_millis(50), reading.as_mut()).await;
                assert!(early.is_err(), "{bytes} bytes without their memory");
                drop(all);
                let chunk = reading.await.expect("reads");
                assert_eq!(chunk.events.len(), 1);
                let share = chunk.share.expect("it is covered");
                assert_eq!(free - memory.free(), share.bytes());
                assert!(share.bytes() > bytes);
            }
            assert_eq!(memory.free(), free);
        }
        stop(threads).await;
    }

    #[tokio::test]
    async fn readers_that_are_cut_leave_their_lane_and_their_permit() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let readers = Arc::new(tokio::sync::Semaphore::new(1));
        let permit = Arc::clone(&readers).acquire_owned().await.expect("open");
        let mut reader = partition
            .reader(None, &Start::Earliest, permit, &ChunkAccount::default())
            .await
            .expect("begins");
        let (go_on, gate) = std::sync::mpsc::channel::<()>();
        let (began, begun) = std::sync::mpsc::channel::<()>();
        let permit = reader.permit.clone();
        let scanning = partition.0.lanes.scan(move || {
            let _permit = permit;
            _ = began.send(());
            _ = gate.recv();
        });
        let mut scanning = Box::pin(scanning);
        assert!(futures_util::poll!(scanning.as_mut()).is_pending());
        begun.recv().expect("it runs");
        reader.permit = None;
        drop((scanning, reader));
        // It runs on, and holds what it has taken.
        assert_eq!(readers.available_permits(), 0);
        let free = partition.0.lanes.free_scans();
        assert_eq!(free, super::super::lanes::SCANS_MAX - 1);
        drop(go_on);
        _ = readers.acquire().await.expect("open");
        stop(threads).await;
    }

    /// A batch of three events, the second of which takes a chunk to its limit, or just beyond it.
    #[tokio::test]
    async fn an_event_at_the_limit_of_a_chunk_is_read_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (partition, threads) = opened(dir.path()).await;
        let first = event("t", 100, CHUNK_BYTES_MAX / 2);
        let overhead = event("t", 200, CHUNK_BYTES_MAX / 2).encoded().len() - CHUNK_BYTES_MAX / 2;
        let left = CHUNK_BYTES_MAX
            - (first.encoded().len() + EVENT_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES)
            - EVENT_OVERHEAD_BYTES
            - overhead;
        for (beyond, expected) in [(0, [2, 1]), (1, [1, 2])] {
            let begin = Start::After(
                partition
                    .reader_here(None, &Start::Latest)
                    .expect("begins")
                    .cursor(),
            );
            let events = [
                event("t", 100 + beyond, CHUNK_BYTES_MAX / 2),
                event("t", 200 + beyond, left + beyond),
                event("t", 300 + beyond, 10),
            ];
            store(&partition, events.to_vec()).await;
            let mut reader = partition.reader_here(None, &begin).expect("begins");
            for count in expected {
                let chunk = reader.read_here(Sequence::MAX, usize::MAX).expect("reads");
                assert_eq!(chunk.events.len(), count, "{beyond} bytes beyond the limit");
            }
            assert_eq!(reader.next_sequence(), partition.durable_tail());
        }
        stop(threads).await;
    }
}
