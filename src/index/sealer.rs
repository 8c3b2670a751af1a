//! Sealer: the thread that turns frozen parts into generations and merges generations.
//!
//! Owns the thread and what the writer waits for. Sealing goes before merging; a merge makes room between
//! two runs. Replaced generations are removed here once no view shows them.

use std::{
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    IndexOptions,
    builder::Builder,
    error::{BuildError, IndexError},
    generation::Generation,
    merge,
    parts::{Frozen, Parts},
};
use crate::event::Sequence;

/// How long to wait after a failed seal, and before looking again whether a view still shows a replaced
/// generation.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long to wait after a failed merge: it may have written much before it failed.
const MERGE_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Builds the generation of a frozen part in the folder `dir`. Calls `go_on` between runs; an error of it
/// ends the build.
pub(super) fn build(
    dir: &Path,
    frozen: &Frozen,
    go_on: impl Fn() -> Result<(), BuildError>,
) -> Result<Generation, BuildError> {
    let keys = frozen.keys.len() as u64;
    let mut builder = Builder::create(dir, frozen.range.clone(), keys)?;
    for (key, entry) in frozen.keys.sorted() {
        if builder.push_key(key, entry)? {
            go_on()?;
        }
    }
    for (topic, slices) in frozen.slices.sorted() {
        builder.push_slices(topic, slices)?;
    }
    builder.finish()
}

/// The handle of the thread; stops and joins it when dropped.
pub(super) struct Sealer {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    dir: PathBuf,
    options: IndexOptions,
    parts: Arc<Parts>,
    control: Mutex<Control>,
    changed: Condvar,
}

#[derive(Default)]
struct Control {
    stop: bool,
    /// Counts what the thread was woken for, so that it misses nothing between looking and waiting.
    wakes: u64,
    /// Why the last seal failed; none after one that did not.
    failure: Option<IndexError>,
}

