//! Finds the end of a log, however its writer stopped.
//!
//! Owns the rule: only the last batch can be unfinished, because only one is ever unsynced. Such a batch is
//! removed. A bad batch with others behind it, a missing or truncated segment, or a log that ends before a
//! tail known to have been durable is damage to acknowledged events: then nothing is changed.

use std::{io, path::Path, sync::Arc};

use super::{
    FileLogOptions, LogOpenError,
    directory::{self, NEXT_NAME},
    segment::{Places, SEGMENT_HEADER_BYTES, Segment, segment_path},
    walk::{RunEnd, Walk},
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence},
    platform::{Disk, DiskFile},
};

/// Zeros are written in steps of this many bytes.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A log as found and repaired.
pub(super) struct Recovered {
    /// All segments; the last one is being filled. None if the log is new.
    pub segments: Vec<Arc<Segment>>,
    /// The batch offsets they remember.
    pub places: Arc<Places>,
    /// The last segment, open for writing, and where its next batch goes.
    pub last: Option<(Arc<dyn DiskFile>, u64)>,
    pub tail: Sequence,
}

/// Recovers the log in `dir`. Everything below `tail_min` of the options was once durable.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    options: &FileLogOptions,
) -> Result<Recovered, LogOpenError> {
    let tail_min = options.tail_min;
    let scan_bytes = options.windows.scan_bytes;
    let listing = directory::list(disk, dir)?;
    let mut segments: Vec<Arc<Segment>> = Vec::with_capacity(listing.segments.len());
    let places = Arc::new(Places::new(options.place_spacing_bytes));
    let headers = directory::read_headers(disk, dir, &listing.segments);
    for (first_sequence, header) in listing.segments.into_iter().zip(headers) {
        let path = segment_path(dir, first_sequence);
        let header = header?;
        let previous = segments.last().map(|previous| &previous.header);
        directory::check_link(previous, &header).map_err(|reason| LogOpenError::Damaged {
            path: path.clone(),
            offset: 0,
            reason,
        })?;
        segments.push(Arc::new(Segment::in_log(path, header, Arc::clone(&places))));
    }
    let Some(last) = segments.last().cloned() else {
        check_tail(dir, 0, FIRST_SEQUENCE, tail_min)?;
        remove_leftover(disk, dir, listing.has_leftover)?;
        return Ok(Recovered {
            segments,
            places,
            last: None,
            tail: FIRST_SEQUENCE,
        });
    };
    let mut walk = Walk::open(last.clone(), disk, scan_bytes).map_err(at(&last.path))?;
    let run = run_all(&mut walk).map_err(at(&last.path))?;
    let rest = walk.rest(&run).map_err(at(&last.path))?;
    if let Some(frame) = rest.frame {
        return Err(LogOpenError::Damaged {
            path: last.path.clone(),
            offset: run.offset,
            reason: format!(
                "{} where sequence {} should be, but there is a batch behind it at offset {}",
                run.what, run.sequence, frame.offset
            ),
        });
    }
    if run.sequence == last.header.first_sequence
        && let [.., previous, _] = &segments[..]
    {
        check_end(disk, previous, run.sequence, scan_bytes)?;
    }
    check_tail(&last.path, run.offset, run.sequence, tail_min)?;
    remove_leftover(disk, dir, listing.has_leftover)?;
    let file = disk.open_write(&last.path).map_err(at(&last.path))?;
    if rest.dirty_end > run.offset {
        let bytes = rest.dirty_end - run.offset;
        let path = last.path.display();
        tracing::warn!(%path, offset = run.offset, bytes, "removing an unfinished batch");
        zero(&*file, run.offset, rest.dirty_end).map_err(at(&last.path))?;
    }
    // An intact batch may never have been synced, and readers are about to see it. After a failed sync the
    // system may take bytes that never reached the disk for written: only writing them again makes it write
    // them.
    if let Some(frame) = &run.last {
        let rewritten = walk
            .framed(frame)
            .and_then(|bytes| file.write_all_at(&bytes, frame.offset));
        rewritten.map_err(at(&last.path))?;
    }
    file.sync_data().map_err(at(&last.path))?;
    // The name of the newest segment may not be durable either.
    disk.sync_dir(dir).map_err(at(dir))?;
    last.set_end(run.offset);
    last.share(&file);
    Ok(Recovered {
        segments,
        places,
        last: Some((file, run.offset)),
        tail: run.sequence,
    })
}

