//! The log in files: the writer.
//!
//! Owns [`FileLog`]: where the next batch goes, when the next segment begins, and the rule that nothing is
//! written after a failed write or sync. One writer per directory; the caller that opens it takes the lock.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use super::{
    FileReader, LogOpenError, WriteError,
    directory::NEXT_NAME,
    frame::{ALIGN, Frame, PREFIX_BYTES},
    prepare::{NotPrepared, Prepared, Preparer},
    reader::LogState,
    recovery::{self, at},
    segment::{
        PLACE_SPACING_BYTES, Places, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, segment_path,
    },
};
use crate::{
    event::{FIRST_SEQUENCE, Sequence},
    log::{AppendError, Batch, Log},
    platform::{Disk, DiskDir, DiskFile, Platform, is_full},
};

/// Segments are a multiple of this many bytes.
const BLOCK_BYTES: u64 = 4096;
/// A segment has this share of the log before it, within the limits: the space set aside is never a large
/// part of the log, and a long log has few segments.
const SEGMENT_SHARE: u64 = 16;

/// How many batch offsets a log remembers, beside the start of each segment: 16 MiB, and as much again while they
/// grow. A log of 64 GiB is known completely; of longer ones, the parts that are read.
pub(super) const PLACES_MAX: usize = 1024 * 1024;

/// The options of a log.
#[derive(Clone, Debug)]
pub struct FileLogOptions {
    /// The size of the smallest and first segments, in bytes.
    pub segment_bytes_min: u64,
    /// The largest segment, in bytes; only a single batch larger than that gets a larger one.
    pub segment_bytes_max: u64,
    /// Everything below was once durable, as other files prove. A log that ends before it is damaged.
    pub tail_min: Sequence,
    /// How long to wait before another try after a full disk.
    pub retry_after: Duration,
    /// How much to read at a time.
    pub windows: ReadWindows,
    /// The least distance between two batches whose offsets are remembered, in bytes.
    pub place_spacing_bytes: u64,
}

/// How much of a log is read at a time, in bytes. A batch is always read whole.
#[derive(Clone, Copy, Debug)]
pub struct ReadWindows {
    /// At an unexpected place: enough for small batches whole.
    pub random_bytes: usize,
    /// When reading the log in order.
    pub sequential_bytes: usize,
    /// When reading a whole segment, to open or check the log.
    pub scan_bytes: usize,
}

impl Default for ReadWindows {
    fn default() -> Self {
        Self {
            random_bytes: 16 * 1024,
            sequential_bytes: 128 * 1024,
            scan_bytes: 1024 * 1024,
        }
    }
}

impl Default for FileLogOptions {
    fn default() -> Self {
        Self {
            segment_bytes_min: 1024 * 1024,
            segment_bytes_max: 128 * 1024 * 1024,
            tail_min: FIRST_SEQUENCE,
            retry_after: Duration::from_secs(1),
            windows: ReadWindows::default(),
            place_spacing_bytes: PLACE_SPACING_BYTES,
        }
    }
}

/// A log in the files of one directory.
pub struct FileLog {
    dir: PathBuf,
    /// The open directory: running out of file descriptors must not come between the new name of a segment and
    /// its sync.
    names: Arc<dyn DiskDir>,
    segment_bytes_min: u64,
    segment_bytes_max: u64,
    shared: Arc<LogState>,
    active: Active,
    tail: Sequence,
    preparer: Preparer,
    random: fn() -> u64,
    /// Why nothing is appended any more, if so.
    failed: Option<AppendError>,
    /// The outcome of the last append, until it is handed out.
    appended: Option<Result<(), AppendError>>,
}

/// The segment that is being filled.
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// Where the next batch goes.
    offset: u64,
}

