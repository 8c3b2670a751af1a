//! Reads the log beside its writer.
//!
//! Owns [`FileReader`] and the state it shares with the writer. Never sees an event before the writer
//! declares it durable. A clone remembers where its last batch ended, so reading in order reads each byte
//! once.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    ReadWindows,
    frame::Frame,
    segment::{Places, Segment},
    walk::{NoBatch, Walk},
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence, Topic},
    log::{Batch, LogReadError, LogReader},
    platform::Disk,
};

/// The state shared by the writer of a log and its readers.
pub(super) struct LogState {
    pub disk: Arc<dyn Disk>,
    pub id: u64,
    /// Ascending, without gaps; never empty once the log is open.
    pub segments: RwLock<Vec<Arc<Segment>>>,
    pub places: Arc<Places>,
    /// How many batch offsets may be remembered.
    pub places_max: usize,
    pub windows: ReadWindows,
    pub tail: AtomicU64,
    pub storage_bytes: Arc<AtomicU64>,
}

impl LogState {
    fn segment_of(&self, sequence: Sequence) -> Option<Arc<Segment>> {
        let segments = self.segments.read().expect("no one panics with it");
        let after = segments.partition_point(|s| s.header.first_sequence <= sequence);
        Some(segments[after.checked_sub(1)?].clone())
    }

    /// Forgets batch offsets if there are too many.
    pub fn trim_places(&self) {
        if self.places.known() > self.places_max {
            let segments = self.segments.read().expect("no one panics with it").clone();
            self.places.trim(segments, self.places_max);
        }
    }
}

/// Reads a [`FileLog`](super::FileLog). A clone starts afresh, with nothing read ahead.
pub struct FileReader {
    shared: Arc<LogState>,
    position: Mutex<Option<Position>>,
}

/// The end of the last batch read.
struct Position {
    walk: Walk,
    windows: ReadWindows,
    sequence: Sequence,
    offset: u64,
}

impl FileReader {
    pub(super) fn new(shared: Arc<LogState>) -> Self {
        Self {
            shared,
            position: Mutex::new(None),
        }
    }

    /// Where to look for a sequence: after the last batch if it is near, or at a known place before it.
    fn seek(&self, segment: Arc<Segment>, sequence: Sequence) -> io::Result<Position> {
        let last = self.position.lock().expect("no one panics with it").take();
        if let Some(last) = last
            && Arc::ptr_eq(&last.walk.segment, &segment)
        {
            if last.sequence == sequence {
                return Ok(last);
            }
            let known = segment.nearest(sequence);
            let (sequence, offset) = if last.sequence > sequence || last.offset < known.1 {
                known
            } else {
                (last.sequence, last.offset)
            };
            return Ok(Position {
                walk: last.walk,
                windows: last.windows,
                sequence,
                offset,
            });
        }
        let (sequence, offset) = segment.nearest(sequence);
        let windows = self.shared.windows;
        Ok(Position {
            walk: Walk::open(segment, &*self.shared.disk, windows.random_bytes)?,
            windows,
            sequence,
            offset,
        })
    }

    /// Calls `read` with the position before `sequence`; none if the log does not have it.
    fn at<T>(
        &self,
        sequence: Sequence,
        read: impl FnOnce(&mut Position) -> Result<T, NoBatch>,
    ) -> Result<Option<T>, LogReadError> {
        let tail = self.shared.tail.load(Ordering::Acquire);
        if !(FIRST_SEQUENCE..tail).contains(&sequence) {
            return Ok(None);
        }
        let Some(segment) = self.shared.segment_of(sequence) else {
            return Ok(None);
        };
        let path = &segment.path.clone();
        let mut position = self
            .seek(segment, sequence)
            .map_err(|error| read_error(path, 0, NoBatch::Io(error)))?;
        match read(&mut position) {
            Ok(read) => {
                *self.position.lock().expect("no one panics with it") = Some(position);
                self.shared.trim_places();
                Ok(Some(read))
            }
            Err(error) => Err(read_error(path, position.offset, error)),
        }
    }
}

impl Position {
    /// The frame of the batch with `sequence`, which is here or later in the segment. Moves to it.
    fn find(&mut self, sequence: Sequence) -> Result<Frame, NoBatch> {
        loop {
            let frame = self.walk.frame(self.offset)?;
            if frame.fixed.first_sequence != self.sequence {
                return Err(NoBatch::Damaged("the batch is not the next one"));
            }
            self.walk.segment.note(self.sequence, self.offset);
            if sequence < frame.fixed.end_sequence() {
                return Ok(frame);
            }
            self.pass(&frame);
        }
    }

    fn pass(&mut self, frame: &Frame) {
        self.sequence = frame.fixed.end_sequence();
        self.offset = frame.next_offset();
    }

    /// Reads the batch with `sequence`, which is here or later in the segment, and moves behind it.
    fn read(&mut self, sequence: Sequence, topic: Option<&Topic>) -> Result<Batch, NoBatch> {
        let in_order = topic.is_none() && self.sequence == sequence;
        self.walk.ahead = if in_order {
            self.windows.sequential_bytes
        } else {
            self.windows.random_bytes
        };
        let frame = self.find(sequence)?;
        let batch = match topic {
            Some(topic) => self.walk.group(&frame, topic)?,
            None => self.walk.batch(&frame)?,
        };
        self.pass(&frame);
        self.walk.release(self.offset);
        Ok(batch)
    }

    fn batch_checksum(&mut self, sequence: Sequence) -> Result<u32, NoBatch> {
        self.walk.ahead = self.windows.random_bytes;
        let frame = self.find(sequence)?;
        Ok(frame.fixed.header_crc)
    }
}