fn run_all(walk: &mut Walk) -> io::Result<RunEnd> {
    let first_sequence = walk.segment.header.first_sequence;
    walk.run(SEGMENT_HEADER_BYTES as u64, first_sequence, |_| ())
}

/// Checks that a full segment ends where the next starts.
fn check_end(
    disk: &dyn Disk,
    segment: &Arc<Segment>,
    end: Sequence,
    scan_bytes: usize,
) -> Result<(), LogOpenError> {
    let run = Walk::open(segment.clone(), disk, scan_bytes)
        .and_then(|mut walk| run_all(&mut walk))
        .map_err(at(&segment.path))?;
    if run.sequence == end {
        return Ok(());
    }
    Err(LogOpenError::Damaged {
        path: segment.path.clone(),
        offset: run.offset,
        reason: format!(
            "{} where sequence {} should be; the next file begins at {end}",
            run.what, run.sequence
        ),
    })
}

fn check_tail(
    path: &Path,
    offset: u64,
    tail: Sequence,
    tail_min: Sequence,
) -> Result<(), LogOpenError> {
    if tail >= tail_min {
        return Ok(());
    }
    Err(LogOpenError::Damaged {
        path: path.into(),
        offset,
        reason: format!("the log ends before sequence {tail}, but {tail_min} was its durable tail"),
    })
}

fn remove_leftover(disk: &dyn Disk, dir: &Path, has_leftover: bool) -> Result<(), LogOpenError> {
    if !has_leftover {
        return Ok(());
    }
    let path = dir.join(NEXT_NAME);
    disk.remove(&path).map_err(at(&path))
}

fn zero(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let bytes = (to - offset).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..bytes as usize], offset)?;
        offset += bytes;
    }
    Ok(())
}

