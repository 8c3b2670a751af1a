//! Creates, starts and stops the jobs of a partition.

use std::{
    any::Any,
    collections::HashSet,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::{Arc, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    OpenError, Partition, PartitionOptions, PublishError, Shared,
    budget::Budget,
    clock::Clock,
    cursor::Mark,
    hand_over::hand_over,
    health::Monitor,
    lanes::Lanes,
    recover::Recovered,
    request::Message,
    stats::{CountersError, Snapshot, Stats},
    syncer::Syncer,
    tail::DurableTail,
    writer::{Pending, Writer},
};
use crate::{
    log::{Batch, Log},
    platform::{Job, Platform, Running, Step, panic_text},
};

/// Requests that may wait for the writer, beside the limit on their bytes.
const QUEUE_REQUESTS_MAX: usize = 4096;
/// How often the writer is asked to check whether the cause of refusals has passed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the counters are saved while the partition runs.
pub(crate) const SAVE_INTERVAL: Duration = Duration::from_secs(30);

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
    /// Answers the requests in the queue, ends the threads and saves the counters. Blocks.
    pub fn stop(self) -> Result<(), CountersError> {
        // The writer may have panicked already.
        _ = self.queue.blocking_send(Message::Stop);
        drop(self.stop_saver);
        for thread in [self.writer, self.syncer, self.saver] {
            // The panic has been logged.
            _ = thread.join();
        }
        self.stats
            .snapshot()
            .save(&*self.platform.disk, &self.data_dir)
    }
}

/// Starts the jobs of a recovered partition.
pub(super) fn spawn<L: Log>(
    options: &PartitionOptions,
    lock: Option<File>,
    log: L,
    recovered: Recovered,
) -> Result<(Partition, Threads), OpenError> {
    let platform = &options.platform;
    let Recovered {
        mut index,
        stats,
        tail,
        last,
        recovery: _,
    } = recovered;
    let (queue, queue_end) = mpsc::channel(QUEUE_REQUESTS_MAX);
    let monitor = Monitor::new();
    let (stop_saver, saver_stopped) = std_mpsc::channel();
    let stats = Arc::new(stats);
    let durable_tail = Arc::new(DurableTail::new(
        last.as_ref().map_or(Mark::START, Mark::after),
        options.tail_cache_bytes_max,
    ));
    let partition = Partition(Arc::new(Shared {
        log: Arc::new(log.reader()),
        index: index.reader(),
        stats: Arc::clone(&stats),
        tail: Arc::clone(&durable_tail),
        queue: queue.clone(),
        health: monitor.watch(),
        ingest: Budget::new(options.ingest_bytes_max),
        lanes: Lanes::default(),
        reads: options.reads,
    }));
    let positions = index.take_positions_writer();
    let syncer = Syncer::new(
        log,
        positions,
        Arc::clone(&stats),
        durable_tail,
        monitor.clone(),
        Arc::clone(&platform.jobs),
    );
    let (syncer, syncer_job) = hand_over(syncer, queue.downgrade());
    let writer = Writer {
        index,
        topics: stats.topic_names().into_iter().collect::<HashSet<_>>(),
        topics_max: options.topics_max,
        limits: options.batch,
        clock: Clock::new(platform.time, last.as_ref().map_or(0, Batch::received_at)),
        queue: queue_end,
        syncer,
        durable_tail: tail,
        batch: Pending::new(tail),
        failed: None,
        monitor: monitor.clone(),
    };
    let saver = Saver {
        saved: None,
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
        writer: spawn_job(platform, "oncelog-writer", &monitor, &queue, writer)?,
        syncer: spawn_job(platform, "oncelog-syncer", &monitor, &queue, syncer_job)?,
        saver: spawn_job(platform, "oncelog-saver", &monitor, &queue, saver)?,
        stop_saver,
        stats,
        platform: platform.clone(),
        data_dir: options.data_dir.clone(),
        _lock: lock,
    };
    Ok((partition, threads))
}

