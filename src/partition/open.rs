//! Opening a data directory, and closing it.
//!
//! The log is recovered first; the index and the counters are brought up to it. What they already hold
//! tells in turn how far the log must reach.

use std::{
    any::Any,
    collections::HashSet,
    fs::{File, TryLockError},
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc as std_mpsc},
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::sync::mpsc;

use super::{
    Partition, PublishError, Shared,
    budget::Budget,
    clock::Clock,
    cursor::Mark,
    health::Monitor,
    lanes::Lanes,
    request::Message,
    stats::{CountersError, Snapshot, Stats},
    syncer::{self, Syncer, SyncerJob},
    tail::DurableTail,
    writer::{BatchLimits, Pending, Writer},
};
use crate::{
    event::{Event, FIRST_SEQUENCE, Sequence},
    index::{self, Entry, Index, IndexError, IndexOptions},
    log::{
        self, Batch, FileLog, FileLogOptions, FileReader, Log, LogReader, ReadError as LogReadError,
    },
    platform::{Disk as _, Job, OsDisk, Platform, Running, Step, panic_text},
};

/// Requests that may wait for the writer, beside the limit on their bytes.
const QUEUE_REQUESTS_MAX: usize = 4096;
/// How often the counters are saved while the partition runs.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a lock on the data directory that another has is waited for, and how often it is tried meanwhile. A
/// process that has just ended, or closed its file while a child of another thread was between fork and exec, may
/// hold it a moment longer.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(1);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How often the writer is asked to look whether what had publishes refused has passed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a long replay reports.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The default limit on topics.
pub const TOPICS_MAX: usize = 100_000;
/// The default limit on batches in memory for those who follow, in bytes.
const TAIL_CACHE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The default budget of requests in the server, in bytes.
pub const INGEST_BYTES_MAX: usize = 128 * 1024 * 1024;

/// What a partition is opened with.
#[derive(Clone)]
pub struct PartitionOptions {
    /// The folder of its files; created if missing.
    pub data_dir: PathBuf,
    /// The most topics it may have.
    pub topics_max: usize,
    /// The budget of [`Partition::ingest`], in bytes.
    pub ingest_bytes_max: usize,
    /// How much goes into a batch.
    pub batch: BatchLimits,
    /// The most bytes of batches that are kept in memory for those who follow. The newest batch is kept
    /// whatever its size.
    pub tail_cache_bytes_max: usize,
    /// The sizes of log segments.
    pub log: FileLogOptions,
    /// The sizes of generations.
    pub index: IndexOptions,
    /// What it stands on.
    pub platform: Platform,
}

impl PartitionOptions {
    /// The defaults, over `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            topics_max: TOPICS_MAX,
            ingest_bytes_max: INGEST_BYTES_MAX,
            batch: BatchLimits::default(),
            tail_cache_bytes_max: TAIL_CACHE_BYTES_MAX,
            log: FileLogOptions::default(),
            index: IndexOptions::default(),
            platform: Platform::default(),
        }
    }
}

