//! The JSON of events and counters: one shape wherever a person meets it, over HTTP and on the command line.

pub(crate) mod event;
pub(crate) mod flaw;
pub(crate) mod listed;
pub(crate) mod stats;
