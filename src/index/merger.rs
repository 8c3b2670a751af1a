//! Merger: the thread that merges generations, beside the one that seals them.
//!
//! Owns when a merge is tried, and the removal of the generations that it replaced once no view shows them.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    IndexOptions, builder::caught, control::Control, error::BuildError, generation::Generation,
    merge, parts::Parts,
};

/// How long to wait after a failed merge: it may have written much before it failed.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How long to wait before looking again whether a view still shows a replaced generation.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(super) struct Merger {
    dir: PathBuf,
    options: IndexOptions,
    parts: Arc<Parts>,
    control: Arc<Control>,
    /// Replaced generations that a view may still show.
    retired: Vec<Arc<Generation>>,
}

impl Merger {
    pub(super) fn new(
        dir: PathBuf,
        options: IndexOptions,
        parts: Arc<Parts>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            dir,
            options,
            parts,
            control,
            retired: Vec::new(),
        }
    }

    /// Merges what is to be merged until it is told to stop.
    pub(super) fn run(mut self) {
        let mut merge_at = Instant::now();
        loop {
            let wakes = self.control.wakes();
            self.remove_unseen();
            let now = Instant::now();
            let mut look_at = (now < merge_at).then_some(merge_at);
            if look_at.is_none() {
                match self.merge_next() {
                    Ok(false) => {}
                    // The damaged parent is a candidate no more.
                    Ok(true) | Err(BuildError::Parent(_)) => continue,
                    Err(BuildError::Stopped) => break,
                    Err(BuildError::Io(error)) => {
                        tracing::warn!(%error, "merging failed; trying again later");
                        merge_at = now + RETRY_AFTER;
                        look_at = Some(merge_at);
                    }
                }
            }
            let unseen_at = (!self.retired.is_empty()).then_some(now + LOOK_AFTER);
            if self
                .control
                .wait(wakes, look_at.into_iter().chain(unseen_at).min())
            {
                break;
            }
        }
        self.remove_unseen();
    }

    /// Merges what is to be merged next. False if nothing is.
    fn merge_next(&mut self) -> Result<bool, BuildError> {
        let Some(parents) = merge::candidates(&self.parts.view(), self.options) else {
            return Ok(false);
        };
        let go_on = || {
            if self.control.is_stopping() {
                return Err(BuildError::Stopped);
            }
            // What is left of the disk is for the seal.
            if self.control.has_failure() {
                return Err(io::Error::other("a seal failed meanwhile").into());
            }
            Ok(())
        };
        let merged = caught(|| merge::merge(&self.dir, &parents, go_on))?;
        merged.log("merged");
        self.parts.publish(Arc::new(merged));
        self.retired.extend(parents);
        Ok(true)
    }

    /// Removes the generations that no view shows any more.
    fn remove_unseen(&mut self) {
        for generation in std::mem::take(&mut self.retired) {
            match Arc::try_unwrap(generation) {
                Ok(generation) => {
                    let path = generation.path().to_owned();
                    if let Err(error) = generation.remove() {
                        tracing::warn!(path = %path.display(), %error, "cannot remove a merged generation");
                    }
                }
                Err(seen) => self.retired.push(seen),
            }
        }
    }
}