/// Why a data directory is not served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another server has it.
    #[error("{}: another oncelog has this data directory; stop it, or choose another --data-dir", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory cannot be created or locked.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The system has no room for another thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] LogReadError),
    /// The index cannot be opened.
    #[error(transparent)]
    Index(#[from] index::OpenError),
    /// The index cannot be rebuilt from the log.
    #[error("rebuilding the index from the log: {0}")]
    Rebuild(#[from] IndexError),
    /// The counters cannot be read.
    #[error(transparent)]
    Counters(#[from] CountersError),
}

/// What opening found.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// Events in the log.
    pub events: u64,
    /// Events that were read from the log to bring the index up to it.
    pub replayed: u64,
}

/// The threads behind a partition, and the lock on its data directory.
pub struct Threads {
    queue: mpsc::Sender<Message>,
    writer: Box<dyn Running>,
    syncer: Box<dyn Running>,
    saver: Box<dyn Running>,
    stop_saver: std_mpsc::Sender<()>,
    stats: Arc<Stats>,
    platform: Platform,
    data_dir: PathBuf,
    _lock: Option<File>,
}

impl Threads {
    /// Answers what is in the queue, ends the threads and saves the counters. Blocks.
    pub fn stop(self) -> Result<(), CountersError> {
        // The writer may have gone already, by a panic.
        _ = self.queue.blocking_send(Message::Stop);
        drop(self.stop_saver);
        for thread in [self.writer, self.syncer, self.saver] {
            // A panic was logged when it came.
            _ = thread.join();
        }
        self.stats
            .snapshot()
            .save(&*self.platform.disk, &self.data_dir)
    }
}

/// Takes the lock on a data directory, creating it if missing. Held until the file is closed. Blocks for a moment
/// while another has it.
pub fn lock_data_dir(data_dir: &Path) -> Result<File, OpenError> {
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    lock_while(data_dir, || {
        thread::sleep(LOCK_RETRY_INTERVAL);
        Instant::now() < deadline
    })
}

/// Takes the lock, trying again for as long as `waits` says so.
fn lock_while(data_dir: &Path, mut waits: impl FnMut() -> bool) -> Result<File, OpenError> {
    let path = data_dir.join("LOCK");
    let create = || {
        OsDisk.create_dir(data_dir)?;
        File::create(&path)
    };
    let file = create().map_err(|source| OpenError::Io {
        path: path.clone(),
        source,
    })?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if waits() => {}
            Err(TryLockError::WouldBlock) => {
                let path = data_dir.to_owned();
                return Err(OpenError::Locked { path });
            }
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
        }
    }
}

/// Opens a data directory and starts its threads. Blocks while it recovers.
pub fn open(options: PartitionOptions) -> Result<(Partition, Threads, Recovery), OpenError> {
    let lock = lock_data_dir(&options.data_dir)?;
    open_locked(options, Some(lock))
}

/// The same, for who has the data directory for itself without a lock.
pub(crate) fn open_locked(
    options: PartitionOptions,
    lock: Option<File>,
) -> Result<(Partition, Threads, Recovery), OpenError> {
    let platform = &options.platform;
    let log_dir = options.data_dir.join("log");
    let index_dir = options.data_dir.join("index");
    let snapshot = load_counters(platform, &options.data_dir)?;

    // A clean stop and a sealed generation both tell of events that were durable.
    let tail_min = snapshot
        .tail
        .max(index::covered_to(&*platform.disk, &index_dir)?);
    let log_options = FileLogOptions {
        tail_min,
        ..options.log
    };
    let log = FileLog::open(platform, &log_dir, &log_options)?;
    let tail = log.tail();
    let reader = log.reader();

    let mut index = Index::open(platform, &index_dir, options.index, tail)?;
    let replayed = fill_index(platform, &mut index, &reader)?;
    let stats = Stats::new(snapshot);
    for batch in batches(&reader, stats.tail()..tail) {
        stats.add_batch(&batch?);
    }
    let last = last_batch(&reader, tail)?;

    let (queue, queue_end) = mpsc::channel(QUEUE_REQUESTS_MAX);
    let monitor = Monitor::new();
    let (work, work_end) = std_mpsc::sync_channel(1);
    let (synced, synced_end) = std_mpsc::channel();
    let (stop_saver, saver_stopped) = std_mpsc::channel();
    let stats = Arc::new(stats);
    let durable_tail = Arc::new(DurableTail::new(
        last.as_ref().map_or(Mark::START, Mark::after),
        options.tail_cache_bytes_max,
    ));
    let partition = Partition(Arc::new(Shared {
        log: Arc::new(reader),
        index: index.reader(),
        stats: Arc::clone(&stats),
        tail: Arc::clone(&durable_tail),
        queue: queue.clone(),
        health: monitor.watch(),
        ingest: Budget::new(options.ingest_bytes_max),
        lanes: Lanes::default(),
    }));
    let syncer = syncer::Shared::new(Syncer {
        log,
        index: index.reader(),
        stats: Arc::clone(&stats),
        tail: durable_tail,
        monitor: monitor.clone(),
    });
    let syncer_job = SyncerJob {
        syncer: syncer.clone(),
        work: work_end,
        next: None,
        synced,
        writer: queue.downgrade(),
    };
    let writer = Writer {
        index,
        topics: stats.topic_names().into_iter().collect::<HashSet<_>>(),
        topics_max: options.topics_max,
        limits: options.batch,
        clock: Clock::new(platform.time, last.as_ref().map_or(0, Batch::received_at)),
        queue: queue_end,
        syncer,
        work,
        synced: synced_end,
        durable_tail: tail,
        batch: Pending::new(tail),
        syncing: None,
        failed: None,
        monitor: monitor.clone(),
    };
    let saver = Saver {
        saved: stats.snapshot(),
        stats: Arc::clone(&stats),
        platform: platform.clone(),
        data_dir: options.data_dir.clone(),
        save_at: platform.jobs.now() + SAVE_INTERVAL,
        probe_at: platform.jobs.now() + PROBE_INTERVAL,
        writer: queue.downgrade(),
        monitor: monitor.clone(),
        stopped: saver_stopped,
    };
    let threads = Threads {
        queue: queue.clone(),
        writer: spawn(platform, "oncelog-writer", &monitor, &queue, writer)?,
        syncer: spawn(platform, "oncelog-syncer", &monitor, &queue, syncer_job)?,
        saver: spawn(platform, "oncelog-saver", &monitor, &queue, saver)?,
        stop_saver,
        stats,
        platform: platform.clone(),
        data_dir: options.data_dir.clone(),
        _lock: lock,
    };
    let recovery = Recovery {
        events: tail - FIRST_SEQUENCE,
        replayed,
    };
    Ok((partition, threads, recovery))
}

