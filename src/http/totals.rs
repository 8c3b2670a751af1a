//! The response to a publish.

use serde::Serialize;

use crate::submitter;

/// The outcomes of a request's events, all of them durable.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Totals {
    received: u64,
    /// The original API's word for accepted events; here all accepted events are stored.
    enqueued: u64,
    unique_processed: u64,
    duplicate_dropped: u64,
    conflicts: u64,
}

impl From<submitter::Totals> for Totals {
    fn from(totals: submitter::Totals) -> Self {
        let submitter::Totals {
            received,
            unique_processed,
            duplicate_dropped,
            conflicts,
        } = totals;
        Self {
            received,
            enqueued: received,
            unique_processed,
            duplicate_dropped,
            conflicts,
        }
    }
}
