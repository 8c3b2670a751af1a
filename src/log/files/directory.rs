//! The directory of a log: its segments, and whether they belong together.
//!
//! Owns the names of files and the check of each header against the previous one. Changes nothing.

use std::{io, path::Path, thread};

use super::{
    LogOpenError,
    segment::{BadHeader, SEGMENT_HEADER_BYTES, SegmentHeader, parse_segment_name, segment_path},
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence},
    platform::Disk,
};

/// The name of a segment that is being set aside. When a log is opened, such a file is a leftover.
pub(super) const NEXT_NAME: &str = "next.tmp";

/// The most threads that read headers, and the number of headers that justifies each.
const READERS_MAX: usize = 16;
const PART_MIN: usize = 64;

/// The content of a directory.
pub(super) struct Listing {
    /// The names of the segments as sequences, ascending.
    pub segments: Vec<Sequence>,
    pub has_leftover: bool,
}

pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Listing, LogOpenError> {
    let names = disk.list(dir).map_err(|source| LogOpenError::Io {
        path: dir.into(),
        source,
    })?;
    let mut segments: Vec<_> = names.iter().filter_map(|n| parse_segment_name(n)).collect();
    segments.sort_unstable();
    Ok(Listing {
        segments,
        has_leftover: names.iter().any(|name| name == NEXT_NAME),
    })
}

/// Reads the header of the segment named `first_sequence`, and checks it against the file.
pub(super) fn read_header(
    disk: &dyn Disk,
    dir: &Path,
    first_sequence: Sequence,
) -> Result<SegmentHeader, LogOpenError> {
    let path = segment_path(dir, first_sequence);
    let (bytes, file_bytes) = read_file(disk, &path).map_err(|source| LogOpenError::Io {
        path: path.clone(),
        source,
    })?;
    let damaged = |reason: String| LogOpenError::Damaged {
        path: path.clone(),
        offset: 0,
        reason,
    };
    let Some(bytes) = bytes else {
        return Err(damaged(format!("cut off after {file_bytes} bytes")));
    };
    let header = SegmentHeader::decode(&bytes).map_err(|bad| match bad {
        BadHeader::Damaged(what) => damaged(what.into()),
        BadHeader::UnknownVersion(version) => LogOpenError::UnknownVersion {
            path: path.clone(),
            version,
        },
    })?;
    if header.file_bytes != file_bytes {
        return Err(damaged(format!(
            "the file has {file_bytes} bytes; it was created with {}",
            header.file_bytes
        )));
    }
    if header.first_sequence != first_sequence {
        let name = header.first_sequence;
        return Err(damaged(format!("the file was created as {name:020}.log")));
    }
    Ok(header)
}

/// Reads the headers of all segments, in parallel if there are many: a long log would have to wait for each
/// in turn.
pub(super) fn read_headers(
    disk: &dyn Disk,
    dir: &Path,
    segments: &[Sequence],
) -> Vec<Result<SegmentHeader, LogOpenError>> {
    let read = |part: &[Sequence]| -> Vec<_> {
        let headers = part.iter().map(|first| read_header(disk, dir, *first));
        headers.collect()
    };
    let part = segments.len().div_ceil(READERS_MAX).max(PART_MIN);
    thread::scope(|scope| {
        let read = &read;
        let mut parts = segments.chunks(part);
        let first = parts.next().unwrap_or_default();
        let others: Vec<_> = parts
            .map(|part| {
                let spawned = thread::Builder::new().spawn_scoped(scope, move || read(part));
                // Without another thread it takes longer.
                spawned.map_err(|_| part)
            })
            .collect();
        let mut headers = read(first);
        for other in others {
            headers.extend(match other {
                Ok(thread) => thread.join().expect("reading a header does not panic"),
                Err(part) => read(part),
            });
        }
        headers
    })
}

/// Checks that a segment follows `previous`, or is the first. The error is the reason it does not.
pub(super) fn check_link(
    previous: Option<&SegmentHeader>,
    header: &SegmentHeader,
) -> Result<(), String> {
    let (previous_first, log_id) = match previous {
        Some(previous) => (previous.first_sequence, previous.log_id),
        None => (0, header.log_id),
    };
    if header.log_id != log_id {
        return Err("the file belongs to another log than the previous one".into());
    }
    if header.previous != previous_first {
        let name = header.previous;
        return Err(format!("the previous file, {name:020}.log, is missing"));
    }
    if previous.is_none() && header.first_sequence != FIRST_SEQUENCE {
        return Err("the log does not begin at its first sequence".into());
    }
    Ok(())
}

type HeaderBytes = [u8; SEGMENT_HEADER_BYTES];

/// The header, unless the file is too short for one, and the file's length.
fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<(Option<HeaderBytes>, u64)> {
    let file = disk.open_read(path)?;
    let file_bytes = file.len()?;
    if file_bytes < SEGMENT_HEADER_BYTES as u64 {
        return Ok((None, file_bytes));
    }
    let mut header = [0; SEGMENT_HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    Ok((Some(header), file_bytes))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _, time::Instant};

    use super::*;
    use crate::platform::OsDisk;

    /// Empty, consecutive segments.
    fn segments(dir: &Path, segments: u64) -> Vec<Sequence> {
        let names: Vec<_> = (FIRST_SEQUENCE..FIRST_SEQUENCE + segments).collect();
        for name in &names {
            let header = SegmentHeader {
                log_id: 7,
                salt: *name,
                first_sequence: *name,
                previous: name - FIRST_SEQUENCE,
                file_bytes: 4096,
            };
            let file = fs::File::create(segment_path(dir, *name)).expect("created");
            file.set_len(4096).expect("sized");
            file.write_all_at(&header.encode(), 0).expect("written");
        }
        names
    }

    #[test]
    fn many_headers_come_in_order_with_their_faults() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = segments(dir.path(), 5 * PART_MIN as u64 + 3);
        let damaged = names[3 * PART_MIN + 1];
        let path = segment_path(dir.path(), damaged);
        let file = fs::File::options().write(true).open(path);
        let written = file.expect("there").write_all_at(&[9], 20);
        written.expect("written");
        let missing = names[PART_MIN];
        fs::remove_file(segment_path(dir.path(), missing)).expect("removed");
        let headers = read_headers(&OsDisk, dir.path(), &names);
        assert_eq!(headers.len(), names.len());
        for (name, header) in names.iter().zip(headers) {
            match header {
                Ok(header) => assert_eq!(header.first_sequence, *name),
                Err(LogOpenError::Damaged { .. }) => assert_eq!(*name, damaged),
                Err(LogOpenError::Io { .. }) => assert_eq!(*name, missing),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(read_headers(&OsDisk, dir.path(), &[]).is_empty());
    }

    /// How long reading the headers of 10 TB takes: run it with --nocapture.
    #[test]
    #[ignore = "a measurement, not a test"]
    #[expect(clippy::print_stdout, reason = "it is run for what it prints")]
    fn the_time_of_many_headers() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = segments(dir.path(), 80_000);
        let began = Instant::now();
        for name in &names {
            read_header(&OsDisk, dir.path(), *name).expect("whole");
        }
        println!("80,000 headers one after another: {:?}", began.elapsed());
        let began = Instant::now();
        let headers = read_headers(&OsDisk, dir.path(), &names);
        println!("80,000 headers at once: {:?}", began.elapsed());
        assert!(headers.iter().all(Result::is_ok));
    }
}