/// The counters as last saved. Damaged ones are not used: what is in the log is counted again.
fn load_counters(platform: &Platform, data_dir: &Path) -> Result<Snapshot, OpenError> {
    match Snapshot::load(&*platform.disk, data_dir) {
        Ok(snapshot) => Ok(snapshot.unwrap_or_default()),
        Err(error @ CountersError::Damaged { .. }) => {
            tracing::warn!(%error, "stored events are counted again from the log; \
                the counts of duplicates, conflicts and rejections begin at 0");
            Ok(Snapshot::default())
        }
        Err(error @ (CountersError::Io { .. } | CountersError::UnknownVersion { .. })) => {
            Err(error.into())
        }
    }
}

/// Reads into the index what it is missing. Returns how many events that were.
fn fill_index(platform: &Platform, index: &mut Index, log: &FileReader) -> Result<u64, OpenError> {
    let mut replayed = 0;
    let mut reported = platform.jobs.now();
    let secret = index.secret();
    for range in index.missing() {
        let events = range.end - range.start;
        let mut rebuild = index.rebuild(range.clone());
        for batch in batches(log, range) {
            let batch = batch?;
            let topics = batch.topics().map(|(topic, _)| topic);
            rebuild.add_batch(topics, batch.first_sequence())?;
            for event in batch.events() {
                let sequence = event.sequence;
                let event = Event::from_stored(event.encoded)
                    .expect("the log holds what its checksums cover");
                let entry = Entry {
                    sequence,
                    content_hash: secret.content_hash(event.encoded()),
                };
                rebuild.insert(event.key(), secret.key_hash(event.key()), entry);
                replayed += 1;
            }
            let now = platform.jobs.now();
            if now.saturating_duration_since(reported) >= PROGRESS_INTERVAL {
                reported = now;
                tracing::info!(replayed, events, "reading the log into the index");
            }
        }
        rebuild.finish()?;
    }
    Ok(replayed)
}

/// The batches of a range of the log that begins and ends with a batch.
fn batches(
    log: &FileReader,
    range: Range<Sequence>,
) -> impl Iterator<Item = Result<Batch, LogReadError>> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        if next >= range.end {
            return None;
        }
        let batch = log.read(next, None).transpose()?;
        if let Ok(batch) = &batch {
            next = batch.end_sequence();
        }
        Some(batch)
    })
}

fn last_batch(log: &FileReader, tail: Sequence) -> Result<Option<Batch>, LogReadError> {
    match tail - 1 {
        0 => Ok(None),
        last => log.read(last, None),
    }
}

