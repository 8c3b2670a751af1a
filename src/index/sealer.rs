//! Sealer: the thread that turns frozen parts into generations.
//!
//! Owns building a generation from memory, and what the writer waits for.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    builder::{Builder, caught},
    control::Control,
    error::{BuildError, IndexError},
    generation::Generation,
    parts::{Frozen, Parts},
};

/// How long to wait after a failed seal.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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

/// What the thread works with.
pub(super) struct Sealer {
    pub(super) dir: PathBuf,
    pub(super) parts: Arc<Parts>,
    pub(super) control: Arc<Control>,
}

impl Sealer {
    /// Seals what is frozen until it is told to stop.
    pub(super) fn run(self) {
        loop {
            let wakes = self.control.wakes();
            let retry_at = match caught(|| self.seal_frozen()) {
                Ok(()) => None,
                Err(BuildError::Stopped) => return,
                Err(error) => {
                    self.report(Some(error.into_index_error(&self.dir)));
                    Some(Instant::now() + RETRY_AFTER)
                }
            };
            if self.control.wait(wakes, retry_at) {
                return;
            }
        }
    }

    /// Seals all frozen parts, the oldest first.
    fn seal_frozen(&self) -> Result<(), BuildError> {
        while let Some(frozen) = self.parts.oldest_frozen() {
            let generation = Arc::new(build(&self.dir, &frozen, || {
                if self.control.is_stopping() {
                    return Err(BuildError::Stopped);
                }
                Ok(())
            })?);
            generation.log("sealed");
            self.parts.publish(generation);
            self.report(None);
            self.control.wake();
        }
        Ok(())
    }

    /// Keeps the outcome of a seal for the writer, and logs it if it is another than before.
    fn report(&self, failure: Option<IndexError>) {
        let cause = failure.as_ref().map(|failure| {
            let source = std::error::Error::source(failure);
            (failure.to_string(), source.map(ToString::to_string))
        });
        match (self.control.set_failure(failure), cause) {
            (None, Some((error, cause))) => {
                tracing::error!(error, cause, "sealing failed; trying on");
            }
            (Some(_), None) => tracing::info!("sealing works again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        // A panic is a failure for all who wait, not a wait without end.
        if std::thread::panicking() {
            self.control.set_failure(Some(IndexError::Seal {
                path: self.dir.clone(),
                source: Arc::new(io::Error::other("the index sealer panicked")),
            }));
        }
    }
}
