//! Sets aside the space of the next segment while the current one fills.
//!
//! Owns [`Preparer`] and its job, which writes a file full of zeros and syncs it: an append into such a file
//! changes no metadata, and cannot meet a full disk. Gives the file neither a header nor its final name.

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    time::{Duration, Instant},
};

use super::directory::NEXT_NAME;
use crate::platform::{Disk, DiskFile, Job, Jobs, Platform, Running, Step};

/// How much is written at once, in bytes.
const CHUNK_BYTES: usize = 1024 * 1024;
/// How much is written between two syncs, in bytes: one large sync would hold up those of the appends.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// A synced file full of zeros, named [`NEXT_NAME`].
pub(super) struct Prepared {
    pub file: Arc<dyn DiskFile>,
    pub bytes: u64,
}

/// Why there is no next segment.
#[derive(Clone, Debug)]
pub(super) enum NotPrepared {
    /// The last try failed. The file has no appended data, so it is removed and created again.
    Failed(Arc<io::Error>),
    /// The job has panicked.
    Gone,
}

impl NotPrepared {
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Failed(cause) => io::Error::new(cause.kind(), cause),
            Self::Gone => io::Error::other("the thread that prepares segments has panicked"),
        }
    }
}

/// Prepares one segment at a time.
pub(super) struct Preparer {
    state: State,
    retry_after: Duration,
    storage_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// `None` only while dropped.
    requests: Option<Sender<FileRequest>>,
    results: Receiver<io::Result<Prepared>>,
    jobs: Arc<dyn Jobs>,
    worker: Option<Box<dyn Running>>,
}

enum State {
    Idle,
    /// The job is working; `retry` holds why the previous try failed.
    Working {
        retry: Option<Arc<io::Error>>,
    },
    Ready(Prepared),
    Failed {
        since: Instant,
        cause: Arc<io::Error>,
    },
}

struct FileRequest {
    bytes: u64,
    /// A shorter file, to be extended.
    shorter: Option<Prepared>,
}

impl Preparer {
    /// Starts the job, which keeps `storage_bytes` up to date with its files. After a failed try, the next
    /// follows after `retry_after`.
    pub fn start(
        platform: &Platform,
        dir: &Path,
        storage_bytes: Arc<AtomicU64>,
        retry_after: Duration,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (requests, requested) = channel();
        let (done, results) = channel();
        let worker = Worker {
            disk: Arc::clone(&platform.disk),
            path: dir.join(NEXT_NAME),
            storage_bytes: Arc::clone(&storage_bytes),
            stop: stop.clone(),
            requested,
            request: None,
            done,
        };
        let worker = platform.jobs.spawn("log-prepare", Box::new(worker))?;
        Ok(Self {
            state: State::Idle,
            retry_after,
            storage_bytes,
            stop,
            requests: Some(requests),
            results,
            jobs: Arc::clone(&platform.jobs),
            worker: Some(worker),
        })
    }

    /// Starts to prepare a segment of `bytes` unless one is ready or in the making, or it is too early to try
    /// again. Does not wait.
    pub fn nudge(&mut self, bytes: u64) -> Result<(), NotPrepared> {
        self.state = match mem::replace(&mut self.state, State::Idle) {
            State::Idle => self.request(bytes, None, None),
            State::Failed { since, cause }
                if self.jobs.now().saturating_duration_since(since) >= self.retry_after =>
            {
                self.request(bytes, None, Some(cause))
            }
            State::Working { retry } => match self.results.try_recv() {
                Ok(result) => self.done(result),
                Err(TryRecvError::Empty) => State::Working { retry },
                Err(TryRecvError::Disconnected) => return Err(NotPrepared::Gone),
            },
            state @ (State::Ready(_) | State::Failed { .. }) => state,
        };
        Ok(())
    }

    /// Why the last try failed, unless a later one has succeeded.
    pub fn last_try(&self) -> Result<(), NotPrepared> {
        match &self.state {
            State::Failed { cause, .. } | State::Working { retry: Some(cause) } => {
                Err(NotPrepared::Failed(cause.clone()))
            }
            State::Idle | State::Working { retry: None } | State::Ready(_) => Ok(()),
        }
    }