/// Saves the counters now and then, so that a crash loses few of those the log does not tell, and has the writer
/// look whether it can store events again while it cannot and nobody publishes.
struct Saver {
    stats: Arc<Stats>,
    platform: Platform,
    data_dir: PathBuf,
    saved: Snapshot,
    save_at: Instant,
    probe_at: Instant,
    writer: mpsc::WeakSender<Message>,
    monitor: Monitor,
    stopped: std_mpsc::Receiver<()>,
}

impl Job for Saver {
    fn step(&mut self) -> Step {
        if let Err(std_mpsc::TryRecvError::Disconnected) = self.stopped.try_recv() {
            return Step::Ended;
        }
        let now = self.platform.jobs.now();
        if now >= self.probe_at {
            self.probe_at = now + PROBE_INTERVAL;
            self.probe();
        }
        if now < self.save_at {
            return Step::Idle;
        }
        self.save_at = now + SAVE_INTERVAL;
        let snapshot = self.stats.snapshot();
        if snapshot != self.saved {
            match snapshot.save(&*self.platform.disk, &self.data_dir) {
                Ok(()) => self.saved = snapshot,
                Err(error) => {
                    tracing::warn!(%error, "the counters are not saved; trying again later");
                }
            }
        }
        Step::Worked
    }

    fn wait(&mut self) {
        let next = self.save_at.min(self.probe_at);
        let left = next.saturating_duration_since(self.platform.jobs.now());
        // It is told of the stop by the end of the channel, which a step sees as well.
        _ = self.stopped.recv_timeout(left);
    }
}

impl Saver {
    fn probe(&self) {
        if self.monitor.is_refusing()
            && let Some(writer) = self.writer.upgrade()
        {
            // With a full queue there is somebody who publishes.
            _ = writer.try_send(Message::Probe);
        }
    }
}

/// A job whose panic fails the partition: without one of its jobs it stores nothing.
struct FailOnPanic<J> {
    name: String,
    job: J,
    monitor: Monitor,
    /// Dropped after the job.
    _wake: WakeWriter,
}

impl<J: Job> Job for FailOnPanic<J> {
    fn step(&mut self) -> Step {
        let step = catch_unwind(AssertUnwindSafe(|| self.job.step()));
        step.unwrap_or_else(|panic| self.fail(panic))
    }

    fn wait(&mut self) {
        let waited = catch_unwind(AssertUnwindSafe(|| self.job.wait()));
        if let Err(panic) = waited {
            self.fail(panic);
        }
    }
}

impl<J> FailOnPanic<J> {
    fn fail(&self, panic: Box<dyn Any + Send>) -> ! {
        let cause = format!("{} panicked: {}", self.name, panic_text(&*panic));
        self.monitor.fail(PublishError::Bug, &cause);
        resume_unwind(panic)
    }
}

/// Wakes the writer when a job and its channels are gone: it may wait for an answer that does not come.
struct WakeWriter(mpsc::WeakSender<Message>);

impl Drop for WakeWriter {
    fn drop(&mut self) {
        if let Some(writer) = self.0.upgrade() {
            // A full queue wakes the writer as well.
            _ = writer.try_send(Message::Synced);
        }
    }
}

fn spawn(
    platform: &Platform,
    name: &str,
    monitor: &Monitor,
    queue: &mpsc::Sender<Message>,
    job: impl Job,
) -> Result<Box<dyn Running>, OpenError> {
    let job = FailOnPanic {
        name: name.to_owned(),
        job,
        monitor: monitor.clone(),
        _wake: WakeWriter(queue.downgrade()),
    };
    let spawned = platform.jobs.spawn(name, Box::new(job));
    spawned.map_err(OpenError::Thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_given_up_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut other = Some(lock_data_dir(dir.path()).expect("is free"));
        let mut tries = 0;
        let lock = lock_while(dir.path(), || {
            tries += 1;
            if tries == 3 {
                other = None;
            }
            true
        });
        let _lock = lock.expect("is free again");
        assert_eq!(tries, 3);
        let refused = lock_while(dir.path(), || false);
        assert!(matches!(refused, Err(OpenError::Locked { .. })));
    }
}
