//! A segment file: its name, its header, and the offsets of its batches.
//!
//! Owns the header's layout, all integers little-endian, and [`Segment`], the state kept in memory for a
//! file:
//!
//! ```text
//! [u8; 8] magic
//! u32 format version, u32 zero
//! u64 log id             the same in all segments of a log
//! u64 salt               random, of this segment
//! u64 first_sequence     the name of the file
//! u64 previous           first_sequence of the segment before, 0 for none
//! u64 file_bytes         the length of the file
//! u32 zero, u32 crc32c of all before
//! ```
//!
//! Every format version keeps the magic, the version and the checksum in their places. `walk.rs` reads
//! batches.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, RwLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::{Buf, BufMut};

use crate::event::Sequence;
use crate::platform::{Disk, DiskFile};

/// The format version this code writes.
pub(super) const FORMAT_VERSION: u32 = 1;
/// The size of a segment's header, after which batches begin.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"oncelog\n";
/// The default distance between two entries of a segment's index, in bytes.
pub(super) const PLACE_SPACING_BYTES: u64 = 64 * 1024;

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub log_id: u64,
    pub salt: u64,
    pub first_sequence: Sequence,
    /// The first sequence of the previous segment, 0 for none.
    pub previous: Sequence,
    pub file_bytes: u64,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged(&'static str),
    UnknownVersion(u32),
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut header = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        header.put_slice(MAGIC);
        header.put_u32_le(FORMAT_VERSION);
        header.put_u32_le(0);
        header.put_u64_le(self.log_id);
        header.put_u64_le(self.salt);
        header.put_u64_le(self.first_sequence);
        header.put_u64_le(self.previous);
        header.put_u64_le(self.file_bytes);
        header.put_u32_le(0);
        header.put_u32_le(crc32c::crc32c(&header));
        header.try_into().expect("the fields fill the header")
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, BadHeader> {
        let (mut fields, mut crc) = bytes.split_at(SEGMENT_HEADER_BYTES - 4);
        if crc32c::crc32c(fields) != crc.get_u32_le() {
            return Err(BadHeader::Damaged("the file's header fails its checksum"));
        }
        if fields.copy_to_bytes(MAGIC.len()) != MAGIC[..] {
            return Err(BadHeader::Damaged("not a file of a log"));
        }
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(BadHeader::UnknownVersion(version));
        }
        fields.advance(4);
        Ok(Self {
            log_id: fields.get_u64_le(),
            salt: fields.get_u64_le(),
            first_sequence: fields.get_u64_le(),
            previous: fields.get_u64_le(),
            file_bytes: fields.get_u64_le(),
        })
    }
}

/// How many batch offsets are remembered for all segments of a log: memory that grows with the log, unless it is
/// kept within a limit.
pub(super) struct Places {
    known: AtomicUsize,
    /// Counts uses of all segments.
    uses: AtomicU64,
    /// The least distance between two of them, in bytes.
    spacing_bytes: u64,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(PLACE_SPACING_BYTES)
    }
}

impl Places {
    /// None remembered yet; they will be at least `spacing_bytes` apart.
    pub fn new(spacing_bytes: u64) -> Self {
        Self {
            known: AtomicUsize::new(0),
            uses: AtomicU64::new(0),
            spacing_bytes,
        }
    }

    /// The number remembered, beside the start of each segment.
    pub fn known(&self) -> usize {
        self.known.load(Ordering::Relaxed)
    }

    /// Reduces the offsets of `segments` to three quarters of `places_max` if there are more, thinning those of
    /// the least recently used segments first.
    pub fn trim(&self, mut segments: Vec<Arc<Segment>>, places_max: usize) {
        let enough = places_max / 4 * 3;
        segments.sort_by_cached_key(|segment| segment.used.load(Ordering::Relaxed));
        let mut thinned = 1;
        while thinned > 0 {
            thinned = 0;
            for segment in &segments {
                if self.known() <= enough {
                    return;
                }
                thinned += segment.thin();
            }
        }
    }
}

/// A segment file, shared by the writer and readers.
pub(super) struct Segment {
    pub path: PathBuf,
    pub header: SegmentHeader,
    /// The end of what may be read.
    end: AtomicU64,
    /// Ascending: sequences that start a batch, and its offset. The first is always there. Grows as batches are
    /// written or met, and is thinned when the log remembers too many.
    index: RwLock<Vec<(Sequence, u64)>>,
    places: Arc<Places>,
    /// When it was last used, by the log's count of uses.
    used: AtomicU64,
    /// Open as long as anyone uses it, so that a long log does not exhaust the file descriptors.
    file: Mutex<Option<Weak<dyn DiskFile>>>,
}

impl Segment {
    /// A segment that may be read to its end.
    pub fn new(path: PathBuf, header: SegmentHeader) -> Self {
        Self::in_log(path, header, Arc::default())
    }

