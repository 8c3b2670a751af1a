//! A log that behaves like a replicated one: appends overlap and complete late, replies get lost, and another writer
//! may have taken over.
//!
//! Owns [`LateLog`], which adds this to any log. The disk's faults decide when something goes wrong.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use thiserror::Error;

use super::{chance::Chance, disk::SimDisk, lie::Lie};
use crate::{
    event::Sequence,
    log::{AppendError, Batch, Log},
};

/// At this percentage, a begun append is not done yet, and a done one not yet reported.
const LATE_PERCENT: u64 = 40;

#[derive(Debug, Error)]
#[error("simulated")]
struct Simulated;

/// Makes a log behave as if over a network.
pub(super) struct LateLog<L> {
    log: L,
    disk: SimDisk,
    chance: Chance,
    lie: Option<Lie>,
    in_flight_max: usize,
    /// Oldest first.
    in_flight: VecDeque<Append>,
    /// Reported as done, and not done.
    believed: VecDeque<Batch>,
    /// Why nothing is appended any more.
    failed: Option<AppendError>,
}

struct Append {
    batch: Batch,
    /// Known once the log below has decided.
    outcome: Option<Result<(), AppendError>>,
}

impl<L: Log> LateLog<L> {
    /// Lets up to `in_flight_max` appends to `log` overlap.
    pub fn new(
        log: L,
        disk: SimDisk,
        chance: Chance,
        lie: Option<Lie>,
        in_flight_max: usize,
    ) -> Self {
        Self {
            log,
            disk,
            chance,
            lie,
            in_flight_max,
            in_flight: VecDeque::new(),
            believed: VecDeque::new(),
            failed: None,
        }
    }

    /// Does the oldest append not done yet. Its failure fails all behind it as well.
    fn append_next(&mut self) {
        while let Some(batch) = self.believed.pop_front() {
            if let Err(error) = self.append_below(&batch) {
                self.failed = Some(error);
            }
        }
        let Some(at) = self
            .in_flight
            .iter()
            .position(|append| append.outcome.is_none())
        else {
            return;
        };
        let batch = self.in_flight[at].batch.clone();
        let outcome = match self.failed.clone() {
            Some(failed) => Err(failed),
            None if self.disk.is_append_fault_due() => self.fail(&batch),
            None => self.append_below(&batch),
        };
        let Err(error) = outcome else {
            self.in_flight[at].outcome = Some(Ok(()));
            return;
        };
        if !matches!(error, AppendError::Full(_) | AppendError::NotReady(_)) {
            self.failed = Some(error.clone());
        }
        for append in self.in_flight.range_mut(at..) {
            append.outcome = Some(Err(error.clone()));
        }
    }

    fn append_below(&mut self, batch: &Batch) -> Result<(), AppendError> {
        self.log.begin_append(batch);
        match self
            .log
            .poll_append(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("the log below completes at once"),
        }
    }

    fn fail(&mut self, batch: &Batch) -> Result<(), AppendError> {
        match self.chance.below(3) {
            0 => Err(AppendError::Fenced(Arc::new(Simulated))),
            // The reply is lost: of an append that was done ...
            1 => {
                self.append_below(batch)?;
                Err(AppendError::Unknown(Arc::new(Simulated)))
            }
            // ... or of one that was not.
            _ => Err(AppendError::Unknown(Arc::new(Simulated))),
        }
    }
}

impl<L: Log> Log for LateLog<L> {
    type Reader = L::Reader;

    fn tail(&self) -> Sequence {
        self.log.tail()
    }

    fn in_flight_max(&self) -> usize {
        self.in_flight_max
    }

    fn begin_append(&mut self, batch: &Batch) {
        assert!(self.in_flight.len() < self.in_flight_max, "a limit");
        let mut outcome = None;
        if let Some(last) = self.in_flight.back() {
            assert_eq!(batch.first_sequence(), last.batch.end_sequence(), "a gap");
            // The caller does not know yet that the last one failed.
            outcome = last.outcome.clone().filter(Result::is_err);
        }
        self.in_flight.push_back(Append {
            batch: batch.clone(),
            outcome,
        });
        while self.in_flight.iter().any(|append| append.outcome.is_none())
            && !self.chance.percent(LATE_PERCENT)
        {
            self.append_next();
        }
    }

    fn poll_append(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AppendError>> {
        assert!(!self.in_flight.is_empty(), "nothing was begun");
        if self.lie == Some(Lie::AppendBelieved)
            && let Some(append) = self.in_flight.front()
            && append.outcome.is_none()
        {
            self.believed.push_back(append.batch.clone());
            self.in_flight.pop_front();
            return Poll::Ready(Ok(()));
        }
        if self.in_flight[0].outcome.is_none() && !self.chance.percent(LATE_PERCENT) {
            self.append_next();
        }
        let is_answered = !self.chance.percent(LATE_PERCENT);
        match self.in_flight[0].outcome.clone() {
            Some(outcome) if is_answered => {
                self.in_flight.pop_front();
                Poll::Ready(outcome)
            }
            Some(_) | None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn prepare(&mut self) -> Result<(), AppendError> {
        match self.failed.clone() {
            Some(failed) => Err(failed),
            None => self.log.prepare(),
        }
    }

    fn reader(&self) -> L::Reader {
        self.log.reader()
    }
}
