//! Sealer: the thread that turns frozen parts into generations.
//!
//! Owns building a generation from memory, and the result that the writer waits for. Waits itself while the
//! bound on generations is reached and a merge can lower their number.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    builder::{Builder, caught, finished},
    control::Control,
    error::{BuildError, IndexError},
    folder::Folder,
    generation::Generation,
    merges::Merges,
    parts::{Frozen, Parts},
};
use crate::platform::{Job, Jobs, Step};

/// How long to wait after a failed seal.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Builds the generation of a frozen part. Calls `go_on` between runs; its error ends the build.
pub(super) fn build(
    folder: &Folder,
    frozen: &Frozen,
    go_on: impl Fn() -> Result<(), BuildError>,
) -> Result<Generation, BuildError> {
    if let Some(generation) = finished(folder, &frozen.range)? {
        return Ok(generation);
    }
    let keys = frozen.keys.len() as u64;
    let mut builder = Builder::create(folder, frozen.range.clone(), keys)?;
    for (key, hash, entry) in frozen.keys.sorted() {
        if builder.push_key(key, hash, entry)? {
            go_on()?;
        }
    }
    for (topic, positions) in frozen.positions.sorted() {
        builder.push_positions(topic, positions)?;
    }
    builder.finish()
}

/// The thread's state.
pub(super) struct Sealer {
    jobs: Arc<dyn Jobs>,
    folder: Folder,
    parts: Arc<Parts>,
    merges: Arc<Merges>,
    control: Arc<Control>,
    /// The number of wake-ups when this thread last looked for work.
    wakes: u64,
    /// When to try again after a failed seal.
    retry_at: Option<Instant>,
}

impl Job for Sealer {
    /// Seals the oldest frozen part.
    fn step(&mut self) -> Step {
        if self.control.is_stopping() {
            return Step::Ended;
        }
        self.wakes = self.control.wakes();
        if self.retry_at.is_some_and(|at| self.jobs.now() < at) {
            return Step::Idle;
        }
        self.retry_at = None;
        match caught(|| self.seal_oldest()) {
            Ok(true) => Step::Worked,
            Ok(false) => Step::Idle,
            Err(BuildError::Stopped) => Step::Ended,
            Err(error) => {
                self.report(Some(error.into_index_error(&self.folder.path)));
                self.retry_at = Some(self.jobs.now() + RETRY_AFTER);
                Step::Idle
            }
        }
    }

    fn wait(&mut self) {
        self.control.wait(self.wakes, self.retry_at);
    }
}

impl Sealer {
    pub(super) fn new(
        jobs: Arc<dyn Jobs>,
        folder: Folder,
        parts: Arc<Parts>,
        merges: Arc<Merges>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            jobs,
            folder,
            parts,
            merges,
            control,
            wakes: 0,
            retry_at: None,
        }
    }

    /// Seals the oldest frozen part. False if there is none, or a merge must go first, which wakes this
    /// thread.
    fn seal_oldest(&self) -> Result<bool, BuildError> {
        let Some(frozen) = self.parts.oldest_frozen() else {
            return Ok(false);
        };
        if self.merges.must_go_first() {
            return Ok(false);
        }
        let go_on = || {
            if self.control.is_stopping() {
                return Err(BuildError::Stopped);
            }
            Ok(())
        };
        let generation = build(&self.folder, &frozen, go_on)?;
        generation.trace("sealed");
        self.parts.replace_with(Arc::new(generation));
        self.report(None);
        self.control.wake();
        Ok(true)
    }

    /// Keeps the result of a seal for the writer, and logs it if it has changed.
    fn report(&self, failure: Option<IndexError>) {
        let cause = failure.as_ref().map(|failure| {
            let source = std::error::Error::source(failure);
            (failure.to_string(), source.map(ToString::to_string))
        });
        match (self.control.set_failure(failure), cause) {
            (None, Some((error, cause))) => {
                tracing::error!(error, cause, "sealing failed; retrying");
            }
            (Some(_), None) => tracing::info!("sealing works again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        // A panic is a failure for all who wait, not an endless wait.
        if std::thread::panicking() {
            self.control.set_failure(Some(IndexError::Seal {
                path: self.folder.path.clone(),
                source: Arc::new(io::Error::other("the index sealer panicked")),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::testing::{build, folder};

    #[test]
    fn a_finished_generation_is_not_rebuilt() {
        let dir = tempfile::tempdir().expect("a folder");
        let keys = Default::default();
        let positions = Default::default();
        let frozen = Frozen {
            range: 1..101,
            keys,
            positions,
        };
        let folder = folder(dir.path());
        // Opening it keeps its store locked.
        let held = build(dir.path(), 1..101);
        let failed = super::build(&folder, &frozen, || Ok(()));
        let Err(BuildError::Io(error)) = failed.map(drop) else {
            panic!("it is open");
        };
        assert!(
            error.to_string().contains("could not acquire lock"),
            "{error}"
        );
        assert!(held.path().exists());
        drop(held);
        // The one that existed: built from the frozen part without keys, it would have none.
        let found = super::build(&folder, &frozen, || Ok(())).expect("it is closed");
        assert_eq!(found.key_count(), 100);
    }
}