impl Sealer {
    pub(super) fn spawn(
        dir: PathBuf,
        options: IndexOptions,
        parts: Arc<Parts>,
    ) -> io::Result<Self> {
        let work = Arc::new(Work {
            dir,
            options,
            parts,
            control: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = thread::Builder::new().name("index-sealer".to_owned());
        let thread = thread.spawn({
            let work = Arc::clone(&work);
            move || {
                // A caught panic is a failure for all who wait, not a wait without end.
                if catch_unwind(AssertUnwindSafe(|| work.run())).is_err() {
                    work.control().failure = Some(IndexError::Seal {
                        path: work.dir.clone(),
                        source: Arc::new(io::Error::other("the index sealer panicked")),
                    });
                    work.changed.notify_all();
                }
            }
        })?;
        Ok(Self {
            work,
            thread: Some(thread),
        })
    }

    /// Tells the thread that there are new parts.
    pub(super) fn wake(&self) {
        self.work.control().wakes += 1;
        self.work.changed.notify_all();
    }

    /// Blocks until fewer than `frozen` parts wait to be sealed. Fails when the last seal failed.
    pub(super) fn wait_for_fewer_than(&self, frozen: usize) -> Result<(), IndexError> {
        let mut control = self.work.control();
        while self.work.parts.frozen_count() >= frozen {
            if let Some(failure) = &control.failure {
                return Err(failure.clone());
            }
            control = self
                .work
                .changed
                .wait(control)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.work.control().stop = true;
        self.work.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the index sealer panicked");
        }
    }
}

impl Work {
    fn run(&self) {
        let mut retired = Vec::new();
        let mut merge_at = Instant::now();
        loop {
            let wakes = self.control().wakes;
            remove_unseen(&mut retired);
            let now = Instant::now();
            let next = match self.seal_frozen() {
                Err(BuildError::Stopped) => return,
                Err(BuildError::Io(_) | BuildError::Parent(_)) => Some(now + RETRY_AFTER),
                Ok(()) if now < merge_at => Some(merge_at),
                Ok(()) => match self.merge_next(&mut retired) {
                    Err(BuildError::Stopped) => return,
                    Err(BuildError::Io(_)) => {
                        merge_at = now + MERGE_RETRY_AFTER;
                        Some(merge_at)
                    }
                    // The damaged parent is a candidate no more.
                    Err(BuildError::Parent(_)) | Ok(true) => continue,
                    Ok(false) => None,
                },
            };
            let unseen_at = (!retired.is_empty()).then_some(now + RETRY_AFTER);
            if self.wait(wakes, next.into_iter().chain(unseen_at).min()) {
                remove_unseen(&mut retired);
                return;
            }
        }
    }

    /// Waits for a wake since `wakes` or until `until`. True if the thread is to stop.
    fn wait(&self, wakes: u64, until: Option<Instant>) -> bool {
        let mut control = self.control();
        while !control.stop && control.wakes == wakes {
            let Some(until) = until else {
                control = self
                    .changed
                    .wait(control)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let (next, _) = self
                .changed
                .wait_timeout(control, left)
                .unwrap_or_else(PoisonError::into_inner);
            control = next;
        }
        control.stop
    }

    /// Seals all frozen parts, the oldest first.
    fn seal_frozen(&self) -> Result<(), BuildError> {
        self.unless_stopped()?;
        while let Some(frozen) = self.parts.oldest_frozen() {
            let built = caught(|| build(&self.dir, &frozen, || self.unless_stopped()));
            let failure = match built {
                Ok(generation) => {
                    let generation = Arc::new(generation);
                    log_built("sealed", &generation);
                    self.parts.publish(generation);
                    None
                }
                Err(BuildError::Stopped) => return Err(BuildError::Stopped),
                Err(error) => Some(error),
            };
            self.report(failure)?;
        }
        Ok(())
    }

    /// Keeps the outcome of a seal for the writer, and logs it if it is another than before.
    fn report(&self, failure: Option<BuildError>) -> Result<(), BuildError> {
        let mut control = self.control();
        let outcome = match failure {
            Some(error) => {
                let failure = error.into_index_error(&self.dir);
                if control.failure.is_none() {
                    let cause = std::error::Error::source(&failure).map(ToString::to_string);
                    tracing::error!(error = %failure, cause, "sealing failed; trying on");
                }
                control.failure = Some(failure.clone());
                Err(failure.into())
            }
            None => {
                if control.failure.take().is_some() {
                    tracing::info!("sealing works again");
                }
                Ok(())
            }
        };
        drop(control);
        self.changed.notify_all();
        outcome
    }

    /// Merges what is to be merged next. False if nothing is.
    fn merge_next(&self, retired: &mut Vec<Arc<Generation>>) -> Result<bool, BuildError> {
        let Some(parents) = merge::candidates(&self.parts.view(), self.options) else {
            return Ok(false);
        };
        // What waits to be sealed is sealed within the merge. When that fails, the merge gives up its space.
        let go_on = || {
            self.seal_frozen().map_err(|error| match error {
                BuildError::Stopped => BuildError::Stopped,
                BuildError::Io(_) | BuildError::Parent(_) => {
                    io::Error::other("a seal failed meanwhile").into()
                }
            })
        };
        match caught(|| merge::merge(&self.dir, &parents, go_on)) {
            Ok(merged) => {
                let merged = Arc::new(merged);
                log_built("merged", &merged);
                self.parts.publish(merged);
                retired.extend(parents);
                Ok(true)
            }
            Err(error) => {
                if let BuildError::Io(error) = &error {
                    tracing::warn!(%error, "merging failed; trying again later");
                }
                Err(error)
            }
        }
    }

    fn unless_stopped(&self) -> Result<(), BuildError> {
        if self.control().stop {
            Err(BuildError::Stopped)
        } else {
            Ok(())
        }
    }

    // No holder panics between two changes that belong together: poison says nothing here.
    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_built(what: &'static str, generation: &Generation) {
    let Range { start, end }: Range<Sequence> = generation.range();
    let (keys, bytes) = (generation.key_count(), generation.bytes());
    tracing::info!(
        first = start,
        end,
        keys,
        bytes,
        "{what} an index generation"
    );
}

/// sled asserts what it writes and reads: its panic must not end the thread that the writer waits for.
fn caught<T>(build: impl FnOnce() -> Result<T, BuildError>) -> Result<T, BuildError> {
    catch_unwind(AssertUnwindSafe(build))
        .unwrap_or_else(|_| Err(io::Error::other("building panicked").into()))
}

/// Removes the generations that no view shows any more.
fn remove_unseen(retired: &mut Vec<Arc<Generation>>) {
    for generation in std::mem::take(retired) {
        match Arc::try_unwrap(generation) {
            Ok(generation) => {
                let path = generation.path().to_owned();
                if let Err(error) = generation.remove() {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a merged generation");
                }
            }
            Err(seen) => retired.push(seen),
        }
    }
}
