//! Threads: those of an index, from its start to its end.

use std::{
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use super::{IndexOptions, control::Control, merger::Merger, parts::Parts, sealer::Sealer};

/// The handle of the threads; stops and joins them when dropped.
pub(super) struct Threads {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn spawn(dir: &Path, options: IndexOptions, parts: &Arc<Parts>) -> io::Result<Self> {
        let mut threads = Self {
            control: Arc::default(),
            threads: Vec::new(),
        };
        let control = Arc::clone(&threads.control);
        let sealer = Sealer {
            dir: dir.to_owned(),
            parts: Arc::clone(parts),
            control: Arc::clone(&control),
        };
        let merger = Merger::new(dir.to_owned(), options, Arc::clone(parts), control);
        threads.add("index-sealer", || sealer.run())?;
        threads.add("index-merger", || merger.run())?;
        Ok(threads)
    }

    fn add(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(run)?);
        Ok(())
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.control.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the index panicked");
            }
        }
    }
}
