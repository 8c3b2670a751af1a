//! Control: what the threads of the index tell each other and the writer.
//!
//! Owns the one condition all of them wait for. Knows nothing of what they do.

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
    /// Counts what the threads were woken for, so that they miss nothing between looking and waiting.
    wakes: u64,
    /// Why the last seal failed; none after one that did not.
    failure: Option<IndexError>,
}

impl Control {
    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state().stop
    }

    /// Tells the threads that there are other parts than before.
    pub(super) fn wake(&self) {
        self.state().wakes += 1;
        self.changed.notify_all();
    }

    /// How often there were.
    pub(super) fn wakes(&self) -> u64 {
        self.state().wakes
    }

    /// Waits for a wake since `wakes`, until `until`, or for the stop.
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

    /// Keeps why the last seal failed, or that it did not. Returns what was there before.
    pub(super) fn set_failure(&self, failure: Option<IndexError>) -> Option<IndexError> {
        let before = std::mem::replace(&mut self.state().failure, failure);
        self.changed.notify_all();
        before
    }

    pub(super) fn has_failure(&self) -> bool {
        self.state().failure.is_some()
    }

    /// Blocks while `waits`, which a job ends before it wakes. Fails when the last seal failed.
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

    // No holder panics between two changes that belong together: poison says nothing here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
