//! The directory of a log: which segments there are, and whether they belong together.
//!
//! Owns the names of files and the check of each header against the one before. Changes nothing.

use std::{io, path::Path};

use super::{
    OpenError,
    segment::{BadHeader, SEGMENT_HEADER_BYTES, SegmentHeader, parse_segment_name, segment_path},
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence},
    platform::Disk,
};

/// The name of a segment that is being set aside. One that is found when a log is opened is a leftover.
pub(super) const NEXT_NAME: &str = "next.tmp";

/// What is in a directory.
pub(super) struct Listing {
    /// The names of the segments as sequences, ascending.
    pub segments: Vec<Sequence>,
    pub has_leftover: bool,
}

pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Listing, OpenError> {
    let names = disk.list(dir).map_err(|source| OpenError::Io {
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
) -> Result<SegmentHeader, OpenError> {
    let path = segment_path(dir, first_sequence);
    let (bytes, file_bytes) = read_file(disk, &path).map_err(|source| OpenError::Io {
        path: path.clone(),
        source,
    })?;
    let damaged = |reason: String| OpenError::Damaged {
        path: path.clone(),
        offset: 0,
        reason,
    };
    let Some(bytes) = bytes else {
        return Err(damaged(format!("cut off after {file_bytes} bytes")));
    };
    let header = SegmentHeader::decode(&bytes).map_err(|bad| match bad {
        BadHeader::Damaged(what) => damaged(what.into()),
        BadHeader::UnknownVersion(version) => OpenError::UnknownVersion {
            path: path.clone(),
            version,
        },
    })?;
    if header.file_bytes != file_bytes {
        return Err(damaged(format!(
            "the file has {file_bytes} bytes; it was made with {}",
            header.file_bytes
        )));
    }
    if header.first_sequence != first_sequence {
        let name = header.first_sequence;
        return Err(damaged(format!("the file was made as {name:020}.log")));
    }
    Ok(header)
}

/// Checks that a segment follows `previous`, or is the first. Says what is wrong.
pub(super) fn check_link(
    previous: Option<&SegmentHeader>,
    header: &SegmentHeader,
) -> Result<(), String> {
    let (previous_first, log_id) = match previous {
        Some(previous) => (previous.first_sequence, previous.log_id),
        None => (0, header.log_id),
    };
    if header.log_id != log_id {
        return Err("the file is of another log than the one before".into());
    }
    if header.previous != previous_first {
        let name = header.previous;
        return Err(format!(
            "the file before this one, {name:020}.log, is missing"
        ));
    }
    if previous.is_none() && header.first_sequence != FIRST_SEQUENCE {
        return Err("the log does not begin at its first sequence".into());
    }
    Ok(())
}

type HeaderBytes = [u8; SEGMENT_HEADER_BYTES];

/// The header, if the file is not too short for it, and the file's length.
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
