//! What is fuzzed of the log: batches, and a segment with all that reads it.
//!
//! A checksum stops nearly every input, so what is behind it is reached with checksums made right.

use std::{path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    Batch, BatchBuilder, Checked, OpenError, check,
    frame::{Frame, HEAD_BYTES, PREFIX_BYTES},
    header::{ENTRY_BYTES, FIXED_BYTES},
    recovery::{self, Recovered},
    segment::{BadHeader, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, segment_path},
    walk::{SCAN_BYTES, Walk},
};
use crate::{
    event::{Event, FIRST_SEQUENCE, StoredEvent, Topic},
    platform::Disk as _,
    simulation::SimDisk,
};

/// Decodes a batch as it is, and with its checksums made right.
pub fn batch(data: &[u8]) {
    let mut bytes = data.to_vec();
    decode_batch(&bytes);
    repair_batch(&mut bytes);
    decode_batch(&bytes);
}

fn decode_batch(bytes: &[u8]) {
    match Batch::decode(Bytes::copy_from_slice(bytes)) {
        Ok(batch) => {
            assert_eq!(batch.encoded(), bytes);
            assert_consistent(&batch);
        }
        Err(error) => assert!(error.to_string().len() < 100, "{error}"),
    }
}

/// What a batch says of itself holds, and a builder makes the same of its events.
fn assert_consistent(batch: &Batch) {
    let events = batch.events();
    assert_eq!(events.len(), batch.count() as usize);
    assert_eq!(
        batch.end_sequence() - batch.first_sequence(),
        u64::from(batch.count())
    );
    for (event, sequence) in events.iter().zip(batch.first_sequence()..) {
        assert_eq!(event.sequence, sequence);
        assert_eq!(event.received_at, batch.received_at());
    }
    let mut by_topic = 0;
    for (name, count) in batch.topics() {
        let topic = Topic::new(name).expect("a batch has topics only");
        assert!(batch.has_topic(&topic));
        let of_topic: Vec<_> = batch.events_of(&topic).collect();
        assert_eq!(of_topic.len(), count as usize);
        assert!(of_topic.is_sorted_by(|a, b| a.sequence < b.sequence));
        by_topic += of_topic.len();
    }
    assert_eq!(by_topic, events.len());
    if let Some(built) = rebuild(batch, &events) {
        assert_eq!(built.encoded(), batch.encoded());
    }
}

/// The batch of the same events, unless a topic has events that are none of it: a batch does not look into
/// its events.
fn rebuild(batch: &Batch, events: &[StoredEvent]) -> Option<Batch> {
    let mut builder = BatchBuilder::new(batch.first_sequence());
    for stored in events {
        let event = Event::from_stored(stored.encoded.clone()).ok()?;
        let topic = Topic::new(event.key().topic()).ok()?;
        batch
            .events_of(&topic)
            .find(|of_topic| of_topic.sequence == stored.sequence)?;
        builder.push(&event);
    }
    Some(builder.finish(batch.received_at()))
}