impl FileLog {
    /// Opens the log in `dir`, or creates one, and removes what an interrupted append left behind.
    pub fn open(
        platform: &Platform,
        dir: &Path,
        options: &FileLogOptions,
    ) -> Result<Self, LogOpenError> {
        let disk = &*platform.disk;
        assert!(
            options.segment_bytes_min <= options.segment_bytes_max,
            "a segment has a size"
        );
        disk.ensure_dir(dir).map_err(at(dir))?;
        let names = disk.open_dir(dir).map_err(at(dir))?;
        let mut recovered = recovery::recover(disk, dir, options)?;
        let file_bytes = recovered.segments.iter().map(|s| s.header.file_bytes);
        let storage_bytes = Arc::new(AtomicU64::new(file_bytes.sum()));
        let mut preparer =
            Preparer::start(platform, dir, storage_bytes.clone(), options.retry_after)
                .map_err(at(dir))?;
        let active = match (recovered.segments.last(), recovered.last) {
            (Some(segment), Some((file, offset))) => Active {
                segment: segment.clone(),
                file,
                offset,
            },
            _ => {
                let bytes = options.segment_bytes_min.next_multiple_of(BLOCK_BYTES);
                let prepared = preparer
                    .take(bytes, BLOCK_BYTES)
                    .map_err(|error| at(dir)(error.into_io()))?;
                let header = SegmentHeader {
                    log_id: (platform.random)(),
                    salt: (platform.random)(),
                    first_sequence: FIRST_SEQUENCE,
                    previous: 0,
                    file_bytes: prepared.bytes,
                };
                let places = Arc::clone(&recovered.places);
                let active = write_header(&*prepared.file, &header)
                    .and_then(|()| begin(disk, dir, &*names, prepared, header, places))
                    .map_err(at(dir))?;
                recovered.segments.push(active.segment.clone());
                active
            }
        };
        let mut log = Self {
            dir: dir.into(),
            names,
            segment_bytes_min: options.segment_bytes_min,
            segment_bytes_max: options.segment_bytes_max,
            shared: Arc::new(LogState {
                disk: Arc::clone(&platform.disk),
                id: active.segment.header.log_id,
                segments: RwLock::new(recovered.segments),
                places: recovered.places,
                places_max: PLACES_MAX,
                windows: options.windows,
                tail: AtomicU64::new(recovered.tail),
                storage_bytes,
            }),
            active,
            tail: recovered.tail,
            preparer,
            random: platform.random,
            failed: None,
            appended: None,
        };
        // The append that needs the segment reports any failure.
        _ = log.nudge();
        Ok(log)
    }

    /// Makes sure that the next segment is being prepared. The append that needs it reports a failure.
    fn nudge(&mut self) -> Result<(), AppendError> {
        let bytes = self.next_bytes();
        let nudged = self.preparer.nudge(bytes);
        nudged.map_err(|error| self.not_prepared(error, bytes))
    }

    fn next_bytes(&self) -> u64 {
        let bytes = self.shared.storage_bytes.load(Ordering::Relaxed) / SEGMENT_SHARE;
        bytes
            .clamp(self.segment_bytes_min, self.segment_bytes_max)
            .next_multiple_of(BLOCK_BYTES)
    }

    fn not_prepared(&self, error: NotPrepared, bytes: u64) -> AppendError {
        match error {
            NotPrepared::Failed(source) if is_full(&source) => {
                AppendError::Full(Arc::new(WriteError::NoSpace {
                    path: self.dir.clone(),
                    bytes,
                    source,
                }))
            }
            NotPrepared::Failed(source) => AppendError::NotReady(Arc::new(WriteError::Failed {
                path: self.dir.join(NEXT_NAME),
                source,
            })),
            NotPrepared::Gone => failed(&self.dir.join(NEXT_NAME), error.into_io()),
        }
    }

