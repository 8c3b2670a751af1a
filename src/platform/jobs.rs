//! Jobs: background work, done step by step.
//!
//! Owns [`Job`], [`Jobs`] and [`ThreadPerJob`], which gives each job a thread. Inside a step, a job waits only for
//! the disk and, through [`Jobs::help`], for other jobs; so one thread can run any number of them.

use std::{
    any::Any,
    io,
    thread::{self, JoinHandle},
    time::Instant,
};

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It did something; there may be more to do.
    Worked,
    /// There is nothing to do at the moment.
    Idle,
    /// There will never be anything to do again.
    Ended,
}

/// A task without end, in steps.
pub trait Job: Send + 'static {
    /// Does the work there is, or some of it.
    fn step(&mut self) -> Step;
    /// Blocks after an idle step until there may be work.
    fn wait(&mut self);
}

/// Runs jobs.
pub trait Jobs: Send + Sync + 'static {
    /// Starts a job.
    fn spawn(&self, name: &str, job: Box<dyn Job>) -> io::Result<Box<dyn Running>>;
    /// Called before blocking for another job inside a step. If jobs share this thread, one of them makes a step,
    /// and the result is true: check again before blocking.
    fn help(&self) -> bool;
    /// Marks a point between two changes that others may see. Jobs that share a thread may run here; those with
    /// their own threads need no such point.
    fn make_way(&self) {}
    /// The time for delays.
    fn now(&self) -> Instant;
    /// How many tasks are worth running in parallel.
    fn parallelism(&self) -> usize;
}

/// A started job.
pub trait Running: Send + Sync {
    /// Waits until it has ended. The error is its panic.
    fn join(self: Box<Self>) -> thread::Result<()>;
}

/// The text of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without words")
}

/// A thread for each job.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadPerJob;

impl Jobs for ThreadPerJob {
    fn spawn(&self, name: &str, mut job: Box<dyn Job>) -> io::Result<Box<dyn Running>> {
        let run = move || {
            loop {
                match job.step() {
                    Step::Worked => {}
                    Step::Idle => job.wait(),
                    Step::Ended => break,
                }
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Box::new(thread))
    }

    fn help(&self) -> bool {
        false
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn parallelism(&self) -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }
}

impl Running for JoinHandle<()> {
    fn join(self: Box<Self>) -> thread::Result<()> {
        JoinHandle::join(*self)
    }
}