/// Adds the path to an error of the file system.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> LogOpenError {
    move |source| LogOpenError::Io {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::log::{
        FileLog, FileLogOptions, Log as _,
        files::{
            frame::Frame,
            segment::SegmentHeader,
            support::{append_many, assert_whole, batch_at, flip, frames, open, segments, small},
        },
        support::{batch, event},
    };
    use crate::platform::Platform;

    fn reopen(dir: &Path, tail_min: Sequence) -> Result<FileLog, LogOpenError> {
        let options = FileLogOptions {
            tail_min,
            ..small()
        };
        FileLog::open(&Platform::default(), dir, &options)
    }

    /// Opens a damaged log, which must fail and change nothing, and returns the place of the damage.
    fn damage(dir: &Path, tail_min: Sequence) -> (String, u64) {
        let before: Vec<_> = segments(dir).iter().map(fs::read).map(Result::ok).collect();
        let error = reopen(dir, tail_min).err().expect("is refused");
        assert!(error.to_string().contains("oncelog verify"), "{error}");
        let after: Vec<_> = segments(dir).iter().map(fs::read).map(Result::ok).collect();
        assert_eq!(before, after);
        match error {
            LogOpenError::Damaged { path, offset, .. } => {
                let name = path.file_name().expect("has a name");
                (name.to_string_lossy().into_owned(), offset)
            }
            LogOpenError::Io { .. } | LogOpenError::UnknownVersion { .. } => panic!("{error}"),
        }
    }

    /// A log of some batches in one segment: its path, and where the last batch starts and ends.
    fn one_segment(dir: &Path) -> (std::path::PathBuf, u64, u64, Sequence) {
        let mut log = open(dir);
        append_many(&mut log, 3);
        let kept = log.tail();
        append_many(&mut log, 1);
        drop(log);
        let path = segments(dir).remove(0);
        let frames = frames(&path);
        assert_eq!(frames.len(), 5);
        (path, frames[3], frames[4], kept)
    }

    #[test]
    fn a_torn_batch_is_removed_wherever_it_is_torn() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, start, end, kept) = one_segment(dir.path());
        let whole = fs::read(&path).expect("reads");
        for torn_at in start..end {
            let mut torn = whole.clone();
            torn[torn_at as usize..].fill(0);
            let is_whole = torn == whole;
            fs::write(&path, torn).expect("writes");
            let mut log = reopen(dir.path(), kept).expect("opens");
            assert_eq!(log.tail() > kept, is_whole, "torn at {torn_at}");
            assert_whole(&log);
            append_many(&mut log, 1);
            drop(log);
            assert_eq!(fs::read(&path).expect("reads").len(), whole.len());
            assert_whole(&open(dir.path()));
        }
    }

    #[test]
    fn the_front_of_the_last_batch_may_be_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, start, end, kept) = one_segment(dir.path());
        let mut torn = fs::read(&path).expect("reads");
        torn[start as usize..end as usize - 40].fill(0);
        fs::write(&path, torn).expect("writes");
        assert_eq!(open(dir.path()).tail(), kept);
        let zeroed = fs::read(&path).expect("reads");
        assert!(zeroed[start as usize..].iter().all(|byte| *byte == 0));
    }

    /// However much a torn write left, and though none of it is a zero.
    #[test]
    fn everything_behind_the_last_batch_is_zeroed() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = FileLogOptions {
            segment_bytes_min: 40_960,
            segment_bytes_max: 40_960,
            ..small()
        };
        let open = || FileLog::open(&Platform::default(), dir.path(), &options).expect("opens");
        let mut log = open();
        append_many(&mut log, 4);
        let tail = log.tail();
        drop(log);
        let path = segments(dir.path()).remove(0);
        let whole = fs::read(&path).expect("reads");
        let end = *frames(&path).last().expect("the end of the last") as usize;
        let mut torn = whole.clone();
        torn[end..20_000].fill(0x5a);
        fs::write(&path, torn).expect("writes");
        assert_eq!(open().tail(), tail);
        assert!(fs::read(&path).expect("reads") == whole);
    }

    #[test]
    fn a_flip_in_the_last_batch_shows_against_a_known_tail() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, start, end, kept) = one_segment(dir.path());
        let whole = fs::read(&path).expect("reads");
        let last = batch_at(kept);
        let bytes = start..start + 8 + last.encoded().len() as u64;
        assert_eq!(bytes.end.next_multiple_of(8), end);
        for at in bytes {
            fs::write(&path, &whole).expect("writes");
            flip(&path, at);
            let name = "00000000000000000001.log".to_string();
            assert_eq!(damage(dir.path(), last.end_sequence()), (name, start));
            assert_eq!(reopen(dir.path(), kept).expect("opens").tail(), kept);
        }
    }

    #[test]
    fn a_flip_in_an_earlier_batch_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, start, ..) = one_segment(dir.path());
        let whole = fs::read(&path).expect("reads");
        let frames = frames(&path);
        for at in SEGMENT_HEADER_BYTES as u64..start {
            let (offset, end) = (0..3)
                .map(|frame| (frames[frame], frames[frame + 1]))
                .find(|(_, end)| at < *end)
                .expect("in a batch");
            let len = &whole[offset as usize..offset as usize + 4];
            let len = u32::from_le_bytes(len.try_into().expect("4 bytes"));
            if at >= offset + 8 + u64::from(len) {
                assert!(at < end, "padding");
                continue;
            }
            fs::write(&path, &whole).expect("writes");
            flip(&path, at);
            let name = "00000000000000000001.log".to_string();
            assert_eq!(damage(dir.path(), 1), (name, offset), "flip at {at}");
        }
    }

    /// A frame that a publisher put into an event would look like a batch behind a torn one, but for the
    /// salt.
    #[test]
    fn a_frame_in_an_event_is_not_a_batch() {
        for knows_salt in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            let mut log = open(dir.path());
            append_many(&mut log, 1);
            let (first, segment) = (log.tail(), segments(dir.path()).remove(0));
            let start = frames(&segment)[1];
            let header = fs::read(&segment).expect("reads");
            let header = header.first_chunk().expect("has a header");
            let salt = SegmentHeader::decode(header).expect("a header").salt;
            let salt = if knows_salt { salt } else { !salt };
            let later = batch_at(first + 1);
            // Twice, because only the finished batch shows where the payload starts.
            let mut payload = Vec::new();
            let mut payload_at = start;
            for _ in 0..2 {
                payload.clear();
                let offset = payload_at.next_multiple_of(8);
                payload.resize((offset - payload_at) as usize, 0);
                payload.extend_from_slice(&Frame::prefix(salt, offset, later.encoded()));
                payload.extend_from_slice(later.encoded());
                payload.resize(1000, 1);
                let batch = batch(first, 0, &[event("a", "frame", &payload)]);
                payload_at = start + 8 + (batch.encoded().len() - payload.len()) as u64;
            }
            log.append(&batch(first, 0, &[event("a", "frame", &payload)]))
                .expect("appends");
            drop(log);
            flip(&segment, start + 4);
            if knows_salt {
                assert_eq!(damage(dir.path(), 1).1, start);
            } else {
                assert_eq!(open(dir.path()).tail(), first);
            }
        }
    }

    #[test]
    fn a_roll_may_be_interrupted() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        append_many(&mut log, 30);
        drop(log);
        let segments = segments(dir.path());
        let [.., before, last] = &segments[..] else {
            panic!("there are several");
        };
        let mut bytes = fs::read(last).expect("reads");
        bytes[SEGMENT_HEADER_BYTES..].fill(0);
        fs::write(last, bytes).expect("writes");
        fs::write(dir.path().join(NEXT_NAME), b"leftover").expect("writes");
        let log = open(dir.path());
        let name = last.file_name().expect("has one").to_string_lossy();
        assert_eq!(name, format!("{:020}.log", log.tail()));
        assert_whole(&log);
        drop(log);

        let frames = frames(before);
        let [.., start, _] = frames[..] else {
            panic!("there are several");
        };
        flip(before, start + 20);
        let name = before.file_name().expect("has one").to_string_lossy();
        assert_eq!(damage(dir.path(), 1), (name.into_owned(), start));
    }

    #[test]
    fn files_that_are_missing_or_cut_off_are_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        append_many(&mut log, 60);
        let tail = log.tail();
        drop(log);
        let segments = segments(dir.path());
        let name = |at: usize| {
            let name = segments[at].file_name().expect("has one");
            name.to_string_lossy().into_owned()
        };
        assert!(segments.len() > 3);
        let last = segments.len() - 1;
        for (at, missing) in segments[..last].iter().enumerate() {
            let bytes = fs::read(missing).expect("reads");
            fs::remove_file(missing).expect("removes");
            assert_eq!(damage(dir.path(), 1), (name(at + 1), 0));
            fs::write(missing, bytes).expect("writes");
        }
        let bytes = fs::read(&segments[last]).expect("reads");
        for len in [0, 10, 64, 4095] {
            fs::write(&segments[last], &bytes[..len]).expect("writes");
            assert_eq!(damage(dir.path(), 1), (name(last), 0));
        }
        fs::remove_file(&segments[last]).expect("removes");
        assert_eq!(damage(dir.path(), tail).0, name(last - 1));
        for path in &segments[..last] {
            fs::remove_file(path).expect("removes");
        }
        damage(dir.path(), tail);
        assert_eq!(reopen(dir.path(), 1).expect("opens").tail(), 1);
    }

    #[test]
    fn a_file_of_another_log_is_damage() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        for dir in &dirs {
            append_many(&mut open(dir.path()), 40);
        }
        let [ours, others] = dirs.each_ref().map(|dir| segments(dir.path()));
        fs::copy(&others[1], &ours[1]).expect("copies");
        let name = ours[1].file_name().expect("has one").to_string_lossy();
        assert_eq!(damage(dirs[0].path(), 1), (name.into_owned(), 0));
    }
}