    /// Appends `batch`; durable on return. After a failed write or sync every append fails with the same error: a
    /// second sync does not bring back what the failed one lost.
    ///
    /// # Panics
    /// If the batch does not start at the tail.
    pub fn append(&mut self, batch: &Batch) -> Result<(), AppendError> {
        assert_eq!(
            batch.first_sequence(),
            self.tail,
            "a batch begins where the log ends"
        );
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let result = self.write(batch);
        if let Err(error @ AppendError::Unknown(_)) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn write(&mut self, batch: &Batch) -> Result<(), AppendError> {
        self.nudge()?;
        let encoded = batch.encoded();
        let bytes = (PREFIX_BYTES + encoded.len()) as u64;
        if self.active.offset + bytes > self.active.segment.header.file_bytes {
            self.roll(bytes)?;
        }
        let Active {
            segment,
            file,
            offset,
        } = &mut self.active;
        let prefix = Frame::prefix(segment.header.salt, *offset, encoded);
        // The bytes up to the next frame are zero already.
        file.write_all_at(&prefix, *offset)
            .and_then(|()| file.write_all_at(encoded, *offset + PREFIX_BYTES as u64))
            .and_then(|()| file.sync_data())
            .map_err(|error| failed(&segment.path, error))?;
        segment.note(self.tail, *offset);
        self.shared.trim_places();
        *offset = (*offset + bytes).next_multiple_of(ALIGN);
        segment.set_end(*offset);
        self.tail = batch.end_sequence();
        self.shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Begins the next segment, with space for at least `bytes` of batches.
    fn roll(&mut self, bytes: u64) -> Result<(), AppendError> {
        let next_bytes = self.next_bytes();
        let bytes_min = (SEGMENT_HEADER_BYTES as u64 + bytes).next_multiple_of(BLOCK_BYTES);
        let prepared = self
            .preparer
            .take(next_bytes, bytes_min)
            .map_err(|error| self.not_prepared(error, next_bytes.max(bytes_min)))?;
        // A segment too small for its first batch is replaced: the new one has the same name.
        let last = self.active.segment.header;
        let replaces = last.first_sequence == self.tail;
        let header = SegmentHeader {
            log_id: self.shared.id,
            salt: (self.random)(),
            first_sequence: self.tail,
            previous: if replaces {
                last.previous
            } else {
                last.first_sequence
            },
            file_bytes: prepared.bytes,
        };
        if let Err(error) = write_header(&*prepared.file, &header) {
            // The file has no name yet, and nothing of the log in it.
            let error = self.preparer.discard(prepared, error);
            return Err(self.not_prepared(error, header.file_bytes));
        }
        let places = Arc::clone(&self.shared.places);
        self.active = begin(
            &*self.shared.disk,
            &self.dir,
            &*self.names,
            prepared,
            header,
            places,
        )
        .map_err(|error| failed(&segment_path(&self.dir, header.first_sequence), error))?;
        let mut segments = self.shared.segments.write().expect("no one panics with it");
        if replaces {
            segments.pop();
            self.shared
                .storage_bytes
                .fetch_sub(last.file_bytes, Ordering::Relaxed);
        }
        segments.push(self.active.segment.clone());
        drop(segments);
        self.nudge()
    }
}

/// Gives a prepared file its header; durable on return.
fn write_header(file: &dyn DiskFile, header: &SegmentHeader) -> io::Result<()> {
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()
}

/// Gives a file with a header its name; durable on return.
fn begin(
    disk: &dyn Disk,
    dir: &Path,
    names: &dyn DiskDir,
    prepared: Prepared,
    header: SegmentHeader,
    places: Arc<Places>,
) -> io::Result<Active> {
    let file = prepared.file;
    let path = segment_path(dir, header.first_sequence);
    disk.rename(&dir.join(NEXT_NAME), &path)?;
    names.sync()?;
    let segment = Arc::new(Segment::in_log(path, header, places));
    let offset = SEGMENT_HEADER_BYTES as u64;
    segment.set_end(offset);
    segment.share(&file);
    Ok(Active {
        segment,
        file,
        offset,
    })
}

fn failed(path: &Path, error: io::Error) -> AppendError {
    AppendError::Unknown(Arc::new(WriteError::Failed {
        path: path.into(),
        source: Arc::new(error),
    }))
}

impl Log for FileLog {
    type Reader = FileReader;

    fn tail(&self) -> Sequence {
        self.tail
    }

    fn in_flight_max(&self) -> usize {
        1
    }

    fn begin_append(&mut self, batch: &Batch) {
        assert!(self.appended.is_none(), "one append at a time");
        self.appended = Some(self.append(batch));
    }

    fn poll_append(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AppendError>> {
        self.appended.take().map_or(Poll::Pending, Poll::Ready)
    }

    fn prepare(&mut self) -> Result<(), AppendError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let bytes = self.next_bytes();
        let prepared = self
            .preparer
            .nudge(bytes)
            .and_then(|()| self.preparer.last_try());
        prepared.map_err(|error| self.not_prepared(error, bytes))
    }

    fn reader(&self) -> FileReader {
        FileReader::new(self.shared.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        log::{
            LogReader as _,
            files::support::{append_many, assert_whole, batch_at, open, segments, small},
            support::{batch, event},
        },
        platform::faulty::FaultyDisk,
        simulation::SimDisk,
    };

    /// A start may be killed after it has created the directory and before it has synced its name.
    #[test]
    fn a_directory_found_at_the_start_is_made_durable() {
        let disk = SimDisk::default();
        disk.ensure_dir(Path::new("/data")).expect("made");
        let platform = Platform {
            disk: Arc::new(disk.clone()),
            ..Platform::default()
        };
        for life in 0..40 {
            let dir = Path::new("/data").join(life.to_string());
            disk.crash_in(life % 5);
            drop(FileLog::open(&platform, &dir, &small()));
            disk.restart(false);
            let mut log = FileLog::open(&platform, &dir, &small()).expect("opens");
            append_many(&mut log, 1);
            let tail = log.tail();
            drop(log);
            disk.restart(true);
            let log = FileLog::open(&platform, &dir, &small()).expect("opens");
            assert_eq!(log.tail(), tail, "life {life}");
        }
    }

    #[test]
    fn a_batch_larger_than_an_empty_segment_replaces_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let large = |id: &str| event("a", id, &[7; 40_000]);
        for (tail, id) in [(1, "1"), (2, "2")] {
            let mut log = open(dir);
            assert_eq!(log.tail(), tail);
            log.append(&batch(tail, 0, &[large(id)])).expect("appended");
        }
        assert_eq!(segments(dir).len(), 2);
        let log = open(dir);
        for sequence in 1..3 {
            let read = log.reader().read(sequence, None).expect("readable");
            assert_eq!(read.map(|batch| batch.events().len()), Some(1));
        }
    }

    #[test]
    fn appended_batches_are_there_after_reopening() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = &dir.path().join("data/log");
        let mut id = None;
        for opened in 0..5 {
            let mut log = open(dir);
            assert_eq!(*id.get_or_insert(log.reader().id()), log.reader().id());
            assert_whole(&log);
            append_many(&mut log, 20);
            assert_whole(&log);
            assert!(segments(dir).len() > opened);
        }
    }

    #[test]
    fn segments_grow_and_the_next_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = FileLogOptions {
            segment_bytes_max: 4 * 4096,
            ..small()
        };
        let mut log = FileLog::open(&Platform::default(), dir.path(), &options).expect("opens");
        let mut sizes = Vec::new();
        while sizes.last() != Some(&(4 * 4096)) {
            append_many(&mut log, 50);
            sizes = segments(dir.path())
                .iter()
                .map(|path| path.metadata().expect("is there").len())
                .collect();
        }
        assert!(sizes[..16].iter().all(|&bytes| bytes == 4096));
        assert!(sizes.is_sorted());
        let sum: u64 = sizes.iter().sum();
        while log.reader().storage_bytes() == sum {
            thread::yield_now();
        }
        assert_whole(&log);
    }

