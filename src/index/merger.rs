//! Merger: the thread that merges the generations of one tier. Sealing and the other tiers have threads of their
//! own, so that no merge waits for a larger one.
//!
//! Owns when to try a merge, and the removal of replaced generations once no view shows them.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    builder::caught,
    control::Control,
    error::{BuildError, IndexError},
    folder::Folder,
    generation::Generation,
    merge::merge,
    merges::Merges,
    parts::Parts,
};
use crate::platform::{Job, Jobs, Step};

/// How long to wait after a failed merge: it may have written much before it failed.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How long to wait before checking again whether a view still shows a replaced generation.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// The thread's state.
pub(super) struct Merger {
    jobs: Arc<dyn Jobs>,
    folder: Folder,
    tier: usize,
    parts: Arc<Parts>,
    merges: Arc<Merges>,
    control: Arc<Control>,
    /// Replaced generations that a view may still show.
    retired: Vec<Arc<Generation>>,
    /// The number of wake-ups when this thread last looked for work.
    wakes: u64,
    /// When to try again after a failed merge.
    retry_at: Option<Instant>,
}

impl Job for Merger {
    /// Removes replaced generations and makes the next merge.
    fn step(&mut self) -> Step {
        self.remove_unseen();
        if self.control.is_stopping() {
            return Step::Ended;
        }
        self.wakes = self.control.wakes();
        if self.retry_at.is_some_and(|at| self.jobs.now() < at) {
            return Step::Idle;
        }
        if self.retry_at.take().is_some() {
            self.merges.set_able(self.tier, true);
        }
        let step = match caught(|| self.merge_next()) {
            Ok(false) => return Step::Idle,
            // The damaged parent is no longer a candidate.
            Ok(true) | Err(BuildError::Parent(IndexError::Damaged { .. })) => Step::Worked,
            Err(BuildError::Stopped) => Step::Ended,
            Err(error @ (BuildError::Parent(_) | BuildError::Io(_))) => {
                tracing::warn!(%error, "merging failed; trying again later");
                self.retry_at = Some(self.jobs.now() + RETRY_AFTER);
                self.merges.set_able(self.tier, false);
                Step::Idle
            }
        };
        // A higher tier may have enough now, and a seal may be waiting for this merge.
        self.control.wake();
        step
    }

    fn wait(&mut self) {
        let look_at = (!self.retired.is_empty()).then(|| self.jobs.now() + LOOK_AFTER);
        let until = self.retry_at.into_iter().chain(look_at).min();
        self.control.wait(self.wakes, until);
    }
}

impl Merger {
    pub(super) fn new(
        jobs: Arc<dyn Jobs>,
        folder: Folder,
        tier: usize,
        parts: Arc<Parts>,
        merges: Arc<Merges>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            jobs,
            folder,
            tier,
            parts,
            merges,
            control,
            retired: Vec::new(),
            wakes: 0,
            retry_at: None,
        }
    }

    /// Makes the next merge. False if there is none.
    fn merge_next(&mut self) -> Result<bool, BuildError> {
        let Some(claim) = self.merges.claim(self.tier) else {
            return Ok(false);
        };
        let go_on = || {
            if self.control.is_stopping() {
                return Err(BuildError::Stopped);
            }
            // The rest of the disk is for the seal.
            if self.control.has_failure() {
                return Err(io::Error::other("a seal failed meanwhile").into());
            }
            Ok(())
        };
        let merged = merge(&self.folder, claim.parents(), go_on)?;
        merged.trace("merged");
        self.parts.replace_with(Arc::new(merged));
        self.retired.extend_from_slice(claim.parents());
        Ok(true)
    }

    /// Removes generations that no view shows any more.
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

impl Drop for Merger {
    fn drop(&mut self) {
        // However it ends, no seal waits for it.
        self.merges.set_able(self.tier, false);
        self.control.wake();
    }
}
