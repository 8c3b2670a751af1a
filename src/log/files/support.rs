//! Logs in files for the tests of this module.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{FileLog, FileLogOptions, frame::PREFIX_BYTES, segment::SEGMENT_HEADER_BYTES};
use crate::{
    event::{FIRST_SEQUENCE, Sequence},
    log::{
        Batch, Log as _, LogReader as _,
        support::{batch, event},
    },
    platform::Platform,
};

/// Segments of one block, and no wait after a full disk.
pub fn small() -> FileLogOptions {
    FileLogOptions {
        segment_bytes_min: 4096,
        segment_bytes_max: 4096,
        retry_after: Duration::ZERO,
        ..FileLogOptions::default()
    }
}

pub fn open(dir: &Path) -> FileLog {
    FileLog::open(&Platform::default(), dir, &small()).expect("opens")
}

/// The batch that `append_many` appends at a sequence: a few events of two topics.
pub fn batch_at(first_sequence: Sequence) -> Batch {
    let events: Vec<_> = (0..1 + first_sequence % 5)
        .map(|index| {
            let topic = if index % 2 == 0 { "a" } else { "b" };
            let id = (first_sequence + index).to_string();
            event(topic, &id, &vec![0xda; (first_sequence % 300) as usize])
        })
        .collect();
    batch(first_sequence, first_sequence * 10, &events)
}

/// Appends this many batches.
pub fn append_many(log: &mut FileLog, batches: usize) {
    for _ in 0..batches {
        log.append(&batch_at(log.tail())).expect("appends");
    }
}

/// Checks that a log has exactly the batches of `append_many`, up to its tail.
pub fn assert_whole(log: &FileLog) {
    let reader = log.reader();
    let mut sequence = FIRST_SEQUENCE;
    while sequence < log.tail() {
        let read = reader
            .read(sequence, None)
            .expect("reads")
            .expect("is there");
        assert_eq!(read.encoded(), batch_at(sequence).encoded());
        sequence = read.end_sequence();
    }
    assert_eq!(sequence, log.tail());
    assert!(reader.read(sequence, None).expect("reads").is_none());
}

/// The segment files by name.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir)
        .expect("lists")
        .map(|e| e.expect("lists").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension() == Some("log".as_ref()))
        .collect();
    paths.sort();
    paths
}

/// Where the batches of a segment file start, and where the last ends.
pub fn frames(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).expect("reads");
    let mut offset = SEGMENT_HEADER_BYTES;
    let mut frames = vec![offset as u64];
    while let Some(len) = bytes.get(offset..offset + 4) {
        let len = u32::from_le_bytes(len.try_into().expect("4 bytes")) as usize;
        if len == 0 {
            break;
        }
        offset = (offset + PREFIX_BYTES + len).next_multiple_of(8);
        frames.push(offset as u64);
    }
    frames
}

/// Changes one byte of a file.
pub fn flip(path: &Path, offset: u64) {
    let mut bytes = fs::read(path).expect("reads");
    bytes[offset as usize] ^= 0x10;
    fs::write(path, bytes).expect("writes");
}
