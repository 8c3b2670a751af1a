//! Workers: the threads of an index, from start to stop.

use std::{io, sync::Arc};

use super::{
    IndexError, IndexOptions, control::Control, folder::Folder, merger::Merger, merges::Merges,
    parts::Parts, sealer::Sealer,
};
use crate::platform::{Job, Jobs, Running};

/// The handle of the threads; stops and joins them when dropped.
pub(super) struct Workers {
    jobs: Arc<dyn Jobs>,
    control: Arc<Control>,
    merges: Arc<Merges>,
    running: Vec<Box<dyn Running>>,
}

impl Workers {
    pub(super) fn spawn(
        jobs: &Arc<dyn Jobs>,
        folder: &Folder,
        options: IndexOptions,
        parts: &Arc<Parts>,
    ) -> io::Result<Self> {
        let control = Arc::<Control>::default();
        let merges = Arc::new(Merges::new(options, Arc::clone(parts)));
        let mut workers = Self {
            jobs: Arc::clone(jobs),
            control: Arc::clone(&control),
            merges: Arc::clone(&merges),
            running: Vec::new(),
        };
        let sealer = Sealer::new(
            Arc::clone(jobs),
            folder.clone(),
            Arc::clone(parts),
            Arc::clone(&merges),
            Arc::clone(&control),
        );
        workers.add("index-sealer", sealer)?;
        for tier in 0..options.merge_tiers {
            let merger = Merger::new(
                Arc::clone(jobs),
                folder.clone(),
                tier,
                Arc::clone(parts),
                Arc::clone(&merges),
                Arc::clone(&control),
            );
            workers.add(&format!("index-merger-{tier}"), merger)?;
        }
        Ok(workers)
    }

    fn add(&mut self, name: &str, job: impl Job) -> io::Result<()> {
        self.running.push(self.jobs.spawn(name, Box::new(job))?);
        Ok(())
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// Blocks while `waits` returns true; a thread makes it false before it wakes this one. Fails if the last
    /// seal failed.
    pub(super) fn wait_while(&self, waits: impl Fn() -> bool) -> Result<(), IndexError> {
        self.control.wait_while(&*self.jobs, waits)
    }

    /// Blocks while the bound on generations is reached and a merge can lower their number.
    pub(super) fn wait_for_merges(&self) -> Result<(), IndexError> {
        self.wait_while(|| self.merges.must_go_first())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.control.stop();
        for running in self.running.drain(..) {
            if running.join().is_err() {
                tracing::error!("a thread of the index panicked");
            }
        }
    }
}