/// Makes the checksums of a batch right, as far as it has any.
fn repair_batch(bytes: &mut [u8]) {
    let Some(header_bytes) = number(bytes, 4) else {
        return;
    };
    let (mut entry, mut data) = (FIXED_BYTES, header_bytes);
    while entry < header_bytes.min(bytes.len()) {
        let end = entry + ENTRY_BYTES + usize::from(bytes[entry]);
        let Some(group_bytes) = end.checked_sub(8).and_then(|at| number(bytes, at)) else {
            break;
        };
        let Some(group) = bytes.get(data..data + group_bytes) else {
            break;
        };
        let crc = crc32c::crc32c(group);
        let Some(entry_crc) = bytes.get_mut(end - 4..end) else {
            break;
        };
        entry_crc.copy_from_slice(&crc.to_le_bytes());
        (entry, data) = (end, data + group_bytes);
    }
    if let Some(header) = bytes.get(4..header_bytes) {
        let crc = crc32c::crc32c(header);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The `u32` at an offset.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

const HEADER: SegmentHeader = SegmentHeader {
    log_id: 1,
    salt: 2,
    first_sequence: FIRST_SEQUENCE,
    previous: 0,
    file_bytes: 0,
};
const DIR: &str = "log";
/// Where a flip is, and the bits that are changed.
const FLIP_BYTES: usize = 5;

/// Recovers and checks a log of one segment: its bytes as they are, with checksums made right, and with one of
/// them changed after that. The input is the place of the change (u32, little-endian), the bits that change,
/// and what is behind the segment's header.
pub fn segment(data: &[u8]) {
    decode_header(data);
    let Some((flip, body)) = data.split_first_chunk::<FLIP_BYTES>() else {
        return;
    };
    let mut file = HEADER.with_length_of(body).encode().to_vec();
    file.extend_from_slice(body);
    recover_and_check(&file);
    repair_frames(&mut file);
    recover_and_check(&file);
    let [place @ .., bits] = flip;
    let at = SEGMENT_HEADER_BYTES + u32::from_le_bytes(*place) as usize % body.len().max(1);
    if let Some(byte) = file.get_mut(at) {
        *byte ^= bits;
        recover_and_check(&file);
    }
}

impl SegmentHeader {
    fn with_length_of(self, body: &[u8]) -> Self {
        let file_bytes = (SEGMENT_HEADER_BYTES + body.len()) as u64;
        Self { file_bytes, ..self }
    }
}

fn decode_header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<SEGMENT_HEADER_BYTES>() else {
        return;
    };
    let mut repaired = *bytes;
    let crc = crc32c::crc32c(&repaired[..SEGMENT_HEADER_BYTES - 4]);
    repaired[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    for bytes in [bytes, &repaired] {
        match SegmentHeader::decode(bytes) {
            Ok(header) => assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header)),
            Err(BadHeader::Damaged(what)) => assert!(!what.is_empty()),
            Err(BadHeader::UnknownVersion(version)) => {
                assert_ne!(version, super::segment::FORMAT_VERSION);
            }
        }
    }
}

/// Makes the checksums of the batches right that follow each other from the beginning.
fn repair_frames(file: &mut [u8]) {
    let mut offset = SEGMENT_HEADER_BYTES;
    while let Some(batch_bytes) = number(file, offset)
        && let Some(framed) = file.get_mut(offset..offset + PREFIX_BYTES + batch_bytes)
        && framed.len() >= HEAD_BYTES
    {
        let (prefix, batch) = framed.split_at_mut(PREFIX_BYTES);
        repair_batch(batch);
        prefix.copy_from_slice(&Frame::prefix(HEADER.salt, offset as u64, batch));
        offset = (offset + PREFIX_BYTES + batch_bytes).next_multiple_of(8);
    }
}

fn recover_and_check(file: &[u8]) {
    let disk = disk_of(file);
    let (checked, batches) = check_all(&disk);
    let recovered = match recovery::recover(&disk, Path::new(DIR), FIRST_SEQUENCE) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
            assert!(!checked.damage.is_empty(), "{error}, which check misses");
            assert_eq!(file_of(&disk), file, "damage is left as it is");
            return;
        }
    };
    // What recovery takes, it keeps, and what it removes was no whole batch.
    assert_eq!(checked.damage, []);
    assert_eq!(recovered.tail, checked.tail);
    assert_eq!(file_of(&disk).len(), file.len());
    let (again, kept) = check_all(&disk);
    assert_eq!((again.damage, again.unfinished), (Vec::new(), None));
    assert_eq!(kept, batches);
    read_by_topic(&recovered, &disk);

    let repaired = file_of(&disk);
    let twice = recovery::recover(&disk, Path::new(DIR), recovered.tail).expect("whole");
    assert_eq!(twice.tail, recovered.tail);
    assert_eq!(file_of(&disk), repaired);
}