    #[test]
    fn a_large_batch_gets_a_large_segment() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = open(dir.path());
        append_many(&mut log, 3);
        let first = log.tail();
        let large = batch(first, 0, &[event("a", "large", &[7; 100_000])]);
        log.append(&large).expect("appends");
        log.append(&batch_at(log.tail())).expect("appends");
        drop(log);
        let log = open(dir.path());
        assert_eq!(log.tail(), batch_at(first + 1).end_sequence());
        let read = log.reader().read(first, None).expect("reads");
        assert_eq!(read.expect("is there").encoded(), large.encoded());
    }

    #[test]
    fn a_batch_costs_one_sync() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = FaultyDisk::default();
        let mut log = FileLog::open(&disk.platform(), dir.path(), &small()).expect("opens");
        let before = disk.data_syncs();
        append_many(&mut log, 20);
        assert_eq!(disk.data_syncs() - before, 20);
    }

    #[test]
    fn a_failed_write_or_sync_ends_all_appends() {
        for fail in [FaultyDisk::fail_syncs, FaultyDisk::fail_writes] {
            let dir = tempfile::tempdir().expect("a directory");
            let disk = FaultyDisk::default();
            let mut log = FileLog::open(&disk.platform(), dir.path(), &small()).expect("opens");
            append_many(&mut log, 3);
            let tail = log.tail();
            fail(&disk, true);
            let error = log.append(&batch_at(tail)).expect_err("fails");
            assert!(matches!(error, AppendError::Unknown(_)), "{error}");
            fail(&disk, false);
            let error = log.append(&batch_at(tail)).expect_err("has failed");
            assert!(matches!(error, AppendError::Unknown(_)), "{error}");
            let error = log.prepare().expect_err("has failed");
            assert!(matches!(error, AppendError::Unknown(_)), "{error}");
            assert_eq!(log.tail(), tail);
            assert_whole(&log);
            drop(log);
            assert_whole(&open(dir.path()));
        }
    }

    #[test]
    fn a_full_disk_heals() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = FaultyDisk::default();
        let mut log = FileLog::open(&disk.platform(), dir.path(), &small()).expect("opens");
        disk.no_space(true);
        let full = loop {
            if let Err(error) = log.append(&batch_at(log.tail())) {
                break error;
            }
        };
        assert!(matches!(full, AppendError::Full(_)), "{full}");
        let tail = log.tail();
        for _ in 0..10 {
            let full = log.append(&batch_at(tail)).expect_err("is full");
            assert!(matches!(full, AppendError::Full(_)), "{full}");
            assert_whole(&log);
        }
        disk.no_space(false);
        while let Err(error) = log.append(&batch_at(tail)) {
            assert!(matches!(error, AppendError::Full(_)), "{error}");
            thread::yield_now();
        }
        append_many(&mut log, 20);
        drop(log);
        assert_whole(&open(dir.path()));
    }

    #[test]
    fn a_full_disk_refuses_a_new_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = FaultyDisk::default();
        disk.no_space(true);
        let error = FileLog::open(&disk.platform(), dir.path(), &small()).err();
        assert!(matches!(
            error,
            Some(LogOpenError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull
        ));
    }

    #[test]
    #[should_panic(expected = "a batch begins where the log ends")]
    fn a_batch_elsewhere_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let _ = open(dir.path()).append(&batch_at(2));
    }
}