    /// Takes the prepared segment, of at least `bytes_min`. Waits for it, unless the previous try failed.
    pub fn take(&mut self, bytes: u64, bytes_min: u64) -> Result<Prepared, NotPrepared> {
        let bytes = bytes.max(bytes_min);
        loop {
            self.nudge(bytes)?;
            self.state = match mem::replace(&mut self.state, State::Idle) {
                State::Ready(prepared) if prepared.bytes >= bytes_min => return Ok(prepared),
                State::Ready(shorter) => self.request(bytes, Some(shorter), None),
                State::Working { retry: None } => {
                    if self.jobs.help() {
                        self.state = State::Working { retry: None };
                        continue;
                    }
                    match self.results.recv() {
                        Ok(result) => self.done(result),
                        Err(_) => return Err(NotPrepared::Gone),
                    }
                }
                state @ (State::Working { retry: Some(_) } | State::Failed { .. }) => {
                    self.state = state;
                    self.last_try()?;
                    continue;
                }
                State::Idle => State::Idle,
            };
        }
    }

    /// Takes back a segment that could not be used because of `error`, to be created again.
    pub fn discard(&mut self, prepared: Prepared, error: io::Error) -> NotPrepared {
        self.storage_bytes
            .fetch_sub(prepared.bytes, Ordering::Relaxed);
        let cause = Arc::new(error);
        self.state = State::Failed {
            since: self.jobs.now(),
            cause: cause.clone(),
        };
        NotPrepared::Failed(cause)
    }

    fn request(
        &self,
        bytes: u64,
        shorter: Option<Prepared>,
        retry: Option<Arc<io::Error>>,
    ) -> State {
        if let Some(requests) = &self.requests {
            // If the job is gone, waiting for its result reports it.
            let _ = requests.send(FileRequest { bytes, shorter });
        }
        State::Working { retry }
    }

    fn done(&self, result: io::Result<Prepared>) -> State {
        match result {
            Ok(prepared) => State::Ready(prepared),
            Err(error) => State::Failed {
                since: self.jobs.now(),
                cause: Arc::new(error),
            },
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.requests = None;
        if let Some(worker) = self.worker.take() {
            // It only panics where the panic has already been reported.
            let _ = worker.join();
        }
    }
}

struct Worker {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    storage_bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    requested: Receiver<FileRequest>,
    /// A request that was received while waiting.
    request: Option<FileRequest>,
    done: Sender<io::Result<Prepared>>,
}

impl Job for Worker {
    fn step(&mut self) -> Step {
        let requested = match self.request.take() {
            Some(request) => Ok(request),
            None => self.requested.try_recv(),
        };
        match requested {
            Ok(request) => {
                // Nobody waits for it if the log has been closed.
                let _ = self.done.send(self.prepare(request));
                Step::Worked
            }
            Err(TryRecvError::Empty) => Step::Idle,
            Err(TryRecvError::Disconnected) => Step::Ended,
        }
    }

    fn wait(&mut self) {
        self.request = self.requested.recv().ok();
    }
}

impl Worker {
    fn prepare(&self, request: FileRequest) -> io::Result<Prepared> {
        let from = request.shorter.as_ref().map_or(0, |shorter| shorter.bytes);
        let file = match request.shorter {
            Some(shorter) => Ok(shorter.file),
            None => self.create(),
        };
        let filled = file.and_then(|file| {
            self.fill(&*file, from, request.bytes)?;
            Ok(file)
        });
        match filled {
            Ok(file) => {
                let grown = request.bytes - from;
                self.storage_bytes.fetch_add(grown, Ordering::Relaxed);
                Ok(Prepared {
                    file,
                    bytes: request.bytes,
                })
            }
            Err(error) => {
                self.storage_bytes.fetch_sub(from, Ordering::Relaxed);
                // The first error matters. The next try handles a file that stays behind.
                let _ = self.disk.remove(&self.path);
                Err(error)
            }
        }
    }

