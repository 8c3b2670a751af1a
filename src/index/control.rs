//! Control: signals between the threads of the index, and to the writer.
//!
//! Owns the one condition they all wait for. Knows nothing of their work.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::error::IndexError;
use crate::platform::Jobs;

/// Shared by the writer, the sealer and the mergers.
#[derive(Default)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    /// Counts wake-ups, so that no thread misses one between looking and waiting.
    wakes: u64,
    /// Why the last seal failed, if it did.
    failure: Option<IndexError>,
}

impl Control {
    /// Asks the threads to end.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state().stop
    }

    /// Informs the threads that the parts have changed.
    pub(super) fn wake(&self) {
        self.state().wakes += 1;
        self.changed.notify_all();
    }

    /// How often the parts have changed.
    pub(super) fn wakes(&self) -> u64 {
        self.state().wakes
    }

    /// Waits for a wake-up after `wakes`, until `until`, or for the stop.
    pub(super) fn wait(&self, wakes: u64, until: Option<Instant>) {
        let mut state = self.state();
        while !state.stop && state.wakes == wakes {
            let Some(until) = until else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let (next, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
        }
    }

    /// Records the result of the last seal. Returns the previous one.
    pub(super) fn set_failure(&self, failure: Option<IndexError>) -> Option<IndexError> {
        let before = std::mem::replace(&mut self.state().failure, failure);
        self.changed.notify_all();
        before
    }

    pub(super) fn has_failure(&self) -> bool {
        self.state().failure.is_some()
    }

    /// Blocks while `waits` returns true; a job makes it false before it wakes this one. Fails if the last
    /// seal failed.
    pub(super) fn wait_while(
        &self,
        jobs: &dyn Jobs,
        waits: impl Fn() -> bool,
    ) -> Result<(), IndexError> {
        while waits() && !self.has_failure() && jobs.help() {}
        let mut state = self.state();
        while waits() {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    // No holder panics between two changes that belong together, so poison means nothing here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
