//! Requests that are submitted one after the other, and answered with totals alone.
//!
//! Both edges have such a response: Publish over gRPC and POST /publish. Each request is stored whole or not at all.

use std::collections::VecDeque;

use crate::{
    event::Event,
    limits::STREAM_REQUESTS_MAX,
    partition::{Outcome, Partition, PendingOutcomes, PublishError, Rejection, Share},
};

/// Submits requests, and adds up their outcomes. At most [`STREAM_REQUESTS_MAX`] are pending at a time.
pub(crate) struct Submitter<'a> {
    partition: &'a Partition,
    /// In the order in which they were submitted.
    pending: VecDeque<PendingOutcomes>,
    totals: Totals,
}

/// The outcomes of events, all of them durable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub received: u64,
    pub unique_processed: u64,
    /// Conflicts among them.
    pub duplicate_dropped: u64,
    pub conflicts: u64,
}

impl<'a> Submitter<'a> {
    pub fn new(partition: &'a Partition) -> Self {
        Self {
            partition,
            pending: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    /// Submits a request, and waits while too many are pending. Fails if an earlier one did.
    pub async fn submit(&mut self, events: Vec<Event>, share: Share) -> Result<(), PublishError> {
        let submitted = self
            .partition
            .submit(events, Rejection::OfRequest, share)
            .await;
        self.pending.push_back(submitted?);
        self.await_pending(STREAM_REQUESTS_MAX).await
    }

    /// Waits until nothing is pending.
    pub async fn finish(&mut self) -> Result<(), PublishError> {
        self.await_pending(0).await
    }

    /// The totals so far: of requests whose events are durable.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Waits until no more than `left` requests are pending.
    async fn await_pending(&mut self, left: usize) -> Result<(), PublishError> {
        while self.pending.len() > left {
            let pending = self.pending.pop_front().expect("not empty");
            for outcome in pending.await?.outcomes {
                self.totals.count(outcome);
            }
        }
        Ok(())
    }
}

impl Totals {
    fn count(&mut self, outcome: Outcome) {
        self.received += 1;
        match outcome {
            Outcome::Stored(_) => self.unique_processed += 1,
            Outcome::Duplicate(_) => self.duplicate_dropped += 1,
            Outcome::Conflict(_) => {
                self.duplicate_dropped += 1;
                self.conflicts += 1;
            }
            Outcome::TopicLimit => unreachable!("it fails the whole request"),
        }
    }
}
