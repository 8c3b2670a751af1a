//! Reads a whole log and reports all damage, for `oncelog verify`.
//!
//! Owns [`check`]. After a damaged batch it goes on with the next one it can find. Changes nothing; nobody
//! may have the log open for writing meanwhile.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LogOpenError, ReadWindows, directory,
    segment::{SEGMENT_HEADER_BYTES, Segment, SegmentHeader, segment_path},
    walk::{RunEnd, Walk},
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence},
    log::Batch,
    platform::Disk,
};

/// A place in the log that is not as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "{path} at offset {}: {}", self.offset, self.what)
    }
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The sequence after the last readable event. If it is below a tail that was once durable, acknowledged
    /// events are missing at the end: the log alone does not show that.
    pub tail: Sequence,
    /// All damage to acknowledged events, by place.
    pub damage: Vec<Damage>,
    /// Data behind the last batch, if any: most likely a batch that a crash left unfinished, which opening
    /// the log removes.
    pub unfinished: Option<Damage>,
}

/// Checks every batch of the log in `dir` and passes the intact ones to `on_batch`, in order.
///
/// # Errors
/// If the directory cannot be listed, or a file has another format version. Other errors are damage.
pub fn check(
    dir: &Path,
    disk: &dyn Disk,
    mut on_batch: impl FnMut(&Batch),
) -> Result<Checked, LogOpenError> {
    let names = directory::list(disk, dir)?.segments;
    let mut checked = Checked {
        tail: FIRST_SEQUENCE,
        damage: Vec::new(),
        unfinished: None,
    };
    // The previous header, or `None` if unreadable.
    let mut previous: Option<Option<SegmentHeader>> = Some(None);
    for (index, first_sequence) in names.iter().enumerate() {
        let path = segment_path(dir, *first_sequence);
        let header = match directory::read_header(disk, dir, *first_sequence) {
            Ok(header) => header,
            Err(LogOpenError::Damaged { offset, reason, .. }) => {
                checked.add(&path, offset, reason);
                previous = None;
                continue;
            }
            Err(LogOpenError::Io { source, .. }) => {
                checked.add(&path, 0, source.to_string());
                previous = None;
                continue;
            }
            Err(error @ LogOpenError::UnknownVersion { .. }) => return Err(error),
        };
        if let Some(previous) = previous
            && let Err(what) = directory::check_link(previous.as_ref(), &header)
        {
            checked.add(&path, 0, what);
        }
        previous = Some(Some(header));
        let segment = Arc::new(Segment::new(path.clone(), header));
        let next = names.get(index + 1).copied();
        if let Err(error) = checked.segment(segment, disk, next, &mut on_batch) {
            checked.add(&path, 0, error.to_string());
        }
    }
    Ok(checked)
}

impl Checked {
    fn add(&mut self, path: &Path, offset: u64, what: String) {
        self.damage.push(Damage {
            path: path.into(),
            offset,
            what,
        });
    }

    /// Checks a segment, which must end where `next` starts.
    fn segment(
        &mut self,
        segment: Arc<Segment>,
        disk: &dyn Disk,
        next: Option<Sequence>,
        on_batch: &mut impl FnMut(&Batch),
    ) -> io::Result<()> {
        let path = segment.path.clone();
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        let mut sequence = segment.header.first_sequence;
        let mut walk = Walk::open(segment, disk, ReadWindows::default().scan_bytes)?;
        loop {
            let run = walk.run(offset, sequence, |batch| {
                self.tail = batch.end_sequence();
                on_batch(batch);
            })?;
            let rest = walk.rest(&run)?;
            if let Some(frame) = rest.frame {
                self.add_lost(&path, &run, frame.fixed.first_sequence);
                (offset, sequence) = (frame.offset, frame.fixed.first_sequence);
                continue;
            }
            match next {
                Some(next) if next != run.sequence => self.add_lost(&path, &run, next),
                None if rest.dirty_end > run.offset => {
                    self.unfinished = Some(Damage {
                        path,
                        offset: run.offset,
                        what: run.what.into(),
                    });
                }
                Some(_) | None => (),
            }
            return Ok(());
        }
    }

    fn add_lost(&mut self, path: &Path, run: &RunEnd, next: Sequence) {
        let what = format!(
            "{}; the sequences from {} to before {next} are lost",
            run.what, run.sequence
        );
        self.add(path, run.offset, what);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::log::{
        Log as _,
        files::support::{append_many, batch_at, flip, frames, open, segments},
    };
    use crate::platform::OsDisk;

    fn run(dir: &Path) -> (Checked, Vec<Sequence>) {
        let mut met = Vec::new();
        let checked = check(dir, &OsDisk, |batch| {
            assert_eq!(batch.encoded(), batch_at(batch.first_sequence()).encoded());
            met.push(batch.first_sequence());
        });
        (checked.expect("can be checked"), met)
    }

    #[test]
    fn a_whole_log_has_no_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        append_many(&mut log, 40);
        let (checked, met) = run(dir.path());
        assert_eq!(checked.tail, log.tail());
        assert_eq!(checked.damage, []);
        assert_eq!(checked.unfinished, None);
        assert_eq!(met.len(), 40);
    }

    #[test]
    fn all_damage_is_reported_and_the_rest_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        append_many(&mut log, 60);
        let tail = log.tail();
        drop(log);
        let segments = segments(dir.path());
        let last = segments.len() - 1;
        assert!(last >= 4);
        // A batch in the first, the last batch of the second, the header of the third, the last of all.
        let first = frames(&segments[0]);
        flip(&segments[0], first[1] + 50);
        let second = frames(&segments[1]);
        let of_second = second[second.len() - 2];
        flip(&segments[1], of_second + 1);
        let third = frames(&segments[2]);
        flip(&segments[2], 20);
        let of_last = frames(&segments[last]);
        let of_last = of_last[of_last.len() - 2];
        flip(&segments[last], of_last + 60);
        let before: Vec<_> = segments.iter().map(|path| fs::read(path).ok()).collect();

        let (checked, met) = run(dir.path());
        let places: Vec<_> = checked.damage.iter().map(|d| (&d.path, d.offset)).collect();
        let expected = [
            (&segments[0], first[1]),
            (&segments[1], of_second),
            (&segments[2], 0),
        ];
        assert_eq!(places, expected);
        let unfinished = checked.unfinished.expect("the last batch");
        assert_eq!(
            (unfinished.path, unfinished.offset),
            (segments[last].clone(), of_last)
        );
        assert!(checked.tail < tail);
        assert_eq!(met.len(), 60 - 3 - (third.len() - 1));
        let after: Vec<_> = segments.iter().map(|path| fs::read(path).ok()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn a_missing_file_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        append_many(&mut open(dir.path()), 40);
        let segments = segments(dir.path());
        fs::remove_file(&segments[1]).expect("removes");
        let (checked, _) = run(dir.path());
        let paths: Vec<_> = checked.damage.iter().map(|d| &d.path).collect();
        assert_eq!(paths, [&segments[0], &segments[2]]);
    }
}