/// Saves the counters now and then, so that a crash loses few of those the log cannot restore. While events
/// cannot be stored and nobody publishes, it has the writer check whether they can be again.
struct Saver {
    stats: Arc<Stats>,
    platform: Platform,
    data_dir: PathBuf,
    /// As saved by this process. The file found at the start may have a name that was never synced.
    saved: Option<Snapshot>,
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
        if self.saved.as_ref() != Some(&snapshot) {
            match snapshot.save(&*self.platform.disk, &self.data_dir) {
                Ok(()) => self.saved = Some(snapshot),
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
        // Dropping the channel signals the stop, which a step sees as well.
        _ = self.stopped.recv_timeout(left);
    }
}

impl Saver {
    fn probe(&self) {
        if self.monitor.is_refusing()
            && let Some(writer) = self.writer.upgrade()
        {
            // If the queue is full, somebody is publishing.
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

/// Wakes the writer when a job and its channels are gone: it may be waiting for a reply that never comes.
struct WakeWriter(mpsc::WeakSender<Message>);

impl Drop for WakeWriter {
    fn drop(&mut self) {
        if let Some(writer) = self.0.upgrade() {
            // A full queue wakes the writer as well.
            _ = writer.try_send(Message::Synced);
        }
    }
}

fn spawn_job(
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
    use std::fs;

    use super::*;
    use crate::partition::{
        stats::Dropped,
        support::{event, opened_with, stop, store},
    };

    fn reject(stats: &Stats) {
        stats.add_dropped(&Dropped {
            rejected: 1,
            ..Dropped::default()
        });
    }

    #[test]
    fn the_saver_saves_what_has_changed_and_has_the_writer_probe() {
        let parent = tempfile::tempdir().expect("a directory");
        let data_dir = parent.path().join("data");
        let platform = Platform::default();
        let stats = Arc::new(Stats::new(Snapshot::default()));
        let (queue, mut queue_end) = mpsc::channel(1);
        let (_stop, stopped) = std_mpsc::channel();
        let monitor = Monitor::new();
        let later = platform.jobs.now() + 100 * SAVE_INTERVAL;
        let mut saver = Saver {
            saved: None,
            stats: Arc::clone(&stats),
            platform: platform.clone(),
            data_dir: data_dir.clone(),
            save_at: later,
            probe_at: later,
            writer: queue.downgrade(),
            monitor: monitor.clone(),
            stopped,
        };
        let load = || Snapshot::load(&*platform.disk, &data_dir).expect("readable");
        let save = |saver: &mut Saver| {
            saver.save_at = platform.jobs.now();
            assert_eq!(saver.step(), Step::Worked);
            assert!(saver.save_at > platform.jobs.now() + SAVE_INTERVAL / 2);
        };
        assert_eq!(saver.step(), Step::Idle);
        // There is no folder: the save is retried.
        save(&mut saver);
        fs::create_dir(&data_dir).expect("created");
        assert_eq!(load(), None);
        // The counters it started with may not be durable, and are saved as well.
        save(&mut saver);
        assert_eq!(load(), Some(stats.snapshot()));
        reject(&stats);
        save(&mut saver);
        assert_eq!(load(), Some(stats.snapshot()));
        // Nothing has changed.
        fs::remove_file(data_dir.join("counters.json")).expect("removed");
        save(&mut saver);
        assert_eq!(load(), None);
        reject(&stats);
        save(&mut saver);
        assert_eq!(load(), Some(stats.snapshot()));

        let mut probe = |saver: &mut Saver| {
            saver.probe_at = platform.jobs.now();
            saver.step();
            assert!(saver.probe_at > platform.jobs.now() + PROBE_INTERVAL / 2);
            queue_end.try_recv().ok()
        };
        assert!(probe(&mut saver).is_none());
        monitor.refuse(PublishError::DiskFull, &"full");
        assert!(matches!(probe(&mut saver), Some(Message::Probe)));
        monitor.heal();
        assert!(probe(&mut saver).is_none());
    }

    #[tokio::test]
    async fn times_do_not_go_back_over_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        for (id, time) in [(1, (|| 9) as crate::platform::TimeSource), (2, || 5)] {
            let mut options = PartitionOptions::new(dir.path());
            options.platform.time = time;
            let (partition, threads) = opened_with(options).await;
            store(&partition, vec![event("t", id, 1)]).await;
            let (_, counters) = partition.topics("", 1).remove(0);
            assert_eq!(counters.last_received_at, 9);
            stop(threads).await;
        }
    }
}