impl LogReader for FileReader {
    fn read(
        &self,
        sequence: Sequence,
        topic: Option<&Topic>,
    ) -> Result<Option<Batch>, LogReadError> {
        self.at(sequence, |position| position.read(sequence, topic))
    }

    fn batch_checksum(&self, sequence: Sequence) -> Result<Option<u32>, LogReadError> {
        self.at(sequence, |position| position.batch_checksum(sequence))
    }

    fn fresh(&self) -> Arc<dyn LogReader> {
        Arc::new(self.clone())
    }

    fn id(&self) -> u64 {
        self.shared.id
    }

    fn head(&self) -> Sequence {
        let segments = self.shared.segments.read().expect("no one panics with it");
        let first = segments.first().expect("an open log has a segment");
        first.header.first_sequence
    }

    fn storage_bytes(&self) -> u64 {
        self.shared.storage_bytes.load(Ordering::Relaxed)
    }
}

fn read_error(path: &Path, offset: u64, error: NoBatch) -> LogReadError {
    match error {
        NoBatch::Io(source) => LogReadError::Io {
            path: path.into(),
            source: Arc::new(source),
        },
        NoBatch::Damaged(what) => LogReadError::Damaged {
            path: path.into(),
            offset,
            what: what.into(),
        },
    }
}

impl Clone for FileReader {
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::log::{
        FileLog, FileLogOptions, Log as _,
        files::support::{append_many, batch_at, flip, frames, open, segments},
        support::{batch, event, topic},
    };
    use crate::platform::Platform;

    #[test]
    fn every_sequence_is_found_in_any_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        append_many(&mut log, 60);
        let tail = log.tail();
        drop(log);
        let log = open(dir.path());
        let reader = log.reader();
        // 1009 is a prime, so the steps reach every sequence.
        let mut sequence = 0;
        for _ in FIRST_SEQUENCE..tail {
            sequence = (sequence + 1009) % (tail - 1);
            let batch = reader
                .read(sequence + 1, None)
                .expect("reads")
                .expect("is there");
            assert!((batch.first_sequence()..batch.end_sequence()).contains(&(sequence + 1)));
            assert_eq!(batch.encoded(), batch_at(batch.first_sequence()).encoded());
        }
        for outside in [0, tail, u64::MAX] {
            assert!(reader.read(outside, None).expect("reads").is_none());
        }
    }

    #[test]
    fn one_topic_is_read_by_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = FileLogOptions::default();
        let mut log = FileLog::open(&Platform::default(), dir.path(), &options).expect("opens");
        let events: Vec<_> = (0..100)
            .map(|index| {
                let topic = ["a", "b", "c"][index % 3];
                event(topic, &index.to_string(), &[7; 2000])
            })
            .collect();
        let whole = batch(1, 5, &events);
        log.append(&whole).expect("appends");
        let reader = log.reader();
        for name in ["a", "b", "c"] {
            let topic = topic(name);
            let part = reader
                .read(7, Some(&topic))
                .expect("reads")
                .expect("is there");
            assert_eq!(part.count(), 100);
            assert!(part.bytes() < whole.bytes() / 2);
            let expected: Vec<_> = whole.events_of(&topic).collect();
            assert_eq!(part.events_of(&topic).collect::<Vec<_>>(), expected);
        }
        let part = reader
            .read(7, Some(&topic("d")))
            .expect("reads")
            .expect("is there");
        assert!(!part.has_topic(&topic("d")));
        assert_eq!(part.events_of(&topic("d")).count(), 0);

        // Damage to one topic does not affect another.
        let start = frames(&segments(dir.path())[0])[0];
        let of_a = whole.encoded().len() / 6;
        flip(&segments(dir.path())[0], start + of_a as u64);
        let reader = log.reader();
        assert!(reader.read(7, Some(&topic("b"))).is_ok());
        for read in [reader.read(7, Some(&topic("a"))), reader.read(7, None)] {
            let error = read.expect_err("damaged");
            assert!(matches!(error, LogReadError::Damaged { offset, .. } if offset == start));
        }
    }

    #[test]
    fn reading_in_order_reads_each_byte_about_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = FileLogOptions::default();
        let mut log = FileLog::open(&Platform::default(), dir.path(), &options).expect("opens");
        append_many(&mut log, 500);
        let reader = log.reader();
        let mut sequence = FIRST_SEQUENCE;
        while let Some(batch) = reader.read(sequence, None).expect("reads") {
            sequence = batch.end_sequence();
            let position = reader.position.lock().expect("no panic");
            let position = position.as_ref().expect("was read");
            assert_eq!(position.sequence, sequence);
            assert_eq!(position.walk.ahead, ReadWindows::default().sequential_bytes);
        }
        assert_eq!(sequence, log.tail());
        let segment = log.reader().shared.segment_of(1).expect("is there");
        assert!(segment.noted() > 1);
    }

    #[test]
    fn readers_run_beside_the_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        let readers: Vec<_> = [None, Some(topic("a")), None]
            .into_iter()
            .map(|of| {
                let reader = log.reader();
                thread::spawn(move || {
                    let mut sequence = FIRST_SEQUENCE;
                    while sequence < 1000 {
                        let Some(batch) = reader.read(sequence, of.as_ref()).expect("reads") else {
                            thread::yield_now();
                            continue;
                        };
                        let expected = batch_at(sequence);
                        match &of {
                            None => assert_eq!(batch.encoded(), expected.encoded()),
                            Some(topic) => {
                                assert!(batch.events_of(topic).eq(expected.events_of(topic)))
                            }
                        }
                        sequence = batch.end_sequence();
                    }
                })
            })
            .collect();
        while log.tail() < 1000 {
            append_many(&mut log, 1);
        }
        for reader in readers {
            reader.join().expect("reads all");
        }
    }
}