/// Checks the log; also returns its batches, encoded.
fn check_all(disk: &SimDisk) -> (Checked, Vec<Bytes>) {
    let mut batches = Vec::new();
    let checked = check(Path::new(DIR), disk, |batch| {
        assert_consistent(batch);
        batches.push(batch.encoded().clone());
    });
    (checked.expect("a log of this version"), batches)
}

/// Each topic read by itself is what it is in the whole batch.
fn read_by_topic(recovered: &Recovered, disk: &SimDisk) {
    for segment in &recovered.segments {
        let mut walk = Walk::open(Arc::clone(segment), disk, SCAN_BYTES).expect("memory");
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        while let Ok(frame) = walk.frame(offset) {
            let whole = walk.batch(&frame).expect("recovered");
            for (name, _) in whole.topics() {
                let topic = Topic::new(name).expect("a batch has topics only");
                let group = walk.group(&frame, &topic).expect("recovered");
                assert!(group.events_of(&topic).eq(whole.events_of(&topic)));
            }
            offset = frame.next_offset();
        }
        // A file that is made has room for the padding of its last batch.
        assert_eq!(offset.min(Segment::end(segment)), Segment::end(segment));
    }
}

/// A disk with a log of one segment.
fn disk_of(file: &[u8]) -> SimDisk {
    let disk = SimDisk::default();
    disk.create_dir(Path::new(DIR)).expect("memory");
    let path = segment_path(Path::new(DIR), FIRST_SEQUENCE);
    disk.write_new(&path, file).expect("memory");
    disk
}

/// What is in the segment.
fn file_of(disk: &SimDisk) -> Vec<u8> {
    let path = segment_path(Path::new(DIR), FIRST_SEQUENCE);
    disk.read(&path).expect("is never removed")
}

/// Inputs to begin with, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;
    use crate::log::support::{batch, batch_at, event};

    pub(crate) fn batches() -> Vec<(&'static str, Vec<u8>)> {
        let one = batch(1, 2, &[event("a", "1", b"")]);
        let long = "x".repeat(255);
        let many = [("b", "1"), ("a", "1"), ("b", "2"), (&long, "1"), ("a", "2")];
        let many = many.map(|(topic, id)| event(topic, id, b"some data"));
        let many = batch(7, 1_700_000_000_000_000_000, &many);
        let last = batch(u64::MAX - 1, u64::MAX, &[event("a", "1", b"")]);
        let seeds = [("one", one), ("many", many), ("last", last)];
        seeds
            .map(|(name, batch)| (name, batch.encoded().to_vec()))
            .into()
    }

    pub(crate) fn segments() -> Vec<(&'static str, Vec<u8>)> {
        let mut body = Vec::new();
        let mut sequence = FIRST_SEQUENCE;
        let mut last_at = 0;
        for _ in 0..3 {
            let batch = batch_at(sequence);
            last_at = body.len();
            let offset = (SEGMENT_HEADER_BYTES + last_at) as u64;
            body.extend(Frame::prefix(HEADER.salt, offset, batch.encoded()));
            body.extend_from_slice(batch.encoded());
            body.resize(body.len().next_multiple_of(8), 0);
            sequence = batch.end_sequence();
        }
        let end = body.len();
        body.resize(end + 96, 0);
        let seed = |at: usize, bits: u8, body: &[u8]| {
            let at = (at as u32).to_le_bytes();
            [&at[..], &[bits], body].concat()
        };
        vec![
            ("empty", seed(0, 0, &[0; 128])),
            ("whole", seed(0, 0, &body)),
            ("full", seed(0, 0, &body[..end])),
            ("damaged", seed(50, 1, &body)),
            ("unfinished", seed(last_at + 50, 1, &body)),
            ("torn", seed(0, 0, &[&body[..end - 20], &[0; 60]].concat())),
            ("header", HEADER.with_length_of(&body).encode().to_vec()),
        ]
    }
}
