//! Opening a data directory, and closing it.
//!
//! The log is recovered first; the index and the counters are brought up to it. What they already hold
//! tells in turn how far the log must reach.

use std::{
    collections::HashSet,
    fs::{File, TryLockError},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, mpsc as std_mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    Health, Partition, Shared,
    clock::{Clock, TimeSource, system_time},
    request::Message,
    stats::{CountersError, Snapshot, Stats},
    syncer::{self, Syncer, SyncerThread},
    tail::DurableTail,
    writer::{Pending, Writer},
};
use crate::{
    event::{Event, FIRST_SEQUENCE, Sequence, UnixNanos},
    index::{self, Entry, Index, IndexError, IndexOptions},
    log::{
        self, Batch, Disk, FileLog, FileLogOptions, FileReader, Log, LogReader, OsDisk,
        ReadError as LogReadError,
    },
};

/// Requests that may wait for the writer, beside the limit on their bytes.
const QUEUE_REQUESTS_MAX: usize = 4096;
/// How often the counters are saved while the partition runs.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// How often a long replay reports.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The default limit on topics.
pub const TOPICS_MAX: usize = 100_000;
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
    /// The sizes of log segments.
    pub log: FileLogOptions,
    /// The sizes of generations.
    pub index: IndexOptions,
    /// Where the log's files are.
    pub disk: Arc<dyn Disk>,
    /// The clock.
    pub time: TimeSource,
}

impl PartitionOptions {
    /// The defaults, over `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            topics_max: TOPICS_MAX,
            ingest_bytes_max: INGEST_BYTES_MAX,
            log: FileLogOptions::default(),
            index: IndexOptions::default(),
            disk: Arc::new(OsDisk),
            time: system_time,
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
    writer: JoinHandle<()>,
    syncer: JoinHandle<()>,
    saver: JoinHandle<()>,
    stop_saver: std_mpsc::Sender<()>,
    stats: Arc<Stats>,
    data_dir: PathBuf,
    _lock: File,
}

impl Threads {
    /// Answers what is in the queue, ends the threads and saves the counters. Blocks.
    pub fn stop(self) -> Result<(), CountersError> {
        // The writer may have gone already, by a panic.
        _ = self.queue.blocking_send(Message::Stop);
        drop(self.stop_saver);
        for thread in [self.writer, self.syncer, self.saver] {
            if let Err(panic) = thread.join() {
                tracing::error!(?panic, "a thread of the partition has panicked");
            }
        }
        self.stats.snapshot().save(&self.data_dir)
    }
}

