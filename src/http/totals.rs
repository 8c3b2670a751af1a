//! The response to a publish.

use serde::Serialize;

use crate::partition::Outcome;

/// The outcomes of a request's events, all of them durable.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Totals {
    received: u64,
    /// The original API's word for accepted events; here all accepted events are stored.
    enqueued: u64,
    unique_processed: u64,
    duplicate_dropped: u64,
    conflicts: u64,
}

impl Totals {
    pub fn count(&mut self, outcome: Outcome) {
        self.received += 1;
        self.enqueued += 1;
        match outcome {
            Outcome::Stored(_) => self.unique_processed += 1,
            Outcome::Duplicate(_) => self.duplicate_dropped += 1,
            Outcome::Conflict(_) => {
                self.duplicate_dropped += 1;
                self.conflicts += 1;
            }
            Outcome::TopicLimit => unreachable!("the limit on topics fails the whole request"),
        }
    }
}