    /// Creates the file, replacing one that a failed try left behind: a second sync does not bring back what
    /// the failed one lost.
    fn create(&self) -> io::Result<Arc<dyn DiskFile>> {
        match self.disk.create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&self.path)?;
                self.disk.create(&self.path)
            }
            created => created,
        }
    }

    fn fill(&self, file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; CHUNK_BYTES.min((to - from) as usize)];
        let mut at = from;
        let mut synced = from;
        while at < to {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let chunk = &zeros[..zeros.len().min((to - at) as usize)];
            file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
            if at - synced >= SYNC_BYTES {
                file.sync_all()?;
                synced = at;
            }
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use std::thread;

    use super::*;
    use crate::platform::{faulty::FaultyDisk, is_full};

    fn start(disk: &FaultyDisk, dir: &Path) -> (Preparer, Arc<AtomicU64>) {
        let bytes = Arc::new(AtomicU64::new(0));
        let preparer = Preparer::start(&disk.platform(), dir, bytes.clone(), Duration::ZERO);
        (preparer.expect("starts"), bytes)
    }

    #[test]
    fn a_segment_that_is_too_short_is_made_longer() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut preparer, bytes) = start(&FaultyDisk::default(), dir.path());
        preparer.nudge(4096).expect("begins");
        let prepared = preparer.take(4096, 20_000).expect("is prepared");
        assert_eq!(prepared.bytes, 20_000);
        assert_eq!(bytes.load(Ordering::Relaxed), 20_000);
        let file = fs::read(dir.path().join(NEXT_NAME)).expect("reads");
        assert_eq!(file, [0; 20_000]);
    }

    #[test]
    fn a_segment_is_exactly_as_long_as_asked() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut preparer, _) = start(&FaultyDisk::default(), dir.path());
        let bytes = CHUNK_BYTES as u64 + 1000;
        preparer.take(bytes, bytes).expect("is prepared");
        let file = fs::metadata(dir.path().join(NEXT_NAME)).expect("is there");
        assert_eq!(file.len(), bytes);
    }

    #[test]
    fn a_discarded_segment_is_not_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut preparer, bytes) = start(&FaultyDisk::default(), dir.path());
        let prepared = preparer.take(4096, 4096).expect("is prepared");
        assert_eq!(bytes.load(Ordering::Relaxed), 4096);
        preparer.discard(prepared, io::ErrorKind::Other.into());
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_build_without_space_is_removed_and_retried() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = FaultyDisk::default();
        let (mut preparer, bytes) = start(&disk, dir.path());
        disk.no_space(true);
        let full = preparer.take(4096, 4096).err();
        assert!(matches!(full, Some(NotPrepared::Failed(error)) if is_full(&error)));
        assert!(!dir.path().join(NEXT_NAME).exists());
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        disk.no_space(false);
        let prepared = loop {
            match preparer.take(4096, 4096) {
                Ok(prepared) => break prepared,
                Err(NotPrepared::Failed(error)) if is_full(&error) => thread::yield_now(),
                Err(error) => panic!("{error:?}"),
            }
        };
        assert_eq!(prepared.bytes, 4096);
    }

    #[test]
    fn a_file_that_was_not_synced_is_thrown_away_and_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = FaultyDisk::default();
        let (mut preparer, bytes) = start(&disk, dir.path());
        disk.fail_syncs(true);
        let failed = preparer.take(4096, 4096).err();
        assert!(matches!(failed, Some(NotPrepared::Failed(_))));
        assert!(!dir.path().join(NEXT_NAME).exists());
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        disk.fail_syncs(false);
        let prepared = loop {
            match preparer.take(4096, 4096) {
                Ok(prepared) => break prepared,
                Err(error) => assert!(matches!(error, NotPrepared::Failed(_)), "{error:?}"),
            }
        };
        assert_eq!(prepared.bytes, 4096);
    }

    /// A file that could not be removed is no reason to fail forever.
    #[test]
    fn a_leftover_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut preparer, _) = start(&FaultyDisk::default(), dir.path());
        // Nothing was asked for yet, so nobody else writes it.
        fs::write(dir.path().join(NEXT_NAME), [7; 9000]).expect("written");
        let prepared = preparer.take(4096, 4096).expect("is prepared");
        assert_eq!(prepared.bytes, 4096);
        let file = fs::read(dir.path().join(NEXT_NAME)).expect("reads");
        assert!(file == [0; 4096]);
    }
}