    /// The same, in a log with other segments.
    pub fn in_log(path: PathBuf, header: SegmentHeader, places: Arc<Places>) -> Self {
        let first = (header.first_sequence, SEGMENT_HEADER_BYTES as u64);
        Self {
            path,
            header,
            end: AtomicU64::new(header.file_bytes),
            index: RwLock::new(vec![first]),
            places,
            used: AtomicU64::new(0),
            file: Mutex::new(None),
        }
    }

    /// The end of what may be read, in bytes.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Lets readers read up to `end`; everything before it is durable.
    pub fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// The file; opens it for reading unless it is open already.
    pub fn open(&self, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.file.lock().expect("no one panics with it");
        if let Some(file) = open.as_ref().and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = disk.open_read(&self.path)?;
        *open = Some(Arc::downgrade(&file));
        Ok(file)
    }

    /// Shares an open file.
    pub fn share(&self, file: &Arc<dyn DiskFile>) {
        *self.file.lock().expect("no one panics with it") = Some(Arc::downgrade(file));
    }

    /// The last remembered batch that starts at or before `sequence`, and its offset.
    pub fn nearest(&self, sequence: Sequence) -> (Sequence, u64) {
        let use_number = self.places.uses.fetch_add(1, Ordering::Relaxed);
        self.used.store(use_number, Ordering::Relaxed);
        let index = self.index.read().expect("no one panics with it");
        let after = index.partition_point(|(first, _)| *first <= sequence);
        index[after.saturating_sub(1)]
    }

