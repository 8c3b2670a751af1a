//! oncelog: an event aggregator that stores every event exactly once.
//!
//! Publishers stream events over gRPC or HTTP and may send them again as often as they like; the server
//! stores each `(topic, event_id)` once, over the whole history, acknowledges only what is durable, and
//! streams the stored events back in order.
//!
//! # Code map
//!
//! Arrows point one way: cli -> server -> grpc, http -> partition -> index, log -> event, platform.
//!
//! | module | owns |
//! |---|---|
//! | [`event`] | events, their keys, limits and canonical encoding |
//! | [`log`] | the stored data: batches, and in `log/files` segments and recovery |
//! | [`index`] | which keys are stored, and where; derived from the log; the only module that names sled |
//! | [`platform`] | the operating system as the store sees it: files, threads, the clock, randomness |
//! | [`partition`] | the write path, the durable tail, readers, counters |
//! | `call`, `response`, `covered`, `pool` | the memory of a request, and of its response until it has been sent |
//! | `aggregator`, `limits`, `submitter`, `listing` | shared by the edges: the partition, limits, requests answered with totals, streams of stored events |
//! | [`grpc`] | the RPCs, conversions, the error table; with `client` and `server` the only modules that name tonic |
//! | `json` | the JSON of events and counters, which HTTP and the command line share |
//! | `http` | the HTTP endpoints, their error table, the OpenAPI document |
//! | [`server`] | composition, health, reflection, start and stop |
//! | [`client`] | a publisher that resends until acked, a reader that resumes |
//! | [`config`], [`cli`] | flags and commands |
//! | `simulation` | the store on one thread, over a simulated disk, clock and randomness; for tests and `torture/` |
//! | `**/fuzzing` | what must hold for every parser; for tests and `fuzz/` |
//!
//! # Invariants
//!
//! - The log decides: an event is stored when its batch is durable in the log. Index and counters are
//!   derived and can be rebuilt from it.
//! - No acknowledgement, and nothing visible to a reader, before the sync.
//! - At most one batch of the log is unsynced, so a fault before the last batch is damage, not a torn write:
//!   opening refuses it where it reads (the newest segment, and what the index lacks), readers where they meet
//!   it.
//! - A key is compared byte for byte before an event is called a duplicate.
//! - A failed write or sync of the log is never retried. A file that has no data of the log yet is removed and
//!   created again.
//! - Every queue, buffer and wait has a named limit.

mod aggregator;
mod call;
pub mod cli;
pub mod client;
pub mod config;
mod covered;
pub mod event;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod grpc;
mod http;
pub mod index;
mod json;
mod limits;
mod listing;
pub mod log;
pub mod partition;
pub mod platform;
mod pool;
pub mod proto;
mod response;
pub mod server;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod submitter;