/// Takes the lock on a data directory, creating it if missing. Held until the file is closed.
pub fn lock_data_dir(data_dir: &Path) -> Result<File, OpenError> {
    let path = data_dir.join("LOCK");
    let create = || {
        OsDisk.create_dir(data_dir)?;
        File::create(&path)
    };
    let file = create().map_err(|source| OpenError::Io {
        path: path.clone(),
        source,
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: data_dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// Opens a data directory and starts its threads. Blocks while it recovers.
pub fn open(
    options: PartitionOptions,
) -> Result<(Partition<FileReader>, Threads, Recovery), OpenError> {
    let lock = lock_data_dir(&options.data_dir)?;
    let log_dir = options.data_dir.join("log");
    let index_dir = options.data_dir.join("index");
    let snapshot = load_counters(&options.data_dir)?;

    // A clean stop and a sealed generation both tell of events that were durable.
    let tail_min = snapshot.tail.max(index::covered_to(&index_dir)?);
    let log_options = FileLogOptions {
        tail_min,
        ..options.log
    };
    let log = FileLog::open(&log_dir, options.disk, &log_options)?;
    let tail = log.tail();
    let reader = log.reader();

    let mut index = Index::open(&index_dir, options.index, tail)?;
    let replayed = fill_index(&mut index, &reader)?;
    let stats = Stats::new(snapshot);
    for batch in batches(&reader, stats.tail()..tail) {
        stats.add_batch(&batch?);
    }
    let last_received_at = last_received_at(&reader, tail)?;

    let (queue, queue_end) = mpsc::channel(QUEUE_REQUESTS_MAX);
    let (health, health_watch) = watch::channel(Health::Serving);
    let (work, work_end) = std_mpsc::sync_channel(1);
    let (synced, synced_end) = std_mpsc::channel();
    let (stop_saver, saver_stopped) = std_mpsc::channel();
    let stats = Arc::new(stats);
    let durable_tail = Arc::new(DurableTail::new(tail));
    let partition = Partition(Arc::new(Shared {
        log: reader,
        index: index.reader(),
        stats: Arc::clone(&stats),
        tail: Arc::clone(&durable_tail),
        queue: queue.clone(),
        health: health_watch,
        ingest: Arc::new(Semaphore::new(options.ingest_bytes_max)),
    }));
    let syncer = syncer::Shared::new(Syncer {
        log,
        index: index.reader(),
        stats: Arc::clone(&stats),
        tail: durable_tail,
    });
    let syncer_thread = SyncerThread {
        syncer: syncer.clone(),
        work: work_end,
        synced,
        writer: queue.downgrade(),
    };
    let writer = Writer {
        index,
        topics: stats.topic_names().into_iter().collect::<HashSet<_>>(),
        topics_max: options.topics_max,
        clock: Clock::new(options.time, last_received_at),
        queue: queue_end,
        syncer,
        work,
        synced: synced_end,
        durable_tail: tail,
        batch: Pending::new(tail),
        syncing: None,
        failed: None,
        health: health.clone(),
    };
    let saver = {
        let (stats, data_dir) = (Arc::clone(&stats), options.data_dir.clone());
        move || save_counters(&stats, &data_dir, &saver_stopped)
    };
    let threads = Threads {
        queue,
        writer: spawn("oncelog-writer", health.clone(), || writer.run()),
        syncer: spawn("oncelog-syncer", health.clone(), || syncer_thread.run()),
        saver: spawn("oncelog-saver", health, saver),
        stop_saver,
        stats,
        data_dir: options.data_dir,
        _lock: lock,
    };
    let recovery = Recovery {
        events: tail - FIRST_SEQUENCE,
        replayed,
    };
    Ok((partition, threads, recovery))
}

/// The counters as last saved. Damaged ones are not used: what is in the log is counted again.
fn load_counters(data_dir: &Path) -> Result<Snapshot, OpenError> {
    match Snapshot::load(data_dir) {
        Ok(snapshot) => Ok(snapshot.unwrap_or_default()),
        Err(error @ CountersError::Damaged { .. }) => {
            tracing::warn!(%error, "stored events are counted again from the log; \
                the counts of duplicates, conflicts and rejections begin at 0");
            Ok(Snapshot::default())
        }
        Err(error @ CountersError::Io { .. }) => Err(error.into()),
    }
}

/// Reads into the index what it is missing. Returns how many events that were.
fn fill_index(index: &mut Index, log: &FileReader) -> Result<u64, OpenError> {
    let mut replayed = 0;
    let mut reported = Instant::now();
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
                    content_hash: event.content_hash(),
                };
                rebuild.insert(event.key(), entry);
                replayed += 1;
            }
            if reported.elapsed() >= PROGRESS_INTERVAL {
                reported = Instant::now();
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

fn last_received_at(log: &FileReader, tail: Sequence) -> Result<UnixNanos, LogReadError> {
    let last = match tail - 1 {
        0 => None,
        last => log.read(last, None)?,
    };
    Ok(last.map_or(0, |batch| batch.received_at()))
}

/// Saves the counters now and then, so that a crash loses few of those the log does not tell.
fn save_counters(stats: &Stats, data_dir: &Path, stopped: &std_mpsc::Receiver<()>) {
    let mut saved = stats.snapshot();
    while let Err(std_mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(SAVE_INTERVAL) {
        let snapshot = stats.snapshot();
        if snapshot == saved {
            continue;
        }
        match snapshot.save(data_dir) {
            Ok(()) => saved = snapshot,
            Err(error) => tracing::warn!(%error, "the counters are not saved; trying again later"),
        }
    }
}

/// Tells of a panic: a partition without one of its threads stores nothing.
struct FailOnPanic(watch::Sender<Health>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.send_replace(Health::Failed);
        }
    }
}

fn spawn(
    name: &str,
    health: watch::Sender<Health>,
    run: impl FnOnce() + Send + 'static,
) -> JoinHandle<()> {
    let run = move || {
        let _guard = FailOnPanic(health);
        run();
    };
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(run).expect("the system has room for a thread")
}