    /// Remembers where a batch starts, if that is far from the others.
    pub fn note(&self, first_sequence: Sequence, offset: u64) {
        let spacing_bytes = self.places.spacing_bytes;
        // Where to insert it.
        let place = |index: &[(Sequence, u64)]| {
            let at = index.partition_point(|(_, known)| *known <= offset);
            let (before, after) = (index[..at].last(), index.get(at));
            let is_far = before.is_none_or(|(_, known)| offset >= known + spacing_bytes)
                && after.is_none_or(|(_, known)| *known >= offset + spacing_bytes);
            is_far.then_some(at)
        };
        if place(&self.index.read().expect("no one panics with it")).is_none() {
            return;
        }
        let mut index = self.index.write().expect("no one panics with it");
        if let Some(at) = place(&index) {
            index.insert(at, (first_sequence, offset));
            self.places.known.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets every second offset. Returns how many.
    fn thin(&self) -> usize {
        let mut index = self.index.write().expect("no one panics with it");
        let before = index.len();
        // Copied to new memory: shrinking in place leaves holes that nothing fits into.
        *index = index.iter().copied().step_by(2).collect();
        let forgotten = before - index.len();
        self.places.known.fetch_sub(forgotten, Ordering::Relaxed);
        forgotten
    }

    /// The number of offsets remembered.
    #[cfg(test)]
    pub fn noted(&self) -> usize {
        self.index.read().expect("no one panics with it").len()
    }
}

/// The path of the segment that starts with `first_sequence`.
pub(super) fn segment_path(dir: &Path, first_sequence: Sequence) -> PathBuf {
    dir.join(format!("{first_sequence:020}.log"))
}

/// The first sequence of the segment with this name, if it is one.
pub(super) fn parse_segment_name(name: &str) -> Option<Sequence> {
    let digits = name.strip_suffix(".log")?;
    let is_ours = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_ours.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_header_round_trips(
            fields in any::<[u64; 5]>(),
            at in 0..SEGMENT_HEADER_BYTES,
            flip in 1..=u8::MAX,
        ) {
            let [log_id, salt, first_sequence, previous, file_bytes] = fields;
            let header = SegmentHeader { log_id, salt, first_sequence, previous, file_bytes };
            let mut encoded = header.encode();
            prop_assert_eq!(SegmentHeader::decode(&encoded), Ok(header));
            encoded[at] ^= flip;
            let bad = SegmentHeader::decode(&encoded);
            prop_assert!(matches!(bad, Err(BadHeader::Damaged(_))));
        }

        /// Names sort like their sequences.
        #[test]
        fn any_name_round_trips(one: Sequence, other: Sequence) {
            let [first, second] = [one, other].map(|sequence| {
                let path = segment_path(Path::new(""), sequence);
                path.to_str().expect("digits").to_owned()
            });
            prop_assert_eq!(parse_segment_name(&first), Some(one));
            prop_assert_eq!(first.cmp(&second), one.cmp(&other));
        }
    }

    const HEADER: SegmentHeader = SegmentHeader {
        log_id: 1,
        salt: 2,
        first_sequence: 3,
        previous: 1,
        file_bytes: 4096,
    };

    #[test]
    fn headers_round_trip() {
        let encoded = HEADER.encode();
        assert_eq!(SegmentHeader::decode(&encoded), Ok(HEADER));
        for at in 0..encoded.len() {
            let mut flipped = encoded;
            flipped[at] ^= 1;
            let bad = SegmentHeader::decode(&flipped).expect_err("changed");
            assert!(matches!(bad, BadHeader::Damaged(_)), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_not_damage() {
        let mut encoded = HEADER.encode();
        encoded[8] = 2;
        let crc = crc32c::crc32c(&encoded[..60]);
        encoded[60..].copy_from_slice(&crc.to_le_bytes());
        let bad = SegmentHeader::decode(&encoded);
        assert_eq!(bad, Err(BadHeader::UnknownVersion(2)));
    }

    #[test]
    fn names_round_trip() {
        let path = segment_path(Path::new("dir"), 42);
        assert_eq!(path, Path::new("dir/00000000000000000042.log"));
        assert_eq!(parse_segment_name("00000000000000000042.log"), Some(42));
        for name in ["42.log", "+0000000000000000042.log", "next.tmp", ".log"] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_index_is_sparse() {
        let segment = Segment::new(PathBuf::new(), HEADER);
        for batch in 0..100 {
            segment.note(3 + batch, 64 + batch * PLACE_SPACING_BYTES / 4);
        }
        assert_eq!(segment.noted(), 25);
        assert_eq!(segment.nearest(3), (3, 64));
        assert_eq!(segment.nearest(10), (7, 64 + PLACE_SPACING_BYTES));
    }

    /// Segments with offsets as dense as possible.
    fn full(places: &Arc<Places>, segments: u64, bytes: u64) -> Vec<Arc<Segment>> {
        let segments = (0..segments).map(|number| {
            let header = SegmentHeader {
                first_sequence: 1 + number * bytes,
                ..HEADER
            };
            let path = segment_path(Path::new("/var/lib/oncelog/log"), header.first_sequence);
            Arc::new(Segment::in_log(path, header, Arc::clone(places)))
        });
        segments.collect()
    }

    fn note_all(segment: &Segment, bytes: u64) {
        let first = segment.header.first_sequence;
        for offset in (0..bytes).step_by(PLACE_SPACING_BYTES as usize) {
            segment.note(first + offset, 64 + offset);
        }
    }

    #[test]
    fn places_stay_within_their_limit_and_come_back() {
        const BYTES: u64 = 64 * PLACE_SPACING_BYTES;
        const PLACES_MAX: usize = 160;
        let places = Arc::default();
        let segments = full(&places, 10, BYTES);
        for segment in &segments {
            segment.nearest(segment.header.first_sequence);
            note_all(segment, BYTES);
            if places.known() > PLACES_MAX {
                places.trim(segments.clone(), PLACES_MAX);
                assert!(places.known() <= PLACES_MAX);
            }
        }
        let known: usize = segments.iter().map(|segment| segment.noted() - 1).sum();
        assert_eq!(known, places.known());
        // The segment used last keeps the most offsets, and the rest are still right.
        assert_eq!(segments[9].noted(), 64);
        assert!(segments[0].noted() < 64);
        for segment in &segments {
            let first = segment.header.first_sequence;
            for offset in (0..BYTES).step_by(10_000) {
                let (sequence, at) = segment.nearest(first + offset);
                assert!(sequence <= first + offset);
                assert_eq!(at, 64 + sequence - first);
            }
        }
        note_all(&segments[0], BYTES);
        assert_eq!(segments[0].noted(), 64);
        places.trim(segments, 0);
        assert_eq!(places.known(), 0);
    }

    /// How much memory a log of 1 GB to 10 TB takes, each in its own process: run it with --nocapture. The longest is
    /// not read, which takes minutes.
    #[test]
    #[ignore = "a measurement, not a test"]
    #[expect(clippy::print_stdout, reason = "it is run for what it prints")]
    fn the_memory_of_a_long_log() {
        const BYTES: u64 = 128 * 1024 * 1024;
        const READ_MAX: usize = 8000;
        const SEGMENTS: &str = "ONCELOG_TEST_SEGMENTS";
        let Ok(segments) = std::env::var(SEGMENTS) else {
            let program = std::env::current_exe().expect("this program");
            for segments in [8, 80, 800, 8000, 80_000] {
                let mut measured = std::process::Command::new(&program);
                measured.args(["--ignored", "--nocapture", "the_memory_of_a_long_log"]);
                let status = measured.env(SEGMENTS, segments.to_string()).status();
                assert!(status.expect("it runs").success());
            }
            return;
        };
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
            let pages = statm.split(' ').nth(1).expect("a number of pages");
            pages.parse::<u64>().expect("a number") * 4096
        };
        let places = Arc::default();
        let segments = segments.parse().expect("a number");
        let before = resident();
        let segments = full(&places, segments, BYTES);
        let opened = resident() - before;
        let read = if segments.len() > READ_MAX {
            &[]
        } else {
            &segments[..]
        };
        for segment in read {
            segment.nearest(segment.header.first_sequence);
            note_all(segment, BYTES);
            if places.known() > super::super::file::PLACES_MAX {
                places.trim(segments.clone(), super::super::file::PLACES_MAX);
            }
        }
        let count = segments.len() as u64;
        println!(
            "{} GB in {count} segments: {} KiB when opened, {} bytes each; {} KiB with {} offsets",
            (count * BYTES) >> 30,
            opened / 1024,
            opened / count,
            (resident() - before) / 1024,
            places.known(),
        );
    }
}
