//! Fuzz targets of a segment: everything that reads one.

use std::{path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    Checked, FileLogOptions, LogOpenError, ReadWindows, check,
    frame::{Frame, HEAD_BYTES, PREFIX_BYTES},
    recovery::{self, Recovered},
    segment::{BadHeader, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, segment_path},
    walk::Walk,
};
use crate::{
    event::{FIRST_SEQUENCE, Topic},
    log::fuzzing::{assert_consistent, number, repair_batch},
    platform::Disk as _,
    simulation::SimDisk,
};

const HEADER: SegmentHeader = SegmentHeader {
    log_id: 1,
    salt: 2,
    first_sequence: FIRST_SEQUENCE,
    previous: 0,
    file_bytes: 0,
};
const DIR: &str = "log";
/// The place of a flip, and the bits it changes.
const FLIP_BYTES: usize = 5;

/// Recovers and checks a log of one segment: its bytes unchanged, with checksums corrected, and with one byte
/// changed after that. The input is the place of the change (u32, little-endian), the bits to change, and
/// everything behind the segment's header.
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

/// Corrects the checksums of the consecutive batches at the start.
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
    let recovered = match recovery::recover(&disk, Path::new(DIR), &FileLogOptions::default()) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(matches!(error, LogOpenError::Damaged { .. }), "{error}");
            assert!(!checked.damage.is_empty(), "{error}, which check misses");
            assert_eq!(file_of(&disk), file, "damage is left as it is");
            return;
        }
    };
    // What recovery accepts, it keeps, and what it removes was no whole batch.
    assert_eq!(checked.damage, []);
    assert_eq!(recovered.tail, checked.tail);
    assert_eq!(file_of(&disk).len(), file.len());
    let (again, kept) = check_all(&disk);
    assert_eq!((again.damage, again.unfinished), (Vec::new(), None));
    assert_eq!(kept, batches);
    read_by_topic(&recovered, &disk);

    let repaired = file_of(&disk);
    let options = FileLogOptions {
        tail_min: recovered.tail,
        ..FileLogOptions::default()
    };
    let twice = recovery::recover(&disk, Path::new(DIR), &options).expect("whole");
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

/// Each topic read by itself equals its part of the whole batch.
fn read_by_topic(recovered: &Recovered, disk: &SimDisk) {
    for segment in &recovered.segments {
        let mut walk = Walk::open(Arc::clone(segment), disk, ReadWindows::default().scan_bytes)
            .expect("memory");
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
        // A new file has room for the padding of its last batch.
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

/// The content of the segment.
fn file_of(disk: &SimDisk) -> Vec<u8> {
    let path = segment_path(Path::new(DIR), FIRST_SEQUENCE);
    disk.read(&path).expect("is never removed")
}

/// Seed inputs, by name.
#[cfg(test)]
pub(crate) mod seeds {
    use super::*;
    use crate::log::files::support::batch_at;

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
